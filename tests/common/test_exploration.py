"""common/exploration.py: schedules, and how often each action is taken."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from common.envs import make_env
from common.exploration import epsilon_greedy, linear_schedule, random_policy
from common.networks import ILLEGAL

NUM_DRAWS = 40_000


def shares(actions, num_actions):
    """How often each action was taken, as a part of all draws."""
    return np.bincount(np.ravel(actions), minlength=num_actions) / np.size(actions)


def assert_shares(actions, expected):
    """Within 4.5 standard errors of what is expected, and exactly 0 and 1 where that is."""
    got, expected = shares(actions, len(expected)), np.asarray(expected)
    error = np.sqrt(expected * (1 - expected) / np.size(actions))
    assert (np.abs(got - expected) <= 4.5 * error + 1e-12).all(), (got, expected)


@pytest.mark.parametrize("start, end", [(1.0, 0.1), (0.0, 0.5), (0.3, 0.3)])
def test_a_linear_schedule_is_a_line_and_then_constant(start, end):
    steps = jnp.arange(30)
    got = jax.vmap(lambda step: linear_schedule(step, start, end, 20))(steps)
    np.testing.assert_allclose(got, np.interp(steps, [0, 20], [start, end]), rtol=1e-6)
    expected = jax.vmap(optax.linear_schedule(start, end, 20))(steps)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert got[0] == np.float32(start)


def test_a_linear_schedule_takes_fractions_of_a_step_and_traced_numbers():
    """optax's does neither."""
    schedule = jax.jit(jax.vmap(linear_schedule, (None, None, None, 0)))
    got = schedule(jnp.int32(1), 1.0, 0.0, jnp.array([0.5, 2.5, 10.0]))
    np.testing.assert_allclose(got, [0.0, 0.6, 0.9], rtol=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, 0.25, 1.0])
def test_epsilon_greedy_takes_the_best_action_or_any(epsilon):
    """Each row on its own: the best of one is not that of another."""
    q_values = jnp.array([[1.0, 3.0, 2.0, 0.0], [-1.0, -2.0, -3.0, -4.0]])
    keys = jax.random.split(jax.random.key(0), NUM_DRAWS)
    actions = jax.jit(jax.vmap(lambda key: epsilon_greedy(key, q_values, epsilon)))(keys)
    assert actions.shape == (NUM_DRAWS, 2) and jnp.issubdtype(actions.dtype, jnp.integer)
    for row, best in enumerate([1, 0]):
        expected = epsilon / 4 + (1 - epsilon) * (np.arange(4) == best)
        assert_shares(actions[:, row], expected)


def test_epsilon_greedy_draws_for_each_row_independently():
    keys = jax.random.split(jax.random.key(1), NUM_DRAWS)
    actions = jax.jit(jax.vmap(lambda key: epsilon_greedy(key, jnp.zeros((2, 3)), 1.0)))(keys)
    assert_shares(3 * actions[:, 0] + actions[:, 1], np.full(9, 1 / 9))


@pytest.mark.parametrize("epsilon", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("best", [[2], [0, 4], [1, 2, 3], [0, 1, 2, 3, 4]])
def test_epsilon_greedy_shares_among_the_best(best, epsilon):
    q_values = jnp.full(5, -7.5).at[jnp.array(best)].set(0.1)
    keys = jax.random.split(jax.random.key(2), NUM_DRAWS)
    actions = jax.jit(jax.vmap(lambda key: epsilon_greedy(key, q_values, epsilon)))(keys)
    assert actions.shape == (NUM_DRAWS,)
    is_best = np.isin(np.arange(5), best)
    assert_shares(actions, epsilon / 5 + (1 - epsilon) * is_best / len(best))


def test_every_row_can_have_an_epsilon_of_its_own():
    epsilon = jnp.array([0.0, 0.5, 1.0])
    q_values = jnp.broadcast_to(jnp.array([2.0, 1.0]), (3, 2))
    keys = jax.random.split(jax.random.key(7), NUM_DRAWS)
    actions = jax.jit(jax.vmap(lambda key: epsilon_greedy(key, q_values, epsilon)))(keys)
    for row, share in enumerate([0, 0.25, 0.5]):
        assert_shares(actions[:, row], [1 - share, share])


@pytest.mark.parametrize("epsilon", [0.0, 0.4, 1.0])
def test_epsilon_greedy_takes_no_action_that_is_illegal(epsilon):
    """Each row has its own; and values far below 0 are values."""
    q_values = jnp.array([[ILLEGAL, 3.0, ILLEGAL, -1e6], [0.0, -1.0, -2.0, ILLEGAL]])
    keys = jax.random.split(jax.random.key(5), NUM_DRAWS)
    actions = jax.jit(jax.vmap(lambda key: epsilon_greedy(key, q_values, epsilon)))(keys)
    assert_shares(actions[:, 0], [0, 1 - epsilon / 2, 0, epsilon / 2])
    assert_shares(actions[:, 1], [1 - epsilon * 2 / 3, epsilon / 3, epsilon / 3, 0])


def test_the_random_policy_takes_every_legal_action_as_often():
    legal = jnp.array([[True, False, True], [False, False, True]])
    env = make_env("Catch-bsuite", 2)._replace(legal=lambda obs: legal[obs])
    keys = jax.random.split(jax.random.key(6), NUM_DRAWS)
    policy = random_policy(env)
    actions = jax.jit(jax.vmap(lambda key: policy(jnp.arange(2), key)))(keys)
    assert_shares(actions[:, 0], [1 / 2, 0, 1 / 2])
    assert_shares(actions[:, 1], [0, 0, 1])


@pytest.mark.parametrize("env_id", ["CartPole-v1", "FrozenLake-misc", "Breakout-MinAtar"])
def test_the_random_policy_takes_every_discrete_action_as_often(env_id):
    env = make_env(env_id, 8)
    keys = jax.random.split(jax.random.key(3), NUM_DRAWS // 8)
    actions = jax.jit(jax.vmap(lambda key: random_policy(env)(None, key)))(keys)
    assert actions.shape == (len(keys), 8) and jnp.issubdtype(actions.dtype, jnp.integer)
    assert_shares(actions, np.full(env.num_actions, 1 / env.num_actions))
    assert_shares(actions[:, 0] == actions[:, 1], [1 - 1 / env.num_actions, 1 / env.num_actions])


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "Reacher-misc"])
def test_the_random_policy_is_uniform_in_every_component_of_a_continuous_action(env_id):
    """Within [-1, 1], whatever the environment's bounds."""
    env = make_env(env_id, 8)
    keys = jax.random.split(jax.random.key(4), NUM_DRAWS // 8)
    actions = jax.jit(jax.vmap(lambda key: random_policy(env)(None, key)))(keys)
    assert actions.shape == (len(keys), 8, *env.action_shape)
    assert actions.min() >= -1 and actions.max() <= 1
    columns = np.asarray(actions).reshape(len(keys), -1)
    for column in columns.T:
        assert_shares(np.floor((column + 1) * 4).clip(0, 7).astype(int), np.full(8, 1 / 8))
    correlation = np.corrcoef(columns.T) - np.eye(columns.shape[1])
    assert np.abs(correlation).max() < 5 / np.sqrt(len(keys))
