"""Which file began as a copy of which: `python -m benchmarks.family` writes the README's table.

A file's parent is the one that its docstring names in "Differs from <parent>.py". Lines that differ
are those that `diff` shows, without the docstring: in the parent alone, and in the file alone.
"""

import ast
import difflib
import re
from pathlib import Path

from benchmarks.learning import ROOT, put, table

ALGORITHMS = ROOT / "algorithms"


def main() -> None:
    put(ROOT / "README.md", "family", family())


def family() -> str:
    """The table, each parent followed by its children."""
    parents = {path.stem: parent(path) for path in sorted(ALGORITHMS.glob("[!_]*.py"))}
    rows = [["file", "parent", "lines in the parent alone", "in the file alone", "lines"]]
    for name in in_order(parents, None):
        if parents[name]:
            gone, new = differing(code(parents[name]), code(name))
            size = len((ALGORITHMS / f"{name}.py").read_text().splitlines())
            rows.append([link(name), link(parents[name]), gone, new, size])
    return table(rows)


def parent(path: Path) -> str | None:
    found = re.search(r"Differs from (\w+)\.py", ast.get_docstring(ast.parse(path.read_text())))
    return found and found[1]


def in_order(parents: dict[str, str | None], root: str | None) -> list[str]:
    """Depth first, from the files without a parent."""
    children = [name for name, above in parents.items() if above == root]
    return [x for name in children for x in (name, *in_order(parents, name))]


def code(name: str) -> list[str]:
    """The lines after the docstring."""
    source = (ALGORITHMS / f"{name}.py").read_text()
    return source.splitlines()[ast.parse(source).body[0].end_lineno :]


def differing(old: list[str], new: list[str]) -> tuple[int, int]:
    """How many lines are in `old` alone, and in `new` alone."""
    lines = list(difflib.ndiff(old, new))
    return sum(x.startswith("- ") for x in lines), sum(x.startswith("+ ") for x in lines)


def link(name: str) -> str:
    return f"[`{name}.py`](algorithms/{name}.py)"


if __name__ == "__main__":
    main()
