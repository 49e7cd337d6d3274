"""obstacles.py: steps by hand, ends of episodes, and the same steps as dynamics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.environments.dynamics import make_dynamics
from common.environments.obstacles import OBSTACLES, collides, make_room, step_robot
from common.envs import make_env

ENV_ID = "PointRobot-obstacles"
ROOM = OBSTACLES[ENV_ID]


def stepped(x, u):
    x, reward, terminated = step_robot(make_room(ENV_ID), jnp.array(x, float), jnp.array(u, float))
    return np.asarray(x), float(reward), bool(terminated)


def test_a_step_by_hand():
    """v' = v + .2 u, with u and v' clipped, then p' = p + .2 v'."""
    x, reward, terminated = stepped([1, 2, 0.5, -1.95], [0.5, -9])
    np.testing.assert_allclose(x, [1 + 0.2 * 0.6, 2 - 0.2 * 2, 0.6, -2], rtol=1e-6)
    assert (reward, terminated) == (0, False)


@pytest.mark.parametrize(
    "x, reward, terminated",
    [
        ([2.99, 5, 1, 0], 0, True),  # into the first wall
        ([2.99, 8, 1, 0], 0, False),  # through its gap
        ([6.49, 2, 1, 0], 0, False),  # through that of the second wall
        ([6.49, 5, 1, 0], 0, True),
        ([0.1, 5, -1, 0], 0, True),  # out of the room
        ([5, 9.9, 0, 1], 0, True),
        ([9, 8.45, 0, 0.4], 1, True),  # into the goal
        ([9, 8.45, 0, 0.8], 0, False),  # too fast
        ([9, 8.2, 0, 0.4], 0, False),
    ],
)
def test_an_episode_ends_in_a_collision_or_in_the_goal(x, reward, terminated):
    assert stepped(x, [0, 0])[1:] == (reward, terminated)


def test_no_step_leads_through_a_wall():
    """Walls are thicker than the fastest step is long."""
    assert np.all(0.2 * ROOM.high[2:] < ROOM.boxes[:, 2:] - ROOM.boxes[:, :2])
    middle = (ROOM.boxes[:, :2] + ROOM.boxes[:, 2:]) / 2
    assert all(collides(make_room(ENV_ID), position) for position in middle)


def test_starts_and_goal_are_free_and_starts_differ():
    env = make_env(ENV_ID, 500)
    starts = np.asarray(jax.jit(env.reset)(jax.random.key(0)).obs)
    assert np.all((starts >= ROOM.start_low) & (starts <= ROOM.start_high))
    assert len(np.unique(starts[:, :2], axis=0)) == 500 and not starts[:, 2:].any()
    for position in (*starts[:20, :2], ROOM.goal_low[:2], ROOM.goal_high[:2]):
        assert not collides(make_room(ENV_ID), position)


def test_the_environment_steps_as_its_dynamics_and_keeps_the_last_state_before_a_reset():
    """Random actions until all have collided or met the time limit, which only truncates."""
    env, dynamics = make_env(ENV_ID, 200, actions="continuous"), make_dynamics(ENV_ID)
    state, key = jax.jit(env.reset)(jax.random.key(1)), jax.random.key(2)
    state = state._replace(inner=(state.inner[0], jnp.where(jnp.arange(200) < 100, 290, 0)))
    model, step, seen = jax.jit(jax.vmap(dynamics.step)), jax.jit(env.step), np.zeros(2)
    for t in range(40):
        key, key_action, key_step = jax.random.split(key, 3)
        action = jax.random.uniform(key_action, (200, 2), minval=-1.5, maxval=1.5)
        x = dynamics.numbers(state.inner)
        np.testing.assert_array_equal(x, state.obs)
        next_x, reward, terminated = model(x, action)
        state, transition = step(state, action, key_step)
        np.testing.assert_allclose(transition.next_obs, next_x, rtol=1e-6)
        np.testing.assert_array_equal(transition.reward, reward)
        np.testing.assert_array_equal(transition.terminated, terminated)
        done = np.asarray(transition.terminated | transition.truncated)
        fresh = np.all((state.obs >= ROOM.start_low) & (state.obs <= ROOM.start_high), axis=1)
        assert fresh[done].all()
        np.testing.assert_array_equal(state.obs[~done], transition.next_obs[~done])
        if t < 9:
            assert not transition.truncated.any()
        seen += [np.sum(transition.truncated), np.sum(transition.terminated)]
    assert seen.min() > 20


def test_an_unknown_room_is_refused():
    for make in (lambda env_id: make_env(env_id, 1), make_dynamics):
        with pytest.raises(ValueError, match="PointRobot-obstacles"):
            make("Car-obstacles")
