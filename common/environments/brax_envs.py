"""Brax's environments (Freeman et al. 2021, https://arxiv.org/abs/2106.13281) as batches that reset
themselves: `Hopper-brax`, or, with other physics than `spring`, `Hopper-brax-mjx`.

Brax's own wrapper resets every episode to the start of the first, and loses the last observation
of an episode. A full reset in every step would cost up to half of the simulation, so resets are
precomputed.
"""

import contextlib
import functools
import io
import warnings
from difflib import get_close_matches
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from common.environments.batching import batch_env
from common.environments.brax_parameters import with_parameters
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
MIN_AHEAD = 64  # precomputed resets; or twice the number of environments, if that is more


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


@jax.custom_batching.custom_vmap
def any_across_vmap(flag: jax.Array) -> jax.Array:
    """Return whether `flag` is set in any of the vmapped runs, as one scalar for all of them."""
    return flag


@any_across_vmap.def_vmap
def _(axis_size, in_batched, flag):
    return any_across_vmap(jnp.any(flag)), False


def make_brax_env(env_id: str, num_envs: int) -> Env:
    """Return `num_envs` copies of an environment of Brax; ValueError if there is no such id.

    Episode n resets from fold_in(key, n). Resets are precomputed in blocks; when any seed runs low,
    all refill. Refill timing does not change any episode.
    """
    env, max_steps = load(env_id)
    env, max_steps = with_parameters(env_id, env, max_steps)  # copied for env_parameters
    num_ahead = max(MIN_AHEAD, 2 * num_envs)

    def starts(key, first, num):
        return jax.vmap(lambda n: env.reset(jax.random.fold_in(key, n)))(first + jnp.arange(num))

    def reset(key):
        both = starts(key, 0, num_envs + num_ahead)
        states = jax.tree.map(lambda x: x[:num_envs], both)
        ahead = jax.tree.map(lambda x: x[num_envs:], both)
        first = jnp.int32(num_envs)
        return states.obs, (states, jnp.zeros(num_envs, jnp.int32), key, ahead, first, first)

    def step(_, inner, action):
        states, time, key, ahead, first, episodes = inner
        # This must come first, or XLA would copy all precomputed resets in every step.
        ahead, first = jax.lax.cond(
            any_across_vmap(episodes - first > num_ahead - num_envs),
            lambda: (starts(key, episodes, num_ahead), episodes),
            lambda: (ahead, first),
        )
        after = jax.vmap(env.step)(states, action)
        terminated, truncated = after.done > 0, time + 1 >= max_steps
        done = terminated | truncated
        place = episodes - first + jnp.cumsum(done) - 1

        def where_done(start, old):
            return jnp.where(done.reshape(-1, *[1] * (old.ndim - 1)), start[place], old)

        states = jax.tree.map(where_done, ahead, after)
        episodes += jnp.sum(done, dtype=jnp.int32)
        # The reward is NaN if the simulation diverged or the action is NaN.
        sound = jnp.isfinite(after.obs).all(-1) & jnp.isfinite(action).all(-1)
        reward = jnp.where(sound, after.reward, jnp.nan)
        inner = states, jnp.where(done, 0, time + 1), key, ahead, first, episodes
        return states.obs, inner, reward, terminated, truncated, after.obs

    # Brax's observation_size runs a whole reset, operation by operation.
    obs_shape = jax.eval_shape(env.reset, jax.random.key(0)).obs.shape
    high = np.ones(env.action_size)
    return batch_env(
        reset,
        step,
        num_envs,
        is_batched=True,
        obs_shape=obs_shape,
        action_shape=high.shape,
        action_low=-high,
        action_high=high,
        max_steps=max_steps,
    )
