"""Environments that show a window of the past: `InvertedPendulum-brax-history16` shows the last 16
observations of `InvertedPendulum-brax` and the actions between them.

Where one observation does not show the whole state, a window is the simplest memory (the "agent
history" of Mnih et al. 2015, https://doi.org/10.1038/nature14236, which is the last 4 images).
"""

import jax
import jax.numpy as jnp
import numpy as np

from common.envs import Env, make_env


def make_history_env(env_id: str, num_envs: int) -> Env:
    """Return `num_envs` copies of `<id>-history<k>`; ValueError if there is no such id, or if its
    observations are not vectors."""
    env_id, _, length = env_id.rpartition("-history")
    return with_history(make_env(env_id, num_envs), int(length))


def with_history(env: Env, length: int) -> Env:
    """Return the environment that observes the vector (o, a, o, a, ..., o) of the last `length`
    observations and the actions between them, the latest last; discrete actions are one-hot.

    An episode begins with its first observation `length` times, and with zeros as actions.
    """
    if env.num_states is not None or len(env.obs_shape) == 3:
        seen = "images" if env.num_states is None else "numbered states"
        raise ValueError(f"-history needs observations that are vectors, not {seen}")
    size = int(np.prod(env.obs_shape))
    num_actions = env.num_actions or int(np.prod(env.action_shape))

    def as_vector(action):
        if env.num_actions is not None:
            return jax.nn.one_hot(action, env.num_actions)
        return action.reshape(len(action), num_actions)

    def first(obs):
        obs = obs.reshape(len(obs), size)
        if env.num_actions is None:  # so that bools do not make bools of real actions
            obs = obs.astype(jnp.promote_types(obs.dtype, jnp.float32))
        nothing_done = jnp.zeros((len(obs), num_actions), obs.dtype)
        return jnp.concatenate([*[obs, nothing_done] * (length - 1), obs], -1)

    def reset(key):
        state = env.reset(key)
        return state._replace(obs=first(state.obs))

    def step(state, action, key):
        past = state.obs
        latest = past[:, -size:].reshape(-1, *env.obs_shape)
        state, transition = env.step(state._replace(obs=latest), action, key)
        newest = transition.next_obs.reshape(len(past), size)
        whole = jnp.concatenate([past, as_vector(action).astype(past.dtype), newest], -1)
        next_obs = whole[:, size + num_actions :]
        done = transition.terminated | transition.truncated
        obs = jnp.where(done[:, None], first(state.obs), next_obs)
        return state._replace(obs=obs), transition._replace(obs=past, next_obs=next_obs)

    def bound(obs, action):
        obs = np.broadcast_to(obs, env.obs_shape).ravel()
        return np.concatenate([*[obs, np.ravel(action)] * (length - 1), obs]).astype(np.float32)

    bounds = {}
    if env.obs_low is not None:
        low, high = np.zeros(num_actions), np.ones(num_actions)  # of one-hot actions
        if env.num_actions is None:
            low, high = env.action_low, env.action_high
        bounds = {"obs_low": bound(env.obs_low, low), "obs_high": bound(env.obs_high, high)}
    shape = ((size + num_actions) * (length - 1) + size,)
    return env._replace(reset=reset, step=step, obs_shape=shape, **bounds)
