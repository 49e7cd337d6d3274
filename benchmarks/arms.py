"""Compare agent57.py with its own fixed arms: `python -m benchmarks.arms`.

Agent57 with its defaults, and the same with policy j in every episode instead of the one that the
bandit chooses, in training and when it is evaluated: the mean return of 100 greedy episodes of each
seed at the end. The first random steps are those of all arms. The numbers are results/arms.csv.
"""

import argparse
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from algorithms import agent57
from benchmarks.exploration import save
from benchmarks.learning import RESULTS
from common.envs import make_env
from common.runner.evaluation import evaluate
from common.runner.program import start_jax

STEPS = {  # environment steps of each environment
    "DeepSea10-bsuite": 60_000,
    "MemoryChain10-bsuite": 40_000,
    "DiscountingChain-bsuite": 60_000,
    "Catch-bsuite": 40_000,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.arms")
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("environments", nargs="*", help="default: all", default=[*STEPS])
    parser.add_argument("--seed", type=int, default=0, help="the first; others count up from it")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the CSV goes")
    arguments = parser.parse_args()
    if unknown := set(arguments.environments) - {*STEPS}:
        parser.error(f"there is no {', '.join(sorted(unknown))}; choose from {', '.join(STEPS)}")
    if arguments.seeds < 1 or not arguments.out.is_dir():
        parser.error("--seeds must be at least 1, and --out a folder")
    start_jax()
    seeds = arguments.seed + np.arange(arguments.seeds)
    lines = []
    for env_id in arguments.environments:
        config = agent57.Config(env_id=env_id, total_timesteps=STEPS[env_id])
        lines.append(line(env_id, config.total_timesteps, final_returns(config, seeds)))
        print(lines[-1], flush=True)
    save(arguments.out / "arms.csv", lines, "environment")


def final_returns(config: agent57.Config, seeds: np.ndarray) -> np.ndarray:
    """Return the mean greedy return of each seed, [1 + J, S]: Agent57's, then each fixed arm's."""
    env, keys = make_env(config.env_id, 100), jax.vmap(jax.random.key)(jnp.asarray(seeds))

    def train(key):
        algorithm = agent57.make(config)
        steps = jnp.arange(algorithm.num_updates)
        state, _ = jax.lax.scan(algorithm.update, algorithm.init(key), steps)
        key = jax.random.fold_in(key, algorithm.num_updates)
        return evaluate(env, algorithm.act, state.params, key, algorithm.init_memory)[0].mean()

    def train_fixed(arm, key):
        with mock.patch.multiple(agent57, **fixed_arm(arm)):
            return train(key)

    of_seeds = jax.vmap(train_fixed, (None, 0))
    fixed = jax.jit(jax.vmap(of_seeds, (0, None)))(jnp.arange(config.num_policies), keys)
    return np.concatenate([jax.jit(jax.vmap(train))(keys)[None], fixed])


def fixed_arm(arm: jax.Array) -> dict:
    """Return what replaces the bandit's functions: that arm in every episode, and as the best."""
    return {
        "choose_arm": lambda key, bandit, num_arms, coef, epsilon: arm,
        "mean_returns": lambda bandits, num_arms: jnp.eye(num_arms)[arm],
    }


def line(env_id: str, steps: int, returns: np.ndarray) -> dict:
    """Return the means, and how far Agent57, the first, is below the best arm, as a part of it."""
    bandit, *arms = (float(x.mean()) for x in returns)
    best = max(arms)
    return {
        "environment": env_id,
        "steps": steps,
        "seeds": len(returns[0]),
        "agent57": bandit,
        "worst_seed": float(returns[0].min()),
        **{f"arm_{j}": x for j, x in enumerate(arms)},
        "below_best_arm": f"{100 * (best - bandit) / abs(best):.1f} %",
    }


if __name__ == "__main__":
    main()
