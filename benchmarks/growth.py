"""Measure how cost grows: `python -m benchmarks.growth [AXIS ...]`.

DQN and PPO (CartPole-v1), SAC (Pendulum-v1) and Q-learning (CliffWalking-tabular) with their
defaults, but for few random steps at the start and what an axis changes:

    seeds        so many in one program on one device, as on a GPU
    blocks       as many, as the runner spreads them over the cores by default
    replay       transitions of a seed's replay memory, 8 seeds
    width        units of each of two hidden layers, 8 seeds
    environment  8 seeds

Every run is a process of its own, without evaluation. results/growth.csv has medians over
interleaved rounds, of which there is one by default; growth.png shows the first four axes; and
growth_memory.csv has `base_mib + seeds * each_mib`, fitted by least squares to the peaks of axis
`seeds`. The columns:

    steps_per_second  environment steps of all seeds, in training alone
    peak_mib          the largest resident memory of the process
    state_mib         the State of one seed; the runner warns if what trains at a time has larger
                      ones than are free
"""

import argparse
import importlib
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.ticker import EngFormatter, NullFormatter

from benchmarks.exploration import save
from benchmarks.family import put
from benchmarks.learning import RESULTS, ROOT, table
from benchmarks.speed import (
    child_environment,
    existing_folder,
    positive,
    rows_to_show,
    shown,
    spawn,
)
from common.runner.cli import parse
from common.runner.console import bytes_of
from common.runner.plots import COLORS, blank_figure, tidy, write_picture

PAGE = ROOT / "benchmarks" / "speed.md"
SEEDS = [1, 8, 64, 512, 4_096]
MOST = {"sac": 512}  # seeds, where more would take half an hour
REPLAY = [1_000, 10_000, 100_000, 1_000_000]
WIDTH = [16, 64, 256, 512]
TIMEOUT = 1_800  # seconds of a run
LABELS = {
    "seeds": "seeds in one program",
    "blocks": "seeds, spread over the cores",
    "replay": "transitions in the replay memory",
    "width": "units of two hidden layers",
}


class Work(NamedTuple):
    """What is trained, and how long."""

    flags: str
    budget: int  # environment steps of all seeds together
    least: int  # environment steps of a seed
    environments: tuple[str, ...]


class Run(NamedTuple):
    axis: str
    value: int | str
    algorithm: str
    seeds: int
    flags: str


WORKS = {
    "dqn": Work(
        *("--learning-starts 128", 200_000, 400),
        ("CartPole-v1", "MountainCar-v0", "Acrobot-v1", "Breakout-MinAtar"),
    ),
    "ppo": Work(
        *("", 400_000, 2_048),
        ("CartPole-v1", "MountainCar-v0", "Acrobot-v1", "InvertedPendulum-brax"),
    ),
    "sac": Work(
        *("--learning-starts 128", 16_000, 300),
        ("Pendulum-v1", "MountainCarContinuous-v0", "Fast-brax", "InvertedPendulum-brax"),
    ),
    "q_learning": Work(
        *("", 8_000_000, 2_000),
        ("CliffWalking-tabular", "FrozenLake-tabular", "Taxi-tabular", "Blackjack-tabular"),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    axes = [*LABELS, "environment"]
    parser.add_argument("axes", nargs="*", choices=[[], *axes], metavar="AXIS", help="default: all")
    parser.add_argument("--algorithms", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--rounds", type=positive, default=1)
    parser.add_argument("--most", type=positive, default=SEEDS[-1], help="seeds")
    parser.add_argument("--out", type=existing_folder, default=RESULTS, help="folder")
    arguments = parser.parse_args()
    runs = [
        run
        for axis in arguments.axes or axes
        for name in arguments.algorithms
        for run in runs_of(axis, name)
        if run.seeds <= arguments.most
    ]
    measured: dict[Run, list[dict]] = {run: [] for run in runs}
    for number in range(arguments.rounds):
        for run in runs:
            measured[run].append(train(run))
            print(f"round {number + 1}  {run}  {measured[run][-1]}", flush=True)
    lines = [line_of(run, done) for run, done in measured.items()]
    save(arguments.out / "growth.csv", lines, "algorithm", "axis", "value")
    fits = [fit_of(name, lines) for name in arguments.algorithms]
    if fits := [fit for fit in fits if fit]:
        save(arguments.out / "growth_memory.csv", fits, "algorithm")
    if not arguments.axes and set(arguments.algorithms) == set(WORKS):
        draw(lines, arguments.out)
        if arguments.out == RESULTS:
            put(PAGE, "growth_memory", table(rows_to_show(fits)))
            put(PAGE, "growth_environments", table(environments(lines)))


def runs_of(axis: str, name: str) -> list[Run]:
    """Return an algorithm's runs along an axis; none where it has no such part."""
    flags = WORKS[name].flags
    if axis in ("seeds", "blocks"):
        return [
            Run(axis, n, name, n, f"{flags} --block {n}" if axis == "seeds" else flags)
            for n in SEEDS
            if n <= MOST.get(name, n)
        ]
    if axis == "replay":
        has_replay = name in ("dqn", "sac")
        return [Run(axis, n, name, 8, f"{flags} --buffer-size {n}") for n in REPLAY if has_replay]
    if axis == "width":
        has_network = name != "q_learning"
        return [
            Run(axis, n, name, 8, f"{flags} --hidden-sizes {n} {n}") for n in WIDTH if has_network
        ]
    return [Run(axis, x, name, 8, f"{flags} --env-id {x}") for x in WORKS[name].environments]


def train(run: Run) -> dict:
    """Run the command that users type; return its rate, memory and compile time, or the reason why
    there are none."""
    work = WORKS[run.algorithm]
    steps = max(work.least, work.budget // run.seeds)
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", f"algorithms.{run.algorithm}", *run.flags.split()]
        words += ["--num-seeds", str(run.seeds), "--total-timesteps", str(steps)]
        words += ["--eval-episodes", "0", "--log-points", "1", "--quiet", "--out", f"{folder}/run"]
        environment = child_environment(1 if run.axis == "seeds" else None)
        done = spawn(words, environment, TIMEOUT, wants_json=False)
        if done["status"] != "ok":
            return {"reason": done["reason"]}
        summary = json.loads(Path(folder, "run", "summary.json").read_text())
    names = ("steps_per_second", "compile_seconds", "peak_bytes")
    return {name: summary[name] for name in names} | {"reason": ""}


def line_of(run: Run, done: list[dict]) -> dict[str, Any]:
    """Return a run's line: medians over its rounds, or the reason why there are none."""
    line: dict[str, Any] = {"algorithm": run.algorithm, "axis": run.axis, "value": run.value}
    line["seeds"] = run.seeds
    good = [x for x in done if not x["reason"]]
    for name, x in (("steps_per_second", 1), ("compile_seconds", 1), ("peak_mib", 2**20)):
        key = "peak_bytes" if name == "peak_mib" else name
        line[name] = statistics.median(y[key] for y in good) / x if good else float("nan")
    return line | {
        "state_mib": state_bytes(run) / 2**20,
        "rounds": len(good),
        "reason": next((x["reason"] for x in done if x["reason"]), ""),
    }


def state_bytes(run: Run) -> int:
    """Return the bytes of one seed's State."""
    module = importlib.import_module(f"algorithms.{run.algorithm}")
    config, _ = parse(module.Config, run.algorithm, "", run.flags.split())
    return bytes_of(module.make(config))


def fit_of(name: str, lines: list[dict]) -> dict[str, Any] | None:
    """Fit memory = base + seeds * each to an algorithm's peaks, each weighted by 1 / peak."""
    mine = [x for x in lines if (x["algorithm"], x["axis"]) == (name, "seeds") and x["rounds"]]
    if len(mine) < 2:
        return None
    seeds, peaks = (np.array([x[key] for x in mine], float) for key in ("seeds", "peak_mib"))
    columns = np.stack([np.ones_like(seeds), seeds], axis=1) / peaks[:, None]
    base, each = np.linalg.lstsq(columns, np.ones_like(peaks), rcond=None)[0]
    state = mine[0]["state_mib"]
    return {
        "algorithm": name,
        "base_mib": float(base),
        "each_mib": float(each),
        "state_mib": state,
        "each_over_state": float(each / state),
        "largest_error": float(np.max(np.abs((base + each * seeds) / peaks - 1))),
    }


def environments(lines: list[dict]) -> list[list]:
    """Return steps per second in each environment, for the page."""
    mine = [x for x in lines if x["axis"] == "environment"]
    rows = [[x["algorithm"], x["value"], shown(x["steps_per_second"])] for x in mine]
    return [["algorithm", "environment", "steps_per_second"], *rows]


def draw(lines: list[dict], folder: Path) -> None:
    """Draw steps per second and memory along each axis."""
    figure = blank_figure(height=1 + 2.6 * len(LABELS))
    panels = figure.subplots(len(LABELS), 2)
    for (axis, label), row in zip(LABELS.items(), panels, strict=True):
        for name, color in zip(WORKS, COLORS, strict=False):
            mine = [x for x in lines if (x["algorithm"], x["axis"]) == (name, axis)]
            for axes, key in zip(row, ("steps_per_second", "peak_mib"), strict=True):
                values, heights = [x["value"] for x in mine], [x[key] for x in mine]
                axes.loglog(values, heights, "o-", color=color, markersize=4, label=name)
        for axes, title in zip(row, ("steps per second", "largest memory, MiB"), strict=True):
            tidy(axes, title)
            axes.set_xlabel(label)
            for scale in (axes.xaxis, axes.yaxis):
                scale.set_minor_formatter(NullFormatter())
                scale.set_major_formatter(EngFormatter(sep=""))
        row[1].set_ylim(100, 10_000)
    panels[0, 0].legend(frameon=False, fontsize=8)
    write_picture(folder / "growth.png", figure, "two CPU cores · python -m benchmarks.growth")


if __name__ == "__main__":
    main()
