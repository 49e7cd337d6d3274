"""gymnax's environments, and those that users register with it."""

import functools
import importlib
import importlib.util
import math
import os
import re
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces

from common.environments.batching import batch_env
from common.environments.gymnax_checks import attempt, check, spaces_of
from common.environments.gymnax_parameters import with_parameters
from common.envs import Env, is_bounded

# Their observations tell the time, so the limit ends the task (Pardo et al. 2018, section 2).
TIMED = {"DiscountingChain-bsuite", "PointRobot-misc", "MetaMaze-misc"}
TIMED |= {"BernoulliBandit-misc", "GaussianBandit-misc"}

# Environments of bsuite whose id may hold their size, as DeepSea10-bsuite.
SIZED = {"DeepSea": "size", "MemoryChain": "memory_length", "UmbrellaChain": "chain_length"}


def make_gymnax_env(env_id: str, num_envs: int) -> Env:
    """Return `num_envs` copies of a registered environment; ValueError, one line, if there is none
    or if algorithms cannot use it.

    MinAtar's observations of 0 and 1 become bool (replay is 4 times smaller), arrays of integers
    become floats, scaled to [0, 1] if their bounds allow it, and numbered states stay integers.
    Continuous actions have one axis, whatever the shape of their space.
    """
    if env_id not in gymnax.registered_envs and not split_size(env_id):
        message = f"no environment {env_id!r} is registered with gymnax"
        message += suggestion(env_id)  # not copied
        raise ValueError(message)
    if env_id == "MNISTBandit-bsuite":  # not copied
        raise ValueError(f"{env_id} downloads its data and is not supported; choose another")
    env, params = make_cached(env_id, jnp.result_type(float))
    env, params = with_parameters(env_id, env, params)  # copied for env_parameters
    obs_space, action_space = spaces_of(env, params)
    obs = jax.eval_shape(env.reset, jax.random.key(0), params)[0]
    low, high = (np.asarray(getattr(obs_space, x, np.nan), float) for x in ("low", "high"))
    is_number = isinstance(obs_space, spaces.Discrete)
    is_float = jnp.issubdtype(obs.dtype, jnp.floating)
    is_integer = jnp.issubdtype(obs.dtype, jnp.integer) and not is_number
    has_room = is_bounded(low, high, most=2**24)  # float32 tells such integers apart
    offset, scale = (low, high - low) if has_room else (0, 1)

    def encode(obs):
        if env_id.endswith("-MinAtar"):  # copied for MinAtar
            return obs.astype(bool)
        if is_integer:
            return (obs - offset) / scale
        return obs.astype(float) if is_float else obs  # some are float32 in float64, too

    def reset(key):
        obs, inner = env.reset(key, params)
        return encode(obs), inner

    def step(key, inner, action):
        action = action.reshape(action_space.shape)
        if isinstance(action_space, spaces.Discrete):  # some take no int64 in float64
            action = action.astype(jnp.int32)
        obs, inner, reward, terminated, truncated, info = env.step(key, inner, action, params)
        terminated |= truncated & (env_id in TIMED)
        next_obs = encode(info["final_observation"])
        return encode(obs), inner, jnp.asarray(reward), terminated, truncated, next_obs

    fields: dict[str, Any] = {"max_steps": int(getattr(params, "max_steps_in_episode", 10_000))}
    if is_float and is_bounded(low, high):  # copied for obs_low
        fields |= {"obs_low": low.astype(np.float32), "obs_high": high.astype(np.float32)}
    if is_number:
        fields["num_states"] = int(obs_space.n)
    if isinstance(action_space, spaces.Discrete):
        fields["num_actions"] = int(action_space.n)
    if isinstance(action_space, spaces.Box):  # copied unless actions="discrete"
        shape = tuple(action_space.shape)
        fields["action_shape"] = (math.prod(shape),)
        fields["action_low"] = np.broadcast_to(action_space.low, shape).ravel()
        fields["action_high"] = np.broadcast_to(action_space.high, shape).ravel()
    return batch_env(reset, step, num_envs, obs_shape=obs.shape, **fields)


def suggestion(env_id: str) -> str:
    """Return what to choose instead of an unknown id: the nearest one, and the other families."""
    known = list(gymnax.registered_envs)
    close = get_close_matches(env_id, known, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]}?" if close else f"try {known[0]}."
    families = "-tabular, -brax, -linear, -game, -obstacles, -navix, ..."
    return f"; {hint} Also ids with {families}, -history<k> or -positions"


# Cached, because JAX compiles for each instance: by id, and by precision, because functions that
# gymnax has jitted are not traced again.
@functools.cache
def make_cached(env_id: str, precision: np.dtype) -> tuple[Any, Any]:
    """Return a registered environment and its params; ValueError if algorithms cannot use it."""
    with jax.ensure_compile_time_eval():  # some params are JAX's arrays
        env, params = attempt(f"{env_id}: gymnax.make", make_sized, env_id)
    check(env_id, env, params)  # not copied
    if getattr(env, "supports_transition_gradients", False):  # copied for make_differentiable_env
        env = env.with_transition_gradients()
    return env, params


def split_size(env_id: str) -> tuple[str, int] | None:
    """Return the name and the number in an id such as DeepSea10-bsuite; None if it has none."""
    match = re.fullmatch(rf"({'|'.join(SIZED)})([1-9][0-9]{{0,4}})-bsuite", env_id)
    return (match[1], int(match[2])) if match else None


def make_sized(env_id: str) -> tuple[Any, Any]:
    """Return a registered environment and its params, or one of bsuite of the size in its id."""
    sized = split_size(env_id)
    if sized is None:
        return gymnax.make(env_id)
    name, size = sized
    if name == "DeepSea":
        return gymnax.make("DeepSea-bsuite", size=size)
    env, params = gymnax.make(f"{name}-bsuite")
    max_steps = max(params.max_steps_in_episode, size + 1)
    return env, params.replace(**{SIZED[name]: size, "max_steps_in_episode": max_steps})


def load_module(text: str) -> None:
    """Import a module by its name, or a file by its path, such as path/to/envs.py. ValueError, one
    line, if there is none or if it fails."""
    what, file = f"--import {text}", Path(text).resolve()
    if not text.endswith(".py"):
        try:
            return attempt(what, importlib.import_module, text)
        except ValueError as error:
            missing = getattr(error.__cause__, "name", None)  # or what the module itself imports
            if not f"{text}.".startswith(f"{missing}."):
                raise
            hint = "give its name from the folder that holds it, or its file, path/to/envs.py"
            raise ValueError(f"{what}: no such module; {hint}, not from {os.getcwd()}") from error
    if not file.is_file():
        raise ValueError(f"{what}: there is no such file, from {os.getcwd()}")
    attempt(what, load_file, file)


def load_file(file: Path) -> None:
    """Run a file as a module named by its stem, once; it can import its neighbours."""
    loaded = sys.modules.get(file.stem)
    if loaded and getattr(loaded, "__file__", None) == str(file):
        return
    if loaded:
        raise ImportError(f"there is another module named {file.stem}; rename the file")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec and spec.loader, "its name ends in .py"
    module = sys.modules[file.stem] = importlib.util.module_from_spec(spec)
    sys.path.append(str(file.parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[file.stem]
        raise
