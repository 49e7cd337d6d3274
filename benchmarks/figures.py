"""Figures of Sutton & Barto, Reinforcement Learning, from the algorithms here:
`python -m benchmarks.figures [FIGURE ...]`, for example 7.2; all of them without arguments.

A figure is a function that trains with the `init` and `update` of an algorithm, one environment
step an update, all seeds and step sizes vmapped, draws, and returns the numbers that it drew. The
pictures are benchmarks/results/figure-<number>.png. The numbers are those of the second edition
(2018, http://incompleteideas.net/book/the-book-2nd.html), except for 6.4 and 6.7, which are in the
second edition the figure of Example 6.6 and Figure 6.5.
"""

import argparse
import dataclasses
import inspect
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from algorithms import double_q_learning, dyna_q, monte_carlo, q_learning, sarsa, td_lambda
from common.runner.plots import COLORS, blank_figure, tidy, write_picture

RESULTS = Path(__file__).parent / "results"


def train(module, config, num_seeds, record, **settings):
    """Return `record(state before, state after, metrics)` of every update, for the seeds 0 to
    num_seeds - 1: [S, T, ...]; with floats of the Config as lists of G values, [G, S, T, ...]."""

    def run(setting, key):
        algorithm = module.make(dataclasses.replace(config, **setting))

        def update(state, step):
            after, metrics = algorithm.update(state, step)
            return after, record(state, after, metrics)

        steps = jnp.arange(algorithm.num_updates)
        return jax.lax.scan(update, algorithm.init(key), steps)[1]

    keys = jax.vmap(jax.random.key)(jnp.arange(num_seeds))
    run = jax.vmap(run, (None, 0))
    if settings:
        run = jax.vmap(run, (0, None))
    settings = {name: jnp.asarray(x, float) for name, x in settings.items()}
    return np.asarray(jax.jit(run)(settings, keys))


def first_episodes(x, num_episodes):
    """Return the first `num_episodes` numbers that are not NaN along the last axis of x."""
    known = ~np.isnan(x)
    if known.sum(-1).min() < num_episodes:
        raise ValueError(f"only {known.sum(-1).min()} of {num_episodes} episodes ended")
    first = known & (np.cumsum(known, -1) <= num_episodes)
    return x[first].reshape(*x.shape[:-1], num_episodes)


def episode_return(before, after, metrics):
    return metrics["episode_return"]


def rms_error(before, after, metrics):
    """Return the RMS error of V: NaN unless the update was the last one of an episode, infinite
    once V has diverged."""
    if isinstance(before, td_lambda.State):  # which learns n steps after it has played
        done = (before.pending.terminated | before.pending.truncated)[0]
    else:
        done = after.env.episode.done[0]
    diverged = ~jnp.isfinite(after.params).all()
    return jnp.where(diverged, jnp.inf, jnp.where(done, metrics["rms_error"], jnp.nan))


def lengths(returns, num_episodes):
    """Return the steps of the first episodes, from the returns at their ends [..., T]."""
    steps = np.arange(1.0, returns.shape[-1] + 1)
    ends = first_episodes(np.where(np.isnan(returns), np.nan, steps), num_episodes)
    return np.diff(ends, prepend=0)


def dashed(axes, y, label, offset=2):
    """Draw a reference at height y, its label at the right, `offset` points above the line."""
    axes.axhline(y, color="0.35", linewidth=1, linestyle="--", zorder=1)
    axes.annotate(
        label,
        (0.99, y),
        xycoords=axes.get_yaxis_transform(),
        xytext=(0, offset),
        textcoords="offset points",
        ha="right",
        va="bottom" if offset > 0 else "top",
        color="0.35",
        fontsize=8,
    )


def figure_6_2(figure, num_seeds=500, num_episodes=100, num_steps=2_500):
    """Draw Example 6.2: TD(0) and constant-α Monte Carlo on the random walk of 5 states."""
    walk = {"env_id": "RandomWalk5-tabular", "initial_value": 0.5, "steps_per_update": 1}
    td = td_lambda.Config(total_timesteps=num_steps, **walk)
    mc = monte_carlo.Config(
        first_visit=False, learning_rate_power=0.0, total_timesteps=num_steps, **walk
    )
    left, right = figure.subplots(1, 2)

    exact = np.arange(1, 6) / 6
    v = train(
        td_lambda,
        dataclasses.replace(td, learning_rate=0.1),
        1,
        lambda *args: jnp.append(args[1].params[1:-1], rms_error(*args)),
    )[0]
    ended = np.concatenate([[[0.5] * 5], v[~np.isnan(v[:, -1]), :-1]])
    shown = [n for n in (0, 1, 10, 100) if n <= num_episodes]
    for color, n in zip(COLORS, shown, strict=False):
        left.plot(range(5), ended[n], "o-", color=color, label=f"{n} episodes")
    left.plot(range(5), exact, "--", color="0.35", label="exact")
    left.set_xticks(range(5), "ABCDE")
    left.set(xlabel="state", ylabel="estimated value")
    left.legend(frameon=False, fontsize=8)
    tidy(left, "V of TD(0) with α = .1 (seed 0) after so many episodes")

    methods = {
        "TD(0)": (td_lambda, td, [0.05, 0.1, 0.15]),
        "Monte Carlo": (monte_carlo, mc, [0.01, 0.02, 0.03, 0.04]),
    }
    at_first = np.sqrt(np.mean((0.5 - exact) ** 2))
    numbers = {"values": ended[shown]}
    for color, (name, (module, config, alphas)) in zip(COLORS, methods.items(), strict=False):
        errors = train(module, config, num_seeds, rms_error, learning_rate=alphas)
        curves = first_episodes(errors, num_episodes).mean(1)
        curves = np.insert(curves, 0, at_first, axis=-1)
        numbers[name] = curves
        for style, alpha, curve in zip(["-", "--", "-.", ":"], alphas, curves, strict=False):
            right.plot(curve, style, color=color, label=f"{name}, α = {alpha:g}")
    right.set(xlabel="episodes", ylabel="RMS error over the states", ylim=(0, 0.3))
    right.set_xlim(0, num_episodes)
    right.legend(frameon=False, ncols=2, fontsize=8, loc="upper right")
    tidy(right, "every-visit Monte Carlo against TD(0)")
    return numbers


def figure_6_4(figure, num_seeds=500, num_episodes=500, num_steps=25_000):
    """Draw Example 6.6: online returns of SARSA and Q-learning on the cliff, ε = .1, α = .5."""
    axes = figure.subplots()
    numbers = {}
    for color, (name, module) in zip(
        COLORS, {"SARSA": sarsa, "Q-learning": q_learning}.items(), strict=False
    ):
        config = module.Config(steps_per_update=1, total_timesteps=num_steps)
        returns = train(module, config, num_seeds, episode_return)
        numbers[name] = first_episodes(returns, num_episodes).mean(0)
        last = numbers[name][-100:].mean()
        axes.plot(
            range(1, num_episodes + 1),
            numbers[name],
            color=color,
            linewidth=1,
            label=f"{name}: {last:.1f} in the last {min(num_episodes, 100)} episodes",
        )
    dashed(axes, -13, "-13: the shortest path")
    dashed(axes, -20.71, "-20.7: the best policy with ε = .1")
    dashed(axes, -50.80, "-50.8: the shortest path with ε = .1", offset=-28)
    axes.set(xlabel="episode", ylabel="return of the episode", ylim=(-100, 0))
    axes.set_xlim(0, num_episodes)
    axes.legend(frameon=False, fontsize=8, loc="lower center")
    tidy(axes, "cliff walking: the return while learning")
    return numbers


def figure_6_7(figure, num_seeds=5_000, num_episodes=300):
    """Draw Example 6.7: how often the first action is left, which has the smaller mean return."""

    def left(before, after, metrics):
        at_start = before.env.obs[0] == 0
        return jnp.where(at_start, (after.env.obs[0] == 1).astype(float), jnp.nan)

    axes = figure.subplots()
    numbers = {}
    for color, (name, module) in zip(
        COLORS,
        {"Q-learning": q_learning, "double Q-learning": double_q_learning}.items(),
        strict=False,
    ):
        config = module.Config(
            env_id="MaximizationBias-tabular",
            steps_per_update=1,
            total_timesteps=2 * num_episodes,
            learning_rate=0.1,
        )
        went_left = first_episodes(train(module, config, num_seeds, left), num_episodes)
        numbers[name] = 100 * went_left.mean(0)
        axes.plot(range(1, num_episodes + 1), numbers[name], color=color, label=name)
    dashed(axes, 5, "5 %: the best policy with ε = .1", offset=-2)
    axes.set(xlabel="episode", ylabel="actions to the left in A, %", ylim=(0, 100))
    axes.set_xlim(0, num_episodes)
    axes.legend(frameon=False, fontsize=8)
    tidy(
        axes,
        "maximisation bias: left costs .1 on average (10 actions in A, half of them left; 10 in B)",
    )
    return numbers


ALPHAS = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def errors_of_the_walk(axes, num_seeds, alphas, num_steps, curves):
    """Plot the RMS error on the walk of 19 states over the first 10 episodes against α: a curve for
    each name and fields of the Config. Runs that diverge are infinite, and not drawn."""
    from matplotlib import colormaps

    numbers = {"alphas": np.array(alphas)}
    colors = colormaps["plasma"](np.linspace(0, 0.9, len(curves)))
    for color, (name, fields) in zip(colors, curves.items(), strict=True):
        total_timesteps = num_steps + fields.get("n_step", 1)
        config = td_lambda.Config(steps_per_update=1, total_timesteps=total_timesteps, **fields)
        errors = train(td_lambda, config, num_seeds, rms_error, learning_rate=alphas)
        numbers[name] = first_episodes(errors, 10).mean((1, 2))
        best = np.argmin(numbers[name])
        label = f"{name}: {numbers[name][best]:.3f} at α = {alphas[best]:g}"
        drawn = np.where(np.isfinite(numbers[name]), numbers[name], np.nan)
        axes.plot(alphas, drawn, ".-", color=color, label=label)
    axes.set(xlabel="step size α", ylabel="RMS error over the states and the first 10 episodes")
    axes.set(xlim=(0, 1.01), ylim=(0.24, 0.56))
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return numbers


def figure_7_2(
    figure,
    num_seeds=200,
    alphas=ALPHAS,
    num_steps=3_000,
    ns=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
):
    """Draw Figure 7.2: n-step TD on the random walk of 19 states."""
    axes = figure.subplots()
    curves = {f"n = {n}": {"n_step": n} for n in ns}
    numbers = errors_of_the_walk(axes, num_seeds, alphas, num_steps, curves)
    dashed(axes, 0.262, ".262: the lowest of an independent simulation, n = 4", offset=-2)
    tidy(
        axes, "n-step TD on the random walk of 19 states; in the legend the lowest point of each n"
    )
    return numbers


def figure_12_6(
    figure,
    num_seeds=200,
    alphas=ALPHAS,
    num_steps=3_000,
    lambdas=(0, 0.4, 0.8, 0.9, 0.95, 0.975, 0.99, 1),
):
    """Draw TD(λ) of Figure 12.6: accumulating traces on the random walk of 19 states."""
    axes = figure.subplots()
    curves = {f"λ = {x:g}": {"td_lambda": float(x)} for x in lambdas}
    numbers = errors_of_the_walk(axes, num_seeds, alphas, num_steps, curves)
    dashed(axes, 0.262, ".262: the lowest of n-step TD, n = 4 (Figure 7.2)", offset=-2)
    tidy(axes, "TD(λ) on the random walk of 19 states; in the legend the lowest point of each λ")
    return numbers


def figure_8_2(figure, num_seeds=100, num_episodes=50, num_steps=30_000, plans=(0, 5, 50)):
    """Draw Figure 8.2: Dyna-Q in a maze, with 0, 5 and 50 planning steps a step."""
    axes = figure.subplots()
    numbers = {}
    for color, num_planning_steps in zip(COLORS, plans, strict=False):
        config = dyna_q.Config(
            env_id="DynaMaze-tabular",
            steps_per_update=1,
            total_timesteps=num_steps if num_planning_steps == 0 else num_steps // 2,
            learning_rate=0.1,
            gamma=0.95,
            num_planning_steps=num_planning_steps,
        )
        returns = train(dyna_q, config, num_seeds, episode_return)
        name = f"n = {num_planning_steps}"
        numbers[name] = lengths(returns, num_episodes).mean(0)
        label = f"{num_planning_steps} planning steps" + " (Q-learning)" * (name == "n = 0")
        axes.plot(range(1, num_episodes + 1), numbers[name], color=color, label=label)
    dashed(axes, 14, "14: the shortest path", offset=-2)
    dashed(axes, 15.81, "15.8: the best policy with ε = .1", offset=14)
    axes.set(xlabel="episode", ylabel="steps of the episode", yscale="log", ylim=(11, 1_000))
    axes.set_xlim(1, num_episodes)
    axes.yaxis.set_minor_formatter("")
    axes.legend(frameon=False, fontsize=8)
    tidy(axes, "Dyna-Q in the maze, α = .1, γ = .95, ε = .1")
    return numbers


def figure_8_4(figure, num_seeds=100, num_steps=(3_000, 6_000)):
    """Draw Figures 8.4 and 8.5: Dyna-Q and Dyna-Q+ in mazes that change."""
    # Env id, n, κ, when it changes, and the steps of an episode of the best ε-soft policy, before
    # and after.
    mazes = {
        "blocking": ("BlockingMaze-tabular", 10, 1e-4, 1_000, 11.07, 17.54),
        "shortcut": ("ShortcutMaze-tabular", 50, 1e-3, 3_000, 17.54, 11.07),
    }
    numbers = {}
    panels = zip(figure.subplots(1, 2), mazes.items(), num_steps, strict=True)
    for axes, (maze, (env_id, n, kappa, change, before, after)), steps in panels:
        for color, (name, fields) in zip(
            COLORS,
            {"Dyna-Q": {}, "Dyna-Q+": {"kappa": kappa, "plan_untried": True}}.items(),
            strict=False,
        ):
            config = dyna_q.Config(
                env_id=env_id,
                steps_per_update=1,
                total_timesteps=steps,
                learning_rate=1.0,
                gamma=0.95,
                num_planning_steps=n,
                **fields,
            )
            returns = train(dyna_q, config, num_seeds, episode_return)
            numbers[f"{maze}, {name}"] = np.cumsum(np.nan_to_num(returns), -1).mean(0)
            axes.plot(numbers[f"{maze}, {name}"], color=color, label=name)
        corners = np.array([0, min(change, steps), steps])
        best = np.cumsum(np.diff(corners, prepend=0) / [1, before, after])
        axes.plot(
            corners, best, "--", color="0.35", linewidth=1, label="the best policy with ε = .1"
        )
        axes.axvline(change, color="0.6", linewidth=1, linestyle=":")
        axes.annotate(
            "the maze changes",
            (change, 0.03),
            xycoords=("data", "axes fraction"),
            xytext=(4, 0),
            textcoords="offset points",
            color="0.35",
            fontsize=8,
        )
        axes.set(xlabel="time steps", ylabel="cumulative reward", xlim=(0, steps), ylim=(0, None))
        axes.legend(frameon=False, loc="upper left", fontsize=8)
        tidy(axes, f"{maze} maze, n = {n}, κ = {kappa:g}")
    return numbers


FIGURES = {
    "6.2": figure_6_2,
    "6.4": figure_6_4,
    "6.7": figure_6_7,
    "7.2": figure_7_2,
    "8.2": figure_8_2,
    "8.4": figure_8_4,
    "12.6": figure_12_6,
}


def draw(name, folder=RESULTS, **sizes):
    """Train, write figure-<name>.png, and return the numbers that are in it."""
    figure = blank_figure(height=4.5)
    defaults = inspect.signature(FIGURES[name]).parameters
    num_seeds = sizes.get("num_seeds", defaults["num_seeds"].default)
    numbers = FIGURES[name](figure, **sizes)
    for axes in figure.axes:
        axes.yaxis.label.set(size=8, color="0.25")
    caption = f"means over {num_seeds:,} seeds · python -m benchmarks.figures {name}"
    write_picture(Path(folder) / f"figure-{name}.png", figure, caption)
    return numbers


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.figures", description=__doc__)
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"of {', '.join(FIGURES)}")
    names = parser.parse_args().figures
    if unknown := set(names) - set(FIGURES):
        parser.error(
            f"no such figure: {', '.join(sorted(unknown))}; there are {', '.join(FIGURES)}"
        )
    for name in names or FIGURES:
        clock = time.monotonic()
        draw(name)
        print(f"figure-{name}.png in {time.monotonic() - clock:.0f} s", flush=True)


if __name__ == "__main__":
    main()
