"""Brax's environments (Freeman et al. 2021, https://arxiv.org/abs/2106.13281) as batches that reset
themselves: `Hopper-brax`, or, with other physics than `spring`, `Hopper-brax-mjx`.

Brax's own wrapper resets every episode to the start of the first, and loses the last observation
of an episode. A full reset in every step would cost up to half of the simulation, so resets are
computed ahead.
"""

import contextlib
import functools
import io
import warnings
from difflib import get_close_matches
from typing import Any

import jax.numpy as jnp
import numpy as np

from common.environments.brax_parameters import with_parameters
from common.environments.resets import reset_ahead_env
from common.envs import Env

NAMES = {
    "Ant": "ant",
    "Fast": "fast",
    "HalfCheetah": "halfcheetah",
    "Hopper": "hopper",
    "Humanoid": "humanoid",
    "HumanoidStandup": "humanoidstandup",
    "InvertedDoublePendulum": "inverted_double_pendulum",
    "InvertedPendulum": "inverted_pendulum",
    "Pusher": "pusher",
    "Reacher": "reacher",
    "Walker2d": "walker2d",
}
BROKEN = {"Swimmer": "Brax 0.14 fails in its reset"}
BACKENDS = "spring", "generalized", "positional", "mjx"
MAX_STEPS = {"Fast": 128}  # as in Brax's tests; all others 1,000, as in its training


@functools.cache
def load(env_id: str) -> tuple[Any, int]:
    """Return Brax's environment and its time limit in steps; ValueError if there is no such id."""
    name, _, backend = env_id.partition("-brax")
    backend = backend.removeprefix("-") or BACKENDS[0]
    if name in BROKEN:
        raise ValueError(f"{env_id} does not work, {BROKEN[name]}; choose another")
    if name not in NAMES:
        close = get_close_matches(name, NAMES, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}-brax?" if close else "for example Ant-brax"
        raise ValueError(f"no environment {env_id!r} in Brax; {hint}")
    if backend not in BACKENDS:
        raise ValueError(f"{env_id}: the physics are {', '.join(BACKENDS)}, not {backend!r}")
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on import Brax warns of optional packages
        import mujoco
        from brax import envs

        # MuJoCo would write warnings about Brax's models to MUJOCO_LOG.TXT.
        mujoco.set_mju_user_warning(lambda message: None)  # pyright: ignore[reportAttributeAccessIssue]
        try:
            env = envs.get_environment(NAMES[name], backend=backend)
        finally:
            mujoco.set_mju_user_warning(None)  # pyright: ignore[reportAttributeAccessIssue]
    return env, MAX_STEPS.get(name, 1_000)


def make_brax_env(env_id: str, num_envs: int) -> Env:
    """Return `num_envs` copies of an environment of Brax; ValueError if there is no such id."""
    env, max_steps = load(env_id)
    env, max_steps = with_parameters(env_id, env, max_steps)  # copied for env_parameters

    def step(_, state, action):
        after = env.step(state, action)
        # The reward is NaN if the simulation diverged or the action is NaN.
        sound = jnp.isfinite(after.obs).all() & jnp.isfinite(action).all()
        return after, jnp.where(sound, after.reward, jnp.nan), after.done > 0

    def observe(state):
        return state.obs

    high = np.ones(env.action_size)
    bounds = {"action_shape": high.shape, "action_low": -high, "action_high": high}
    return reset_ahead_env(env.reset, step, observe, num_envs, max_steps, **bounds)
