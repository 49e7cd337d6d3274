"""The rules by which episodes terminate, as functions of an observation, for learned models."""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp


def never(obs: jax.Array) -> jax.Array:
    """No observation ends an episode."""
    return jnp.zeros((), bool)


TERMINATIONS = {  # of the first pattern that matches the whole id
    "Pendulum-v1|PointRobot-misc|Reacher-misc|Swimmer-misc|.+-linear": never,
    "(Fast|HalfCheetah|HumanoidStandup|Pusher|Reacher)-brax(-[a-z]+)?": never,
    "InvertedPendulum-brax(-[a-z]+)?": lambda obs: jnp.abs(obs[1]) > 0.2,  # the pole's angle (rad)
    "MountainCarContinuous-v0": lambda obs: (obs[0] >= 0.45) & (obs[1] >= 0),  # place, velocity
}


def make_termination(env_id: str) -> Callable:
    """Return `terminates(obs) -> bool`, of the observation that a step leads to.

    ValueError if it is not known for that id.
    """
    for pattern, terminates in TERMINATIONS.items():
        if re.fullmatch(pattern, env_id):
            return terminates
    raise ValueError(
        f"{env_id}: it is not known when its episodes terminate; this algorithm needs to know, "
        "as it does for Pendulum-v1"
    )
