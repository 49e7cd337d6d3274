"""gymnax's environments, and all that users register with it."""

import functools
from collections.abc import Callable
from difflib import get_close_matches

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces

from common.environments.batching import batch_env
from common.envs import Env


def make_gymnax_env(env_id: str, num_envs: int) -> Env:
    """Return `num_envs` copies of a registered environment, or raise ValueError."""
    reset, step, fields = load(env_id, jax.config.jax_enable_x64)
    return batch_env(reset, step, num_envs, **fields)


@functools.cache
def load(env_id: str, x64: bool):
    """Return `reset`, `step` and Env's other fields of one environment, as `batch_env` takes them.

    Cached by id, because two instances would compile twice, and by precision, because gymnax's
    functions are jitted and would not be traced again.
    """
    if env_id not in gymnax.registered_envs:
        known = list(gymnax.registered_envs)
        close = get_close_matches(env_id, known, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}?" if close else f"for example {known[0]}"
        raise ValueError(f"no environment {env_id!r} is registered with gymnax; {hint}")
    if env_id == "MNISTBandit-bsuite":
        raise ValueError(f"{env_id} downloads its data and is not supported; choose another")
    env, params = gymnax.make(env_id)
    with jax.ensure_compile_time_eval():  # some spaces have bounds that are JAX's arrays
        obs_space, action_space = env.observation_space(params), env.action_space(params)
    obs = jax.eval_shape(env.reset, jax.random.key(0), params)[0]
    discrete = isinstance(action_space, spaces.Discrete)
    encode = encoder(env_id, obs, obs_space)
    obs_low, obs_high = obs_bounds(obs, obs_space)

    def reset(key):
        obs, inner = env.reset(key, params)
        return encode(obs), inner

    def step(key, inner, action):
        obs, inner, reward, terminated, truncated, info = env.step(key, inner, action, params)
        next_obs = encode(info["final_observation"])
        return encode(obs), inner, jnp.asarray(reward), terminated, truncated, next_obs

    fields = {
        "obs_shape": obs.shape,
        "num_states": obs_space.n if isinstance(obs_space, spaces.Discrete) else None,
        "num_actions": int(action_space.n) if discrete else None,
        "action_shape": tuple(action_space.shape),
        "action_low": None if discrete else np.broadcast_to(action_space.low, action_space.shape),
        "action_high": None if discrete else np.broadcast_to(action_space.high, action_space.shape),
        "max_steps": int(getattr(params, "max_steps_in_episode", 10_000)),
        "obs_low": obs_low,
        "obs_high": obs_high,
    }
    return reset, step, fields


def obs_bounds(obs: jax.ShapeDtypeStruct, obs_space: spaces.Box):
    """Return the lowest and the highest observation, or None twice if a bound is not finite."""
    if not jnp.issubdtype(obs.dtype, jnp.floating):
        return None, None
    low, high = np.asarray(obs_space.low, np.float32), np.asarray(obs_space.high, np.float32)
    with np.errstate(over="ignore"):  # to infinity, if they are the largest floats
        span = high - low
    return (low, high) if np.all(np.isfinite(span) & (span > 0)) else (None, None)


def encoder(env_id: str, obs: jax.ShapeDtypeStruct, obs_space: spaces.Box) -> Callable:
    """Return `obs -> obs`: MinAtar's 0/1 floats as bool (replay is 4 times smaller), integers
    scaled to [0, 1], but the states of a Discrete space as they are (networks see them one-hot)."""
    if env_id.endswith("-MinAtar"):
        return lambda obs: obs.astype(bool)
    if jnp.issubdtype(obs.dtype, jnp.integer) and hasattr(obs_space, "low"):
        low, high = np.asarray(obs_space.low), np.asarray(obs_space.high)
        return lambda obs: (obs - low) / (high - low)
    return lambda obs: obs
