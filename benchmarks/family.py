"""Render the lists of algorithms; `python -m benchmarks.pages` calls it.

Writes the chapters of algorithms/README.md, and an excerpt of a dozen rows into README.md. Order,
one-line summaries and papers are data, benchmarks/chapters.toml; results are those of
benchmarks/results/learning.csv.

A file's parent is the one that its docstring names in "Differs from <parent>.py". It is shown with
the lines that `diff` removes and adds, both counted after the module's docstring, and only if more
than SHARED of the file's lines that are not blank also stand in the parent, in the same order.
"""

import ast
import difflib
import re
import tomllib
from pathlib import Path

from benchmarks.learning import ROOT, lines, suite, table

ALGORITHMS = ROOT / "algorithms"
SHARED = 0.55
HEAD = ["file", "what is new", "parent", "paper", "result"]
METRICS = {  # what a row of the suite scores: the final policy's return, or a metric of the run
    "policy_share": ", cost of the local controllers over that of the network",
    None: "",
    "episode_return": ", return during the run",
    "first_episode_return": ", return of the first episodes",
    "episode_length": ", steps of an episode during the run",
    "rms_error": ", RMS error",
    "cost_ratio": ", cost relative to the optimum",
    "success": ", share of the runs that found a plan",
    "model_error": ", error of the model over that of the first one",
    "value_share": ", share of the expert's value",
    "margin": ", distance to the expert's feature expectations",
}


def main() -> None:
    put(ALGORITHMS / "README.md", "family", family())
    put(ROOT / "README.md", "family", excerpt())


def chapters() -> dict[str, dict[str, dict]]:
    """Return the rows of every chapter, by title and file name, in reading order."""
    return read_toml("chapters.toml")


def read_toml(name: str) -> dict:
    return tomllib.loads((ROOT / "benchmarks" / name).read_text())


def family() -> str:
    """Return the chapters: a numbered heading and a table each."""
    results, parts = first_results("../benchmarks/"), []
    for number, (title, files) in enumerate(chapters().items(), 1):
        rows = [[*row(name, entry, ""), results[name]] for name, entry in files.items()]
        parts.append(f"## {number} {title}\n\n{table([HEAD, *rows]) if rows else 'To come.'}")
    return "\n\n".join(parts)


def excerpt() -> str:
    """Return one table of the rows that chapters.toml marks, for README.md."""
    results = first_results("benchmarks/")
    marked = [
        (name, entry)
        for files in chapters().values()
        for name, entry in files.items()
        if entry.get("excerpt")
    ]
    rows = [[*row(name, entry, "algorithms/"), results[name]] for name, entry in marked]
    return table([HEAD, *rows])


def row(name: str, entry: dict, folder: str) -> list[str]:
    """Return the cells of a file, but for its result; `folder` is where the links lead."""
    above = shown_parent(name)
    cells = [link(name, folder), entry["new"], "", entry["paper"]]
    if above:
        removed, added = differing(code(above), code(name))
        cells[2] = f"{link(above, folder)} -{removed} +{added}"
    return cells


def shown_parent(name: str) -> str | None:
    """Return the parent, if the file shares enough lines with it."""
    above = parent(ALGORITHMS / f"{name}.py")
    return above if above and share(code(above), code(name)) > SHARED else None


def parent(path: Path) -> str | None:
    """Return the name in "Differs from <name>.py" of the docstring."""
    found = re.search(r"Differs from (\w+)\.py", ast.get_docstring(ast.parse(path.read_text())))
    return found and found[1]


def code(name: str) -> list[str]:
    """Return the lines after the docstring."""
    source = (ALGORITHMS / f"{name}.py").read_text()
    return source.splitlines()[ast.parse(source).body[0].end_lineno :]


def differing(old: list[str], new: list[str]) -> tuple[int, int]:
    """Return how many lines are in `old` alone, and in `new` alone."""
    marks = [line[0] for line in difflib.ndiff(old, new)]
    return marks.count("-"), marks.count("+")


def share(old: list[str], new: list[str]) -> float:
    """Return the part of the lines of `new` that `old` has too, without blank lines."""
    old, new = ([line for line in lines if line.strip()] for lines in (old, new))
    return 1 - differing(old, new)[1] / len(new)


def first_results(folder: str) -> dict[str, str]:
    """Return, for each file, the result of its first row in the suite that has one, with a link to
    its page; `folder` is where benchmarks/ is, from the page that shows it."""
    measured = lines()
    results = {name: "" for files in chapters().values() for name in files}
    for name, entry in suite().items():
        if name in measured and not results[entry["algorithm"]]:
            line, metric = measured[name], METRICS[entry.get("metric")]
            reached = f"{line['iqm']} [{line['low']}, {line['high']}]"
            page = f"[{entry['env_id']}]({folder}algorithms/{entry['algorithm']}.md)"
            results[entry["algorithm"]] = f"{page}{metric}: {reached}"
    return results


def link(name: str, folder: str) -> str:
    return f"[`{name}.py`]({folder}{name}.py)"


def put(path: Path, name: str, text: str) -> None:
    """Replace the text between the two markers of that name."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = path.read_text().partition(begin)
    after = rest.partition(end)[2]
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}")
