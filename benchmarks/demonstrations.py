"""Measure what an expert's episodes tell of its reward: `python -m benchmarks.demonstrations`.

Apprenticeship learning and maximum entropy IRL see ever more episodes of an expert on the grid of
macrocells, and at last its exact feature expectations. results/demonstrations.csv has the share of
the expert's value that each learns, results/demonstrations.png shows it; results/reward_maps.png
has the true rewards of some seeds, and those that maximum entropy IRL finds.
"""

import argparse
import dataclasses
import importlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.learning import RESULTS, commit, table
from benchmarks.speed import write
from common.run import train
from common.runner.plots import COLORS, blank_figure, tidy, write_picture
from common.runner.policy_map import plot_heat
from common.runner.statistics import summarize

ALGORITHMS = ["apprenticeship_learning", "maximum_entropy_irl"]
EPISODES = [1, 3, 10, 30, 100, 0]  # 0: exact
MAPS = 4  # seeds whose rewards are drawn


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demonstrations")
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--episodes", nargs="+", type=int, default=EPISODES, help="0: exact")
    parser.add_argument("--iterations", type=int, help="of both; default: those of each file")
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where CSV and pictures go")
    arguments = parser.parse_args()
    if arguments.seeds < 1 or not arguments.out.is_dir():
        parser.error("--seeds must be at least 1, and --out a folder")
    lines, states = [], None
    for name in ALGORITHMS:
        module = importlib.import_module(f"algorithms.{name}")
        for num_episodes in arguments.episodes:
            fields = {"num_iterations": arguments.iterations} if arguments.iterations else {}
            config = dataclasses.replace(module.Config(), num_episodes=num_episodes, **fields)
            states, metrics = train(config, module.make, arguments.seeds)
            lines.append(line_of(name, num_episodes, np.asarray(metrics["value_share"][:, -1])))
    write(arguments.out / "demonstrations.csv", lines)
    draw_shares(lines, arguments.seeds, arguments.out)
    draw_maps(jax.tree.map(np.asarray, states), arguments.out)
    print(table([list(lines[0]), *(list(line.values()) for line in lines)]))


def line_of(name: str, num_episodes: int, shares: np.ndarray) -> dict:
    """Return the interquartile mean over seeds with its 95 % interval, for the CSV."""
    scores = {key: f"{x:.4f}" for key, x in summarize(shares).items() if x is not None}
    line = {"algorithm": name, "episodes": num_episodes or "exact", **scores}
    return line | {"seeds": len(shares), "commit": commit()}


def draw_shares(lines: list[dict], num_seeds: int, folder: Path) -> None:
    """Draw the share of the expert's value over the number of its episodes, and worst seeds."""
    figure = blank_figure(height=3.6)
    axes = figure.subplots()
    tidy(axes, "Macrocells-tabular: share of the expert's value under the true reward")
    labels = list(dict.fromkeys(str(line["episodes"]) for line in lines))
    for name, color in zip(ALGORITHMS, COLORS, strict=False):
        mine = [line for line in lines if line["algorithm"] == name]
        iqm, worst = (np.array([float(line[key]) for line in mine]) for key in ("iqm", "min"))
        axes.plot(labels, iqm, "o-", color=color, linewidth=1.6, markersize=4, label=name)
        axes.plot(labels, worst, "--", color=color, linewidth=1, label=f"{name}: worst seed")
    axes.axhline(0.99, color="0.6", linewidth=0.8)
    axes.set_xlabel("episodes of the expert")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    caption = f"IQM over {num_seeds} seeds · python -m benchmarks.demonstrations"
    write_picture(folder / "demonstrations.png", figure, caption)


def draw_maps(states: Any, folder: Path) -> None:
    """Draw the true reward [32, 32] of the first seeds, above the one that was found."""
    true = states.mdp.R.mean(axis=-1)[:MAPS]
    found = np.einsum("nsf,nf->ns", states.mdp.features, states.theta)[:MAPS]
    figure = blank_figure(height=4.6)
    panels = figure.subplots(2, len(true), squeeze=False)
    for row, maps, label in ((panels[0], true, "true reward"), (panels[1], found, "reward found")):
        for seed, (axes, values) in enumerate(zip(row, maps, strict=True)):
            tidy(axes, "")
            axes.grid(False)
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"{label}, seed {seed}", size=8, loc="left")
            plot_heat(axes, values.reshape(32, 32), "")
    caption = "Macrocells-tabular, exact feature expectations · python -m benchmarks.demonstrations"
    write_picture(folder / "reward_maps.png", figure, caption)


if __name__ == "__main__":
    main()
