"""Compare what is learned from logged data of three qualities: `python -m benchmarks.offline`.

The data are 100 episodes: of an expert, of the expert that takes more and more actions at random
(mixed), and of random actions, for each seed others. Everybody takes as many gradient steps; the
score of a policy is 100 where its return is that of the expert and 0 where it is that of a random
policy. Numbers are in results/offline.csv, the picture of the learning curves is
results/offline.png.
"""

import argparse
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.ticker import EngFormatter

from algorithms import behaviour_cloning, cql, iql, td3_bc
from benchmarks.imitation import mean_return
from benchmarks.learning import RESULTS, commit, table
from benchmarks.speed import write
from common.datasets import noisy_policy, play_dataset
from common.environments.experts import make_expert
from common.envs import bound_action, make_env, map_actions
from common.runner.evaluation import evaluate
from common.runner.plots import COLORS, blank_figure, tidy, write_picture
from common.runner.statistics import bands, summarize

NUM_EPISODES = 100
QUALITIES = {"expert": (0.0, 0.0), "mixed": (0.0, 1.0), "random": (1.0, 1.0)}  # ε, first and last
CONTESTANTS = {  # of each environment: what it is called, the file, and its fields but the defaults
    "Pendulum-v1": {
        "TD3+BC": (td3_bc, {}),
        "IQL": (iql, {}),
        "TD3, no cloning": (td3_bc, {"alpha": 1e6}),
        "behaviour cloning": (behaviour_cloning, {}),
    },
    "CartPole-v1": {
        "CQL": (cql, {}),
        "DQN": (cql, {"alpha": 0.0}),
        "behaviour cloning": (behaviour_cloning, {}),
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.offline")
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--tasks", nargs="+", default=list(CONTESTANTS), choices=CONTESTANTS)
    parser.add_argument("--data", nargs="+", default=list(QUALITIES), choices=QUALITIES)
    parser.add_argument("--gradient-steps", type=int, default=10_000)
    parser.add_argument("--points", type=int, default=10, help="of each curve")
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where CSV and picture go")
    arguments = parser.parse_args()
    if min(arguments.seeds, arguments.points) < 1 or not arguments.out.is_dir():
        parser.error("--seeds and --points must be at least 1, and --out a folder")
    if arguments.gradient_steps % (10 * arguments.points):
        parser.error("--gradient-steps must be a multiple of 10 times --points")
    lines, scores = [], {}
    for env_id in arguments.tasks:
        low, high = (mean_return(env_id, policy) for policy in ("random", "expert"))
        for label in CONTESTANTS[env_id]:
            for quality, returns in learned(env_id, label, arguments).items():
                score = 100 * (returns - low) / (high - low)
                scores[env_id, quality, label] = score
                row = {"environment": env_id, "data": quality, "algorithm": label}
                lines.append(row | line_of(returns[:, -1], score[:, -1], arguments))
                print(*(str(x) for x in lines[-1].values()), flush=True)
    write(arguments.out / "offline.csv", lines)
    draw(arguments, scores)
    print(table([list(lines[0]), *(list(line.values()) for line in lines)]))


def learned(env_id: str, label: str, arguments) -> dict[str, np.ndarray]:
    """Return the mean return of 50 greedy episodes of each seed at the points of the curve [S, P],
    for data of each quality."""
    module, fields = CONTESTANTS[env_id][label]
    fields = fields | {"num_iterations": 10 * arguments.points, "num_episodes": NUM_EPISODES}
    gradient_steps = arguments.gradient_steps // (10 * arguments.points)
    config = module.Config(env_id=env_id, gradient_steps=gradient_steps, **fields)
    algorithm, env = module.make(config), make_env(env_id, 50)

    @jax.jit
    @jax.vmap
    def init(key, low, high):
        if module is behaviour_cloning:  # knows no epsilon
            state = algorithm.init(key)
            return state._replace(dataset=noisy_data(env_id, low, high, jax.random.fold_in(key, 0)))
        quality = {"epsilon_min": low, "epsilon_max": high}
        return module.make(dataclasses.replace(config, **quality)).init(key)

    @jax.jit
    def learn(states, first_step):
        """Ten updates, and the returns of the policies after them."""
        update = jax.vmap(algorithm.update, (0, None))
        states, _ = jax.lax.scan(update, states, first_step + jnp.arange(10))
        play = jax.vmap(lambda params, key: evaluate(env, algorithm.act, params, key)[0].mean())
        return states, play(states.params, seeds_keys(1_000, arguments.seeds))

    curves = {}
    for quality in arguments.data:
        low, high = (jnp.full(arguments.seeds, epsilon) for epsilon in QUALITIES[quality])
        states, points = init(seeds_keys(0, arguments.seeds), low, high), []
        for number in range(arguments.points):
            states, returns = learn(states, jnp.int32(10 * number))
            points.append(np.asarray(returns))
        curves[quality] = np.stack(points, axis=1)
    return curves


def seeds_keys(first: int, num_seeds: int) -> jax.Array:
    return jax.vmap(jax.random.key)(first + jnp.arange(num_seeds))


def noisy_data(env_id: str, low: jax.Array, high: jax.Array, key: jax.Array):
    """Return the Data of an expert whose ε goes from `low` to `high`, actions in [-1, 1]."""
    env = map_actions(make_env(env_id, NUM_EPISODES), bound_action)
    epsilon = jnp.linspace(low, high, NUM_EPISODES)
    return play_dataset(env, noisy_policy(env, make_expert(env_id, env), epsilon)).init(key)


def line_of(returns: np.ndarray, score: np.ndarray, arguments) -> dict:
    """Return what the CSV has of the final policies: interquartile means over seeds with their 95 %
    intervals."""
    normalized = summarize(score)
    return {
        **{key: x if x is None else f"{x:.4g}" for key, x in summarize(returns).items()},
        "score": f"{normalized['iqm']:.4g}",
        "worst_score": f"{normalized['min']:.4g}",
        "gradient_steps": arguments.gradient_steps,
        "seeds": len(returns),
        "commit": commit(),
    }


def draw(arguments, scores: dict) -> None:
    """Draw a row of panels for each environment, a panel for each quality of the data."""
    figure = blank_figure(height=1 + 2.6 * len(arguments.tasks))
    grid = figure.subplots(len(arguments.tasks), len(arguments.data), squeeze=False, sharey="row")
    size = arguments.gradient_steps // arguments.points
    steps = size * np.arange(1, arguments.points + 1)
    for env_id, row in zip(arguments.tasks, grid, strict=True):
        for quality, axes in zip(arguments.data, row, strict=True):
            for label, color in zip(CONTESTANTS[env_id], COLORS, strict=False):
                line, low, high = bands(scores[env_id, quality, label])
                axes.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
                axes.plot(steps, line, color=color, linewidth=1.6, label=label)
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            tidy(axes, f"{env_id}: {quality} data")
        row[0].legend(frameon=False, fontsize=7, loc="center right")
        row[0].set_ylabel("score (100: expert, 0: random)")
    for axes in grid[-1]:
        axes.set_xlabel("gradient steps")
    caption = f"IQM over {arguments.seeds} seeds, 95 % interval · python -m benchmarks.offline"
    write_picture(arguments.out / "offline.png", figure, caption)


if __name__ == "__main__":
    main()
