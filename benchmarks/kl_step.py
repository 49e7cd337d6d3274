"""Compare what steps of a bounded KL divergence learn: `python -m benchmarks.kl_step [NAME ...]`.

Each file of algorithms/ that is named is trained on the same environments, with the flags of its
row in suite.toml but for as many steps as the others. The picture is the training return,
results/kl_step.png; the numbers, of the greedy policy at the end and of the last tenth of training,
are results/kl_step.csv. A run that was interrupted is resumed.
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np
from matplotlib.ticker import EngFormatter

from benchmarks.learning import RESULTS, ROOT, averages, command_line, commit, suite, table, train
from common.runner.plots import COLORS, blank_figure, tidy, write_picture
from common.runner.statistics import bands, summarize

CACHE = ROOT / ".cache" / "kl_step"
ALGORITHMS = ["trpo", "natural_policy_gradient", "ppo", "v_mpo", "a2c"]
SHOWN = ["environment", "algorithm", "iqm", "low", "high", "min", "training_iqm", "seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kl_step")
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("algorithms", nargs="*", default=ALGORITHMS, metavar="NAME")
    parser.add_argument("--tasks", nargs="+", default=["cartpole", "acrobot"], help="names of rows")
    parser.add_argument("--steps", type=int, default=200_000, help="of each seed")
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where CSV and picture go")
    arguments = parser.parse_args()
    if arguments.seeds < 1 or arguments.steps < 1 or not arguments.out.is_dir():
        parser.error("--seeds and --steps must be at least 1, and --out a folder")
    rows = {
        task: {f"{name}-{task}".replace("_", "-"): name for name in arguments.algorithms}
        for task in arguments.tasks
    }
    if unknown := {row for named in rows.values() for row in named} - set(suite()):
        parser.error(f"no row in suite.toml: {', '.join(sorted(unknown))}")
    lines, panels = [], []
    for named in rows.values():
        curves = {}
        for row_name, name in named.items():
            row = with_budget(suite()[row_name], arguments.steps, arguments.seeds)
            folder = CACHE / f"{row_name}-{arguments.steps}-{arguments.seeds}-{commit()}"
            train(row, folder)
            curves[name] = curves_of(folder / "metrics.csv")
            lines.append(line_of(row, folder))
        panels.append((row["env_id"], curves))
    draw(panels, arguments.seeds, arguments.out)
    with open(arguments.out / "kl_step.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, lines[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    print(table([SHOWN, *([line[key] for key in SHOWN] for line in lines)]))


def with_budget(row: dict, steps: int, seeds: int) -> dict:
    """Return the row with that number of steps and of seeds; the last of two flags counts."""
    return row | {"seeds": seeds, "flags": f"{row['flags']} --total-timesteps {steps}".strip()}


def curves_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return environment steps [L] and the training return up to there [S, L], from a metrics.csv;
    NaN where no episode ended."""
    curves = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            curves.setdefault(row["seed"], {})[int(row["step"])] = float(row["episode_return"])
    steps = np.array(list(next(iter(curves.values()))))
    return steps, np.array([list(curve.values()) for curve in curves.values()])


def line_of(row: dict, folder: Path) -> dict:
    """Return the interquartile means over seeds with their 95 % intervals, for the CSV."""
    summary = json.loads((folder / "summary.json").read_text())
    training = summarize(averages(folder / "metrics.csv", "episode_return", 0.1))
    scores = summary["evaluation"] | {f"training_{key}": x for key, x in training.items()}
    return {
        "environment": row["env_id"],
        "algorithm": row["algorithm"],
        **{key: x if x is None else f"{x:.4g}" for key, x in scores.items()},
        "steps": summary["steps"],
        "seeds": row["seeds"],
        "seconds": f"{summary['run_seconds']:.1f}",
        "device": summary["device"],
        "versions": " ".join(f"{k}={x}" for k, x in summary["versions"].items()),
        "commit": commit(),
        "command": command_line(row),
    }


def draw(panels: list, num_seeds: int, folder: Path) -> None:
    """Draw a panel for each environment: interquartile mean and interval of the training return."""
    figure = blank_figure(height=1 + 2.6 * len(panels))
    for axes, (env_id, curves) in zip(
        np.ravel(figure.subplots(len(panels), 1)), panels, strict=True
    ):
        for (name, (steps, returns)), color in zip(curves.items(), COLORS, strict=False):
            known = np.isfinite(returns).any(axis=0)
            line, low, high = bands(returns[:, known])
            axes.fill_between(steps[known], low, high, color=color, alpha=0.2, linewidth=0)
            axes.plot(steps[known], line, color=color, linewidth=1.6, label=name)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        tidy(axes, f"{env_id}: training return")
        axes.legend(frameon=False, fontsize=9, loc="lower right")
    axes.set_xlabel("environment steps")
    caption = f"IQM over {num_seeds} seeds, 95 % interval · python -m benchmarks.kl_step"
    write_picture(folder / "kl_step.png", figure, caption)


if __name__ == "__main__":
    main()
