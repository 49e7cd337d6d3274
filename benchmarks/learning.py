"""The learning suite: `python -m benchmarks.learning [ROW ...] [--tier T]`.

A row of suite.toml is one command: all its seeds in one vmapped run, then the final greedy policy
over its episodes. Where the claim is about training itself (an online return, an error of values)
the row names a metric of the run instead. The result is a line of results/learning.csv, the curves
are results/<row>.png; `python -m benchmarks.pages` then writes the pages that show them. A run that
was stopped is resumed; a row that already has a line for this commit is skipped, and so is one
whose environment is of a suite that is not installed.
"""

import argparse
import csv
import json
import math
import shlex
import shutil
import statistics
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from common.environments.suites import SUITES
from common.runner.statistics import summarize

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
COLUMNS = ["row", "iqm", "low", "high", "min", "max", "threshold", "reached", "steps", "seeds"]
COLUMNS += ["seconds", "compile_seconds", "steps_per_second", "device", "versions", "commit"]
COLUMNS += ["command"]


def main() -> None:
    rows = suite()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows or algorithms; default: all")
    parser.add_argument("--tier", choices=("test", "cpu", "gpu"), help="only rows of this tier")
    arguments = parser.parse_args()
    known = {*rows, *(row["algorithm"] for row in rows.values())}
    if unknown := set(arguments.rows) - known:
        parser.error(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(rows)}")
    failed = []
    for name in chosen(rows, arguments.rows, arguments.tier):
        if package := missing_package(rows[name]):
            print(f"{name}: left out, it needs a package: pip install {package}")
        elif row_is_due(name):
            line = run_row(name, rows[name])
            write_line(line)
            failed += [] if line["reached"] == "yes" else [name]
    if failed:
        sys.exit(f"below their thresholds: {', '.join(failed)}")


def suite() -> dict[str, dict]:
    return tomllib.loads((ROOT / "benchmarks" / "suite.toml").read_text())


def chosen(rows: dict[str, dict], names: list[str], tier: str | None) -> list[str]:
    """Return the rows that `names` (of rows or algorithms) and `tier` select.

    Rows of tier `gpu` are selected only by their own name or by the tier.
    """

    def asked(name, row):
        if row["tier"] == "gpu" and tier != "gpu" and name not in names:
            return False
        named = not names or {name, row["algorithm"]} & set(names)
        return named and tier in (None, row["tier"])

    return [name for name, row in rows.items() if asked(name, row)]


def missing_package(row: dict) -> str | None:
    """Return the package that a row's environment is of, if it is not installed."""
    package = row["env_id"].rpartition("-")[2]
    if package in SUITES:
        try:
            version(package)
        except PackageNotFoundError:
            return package
    return None


def command(row: dict) -> list[str]:
    """Return the words that a user types after `python` for this row, without the folder."""
    return [
        *("-m", f"algorithms.{row['algorithm']}", "--env-id", row["env_id"]),
        *shlex.split(row["flags"]),
        *("--num-seeds", str(row["seeds"]), "--eval-episodes", str(row["episodes"])),
    ]


def command_line(row: dict) -> str:
    return f"python {shlex.join(command(row))}"


def run_row(name: str, row: dict, folder: Path | None = None) -> dict:
    """Train and evaluate one row in a folder of its own; return its line of learning.csv."""
    folder = folder or ROOT / ".cache" / "learning" / f"{name}-{commit()}"
    print(name, end=": ")
    train(row, folder)
    if folder.is_relative_to(ROOT):
        shutil.copy(folder / "curves.png", RESULTS / f"{name}.png")
    return line_of(name, row, folder)


def line_of(name: str, row: dict, folder: Path) -> dict:
    """Return a finished row's line of learning.csv."""
    summary = json.loads((folder / "summary.json").read_text())
    result = summary["evaluation"]
    if "metric" in row:
        result = summarize(averages(folder / "metrics.csv", row["metric"], row["last"]))
    low, high = band(row)
    reached = result["iqm"] is not None and low <= result["iqm"] <= high
    return {
        "row": name,
        **{key: f"{x:.4g}" if x is not None else "" for key, x in result.items()},
        "threshold": in_words(row),
        "reached": "yes" if reached else "no",
        "steps": summary["steps"],
        "seeds": summary["seeds"],
        "seconds": f"{summary['run_seconds']:.1f}",
        "compile_seconds": f"{summary['compile_seconds']:.1f}",
        "steps_per_second": f"{summary['steps_per_second']:.0f}",
        "device": summary["device"],
        "versions": " ".join(f"{k}={x}" for k, x in summary["versions"].items()),
        "commit": commit(),
        "command": command_line(row),
    }


def train(row: dict, folder: Path) -> None:
    """Run a row's command into that folder, or resume the run there if it was interrupted."""
    resume = ["-m", f"algorithms.{row['algorithm']}", "--resume", str(folder)]
    begun = (folder / "config.json").exists()
    words = resume if begun else [*command(row), "--out", str(folder)]
    print(command_line(row), flush=True)
    done = subprocess.run([sys.executable, *words], cwd=ROOT)
    if done.returncode not in (0, 4):  # 4: every seed diverged, which is a result
        sys.exit(done.returncode)


def averages(path: Path, metric: str, last: float) -> list[float]:
    """Return a metric of every seed, averaged over the last part of training without the NaNs."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    begin = (1 - last) * max(int(row["step"]) for row in rows)
    values = {row["seed"]: [] for row in rows}
    for row in rows:
        if int(row["step"]) > begin and not math.isnan(float(row[metric])):
            values[row["seed"]].append(float(row[metric]))
    return [statistics.fmean(x) if x else math.nan for x in values.values()]


def band(row: dict) -> tuple[float, float]:
    """Return the bounds between which the IQM must lie."""
    threshold = row["threshold"]
    return tuple(threshold) if isinstance(threshold, list) else (threshold, math.inf)


def in_words(row: dict) -> str:
    """Return the threshold as text, with the metric if it is not the final policy's return."""
    low, high = band(row)
    words = f"{low:g}" if high == math.inf else f"{low:g} to {high:g}"
    if "metric" not in row:
        return words
    part = "whole run" if row["last"] == 1 else f"last {row['last']:.0%}"
    return f"{words} ({row['metric']}, {part})"


def commit() -> str:
    """Return the commit, with a + if the code that trains differs from it."""
    head = git("rev-parse", "--short=10", "HEAD") or "unknown"
    return head + "+" * bool(git("status", "--porcelain", "algorithms/*.py", "common"))


def git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


def lines() -> dict[str, dict]:
    """Return the lines of learning.csv by row."""
    path = RESULTS / "learning.csv"
    if not path.exists():
        return {}
    with open(path, newline="") as file:
        return {line["row"]: line for line in csv.DictReader(file)}


def row_is_due(name: str) -> bool:
    return lines().get(name, {}).get("commit") != commit()


def write_line(line: dict) -> None:
    """Put the line in its row's place, in the order of the suite."""
    table = lines() | {line["row"]: line}
    with open(RESULTS / "learning.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table[name] for name in suite() if name in table)


def table(rows: list[list]) -> str:
    """Return a Markdown table; the first row is its head."""
    every = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in every)


if __name__ == "__main__":
    main()
