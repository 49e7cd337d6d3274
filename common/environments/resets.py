"""Environments that reset themselves to starts computed ahead: a reset in every step can cost more
than the step."""

from typing import Any

import jax
import jax.numpy as jnp

from common.environments.batching import batch_env
from common.envs import Env

MIN_AHEAD = 64  # precomputed resets; or twice the number of environments, if that is more


@jax.custom_batching.custom_vmap
def any_across_vmap(flag: jax.Array) -> jax.Array:
    """Return whether `flag` is set in any of the vmapped runs, as one scalar for all of them."""
    return flag


@any_across_vmap.def_vmap
def _(axis_size, in_batched, flag):
    return any_across_vmap(jnp.any(flag)), False


def reset_ahead_env(reset, step, observe, num_envs: int, max_steps: int, **fields: Any) -> Env:
    """Return the Env of `num_envs` environments with a limit of `max_steps`, which truncates.

    `reset(key) -> inner`, `step(key, inner, action) -> inner, reward, terminated` and
    `observe(inner) -> obs` are of one environment; `fields` are Env's other fields. Episode n
    resets from fold_in(key, n). Resets are precomputed in blocks; when any seed runs low, all
    refill. Refill timing does not change any episode.
    """
    num_ahead = max(MIN_AHEAD, 2 * num_envs)
    obs = jax.eval_shape(lambda key: observe(reset(key)), jax.random.key(0))
    fields |= {"obs_shape": obs.shape, "max_steps": max_steps}

    def starts(key, first, num):
        return jax.vmap(lambda n: reset(jax.random.fold_in(key, n)))(first + jnp.arange(num))

    def reset_all(key):
        both = starts(key, 0, num_envs + num_ahead)
        states = jax.tree.map(lambda x: x[:num_envs], both)
        ahead = jax.tree.map(lambda x: x[num_envs:], both)
        first = jnp.int32(num_envs)
        inner = states, jnp.zeros(num_envs, jnp.int32), key, ahead, first, first
        return jax.vmap(observe)(states), inner

    def step_all(key_step, inner, action):
        states, time, key, ahead, first, episodes = inner
        # This must come first, or XLA would copy all precomputed resets in every step.
        ahead, first = jax.lax.cond(
            any_across_vmap(episodes - first > num_ahead - num_envs),
            lambda: (starts(key, episodes, num_ahead), episodes),
            lambda: (ahead, first),
        )
        keys = jax.random.split(key_step, num_envs)
        after, reward, terminated = jax.vmap(step)(keys, states, action)
        truncated = time + 1 >= max_steps
        done = terminated | truncated
        place = episodes - first + jnp.cumsum(done) - 1

        def where_done(start, old):
            return jnp.where(done.reshape(-1, *[1] * (old.ndim - 1)), start[place], old)

        states = jax.tree.map(where_done, ahead, after)
        episodes += jnp.sum(done, dtype=jnp.int32)
        inner = states, jnp.where(done, 0, time + 1), key, ahead, first, episodes
        obs, next_obs = jax.vmap(observe)(states), jax.vmap(observe)(after)
        return obs, inner, reward, terminated, truncated, next_obs

    return batch_env(reset_all, step_all, num_envs, is_batched=True, **fields)
