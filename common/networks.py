"""Neural networks as pairs of pure functions. Params are lists of (weights, bias)."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from common.envs import Env

ILLEGAL = -1e9  # value, or logit, of an action that the environment forbids


class Network(NamedTuple):
    init: Callable  # key -> params
    apply: Callable  # params, x [..., inputs] -> y [..., outputs]


def dense(key: jax.Array, num_inputs: int, num_outputs: int) -> tuple[jax.Array, jax.Array]:
    """Return weights ~ N(0, 1 / num_inputs) (LeCun et al. 1998), inputs by outputs, and bias 0."""
    weights = jax.random.normal(key, (num_inputs, num_outputs)) / jnp.sqrt(num_inputs)
    return weights, jnp.zeros(num_outputs)


def mlp(sizes: Sequence[int], activation: Callable = jax.nn.relu) -> Network:
    """Return a multi-layer perceptron with a linear last layer; `sizes` from input to output."""

    def init(key):
        keys = jax.random.split(key, len(sizes) - 1)
        return [dense(k, m, n) for k, m, n in zip(keys, sizes[:-1], sizes[1:], strict=True)]

    def apply(params, x):
        for w, b in params[:-1]:
            x = activation(x @ w + b)
        w, b = params[-1]
        if 4 * w.shape[1] <= w.shape[0] and jax.default_backend() == "cpu":
            w = jax.lax.optimization_barrier(w.T).T  # ∂w as gᵀx: xᵀg can take 10 times as long
        return x @ w + b

    return Network(init, apply)


def conv(obs_shape: Sequence[int], hidden_sizes: Sequence[int], num_outputs: int) -> Network:
    """Return MinAtar's network (Young & Tian 2019, https://arxiv.org/abs/1903.03176): 16 filters of
    3x3 with stride 1 over images [..., height, width, channels], ReLU, then an MLP.

    The convolution is nine shifted copies times a matrix: `lax.conv` under a vmap over seeds
    becomes a grouped convolution, which is slow on every device.
    """
    height, width, channels = obs_shape
    filters = 16
    tail = mlp([(height - 2) * (width - 2) * filters, *hidden_sizes, num_outputs])

    def init(key):
        key_conv, key_tail = jax.random.split(key)
        return [dense(key_conv, 9 * channels, filters), *tail.init(key_tail)]

    def apply(params, x):
        w, b = params[0]
        shifts = [(i, j) for i in range(3) for j in range(3)]
        patches = [x[..., i : height - 2 + i, j : width - 2 + j, :] for i, j in shifts]
        x = jax.nn.relu(jnp.concatenate(patches, axis=-1).astype(w.dtype) @ w + b)
        return tail.apply(params[1:], x.reshape(*x.shape[:-3], -1))

    return Network(init, apply)


def make_network(
    env: Env, hidden_sizes: Sequence[int], num_outputs: int = 0, activation: Callable = jax.nn.relu
) -> Network:
    """Return `conv` for images larger than its filters, else an MLP over `as_vector`.

    Outputs are by default one for each action, ILLEGAL for what `env` forbids (Huang & Ontañón
    2022, https://arxiv.org/abs/2006.14171), or for each component of a continuous action.
    """
    if not num_outputs and (legal := env.legal) is not None:  # copied for -pgx or -jumanji
        network = make_network(env, hidden_sizes, env.num_actions or 0, activation)
        apply = lambda params, obs: jnp.where(legal(obs), network.apply(params, obs), ILLEGAL)
        return Network(network.init, apply)
    num_outputs = num_outputs or env.num_actions or math.prod(env.action_shape)
    if len(env.obs_shape) == 3 and min(env.obs_shape[:2]) > 3:  # copied for MinAtar
        return conv(env.obs_shape, hidden_sizes, num_outputs)
    net = mlp([env.num_states or math.prod(env.obs_shape), *hidden_sizes, num_outputs], activation)
    return Network(net.init, lambda params, obs: net.apply(params, as_vector(env, obs)))


def make_q_network(env: Env, hidden_sizes: Sequence[int]) -> Network:
    """Return Q(s, a), an MLP over the observation and the action; discrete actions are one-hot.

    `apply(params, obs [..., *obs_shape], action)` returns one number for each pair, [...].
    """
    num_inputs = env.num_states or math.prod(env.obs_shape)
    num_inputs += env.num_actions or math.prod(env.action_shape)
    network = mlp([num_inputs, *hidden_sizes, 1])

    def apply(params, obs, action):
        if env.num_actions is not None:
            action = jax.nn.one_hot(action, env.num_actions)
        x = jnp.concatenate([as_vector(env, obs), action], axis=-1)
        return network.apply(params, x).squeeze(-1)

    return Network(network.init, apply)


def ensemble(network: Network, size: int) -> Network:
    """Return `size` copies of the network: their params and outputs have a leading axis [size]."""

    def init(key):
        return jax.vmap(network.init)(jax.random.split(key, size))

    def apply(params, *inputs):
        return jax.vmap(network.apply, (0, *[None] * len(inputs)))(params, *inputs)

    return Network(init, apply)


def as_vector(env: Env, obs: jax.Array) -> jax.Array:
    """Return observations [..., *obs_shape] as vectors: integers one-hot, matrices flattened."""
    if env.num_states is not None:
        return jax.nn.one_hot(obs, env.num_states)
    return obs.reshape(*obs.shape[: obs.ndim - len(env.obs_shape)], -1).astype(float)
