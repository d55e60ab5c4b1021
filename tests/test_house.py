"""The house rules as code: arrows, rooms, abstract-or-final, sizes, catalogue, docs, method index."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import tomllib
from abc import ABC
from pathlib import Path

import pytest
import torch

import mercer
from mercer.feature import FeatureMap
from mercer.kernel import Kernel
from mercer.operator import Operator
from mercer.solver import Solver
from tests import catalogue

ROOT = Path(__file__).parents[1]
SOURCE = Path(mercer.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

# An import goes to a smaller number, or stays in its own room.
SPINE = {
    "errors": 0, "shapes": 1, "budget": 0, "claims": 0,
    "domain": 2, "parameter": 2, "statistic": 2,
    "operator": 3, "assemble": 4, "solver": 4,
    "kernel": 5, "feature": 6,
}  # fmt: skip
ROOMS = {
    "numerics": 1, "machine": 6, "kernels": 7, "operators": 7, "features": 8, "linalg": 8,
    "learn": 9, "compare": 9, "compress": 9, "nn": 9, "app": 11,
}  # fmt: skip
SPINE_LINES, FILE_LINES, FUNCTION_LINES = 1200, 300, 50
LONG_FILES = {
    "operator.py": "the contract and the maps that its own + * @ [] make name each other, so they share a file",
    "kernel.py": "the contract and the kernels that its own + * scale warp on make name each other",
}
LONG_FUNCTIONS: dict[str, str] = {}
LATE_IMPORTS = {"app/lazy.py": "the one loader of the command line's heavy libraries, so that --help stays fast"}

# What a public class of a room must be; functions and result records are the other things a room may export.
CONTRACTS = {
    "kernels": (Kernel, torch.nn.Module),
    "operators": (Operator,),
    "features": (FeatureMap,),
    "nn": (torch.nn.Module,),
}


def where(path: Path) -> tuple[str | None, int]:
    """(room or None, level) of a source file."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    if len(parts) == 1:
        return None, -1 if parts[0] == "__init__" else SPINE[parts[0]]
    return parts[0], ROOMS[parts[0]]


def imported(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
            assert node.level == 0, "relative import"
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return [name for name in found if name.split(".")[0] == "mercer"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_arrows(path):
    room, level = where(path)
    for name in imported(ast.parse(path.read_text())):
        parts = name.split(".")
        if room is None and level == -1:
            continue
        assert len(parts) > 1, f"{path.name} imports the package itself"
        target = parts[1]
        if target in ROOMS:
            assert target == room or ROOMS[target] < level, f"{path.name} -> {name} points right"
        elif target in SPINE:
            assert room is not None or SPINE[target] < level, f"{path.name} -> {name} points right"
        else:
            assert target in ("__version__",), f"{path.name} -> {name} is not a part of the house"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_no_hidden_imports(path):
    text = path.read_text()
    assert "TYPE_CHECKING" not in text
    if str(path.relative_to(SOURCE)) in LATE_IMPORTS:
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            late = [n for n in ast.walk(node) if isinstance(n, ast.Import | ast.ImportFrom)]
            assert not late, f"{path.name}:{late[0].lineno} imports inside {node.name}" if late else ""


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_sizes(path):
    name = str(path.relative_to(SOURCE))
    text = path.read_text()
    assert len(text.splitlines()) <= FILE_LINES or name in LONG_FILES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            start = (first.end_lineno or 0) + 1 if documented else node.lineno
            lines = text.splitlines()[start - 1 : node.end_lineno]
            code = [line for line in lines if line.strip() and not line.strip().startswith("#")]
            assert len(code) <= FUNCTION_LINES or f"{name}:{node.name}" in LONG_FUNCTIONS, (
                f"{name}:{node.name} {len(code)}"
            )


def test_the_spine_can_be_read_in_an_hour():
    lines = {p.name: sum(bool(line.strip()) for line in p.read_text().splitlines()) for p in SOURCE.glob("*.py")}
    assert sum(lines.values()) <= SPINE_LINES, lines


def public(room: str) -> dict[str, object]:
    module = importlib.import_module(f"mercer.{room}")
    return {name: getattr(module, name) for name in module.__all__}


PUBLIC = [(room, name) for room in ROOMS if room != "app" for name in public(room)]


@pytest.mark.parametrize(("room", "name"), PUBLIC, ids=lambda v: v)
def test_door_rule(room, name):
    """What a room exports is what its door says it returns."""
    thing = public(room)[name]
    if inspect.isclass(thing) and room in CONTRACTS:
        assert issubclass(thing, CONTRACTS[room]), f"{name} does not belong in {room}"
    if inspect.isclass(thing) and room != "kernels" and issubclass(thing, Kernel):
        assert issubclass(thing, FeatureMap), f"{name} is a kernel and belongs in kernels"
    if room in ("learn", "compare", "compress") and inspect.isclass(thing):
        wrong = (Kernel, Operator, Solver, torch.nn.Module)
        assert not issubclass(thing, wrong), f"{name} does not belong in {room}"
    if room == "learn" and inspect.isclass(thing):
        assert hasattr(thing, "fit"), f"{name} cannot be fitted"
    assert (thing.__doc__ or "").strip(), f"{name} has no docstring"


def test_abstract_or_final():
    """No public class inherits from a concrete one."""
    for path in FILES:
        module = importlib.import_module(".".join(("mercer", *path.relative_to(SOURCE).with_suffix("").parts)))
        for name, thing in vars(module).items():
            if not inspect.isclass(thing) or thing.__module__ != module.__name__ or name.startswith("_"):
                continue
            for base in thing.__bases__:
                ours = base.__module__.startswith("mercer") and not base.__name__.startswith("_")
                contract = ABC in base.__bases__ or inspect.isabstract(base) or issubclass(base, Exception)
                assert not ours or contract or base.__name__ == "WithParameters", f"{name}({base.__name__})"


@pytest.mark.parametrize(("room", "name"), PUBLIC, ids=lambda v: v)
def test_every_public_name_has_a_catalogue_line(room, name):
    assert f"{room}.{name}" in catalogue.COVERED, f"add {room}.{name} to tests/catalogue.py with its reference"


@pytest.mark.parametrize(("room", "name"), PUBLIC, ids=lambda v: v)
def test_every_public_name_has_a_docs_line(room, name):
    page = (ROOT / "docs" / f"{room}.md").read_text()
    assert f"`{name}`" in page or f"`{name}(" in page, f"docs/{room}.md does not mention `{name}`"


def collected(node: str) -> bool:
    file, _, function = node.partition("::")
    path = ROOT / file
    return path.exists() and re.search(rf"^def {re.escape(function)}\(", path.read_text(), re.MULTILINE) is not None


@pytest.mark.parametrize("name", sorted(catalogue.COVERED))
def test_catalogue_lines_point_at_tests(name):
    room, _, thing = name.partition(".")
    assert thing in public(room), f"{name} is in the catalogue but not public"
    assert collected(catalogue.COVERED[name]), catalogue.COVERED[name]


METHODS = tomllib.loads((ROOT / "docs" / "methods.toml").read_text())["method"]
KEYS = set(re.findall(r"^@\w+\{(\S+),", (ROOT / "docs" / "refs.bib").read_text(), re.MULTILINE))


@pytest.mark.parametrize("entry", METHODS, ids=lambda e: e["key"])
def test_method_index(entry):
    assert set(entry) == {"key", "title", "year", "object", "test", "reproduced"}
    assert entry["key"] in KEYS
    module, _, name = entry["object"].rpartition(".")
    assert hasattr(importlib.import_module(module), name)
    assert collected(entry["test"])
    page = (ROOT / "docs" / "methods.md").read_text()
    assert entry["title"] in page and entry["object"] in page


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_citations_are_in_the_bibliography(path):
    for group in re.findall(r"\[((?:[a-z]+\d{4}[a-z]?)[^\]]*)\]", path.read_text()):
        for part in group.split(";"):
            key = part.split(",")[0].strip()
            if re.fullmatch(r"[a-z]+\d{4}[a-z]?", key):
                assert key in KEYS, f"{path.name} cites [{key}]"
