"""Compare learning with and without a model: `python -m benchmarks.model_based`.

SAC, PETS and MBPO on Pendulum, on one axis of environment steps, with the defaults of their files;
and MBPO with batches of real transitions alone, which is SAC with one environment and as many
gradient steps. What is shown is the return of the episodes that are played to learn from.

The picture is results/model_based.png, the numbers results/model_based.csv: for each curve the
environment steps before it first reaches the threshold and stays there on average, and the return
over the last fifth of the run. A run that was interrupted is resumed.
"""

import argparse
import csv
import json
import shlex
from pathlib import Path

import numpy as np
from matplotlib.ticker import EngFormatter

from benchmarks.learning import RESULTS, ROOT, averages, command, commit, table, train
from benchmarks.speed import write
from common.runner.plots import COLORS, blank_figure, tidy, write_picture
from common.runner.statistics import bands, summarize

CACHE = ROOT / ".cache" / "model_based"
THRESHOLD = -200.0  # of PETS's row, whose returns are also those of training
BIN = 1_000  # environment steps: several episodes of each seed
CONTESTANTS = {  # the file, and flags but the defaults
    "SAC": ("sac", "--log-points 100"),
    "SAC, 5 gradient steps a step": ("mbpo", "--real-ratio 1 --gradient-steps 1"),
    "PETS": ("pets", ""),
    "MBPO": ("mbpo", ""),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model_based")
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--contestants", nargs="+", default=list(CONTESTANTS), choices=CONTESTANTS)
    parser.add_argument("--flags", default="", help="for all runs")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where CSV and picture go")
    arguments = parser.parse_args()
    if arguments.seeds < 1 or not arguments.out.is_dir():
        parser.error("--seeds must be at least 1, and --out a folder")
    lines, curves = [], {}
    for name in arguments.contestants:
        algorithm, flags = CONTESTANTS[name]
        row = {"algorithm": algorithm, "env_id": "Pendulum-v1", "episodes": 0}
        row |= {"seeds": arguments.seeds, "flags": f"{flags} {arguments.flags}".strip()}
        words = "-".join(row["flags"].replace("--", "").split()) or "defaults"
        folder = CACHE / f"{algorithm}-{words}-{arguments.seeds}-{commit()}"
        train(row, folder)
        curves[name] = curve_of(folder / "metrics.csv")
        lines.append(line_of(name, row, folder, *curves[name]))
    write(arguments.out / "model_based.csv", lines)
    draw(curves, arguments.seeds, arguments.out)
    print(table([list(lines[0]), *(list(line.values()) for line in lines)]))


def curve_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of bins of environment steps [P] and the mean return of the episodes that
    ended in them [S, P], from a run's metrics.csv; bins in which a seed ended none are left out."""
    totals = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            episodes = float(row["episodes"])
            seed = totals.setdefault(row["seed"], {})
            place = seed.setdefault(-(-int(row["step"]) // BIN), [0.0, 0.0])
            if episodes > 0:
                place[0] += episodes * float(row["episode_return"])
                place[1] += episodes
    bins = sorted(set.intersection(*({x for x, y in s.items() if y[1]} for s in totals.values())))
    means = [[seed[x][0] / seed[x][1] for x in bins] for seed in totals.values()]
    return BIN * np.array(bins), np.array(means)


def first_above(steps, returns, threshold: float) -> int | str:
    """Return the end of the first bin in which the IQM over seeds is at the threshold, as is its
    mean from there on; or nothing."""
    line = bands(returns)[0]
    for i, step in enumerate(steps):
        if line[i] >= threshold and line[i:].mean() >= threshold:
            return int(step)
    return ""


def line_of(name: str, row: dict, folder: Path, steps, returns) -> dict:
    """Return a row of the CSV."""
    summary = json.loads((folder / "summary.json").read_text())
    result = summarize(averages(folder / "metrics.csv", "episode_return", 0.2))
    return {
        "algorithm": name,
        "steps": summary["steps"],
        "steps_to_threshold": first_above(steps, returns, THRESHOLD),
        **{key: x if x is None else f"{x:.4g}" for key, x in result.items()},
        "seeds": row["seeds"],
        "seconds": f"{summary['run_seconds']:.0f}",
        "peak_mib": f"{summary['peak_bytes'] / 2**20:.0f}",
        "device": summary["device"],
        "versions": " ".join(f"{k}={x}" for k, x in summary["versions"].items()),
        "commit": commit(),
        "command": f"python {shlex.join(command(row))}",
    }


def draw(curves: dict, num_seeds: int, folder: Path) -> None:
    """Draw the interquartile mean and its interval of each contestant."""
    figure = blank_figure(height=4.0)
    axes = figure.subplots()
    for (name, (steps, returns)), color in zip(curves.items(), COLORS, strict=False):
        line, low, high = bands(returns)
        axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
        axes.plot(steps, line, color=color, linewidth=1.6, marker="o", markersize=3, label=name)
    axes.axhline(THRESHOLD, color="0.35", linewidth=1, linestyle="--", zorder=1)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("environment steps")
    tidy(axes, f"Pendulum-v1: return of training episodes; dashed: {THRESHOLD:g}")
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    caption = f"IQM over {num_seeds} seeds, 95 % interval · python -m benchmarks.model_based"
    write_picture(folder / "model_based.png", figure, caption)


if __name__ == "__main__":
    main()
