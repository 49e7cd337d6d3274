"""Make an Env from the functions of one environment."""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import jax
import jax.numpy as jnp

from common.envs import Env, EnvState, Episode, Transition


def batch_env(
    reset: Callable, step: Callable, num_envs: int, is_batched: bool = False, **fields: Any
) -> Env:
    """Return the Env of `num_envs` environments that reset themselves.

    `reset(key) -> obs, inner` and
    `step(key, inner, action) -> obs, inner, reward, terminated, truncated, next_obs`
    are of one environment, or of all if `is_batched`; `fields` are Env's other fields.
    """

    def split(key):
        return key if is_batched else jax.random.split(key, num_envs)

    reset_all, step_all = (f if is_batched else jax.vmap(f) for f in (reset, step))
    shapes = jax.eval_shape(reset_all, split(jax.random.key(0)))

    # `reset` and `step` must agree on dtypes, and neither may be weakly typed (12 of gymnax's
    # environments reset to weak types), or the State would not be a scan carry.
    def strong(tree, shapes):
        return jax.tree.map(lambda x, y: jax.lax.convert_element_type(x, y.dtype), tree, shapes)

    def reset_envs(key):
        obs, inner = strong(reset_all(split(key)), shapes)
        return EnvState(inner, obs, first_episode(num_envs))

    def step_envs(state, action, key):
        outputs = step_all(split(key), state.inner, action)
        obs, inner, reward, terminated, truncated, next_obs = outputs
        obs, inner, next_obs = strong((obs, inner, next_obs), (*shapes, shapes[0]))
        reward = reward.astype(state.episode.total.dtype)
        transition = Transition(state.obs, action, reward, next_obs, terminated, truncated)
        episode = next_episode(state.episode, reward, terminated | truncated)
        return EnvState(inner, obs, episode), transition

    return Env(reset_envs, step_envs, num_envs, **fields)


def first_episode(num_envs: int) -> Episode:
    """Return the Episodes before their first step."""
    return Episode(jnp.zeros(num_envs), jnp.zeros(num_envs, int), jnp.zeros(num_envs, bool))


def next_episode(episode: Episode, reward: jax.Array, done: jax.Array) -> Episode:
    """Return the Episodes after one more step, which ended those that are `done`."""
    total, length = (jnp.where(episode.done, 0, x) for x in (episode.total, episode.length))
    return Episode(total + reward, length + 1, done)


def lookup(table: dict[str, Any], env_id: str, what: str) -> Any:
    """Return the entry of an id, or raise ValueError with the ids that there are."""
    if env_id not in table:
        message = f"there is no {what} {env_id!r}"
        close = get_close_matches(env_id, table, n=1, cutoff=0.0)[0]  # not copied
        message += f"; did you mean {close!r}?"  # not copied
        raise ValueError(f"{message}; choose with --env-id, one of: {', '.join(table)}")
    return table[env_id]
