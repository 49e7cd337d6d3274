"""Differentiable dynamics of an environment, for planners."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from common.environments.env_parameters import asking, split_id
from common.environments.linear import make_system, mean_state, stage_cost
from common.environments.obstacles import make_room, step_robot


class Dynamics(NamedTuple):
    """A differentiable step without noise, time limit or reset.

    x holds the float leaves of EnvState.inner; integer leaves keep their reset value.
    """

    numbers: Callable  # inner -> x [n], of one environment
    step: Callable  # x [n], action [m] -> x [n], reward, terminated


def make_dynamics(env_id: str) -> Dynamics:
    """Return the dynamics of a linear system or a gymnax environment with transition gradients.

    Those of a room with obstacles, too. ValueError for all others, and for ranges of parameters.
    """
    if "+" in env_id:  # copied for env_parameters
        base, texts = split_id(env_id)
        with asking(texts):
            return make_dynamics(base)
    if env_id.endswith("-obstacles"):  # copied for -obstacles
        return obstacles_dynamics(env_id)
    return linear_dynamics(env_id) if env_id.endswith("-linear") else gymnax_dynamics(env_id)


def linear_dynamics(env_id: str) -> Dynamics:
    """Return the dynamics of a linear system without its noise; `inner` is (x, time)."""
    with jax.ensure_compile_time_eval():
        system = make_system(env_id)

    def numbers(inner):
        return inner[0]

    def step(x, action):
        next_x = mean_state(system, x, action)
        return next_x, -stage_cost(system, x, action), jnp.bool_(False)

    return Dynamics(numbers, step)


def obstacles_dynamics(env_id: str) -> Dynamics:
    """Return the dynamics of a robot among obstacles; `inner` is (x, time)."""
    room = make_room(env_id)
    return Dynamics(lambda inner: inner[0], lambda x, action: step_robot(room, x, action))


def gymnax_dynamics(env_id: str) -> Dynamics:
    """Return the dynamics of a gymnax environment, or raise ValueError without its gradients."""
    # Imports gymnax, for which `--help` need not wait.
    from common.environments.gymnax_envs import gymnax, make_cached
    from common.environments.gymnax_parameters import set_parameters

    is_known = env_id in gymnax.registered_envs
    env, params = make_cached(env_id, jnp.result_type(float)) if is_known else (None, None)
    if env is None or not getattr(env, "supports_transition_gradients", False):
        raise ValueError(
            f"{env_id} has no transition gradients; this algorithm needs them, "
            "as Pendulum-v1 has them or any <name>-linear"
        )
    with jax.ensure_compile_time_eval():
        leaves, tree = jax.tree.flatten(env.reset(jax.random.key(0), params)[1])
        action_shape = env.action_space(params).shape
    params = set_parameters(env_id, params)  # copied for env_parameters
    env = env.with_transition_gradients()
    is_float = [jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves]

    def numbers(inner):
        pairs = zip(jax.tree.leaves(inner), is_float, strict=True)
        return jnp.concatenate([jnp.ravel(x).astype(float) for x, varies in pairs if varies])

    def step(x, action):
        filled, start = [], 0
        for leaf, varies in zip(leaves, is_float, strict=True):
            if varies:
                stop = start + jnp.size(leaf)
                leaf = x[start:stop].reshape(jnp.shape(leaf))
                start = stop
            filled.append(leaf)
        inner = jax.tree.unflatten(tree, filled)
        action = action.reshape(action_shape)
        _, inner, reward, terminated, _ = env.step_env(jax.random.key(0), inner, action, params)
        return numbers(inner), reward, terminated

    return Dynamics(numbers, step)
