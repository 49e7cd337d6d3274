"""For copies of algorithms whose policies have memory: common/tools/standalone_main.py's `play`."""

from typing import Any

import jax
import jax.numpy as jnp

from common.algorithm import Algorithm
from common.envs import Env
from common.memory import rollout_with_memory


def play(algorithm: Algorithm, env: Env, params: Any, key: jax.Array) -> jax.Array:
    """Return the mean return of one policy, of an episode in each of 100 environments."""
    assert algorithm.act and algorithm.init_memory  # not copied
    initial = algorithm.init_memory()
    act = jax.vmap(algorithm.act, (None, 0, 0, 0))
    policy = lambda memory, obs, key: act(params, memory, obs, jax.random.split(key, 100))
    key_reset, key = jax.random.split(key)
    states = env.reset(key_reset), jax.tree.map(lambda x: jnp.stack([x] * 100), initial)
    _, played, *_ = rollout_with_memory(env, policy, states, initial, key, env.max_steps)
    done = played.terminated | played.truncated
    return jnp.sum(played.reward * (jnp.cumsum(done, axis=0) - done == 0)) / 100
