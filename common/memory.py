"""Policies with memory: recurrent networks, rollouts that carry a memory, sequences for replay.

The memory of a policy is a pytree, in one environment or, as [N, ...], in each of N.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from common.envs import Env, episode_metrics
from common.networks import ILLEGAL, Network, dense


def reset_memory(memory: Any, done: jax.Array, initial: Any) -> Any:
    """Return `memory` [..., *shape], and `initial` [*shape] where `done` [...]."""
    where = lambda x, first: jnp.where(done.reshape(*done.shape, *[1] * first.ndim), first, x)
    return jax.tree.map(where, memory, initial)


def rollout_with_memory(
    env: Env, policy: Callable, states: tuple, initial: Any, key: jax.Array, num_steps: int
) -> tuple:
    """Take `num_steps` steps of `policy(memory, obs, key) -> action, memory`, all [N, ...].

    `states` are the EnvState and the memory [N, ...]; where an episode ends, the memory becomes
    `initial`, that of one environment. Return both, the Transitions and the memories before each
    step [T, N, ...], and the `episode_metrics` of these steps.
    """

    def step(states, keys):
        state, before = states
        action, memory = policy(before, state.obs, keys[0])
        state, transition = env.step(state, action, keys[1])
        memory = reset_memory(memory, transition.terminated | transition.truncated, initial)
        return (state, memory), (transition, before, state.episode)

    keys = jax.random.split(key, (num_steps, 2))
    unroll = 1 if jax.default_backend() == "cpu" else max(1, min(num_steps, 8))  # fewer launches
    states, (transitions, memories, episode) = jax.lax.scan(step, states, keys, unroll=unroll)
    return states, transitions, memories, episode_metrics(episode)


class RecurrentNetwork(NamedTuple):
    init: Callable  # key -> params
    init_memory: Callable  # () -> memory at the start of an episode
    apply: Callable  # params, memory, x [..., inputs] -> y [..., outputs], memory
    unroll: Callable  # params, memory, x [T, ...], done [T, ...] -> y [T, ...], memories, memory


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
            return reset_memory(memory, done, jnp.zeros(memory_size)), memory

        memory, memories = jax.lax.scan(step, memory, (inputs(params, x), done))
        return head.apply(params[2], memories), memories, memory

    return RecurrentNetwork(init, lambda: jnp.zeros(memory_size), apply, unroll)


def with_mask(env: Env, network: RecurrentNetwork, obs_of: Callable) -> RecurrentNetwork:
    """Return the network of values of actions, ILLEGAL for what `env` forbids at obs_of(x)."""
    if (legal := env.legal) is not None:  # copied for -pgx or -jumanji

        def masked(y, x):
            mask = legal(obs_of(x))
            axes = range(mask.ndim - 1, y.ndim - 1)  # between those of x and that of actions
            return jnp.where(jnp.expand_dims(mask, tuple(axes)), y, ILLEGAL)

        def apply(params, memory, x):
            y, memory = network.apply(params, memory, x)
            return masked(y, x), memory

        def unroll(params, memory, x, done):
            y, memories, memory = network.unroll(params, memory, x, done)
            return masked(y, x), memories, memory

        return network._replace(apply=apply, unroll=unroll)
    return network


class StoredSequence(NamedTuple):
    """Steps of one environment in a row, over ends of episodes: a row of a ring of sequences."""

    memory: Any  # of the policy, before the first step
    transitions: Any  # [L, ...]


def cut_sequences(memories: Any, transitions: Any, num_steps: int, overlap: int) -> StoredSequence:
    """Cut a stream of T = K num_steps + overlap steps into K sequences of each environment.

    One begins every `num_steps` steps and has `overlap` more, which are the first of the next.
    `memories` [T, N, ...] are those before each step, `transitions` [T, N, ...]. Return memories
    [K, N, ...] and transitions [K, N, num_steps + overlap, ...]: K blocks of a ring, N rows each.
    """
    num = (len(jax.tree.leaves(transitions)[0]) - overlap) // num_steps
    starts = num_steps * np.arange(num)
    index = starts[:, None] + np.arange(num_steps + overlap)
    return StoredSequence(
        memory=jax.tree.map(lambda x: x[starts], memories),
        transitions=jax.tree.map(lambda x: jnp.swapaxes(x[index], 1, 2), transitions),
    )
