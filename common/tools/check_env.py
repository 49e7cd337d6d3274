"""What would break in an environment: `python -m common.check_env my_module:MyEnv-v0`.

Imports `my_module`, which must call `gymnax.register("MyEnv-v0", ...)`; the module may be left out.
What is not gymnax's, `Hopper-brax`, `CliffWalking-tabular`, `DoubleIntegrator-linear` or
`CartPole-v1-history4`, is played as the algorithms do.
Prints one line for each problem, and a note for what the algorithms can live with. Exit code 0 if
there is no problem, 1 if there is one, 2 if there is no such environment.
"""

import importlib
import re
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from common.environments.games import make_game
from common.envs import make_env, rollout
from common.runner.cli import fail

NUM_ENVS, MAX_STEPS = 8, 1_000  # of the episodes that are played, at random


class Checked(NamedTuple):
    """An environment, and what its functions return by their shapes and types alone."""

    env: Any
    params: Any
    obs_space: Any
    action_space: Any
    obs: Any = None
    state: Any = None


class Problem(Exception):  # noqa: N818
    """What makes all further checks meaningless."""


def main() -> None:
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
    print(f"{env_id}: {len(problems)} problems" if problems else f"{env_id} works: {about(env_id)}")
    sys.exit(1 if problems else 0)


def check(env_id: str) -> tuple[list[str], list[str]]:
    """The problems and the notes, one line each. ValueError if there is no such environment."""
    import gymnax

    problems, notes = [], []
    if env_id.endswith("-game") and env_id not in gymnax.registered_envs:
        make_game(env_id)
        return [], ["a game for two players; algorithms/mcts.py plays it, the others do not"]
    kinds = "-brax|-history|-tabular$|-linear$"
    if env_id not in gymnax.registered_envs and re.search(kinds, env_id):
        try:
            of_batches(env_id, problems)
        except Problem as problem:
            problems.append(str(problem))
        return problems, notes
    if env_id not in gymnax.registered_envs:
        make_env(env_id, 1)  # says so, with the nearest id
    try:
        checked = of_spaces(env_id, problems)
        checked = of_types(checked, problems, notes)
        if not problems:
            of_episodes(checked, problems, notes)
        if not problems:
            as_the_algorithms_do(env_id)
    except Problem as problem:
        problems.append(str(problem))
    return problems, notes


def about(env_id: str) -> str:
    import gymnax

    if env_id.endswith("-game") and env_id not in gymnax.registered_envs:
        game = make_game(env_id)
        size = " x ".join(map(str, game.shape))
        return f"{game.num_actions} actions, a board of {size}, at most {game.max_steps} moves"
    env = make_env(env_id, 1)
    actions = f"{env.num_actions} actions"
    if env.num_actions is None:
        actions = f"continuous actions of shape {env.action_shape}"
    seen = f"observations of shape {env.obs_shape}"
    if env.num_states is not None:
        seen = f"{env.num_states} numbered states"
    return f"{actions}, {seen}, episodes of at most {env.max_steps} steps"


def of_spaces(env_id: str, problems: list[str]) -> Checked:
    """The environment, if it can be made and has spaces that an algorithm can use."""
    import gymnax
    from gymnax.environments import spaces

    env, params = attempt("gymnax.make", gymnax.make, env_id)
    obs_space = attempt("observation_space(params)", env.observation_space, params)
    action_space = attempt("action_space(params)", env.action_space, params)
    if isinstance(action_space, spaces.Box):
        shape = tuple(action_space.shape)
        try:
            low, high = (np.broadcast_to(x, shape) for x in (action_space.low, action_space.high))
        except ValueError:
            raise Problem(f"the action space's bounds do not have its shape {shape}") from None
        if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
            problems.append("the action space needs finite bounds with low < high in every axis")
        if len(shape) != 1:
            problems.append(f"actions of shape {shape}: they must have one axis, as in (1,)")
    elif not isinstance(action_space, spaces.Discrete):
        raise Problem(f"the action space is {kind(action_space)}: it must be Discrete or Box")
    if not isinstance(obs_space, spaces.Box | spaces.Discrete):
        raise Problem(f"the observation space is {kind(obs_space)}: it must be Box or Discrete")
    limit = getattr(params, "max_steps_in_episode", None)
    if limit is not None and not (np.ndim(limit) == 0 and 1 <= limit < np.inf):
        raise Problem(f"max_steps_in_episode is {limit}: it must be a whole number above 0")
    return Checked(env, params, obs_space, action_space)


def of_types(checked: Checked, problems: list[str], notes: list[str]) -> Checked:
    """Shapes and dtypes of all that `reset` and `step` return; nothing is computed."""
    env, params, obs_space, action_space, *_ = checked
    key, action = jax.random.key(0), jax.eval_shape(action_space.sample, jax.random.key(0))
    first = shapes("reset", lambda key: env.reset(key, params), key)
    if not (isinstance(first, tuple) and len(first) == 2):
        raise Problem("reset must return two values: observation, state")
    obs, state = first
    if not isinstance(obs, jax.ShapeDtypeStruct):
        raise Problem(f"the observation is a {kind(obs)}: it must be one array")
    if tuple(obs.shape) != tuple(obs_space.shape):
        problems.append(f"observations have shape {obs.shape}, their space {obs_space.shape}")
    numbered = not hasattr(obs_space, "low")
    if numbered and not jnp.issubdtype(obs.dtype, jnp.integer):
        problems.append(f"the observation is {obs.dtype}: a Discrete space needs an integer")
    if not numbered and obs.dtype != obs_space.dtype:
        notes.append(f"observations are {obs.dtype}, their space says {np.dtype(obs_space.dtype)}")
    if any(x.weak_type for x in jax.tree.leaves((obs, state))):
        names = ", ".join(name for name, x in named(state) if x.weak_type) or "the observation"
        notes.append(f"weakly typed after reset: {names}; write jnp.int32(0), not 0")

    if hasattr(env, "step_env"):  # of which the inherited `step` is made
        inner = lambda key, state, action: env.step_env(key, state, action, params)
        after = shapes("step_env", inner, key, state, action)
        if isinstance(after, tuple) and len(after) == 5:
            problems.extend(changes("the observation", obs, after[0]))
            problems.extend(changes("the state", state, after[1]))
            problems.extend(flags(("reward", after[2]), ("terminated", after[3])))
            if problems:
                return checked
    outer = lambda key, state, action: env.step(key, state, action, params)
    after = shapes("step", outer, key, state, action)
    if not (isinstance(after, tuple) and len(after) == 6):
        number = len(after) if isinstance(after, tuple) else 1
        raise Problem(
            f"step returns {number} values, not six: "
            "observation, state, reward, terminated, truncated, info"
        )
    obs_after, state_after, reward, terminated, truncated, info = after
    problems.extend(changes("the observation", obs, obs_after))
    problems.extend(changes("the state", state, state_after))
    named_flags = (("reward", reward), ("terminated", terminated), ("truncated", truncated))
    problems.extend(flags(*named_flags))
    if not isinstance(info, dict) or "final_observation" not in info:
        problems.append('info has no "final_observation", the observation before the reset')
    else:
        problems.extend(changes('info["final_observation"]', obs, info["final_observation"]))
    if not problems and reward.dtype != jnp.float32:
        notes.append(f"rewards are {reward.dtype}, and are made float32")
    with jax.debug_key_reuse(True):
        for name, function, arguments in (
            ("reset", lambda key: env.reset(key, params), (key,)),
            ("step", outer, (key, state, action)),
        ):
            try:
                jax.make_jaxpr(function)(*arguments)
            except jax.errors.KeyReuseError:
                problems.append(f"{name} uses a random key twice; split it first")
    return checked._replace(obs=obs, state=state)


def of_episodes(checked: Checked, problems: list[str], notes: list[str]) -> None:
    """Plays random episodes, and looks at the numbers."""
    env, params, obs_space, action_space, *_ = checked
    limit = getattr(params, "max_steps_in_episode", None)
    num_steps = int(min(MAX_STEPS, (limit or MAX_STEPS) + 1))

    def play(key):
        key_reset, key_steps = jax.random.split(key)
        obs, state = env.reset(key_reset, params)

        def one(carry, key):
            obs, state = carry
            key_action, key_step = jax.random.split(key)
            action = action_space.sample(key_action)
            step = env.step(key_step, state, action, params)
            new = strong(step[0], obs), strong(step[1], state)
            final = step[5]["final_observation"]
            before = final
            if type(env).step is not base_step():
                before = base_step()(env, key_step, state, action, params)[5]["final_observation"]
            return new, (step[0], final, before, *(jnp.asarray(x) for x in step[2:5]))

        return obs, jax.lax.scan(one, (obs, state), jax.random.split(key_steps, num_steps))[1]

    keys = jax.random.split(jax.random.key(0), NUM_ENVS)
    # Steps are few: time goes into compiling, not into what the optimizer could save.
    play = jax.jit(jax.vmap(play), compiler_options={"xla_backend_optimization_level": 0})
    played = attempt("playing it", play, keys)
    start, (obs, final, before, reward, terminated, truncated) = jax.tree.map(np.asarray, played)
    done = terminated | truncated
    for name, x in (
        ("the observation after reset", start),
        ("an observation", final),
        ("a reward", reward),
    ):
        if not np.isfinite(x).all():
            problems.append(f"{name} is NaN or infinite")
    if limit is None:
        notes.append("params have no max_steps_in_episode: evaluation stops after 10,000 steps")
    elif limit < MAX_STEPS and not done.any(axis=1).all():
        problems.append(
            f"an episode goes on beyond max_steps_in_episode = {limit}: "
            "step_env must return state.time + 1"
        )
    if not hasattr(obs_space, "low") and (
        min(start.min(), final.min()) < 0 or max(start.max(), final.max()) >= obs_space.n
    ):
        problems.append(f"a state's number is not below the {obs_space.n} of the Discrete space")
    ends = done & ~np.isnan(np.asarray(final, float)).reshape(*done.shape, -1).any(-1)
    same = (final[ends] == obs[ends]).all()
    if ends.any() and same and (before[ends] != final[ends]).any():
        problems.append('info["final_observation"] is the observation after the reset, not before')


def as_the_algorithms_do(env_id: str) -> None:
    """A few steps through `make_env`, as every algorithm takes them."""

    env = attempt("make_env", make_env, env_id, 2)

    def play(key):
        if env.num_actions is None:
            policy = lambda obs, key: jnp.broadcast_to(env.action_low, (2, *env.action_shape))
        else:
            policy = lambda obs, key: jnp.zeros(2, int)
        return rollout(env, policy, env.reset(key), key, 2)

    shapes("rollout", play, jax.random.key(0))


def of_batches(env_id: str, problems: list[str]) -> None:
    """What `make_env` gives for an id of Brax, a tabular MDP, a linear system or a history: its
    types, and then, if they are right, its numbers."""
    try:
        env = make_env(env_id, NUM_ENVS)
    except ValueError:  # there is none, or it is refused
        raise
    except Exception as error:
        raise Problem(f"make_env fails with {type(error).__name__}: {first_line(error)}") from None
    key = jax.random.key(0)
    action = jax.eval_shape(lambda key: any_action(env, key), key)
    with jax.debug_key_reuse(True):
        state = traced("reset", env.reset, key)
        after, step = traced("step", env.step, state, action, key)
    problems.extend(changes("the state", state, after))
    for name in ("obs", "next_obs"):
        x = getattr(step, name)
        if x.shape != (NUM_ENVS, *env.obs_shape):
            problems.append(f"{name} has shape {x.shape[1:]}, not the {env.obs_shape} that is said")
        wanted = jnp.integer if env.num_states is not None else jnp.floating
        if not jnp.issubdtype(x.dtype, wanted):
            problems.append(f"{name} is {x.dtype}: it must be {wanted.__name__}")
    for name in ("reward", "terminated", "truncated"):
        x = getattr(step, name)
        one = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
        problems.extend(flags((name, one)))
    if not problems:
        of_numbers(env, problems)


def traced(what: str, function, *arguments):
    """The shapes and types that the function returns, once it was traced in full."""
    return attempt(what, jax.make_jaxpr(function, return_shape=True), *arguments)[1]


def any_action(env, key):
    """A random action for each environment."""
    if env.num_actions is not None:
        return jax.random.randint(key, (env.num_envs,), 0, env.num_actions)
    shape = env.num_envs, *env.action_shape
    return jax.random.uniform(key, shape, minval=env.action_low, maxval=env.action_high)


def of_numbers(env, problems: list[str]) -> None:
    """Plays random episodes: numbers are finite, time limits hold, and the last observation of an
    episode is the one before the reset."""

    def play(key):
        key_reset, key_steps = jax.random.split(key)

        def one(state, key):
            key_action, key_step = jax.random.split(key)
            state, step = env.step(state, any_action(env, key_action), key_step)
            return state, (state.obs, step)

        start, keys = env.reset(key_reset), jax.random.split(key_steps, num_steps)
        return start.obs, jax.lax.scan(one, start, keys)[1]

    num_steps = min(MAX_STEPS, env.max_steps + 1)
    play = jax.jit(play, compiler_options={"xla_backend_optimization_level": 0})
    played = attempt("playing it", play, jax.random.key(0))
    start, (seen, step) = jax.tree.map(np.asarray, played)
    for name, x in (
        ("the observation after reset", start),
        ("an observation", step.next_obs),
        ("a reward", step.reward),
    ):
        if not np.isfinite(x).all():
            problems.append(f"{name} is NaN or infinite")
    numbers = np.concatenate([start.ravel(), step.next_obs.ravel()])
    if env.num_states is not None and (numbers.min() < 0 or numbers.max() >= env.num_states):
        problems.append(f"a state's number is not below the {env.num_states} of the states")
    if problems:
        return
    done = step.terminated | step.truncated
    same = (seen == step.next_obs).reshape(*done.shape, -1).all(-1)
    if not same[~done].all():
        problems.append("next_obs is not what is seen next, within an episode")
    if done.any() and same[done].all():
        problems.append("next_obs is the observation after the reset, not before")
    length = np.zeros(env.num_envs, int)
    late = early = False
    for ended, cut in zip(done, step.truncated, strict=True):
        length += 1
        late |= (~ended & (length >= env.max_steps)).any()
        early |= (cut & (length < env.max_steps)).any()
        length[ended] = 0
    if late:
        problems.append(f"an episode goes on beyond the limit of {env.max_steps} steps")
    if early:
        problems.append(f"an episode is cut off before the limit of {env.max_steps} steps")


def base_step():
    from gymnax.environments.environment import Environment

    return Environment.step


def strong(tree, like):
    return jax.tree.map(lambda x, y: jax.lax.convert_element_type(x, y.dtype), tree, like)


def attempt(what: str, function, *arguments):
    """What the function returns; a Problem with one line if it raises."""
    try:
        return function(*arguments)
    except NotImplementedError:
        raise Problem(f"{what} is not implemented") from None
    except jax.errors.KeyReuseError:
        raise Problem(f"{what} uses a random key twice; split it first") from None
    except jax.errors.TracerBoolConversionError:
        raise Problem(
            f"{what} cannot be compiled: Python's if, and, or of a traced value; use jnp.where"
        ) from None
    except Exception as error:  # whatever the author's code raises
        raise Problem(f"{what} fails with {type(error).__name__}: {first_line(error)}") from None


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")[:120]


def shapes(what: str, function, *arguments):
    """The shapes and types that the function returns; None of what is not an array."""
    return attempt(what, jax.eval_shape, function, *arguments)


def changes(what: str, old, new) -> Iterator[str]:
    """In what shape, type or structure `step` differs from `reset`."""
    if jax.tree.structure(old) != jax.tree.structure(new):
        yield f"{what} of step has another structure than that of reset"
        return
    for (name, x), (_, y) in zip(named(old), named(new), strict=True):
        if (x.shape, x.dtype) != (y.shape, y.dtype):
            where = f"{what}'s {name}" if name else what
            yield (
                f"{where} is {x.dtype}{list(x.shape)} after reset "
                f"and {y.dtype}{list(y.shape)} after step"
            )


def flags(*pairs) -> Iterator[str]:
    """The reward is one number, the flags are one bool each."""
    for name, x in pairs:
        if not hasattr(x, "shape") or x.shape != ():
            yield f"{name} has shape {getattr(x, 'shape', None)}: it must be one number, shape ()"
        elif name == "reward" and x.dtype.kind not in "fiu":
            yield f"the reward is {x.dtype}: it must be a number"
        elif name != "reward" and x.dtype != bool:
            yield f"{name} is {x.dtype}: it must be bool"


def named(tree):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path).lstrip("."), leaf


def kind(x) -> str:
    return type(x).__name__


if __name__ == "__main__":
    main()
