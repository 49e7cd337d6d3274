"""Batched environments that reset themselves, and rollouts through them.

`terminated`: the MDP ended (no bootstrap). `truncated`: a time limit ended the episode (bootstrap
from `next_obs`, the observation before any reset; `EnvState.obs` is the one after it).
"""

import importlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Transition(NamedTuple):
    """One step of each environment, [N, ...]; a rollout stacks them, [T, N, ...]."""

    obs: jax.Array
    action: jax.Array
    reward: jax.Array
    next_obs: jax.Array  # before any reset
    terminated: jax.Array  # bool: the MDP ended
    truncated: jax.Array  # bool: the time limit; both can be true on one step


class Episode(NamedTuple):
    """Episode of each environment up to its last step, [N]."""

    total: jax.Array  # undiscounted return
    length: jax.Array  # steps
    done: jax.Array  # bool: the last step ended it, and the next one begins another


class EnvState(NamedTuple):
    inner: Any  # the environment's own state
    obs: jax.Array  # [N, ...] what the policy sees next, after any reset
    episode: Episode


class Env(NamedTuple):
    """`num_envs` copies of one environment that reset themselves."""

    reset: Callable  # key -> EnvState
    step: Callable  # EnvState, action [N, ...], key -> EnvState, Transition [N, ...]
    num_envs: int
    obs_shape: tuple[int, ...] = ()
    num_states: int | None = None  # observations are integers below this; None: arrays
    num_actions: int | None = None  # actions are integers below this; None: continuous
    action_shape: tuple[int, ...] = ()  # copied unless actions="discrete"
    action_low: Any = None  # bounds of a continuous action  # copied unless actions="discrete"
    action_high: Any = None  # copied unless actions="discrete"
    max_steps: int = 10_000  # time limit of an episode
    gamma: float = 0.99  # discount of its source, or this  # copied for gamma: float | None
    obs_low: Any = None  # bounds of real observations, if all are finite  # copied for obs_low
    obs_high: Any = None  # copied for obs_low
    legal: Callable | None = None  # obs -> bool [..., A]; None: all  # copied for -pgx or -jumanji


def lazy(module: str, name: str) -> Callable:
    """Return a function that imports `module` when it is called, and calls its function `name`."""
    return lambda *args: getattr(importlib.import_module(module), name)(*args)


def find_family(env_id: str) -> Callable:
    """Return the function `env_id, num_envs -> Env` of the first pattern that matches the id."""
    families = {
        ".+[+][a-zA-Z_].*": lazy("common.environments.env_parameters", "make_parameters_env"),
        ".+-history[1-9][0-9]*": lazy("common.environments.history", "make_history_env"),
        ".+-positions": lazy("common.environments.positions", "make_positions_env"),
        ".+-tabular": lazy("common.environments.tabular", "make_tabular_env"),
        ".+-game": lazy("common.environments.games", "make_game_env"),
        ".+-linear": lazy("common.environments.linear", "make_linear_env"),
        ".+-obstacles": lazy("common.environments.obstacles", "make_obstacles_env"),
        ".+-brax(-.*)?": lazy("common.environments.brax_envs", "make_brax_env"),
        ".+-(craftax|navix|xminigrid)": lazy("common.environments.suites", "make_suite_env"),
        ".+-(jumanji|pgx|playground)": lazy("common.environments.suites", "make_suite_env"),
        ".*": lazy("common.environments.gymnax_envs", "make_gymnax_env"),
    }
    return next(make for pattern, make in families.items() if re.fullmatch(pattern, env_id))


def make_env(env_id: str, num_envs: int, actions: str = "any", observations: str = "any") -> Env:
    """Return `num_envs` copies of an environment; ValueError if there is none with that id, or if
    its actions ("discrete", or "continuous" within finite bounds) or its observations ("integer")
    are of another kind."""
    with jax.ensure_compile_time_eval():  # not traced, even where a sweep traces `make`
        env = find_family(env_id)(env_id, num_envs)
    kind = "continuous" if env.num_actions is None else "discrete"
    if actions not in ("any", kind):
        raise ValueError(f"{env_id} has {kind} actions; this algorithm needs {actions} ones")
    if actions == "continuous" and not is_bounded(env.action_low, env.action_high):  # not copied
        raise ValueError(f"{env_id}: this algorithm needs finite bounds of actions, low < high")
    if observations == "integer" and env.num_states is None:  # copied for observations="integer"
        raise ValueError(f"{env_id} has no numbered states; this algorithm needs them")
    return env


def is_bounded(low: np.ndarray, high: np.ndarray, most: float = float(np.finfo("f4").max)) -> bool:
    """Return whether 0 < high - low < `most` in every component; false for infinite bounds, and
    for the largest floats, which stand for them."""
    with np.errstate(invalid="ignore"):  # inf - inf
        span = np.subtract(high, low, dtype=float)
    return bool(np.all((span > 0) & (span < most)))


def scale_action(env: Env, action: jax.Array) -> jax.Array:
    """Rescale an action from [-1, 1] to the environment's bounds."""
    return env.action_low + (action + 1) / 2 * (env.action_high - env.action_low)


def bound_action(env: Env, action: jax.Array) -> jax.Array:
    """Rescale a continuous action from [-1, 1] to the environment's bounds and clip it to them.

    Where they are not finite it keeps its units. A discrete action is returned as it is.
    """
    if env.num_actions is not None:
        return action
    low, high = jnp.asarray(env.action_low), jnp.asarray(env.action_high)
    is_finite = jnp.isfinite(high - low)  # the largest floats stand for infinity
    center, radius = (jnp.where(is_finite, x / 2, y) for x, y in ((high + low, 0), (high - low, 1)))
    return jnp.clip(center + radius * action, low, high)


def map_actions(env: Env, transform: Callable) -> Env:
    """Return an Env that steps with `transform(env, action)`; its Transitions keep `action`.

    `transform` is `scale_action`, or `bound_action` for a policy whose log-probabilities are those
    of the actions that were sampled.
    """

    def step(state, action, key):
        state, transition = env.step(state, transform(env, action), key)
        return state, transition._replace(action=action)

    return env._replace(step=step)


def episode_metrics(episode: Episode) -> dict[str, jax.Array]:
    """Return the metrics: `episode_return`, mean undiscounted return of the episodes that ended, or
    NaN; `episode_length`, their mean number of steps, or NaN; `episodes`, how many of them."""
    return {
        "episode_return": jnp.mean(episode.total, where=episode.done),
        "episode_length": jnp.mean(episode.length, where=episode.done, dtype=episode.total.dtype),
        "episodes": jnp.sum(episode.done, dtype=jnp.int32),
    }


def rollout(env: Env, policy: Callable, state: EnvState, key: jax.Array, num_steps: int) -> tuple:
    """Take `num_steps` steps of `policy(obs [N, ...], key) -> action`.

    Return the EnvState, the Transitions [T, N, ...], and the `episode_metrics` of these steps.
    """

    def step(state, keys):
        state, transition = env.step(state, policy(state.obs, keys[0]), keys[1])
        return state, (transition, state.episode)

    keys = jax.random.split(key, (num_steps, 2))
    unroll = 1 if jax.default_backend() == "cpu" else max(1, min(num_steps, 8))  # fewer launches
    state, (transitions, episode) = jax.lax.scan(step, state, keys, unroll=unroll)
    return state, transitions, episode_metrics(episode)
