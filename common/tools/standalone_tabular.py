"""For copies with a single tabular MDP that does not change: common/envs.py's `make_env`."""

import jax
import jax.numpy as jnp
import numpy as np

from common.environments.mdp import MDP
from common.environments.tabular import TABULAR
from common.envs import Env, Transition
from common.tools.standalone_episode import EnvState


def make_mdp(env_id: str, key: jax.Array | None = None) -> MDP:
    """Return the MDP of an id, or raise ValueError."""
    if env_id not in TABULAR:
        raise ValueError(f"--env-id: this copy has {', '.join(TABULAR)}")
    return TABULAR[env_id].make(jax.random.key(0) if key is None else key)


def make_env(env_id: str, num_envs: int, actions: str = "any", observations: str = "any") -> Env:
    """Return `num_envs` copies of a tabular MDP, whose observations are numbers of states."""
    mdp, (_, max_steps, gamma, *_) = make_mdp(env_id), TABULAR[env_id]
    # At most K states can follow (s, a); tables of these [S, A, K] make a step cost K, not S.
    num_successors = int((mdp.P > 0).sum(-1).max())
    successor = np.argsort(mdp.P <= 0, axis=-1, kind="stable")[..., :num_successors]
    cumulative = jnp.asarray(np.cumsum(np.take_along_axis(mdp.P, successor, -1), axis=-1), float)
    rewards = jnp.asarray(np.take_along_axis(mdp.R, successor, -1), float)
    successor, start = jnp.asarray(successor, jnp.int32), jnp.asarray(np.cumsum(mdp.start), float)

    def draw(key, cumulative):  # the index of the first sum above a uniform number
        u = jax.random.uniform(key) * cumulative[-1]
        return jnp.minimum(jnp.sum(u >= cumulative), len(cumulative) - 1).astype(jnp.int32)

    def follow(key, state, action):
        key_next, key_reset = jax.random.split(key)
        k = draw(key_next, cumulative[state, action])
        return successor[state, action, k], rewards[state, action, k], draw(key_reset, start)

    def reset(key):
        state = jax.vmap(draw, (0, None))(jax.random.split(key, num_envs), start)
        episode = jnp.zeros(num_envs), jnp.zeros(num_envs, int), jnp.zeros(num_envs, bool)
        return EnvState((), state, episode)

    def step(env_state, action, key):
        obs, (total, length, was_done) = env_state.obs, env_state.episode
        total, length = jnp.where(was_done, 0, total), jnp.where(was_done, 0, length) + 1
        next_obs, reward, first_obs = jax.vmap(follow)(jax.random.split(key, num_envs), obs, action)
        terminated, truncated = jnp.asarray(mdp.terminal)[next_obs], length >= max_steps
        transition = Transition(obs, action, reward, next_obs, terminated, truncated)
        done = terminated | truncated
        obs = jnp.where(done, first_obs, next_obs)
        return EnvState((), obs, (total + reward, length, done)), transition

    return Env(reset, step, num_envs, (), *mdp.P.shape[:2], max_steps=max_steps, gamma=gamma)  # pyright: ignore[reportArgumentType]
