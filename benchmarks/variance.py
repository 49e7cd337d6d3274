"""Measure the variance of REINFORCE's three estimators: `python -m benchmarks.variance`.

On CartPole-v1, of policies that algorithms/reinforce.py has after some numbers of updates, and
at γ = 1, where all three have the same mean. Each gradient is of one episode; the same episodes
serve all three. The variance is E[|g - E g|²], summed over the actor's parameters. The baseline is
the critic after 100 more updates with the policy fixed.

The picture is results/reinforce-variance.png, the numbers results/reinforce_variance.csv.
"""

import argparse
import csv
import dataclasses
import platform
import time
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from algorithms import reinforce
from benchmarks.learning import RESULTS, commit, table
from common.runner.plots import COLORS, blank_figure, tidy, write_picture

CONFIG = reinforce.Config(anneal_lr=False)
BATCH = 128  # episodes at a time
NAMES = {"return": "whole return", "reward_to_go": "reward to go", "baseline": "with a baseline"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.variance", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--episodes", type=int, default=2_048, help=f"multiple of {BATCH}")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where CSV and picture go")
    arguments = parser.parse_args()
    if arguments.episodes < BATCH or arguments.episodes % BATCH or not arguments.out.is_dir():
        parser.error(f"--episodes must be a multiple of {BATCH}, and --out a folder")
    clock = time.monotonic()
    lines = measure(arguments.episodes)
    draw(lines, arguments.out)
    origin = {
        "machine": f"{platform.machine()}, {jax.device_count()} x {jax.devices()[0].platform}",
        "versions": f"jax={jax.__version__}",
        "commit": commit(),
    }
    with open(arguments.out / "reinforce_variance.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, lines[0] | origin, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rounded(line) | origin for line in lines)
    print(table([list(lines[0]), *(list(rounded(line).values()) for line in lines)]))
    print(f"in {time.monotonic() - clock:.0f} s")


def rounded(line: dict) -> dict:
    return {name: f"{x:.5g}" if isinstance(x, float) else x for name, x in line.items()}


def measure(num_episodes, updates=(0, 10, 20, 30), num_fits=100, config=CONFIG) -> list[dict]:
    """Return a line for each policy and estimator."""
    lines, keys = [], jax.random.split(jax.random.key(1), num_episodes)
    functions = estimators(config)
    for num_updates, state in zip(updates, policies(config, updates, num_fits), strict=True):
        means, squares = {}, {}
        for name, gradients in functions.items():
            x, returns = map(np.asarray, gradients(state, keys))
            means[name] = x.mean(0)
            squares[name] = np.square(x - x.mean(0)).sum(1)
        above = dict(zip(["reward_to_go", "baseline"], squares.values(), strict=False))
        for name, square in squares.items():
            variance = square.sum() / (num_episodes - 1)
            lines.append(
                {
                    "updates": num_updates,
                    "episode_return": float(returns.mean()),
                    "estimator": name,
                    "variance": float(variance),
                    "standard_error": standard_error(square),
                    # Of the estimator above it; the episodes are the same.
                    "less_than_before": float(np.mean(above.get(name, square) - square)),
                    "error_of_that": standard_error(above.get(name, square) - square),
                    # |E g|²: the square of a mean of n has variance / n too much.
                    "squared_mean": float(means[name] @ means[name] - variance / num_episodes),
                    "cosine_with_return": cosine(means[name], means["return"]),
                    "episodes": num_episodes,
                }
            )
    return lines


def standard_error(x) -> float:
    return float(x.std() / np.sqrt(len(x)))


def cosine(x, y) -> float:
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def policies(config, updates, num_fits):
    """Yield States of seed 0 after these numbers of updates, each followed by `num_fits` updates of
    the critic alone at γ = 1."""
    learn = jax.jit(reinforce.make(config).update)
    fit = jax.jit(reinforce.make(dataclasses.replace(config, gamma=1.0)).update)
    state = jax.jit(reinforce.make(config).init)(jax.random.key(0))
    for start, stop in pairwise([0, *updates]):
        for step in range(start, stop):
            state, _ = learn(state, jnp.int32(step))
        fitted = state
        for more in range(num_fits):
            after, _ = fit(fitted, jnp.int32(1_000_000 + more))
            fitted = after._replace(params=state.params)
        yield fitted


def estimators(config) -> dict:
    """Return, for each estimator, a function from a State and keys to the gradients of one episode
    for each key, [keys, parameters], and the returns.

    A gradient is read from the first moment of Adam after its first step, which is a tenth of the
    gradient of the loss, which divides by all steps.
    """

    def of(name):
        one = dataclasses.replace(config, estimator=name, num_envs=1, num_steps=1, gamma=1.0)
        algorithm = reinforce.make(one)
        opt_state = algorithm.init(jax.random.key(0)).opt_state

        def gradient(state, key):
            state, metrics = algorithm.update(
                state._replace(key=key, opt_state=opt_state), jnp.int32(0)
            )
            moments = optax.tree_utils.tree_get(state.opt_state.inner_states["actor"], "mu")[0]
            flat = jnp.concatenate([x.ravel() for x in jax.tree.leaves(moments)])
            return -10 * algorithm.steps_per_update * flat, metrics["episode_return"]

        return jax.jit(
            lambda state, keys: jax.lax.map(
                lambda key: gradient(state, key), keys, batch_size=BATCH
            )
        )

    return {name: of(name) for name in ("return", "reward_to_go", "baseline")}


def draw(lines, folder) -> None:
    """Draw the variance of each estimator, and how many episodes reduce it to the square of the
    gradient, as measured by the estimator with the least noise."""
    figure = blank_figure(height=4)
    left, right = figure.subplots(1, 2)
    of = {name: [line for line in lines if line["estimator"] == name] for name in NAMES}
    returns = [line["episode_return"] for line in of["return"]]
    signal = np.array([line["squared_mean"] for line in of["baseline"]])
    for color, (name, label) in zip(COLORS, NAMES.items(), strict=False):
        variance = np.array([line["variance"] for line in of[name]])
        error = 1.96 * np.array([line["standard_error"] for line in of[name]])
        style = {"color": color, "marker": "o", "markersize": 4, "linewidth": 1, "capsize": 3}
        left.errorbar(returns, variance, error, label=label, **style)
        right.plot(returns, variance / signal, color=color, marker="o", markersize=4, linewidth=1)
    tidy(left, "variance of the gradient of one episode")
    tidy(right, "episodes until the variance is the gradient's square")
    for axes in (left, right):
        axes.set(xlabel="mean return of the policy", xscale="log", yscale="log")
        axes.set_xticks(returns, [f"{x:.0f}" for x in returns])
        axes.minorticks_off()
    left.legend(frameon=False, fontsize=8)
    caption = f"CartPole-v1, γ = 1, {lines[0]['episodes']:,} episodes of each policy"
    caption += ", 95 % intervals · python -m benchmarks.variance"
    write_picture(Path(folder) / "reinforce-variance.png", figure, caption)


if __name__ == "__main__":
    main()
