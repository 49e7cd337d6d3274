"""Policies: distributions of an action, as NamedTuples of pure functions, and the initial weights
of the networks that parametrize them."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from common.envs import Env
from common.networks import Network


class Distribution(NamedTuple):
    """A family of distributions, each given by dist_params: arrays [..., num_outputs]."""

    num_outputs: int
    parametrize: Callable  # Network with num_outputs outputs -> Network that returns dist_params
    sample: Callable  # dist_params, key -> action [..., *action_shape]
    log_prob: Callable  # dist_params, action -> [...]
    entropy: Callable  # dist_params -> [...]
    mode: Callable  # dist_params -> action, the most probable one


def categorical(num_actions: int) -> Distribution:
    """Return the categorical distributions over 0..num_actions - 1; dist_params are logits."""

    def log_prob(dist_params, action):
        # A sum, not an indexed element: its gradient is a product, not a scatter.
        is_taken = jax.nn.one_hot(action, num_actions)
        return jnp.sum(jax.nn.log_softmax(dist_params) * is_taken, axis=-1)

    def entropy(dist_params):
        log_probs = jax.nn.log_softmax(dist_params)
        return -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)

    return Distribution(
        num_outputs=num_actions,
        parametrize=lambda network: network,
        sample=lambda dist_params, key: jax.random.categorical(key, dist_params),
        log_prob=log_prob,
        entropy=entropy,
        mode=lambda dist_params: jnp.argmax(dist_params, axis=-1),
    )


def gaussian(action_shape: tuple[int, ...], std: float = 1.0) -> Distribution:
    """Return independent normal distributions of the components; dist_params are their means and
    ln std. The latter is learned, the same for all observations, and starts at ln `std`."""
    num_outputs = math.prod(action_shape)

    def parametrize(network):
        def init(key):
            return network.init(key), jnp.zeros(num_outputs) + jnp.log(std)

        def apply(params, obs):
            return network.apply(params[0], obs), params[1]

        return Network(init, apply)

    def sample(dist_params, key):
        mean, log_std = dist_params
        action = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
        return action.reshape(*mean.shape[:-1], *action_shape)

    def log_prob(dist_params, action):
        mean, log_std = dist_params
        z = (action.reshape(mean.shape) - mean) * jnp.exp(-log_std)
        return jnp.sum(-0.5 * jnp.square(z) - log_std - 0.5 * math.log(2 * math.pi), axis=-1)

    def entropy(dist_params):
        mean, log_std = dist_params
        return jnp.sum(log_std + 0.5 * math.log(2 * math.pi * math.e) + 0 * mean, axis=-1)

    def mode(dist_params):
        mean, _ = dist_params
        return mean.reshape(*mean.shape[:-1], *action_shape)

    return Distribution(num_outputs, parametrize, sample, log_prob, entropy, mode)


def make_distribution(env: Env, std: float) -> Distribution:
    """Return `categorical` for discrete actions, else `gaussian` with that initial `std`."""
    if env.num_actions is None:
        return gaussian(env.action_shape, std)
    return categorical(env.num_actions)


def with_orthogonal_init(network: Network, gain: float) -> Network:
    """Return the network with orthogonal weights times √2, in the last layer times `gain` (Saxe et
    al. 2014, https://arxiv.org/abs/1312.6120)."""

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
