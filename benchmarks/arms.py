"""Compare the bandit of Agent57 with each of its arms: `python -m benchmarks.arms` (half an hour).

On four environments of bsuite, agent57.py is trained as it is, and with one policy of its family
for all episodes, in training and at the end. What is compared is the return of the final policy,
results/arms.csv. The picture, results/arms.png, shows which arms the bandit played: the share of
each among the last 90 episodes of every environment, results/arms_played.csv.
"""

import argparse
import csv
import platform
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from algorithms import agent57
from benchmarks.learning import RESULTS, commit, table
from common.envs import make_env
from common.runner.evaluation import evaluate
from common.runner.plots import COLORS, blank_figure, tidy, write_picture
from common.runner.program import start_jax
from common.runner.statistics import summarize

EPISODES = 20  # of each final policy
POINTS = 20  # of a curve
STEPS = {
    "Catch-bsuite": 12_000,
    "MemoryChain-bsuite": 12_000,
    "DeepSea8-bsuite": 20_000,
    "DiscountingChain-bsuite": 8_000,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.arms")
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where CSVs and picture go")
    arguments = parser.parse_args()
    if arguments.seeds < 1 or not arguments.out.is_dir():
        parser.error("--seeds must be at least 1, and --out a folder")
    start_jax()
    origin = {
        "seeds": arguments.seeds,
        "machine": f"{platform.machine()}, {jax.device_count()} x {jax.devices()[0].platform}",
        "versions": f"jax={jax.__version__}",
        "commit": commit(),
    }
    lines, played = [], []
    for env_id, steps in STEPS.items():
        returns, shares = measure(env_id, steps, arguments.seeds, arguments.seed)
        for arm, values in enumerate(returns, start=-1):
            result = {name: f"{x:.4g}" for name, x in summarize(values.tolist()).items()}
            name = "bandit" if arm < 0 else str(arm)
            lines.append({"env_id": env_id, "arm": name, "steps": steps} | result | origin)
        for point, arm in np.ndindex(shares.shape):
            step = steps * (point + 1) // POINTS
            share = f"{shares[point, arm]:.4f}"
            played.append({"env_id": env_id, "step": step, "arm": arm, "share": share} | origin)
        write(arguments.out / "arms.csv", lines)
        write(arguments.out / "arms_played.csv", played)
    draw(played, arguments.out / "arms.png")
    columns = ["env_id", "arm", "steps", "iqm", "low", "high"]
    print(table([columns, *([line[x] for x in columns] for line in lines)]))


def measure(env_id: str, steps: int, num_seeds: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean returns of the final policies, with the bandit and with each arm, [1 + J, S],
    and the share of each arm among the episodes that the bandits remember, [P, J]."""
    config = agent57.Config(env_id=env_id, total_timesteps=steps)
    env, num_arms = make_env(env_id, EPISODES), config.num_policies
    choose_arm, mean_returns = agent57.choose_arm, agent57.mean_returns

    def run(arm, key):
        """With that arm, or the bandit if it is -1."""
        only_arm = {
            "choose_arm": lambda *args: jnp.where(arm < 0, choose_arm(*args), arm),
            "mean_returns": lambda *args: jnp.where(
                arm < 0, mean_returns(*args), 1.0 * (jnp.arange(num_arms) == arm)
            ),
        }

        def point(state, start):
            updates = start + jnp.arange(algorithm.num_updates // POINTS)
            state, _ = jax.lax.scan(
                lambda *args: (algorithm.update(*args)[0], None), state, updates
            )
            played, _ = agent57.plays_and_returns(state.bandits, num_arms)
            return state, played

        with mock.patch.multiple(agent57, **only_arm):
            algorithm = agent57.make(config)
            starts = algorithm.num_updates // POINTS * jnp.arange(POINTS)
            state, played = jax.lax.scan(point, algorithm.init(key), starts)
        key = jax.random.fold_in(key, 1)
        returns, _ = evaluate(env, algorithm.act, state.params, key, algorithm.init_memory)
        return returns.mean(), played

    seeds = jax.vmap(jax.random.key)(seed + jnp.arange(num_seeds))
    runs = jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))
    returns, played = runs(jnp.arange(-1, num_arms), seeds)
    played = np.asarray(played[0], float).sum(0)
    return np.asarray(returns), played / played.sum(-1, keepdims=True)


def write(path: Path, lines: list[dict]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, lines[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def draw(played: list[dict], path: Path) -> None:
    """Draw the shares of the arms over the steps, stacked, a panel for each environment."""
    figure = blank_figure(height=5)
    panels = figure.subplots(2, 2, sharey=True).ravel()
    for axes, env_id in zip(panels, STEPS, strict=True):
        lines = [line for line in played if line["env_id"] == env_id]
        steps = sorted({line["step"] for line in lines})
        arms = sorted({line["arm"] for line in lines})
        shares = [[float(x["share"]) for x in lines if x["arm"] == arm] for arm in arms]
        tidy(axes, env_id)
        axes.stackplot(steps, shares, labels=[f"arm {arm}" for arm in arms], colors=COLORS)
        axes.set(xlim=(steps[0], steps[-1]), ylim=(0, 1), xlabel="environment step")
    panels[-1].legend(loc="lower right", fontsize=8)
    caption = "share of each arm among the last 90 episodes · python -m benchmarks.arms"
    write_picture(path, figure, caption)


if __name__ == "__main__":
    main()
