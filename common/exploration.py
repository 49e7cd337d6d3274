"""Schedules, step sizes and policies that explore."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from common.envs import Env


def linear_schedule(step: jax.Array, start: float, end: float, duration: float) -> jax.Array:
    """start + (end - start) min(step / duration, 1).

    (optax.linear_schedule compares its duration in Python, so a sweep could not trace it.)
    """
    return start + (end - start) * jnp.minimum(step / duration, 1)


def step_size(learning_rate: float, power: float, visits: jax.Array) -> jax.Array:
    """α n^-p, the step size at the n-th visit."""
    return learning_rate * visits**-power


def epsilon_greedy(key: jax.Array, q_values: jax.Array, epsilon: float) -> jax.Array:
    """argmax_a q_values [N, A] with probability 1 - ε, else a uniformly random action; [N]."""
    greedy = jnp.argmax(q_values, axis=-1)
    explore, action = jax.random.uniform(key, (2, *greedy.shape))
    random_action = (action * q_values.shape[-1]).astype(greedy.dtype)
    return jnp.where(explore < epsilon, random_action, greedy)


def epsilon_greedy_ties(key: jax.Array, q_values: jax.Array, epsilon: float) -> jax.Array:
    """argmax_a q_values [A] with probability 1 - ε, ties broken at random, else any action; []."""
    explore, which = jax.random.uniform(key, (2,))
    allowed = (q_values == jnp.max(q_values)) | (explore < epsilon)
    return jnp.argmax(jnp.cumsum(allowed) > which * jnp.sum(allowed))


def random_policy(env: Env) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Return `policy(obs, key) -> action [N, ...]`, uniform over the actions.

    Components of continuous actions are in [-1, 1]: see `scale_action`.
    """

    def policy(obs, key):
        if env.num_actions is None:  # copied unless actions="discrete"
            return jax.random.uniform(key, (env.num_envs, *env.action_shape), minval=-1, maxval=1)
        return jax.random.randint(key, (env.num_envs,), 0, env.num_actions)

    return policy
