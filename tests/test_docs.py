"""Every python block of the README and of the docs pages runs, page by page, top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = {page: re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL) for page in PAGES}


@pytest.mark.parametrize("page", [p for p in PAGES if BLOCKS[p]], ids=lambda p: p.name)
def test_blocks_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "docs"}
    for block in BLOCKS[page]:
        exec(compile(block, page.name, "exec"), names)


def test_first_example_comes_early_and_is_short():
    lines = (ROOT / "README.md").read_text().splitlines()
    start = lines.index("```python")
    end = lines.index("```", start)
    code = [line for line in lines[start + 1 : end] if line.strip() and not line.strip().startswith("#")]
    assert start <= 30 and len(code) <= 20


def test_links_between_pages_exist():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
