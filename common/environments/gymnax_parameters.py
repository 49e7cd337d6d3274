"""gymnax's EnvParams from an id, see env_parameters.py."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces

from common.environments.env_parameters import Values, take
from common.environments.gymnax_checks import check, spaces_of

# Fields of EnvParams that gymnax computes from others, once; here they follow.
DERIVED = {
    "CartPole-v1": {
        "total_mass": lambda p: p.masscart + p.masspole,
        "polemass_length": lambda p: p.masspole * p.length,
    },
}


class Parametrized(NamedTuple):
    """What an Env is made of, of an environment of gymnax whose params change."""

    reset: Callable  # key, params -> obs, state
    step: Callable  # key, state, action, params -> as gymnax's six values
    observation_space: Callable
    action_space: Callable


def with_parameters(env_id: str, env: Any, params: Any) -> tuple[Any, Any]:
    """Return an environment and its params as the id under way asks for them; ValueError if it has
    none such, or if an algorithm cannot use it with them."""
    values = take(env_id, numbers_of(env_id, params))
    if not any(values):
        return env, params
    ends = [changed(env_id, params, values.end(i)) for i in (0, 1)]
    for end in ends:
        check(env_id, env, end)  # not copied
    low_spaces, high_spaces = (spaces_of(env, end) for end in ends)
    if not np.array_equal(bounds(low_spaces[1]), bounds(high_spaces[1])):
        raise ValueError(
            f"--env-params: a range of {', '.join(values.ranges)} would change the bounds of "
            f"actions of {env_id}; give one number"
        )
    if values.traced or values.ranges:
        spaces_now = union(low_spaces[0], high_spaces[0]), low_spaces[1]
        env = parametrized(env_id, env, values, *spaces_now)
    return env, ends[1]  # its time limit is the longest


def set_parameters(env_id: str, params: Any) -> Any:
    """Return the params that the id under way asks for; ValueError if it asks for a range."""
    values = take(env_id, numbers_of(env_id, params))
    if values.ranges:
        ranges = ", ".join(values.ranges)
        raise ValueError(f"--env-params: this algorithm takes no range of {ranges}; give a number")
    return changed(env_id, params, values.fixed | values.traced)


def numbers_of(env_id: str, params: Any) -> dict[str, int | float]:
    """Return the numbers among an environment's params, but for those that follow from others."""
    if not dataclasses.is_dataclass(params):
        return {}
    fields = {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
    known = {name: np.asarray(x) for name, x in fields.items() if np.ndim(x) == 0}
    derived = DERIVED.get(env_id, {})
    return {k: x.item() for k, x in known.items() if x.dtype.kind in "if" and k not in derived}


def changed(env_id: str, params: Any, values: dict[str, Any]) -> Any:
    """Return params with other values, and those that follow from them."""
    params = dataclasses.replace(params, **values)
    derived = {name: follow(params) for name, follow in DERIVED.get(env_id, {}).items()}
    return dataclasses.replace(params, **derived)


def parametrized(
    env_id: str, env: Any, values: Values, obs_space: Any, action_space: Any
) -> Parametrized:
    """Return an environment whose state is a pair: gymnax's, and the values drawn for the
    episode."""

    def now(params, drawn):
        return changed(env_id, params, values.traced | drawn)

    def reset(key, params):
        key_draw, key_reset = jax.random.split(key) if values.ranges else (key, key)
        drawn = values.draw(key_draw)
        obs, state = env.reset(key_reset, now(params, drawn))
        return obs, (state, drawn)

    def step(key, states, action, params):
        state, drawn = states
        key_step, key_reset = jax.random.split(key) if values.ranges else (key, key)
        obs, state, *rest = env.step(key_step, state, action, now(params, drawn))
        after = obs, (state, drawn)
        if values.ranges:  # gymnax began the next episode with the params of the last
            done = rest[1] | rest[2]
            start = reset(key_reset, params)
            after = jax.tree.map(lambda x, y: jnp.where(done, x, y), start, after)
        return *after, *rest

    return Parametrized(reset, step, lambda _: obs_space, lambda _: action_space)


def bounds(space: Any) -> np.ndarray:
    """Return the low and the high ends of a space, or the number of its members."""
    if isinstance(space, spaces.Discrete):
        return np.array(space.n)
    shape = tuple(space.shape)
    return np.stack([np.broadcast_to(np.asarray(x), shape) for x in (space.low, space.high)])


def union(space: Any, other: Any) -> Any:
    """Return the space of observations that holds those of both."""
    if isinstance(space, spaces.Discrete):
        return space
    low = np.minimum(bounds(space), bounds(other))[0]
    high = np.maximum(bounds(space), bounds(other))[1]
    return spaces.Box(low, high, space.shape, space.dtype)
