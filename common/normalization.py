"""Running statistics that bring observations and rewards to unit scale.

Each function takes None for statistics: then nothing is normalized, and they stay None.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from common.envs import Env, Transition


class Statistics(NamedTuple):
    """Count, mean and variance of all x [*shape] seen so far."""

    count: jax.Array
    mean: jax.Array
    var: jax.Array


def no_statistics(shape: tuple[int, ...]) -> Statistics:
    """Return the statistics of no data; normalizing by them changes nothing."""
    return Statistics(jnp.zeros(()), jnp.zeros(shape), jnp.ones(shape))


def no_obs_statistics(env: Env, norm_obs: bool) -> Statistics | None:
    """Return the statistics of no observations, None if not `norm_obs`."""
    if norm_obs and env.num_states is not None:
        raise ValueError("--norm-obs needs arrays; those of this --env-id are numbered states")
    if norm_obs and env.legal is not None:  # not copied
        raise ValueError("--norm-obs would scale the mask of legal actions that this --env-id has")
    return no_statistics(env.obs_shape) if norm_obs else None


def add_batch(statistics: Statistics | None, x: jax.Array) -> Statistics | None:
    """Add x [..., *shape] to the statistics (Chan et al. 1983, eq. 2.1).

    With w = n / (count + n):  mean ← mean + w Δ,  var ← (1 - w) var + w var_x + w (1 - w) Δ²
    """
    if statistics is None:
        return None
    x = x.reshape(-1, *statistics.mean.shape).astype(statistics.mean.dtype)
    count = statistics.count + len(x)
    w = len(x) / count
    change = x.mean(0) - statistics.mean
    var = (1 - w) * statistics.var + w * x.var(0) + w * (1 - w) * jnp.square(change)
    return Statistics(count, statistics.mean + w * change, var)


def normalize(statistics: Statistics | None, x: jax.Array) -> jax.Array:
    """(x - mean) / std, clipped to [-10, 10]."""
    if statistics is None:
        return x
    return jnp.clip((x - statistics.mean) / jnp.sqrt(statistics.var + 1e-8), -10, 10)


def scale_rewards(scale: Any, transitions: Transition, gamma: float) -> tuple[Any, jax.Array]:
    """Divide rewards by the standard deviation of their discounted sums; clip them to [-10, 10].

    `transitions` [T, N, ...] are a rollout's. `scale` holds the discounted sum of each episode up
    to them, [N], and the Statistics of all such sums, step by step. Return both with those of the
    rollout, and its rewards [T, N].
    """
    if scale is None:
        return None, transitions.reward

    def step(total, transition):
        total = gamma * total + transition.reward
        return jnp.where(transition.terminated | transition.truncated, 0, total), total

    total, statistics = scale
    total, totals = jax.lax.scan(step, total, transitions)
    statistics = add_batch(statistics, totals)
    assert statistics is not None  # not copied
    reward = jnp.clip(transitions.reward / jnp.sqrt(statistics.var + 1e-8), -10, 10)
    return (total, statistics), reward
