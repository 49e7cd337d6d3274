"""Measure what stale parameters cost: `python -m benchmarks.policy_lag`.

On CartPole-v1, 100,000 steps, the mean training return over the last tenth of them:

left    impala.py whose actors act with parameters of some updates ago, with its three corrections,
        at a learning rate of 2e-3, that of a2c.py, where the lag is felt
right   a3c.py with its defaults and some workers, of which each gradient is one update less old

The picture is results/policy_lag.png, the numbers results/policy_lag.csv.
"""

import argparse
from pathlib import Path

import numpy as np

from algorithms import a3c, impala
from benchmarks.exploration import save, train
from benchmarks.learning import RESULTS
from common.runner.plots import COLORS, blank_figure, tidy, write_picture
from common.runner.program import start_jax
from common.runner.statistics import interval, iqm

CORRECTIONS = {"vtrace": "V-trace", "one_step": "ρ in the policy's gradient", "none": "none"}
LAGS = [0, 1, 2, 4, 8, 16, 32]
WORKERS = [1, 2, 4, 8, 16, 32]
LEARNING_RATE = 2e-3  # of impala.py


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.policy_lag")
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--steps", type=int, default=100_000, help="of each seed")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where CSV and picture go")
    arguments = parser.parse_args()
    if arguments.seeds < 1 or arguments.steps < 1 or not arguments.out.is_dir():
        parser.error("--seeds and --steps must be at least 1, and --out a folder")
    start_jax()
    lines = []
    for config in configs(arguments.steps):
        lines.append(line_of(config, arguments.seeds))
        print(*lines[-1].values(), flush=True)
    save(arguments.out / "policy_lag.csv", lines)
    draw(lines, arguments.seeds, arguments.steps, arguments.out)


def configs(total_timesteps: int, lags=LAGS, workers=WORKERS) -> list:
    """Return the Configs of both panels."""
    return [
        impala.Config(
            total_timesteps=total_timesteps,
            learning_rate=LEARNING_RATE,
            policy_lag=lag,
            correction=correction,
        )
        for correction in CORRECTIONS
        for lag in lags
    ] + [a3c.Config(total_timesteps=total_timesteps, num_workers=n) for n in workers]


def line_of(config, num_seeds: int) -> dict:
    """Train seeds 0, 1, ...; return the interquartile mean of their returns, with its interval."""
    is_impala = isinstance(config, impala.Config)
    algorithm = (impala if is_impala else a3c).make(config)
    look = lambda state, metrics: (metrics["episode_return"], metrics["episodes"])
    (returns, episodes), _ = train(algorithm, look, num_seeds)
    scores = last_tenth(returns, episodes)
    low, high = interval(scores)
    return {
        "algorithm": "impala" if is_impala else "a3c",
        "correction": config.correction if is_impala else "",
        "lag": config.policy_lag if is_impala else config.num_workers - 1,
        "iqm": f"{iqm(scores):.4g}",
        "low": f"{low:.4g}",
        "high": f"{high:.4g}",
        "min": f"{scores.min():.4g}",
        "seeds": num_seeds,
    }


def last_tenth(returns: np.ndarray, episodes: np.ndarray) -> np.ndarray:
    """Return the mean return of the episodes that ended in the last tenth of the updates, [S], from
    the mean of each update, NaN where none ended, and how many did [T, S]; at least one must have.
    """
    start = len(returns) - -(-len(returns) // 10)
    episodes = episodes[start:]
    return np.sum(np.nan_to_num(returns[start:]) * episodes, axis=0) / episodes.sum(axis=0)


def draw(lines: list[dict], num_seeds: int, total_timesteps: int, folder: Path) -> None:
    """Draw the interquartile means and their intervals, a panel for each algorithm."""
    figure = blank_figure(height=4)
    left, right = figure.subplots(1, 2, sharey=True)
    for color, (correction, label) in zip(COLORS, CORRECTIONS.items(), strict=False):
        curve(left, [line for line in lines if line["correction"] == correction], 0, color, label)
    curve(right, [line for line in lines if line["algorithm"] == "a3c"], 1, COLORS[0], None)
    tidy(left, "IMPALA: return by its correction")
    tidy(right, "A3C: return")
    left.set(xlabel="updates that the actors are behind", xlim=(-0.2, 37), ylim=(0, 510))
    left.set_xscale("symlog", linthresh=1, base=2)
    right.set(xlabel="workers", xscale="log")
    left.set_xticks(LAGS, LAGS)
    right.set_xticks(WORKERS, WORKERS)
    for axes in (left, right):
        axes.minorticks_off()
    left.legend(frameon=False, fontsize=8)
    caption = f"CartPole-v1, {total_timesteps:,} steps, {num_seeds} seeds: IQM of the last tenth"
    caption += ", 95 % intervals · python -m benchmarks.policy_lag"
    write_picture(folder / "policy_lag.png", figure, caption)


def curve(axes, lines: list[dict], offset: int, color: str, label: str | None) -> None:
    """Draw the returns of these lines against lag + offset."""
    x = [line["lag"] + offset for line in lines]
    middle, low, high = (
        np.array([float(line[name]) for line in lines]) for name in ("iqm", "low", "high")
    )
    axes.plot(x, middle, color=color, marker="o", markersize=4, linewidth=1, label=label)
    axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)


if __name__ == "__main__":
    main()
