"""Time the parts of a run of very many seeds: `python -m benchmarks.many_seeds 20_000`.

Q-learning on Blackjack, by default 20,000 steps, with 100 rows of metrics and 100 evaluation
episodes a seed, in a process of its own. results/many_seeds.csv has a row for each number of seeds
and part:

    start        imports, the command line, and what comes before the first compilation
    compile      of training and of evaluation; the cache of compiled programs counts
    train        all blocks, with their checkpoints
    metrics      metrics.csv and policy.npz, before the evaluation
    evaluate     all blocks
    results      evaluation.csv, policy.npz with its scores, summary, pictures
    whole        the process

`share` is a part's share of the whole; `peak_mib` is the most memory that the process had held when
the part ended. Other work on the machine counts, so the table, shown in scale.md, has its load.
"""

import argparse
import csv
import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.family import put
from benchmarks.learning import RESULTS, ROOT, table

TABLE, PAGE = RESULTS / "many_seeds.csv", ROOT / "benchmarks" / "scale.md"
FLAGS = "--env-id Blackjack-tabular --log-points 100 --eval-episodes 100"
COLUMNS = ["seeds", "steps", "part", "seconds", "share", "peak_mib", "cores", "load", "date"]
PARTS = ["start", "compile", "train", "metrics", "evaluate", "results", "whole"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many_seeds")
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("seeds", nargs="+", type=int, help="numbers of seeds")
    parser.add_argument("--steps", type=int, default=20_000, help="of each seed")
    parser.add_argument("--out", type=Path, default=TABLE, help="the table")
    arguments = parser.parse_args()
    if min(arguments.seeds) < 1 or arguments.steps < 1:
        parser.error("numbers of seeds and of steps are at least 1")
    for num_seeds in arguments.seeds:
        rows = measured(num_seeds, arguments.steps)
        print(table([COLUMNS, *rows]), flush=True)
        kept = [row for row in lines(arguments.out) if row[0] != str(num_seeds)]
        with open(arguments.out, "w", newline="") as file:
            every = sorted([*kept, *rows], key=lambda row: int(row[0]))
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *every])
        if arguments.out == TABLE:
            put(PAGE, "many_seeds", table([COLUMNS, *every]))


def lines(path: Path) -> list[list[str]]:
    """Read the rows of a table; none if there is no file."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.reader(file))[1:]


def measured(num_seeds: int, steps: int) -> list[list[str]]:
    """Run so many seeds; return the rows of the table."""
    marks = parts("q_learning", num_seeds, *FLAGS.split(), "--total-timesteps", str(steps))
    cores = str(len(os.sched_getaffinity(0)))
    origin = [cores, f"{os.getloadavg()[1]:.1f}", time.strftime("%Y-%m-%d")]
    whole = sum(seconds for seconds, *_ in marks.values())
    marks["whole"] = whole, max(peak for _, peak, _ in marks.values()), 0.0
    return [
        [str(num_seeds), str(steps), part, f"{s:.1f}", f"{s / whole:.3f}", f"{peak / 2**20:.0f}"]
        + origin
        for part in PARTS
        for s, peak, _ in [marks[part]]
    ]


def parts(name: str, num_seeds: int, *flags: str) -> dict[str, tuple[float, int, float]]:
    """Run an algorithm; return the seconds of each part, the peak of memory, in bytes, at its end,
    and its CPU seconds."""
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, "-m", "benchmarks.many_seeds", "timed", name, str(time.time())]
        command += [*flags, "--num-seeds", str(num_seeds), "--quiet", "--out", f"{work}/run"]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])


def timed(name: str, began: float) -> None:
    """Run an algorithm in this process, whose caller started it at `began`, and print the seconds
    and the peak of memory of each part."""
    from common.runner import loop
    from common.runner.results import peak_bytes

    marks, clock, cpu = {}, began, 0.0

    def end(part):
        nonlocal clock, cpu
        now, cpu_now, old = time.time(), time.process_time(), marks.get(part, (0.0, 0, 0.0))
        marks[part] = old[0] + now - clock, peak_bytes(), old[2] + cpu_now - cpu
        clock, cpu = now, cpu_now

    plain = loop.side_by_side

    def side_by_side(work, blocks, lower, task):
        kind = "train" if task is loop.train_block else "evaluate"
        end("start" if kind == "train" else "metrics")
        compiled = loop.compiled

        def compile_first(*arguments):
            end(kind)
            programs = compiled(*arguments)
            end("compile")
            return programs

        loop.compiled = compile_first
        plain(work, blocks, lower, task)
        loop.compiled = compiled
        end(kind)

    loop.side_by_side = side_by_side
    try:
        runpy.run_module(f"algorithms.{name}", run_name="__main__", alter_sys=True)
    finally:
        end("results")
        print(json.dumps(marks))


if __name__ == "__main__":
    if sys.argv[1:2] == ["timed"]:
        _, _, name, began, *flags = sys.argv
        sys.argv = [name, *flags]
        timed(name, float(began))
    else:
        main()
