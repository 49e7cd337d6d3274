"""For copies with gymnax's environments alone: common/envs.py's `make_env`."""

from typing import Any

import gymnax
import jax
import jax.numpy as jnp
import numpy as np

from common.environments.gymnax_envs import TIMED, make_sized
from common.environments.positions import make_positions_env
from common.envs import Env, Transition
from common.tools.standalone_episode import EnvState


def make_env(env_id: str, num_envs: int, actions: str = "any", observations: str = "any") -> Env:
    """Return `num_envs` copies of a gymnax environment, or raise ValueError."""
    if env_id.endswith("-positions"):  # copied for -positions
        return make_positions_env(env_id, num_envs, actions)
    env, params = gymnax.make(env_id)  # copied unless -bsuite
    env, params = make_sized(env_id)  # copied for -bsuite
    env = env.with_transition_gradients()  # copied for make_differentiable_env
    obs_space, space = env.observation_space(params), env.action_space(params)
    num_states, num_actions = getattr(obs_space, "n", None), getattr(space, "n", None)
    if actions not in ("any", "discrete" if num_actions else "continuous"):  # copied for actions=
        raise ValueError(f"--env-id: {env_id} has no {actions} actions")
    low, high = (np.asarray(getattr(obs_space, x, np.nan), float) for x in ("low", "high"))
    reset_all = jax.vmap(lambda key: env.reset(key, params))
    step_all = jax.vmap(lambda k, s, a: env.step(k, s, a.reshape(space.shape), params))
    shapes = jax.eval_shape(reset_all, jax.random.split(jax.random.key(0), num_envs))
    is_integer = jnp.issubdtype(shapes[0].dtype, jnp.integer) and num_states is None
    offset, scale = (low, high - low) if np.all((low < high) & (high - low < 2**24)) else (0, 1)

    def encode(obs):  # integers that float32 tells apart are scaled to [0, 1], but not states
        if env_id.endswith("-MinAtar"):  # copied for MinAtar
            return obs.astype(bool)
        return (obs - offset) / scale if is_integer else obs

    def strong(tree, shapes):  # some environments reset to weakly typed arrays
        return jax.tree.map(lambda x, y: jax.lax.convert_element_type(x, y.dtype), tree, shapes)

    def reset(key):
        obs, inner = strong(reset_all(jax.random.split(key, num_envs)), shapes)
        episode = jnp.zeros(num_envs), jnp.zeros(num_envs, int), jnp.zeros(num_envs, bool)
        return EnvState(inner, encode(obs), episode)

    def step(state, action, key):
        outputs = step_all(jax.random.split(key, num_envs), state.inner, action)
        obs, inner, reward, terminated, truncated, info = outputs
        terminated |= truncated & (env_id in TIMED)
        last_obs, reward = info["final_observation"], jnp.asarray(reward, float)
        obs, inner, last_obs = strong((obs, inner, last_obs), (*shapes, shapes[0]))
        transition = Transition(state.obs, action, reward, encode(last_obs), terminated, truncated)
        total, length, done = state.episode
        total, length = jnp.where(done, 0, total) + reward, jnp.where(done, 0, length) + 1
        return EnvState(inner, encode(obs), (total, length, terminated | truncated)), transition

    fields: dict[str, Any] = {"max_steps": getattr(params, "max_steps_in_episode", 10_000)}
    if np.all((low < high) & (high - low < np.finfo(np.float32).max)):  # copied for obs_low
        fields |= {"obs_low": low.astype(np.float32), "obs_high": high.astype(np.float32)}
    if num_actions is None:  # copied unless actions="discrete"
        low, high = (jnp.broadcast_to(x, space.shape).ravel() for x in (space.low, space.high))
        fields |= {"action_shape": low.shape, "action_low": low, "action_high": high}
    return Env(reset, step, num_envs, shapes[0].shape[1:], num_states, num_actions, **fields)
