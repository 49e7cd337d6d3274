"""Running statistics that bring observations and rewards to unit scale, as pure functions."""

from collections.abc import Callable
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


def add_batch(statistics: Statistics, x: jax.Array) -> Statistics:
    """Add x [..., *shape] to the statistics (Chan et al. 1983, eq. 2.1).

    With w = n / (count + n):  mean ← mean + w Δ,  var ← (1 - w) var + w var_x + w (1 - w) Δ²
    """
    x = x.reshape(-1, *statistics.mean.shape).astype(statistics.mean.dtype)
    count = statistics.count + len(x)
    w = len(x) / count
    change = x.mean(0) - statistics.mean
    var = (1 - w) * statistics.var + w * x.var(0) + w * (1 - w) * jnp.square(change)
    return Statistics(count, statistics.mean + w * change, var)


class Normalizer(NamedTuple):
    """Normalizes observations."""

    init: Callable  # () -> statistics
    add: Callable  # statistics, obs [..., *obs_shape] -> statistics
    apply: Callable  # statistics, obs -> what the networks see


def obs_normalizer(env: Env, norm_obs: bool) -> Normalizer:
    """(obs - mean) / std, clipped to [-10, 10]; the identity if not `norm_obs`."""
    if not norm_obs:
        return Normalizer(lambda: (), lambda statistics, obs: (), lambda statistics, obs: obs)
    if env.num_states is not None:
        raise ValueError("--norm-obs needs observations that are arrays, not numbered states")

    def apply(statistics, obs):
        std = jnp.sqrt(statistics.var + 1e-8)
        return jnp.clip((obs - statistics.mean) / std, -10, 10)

    return Normalizer(lambda: no_statistics(env.obs_shape), add_batch, apply)


class RewardScaler(NamedTuple):
    """Scales the rewards of a rollout."""

    init: Callable  # () -> state
    apply: Callable  # state, transitions [T, N, ...], gamma -> state, reward [T, N]


def reward_scaler(env: Env, norm_reward: bool) -> RewardScaler:
    """Divide rewards by the standard deviation of their discounted running sum, which restarts with
    each episode, and clip them to [-10, 10]; the identity if not `norm_reward`."""
    if not norm_reward:
        return RewardScaler(lambda: (), lambda state, transitions, gamma: ((), transitions.reward))

    def init() -> tuple[Any, Statistics]:
        return jnp.zeros(env.num_envs), no_statistics(())

    def apply(state, transitions: Transition, gamma):
        def step(total, inputs):
            reward, done = inputs
            total = gamma * total + reward
            return jnp.where(done, 0, total), total

        total, statistics = state
        done = transitions.terminated | transitions.truncated
        total, totals = jax.lax.scan(step, total, (transitions.reward, done))
        statistics = add_batch(statistics, totals)
        reward = jnp.clip(transitions.reward / jnp.sqrt(statistics.var + 1e-8), -10, 10)
        return (total, statistics), reward

    return RewardScaler(init, apply)
