"""The console script's first module: until all is loaded, Ctrl-C ends the process without words, as it ends others."""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where the shell told us to ignore it
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from mercer.app.main import main

__all__ = ["main"]
