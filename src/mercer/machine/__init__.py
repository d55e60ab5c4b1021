"""What the machine at hand can do: the compiled core of kernel products, and threads to run it on."""

from mercer.machine.library import core

__all__ = ["core"]
