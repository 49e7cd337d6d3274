"""Distributions of an action, and the initial weights of the networks that return them.

A distribution is an array of logits [..., A] if actions are discrete, else a Normal.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from common.envs import Env
from common.networks import ILLEGAL, Network


class Normal(NamedTuple):
    """Independent normal distributions of the components of an action."""

    mean: jax.Array  # [..., *action_shape]
    log_std: jax.Array  # [*action_shape]


def make_policy(env: Env, network: Network, std: float) -> Network:
    """Return a network of distributions, whose logits or means are the outputs of `network`.

    The log_std of a Normal is learned, the same for all observations, and starts at ln `std`.
    """
    if env.num_actions is not None:
        return network
    init = lambda key: (network.init(key), jnp.zeros(env.action_shape) + jnp.log(std))
    return Network(init, lambda params, obs: Normal(network.apply(params[0], obs), params[1]))


def legal_only(env: Env, obs: jax.Array, values: jax.Array) -> jax.Array:
    """values of actions [..., A], or logits, and ILLEGAL for those that `env` forbids at `obs`."""
    if env.legal is not None:  # copied for -pgx or -jumanji
        return jnp.where(env.legal(obs), values, ILLEGAL)
    return values


def sample(key: jax.Array, distribution: jax.Array | Normal) -> jax.Array:
    """Draw an action [...] or [..., *action_shape]."""
    if isinstance(distribution, Normal):
        mean, log_std = distribution
        return mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
    return jax.random.categorical(key, distribution)


def log_probability(distribution: jax.Array | Normal, action: jax.Array) -> jax.Array:
    """ln π(a), or the logarithm of its density, [...]."""
    if isinstance(distribution, Normal):
        mean, log_std = distribution
        z = (action - mean) * jnp.exp(-log_std)
        return jnp.sum(-0.5 * jnp.square(z) - log_std - 0.5 * math.log(2 * math.pi), axis=-1)
    is_taken = jax.nn.one_hot(action, distribution.shape[-1])  # its gradient is no scatter
    return jnp.sum(jax.nn.log_softmax(distribution) * is_taken, axis=-1)


def entropy(distribution: jax.Array | Normal) -> jax.Array:
    """-E[ln π(a)], [...]."""
    if isinstance(distribution, Normal):
        mean, log_std = distribution
        return jnp.sum(log_std + 0.5 * math.log(2 * math.pi * math.e) + 0 * mean, axis=-1)
    log_probs = jax.nn.log_softmax(distribution)
    return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


def kl_divergence(old: jax.Array | Normal, new: jax.Array | Normal) -> jax.Array:
    """KL(π_old ‖ π) = E_old[ln π_old(a) - ln π(a)], [...]."""
    if isinstance(old, Normal) and isinstance(new, Normal):
        log_ratio = old.log_std - new.log_std
        z = (old.mean - new.mean) * jnp.exp(-new.log_std)
        per_component = 0.5 * (jnp.exp(2 * log_ratio) + jnp.square(z) - 1) - log_ratio
        return jnp.sum(per_component, axis=-1)
    assert not isinstance(old, Normal) and not isinstance(new, Normal), "both are of one kind"
    old_log_probs = jax.nn.log_softmax(old)
    return jnp.sum(jnp.exp(old_log_probs) * (old_log_probs - jax.nn.log_softmax(new)), axis=-1)


def mode(distribution: jax.Array | Normal) -> jax.Array:
    """argmax_a π(a), an action."""
    return distribution.mean if isinstance(distribution, Normal) else jnp.argmax(distribution, -1)


def with_orthogonal_init(network: Network, gain: float) -> Network:
    """Return the network with orthogonal weights times √2, in the last layer times `gain`.

    Saxe et al. 2014, https://arxiv.org/abs/1312.6120.
    """

    def init(key):
        layers = jax.eval_shape(network.init, jax.random.key(0))
        gains = [math.sqrt(2)] * (len(layers) - 1) + [gain]
        keys = jax.random.split(key, len(layers))
        return [
            (g * orthonormalize(jax.random.normal(k, w.shape)), jnp.zeros(b.shape))
            for k, g, (w, b) in zip(keys, gains, layers, strict=True)
        ]

    return Network(init, network.apply)


def orthonormalize(x: jax.Array) -> jax.Array:
    """Gram-Schmidt on the columns of x [m, n], or on its rows if there are fewer; [m, n].

    The result is uniformly distributed if x is normal. Each column is orthogonalized twice against
    rounding errors. (LAPACK's QR under vmap can deadlock XLA's CPU threads.)
    """
    if x.shape[0] < x.shape[1]:
        return orthonormalize(x.T).T

    def column(i, q):  # columns i and later of q are still 0
        v = x[:, i]
        for _ in range(2):
            v -= q @ (v @ q)
        return q.at[:, i].set(v / jnp.linalg.norm(v))

    return jax.lax.fori_loop(0, x.shape[1], column, jnp.zeros_like(x))
