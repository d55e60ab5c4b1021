"""The commands. This file imports typer and nothing heavier: see lazy.py."""

from __future__ import annotations

import io
import json
import re
import signal
import sys
import time as clock
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from mercer import __version__
from mercer.app import places
from mercer.app.exits import INTERRUPTED, USAGE, UsageError, one_line_errors
from mercer.app.lazy import room
from mercer.app.words import one_line, parse_seconds, shown
from mercer.budget import parse_bytes

app = typer.Typer(
    name="mercer", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    help="Predictions from a table, with bands that keep their promise. Exit codes: 0 done, 2 usage, 3 bad data, "
    "4 not enough memory, 130 interrupted.",
)  # fmt: skip


class _Command(TyperCommand):
    """A command whose help names each argument by one plain word."""

    def get_help(self, ctx: Any) -> str:
        return re.sub(r"\{([A-Z]+)\}", r"\1", super().get_help(ctx)).replace(" <path>", "")


_LOADING = 3.0  # seconds of loading libraries that no budget pays for
_Misused: Any = typer.BadParameter.__mro__[1]  # click's UsageError, wherever this typer keeps its click

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.")]
Table = Annotated[Path, typer.Argument(help="A CSV, Parquet or Arrow file.", metavar="TABLE", show_default=False)]
Goals = Annotated[
    list[str],
    typer.Option(
        "--target", "-t", help="A column to predict; repeat it for several.", metavar="COLUMN", show_default=False
    ),
]
Task = Annotated[str, typer.Option(help="auto, regression or classification.", metavar="TASK")]
Time = Annotated[str, typer.Option(help="Time budget: 60s, 5m, 2h.", metavar="TIME")]
Memory = Annotated[
    str | None,
    typer.Option(
        help="Memory for one product, such as 512M or 4G. Default: a quarter of what is free.", metavar="SIZE"
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of everything random.", metavar="NUMBER")]
Group = Annotated[
    str | None,
    typer.Option(
        help="A column whose rows of one value belong together: judged on new ones, and no feature.",
        metavar="COLUMN", show_default=False,
    ),
]  # fmt: skip
Folds = Annotated[int, typer.Option(min=2, max=50, help="Folds on which models are judged.", metavar="NUMBER")]
Folder = Annotated[Path, typer.Argument(help="A folder that `mercer fit` wrote.", metavar="MODEL", show_default=False)]


def _print(as_json: bool, facts: dict[str, Any], text: str) -> None:
    sys.stdout.write((json.dumps({"ok": True, **facts}, allow_nan=False) if as_json else text) + "\n")


def _seconds(text: str) -> float:
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise UsageError(f"--{error}") from error


def _bytes(text: str | None) -> int | None:
    try:
        found = None if text is None else parse_bytes(text)
    except ValueError as error:
        raise UsageError(f"--{error}") from error
    if found is not None and found < 2**20:
        raise UsageError(f"--memory is '{shown(text)}'; expected 1M or more")
    return found


def _task(text: str) -> str:
    if text not in ("auto", "regression", "classification"):
        raise UsageError(f"--task is '{shown(text)}'; expected auto, regression or classification")
    return text


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Predictions from a table, with bands that keep their promise."""
    if version:
        sys.stdout.write(f"mercer {__version__}\n")
        raise typer.Exit


@app.command(cls=_Command)
def fit(
    table: Table, target: Goals, task: Task = "auto", time: Time = "60s", memory: Memory = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.", metavar="FOLDER")] = Path("model"),
    group: Group = None, folds: Folds = 5, seed: Seed = 0, as_json: Json = False,
) -> None:  # fmt: skip
    """Learn to predict a column; leave a model folder with a report."""
    with one_line_errors(as_json):
        begun = clock.monotonic()
        seconds, limit, task = _seconds(time), _bytes(memory), _task(task)
        places.check_table(table)
        places.check_folder(out, table)
        jobs = room("jobs")
        started = min(clock.monotonic(), begun + _LOADING)  # the budget is that of the whole command but for this
        job = jobs.Job(table, tuple(target), out, task, seconds, limit, seed, folds, started=started, group=group)
        facts = jobs.run(job).facts
        short = {
            k: facts[k] for k in ("verdict", "notes", "algorithms", "seconds", "rows_used", "interrupted", "command")
        }
        boards = [{k: t[k] for k in ("name", "task", "leaderboard", "coverage", "warnings")} for t in facts["targets"]]
        text = room("terminal").fit_summary(facts, out)
        _print(as_json, short | {"out": str(out), "targets": boards}, text)
        if facts["interrupted"]:
            raise typer.Exit(INTERRUPTED)


@app.command(cls=_Command)
def predict(
    model: Folder, table: Table,
    out: Annotated[Path, typer.Option("--out", "-o", help=("The table to write: .parquet, "
        ".csv or .arrow."), metavar="FILE", show_default=False)],
    memory: Memory = None, as_json: Json = False,
) -> None:  # fmt: skip
    """Predict new rows, with 90 % bands."""
    with one_line_errors(as_json):
        limit = _bytes(memory)
        places.check_model(model)
        places.check_output(out)
        places.check_apart(out, table)
        places.check_table(table)
        predicting = room("predicting")
        facts = predicting.run(model, table, out, limit, False)
        _print(as_json, facts, predicting.as_text(facts))


@app.command(cls=_Command)
def plan(
    table: Table, target: Goals, task: Task = "auto", time: Time = "60s", memory: Memory = None, group: Group = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Say what `fit` would do: algorithm, memory, time. Nothing is fitted or written."""
    with one_line_errors(as_json):
        seconds, limit, task = _seconds(time), _bytes(memory), _task(task)
        places.check_table(table)
        planning = room("planning")
        facts = planning.run(table, target, task, seconds, limit, group)
        _print(as_json, facts, planning.as_text(facts))


@app.command(cls=_Command)
def report(
    model: Folder,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write the report here too, drawn anew.", metavar="FILE", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a model folder holds, and where its report is."""
    with one_line_errors(as_json):
        places.check_model(model)
        if out is not None:
            places.check_report(out)
        terminal = room("terminal")
        facts = terminal.reread(model, out)
        where = out or model / "report.html"
        _print(as_json, {"report": str(where), "facts": facts}, terminal.report_summary(facts, where))


@app.command(cls=_Command)
def doctor(
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure this machine's speed for the planner first (some seconds).")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what this machine offers and what may hold mercer back."""
    with one_line_errors(as_json):
        module = room("doctor")
        facts = module.examine(calibrate)
        _print(as_json, facts, module.as_text(facts))


@app.command(cls=_Command)
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write.", metavar="FOLDER")] = Path("demo"),
    as_json: Json = False,
) -> None:
    """The main job on two real things: a medical table, and a photo of which a tenth of the pixels are known."""
    with one_line_errors(as_json):
        module = room("demo")
        facts = module.run(out)
        _print(as_json, facts, module.as_text(facts))
        if facts["interrupted"]:
            raise typer.Exit(INTERRUPTED)


def _said(error: Any) -> str:
    context = getattr(error, "ctx", None)
    help_ = f"; see `{context.command_path} --help`" if context is not None else ""
    return f"{error.format_message().rstrip('.')}{help_}"


def main() -> None:
    """The console script."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # set by `start`, while modules were loaded
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code = app(standalone_mode=False)
    except _Misused as error:
        if any(word.split("=")[0] == "--json" for word in sys.argv[1:]):
            sys.stdout.write(json.dumps({"ok": False, "exit": USAGE, "error": one_line(_said(error))}) + "\n")
        if sys.argv[1:]:
            sys.stderr.write(f"mercer: {one_line(_said(error))}\n")
        else:
            error.show()  # all of the help
        code = USAGE
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    sys.exit(code or 0)
