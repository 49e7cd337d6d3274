"""Parameters of Brax's environments from an id, see env_parameters.py: `gravity` (m/s²),
`friction_scale`, `mass_scale` and `max_steps_in_episode`.

They are replaced in the environment's System, as Brax's own domain randomisation does it.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from common.environments.env_parameters import take


class Parametrized(NamedTuple):
    """What an Env is made of, of an environment of Brax whose System changes."""

    reset: Callable  # key -> Brax's State; its info holds the values drawn for the episode
    step: Callable  # State, action -> State
    action_size: int


def with_parameters(env_id: str, env: Any, max_steps: int) -> tuple[Any, int]:
    """Return an environment and its time limit as the id under way asks for them; ValueError if it
    has no such parameter."""
    values = take(env_id, numbers_of(env, max_steps))
    if not any(values):
        return env, max_steps
    max_steps = int(values.fixed.get("max_steps_in_episode", max_steps))
    if "max_steps_in_episode" in values.ranges or max_steps < 1:
        raise ValueError("--env-params max_steps_in_episode: must be one number >= 1 for Brax")
    for end in (values.end(0), values.end(1)):
        if any(end.get(name, 1) <= 0 for name in ("friction_scale", "mass_scale")):
            raise ValueError("--env-params: friction_scale and mass_scale must be > 0")

    def changed(drawn):
        other = copy.copy(env)
        other.sys = change_system(env.sys, values.fixed | values.traced | drawn)
        return other

    def reset(key):
        key_draw, key_reset = jax.random.split(key) if values.ranges else (key, key)
        drawn = values.draw(key_draw)
        state = changed(drawn).reset(key_reset)
        return state.replace(info={**state.info, "parameters": drawn})

    def step(state, action):
        drawn = state.info["parameters"]
        after = changed(drawn).step(state, action)
        return after.replace(info={**after.info, "parameters": drawn})

    return Parametrized(reset, step, env.action_size), max_steps


def numbers_of(env: Any, max_steps: int) -> dict[str, int | float]:
    """Return what can be set of an environment."""
    known: dict[str, int | float] = {"max_steps_in_episode": max_steps}
    system = getattr(env, "sys", None)
    if system is None:  # `Fast` simulates nothing
        return known
    known |= {"gravity": round(-float(system.gravity[2]), 6), "friction_scale": 1.0}
    # Most of the `spring` and `positional` models take every mass as mass^0.
    ignores_mass = env.backend in ("spring", "positional") and system.spring_mass_scale == 1
    return known if ignores_mass else {**known, "mass_scale": 1.0}


def change_system(system: Any, values: dict[str, Any]) -> Any:
    """Return a System with other values, in the fields of Brax's physics and in those of MJX."""
    if "gravity" in values:
        down = jnp.stack([jnp.zeros(()), jnp.zeros(()), -jnp.asarray(values["gravity"], float)])
        system = system.tree_replace({"gravity": down, "opt.gravity": down})
    if "friction_scale" in values:
        scale = values["friction_scale"]
        names = ("geom_friction", "pair_friction")
        system = system.replace(**{name: getattr(system, name) * scale for name in names})
    if "mass_scale" in values:
        scale, inertia = values["mass_scale"], system.link.inertia
        names = ("body_mass", "body_inertia", "body_subtreemass")
        system = system.replace(**{name: getattr(system, name) * scale for name in names})
        inertia = inertia.replace(mass=inertia.mass * scale, i=inertia.i * scale)
        system = system.replace(link=system.link.replace(inertia=inertia))
    return system
