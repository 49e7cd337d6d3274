"""Find what would break in an environment: `python -m common.check_env my_module:MyEnv-v0`.

Imports `my_module`, which must call `gymnax.register("MyEnv-v0", ...)`. Without a module it checks
an id that is known: one of gymnax's, Hopper-brax, CliffWalking-tabular, CartPole-v1-history4, ...
Prints one line for each problem, and a note for what does no harm. Exit code 0 if there is no
problem, 1 if there is one, 2 if there is no such environment.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import environment, spaces

from common.environments.games import make_game
from common.envs import Env, make_env, rollout, with_unit_actions
from common.exploration import random_policy
from common.runner.cli import fail

NUM_ENVS, MAX_STEPS = 8, 1_000  # of the random episodes


class Note(str):
    """A finding that does no harm; all others are problems."""


class Problem(Exception):  # noqa: N818
    """A problem that leaves nothing else to check."""


def main() -> None:
    """Check the environment that the command line names, and print the result."""
    arguments = sys.argv[1:]
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__)
        sys.exit(0 if arguments in (["--help"], ["-h"]) else 2)
    module, _, env_id = arguments[0].rpartition(":")
    sys.path.insert(0, "")
    try:
        if module:
            importlib.import_module(module)
        problems, notes = check(env_id)
    except ModuleNotFoundError as error:
        fail(2, f"{error}; run from the folder that contains it")
    except ValueError as error:
        fail(2, str(error))
    for line in problems:
        print(f"problem: {line}")
    for line in notes:
        print(f"note: {line}")
    result = f": {len(problems)} problems" if problems else f" works: {describe(env_id)}"
    print(f"{env_id}{result}")
    sys.exit(1 if problems else 0)


def check(env_id: str) -> tuple[list[str], list[str]]:
    """Return the problems and the notes, one line each; ValueError if there is no such id."""
    if is_game(env_id):
        make_game(env_id)
        return [], ["a game for two players; algorithms/mcts.py plays it, the others do not"]
    problems, notes = [], []
    is_gymnax = env_id in gymnax.registered_envs
    try:
        for check_part in [check_gymnax_env, check_env] if is_gymnax else [check_env]:
            for line in check_part(env_id):
                (notes if isinstance(line, Note) else problems).append(line)
            if problems:
                break
    except Problem as problem:
        problems.append(str(problem))
    return problems, notes


def describe(env_id: str) -> str:
    """Return the actions, the observations and the time limit in one line."""
    if is_game(env_id):
        game = make_game(env_id)
        size = " x ".join(map(str, game.shape))
        return f"{game.num_actions} actions, a board of {size}, at most {game.max_steps} moves"
    env = make_env(env_id, 1)
    actions = f"{env.num_actions} actions"
    if env.num_actions is None:
        actions = f"continuous actions of shape {env.action_shape}"
    observations = f"observations of shape {env.obs_shape}"
    if env.num_states is not None:
        observations = f"{env.num_states} numbered states"
    return f"{actions}, {observations}, episodes of at most {env.max_steps} steps"


def is_game(env_id: str) -> bool:
    """Return whether the id is that of a game, and not one that a user registered with gymnax."""
    return env_id.endswith("-game") and env_id not in gymnax.registered_envs


def check_gymnax_env(env_id: str) -> Iterator[str]:
    """Check the spaces of an environment of gymnax, and what its functions return; run nothing.

    `make_env` would hide these problems, or fail with an error that does not name them.
    """
    env, params = attempt("gymnax.make", gymnax.make, env_id)
    obs_space = attempt("observation_space(params)", env.observation_space, params)
    action_space = attempt("action_space(params)", env.action_space, params)
    yield from check_spaces(obs_space, action_space)
    limit = getattr(params, "max_steps_in_episode", None)
    if limit is None:
        yield Note("params have no max_steps_in_episode: evaluation stops after 10,000 steps")
    elif not (np.ndim(limit) == 0 and 1 <= limit < np.inf):
        raise Problem(f"max_steps_in_episode is {limit}: it must be a whole number above 0")
    start = attempt("reset", jax.eval_shape, lambda key: env.reset(key, params), jax.random.key(0))
    if not (isinstance(start, tuple) and len(start) == 2):
        raise Problem("reset must return two values: observation, state")
    obs, state = start
    yield from check_reset(obs, state, obs_space)
    action = jax.eval_shape(action_space.sample, jax.random.key(0))
    yield from check_step(env, params, obs, state, action)


def check_spaces(obs_space: Any, action_space: Any) -> Iterator[str]:
    """Check that algorithms can use both spaces."""
    for name, space in (("action", action_space), ("observation", obs_space)):
        if not isinstance(space, spaces.Box | spaces.Discrete):
            kind = type(space).__name__
            raise Problem(f"the {name} space is {kind}: it must be Discrete or Box")
    if isinstance(action_space, spaces.Box):
        shape, bounds = tuple(action_space.shape), (action_space.low, action_space.high)
        bounds = attempt("the action space", lambda: [np.broadcast_to(x, shape) for x in bounds])
        if not np.isfinite(bounds).all() or (bounds[0] >= bounds[1]).any():
            yield "the action space needs finite bounds with low < high in every axis"
        if len(shape) != 1:
            yield f"actions of shape {shape}: they must have one axis, as in (1,)"


def check_reset(obs: Any, state: Any, obs_space: Any) -> Iterator[str]:
    """Check shapes and dtypes of what `reset` returns."""
    if not isinstance(obs, jax.ShapeDtypeStruct):
        raise Problem(f"the observation is a {type(obs).__name__}: it must be one array")
    if tuple(obs.shape) != tuple(obs_space.shape):
        yield f"observations have shape {obs.shape}, their space {obs_space.shape}"
    if isinstance(obs_space, spaces.Discrete):
        if not jnp.issubdtype(obs.dtype, jnp.integer):
            yield f"the observation is {obs.dtype}: a Discrete space needs an integer"
    elif obs.dtype != obs_space.dtype:
        yield Note(f"observations are {obs.dtype}, their space says {np.dtype(obs_space.dtype)}")
    leaves = [("the observation", obs), *name_leaves(state)]
    weak = ", ".join(name for name, x in leaves if x.weak_type)
    if weak:
        yield Note(f"weakly typed after reset: {weak}; write jnp.int32(0), not 0")


def check_step(env: Any, params: Any, obs: Any, state: Any, action: Any) -> Iterator[str]:
    """Check shapes and dtypes of what `step` returns; of `step_env`, if `step` is gymnax's own."""
    names = ["observation", "state", "reward", "terminated", "truncated", "info"]
    function, wanted = "step", "six"
    if type(env).step is environment.Environment.step:
        function, wanted = "step_env", "five"
        names.remove("truncated")
    step = lambda key, state, action: getattr(env, function)(key, state, action, params)
    values = attempt(function, jax.eval_shape, step, jax.random.key(0), state, action)
    number = len(values) if isinstance(values, tuple) else 1
    if number != len(names):
        raise Problem(f"{function} returns {number} values, not {wanted}: {', '.join(names)}")
    next_obs, next_state, reward, *flags, info = values
    yield from compare("the observation", obs, next_obs)
    yield from compare("the state", state, next_state)
    yield from check_scalars(dict(zip(names[2:-1], [reward, *flags], strict=True)))
    if getattr(reward, "dtype", jnp.float32) != jnp.float32:
        yield Note(f"rewards are {reward.dtype}, and are made float32")
    if function == "step":
        if not isinstance(info, dict) or "final_observation" not in info:
            yield 'info has no "final_observation", the observation before the reset'
        else:
            yield from compare('info["final_observation"]', obs, info["final_observation"])


def check_env(env_id: str) -> Iterator[str]:
    """Check what `make_env` returns: random keys, shapes and dtypes, then random episodes."""
    try:
        env = make_env(env_id, NUM_ENVS)
    except ValueError:  # there is no such environment, or it is not supported
        raise
    except Exception as error:
        raise Problem(f"make_env fails with {summarize(error)}") from None
    env = with_unit_actions(env) if env.num_actions is None else env
    policy, key = random_policy(env), jax.random.key(0)
    with jax.debug_key_reuse(True):  # which looks at jaxprs, so `eval_shape` will not do
        trace = lambda function: jax.make_jaxpr(function, return_shape=True)
        _, state = attempt("reset", trace(env.reset), key)
        action = jax.eval_shape(policy, state.obs, key)
        _, (after, step) = attempt("step", trace(env.step), state, action, key)
    problems = [*compare("the state", state, after)]
    for name, x in (("obs", step.obs), ("next_obs", step.next_obs)):
        if x.shape != (NUM_ENVS, *env.obs_shape):
            problems.append(f"{name} has shape {x.shape[1:]}, not obs_shape {env.obs_shape}")
        is_integer = jnp.issubdtype(x.dtype, jnp.integer)
        if is_integer != (env.num_states is not None):
            wanted = "real or bool" if is_integer else "an integer"
            problems.append(f"{name} is {x.dtype}: it must be {wanted}")
    scalars = {"reward": step.reward, "terminated": step.terminated, "truncated": step.truncated}
    problems += check_scalars(scalars, shape=(NUM_ENVS,))
    yield from problems or check_episodes(env_id, env, policy)


def check_episodes(env_id: str, env: Env, policy: Callable) -> Iterator[str]:
    """Play: numbers are finite, time limits hold, and `next_obs` is before the reset."""

    def play(key):
        key_reset, key_rollout = jax.random.split(key)
        num_steps = min(MAX_STEPS, env.max_steps) + 1
        return rollout(env, policy, env.reset(key_reset), key_rollout, num_steps)[1]

    # Most of the time goes into compiling, so XLA's optimizations are turned off.
    play = jax.jit(play, compiler_options={"xla_backend_optimization_level": 0})
    steps = jax.tree.map(np.asarray, attempt("playing it", play, jax.random.key(0)))
    problems = []
    for name, x in (
        ("the observation after reset", steps.obs[0]),
        ("an observation", steps.next_obs),
        ("a reward", steps.reward),
    ):
        if not np.isfinite(x).all():
            problems.append(f"{name} is NaN or infinite")
    obs = np.concatenate([steps.obs[:1], steps.next_obs])
    if env.num_states is not None and (obs.min() < 0 or obs.max() >= env.num_states):
        problems.append(f"a state's number is not below the {env.num_states} of the Discrete space")
    if problems:
        yield from problems
        return

    is_gymnax = env_id in gymnax.registered_envs
    next_obs, limit = "next_obs", f"the limit of {env.max_steps} steps"
    if is_gymnax:
        next_obs, limit = 'info["final_observation"]', f"max_steps_in_episode = {env.max_steps}"
        limit += ": step_env must return state.time + 1"
    done = steps.terminated | steps.truncated
    ends = done[:-1]
    is_same = (steps.obs[1:] == steps.next_obs[:-1]).reshape(*ends.shape, -1).all(-1)
    if not is_same[~ends].all():
        yield f"{next_obs} is not what is seen next, within an episode"
    if ends.any() and is_same[ends].all() and (obs != obs[0, 0]).any():
        yield f"{next_obs} is the observation after the reset, not before"
    length = np.zeros(NUM_ENVS, int)
    is_late = is_early = False
    for ended, truncated in zip(done, steps.truncated, strict=True):
        length += 1
        is_late |= (~ended & (length >= env.max_steps)).any()
        is_early |= (truncated & (length < env.max_steps)).any()
        length[ended] = 0
    if is_late:
        yield f"an episode goes on beyond {limit}"
    if is_early and not is_gymnax:  # whose `is_truncated` may have other reasons
        yield f"an episode is cut off before {limit}"


def attempt(what: str, function: Callable, *arguments: Any) -> Any:
    """Call the function; raise a Problem of one line if it raises."""
    try:
        return function(*arguments)
    except NotImplementedError:
        problem = f"{what} is not implemented"
    except jax.errors.KeyReuseError:
        problem = f"{what} uses a random key twice; split it first"
    except jax.errors.TracerBoolConversionError:
        reason = "Python's if, and, or of a traced value; use jnp.where"
        problem = f"{what} cannot be compiled: {reason}"
    except Exception as error:  # whatever the author's code raises
        problem = f"{what} fails with {summarize(error)}"
    raise Problem(problem)


def summarize(error: Exception) -> str:
    """Return the type of an error and the beginning of its first line."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:120]}"


def compare(what: str, old: Any, new: Any) -> Iterator[str]:
    """Yield each difference in structure, shape or dtype between what `reset` and `step` return."""
    if jax.tree.structure(old) != jax.tree.structure(new):
        yield f"{what} of step has another structure than that of reset"
        return
    for (name, x), (_, y) in zip(name_leaves(old), name_leaves(new), strict=True):
        if (x.shape, x.dtype) != (y.shape, y.dtype):
            where = f"{what}'s {name}" if name else what
            before, after = f"{x.dtype}{list(x.shape)}", f"{y.dtype}{list(y.shape)}"
            yield f"{where} is {before} after reset and {after} after step"


def check_scalars(scalars: dict[str, Any], shape: tuple[int, ...] = ()) -> Iterator[str]:
    """Check that `reward` is one number, and every other one bool, of each environment."""
    for name, x in scalars.items():
        found = getattr(x, "shape", None)
        if found != shape:
            yield f"{name} has shape {found}: it must be one number, shape {shape}"
        elif name == "reward" and x.dtype.kind not in "fiu":
            yield f"the reward is {x.dtype}: it must be a number"
        elif name != "reward" and x.dtype != bool:
            yield f"{name} is {x.dtype}: it must be bool"


def name_leaves(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yield the path and the value of each leaf."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path).lstrip("."), leaf


if __name__ == "__main__":
    main()
