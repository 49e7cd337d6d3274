"""Distributions of an action, as NamedTuples of pure functions."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from common.envs import Env
from common.networks import Network


class Distribution(NamedTuple):
    """A family of distributions, each given by its parameters y: arrays [..., num_outputs]."""

    num_outputs: int
    head: Callable  # Network with num_outputs outputs -> Network whose outputs are y
    sample: Callable  # y, key -> action [..., *action_shape]
    log_prob: Callable  # y, action -> [...]
    entropy: Callable  # y -> [...]
    mode: Callable  # y -> action, the most probable one


def categorical(num_actions: int) -> Distribution:
    """Over the integers below num_actions; y are logits."""

    def log_prob(y, action):
        # A sum, not an indexed element: its gradient is a product, not a scatter.
        return jnp.sum(jax.nn.log_softmax(y) * jax.nn.one_hot(action, num_actions), axis=-1)

    def entropy(y):
        log_probs = jax.nn.log_softmax(y)
        return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)

    return Distribution(
        num_outputs=num_actions,
        head=lambda network: network,
        sample=lambda y, key: jax.random.categorical(key, y),
        log_prob=log_prob,
        entropy=entropy,
        mode=lambda y: jnp.argmax(y, axis=-1),
    )


def gaussian(action_shape: tuple[int, ...], std: float = 1.0) -> Distribution:
    """Independent normal distributions of each component; y are their means and ln std, which is
    learned, the same for all observations, and starts at that of `std`."""
    num_outputs = math.prod(action_shape)

    def head(network):
        def init(key):
            return network.init(key), jnp.zeros(num_outputs) + jnp.log(std)

        def apply(params, obs):
            return network.apply(params[0], obs), params[1]

        return Network(init, apply)

    def sample(y, key):
        mean, log_std = y
        action = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
        return action.reshape(*mean.shape[:-1], *action_shape)

    def log_prob(y, action):
        mean, log_std = y
        z = (action.reshape(mean.shape) - mean) * jnp.exp(-log_std)
        return jnp.sum(-0.5 * jnp.square(z) - log_std - 0.5 * math.log(2 * math.pi), axis=-1)

    def entropy(y):
        mean, log_std = y
        return jnp.sum(log_std + 0.5 * math.log(2 * math.pi * math.e) + 0 * mean, axis=-1)

    def mode(y):
        mean, _ = y
        return mean.reshape(*mean.shape[:-1], *action_shape)

    return Distribution(num_outputs, head, sample, log_prob, entropy, mode)


def distribution_for(env: Env, std: float) -> Distribution:
    """Categorical where actions are discrete, Gaussian, at first with that `std`, where not."""
    if env.num_actions is None:
        return gaussian(env.action_shape, std)
    return categorical(env.num_actions)
