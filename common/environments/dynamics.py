"""Differentiable dynamics of an environment, for planners."""

from collections.abc import Callable
from typing import NamedTuple

import gymnax
import jax
import jax.numpy as jnp

from common.environments.gymnax_envs import load
from common.environments.linear import as_floats, make_system, mean_state, stage_cost


class Dynamics(NamedTuple):
    """A differentiable step without noise, time limit or reset.

    x holds the float leaves of EnvState.inner; integer leaves keep their reset value.
    """

    numbers: Callable  # inner -> x [n], of one environment
    step: Callable  # x, action -> x, reward, terminated


def make_dynamics(env_id: str) -> Dynamics:
    """Return the dynamics of a linear system, or of a gymnax environment that has transition
    gradients; ValueError for others."""
    if env_id.endswith("-linear"):
        with jax.ensure_compile_time_eval():
            system = as_floats(make_system(env_id))

        def linear(x, action):
            after = mean_state(system, x, action)
            return after, -stage_cost(system, x, action), jnp.bool_(False)

        return Dynamics(lambda inner: inner[0], linear)

    env, params = gymnax.make(env_id)
    if not env.supports_transition_gradients:
        raise ValueError(
            f"{env_id} has no transition gradients; this algorithm needs them, "
            "as Pendulum-v1 has them or any <name>-linear"
        )
    env = env.with_transition_gradients()
    reset, _, _ = load(env_id, jax.config.jax_enable_x64)
    with jax.ensure_compile_time_eval():
        leaves, tree = jax.tree.flatten(reset(jax.random.key(0))[1])
    is_real = [jnp.issubdtype(jnp.result_type(x), jnp.floating) for x in leaves]

    def numbers(inner):
        real = [x for x, yes in zip(jax.tree.leaves(inner), is_real, strict=True) if yes]
        return jnp.concatenate([jnp.ravel(x).astype(float) for x in real])

    def step(x, action):
        parts, at = [], 0
        for leaf, yes in zip(leaves, is_real, strict=True):
            size = jnp.size(leaf) * yes
            parts.append(x[at : at + size].reshape(jnp.shape(leaf)) if yes else leaf)
            at += size
        inner = jax.tree.unflatten(tree, parts)
        _, inner, reward, terminated, _ = env.step_env(jax.random.key(0), inner, action, params)
        return numbers(inner), reward, terminated

    return Dynamics(numbers, step)
