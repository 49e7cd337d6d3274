"""Neural networks as pairs of pure functions. Parameters are lists of (weights, bias)."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from common.envs import Env


class Network(NamedTuple):
    init: Callable  # key -> params
    apply: Callable  # params, x [..., inputs] -> y [..., outputs]


def dense(key: jax.Array, num_inputs: int, num_outputs: int):
    """Weights ~ N(0, 1 / num_inputs) (LeCun et al. 1998) and a zero bias."""
    weights = jax.random.normal(key, (num_inputs, num_outputs)) / jnp.sqrt(num_inputs)
    return weights, jnp.zeros(num_outputs)


def mlp(sizes: Sequence[int], activation: Callable = jax.nn.relu) -> Network:
    """A multi-layer perceptron, linear at the end; `sizes` from the input to the output."""

    def init(key):
        keys = jax.random.split(key, len(sizes) - 1)
        return [dense(k, m, n) for k, m, n in zip(keys, sizes[:-1], sizes[1:], strict=True)]

    def apply(params, x):
        for w, b in params[:-1]:
            x = activation(x @ w + b)
        w, b = params[-1]
        return x @ w + b

    return Network(init, apply)


def conv(obs_shape: Sequence[int], hidden_sizes: Sequence[int], num_outputs: int) -> Network:
    """MinAtar's network (Young & Tian 2019, https://arxiv.org/abs/1903.03176): 16 filters of 3x3
    with stride 1 over images [..., height, width, channels], ReLU, then an MLP.

    The convolution is nine shifted copies times a matrix: `lax.conv` under a vmap over seeds
    becomes a grouped convolution, which is slow on every device.
    """
    height, width, channels = obs_shape
    filters = 16
    head = mlp([(height - 2) * (width - 2) * filters, *hidden_sizes, num_outputs])

    def init(key):
        key_conv, key_head = jax.random.split(key)
        return [dense(key_conv, 9 * channels, filters), *head.init(key_head)]

    def apply(params, x):
        w, b = params[0]
        shifts = [(i, j) for i in range(3) for j in range(3)]
        patches = [x[..., i : height - 2 + i, j : width - 2 + j, :] for i, j in shifts]
        x = jax.nn.relu(jnp.concatenate(patches, axis=-1).astype(w.dtype) @ w + b)
        return head.apply(params[1:], x.reshape(*x.shape[:-3], -1))

    return Network(init, apply)


def scaled(env: Env, network: Network) -> Network:
    """The network, which sees observations scaled from their bounds to [-1, 1]."""
    low, high = env.obs_low, env.obs_high
    if low is None:
        raise ValueError("--scale-obs needs an environment whose observations have finite bounds")

    def apply(params, obs):
        return network.apply(params, 2 * (obs - low) / (high - low) - 1)

    return Network(network.init, apply)


def orthogonal(network: Network, gain: float) -> Network:
    """The network with orthogonal weights times √2, in the last layer times `gain` (Saxe et al.
    2014, https://arxiv.org/abs/1312.6120)."""

    def init(key):
        layers = jax.eval_shape(network.init, jax.random.key(0))
        gains = [math.sqrt(2)] * (len(layers) - 1) + [gain]
        keys = jax.random.split(key, len(layers))
        return [
            (g * orthonormal(jax.random.normal(k, w.shape)), jnp.zeros(b.shape))
            for k, g, (w, b) in zip(keys, gains, layers, strict=True)
        ]

    return Network(init, network.apply)


def orthonormal(x: jax.Array) -> jax.Array:
    """The columns of x [m, n], or its rows if there are fewer, made orthonormal in turn by Gram and
    Schmidt: uniformly distributed if x is normal. A second pass removes what rounding left.

    LAPACK's QR under vmap waits on XLA's CPU threads for work that only they can do, and as many
    such calls at once as there are threads hang the program for ever.
    """
    if x.shape[0] < x.shape[1]:
        return orthonormal(x.T).T

    def column(i, q):  # whose columns from i on are 0
        v = x[:, i]
        for _ in range(2):
            v -= q @ (v @ q)
        return q.at[:, i].set(v / jnp.linalg.norm(v))

    return jax.lax.fori_loop(0, x.shape[1], column, jnp.zeros_like(x))


def network_for(
    env: Env, hidden_sizes: Sequence[int], num_outputs: int, activation: Callable = jax.nn.relu
) -> Network:
    """The network that fits the environment's observations: MinAtar's over images, else an MLP
    over vectors, flattened matrices or one-hot integers."""
    if len(env.obs_shape) == 3:
        return conv(env.obs_shape, hidden_sizes, num_outputs)
    num_inputs = env.num_states or math.prod(env.obs_shape)
    network = mlp([num_inputs, *hidden_sizes, num_outputs], activation)

    def apply(params, obs):
        return network.apply(params, as_vector(env, obs))

    return Network(network.init, apply)


def critic_for(env: Env, hidden_sizes: Sequence[int]) -> Network:
    """Q(s, a), an MLP over the observation as a vector and the action [..., A]: its `apply` takes
    params, obs, action, and gives one number for each."""
    num_inputs = (env.num_states or math.prod(env.obs_shape)) + math.prod(env.action_shape)
    network = mlp([num_inputs, *hidden_sizes, 1])

    def apply(params, obs, action):
        x = jnp.concatenate([as_vector(env, obs), action], axis=-1)
        return network.apply(params, x).squeeze(-1)

    return Network(network.init, apply)


def ensemble(network: Network, size: int) -> Network:
    """Networks with parameters of their own, stacked: the outputs have a first axis of `size`."""

    def init(key):
        return jax.vmap(network.init)(jax.random.split(key, size))

    def apply(params, *inputs):
        return jax.vmap(network.apply, (0, *[None] * len(inputs)))(params, *inputs)

    return Network(init, apply)


def as_vector(env: Env, obs) -> jax.Array:
    """Observations [..., *obs_shape] as vectors: integers one-hot, matrices flattened."""
    if env.num_states is not None:
        return jax.nn.one_hot(obs, env.num_states)
    batch_shape = obs.shape[: obs.ndim - len(env.obs_shape)]
    return obs.reshape(*batch_shape, math.prod(env.obs_shape)).astype(float)
