"""What algorithms need of an environment of gymnax. Looks at spaces, shapes and dtypes, and runs
nothing."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import environment, spaces


def check(env_id: str, env: Any, params: Any) -> None:
    """Raise ValueError, one line, if algorithms cannot use an environment. One whose params have no
    time limit gets none."""
    try:
        check_parts(env, params)
    except ValueError as error:
        raise ValueError(f"{env_id}: {error}") from error


def check_parts(env: Any, params: Any) -> None:
    """Check the spaces, the time limit, and what `reset` and `step` return."""
    obs_space, action_space = spaces_of(env, params)
    check_spaces(obs_space, action_space)
    if not hasattr(params, "max_steps_in_episode"):
        is_truncated = getattr(type(env), "is_truncated", None)
        if is_truncated is environment.Environment.is_truncated:  # which reads it
            env.is_truncated = lambda state, params: jnp.bool_(False)
    limit = np.asarray(getattr(params, "max_steps_in_episode", 1))
    is_number = limit.shape == () and limit.dtype.kind in "iuf"
    if not (is_number and 1 <= limit < 2**31 and limit % 1 == 0):
        wanted = "a whole number above 0 and below 2^31"
        raise ValueError(f"max_steps_in_episode is {limit}: it must be {wanted}")
    start = attempt("reset", jax.eval_shape, lambda key: env.reset(key, params), jax.random.key(0))
    if not (isinstance(start, tuple) and len(start) == 2):
        raise ValueError("reset must return two values: observation, state")
    check_observation(start[0], obs_space)
    check_step(env, params, *start, action_space)


def check_spaces(obs_space: Any, action_space: Any) -> None:
    """Check the kinds of both spaces, and the shape and the bounds of actions."""
    for name, space in (("observation", obs_space), ("action", action_space)):
        if not isinstance(space, spaces.Box | spaces.Discrete):
            kind = type(space).__name__
            raise ValueError(f"the {name} space is a {kind}: it must be Discrete or one Box")
        if isinstance(space, spaces.Discrete) and space.n < 1:
            raise ValueError(f"the {name} space is {space}: it must hold at least one number")
    if isinstance(action_space, spaces.Discrete):
        return
    shape, dtype = tuple(action_space.shape), np.dtype(action_space.dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        hint = "use Discrete, or a Box of floats that step_env rounds"
        raise ValueError(f"the action space is a Box of {dtype}: {hint}")
    if math.prod(shape) == 0:
        raise ValueError(f"actions have shape {shape}: there is nothing to choose")
    low = attempt("the action space", np.broadcast_to, action_space.low, shape)
    high = attempt("the action space", np.broadcast_to, action_space.high, shape)
    if not np.all(low <= high):
        raise ValueError("the action space has a low above its high, or NaN")


def check_observation(obs: Any, obs_space: Any) -> None:
    """Check what `reset` returns first."""
    if not isinstance(obs, jax.ShapeDtypeStruct):
        hint = "it must be one array; join its parts with jnp.concatenate"
        raise ValueError(f"the observation is a {type(obs).__name__}: {hint}")
    is_integer = jnp.issubdtype(obs.dtype, jnp.integer)
    if not (is_integer or obs.dtype == bool or jnp.issubdtype(obs.dtype, jnp.floating)):
        raise ValueError(f"the observation is {obs.dtype}: it must be real, integer or bool")
    if math.prod(obs.shape) == 0:
        raise ValueError(f"the observation has shape {obs.shape}: it must hold at least one number")
    if isinstance(obs_space, spaces.Discrete):
        if not (is_integer and obs.shape == ()):
            found = f"{obs.dtype}{list(obs.shape)}"
            raise ValueError(f"the observation is {found}: a Discrete space needs one integer")
    else:
        for bound in (obs_space.low, obs_space.high):
            attempt("the observation space", np.broadcast_to, bound, obs.shape)


def check_step(env: Any, params: Any, obs: Any, state: Any, action_space: Any) -> None:
    """Check what `step` returns, or, if that is gymnax's own, what `step_env` returns."""
    names = ["observation", "state", "reward", "terminated", "truncated", "info"]
    action = jax.ShapeDtypeStruct((), jnp.int32)
    if isinstance(action_space, spaces.Box):
        action = jax.ShapeDtypeStruct(tuple(action_space.shape), jnp.result_type(float))
    function, wanted = "step", "six"
    if getattr(type(env), "step", None) is environment.Environment.step:
        function, wanted = "step_env", "five"
        names.remove("truncated")
    step = lambda key, state, action: getattr(env, function)(key, state, action, params)
    values = attempt(function, jax.eval_shape, step, jax.random.key(0), state, action)
    number = len(values) if isinstance(values, tuple) else 1
    if number != len(names):
        wanted += f": {', '.join(names)}"
        raise ValueError(f"{function} returns {number} values, not {wanted}")
    next_obs, next_state, reward, *flags, info = values
    problems = [*compare("the observation", obs, next_obs)]
    problems += compare("the state", state, next_state)
    if function == "step_env":
        is_truncated = lambda state: env.is_truncated(state, params)
        flags += [attempt("is_truncated", jax.eval_shape, is_truncated, next_state)]
    elif not isinstance(info, dict) or "final_observation" not in info:
        problems.append('info has no "final_observation", the observation before the reset')
    else:
        problems += compare('info["final_observation"]', obs, info["final_observation"])
    terminated, truncated = flags
    problems += check_scalars({"reward": reward, "terminated": terminated, "truncated": truncated})
    if problems:
        raise ValueError(problems[0])


def compare(what: str, old: Any, new: Any) -> Iterator[str]:
    """Yield each difference in structure, shape or dtype between what `reset` and `step` return."""
    if jax.tree.structure(old) != jax.tree.structure(new):
        yield f"{what} of step has another structure than that of reset"
        return
    leaves = jax.tree_util.tree_leaves_with_path(old)
    for (path, x), y in zip(leaves, jax.tree.leaves(new), strict=True):
        if (x.shape, x.dtype) != (y.shape, y.dtype):
            name = jax.tree_util.keystr(path).lstrip(".")
            where = f"{what}'s {name}" if name else what
            before, after = f"{x.dtype}{list(x.shape)}", f"{y.dtype}{list(y.shape)}"
            yield f"{where} is {before} after reset and {after} after step"


def check_scalars(scalars: dict[str, Any], shape: tuple[int, ...] = ()) -> Iterator[str]:
    """Yield what is wrong with a reward or a flag: each is one number, and a flag is bool."""
    for name, x in scalars.items():
        if getattr(x, "shape", None) != shape:
            found = getattr(x, "shape", type(x).__name__)
            yield f"{name} has shape {found}: it must be one number, shape {shape}"
        elif name != "reward" and x.dtype != bool:
            yield f"{name} is {x.dtype}: it must be bool"


def spaces_of(env: Any, params: Any) -> tuple[Any, Any]:
    """Return the spaces of observations and of actions."""
    with jax.ensure_compile_time_eval():  # some have bounds that are JAX's arrays
        obs_space = attempt("observation_space(params)", env.observation_space, params)
        return obs_space, attempt("action_space(params)", env.action_space, params)


def attempt(what: str, function: Callable, *arguments: Any) -> Any:
    """Return `function(*arguments)`; ValueError with one line about `what` if it raises."""
    try:
        return function(*arguments)
    except Exception as error:  # whatever the author's code raises
        raise ValueError(f"{what} {meaning(error)}") from error


def meaning(error: Exception) -> str:
    """Return what an error means to the author of an environment, in one line."""
    if isinstance(error, NotImplementedError):
        return "is not implemented"
    if isinstance(error, jax.errors.KeyReuseError):
        return "uses a random key twice; split it first"
    if isinstance(error, jax.errors.TracerBoolConversionError):
        return "cannot be compiled: Python's if, and, or of a traced value; use jnp.where"
    return f"fails with {type(error).__name__}: {' '.join(str(error).split())[:120]}"
