"""Write docs/methods.md from docs/methods.toml: python docs/methods.py"""

from __future__ import annotations

import tomllib
from pathlib import Path

HERE = Path(__file__).parent


def render() -> str:
    lines = [
        "# Methods and their papers",
        "",
        "Written from `methods.toml` by `methods.py`. BibTeX is in `refs.bib` under the same keys.",
        "",
        "| paper | object | shown by | what is and is not reproduced |",
        "|---|---|---|---|",
    ]
    for m in tomllib.loads((HERE / "methods.toml").read_text())["method"]:
        row = (f"{m['title']} ({m['year']}) [{m['key']}]", f"`{m['object']}`", f"`{m['test']}`", m["reproduced"])
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (HERE / "methods.md").write_text(render())
