"""Neural networks as pairs of pure functions. Params are lists of (weights, bias)."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from common.envs import Env, reset_memory


class Network(NamedTuple):
    init: Callable  # key -> params
    apply: Callable  # params, x [..., inputs] -> y [..., outputs]


class RecurrentNetwork(NamedTuple):
    init: Callable  # key -> params
    init_memory: Callable  # () -> memory at the start of an episode
    apply: Callable  # params, memory, x [..., inputs] -> y [..., outputs], memory
    unroll: Callable  # params, memory, x [T, ...], done [T, ...] -> y [T, ...], memories, memory


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
    env: Env, hidden_sizes: Sequence[int], num_outputs: int, activation: Callable = jax.nn.relu
) -> Network:
    """Return `conv` for images that its filters fit into, else an MLP over `as_vector`."""
    if len(env.obs_shape) == 3 and min(env.obs_shape[:2]) >= 3:  # copied for MinAtar
        return conv(env.obs_shape, hidden_sizes, num_outputs)
    num_inputs = env.num_states or math.prod(env.obs_shape)
    network = mlp([num_inputs, *hidden_sizes, num_outputs], activation)
    return Network(network.init, lambda params, obs: network.apply(params, as_vector(env, obs)))


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


def gru(weights: jax.Array, inputs: jax.Array, memory: jax.Array) -> jax.Array:
    """h ← z ⊙ h + (1 - z) ⊙ tanh(x₃ + (r ⊙ h) U₃) with r = σ(x₁ + h U₁) and z = σ(x₂ + h U₂).

    Gated recurrent unit, Cho et al. 2014, eq. 5 to 8, https://arxiv.org/abs/1406.1078. `weights`
    U [H, 3 H], `inputs` x [..., 3 H], `memory` h [..., H].
    """
    size = memory.shape[-1]
    gates = jax.nn.sigmoid(inputs[..., : 2 * size] + memory @ weights[:, : 2 * size])
    r, z = gates[..., :size], gates[..., size:]
    new = jnp.tanh(inputs[..., 2 * size :] + (r * memory) @ weights[:, 2 * size :])
    return z * memory + (1 - z) * new


def recurrent(
    encoder: Network, num_features: int, memory_size: int, head: Network, max_steps: int = 1
) -> RecurrentNetwork:
    """Return a network whose `head` sees the memory [..., memory_size] of a `gru`, which sees the
    `num_features` outputs of an `encoder`.

    `unroll` resets the memory after each step that is `done`. It returns the memories after each
    step, [T, ...], before any reset, and the memory to go on with. The bias of z is ln u at first,
    u ~ U(1, max_steps), so that a memory decays over 1 + u steps (chrono initialization, Tallec &
    Ollivier 2018, https://arxiv.org/abs/1804.11188).
    """

    def init(key):
        key_encoder, key_inputs, key_memory, key_bias, key_head = jax.random.split(key, 5)
        w, b = dense(key_inputs, num_features, 3 * memory_size)
        steps = jax.random.uniform(key_bias, (memory_size,), minval=1, maxval=max_steps)
        b = b.at[memory_size : 2 * memory_size].set(jnp.log(steps))
        u, _ = dense(key_memory, memory_size, 3 * memory_size)
        return encoder.init(key_encoder), (w, b, u), head.init(key_head)

    def init_memory():
        return jnp.zeros(memory_size)

    def inputs(params, x):
        w, b, _ = params[1]
        return encoder.apply(params[0], x) @ w + b

    def apply(params, memory, x):
        memory = gru(params[1][2], inputs(params, x), memory)
        return head.apply(params[2], memory), memory

    def unroll(params, memory, x, done):
        def step(memory, step_inputs):
            x, done = step_inputs
            memory = gru(params[1][2], x, memory)
            return reset_memory(memory, done, init_memory()), memory

        memory, memories = jax.lax.scan(step, memory, (inputs(params, x), done))
        return head.apply(params[2], memories), memories, memory

    return RecurrentNetwork(init, init_memory, apply, unroll)


def as_vector(env: Env, obs: jax.Array) -> jax.Array:
    """Return observations [..., *obs_shape] as vectors: integers one-hot, matrices flattened."""
    if env.num_states is not None:
        return jax.nn.one_hot(obs, env.num_states)
    return obs.reshape(*obs.shape[: obs.ndim - len(env.obs_shape)], -1).astype(float)
