"""Evaluation of a policy."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from common.envs import Env

MAX_LENGTH = 100_000  # steps after which an episode of an evaluation is cut, whatever its limit


def evaluate(env: Env, act: Callable, params: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Play one whole episode of `act(params, obs, key)` in each environment; the undiscounted
    returns [N] and the lengths [N]. The time limit ends an episode, or MAX_LENGTH."""
    key_reset, key_steps = jax.random.split(key)

    def step(carry):
        t, state, active, returns, length = carry
        key_act, key_env = jax.random.split(jax.random.fold_in(key_steps, t))
        keys = jax.random.split(key_act, env.num_envs)
        action = jax.vmap(act, (None, 0, 0))(params, state.obs, keys)
        state, transition = env.step(state, action, key_env)
        returns += jnp.where(active, transition.reward, 0)
        length += active
        active &= ~(transition.terminated | transition.truncated)
        return t + 1, state, active, returns, length

    def unfinished(carry):
        t, _, active, _, _ = carry
        return (t < min(env.max_steps, MAX_LENGTH)) & jnp.any(active)

    zeros = jnp.zeros(env.num_envs)
    start = jnp.int32(0), env.reset(key_reset), zeros == 0, zeros, zeros.astype(jnp.int32)
    _, _, _, returns, length = jax.lax.while_loop(unfinished, step, start)
    return returns, length
