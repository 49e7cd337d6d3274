"""Find what would break in an environment, with one line for each problem and each note.

    python -m common.check_env path/to/my_envs.py:MyEnv-v0
    python -m common.check_env MyEnv-v0 --import my_module

The file or the module must call `gymnax.register("MyEnv-v0", ...)`. Ids that are known need none:
CartPole-v1, Hopper-brax, CliffWalking-tabular, CartPole-v1-history4, ... What algorithms see of the
environment is played at random and shown to a network. A note does no harm, or not to every
algorithm. Exit code 0 if there is no problem, 1 if there is one, 2 if there is no such environment.
"""

import sys
from collections.abc import Callable, Iterator

import gymnax
import jax
import jax.numpy as jnp
import numpy as np

from common.environments.gymnax_checks import attempt, check_scalars, compare, spaces_of
from common.environments.gymnax_envs import load_module, make_cached
from common.envs import (
    Env,
    Transition,
    bound_action,
    is_bounded,
    make_env,
    map_actions,
    rollout,
    scale_action,
)
from common.exploration import random_policy
from common.networks import make_network
from common.runner.cli import fail, tool_parser

NUM_ENVS, MAX_STEPS = 8, 1_000  # of the random episodes
LARGE = 1_000  # observations beyond this make training slow or unstable


class Note(str):
    """A finding that does no harm, or not to every algorithm; all others are problems."""


def main() -> None:
    """Check the environment that the command line names, and print the result."""
    parser = tool_parser("check_env", __doc__)
    parser.add_argument("environment", help="an id, or a module or a file and an id: envs.py:ID")
    parser.add_argument(
        "--import", dest="modules", action="append", default=[], help="a module or a file to load"
    )
    args = parser.parse_args()
    module, _, env_id = args.environment.rpartition(":")
    try:
        for text in [*args.modules, module] if module else args.modules:
            load_module(text)
        problems, notes = check(env_id)
    except ValueError as error:
        fail(2, str(error))
    for kind, lines in (("problem", problems), ("note", notes)):
        for line in lines:
            print(f"{kind}: {' '.join(line.split())}")
    result = f": {len(problems)} problems" if problems else f" works: {describe(env_id)}"
    print(f"{env_id}{result}")
    sys.exit(1 if problems else 0)


def check(env_id: str) -> tuple[list[str], list[str]]:
    """Return the problems and the notes, one line each; ValueError if there is no such id."""
    is_gymnax = env_id in gymnax.registered_envs
    if not is_gymnax:
        make_env(env_id, NUM_ENVS)  # raises ValueError
    problems, notes = [], []
    try:
        for check_part in [check_space, check_env] if is_gymnax else [check_env]:
            for line in check_part(env_id):
                (notes if isinstance(line, Note) else problems).append(line)
    except ValueError as error:  # a problem that leaves nothing else to check
        problems.append(str(error).removeprefix(f"{env_id}: "))
    return problems, notes


def describe(env_id: str) -> str:
    """Return the actions, the observations and the time limit in one line."""
    env = make_env(env_id, 1)
    actions = f"{env.num_actions} actions"
    if env.num_actions is None:
        actions = f"continuous actions of shape {env.action_shape}"
    observations = f"observations of shape {env.obs_shape}"
    if env.num_states is not None:
        observations = f"{env.num_states} numbered states"
    return f"{actions}, {observations}, episodes of at most {env.max_steps} steps"


def check_space(env_id: str) -> Iterator[str]:
    """Compare the observations of an environment of gymnax with their space."""
    env, params = make_cached(env_id, jnp.result_type(float))
    space, _ = spaces_of(env, params)
    obs, _ = jax.eval_shape(env.reset, jax.random.key(0), params)
    if obs.shape != tuple(space.shape):
        yield f"observations have shape {obs.shape}, their space {space.shape}"
    elif obs.dtype != space.dtype:
        yield Note(f"observations are {obs.dtype}, their space says {np.dtype(space.dtype)}")
    if not hasattr(params, "max_steps_in_episode"):
        yield Note("params have no max_steps_in_episode: evaluation stops after 10,000 steps")


def check_env(env_id: str) -> Iterator[str]:
    """Check what `make_env` returns: random keys, shapes and dtypes, then random episodes."""
    env = make_env(env_id, NUM_ENVS)
    policy, key = random_policy(env), jax.random.key(0)
    if env.num_actions is None and is_bounded(env.action_low, env.action_high):
        env = map_actions(env, scale_action)
    elif env.num_actions is None:
        yield Note("actions without finite bounds low < high: some algorithms refuse them")
        env = map_actions(env, bound_action)
        policy = lambda obs, key: jax.random.normal(key, (NUM_ENVS, *env.action_shape))
    with jax.debug_key_reuse(True):  # which looks at jaxprs, so `eval_shape` will not do
        trace = lambda function: jax.make_jaxpr(function, return_shape=True)
        _, state = attempt("reset", trace(env.reset), key)
        action = jax.eval_shape(policy, state.obs, key)
        _, (after, step) = attempt("step", trace(env.step), state, action, key)
    problems = [*compare("the state", state, after)]
    for name, x in (("obs", step.obs), ("next_obs", step.next_obs)):
        if x.shape != (NUM_ENVS, *env.obs_shape):
            problems.append(f"{name} has shape {x.shape[1:]}, not obs_shape {env.obs_shape}")
    scalars = {"reward": step.reward, "terminated": step.terminated, "truncated": step.truncated}
    problems += check_scalars(scalars, shape=(NUM_ENVS,))
    yield from problems or check_episodes(env_id, env, policy)


def check_episodes(env_id: str, env: Env, policy: Callable) -> Iterator[str]:
    """Play, and check what is seen and where episodes end."""

    def play(key):
        key_reset, key_rollout = jax.random.split(key)
        num_steps = min(MAX_STEPS, env.max_steps) + 1
        return rollout(env, policy, env.reset(key_reset), key_rollout, num_steps)[1]

    # Most of the time goes into compiling, so XLA's optimizations are turned off.
    play = jax.jit(play, compiler_options={"xla_backend_optimization_level": 0})
    steps = jax.tree.map(np.asarray, attempt("playing it", play, jax.random.key(0)))
    problems = [*check_numbers(env, steps)]
    yield from problems
    if all(isinstance(line, Note) for line in problems):
        yield from check_ends(env_id, env, steps)


def check_numbers(env: Env, steps: Transition) -> Iterator[str]:
    """Check that numbers are finite, and that a network tells observations apart."""
    is_finite = True
    for name, x in (
        ("the observation after reset", steps.obs[0]),
        ("an observation", steps.next_obs),
        ("a reward", steps.reward),
    ):
        if not np.isfinite(x).all():
            is_finite = False
            yield f"{name} is NaN or infinite"
    obs = np.concatenate([steps.obs[:1], steps.next_obs])
    if env.num_states is not None and not (obs.min() >= 0 and obs.max() < env.num_states):
        yield f"a state's number is not below the {env.num_states} of the Discrete space"
    elif (obs == obs[0, 0]).all():
        yield Note("all observations are the same")
    elif is_finite:
        some = obs[:: max(1, len(obs) // 32)]  # images need much memory
        network = make_network(env, (64,), 1)
        outputs = network.apply(network.init(jax.random.key(0)), jnp.asarray(some))
        if not np.isfinite(outputs).all():
            yield "observations are so large that a network's output is not finite"
        elif (some != some[0, 0]).any() and (outputs == outputs[0, 0]).all():
            yield "observations differ, but not to a network: scale them to about [-1, 1]"
        elif env.num_states is None and np.abs(obs.astype(float)).max() > LARGE:
            largest = np.abs(obs.astype(float)).max()
            yield Note(f"observations are as large as {largest:.2g}: scale them to about [-1, 1]")


def check_ends(env_id: str, env: Env, steps: Transition) -> Iterator[str]:
    """Check that time limits hold, and that `next_obs` is before the reset."""
    is_gymnax = env_id in gymnax.registered_envs
    next_obs, limit = "next_obs", f"the limit of {env.max_steps} steps"
    if is_gymnax:
        next_obs, limit = 'info["final_observation"]', f"max_steps_in_episode = {env.max_steps}"
    done = steps.terminated | steps.truncated
    ends = done[:-1]
    is_same = (steps.obs[1:] == steps.next_obs[:-1]).reshape(*ends.shape, -1).all(-1)
    if not is_same[~ends].all():
        yield f"{next_obs} is not what is seen next, within an episode"
    if ends.any() and is_same[ends].all() and (steps.next_obs != steps.obs[0, 0]).any():
        yield f"{next_obs} is the observation after the reset, not before"
    start = np.zeros(NUM_ENVS, int)
    length = np.zeros(done.shape, int)  # of the episode up to each step
    for t, ended in enumerate(done):
        length[t] = t + 1 - start
        start[ended] = t + 1
    if (~done & (length >= env.max_steps)).any():
        hint = ": step_env must return state.time + 1" if is_gymnax else ""
        yield f"an episode goes on beyond {limit}{hint}"
    if (steps.truncated & (length < env.max_steps)).any() and not is_gymnax:
        yield f"an episode is cut off before {limit}"  # gymnax's may have other reasons
    at_limit = done & (length == env.max_steps)
    told = tells_time(np.asarray(steps.next_obs), length)
    if at_limit.any() and steps.terminated[at_limit].all() and not told:
        reason = "is that the time limit? Then it must not be in `terminated`"
        yield Note(f"every episode of {env.max_steps} steps, the limit, is terminated: {reason}")
    if (steps.truncated & ~steps.terminated)[at_limit].any() and told:
        reason = "no value of the last one is ever learned. Let the limit terminate"
        yield Note(f"observations tell the time, but the limit only truncates: {reason}")


def tells_time(obs: np.ndarray, length: np.ndarray) -> bool:
    """Return whether some number in the observations is the same at the same step of all episodes
    and differs between any two steps. obs [T, N, ...], length [T, N]: steps of the episode so far.
    """
    obs = obs.reshape(length.size, -1)
    steps, first, at = np.unique(length, return_index=True, return_inverse=True)
    by_step = obs[first]  # [number of steps, size of an observation]
    is_same = (obs == by_step[at.ravel()]).all(0)
    return any(len(np.unique(x)) == len(steps) > 1 for x in by_step[:, is_same].T)


if __name__ == "__main__":
    main()
