"""For copies with a single tabular MDP that does not change: common/envs.py's `make_env`."""

import jax
import jax.numpy as jnp
import numpy as np

from common.environments.tabular import TABULAR, make_mdp
from common.envs import Env, EnvState, Transition


def make_env(env_id: str, num_envs: int, actions: str = "any", observations: str = "any") -> Env:
    """Return `num_envs` copies of a tabular MDP, whose observations are numbers of states."""
    mdp, max_steps = make_mdp(env_id), TABULAR[env_id].max_steps
    num_states, num_actions, _ = mdp.P.shape
    # At most K states can follow (s, a); tables of these [S, A, K] make a step cost K, not S.
    num_successors = int((mdp.P > 0).sum(-1).max())
    successor = np.argsort(mdp.P <= 0, axis=-1, kind="stable")[..., :num_successors]
    cumulative = np.cumsum(np.take_along_axis(mdp.P, successor, -1), axis=-1)
    rewards = np.take_along_axis(mdp.R, successor, -1)

    def draw(key, cumulative):  # the index of the first sum above a uniform number
        u = jax.random.uniform(key) * cumulative[-1]
        return jnp.minimum(jnp.sum(u >= cumulative), len(cumulative) - 1).astype(jnp.int32)

    def first_state(key):
        return draw(key, jnp.asarray(np.cumsum(mdp.start), float))

    def next_state(key, state, action):
        key_next, key_reset = jax.random.split(key)
        k = draw(key_next, jnp.asarray(cumulative, float)[state, action])
        state_after = jnp.asarray(successor, jnp.int32)[state, action, k]
        return state_after, jnp.asarray(rewards, float)[state, action, k], first_state(key_reset)

    def reset(key):
        state = jax.vmap(first_state)(jax.random.split(key, num_envs))
        time = jnp.zeros(num_envs, jnp.int32)
        return EnvState(time, state, jnp.zeros(num_envs), jnp.full(num_envs, jnp.nan))

    def step(env_state, action, key):
        obs, time = env_state.obs, env_state.inner + 1
        keys = jax.random.split(key, num_envs)
        next_obs, reward, first_obs = jax.vmap(next_state)(keys, obs, action)
        terminated, truncated = jnp.asarray(mdp.terminal)[next_obs], time >= max_steps
        done, total = terminated | truncated, env_state.running_return + reward
        transition = Transition(obs, action, reward, next_obs, terminated, truncated)
        obs, time = jnp.where(done, first_obs, next_obs), jnp.where(done, 0, time)
        episode_return = jnp.where(done, total, jnp.nan)
        return EnvState(time, obs, jnp.where(done, 0, total), episode_return), transition

    return Env(reset, step, num_envs, (), num_states, num_actions, max_steps=max_steps)
