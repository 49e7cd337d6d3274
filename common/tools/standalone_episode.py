"""For copies with a lean `make_env`: common/envs.py's EnvState and `episode_metrics`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class EnvState(NamedTuple):
    inner: Any  # the environment's own state
    obs: jax.Array  # [N, ...] what the policy sees next, after any reset
    episode: tuple  # return and length up to the last step, and whether that ended it; each [N]


def episode_metrics(episode: tuple) -> dict[str, jax.Array]:
    """Return the mean return of the episodes that ended, NaN if none did, and how many did."""
    total, _, done = episode
    return {"episode_return": jnp.mean(total, where=done), "episodes": jnp.sum(done)}
