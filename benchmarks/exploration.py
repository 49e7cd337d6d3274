"""Measure how RND explores: `python -m benchmarks.exploration [deep_sea] [four_rooms]`.

deep_sea    How many seeds of rnd.py and, with its settings, of ppo.py solve DeepSea at three sizes
            N, and after how many episodes, random ones before the first update included. An episode
            is good if it finds the treasure; by chance 2^-N are. Solved is bsuite's word (Osband
            et al. 2020, https://arxiv.org/abs/1908.03568): more than 10 % of all episodes so far
            were good, before there were 2^N + 100 of them. Its code (deep_sea/analysis.py) asks for
            20 %: `solved_20`. The numbers are results/deep_sea.csv.
four_rooms  Where the novelty is, in rooms without a reward and with 50 steps from a corner: i of
            every cell along training, and how often rnd.py was there; without its bonuses it walks
            at random. results/four_rooms.png and results/four_rooms.csv
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from algorithms import ppo, rnd
from benchmarks.learning import RESULTS, table
from benchmarks.speed import origin, others, rows_to_show, write
from common.environments.gridworlds import FOUR_ROOMS, cells, maze
from common.environments.tabular import TABULAR
from common.envs import make_env
from common.networks import mlp
from common.runner.evaluation import evaluate
from common.runner.plots import blank_figure, write_picture
from common.runner.program import start_jax

SIZES = {10: 11_000, 14: 28_000, 20: 60_000}  # environment steps for each size of the sea
GOOD = 0.99  # return of a good episode; the others have 0 or less
CORNER = "FourRoomsFromACorner-tabular"
PANELS = 5  # moments of the picture


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exploration")
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("what", nargs="*", help="default: both", default=["deep_sea", "four_rooms"])
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where CSV and picture go")
    arguments = parser.parse_args()
    if unknown := set(arguments.what) - {"deep_sea", "four_rooms"}:
        parser.error(f"there is no {', '.join(sorted(unknown))}; choose deep_sea or four_rooms")
    if arguments.seeds < 1 or not arguments.out.is_dir():
        parser.error("--seeds must be at least 1, and --out a folder")
    start_jax()
    if "deep_sea" in arguments.what:
        lines = []
        for size, total in SIZES.items():
            for module in (rnd, ppo):
                lines.append(deep_sea_line(module, size, total, arguments.seeds))
                print(lines[-1], flush=True)
        save(arguments.out / "deep_sea.csv", lines)
    if "four_rooms" in arguments.what:
        curves = {name: rooms(coef, arguments.seeds) for name, coef in (("bonus", 1), ("none", 0))}
        draw(curves["bonus"], arguments.out)
        lines = [
            {"bonuses": name} | line for name, curve in curves.items() for line in cells_seen(curve)
        ]
        save(arguments.out / "four_rooms.csv", lines)


def save(path: Path, lines: list[dict], *names: str) -> None:
    """Print the lines as a table, and write them with their origin. Lines of the file that differ
    from each of them in the columns `names`, if any are given, stay."""
    print(table(rows_to_show(lines)))
    versions = {"jax": jax.__version__}
    new = [line | origin([{"versions": versions}]) for line in lines]
    write(path, others(path, lines, *names) + new)


def train(algorithm, look, num_seeds: int):
    """Train seeds 0, 1, ...; return what `look(State, metrics)` gives for each update, [T, S, ...],
    and their last States."""

    def update(state, step):
        state, metrics = algorithm.update(state, step)
        return state, look(state, metrics)

    def train_one(key):
        return jax.lax.scan(update, algorithm.init(key), jnp.arange(algorithm.num_updates))

    keys = jax.vmap(jax.random.key)(jnp.arange(num_seeds))
    states, seen = jax.jit(jax.vmap(train_one, out_axes=(0, 1)))(keys)
    return jax.tree.map(np.asarray, seen), states


def deep_sea_line(module, size: int, total_timesteps: int, num_seeds: int) -> dict:
    """Return what seeds of an algorithm do in a sea of that size, with the settings of rnd.py."""
    settings = {
        field: getattr(rnd.Config(), field)
        for field in ("num_envs", "ent_coef", "gamma", "learning_rate", "hidden_sizes")
    }
    config = module.Config(
        env_id=f"DeepSea{size}-bsuite", num_steps=size, total_timesteps=total_timesteps, **settings
    )
    algorithm = module.make(config)
    look = lambda state, metrics: (metrics["episode_return"], metrics["episodes"])
    (returns, episodes), states = train(algorithm, look, num_seeds)
    episodes = algorithm.initial_steps // size + np.cumsum(episodes, axis=0)
    good = np.cumsum(good_episodes(returns, np.diff(episodes, axis=0, prepend=0)), axis=0)
    env = make_env(config.env_id, 1)
    play = jax.jit(
        jax.vmap(lambda params, key: evaluate(env, algorithm.act, params, key)[0].mean())
    )
    keys = jax.vmap(jax.random.key)(num_seeds + jnp.arange(num_seeds))
    greedy = np.asarray(play(states.params, keys))
    bound = 2**size + 100
    found, solved, solved_20 = (first(good > share * episodes, episodes) for share in (0, 0.1, 0.2))
    return {
        "algorithm": module.__name__.rpartition(".")[2],
        "size": size,
        "bound": bound,
        "episodes": int(episodes[-1, 0]),
        "by_chance": f"{1 - (1 - 2.0**-size) ** episodes[-1, 0]:.2g}",
        "found": f"{np.isfinite(found).sum()} of {num_seeds}",
        "solved": f"{(solved < bound).sum()} of {num_seeds}",
        "solved_20": f"{(solved_20 < bound).sum()} of {num_seeds}",
        "greedy": f"{(greedy > GOOD - 0.005).sum()} of {num_seeds}",
        "median_found": number(found),
        "median_solved": number(solved),
        "max_solved": f"{solved.max():g}",
    }


def good_episodes(returns: np.ndarray, episodes: np.ndarray) -> np.ndarray:
    """Return how many of an update's episodes were good, from their mean return. The others have at
    least -0.01, so this is right for less than 50 of them."""
    return np.round(np.nan_to_num(returns) * episodes / GOOD)


def first(is_so: np.ndarray, episodes: np.ndarray) -> np.ndarray:
    """Return after how many `episodes` [T, S] it `is_so` [T, S] for the first time, [S]; inf if
    never."""
    return np.min(np.where(is_so, episodes, np.inf), axis=0)


def number(x: np.ndarray) -> str:
    return f"{np.median(x):g}"


def rooms(int_coef: float, num_seeds: int, total_timesteps: int = 20_000) -> dict[str, np.ndarray]:
    """Return environment steps [T], and the novelty and the visits of each cell, [T, S, cells]."""
    _, row, *_ = layout = [row.replace("S", ".") for row in FOUR_ROOMS.layout]
    layout[1] = row.replace(".", "S", 1)
    grid = FOUR_ROOMS._replace(layout=layout)
    TABULAR[CORNER] = TABULAR["FourRooms-tabular"]._replace(
        make=lambda key: maze(grid, slip=1 / 3), max_steps=50, grid=grid
    )
    config = rnd.Config(
        env_id=CORNER,
        total_timesteps=total_timesteps,
        num_envs=8,
        num_steps=10,
        learning_starts=80,
        ext_coef=0.0,
        int_coef=float(int_coef),
    )
    algorithm = rnd.make(config)
    num_cells = len(layout) * len(layout[0])
    network = mlp([num_cells, *config.hidden_sizes, config.feature_size])

    def look(state, metrics):
        x = rnd.whiten(state.whitening, jnp.eye(num_cells))  # of s' one-hot, whose mean is a share
        prediction = network.apply(state.predictor_params, x)
        novelty = rnd.novelty(prediction, network.apply(state.random_params, x))
        return novelty, jnp.round(state.whitening.mean * state.whitening.count)

    (novelty, visits), _ = train(algorithm, look, num_seeds)
    steps = algorithm.initial_steps + algorithm.steps_per_update * (1 + np.arange(len(visits)))
    return {"steps": steps, "novelty": novelty, "visits": visits}


def moments(curve: dict) -> np.ndarray:
    """Return the updates that are shown, equally far apart in the logarithm of their steps."""
    steps = curve["steps"]
    shown = np.geomspace(steps[0], steps[-1], PANELS)
    return np.abs(steps[:, None] - shown).argmin(axis=0)


def cells_seen(curve: dict) -> list[dict]:
    """Return at those moments the part of the cells where the agent has been, over the seeds, and
    the rank correlation of novelty and visits in the cells that it can be in."""
    free = np.flatnonzero(~cells(FOUR_ROOMS.layout, "#"))
    lines = []
    for t in moments(curve):
        novelty, visits = curve["novelty"][t][:, free], curve["visits"][t][:, free]
        seen = (visits > 0).sum(axis=1)
        lines.append(
            {
                "steps": int(curve["steps"][t]),
                "cells": f"{seen.mean():.1f} of {len(free)}",
                "fewest": int(seen.min()),
                "rank_correlation": f"{np.mean([*map(rank_correlation, novelty, visits)]):.2f}",
            }
        )
    return lines


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Return Spearman's correlation; ties have their mean rank."""
    from scipy.stats import spearmanr

    return float(spearmanr(x, y).statistic)


def draw(curve: dict, folder: Path) -> None:
    """Draw novelty and visits of seed 0 on the map; walls are grey, cells without a visit white."""
    layout = FOUR_ROOMS.layout
    shape = len(layout), len(layout[0])
    walls = cells(layout, "#").reshape(shape)
    figure = blank_figure(height=3.9)
    panels = figure.subplots(2, PANELS)
    for column, t in enumerate(moments(curve)):
        for axes, name in zip(panels[:, column], ("novelty", "visits"), strict=True):
            value = np.log10(np.maximum(curve[name][t, 0], 1e-3)).reshape(shape)
            hidden = walls if name == "novelty" else walls | (curve[name][t, 0] == 0).reshape(shape)
            low, high = (-3, 2) if name == "novelty" else (0, 3)
            axes.imshow(np.where(walls, 0.5, 1.0), cmap="gray", vmin=0, vmax=1)
            shown = np.where(hidden, np.nan, value)
            image = axes.imshow(shown, cmap="viridis", vmin=low, vmax=high)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if name == "novelty":
                axes.set_title(f"{curve['steps'][t]:,} steps", size=9)
            if column == PANELS - 1:
                figure.colorbar(
                    image, ax=panels[0 if name == "novelty" else 1], label=f"log₁₀ {name}"
                )
    caption = "starts in the upper left corner, no reward · python -m benchmarks.exploration"
    write_picture(folder / "four_rooms.png", figure, caption)


if __name__ == "__main__":
    main()
