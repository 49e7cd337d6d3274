"""From one environment to `num_envs` copies that reset themselves."""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import jax
import jax.numpy as jnp

from common.envs import Env, EnvState, Transition


def batch_env(reset: Callable, step: Callable, num_envs: int, **spaces) -> Env:
    """Return `num_envs` copies of one environment that resets itself.

    `reset(key) -> obs, inner` and
    `step(key, inner, action) -> obs, inner, reward, terminated, truncated, next_obs`
    are of one environment; `spaces` are Env's other fields.
    """

    def reset_all(key):
        return jax.vmap(reset)(jax.random.split(key, num_envs))

    def step_all(key, inner, action):
        return jax.vmap(step)(jax.random.split(key, num_envs), inner, action)

    return env_of_batch(reset_all, step_all, num_envs, **spaces)


def env_of_batch(reset_all: Callable, step_all: Callable, num_envs: int, **spaces) -> Env:
    """Return the Env of a `reset` and a `step` that are batched already, as in `batch_env`."""
    # Resets and steps must agree on dtypes, and neither may be weakly typed (12 of gymnax's
    # environments reset to weak types), or the State would not be a scan carry.
    dtypes = jax.tree.map(lambda x: x.dtype, jax.eval_shape(reset_all, jax.random.key(0)))

    def strong(tree, dtypes):
        return jax.tree.map(lambda x, dtype: jax.lax.convert_element_type(x, dtype), tree, dtypes)

    def reset(key):
        obs, inner = strong(reset_all(key), dtypes)
        zero = jnp.zeros(num_envs)
        return EnvState(inner, obs, running_return=zero, episode_return=zero + jnp.nan)

    def step(state, action, key):
        obs, inner, reward, terminated, truncated, next_obs = step_all(key, state.inner, action)
        obs, inner = strong((obs, inner), dtypes)
        reward = reward.astype(state.running_return.dtype)
        done = terminated | truncated
        total = state.running_return + reward
        transition = Transition(
            obs=state.obs,
            action=action,
            reward=reward,
            next_obs=strong(next_obs, dtypes[0]),
            terminated=terminated,
            truncated=truncated,
        )
        return EnvState(
            inner,
            obs,
            running_return=jnp.where(done, 0, total),
            episode_return=jnp.where(done, total, jnp.nan),
        ), transition

    return Env(reset, step, num_envs, **spaces)


def lookup(table: dict[str, Any], env_id: str, what: str) -> Any:
    """Return the entry of that id, or raise ValueError with the nearest id and the list of all."""
    if env_id not in table:
        closest = get_close_matches(env_id, table, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"there is no {what} {env_id!r}; did you mean {closest!r}? "
            f"Choose with --env-id, one of: {', '.join(table)}"
        )
    return table[env_id]
