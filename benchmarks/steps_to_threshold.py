"""Measure how soon Rainbow and DQN learn: `python -m benchmarks.steps_to_threshold`.

Each algorithm's row of an environment in suite.toml is trained with `--eval-every`, so that its
greedy policy is played at 40 points of the run, 100 episodes of each seed. A seed's steps to the
threshold are the environment steps before the first point at which its mean return reaches it; a
seed that never does counts with the whole run, so that what is printed for it is too few.

The picture is results/steps_to_threshold.png, the numbers results/steps_to_threshold.csv. A run
that was interrupted is resumed.
"""

import argparse
import csv
import importlib
import json
import shlex
from pathlib import Path

import numpy as np
from matplotlib.ticker import EngFormatter

from benchmarks.learning import RESULTS, ROOT, command, commit, suite, table, train
from common.runner.cli import parse
from common.runner.plots import COLORS, blank_figure, tidy, write_picture
from common.runner.statistics import bands, summarize

CACHE = ROOT / ".cache" / "steps_to_threshold"
POINTS = 40
SHOWN = ["environment", "threshold", "algorithm", "iqm", "low", "high", "max", "never"]


def main() -> None:
    rows = {name: row for name, row in suite().items() if not isinstance(row["threshold"], list)}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps_to_threshold")
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--algorithms", nargs="+", default=["dqn", "rainbow"])
    parser.add_argument("--tasks", nargs="+", default=["cartpole", "acrobot", "mountain-car"])
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where CSV and picture go")
    arguments = parser.parse_args()
    if arguments.seeds < 1 or not arguments.out.is_dir():
        parser.error("--seeds must be at least 1, and --out a folder")
    names = [[f"{x}-{task}" for x in arguments.algorithms] for task in arguments.tasks]
    if unknown := {name for pair in names for name in pair} - set(rows):
        parser.error(f"no row with one threshold in suite.toml: {', '.join(sorted(unknown))}")
    lines, panels = [], []
    for pair in names:
        curves = {}
        for name in pair:
            row = with_evaluations(rows[name], arguments.seeds)
            folder = CACHE / f"{name}-{row['seeds']}-{commit()}"
            train(row, folder)
            curves[row["algorithm"]] = steps, returns = curves_of(folder / "metrics.csv")
            lines.append(line_of(row, folder, steps, returns))
        panels.append((row["env_id"], row["threshold"], curves))
    draw(panels, arguments.seeds, arguments.out)
    with open(arguments.out / "steps_to_threshold.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, lines[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    print(table([SHOWN, *([line[key] for key in SHOWN] for line in lines)]))


def with_evaluations(row: dict, seeds: int) -> dict:
    """Return the row with that number of seeds and with evaluations during training."""
    config_of = importlib.import_module(f"algorithms.{row['algorithm']}").Config
    config, _ = parse(config_of, "", "", shlex.split(row["flags"]))
    every = f"--eval-every {config.total_timesteps // POINTS}"
    return row | {"seeds": seeds, "flags": f"{row['flags']} {every}".strip()}


def curves_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return environment steps [P] and the greedy return there [S, P], from a run's metrics.csv."""
    curves = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            curve = curves.setdefault(row["seed"], {})
            curve[int(row["step"])] = float(row["evaluation_return"])
    steps = np.array(list(next(iter(curves.values()))))
    returns = np.array([list(curve.values()) for curve in curves.values()])
    played = np.isfinite(returns).any(axis=0)  # where a seed that diverged has NaN
    return steps[played], returns[:, played]


def first_steps(steps, returns, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Return each seed's steps before its first return at the threshold, and if there is one."""
    reached = returns >= threshold
    ever = reached.any(axis=1)
    return np.where(ever, steps[reached.argmax(axis=1)], steps[-1]), ever


def line_of(row: dict, folder: Path, steps, returns) -> dict:
    """Return the interquartile mean over seeds, its 95 % interval and the extremes, for the CSV."""
    first, ever = first_steps(steps, returns, row["threshold"])
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "environment": row["env_id"],
        "threshold": row["threshold"],
        "algorithm": row["algorithm"],
        **{key: x if x is None else round(x) for key, x in summarize(first).items()},
        "never": int((~ever).sum()),
        "seeds": row["seeds"],
        "device": summary["device"],
        "versions": " ".join(f"{k}={x}" for k, x in summary["versions"].items()),
        "commit": commit(),
        "command": f"python {shlex.join(command(row))}",
    }


def draw(panels: list, num_seeds: int, folder: Path) -> None:
    """Draw a panel for each environment: interquartile mean and interval of the greedy return."""
    figure = blank_figure(height=1 + 2.4 * len(panels))
    for axes, (env_id, threshold, curves) in zip(
        np.ravel(figure.subplots(len(panels), 1)), panels, strict=True
    ):
        for (name, (steps, returns)), color in zip(curves.items(), COLORS, strict=False):
            line, low, high = bands(returns)
            axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
            axes.plot(steps, line, color=color, linewidth=1.6, label=name)
        axes.axhline(threshold, color="0.35", linewidth=1, linestyle="--", zorder=1)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        tidy(axes, f"{env_id}: return of the greedy policy; dashed: the threshold, {threshold:g}")
        axes.legend(frameon=False, fontsize=9)
    axes.set_xlabel("environment steps")
    caption = f"IQM over {num_seeds} seeds, 95 % interval · python -m benchmarks.steps_to_threshold"
    write_picture(folder / "steps_to_threshold.png", figure, caption)


if __name__ == "__main__":
    main()
