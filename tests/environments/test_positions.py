"""common/environments/positions.py: observations without velocities."""

import jax
import numpy as np
import pytest
from helpers import run_here

from common.environments.positions import POSITIONS
from common.envs import make_env, rollout
from common.exploration import random_policy

VELOCITIES = {  # which components are not shown, by the sources of gymnax
    "CartPole-v1": [1, 3],
    "Pendulum-v1": [2],
    "MountainCar-v0": [1],
    "MountainCarContinuous-v0": [1],
    "Acrobot-v1": [4, 5],
}


@pytest.mark.parametrize("env_id", VELOCITIES)
def test_only_velocities_are_left_out(env_id):
    """Over ends of episodes; all else is the same, and so are the bounds of what is left."""
    plain, seen = make_env(env_id, 3), make_env(f"{env_id}-positions", 3)

    def roll(env):
        policy = random_policy(env)
        return jax.jit(lambda key: rollout(env, policy, env.reset(key), key, 250))(
            jax.random.key(0)
        )

    (_, whole, _), (state, part, _) = roll(plain), roll(seen)
    assert (part.terminated | part.truncated).any() or env_id.startswith(("Mountain", "Acrobot"))
    left_out = np.delete(np.asarray(whole.obs), VELOCITIES[env_id], axis=-1)
    np.testing.assert_array_equal(part.obs, left_out)
    left_out = np.delete(np.asarray(whole.next_obs), VELOCITIES[env_id], axis=-1)
    np.testing.assert_array_equal(part.next_obs, left_out)
    np.testing.assert_array_equal(whole.reward, part.reward)
    assert seen.obs_shape == state.obs.shape[1:] == part.obs.shape[2:]
    if plain.obs_low is not None:
        np.testing.assert_array_equal(
            seen.obs_low, np.delete(plain.obs_low, VELOCITIES[env_id], axis=-1)
        )


def test_every_one_is_tried():
    assert [*POSITIONS] == [f"{env_id}-positions" for env_id in VELOCITIES]


def test_a_history_of_positions_shows_both():
    env = make_env("CartPole-v1-positions-history3", 2)
    assert env.obs_shape == (3 * 2 + 2 * 2,)


@pytest.mark.parametrize(
    "env_id", ["Catch-bsuite-positions", "CartPole-v1-history4-positions", "x-positions"]
)
def test_what_cannot_be_masked_is_refused_in_one_line(env_id):
    done = run_here("algorithms.dqn", "--env-id", env_id, check=2)
    assert env_id in done.stderr and "CartPole-v1" in done.stderr
    assert len(done.stderr.splitlines()) == 1
