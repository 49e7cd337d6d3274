"""Schedules and policies that explore."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from common.envs import Env
from common.networks import ILLEGAL


def linear_schedule(step: jax.Array, start: float, end: float, duration: float) -> jax.Array:
    """start + (end - start) min(step / duration, 1); unlike optax's, a sweep can trace it."""
    return start + (end - start) * jnp.minimum(step / duration, 1)


def epsilon_greedy(key: jax.Array, q_values: jax.Array, epsilon: float | jax.Array) -> jax.Array:
    """argmax_a q_values [..., A] with probability 1 - ε, else any legal action; ties at random."""
    explore, which = jax.random.uniform(key, (2, *q_values.shape[:-1]))
    least = jnp.where(explore < epsilon, -5e8, jnp.max(q_values, axis=-1))  # ILLEGAL is less
    count = jnp.cumsum(q_values >= least[..., None], axis=-1)
    return jnp.argmax(count > (which * count[..., -1])[..., None], axis=-1)


def random_policy(env: Env) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Return `policy(obs, key) -> action [N, ...]`, uniform over legal actions, or over [-1, 1]."""

    def policy(obs, key):
        if env.num_actions is None:  # copied unless actions="discrete"
            return jax.random.uniform(key, (env.num_envs, *env.action_shape), minval=-1, maxval=1)
        if env.legal is not None:  # copied for -pgx or -jumanji
            return jax.random.categorical(key, jnp.where(env.legal(obs), 0, ILLEGAL))
        return jax.random.randint(key, (env.num_envs,), 0, env.num_actions)

    return policy
