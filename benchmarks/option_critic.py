"""Measure how soon options find a goal that moved: `python -m benchmarks.option_critic`.

option_critic.py, the actor-critic that it is with one option, with the same settings and with a
learning rate of its own, and sarsa.py learn in four rooms until the goal moves after 50,000 steps,
and for 50,000 more. `episodes` and `steps` are those between the change and the first 20 episodes
in a row that take at most twice the optimum on average. A seed without such a row counts with all
of its episodes and steps, which is too few, and is one of `never`. `_before` and `_at_end` are
means over the last 10,000 steps before the change and before the end: the steps of an episode,
those of an option, and the share of the steps that the most used option took.

The picture is results/option_critic.png, the numbers results/option_critic.csv.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.ticker import EngFormatter

from algorithms import option_critic, sarsa
from benchmarks.exploration import save, train
from benchmarks.learning import RESULTS
from common.environments.mdp import MDP
from common.environments.tabular import TABULAR, make_mdp
from common.runner.plots import COLORS, blank_figure, tidy, write_picture
from common.runner.program import start_jax
from common.runner.statistics import bands, summarize

MAZE = "MovingGoalMaze-tabular"
WINDOW = 20  # episodes
BIN = 1_000  # steps of a point of the picture
AGENTS = {
    "4 options": (option_critic, {}),
    "8 options": (option_critic, {"num_options": 8}),
    "4 options, η = .03": (option_critic, {"deliberation_cost": 0.03}),
    "actor-critic, same settings": (option_critic, {"num_options": 1}),
    "actor-critic, α_θ = .005": (
        option_critic,
        {"num_options": 1, "policy_learning_rate": 0.005},
    ),
    "SARSA, ε = .1": (sarsa, {}),
}
DRAWN = ["4 options", "actor-critic, same settings", "actor-critic, α_θ = .005", "SARSA, ε = .1"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.option_critic")
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seeds", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100_000, help="of each seed")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where CSV and picture go")
    arguments = parser.parse_args()
    change = TABULAR[MAZE].change_after
    if arguments.seeds < 1 or arguments.steps <= change or not arguments.out.is_dir():
        parser.error(f"--seeds must be at least 1, --steps more than {change:,}, --out a folder")
    start_jax()
    optimum = fewest_steps(make_mdp(TABULAR[MAZE].phases[1]))
    lines, curves = [], {}
    for name, (module, fields) in AGENTS.items():
        curves[name] = lengths, durations, options = played(
            module, fields, arguments.seeds, arguments.steps
        )
        line = {"agent": name} | recovery(lengths, change, optimum)
        for part, begin, end in (
            ("before", change - 10_000, change),
            ("at_end", arguments.steps - 10_000, arguments.steps),
        ):
            line[f"episode_{part}"] = in_words(np.nanmean(lengths[:, begin:end], axis=1))
            if module is option_critic:
                line[f"option_{part}"] = in_words(np.nanmean(durations[:, begin:end], axis=1))
                line[f"share_{part}"] = f"{largest_share(options[:, begin:end]).mean():.2f}"
            else:
                line |= {f"option_{part}": "", f"share_{part}": ""}
        lines.append(line | {"seeds": arguments.seeds})
        print(lines[-1], flush=True)
    draw(curves, change, optimum, arguments.seeds, arguments.out)
    save(arguments.out / "option_critic.csv", lines)


def fewest_steps(mdp: MDP) -> float:
    """Return the mean steps from the start to the end under the best policy, by value iteration."""
    steps = np.zeros(len(mdp.terminal))
    for _ in range(1_000):
        steps = np.where(mdp.terminal, 0.0, 1 + (mdp.P @ steps).min(axis=1))
    return float(mdp.start @ steps)


def played(module, fields: dict, num_seeds: int, total_timesteps: int) -> tuple:
    """Train seeds of an algorithm. Return, for each of their steps [S, T], the length of the
    episode that it ended and the duration of the option that it ended, NaN if it ended none, and
    the option that is next; without options NaN and 0."""
    config = module.Config(
        env_id=MAZE, total_timesteps=total_timesteps, steps_per_update=1, gamma=0.99, **fields
    )

    def look(state, metrics):
        length = metrics["episode_length"]
        if module is sarsa:
            return length, 0 * length, 0 * length
        return length, metrics["option_duration"], state.option

    seen, _ = train(module.make(config), look, num_seeds)
    return tuple(x.T for x in seen)


def recovery(lengths: np.ndarray, change: int, optimum: float) -> dict:
    """Return the interquartile means over seeds of the episodes and the steps after the change
    until WINDOW episodes take at most twice the optimum, with the 95 % intervals."""
    first = [recovered(x, change, 2 * optimum) for x in lengths]
    episodes, steps, found = np.array(first, float).T
    return {
        "episodes": in_words(episodes),
        "most_episodes": f"{episodes.max():.0f}",
        "steps": in_words(steps),
        "never": int(np.sum(found == 0)),
    }


def recovered(lengths: np.ndarray, change: int, most: float) -> tuple[int, int, bool]:
    """Return how many episodes and steps [T] a seed had between the change and the first WINDOW
    episodes that took at most `most` steps on average; if there are none, all and False."""
    ends = np.flatnonzero(~np.isnan(lengths))
    starts = ends + 1 - lengths[ends].astype(int)
    starts, ended = starts[starts >= change], lengths[ends][starts >= change]
    sums = np.cumsum(np.append(0.0, ended))
    good = np.flatnonzero(sums[WINDOW:] - sums[:-WINDOW] <= WINDOW * most)
    if not len(good):
        return len(ended), len(lengths) - change, False
    return int(good[0]), int(starts[good[0]]) - change, True


def in_words(numbers: np.ndarray) -> str:
    """Return the interquartile mean over seeds [S] and, of enough seeds, its 95 % interval."""
    iqm, low, high = (summarize(numbers)[key] for key in ("iqm", "low", "high"))
    digits = 0 if iqm >= 100 else 1 if iqm >= 10 else 2
    interval = "" if low is None else f" [{low:,.{digits}f}, {high:,.{digits}f}]"
    return f"{iqm:,.{digits}f}{interval}"


def largest_share(options: np.ndarray) -> np.ndarray:
    """Return the share of the steps [S, T] that each seed's most used option took, [S]."""
    return np.max([np.mean(options == i, axis=1) for i in np.unique(options)], axis=0)


def binned(x: np.ndarray) -> np.ndarray:
    """Return the means of x [S, T] over BIN steps without the NaNs, NaN where all are NaN."""
    parts = x[:, : x.shape[1] // BIN * BIN].reshape(len(x), -1, BIN)
    known = ~np.isnan(parts)
    with np.errstate(invalid="ignore"):
        return np.sum(np.where(known, parts, 0), axis=-1) / known.sum(axis=-1)


def draw(curves: dict, change: int, optimum: float, num_seeds: int, folder: Path) -> None:
    """Draw the steps of an episode and of an option along training."""
    figure = blank_figure(height=6.2)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for name, color in zip(DRAWN, COLORS, strict=False):
        lengths, durations, _ = curves[name]
        shown = [(top, lengths)] + [(bottom, durations)] * name.startswith("4 options")
        for axes, x in shown:
            x = binned(x)
            known = np.isfinite(x).any(axis=0)
            steps, (line, low, high) = BIN * (1 + np.flatnonzero(known)), bands(x[:, known])
            axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
            axes.plot(steps, line, color=color, linewidth=1.6, label=name)
    before = fewest_steps(make_mdp(MAZE))
    end = top.get_lines()[0].get_xdata()[-1]
    top.step([0, change, end], [2 * before, 2 * before, 2 * optimum], "k--", linewidth=0.8)
    top.set_yscale("log")
    tidy(top, "steps of an episode; dashed: twice the optimum")
    top.legend(frameon=False, fontsize=9, loc="upper right", ncols=2)
    tidy(bottom, "steps of an option, 4 options")
    bottom.xaxis.set_major_formatter(EngFormatter(sep=""))
    bottom.set_xlabel("environment steps; the goal moves after 50k")
    for axes in (top, bottom):
        axes.axvline(change, color="0.6", linewidth=1, linestyle=":")
    caption = f"IQM over {num_seeds} seeds, 95 % interval · python -m benchmarks.option_critic"
    write_picture(folder / "option_critic.png", figure, caption)


if __name__ == "__main__":
    main()
