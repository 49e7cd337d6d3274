"""Measure how far DQN and double DQN overestimate: `python -m benchmarks.overestimation`.

On CartPole-v1, with the files' defaults, along training: max_a Q(s, a; θ) of the starts of 100
episodes, minus the discounted return that the greedy policy then gets from them (van Hasselt et al.
2016, https://arxiv.org/abs/1509.06461, Figure 3). Every step pays 1, so the return of L steps is
(1 - γ^L) / (1 - γ); an episode that the time limit cuts counts as endless, as it does for the
bootstrap.

The picture is results/overestimation.png, the numbers results/overestimation.csv.
"""

import argparse
import csv
import platform
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from algorithms import double_dqn, dqn
from benchmarks.learning import RESULTS, commit, table
from common.envs import make_env
from common.networks import make_network
from common.runner.evaluation import evaluate
from common.runner.plots import COLORS, blank_figure, tidy, write_picture
from common.runner.program import init_run, run_updates, start_jax
from common.runner.statistics import iqm

EPISODES = 100  # of each seed at each point
FILES = {"DQN": dqn, "double DQN": double_dqn}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overestimation")
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--points", type=int, default=20, help="at which the policies are played")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where CSV and picture go")
    arguments = parser.parse_args()
    if arguments.seeds < 1 or arguments.points < 1 or not arguments.out.is_dir():
        parser.error("--seeds and --points must be at least 1, and --out a folder")
    start_jax()
    curves = {name: measure(x, arguments.seeds, arguments.points) for name, x in FILES.items()}
    draw(curves, arguments.seeds, arguments.out)
    origin = {
        "seeds": arguments.seeds,
        "machine": f"{platform.machine()}, {jax.device_count()} x {jax.devices()[0].platform}",
        "versions": f"jax={jax.__version__}",
        "commit": commit(),
    }
    lines = [line | origin for name, curve in curves.items() for line in lines_of(name, curve)]
    with open(arguments.out / "overestimation.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, lines[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    print(table([list(lines[0])[:5], *(list(line.values())[:5] for line in lines)]))


def measure(module, num_seeds: int, num_points: int, config=None) -> dict[str, np.ndarray]:
    """Return environment steps [P], and the predicted and achieved values of each seed [P, S]."""
    config = config or module.Config()
    algorithm = module.make(config)
    env = make_env(config.env_id, EPISODES)
    network = make_network(env, config.hidden_sizes, env.num_actions)

    def look(params, key):
        returns, lengths = evaluate(env, algorithm.act, params, key)
        starts = env.reset(jax.random.split(key)[0]).obs  # those of `evaluate`
        predicted = network.apply(params, starts).max(-1)
        return predicted.mean(), discounted(lengths, config.gamma, env.max_steps).mean()

    keys = jax.vmap(jax.random.key)(jnp.arange(num_seeds))
    run_state = jax.jit(lambda keys: init_run(algorithm.init, algorithm.update, keys))(keys)
    step = jax.jit(lambda *args: run_updates(algorithm.update, *args), donate_argnums=0)
    look, points = jax.jit(jax.vmap(look)), {"steps": [], "predicted": [], "achieved": []}
    stops = np.linspace(0, algorithm.num_updates, num_points + 1).astype(int)
    for start, stop in zip(stops[:-1], stops[1:], strict=True):
        run_state = step(run_state, jnp.int32(start), jnp.int32(stop), jnp.bool_(True))
        look_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 1_000_000 + stop)
        predicted, achieved = look(run_state.state.params, look_keys)
        points["steps"].append(algorithm.initial_steps + stop * algorithm.steps_per_update)
        points["predicted"].append(predicted)
        points["achieved"].append(achieved)
    return {name: np.array(x) for name, x in points.items()}


def discounted(lengths, gamma, max_steps) -> jax.Array:
    """Return Σ γⁱ over `lengths` steps, and over infinitely many if the time limit cut them."""
    return (1 - jnp.where(lengths < max_steps, gamma**lengths, 0)) / (1 - gamma)


def lines_of(name: str, curve: dict) -> list[dict]:
    """Return the mean over seeds of each value, and the interquartile mean of their difference."""
    bias = map(iqm, curve["predicted"] - curve["achieved"])
    return [
        {
            "algorithm": name,
            "steps": int(steps),
            "predicted": f"{predicted.mean():.4g}",
            "achieved": f"{achieved.mean():.4g}",
            "overestimation_iqm": f"{middle:.4g}",
        }
        for steps, predicted, achieved, middle in zip(*curve.values(), bias, strict=True)
    ]


def draw(curves: dict, num_seeds: int, folder: Path) -> None:
    """Draw the difference of every seed, thin, and its interquartile mean."""
    figure = blank_figure(height=4)
    axes = figure.subplots()
    for (name, curve), color in zip(curves.items(), COLORS, strict=False):
        bias = curve["predicted"] - curve["achieved"]
        axes.plot(curve["steps"], bias, color=color, alpha=0.25, linewidth=0.8)
        axes.plot(curve["steps"], [*map(iqm, bias)], color=color, label=name)
    axes.axhline(0, color="0.35", linewidth=1, linestyle="--", zorder=1)
    axes.set(xlabel="environment steps", ylabel="predicted minus achieved value")
    axes.legend(frameon=False)
    tidy(axes, "CartPole-v1: the value of the greedy policy, predicted minus achieved")
    caption = f"{num_seeds} seeds, thick: interquartile mean · python -m benchmarks.overestimation"
    write_picture(folder / "overestimation.png", figure, caption)


if __name__ == "__main__":
    main()
