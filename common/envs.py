"""Environments, batched, and rollouts through them.

`terminated` means that the MDP ended (no bootstrap), `truncated` that a clock ran out (bootstrap
from `next_obs`). `next_obs` is the observation before any reset; `EnvState.obs` the one after it.
"""

import functools
import re
from collections.abc import Callable
from difflib import get_close_matches
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


class EnvState(NamedTuple):
    inner: Any  # the environment's own state
    obs: jax.Array  # [N, ...] what the policy sees next, after any reset
    running_return: jax.Array  # [N] undiscounted, of the episode under way
    episode_return: jax.Array  # [N] of the episode that the last step ended, NaN if it ended none


class Env(NamedTuple):
    """`num_envs` copies of one environment that reset themselves."""

    reset: Callable  # key -> EnvState
    step: Callable  # EnvState, action [N, ...], key -> EnvState, Transition [N, ...]
    num_envs: int
    obs_shape: tuple[int, ...]
    num_states: int | None  # observations are integers below this; None: arrays
    num_actions: int | None  # actions are integers below this; None: continuous
    action_shape: tuple[int, ...]
    action_low: Any  # bounds of a continuous action, else None
    action_high: Any
    max_steps: int  # time limit of an episode
    obs_low: Any = None  # bounds of observations that are real numbers, if all are finite
    obs_high: Any = None


class _Single(NamedTuple):
    """One unbatched environment, which `make_env` vmaps; Brax's come as batches."""

    reset: Callable  # key -> obs, inner
    step: Callable  # key, inner, action -> obs, inner, reward, terminated, truncated, next_obs
    obs_shape: tuple[int, ...]
    num_states: int | None
    num_actions: int | None
    action_shape: tuple[int, ...]
    action_low: Any
    action_high: Any
    max_steps: int
    obs_low: Any = None
    obs_high: Any = None


def make_env(env_id: str, num_envs: int, actions: str = "any", observations: str = "any") -> Env:
    """The environment of that id. `actions="discrete"` or `"continuous"` and
    `observations="integer"` refuse, with ValueError, an environment that offers something else."""
    # common/copy.py goes by the first half.
    if "-history" in env_id and re.fullmatch(".+-history[1-9][0-9]*", env_id):
        from common.history import with_history

        env_id, _, length = env_id.rpartition("-history")
        return with_history(make_env(env_id, num_envs, actions, observations), int(length))
    single = _single(env_id, jax.config.jax_enable_x64)
    kind = "continuous" if single.num_actions is None else "discrete"
    if actions not in ("any", kind):
        raise ValueError(f"{env_id} has {kind} actions; this algorithm needs {actions} ones")
    if observations == "integer" and single.num_states is None:
        raise ValueError(
            f"{env_id} has observations of shape {single.obs_shape}; "
            "this algorithm needs numbered states, as in FrozenLake-misc"
        )
    reset_all, step_all = _each(single, num_envs)
    if "-brax" in env_id:
        from common.brax_envs import batched

        reset_all, step_all = batched(env_id, num_envs)
    # Resets and steps must agree on dtypes, and neither may be weakly typed (12 of gymnax's
    # environments reset to weak types), or the State would not be a scan carry.
    dtypes = jax.tree.map(lambda x: x.dtype, jax.eval_shape(reset_all, jax.random.key(0)))

    def strong(tree, dtypes):
        return jax.tree.map(lambda x, dtype: jax.lax.convert_element_type(x, dtype), tree, dtypes)

    def reset(key):
        obs, inner = strong(reset_all(key), dtypes)
        zero = jnp.zeros(num_envs)
        return EnvState(inner, obs, running_return=zero, episode_return=zero + jnp.nan)

    def step(state, action, key):
        obs, inner, reward, terminated, truncated, next_obs = step_all(key, state.inner, action)
        obs, inner = strong((obs, inner), dtypes)
        reward = reward.astype(state.running_return.dtype)
        done = terminated | truncated
        total = state.running_return + reward
        transition = Transition(
            obs=state.obs,
            action=action,
            reward=reward,
            next_obs=strong(next_obs, dtypes[0]),
            terminated=terminated,
            truncated=truncated,
        )
        return EnvState(
            inner,
            obs,
            running_return=jnp.where(done, 0, total),
            episode_return=jnp.where(done, total, jnp.nan),
        ), transition

    return Env(reset, step, num_envs, *single[2:])


def _each(single: _Single, num_envs: int):
    """`reset(key)` and `step(key, inner, action)` of `num_envs` copies."""

    def reset(key):
        return jax.vmap(single.reset)(jax.random.split(key, num_envs))

    def step(key, inner, action):
        return jax.vmap(single.step)(jax.random.split(key, num_envs), inner, action)

    return reset, step


def scale_action(env: Env, action) -> jax.Array:
    """From [-1, 1] to the bounds of the environment's actions."""
    return env.action_low + (action + 1) / 2 * (env.action_high - env.action_low)


def clip_action(env: Env, action) -> jax.Array:
    """A continuous action within the environment's bounds, a discrete one as it is."""
    if env.num_actions is not None:
        return action
    return jnp.clip(action, env.action_low, env.action_high)


def with_actions(env: Env, seen: Callable) -> Env:
    """The environment that steps with `seen(action)`; a Transition keeps the action itself."""

    def step(state, action, key):
        state, transition = env.step(state, seen(action), key)
        return state, transition._replace(action=action)

    return env._replace(step=step)


def with_unit_actions(env: Env) -> Env:
    """The environment for actions in [-1, 1]."""
    return with_actions(env, lambda action: scale_action(env, action))


def with_clipped_actions(env: Env) -> Env:
    """The environment, which clips continuous actions to its bounds when they enter `step`: an
    action's log_prob is that of the action that was drawn."""
    return with_actions(env, lambda action: clip_action(env, action))


def rollout(env: Env, policy: Callable, state: EnvState, key: jax.Array, num_steps: int):
    """`num_steps` steps of `policy(obs [N, ...], key) -> action [N, ...]`.

    Returns the EnvState, the Transitions [T, N, ...], and the mean return of the episodes that
    ended on the way, NaN if none did.
    """

    def step(state, keys):
        key_policy, key_env = keys
        state, transition = env.step(state, policy(state.obs, key_policy), key_env)
        return state, (transition, state.episode_return)

    keys = jax.random.split(key, (num_steps, 2))
    # On a GPU each step of a loop costs its launches; on a CPU unrolling costs compile time alone.
    unroll = 1 if jax.default_backend() == "cpu" else max(1, min(num_steps, 8))
    state, (transitions, returns) = jax.lax.scan(step, state, keys, unroll=unroll)
    return state, transitions, jnp.nanmean(returns)


def evaluate(env: Env, act: Callable, params, key: jax.Array):
    """One whole episode of `act(params, obs, key)` in each environment: return [N], length [N].

    An episode that reaches the time limit counts with what it has collected.
    """
    key_reset, key_steps = jax.random.split(key)

    def step(carry):
        t, state, active, returns, length = carry
        key_act, key_env = jax.random.split(jax.random.fold_in(key_steps, t))
        keys = jax.random.split(key_act, env.num_envs)
        action = jax.vmap(act, (None, 0, 0))(params, state.obs, keys)
        state, transition = env.step(state, action, key_env)
        returns += jnp.where(active, transition.reward, 0)
        length += active
        active &= ~(transition.terminated | transition.truncated)
        return t + 1, state, active, returns, length

    def unfinished(carry):
        return (carry[0] < env.max_steps) & jnp.any(carry[2])

    zeros = jnp.zeros(env.num_envs)
    start = (
        jnp.int32(0),
        env.reset(key_reset),
        jnp.ones(env.num_envs, bool),
        zeros,
        zeros.astype(jnp.int32),
    )
    *_, returns, length = jax.lax.while_loop(unfinished, step, start)
    return returns, length


class Dynamics(NamedTuple):
    """An environment's step without noise, time limit or reset, which lets derivatives through. Its
    state is the vector of the real numbers in EnvState.inner; what is counted there stays at 0."""

    numbers: Callable  # inner -> x [n], of one environment
    step: Callable  # x, action -> x, reward, terminated


def make_dynamics(env_id: str) -> Dynamics:
    """The dynamics of an environment with gymnax's transition gradients, or of a linear system."""
    if env_id.endswith("-linear"):
        from common.systems import as_floats, make_system, mean_state, stage_cost

        with jax.ensure_compile_time_eval():
            system = as_floats(make_system(env_id))

        def linear(x, action):
            after = mean_state(system, x, action)
            return after, -stage_cost(system, x, action), jnp.bool_(False)

        return Dynamics(lambda inner: inner[0], linear)

    import gymnax

    env, params = gymnax.make(env_id)
    if not env.supports_transition_gradients:
        raise ValueError(
            f"{env_id} has no transition gradients; this algorithm needs them, "
            "as Pendulum-v1 has them or any <name>-linear"
        )
    env = env.with_transition_gradients()
    single = _single(env_id, jax.config.jax_enable_x64)
    with jax.ensure_compile_time_eval():
        leaves, tree = jax.tree.flatten(single.reset(jax.random.key(0))[1])
    is_real = [jnp.issubdtype(jnp.result_type(x), jnp.floating) for x in leaves]

    def numbers(inner):
        real = [x for x, yes in zip(jax.tree.leaves(inner), is_real, strict=True) if yes]
        return jnp.concatenate([jnp.ravel(x).astype(float) for x in real])

    def step(x, action):
        parts, at = [], 0
        for leaf, yes in zip(leaves, is_real, strict=True):
            size = jnp.size(leaf) * yes
            parts.append(x[at : at + size].reshape(jnp.shape(leaf)) if yes else leaf)
            at += size
        inner = jax.tree.unflatten(tree, parts)
        _, inner, reward, terminated, _ = env.step_env(jax.random.key(0), inner, action, params)
        return numbers(inner), reward, terminated

    return Dynamics(numbers, step)


@functools.cache
def _single(env_id: str, x64: bool) -> _Single:
    """The environment of that id; cached, because two instances of one would compile twice. Each
    precision has its own, because what gymnax has jitted with one is not traced anew for the other.
    """
    if env_id.endswith("-tabular"):
        from common.mdps import TABULAR, make_mdp

        mdps, known = [make_mdp(env_id)], TABULAR[env_id]
        if known.change_to:
            mdps.append(make_mdp(known.change_to))
        return _tabular(mdps, known.max_steps, known.change_after)

    if "-brax" in env_id:
        from common.brax_envs import load

        env, max_steps = load(env_id)
        low = -np.ones(env.action_size)
        # Brax's observation_size runs a whole reset, operation by operation.
        obs_shape = jax.eval_shape(env.reset, jax.random.key(0)).obs.shape
        return _Single(None, None, obs_shape, None, None, low.shape, low, -low, max_steps)

    if env_id.endswith("-linear"):
        from common.systems import LINEAR, make_system

        with jax.ensure_compile_time_eval():
            system = jax.tree.map(np.asarray, make_system(env_id))
        return _linear(system, LINEAR[env_id].max_steps, LINEAR[env_id].max_action)

    import gymnax
    from gymnax.environments import spaces

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
    num_states = obs_space.n if isinstance(obs_space, spaces.Discrete) else None
    encode = _encoder(env_id, obs, obs_space)
    obs_low, obs_high = _obs_bounds(obs, obs_space)

    def reset(key):
        obs, inner = env.reset(key, params)
        return encode(obs), inner

    def step(key, inner, action):
        obs, inner, reward, terminated, truncated, info = env.step(key, inner, action, params)
        next_obs = encode(info["final_observation"])
        return encode(obs), inner, jnp.asarray(reward), terminated, truncated, next_obs

    return _Single(
        reset=reset,
        step=step,
        obs_shape=obs.shape,
        num_states=num_states,
        num_actions=int(action_space.n) if discrete else None,
        action_shape=tuple(action_space.shape),
        action_low=None if discrete else np.broadcast_to(action_space.low, action_space.shape),
        action_high=None if discrete else np.broadcast_to(action_space.high, action_space.shape),
        max_steps=int(getattr(params, "max_steps_in_episode", 10_000)),
        obs_low=obs_low,
        obs_high=obs_high,
    )


def _obs_bounds(obs, obs_space):
    """The least and the greatest observation of gymnax's environment, or None twice."""
    if not jnp.issubdtype(obs.dtype, jnp.floating):
        return None, None
    low, high = np.asarray(obs_space.low, np.float32), np.asarray(obs_space.high, np.float32)
    with np.errstate(over="ignore"):  # to infinity, if they are the largest floats
        span = high - low
    return (low, high) if np.all(np.isfinite(span) & (span > 0)) else (None, None)


def _encoder(env_id, obs, obs_space) -> Callable:
    """MinAtar's 0/1 floats as bool (replay is 4 times smaller); other integers scaled to [0, 1],
    but for the states of a Discrete space, which stay numbers (networks see them one-hot)."""
    if env_id.endswith("-MinAtar"):
        return lambda obs: obs.astype(bool)
    if jnp.issubdtype(obs.dtype, jnp.integer) and hasattr(obs_space, "low"):
        low, high = np.asarray(obs_space.low), np.asarray(obs_space.high)
        return lambda obs: (obs - low) / (high - low)
    return lambda obs: obs


def _tabular(mdps, max_steps: int, change_after: int | None) -> _Single:
    """A tabular MDP to sample from: the observation is the state's number. After `change_after`
    steps, over all episodes, the first of `mdps` becomes the second."""
    num_states, num_actions, _ = mdps[0].P.shape
    successor, cumulative, reward_table, noise = _successors(mdps)
    terminal = np.asarray(mdps[0].terminal)
    start = np.cumsum(mdps[0].start)

    def draw(key, cumulative):
        """The index of the first cumulative probability above a uniform number."""
        u = jax.random.uniform(key) * cumulative[-1]
        return jnp.minimum(jnp.sum(u >= cumulative), cumulative.shape[0] - 1).astype(jnp.int32)

    def reset(key):
        s = draw(key, jnp.asarray(start, float))
        return s, (s, jnp.int32(0), jnp.int32(0))

    def step(key, inner, action):
        s, time, age = inner
        key_next, key_reset, *key_noise = jax.random.split(key, 2 if noise is None else 3)
        row = s if change_after is None else s + num_states * (age >= change_after)
        k = draw(key_next, jnp.asarray(cumulative, float)[row, action])
        next_s = jnp.asarray(successor)[row, action, k]
        reward = jnp.asarray(reward_table, float)[row, action, k]
        if noise is not None:
            reward += jnp.asarray(noise, float)[row, action] * jax.random.normal(*key_noise)
        terminated = jnp.asarray(terminal)[next_s]
        truncated = time + 1 >= max_steps
        done = terminated | truncated
        obs = jnp.where(done, draw(key_reset, jnp.asarray(start, float)), next_s)
        inner = (obs, jnp.where(done, 0, time + 1), age + 1)
        return obs, inner, reward, terminated, truncated, next_s

    return _Single(reset, step, (), num_states, num_actions, (), None, None, max_steps)


def _linear(system, max_steps: int, max_action: float) -> _Single:
    """A linear system to sample from, which sees all of its state and clips the action."""
    from common.systems import as_floats, first_state, next_state, stage_cost

    num_states, num_actions = system.B.shape

    def reset(key):
        x = first_state(as_floats(system), key)
        return x, (x, jnp.int32(0))

    def step(key, inner, action):
        x, time = inner
        key_noise, key_reset = jax.random.split(key)
        action = jnp.clip(action, -max_action, max_action)
        next_x = next_state(as_floats(system), x, action, key_noise)
        reward = -stage_cost(as_floats(system), x, action)
        truncated = time + 1 >= max_steps
        x = jnp.where(truncated, first_state(as_floats(system), key_reset), next_x)
        inner = (x, jnp.where(truncated, 0, time + 1))
        return x, inner, reward, jnp.bool_(False), truncated, next_x

    bound = np.full(num_actions, max_action)
    return _Single(reset, step, (num_states,), None, None, (num_actions,), -bound, bound, max_steps)


def _successors(mdps):
    """The K states that can follow each (s, a), their cumulative probabilities and rewards, each
    [S, A, K] with K the most there are: a step then costs K, not S. Also the noise [S, A]. The
    tables of several MDPs follow each other along the axis of states."""
    P, R = (np.concatenate([np.asarray(getattr(mdp, name)) for mdp in mdps]) for name in "PR")
    num_successors = int((P > 0).sum(-1).max())
    successor = np.argsort(P <= 0, axis=-1, kind="stable")[..., :num_successors]
    cumulative = np.cumsum(np.take_along_axis(P, successor, -1), axis=-1)
    rewards = np.take_along_axis(R, successor, -1)
    return successor.astype(np.int32), cumulative, rewards, mdps[0].noise
