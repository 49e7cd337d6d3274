"""Environments that show positions and no velocities: `CartPole-v1-positions`.

A policy must remember what it saw to tell how fast things move. A task for policies with memory
since Wierstra et al. 2010, https://doi.org/10.1093/jigpal/jzp049.
"""

import numpy as np

from common.envs import Env, make_env

POSITIONS = {  # which components of an observation are positions or angles
    "CartPole-v1-positions": [0, 2],
    "Pendulum-v1-positions": [0, 1],
    "MountainCar-v0-positions": [0],
    "MountainCarContinuous-v0-positions": [0],
    "Acrobot-v1-positions": [0, 1, 2, 3],
}


def make_positions_env(env_id: str, num_envs: int, actions: str = "any") -> Env:
    """Return `num_envs` copies of one of POSITIONS; ValueError if it is none of them."""
    if env_id not in POSITIONS:
        raise ValueError(f"{env_id} is none of: {', '.join(POSITIONS)}")
    env = make_env(env_id.removesuffix("-positions"), num_envs, actions)
    index = np.array(POSITIONS[env_id])

    def reset(key):
        state = env.reset(key)
        return state._replace(obs=state.obs[:, index])

    def step(state, action, key):
        state, transition = env.step(state, action, key)
        transition = transition._replace(next_obs=transition.next_obs[:, index])
        return state._replace(obs=state.obs[:, index]), transition

    seen = env._replace(reset=reset, step=step, obs_shape=(len(index),))
    if env.obs_low is not None:  # copied for obs_low
        return seen._replace(obs_low=env.obs_low[index], obs_high=env.obs_high[index])
    return seen
