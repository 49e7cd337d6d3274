"""Command line."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.tree_util import keystr, tree_leaves_with_path, tree_map_with_path

from common.algorithm import Algorithm
from common.envs import Env, make_env
from common.runner.threefry import unroll_threefry


def main(config_class: type, make: Callable[[Any], Algorithm]) -> None:
    """Train many seeds in one vmapped program and save their params, or play saved policies."""

    @dataclass(frozen=True)
    class Flags(config_class):
        seed: int = 0  # the first seed; the others count up from it
        num_seeds: int = 1  # seeds trained in parallel
        out: str = f"{Path(__file__).stem}.npz"  # file for the params, with a leading axis of seeds
        load: str = ""  # such a file: play its policies instead of training

    os.environ.setdefault("NPROC", "1")  # copied --fast-cpu
    unroll_threefry()  # copied --fast-cpu
    flags = tyro.cli(Flags)
    try:
        algorithm = make(flags)
        if min(algorithm.num_updates, flags.num_seeds) < 1:
            raise ValueError("--total-timesteps and --num-seeds: nothing to train")
        keys = jax.vmap(jax.random.key)(flags.seed + jnp.arange(flags.num_seeds))
        if flags.load:
            env = make_env(flags.env_id, 100)
            score = lambda params: play(algorithm, env, params, keys[0])
            returns = jax.jit(jax.vmap(score))(load_params(algorithm, flags.load))
            return print("return of each policy:", *(f"{x:.4g}" for x in returns))
    except (KeyError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        sys.exit(2)

    @jax.jit
    def train(state, steps):  # one scan for all seeds: `steps` has no axis of seeds
        state, metrics = jax.lax.scan(jax.vmap(algorithm.update, (0, None)), state, steps)
        returns, episodes = metrics["episode_return"], metrics.get("episodes", 1)
        return state, jnp.nansum(returns * episodes) / jnp.sum(episodes * ~jnp.isnan(returns))

    state = jax.jit(jax.vmap(algorithm.init))(keys)
    for steps in np.array_split(np.arange(algorithm.num_updates), min(10, algorithm.num_updates)):
        state, episode_return = train(state, steps)
        num_steps = algorithm.initial_steps + (steps[-1] + 1) * algorithm.steps_per_update
        print(f"{num_steps:,} steps  return {episode_return:.4g}", flush=True)
    np.savez(flags.out, **{keystr(path): x for path, x in tree_leaves_with_path(state.params)})
    print(f"params of {flags.num_seeds} seeds in {flags.out}")


def load_params(algorithm: Algorithm, path: str) -> Any:
    """Return the params in a file that `main` saved, with a leading axis of seeds."""
    params = jax.eval_shape(algorithm.init, jax.random.key(0)).params
    with np.load(path) as file:
        return tree_map_with_path(lambda path, _: jnp.asarray(file[keystr(path)]), params)


def play(algorithm: Algorithm, env: Env, params: Any, key: jax.Array) -> jax.Array:
    """Return the mean return of one policy, of an episode in each of 100 environments."""
    if algorithm.act is None:  # copied for update, None
        raise ValueError("--load: this algorithm has no policy that plays without its planner")
    policy = jax.vmap(algorithm.act, (None, 0, 0))
    keys = jax.random.split(key, (env.max_steps + 1, 101))
    step = lambda state, keys: env.step(state, policy(params, state.obs, keys[1:]), keys[0])
    _, played = jax.lax.scan(step, env.reset(keys[0, 0]), keys[1:])
    done = played.terminated | played.truncated
    return jnp.sum(played.reward * (jnp.cumsum(done, axis=0) - done == 0)) / 100
