"""Environments that show positions and no velocities: `CartPole-v1-positions`.

A policy must remember what it saw to tell how fast things move. A task for policies with memory
since Wierstra et al. 2010, https://doi.org/10.1093/jigpal/jzp049.
"""

import numpy as np

from common.envs import Env, make_env

POSITIONS = {  # which components of an observation are positions or angles
    "CartPole-v1": [0, 2],
    "Pendulum-v1": [0, 1],
    "MountainCar-v0": [0],
    "MountainCarContinuous-v0": [0],
    "Acrobot-v1": [0, 1, 2, 3],
}


def make_positions_env(env_id: str, num_envs: int) -> Env:
    """Return `num_envs` copies of `<id>-positions`; ValueError if that is not in POSITIONS."""
    name = env_id.removesuffix("-positions")
    if name not in POSITIONS:
        raise ValueError(f"{env_id}: there are -positions of {', '.join(POSITIONS)}")
    env, index = make_env(name, num_envs), np.array(POSITIONS[name])

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
