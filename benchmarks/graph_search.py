"""What searches of a known model find, and when: `python -m benchmarks.graph_search`.

results/a_star.csv: the mean length of the paths and the mean number of states expanded, without a
heuristic (Dijkstra), with it (A*), and with w = 4 (greedy), on grid worlds, over seeds: each has a
maze of its own, or a start. results/rrt.csv and graph-search.png: the share of the seeds that have
a plan after so many samples, and the median steps of their plans. results/a-star-maze.png and
rrt-tree.png: what one seed has searched.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from algorithms import a_star, rrt
from benchmarks.learning import RESULTS, table
from benchmarks.speed import existing_folder, origin, positive, rows_to_show, write
from common.runner.pictures import draw_picture
from common.runner.plots import COLORS, blank_figure, tidy, write_picture

MAZES = [
    "RandomMaze-tabular",
    "DynaMaze-tabular",
    "OpenRightMaze-tabular",
    "OpenLeftMaze-tabular",
    "OpenBothMaze-tabular",
    "CliffWalking-tabular",
    "WindyGridWorld-tabular",
    "GridWorld-tabular",
]
WEIGHTS = {"Dijkstra": 0.0, "A*": 1.0, "greedy": 4.0}
SAMPLES = {"Pendulum-v1": 1_000, "PointRobot-obstacles": 3_000}
SHOWN = [50, 100, 200, 300, 400, 500, 1_000, 1_500, 2_000, 2_500, 3_000]


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.graph_search", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seeds", type=positive, default=64)
    parser.add_argument("--out", type=existing_folder, default=RESULTS, help="folder for the files")
    arguments = parser.parse_args()
    versions = origin([{"versions": {"jax": jax.__version__}}])
    searches = [search(env_id, arguments.seeds) for env_id in MAZES]
    print(table(rows_to_show(searches)))
    write(arguments.out / "a_star.csv", [line | versions for line in searches])
    grown = {env_id: grow(env_id, num, arguments.seeds) for env_id, num in SAMPLES.items()}
    lines = [line for env_id, metrics in grown.items() for line in progress(env_id, *metrics)]
    print(table(rows_to_show(lines)))
    write(arguments.out / "rrt.csv", [line | versions for line in lines])
    draw(arguments.out / "graph-search.png", grown)
    show(arguments.out / "a-star-maze.png", a_star, a_star.Config(), seed=3)
    show(arguments.out / "rrt-tree.png", rrt, rrt.Config("PointRobot-obstacles", 1_200), seed=0)


def keys(num_seeds: int) -> jax.Array:
    return jax.vmap(jax.random.key)(jnp.arange(num_seeds))


def search(env_id: str, num_seeds: int) -> dict:
    """Return what the three searches of a grid world find, means over seeds."""

    def train(weight, key):
        algorithm = a_star.make(a_star.Config(env_id, weight=weight))
        steps = jnp.arange(algorithm.num_updates)
        _, metrics = jax.lax.scan(algorithm.update, algorithm.init(key), steps)
        return jnp.stack([metrics["path_length"][-1], metrics["expanded"][-1]])

    over_all = jax.jit(jax.vmap(jax.vmap(train, (None, 0)), (0, None)))
    found = np.asarray(over_all(jnp.array(list(WEIGHTS.values())), keys(num_seeds)))
    line = {"env_id": env_id}
    for i, what in enumerate(("length", "expanded")):
        means = found[:, :, i].mean(axis=1)
        line |= {f"{what}, {name}": float(x) for name, x in zip(WEIGHTS, means, strict=True)}
    return line


def grow(env_id: str, num_nodes: int, num_seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """Return whether there is a plan after each update, and its steps or NaN, [S, T] each."""
    algorithm = rrt.make(rrt.Config(env_id, num_nodes=num_nodes))

    def train(key):
        steps = jnp.arange(algorithm.num_updates)
        _, metrics = jax.lax.scan(algorithm.update, algorithm.init(key), steps)
        return metrics["success"], metrics["path_steps"]

    success, path_steps = jax.jit(jax.vmap(train))(keys(num_seeds))
    return np.asarray(success), np.asarray(path_steps)


def progress(env_id: str, success: np.ndarray, path_steps: np.ndarray) -> list[dict]:
    """Return a line for each of SHOWN numbers of samples; the steps are those of all seeds that
    have a plan."""
    every, lines = rrt.Config().nodes_per_update, []
    for samples in SHOWN:
        if samples > every * success.shape[1]:
            break
        now = success[:, samples // every - 1], path_steps[:, samples // every - 1]
        steps = float(np.nanmedian(now[1])) if now[0].any() else np.nan
        line = {"env_id": env_id, "samples": samples, "with_a_plan": float(now[0].mean())}
        lines.append(line | {"median_steps": steps})
    return lines


def draw(path, grown: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Draw the shares of the seeds that have a plan over the number of samples."""
    figure = blank_figure(height=4)
    axes = figure.subplots()
    for color, (env_id, (success, _)) in zip(COLORS, grown.items(), strict=False):
        samples = rrt.Config().nodes_per_update * (1 + np.arange(success.shape[1]))
        axes.plot(samples, success.mean(axis=0), color=color, label=env_id)
    tidy(axes, "rrt: share of the seeds that have a plan")
    axes.set(xlabel="samples", ylim=(0, 1.02))
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    num_seeds = len(next(iter(grown.values()))[0])
    write_picture(path, figure, f"{num_seeds} seeds · python -m benchmarks.graph_search")


def show(path, module, config, seed: int) -> None:
    """Draw what one seed has searched in a run of an algorithm's file."""
    algorithm = module.make(config)
    init = algorithm.init(jax.random.key(seed))
    steps = jnp.arange(algorithm.num_updates)
    state, _ = jax.jit(lambda state: jax.lax.scan(algorithm.update, state, steps))(init)
    figure = blank_figure(height=5)
    draw_picture(figure, config.env_id, algorithm.picture(state))
    write_picture(path, figure, f"seed {seed} · python -m benchmarks.graph_search")


if __name__ == "__main__":
    main()
