"""gymnax's environments, and those that users register with it."""

import functools
from difflib import get_close_matches
from typing import Any

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces

from common.environments.batching import batch_env
from common.envs import Env


def make_gymnax_env(env_id: str, num_envs: int) -> Env:
    """Return `num_envs` copies of a registered environment, or raise ValueError.

    MinAtar's observations of 0 and 1 become bool (replay is 4 times smaller), arrays of integers
    are scaled to [0, 1], and numbered states stay integers.
    """
    if env_id not in gymnax.registered_envs:
        message = f"no environment {env_id!r} is registered with gymnax"
        message += suggestion(env_id)  # not copied
        raise ValueError(message)
    if env_id == "MNISTBandit-bsuite":  # not copied
        raise ValueError(f"{env_id} downloads its data and is not supported; choose another")
    env, params = make_cached(env_id, jax.config.jax_enable_x64)
    with jax.ensure_compile_time_eval():  # some spaces have bounds that are JAX's arrays
        obs_space, action_space = env.observation_space(params), env.action_space(params)
    obs = jax.eval_shape(env.reset, jax.random.key(0), params)[0]
    obs_low, obs_high = getattr(obs_space, "low", None), getattr(obs_space, "high", None)
    is_scaled = jnp.issubdtype(obs.dtype, jnp.integer) and obs_low is not None

    def encode(obs):
        if env_id.endswith("-MinAtar"):  # copied for MinAtar
            return obs.astype(bool)
        return (obs - obs_low) / (obs_high - obs_low) if is_scaled else obs

    def reset(key):
        obs, inner = env.reset(key, params)
        return encode(obs), inner

    def step(key, inner, action):
        obs, inner, reward, terminated, truncated, info = env.step(key, inner, action, params)
        next_obs = encode(info["final_observation"])
        return encode(obs), inner, jnp.asarray(reward), terminated, truncated, next_obs

    fields = {"max_steps": int(getattr(params, "max_steps_in_episode", 10_000))}
    if jnp.issubdtype(obs.dtype, jnp.floating):  # copied for obs_low
        fields |= finite_bounds(obs_low, obs_high)
    if isinstance(obs_space, spaces.Discrete):
        fields["num_states"] = int(obs_space.n)
    if isinstance(action_space, spaces.Discrete):
        fields["num_actions"] = int(action_space.n)
    if isinstance(action_space, spaces.Box):  # copied unless actions="discrete"
        shape = fields["action_shape"] = tuple(action_space.shape)
        fields["action_low"] = np.broadcast_to(action_space.low, shape)
        fields["action_high"] = np.broadcast_to(action_space.high, shape)
    return batch_env(reset, step, num_envs, obs_shape=obs.shape, **fields)


def finite_bounds(low: Any, high: Any) -> dict[str, np.ndarray]:
    """Return Env's `obs_low` and `obs_high`; nothing if they are not finite or leave no room."""
    low, high = np.asarray(low, np.float32), np.asarray(high, np.float32)
    with np.errstate(over="ignore"):  # the largest floats stand for infinity
        span = high - low
    return {"obs_low": low, "obs_high": high} if np.all(np.isfinite(span) & (span > 0)) else {}


def suggestion(env_id: str) -> str:
    """Return what to choose instead of an unknown id: the nearest one, and the other families."""
    known = list(gymnax.registered_envs)
    close = get_close_matches(env_id, known, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]}?" if close else f"try {known[0]}."
    families = "<Name>-tabular, <Name>-brax, <Name>-linear, any id with -history<k>"
    return f"; {hint} There are also {families}"


# Cached, because JAX compiles for each instance: by id, and by precision, because functions that
# gymnax has jitted are not traced again.
@functools.cache
def make_cached(env_id: str, x64: bool) -> tuple[Any, Any]:
    """Return a registered environment and its params."""
    return gymnax.make(env_id)
