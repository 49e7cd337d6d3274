"""Evaluation of a policy."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from common.distributions import sample
from common.envs import Env

POLICIES = {"greedy": "greedy", "sample": "sampled"}  # in words, by --eval-policy
MAX_LENGTH = 100_000  # steps after which an episode of an evaluation is cut, whatever its limit


def evaluate(
    env: Env, act: Callable, params: Any, key: jax.Array, init_memory: Callable | None = None
) -> tuple[jax.Array, jax.Array]:
    """Play one whole episode of an Algorithm's `act` in each environment; the undiscounted returns
    [N] and the lengths [N]. The time limit ends an episode, or MAX_LENGTH.

    `init_memory` is the Algorithm's, and each environment begins with its memory.
    """
    key_reset, key_steps = jax.random.split(key)
    policy, initial = (act, init_memory()) if init_memory else (without_memory(act), None)

    def step(carry):
        t, state, memory, active, returns, length = carry
        key_act, key_env = jax.random.split(jax.random.fold_in(key_steps, t))
        keys = jax.random.split(key_act, env.num_envs)
        action, memory = jax.vmap(policy, (None, 0, 0, 0))(params, memory, state.obs, keys)
        state, transition = env.step(state, action, key_env)
        returns += jnp.where(active, transition.reward, 0)
        length += active
        active &= ~(transition.terminated | transition.truncated)
        return t + 1, state, memory, active, returns, length

    def unfinished(carry):
        t, _, _, active, _, _ = carry
        return (t < min(env.max_steps, MAX_LENGTH)) & jnp.any(active)

    memory = jax.tree.map(lambda x: jnp.broadcast_to(x, (env.num_envs, *x.shape)), initial)
    zeros = jnp.zeros(env.num_envs)
    start = jnp.int32(0), env.reset(key_reset), memory, zeros == 0, zeros, zeros.astype(jnp.int32)
    *_, returns, length = jax.lax.while_loop(unfinished, step, start)
    return returns, length


def can_sample(act: Callable) -> bool:
    """Return whether an Algorithm's `act` can sample from the distribution that it has learned."""
    return "choose" in inspect.signature(act).parameters


def sampled(act: Callable) -> Callable:
    """Return an Algorithm's `act` that samples from its distribution instead of taking the mode."""

    def act_at_random(*arguments):
        key_act, key_sample = jax.random.split(arguments[-1])
        return act(*arguments[:-1], key_act, choose=functools.partial(sample, key_sample))

    return act_at_random


def without_memory(act: Callable) -> Callable:
    """Return `params, memory, obs, key -> action, memory` of a policy that leaves it as it is."""
    return lambda params, memory, obs, key: (act(params, obs, key), memory)
