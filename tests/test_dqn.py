"""dqn.py: its equations by hand, and what it learns."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    check_budget,
    check_q_probe,
    check_td_loss,
    first_update,
    pairs,
    relu_mlp,
    states_of,
)

from algorithms import dqn
from algorithms.dqn import Config, make, td_error
from common.exploration import epsilon_greedy, linear_schedule

PARAMS = jnp.array([[7.0, 3.0], [1.0, 5.0]])  # Q(s, a; θ): the action taken is worth 3
TARGET_PARAMS = jnp.array([[0.0, 0.0], [40.0, 20.0]])  # max_a' Q(s', a'; θ⁻) = 40


def error(params, target_params, terminated=False):
    """The TD error from state 0 to 1 by action 1, with reward 2 and γ = 0.5."""
    return td_error(params[0, 1], 2.0, jnp.max(target_params[1]), terminated, 0.5)


@pytest.mark.parametrize("terminated", [False, True])
def test_td_error_bootstraps_unless_terminated(terminated):
    with jax.numpy_rank_promotion("raise"):
        got = error(PARAMS, TARGET_PARAMS, jnp.array(terminated))
    assert got == 2 + 0.5 * 40 * (not terminated) - 3


def test_gradient_is_semi_gradient():
    """Only Q(s, a; θ) is differentiated: neither the target nor any other entry of θ."""
    gradient, target_gradient = jax.grad(error, argnums=(0, 1))(PARAMS, TARGET_PARAMS)
    np.testing.assert_array_equal(gradient, [[0, -1], [0, 0]])
    np.testing.assert_array_equal(target_gradient, np.zeros((2, 2)))
    same = jax.grad(lambda params: error(params, params))(PARAMS)
    np.testing.assert_array_equal(same, [[0, -1], [0, 0]])


def test_an_update_descends_the_squared_td_error_of_its_batch():
    update = first_update(dqn)
    next_q = relu_mlp(update.state.target_params, update.batch.next_obs)
    check_td_loss(update, relu_mlp, next_q.max(-1))


def test_epsilon_greedy_takes_the_best_action_with_probability_1_minus_epsilon_and_a_share():
    q_values = jnp.tile(jnp.array([0.0, 2.0, 1.0, -1.0]), (40_000, 1))
    actions = np.asarray(epsilon_greedy(jax.random.key(0), q_values, 0.4))
    np.testing.assert_allclose(np.bincount(actions) / 40_000, [0.1, 0.7, 0.1, 0.1], atol=0.01)
    assert (epsilon_greedy(jax.random.key(1), q_values, 0.0) == 1).all()


def test_epsilon_falls_linearly_and_then_stays():
    steps = jnp.array([0, 25, 50, 100, 101, 10**6])
    expected = [1.0, 0.775, 0.55, 0.1, 0.1, 0.1]
    np.testing.assert_allclose(linear_schedule(steps, 1.0, 0.1, 100), expected, rtol=1e-6)


def small(**fields):
    defaults = {
        "total_timesteps": 1_000,
        "learning_starts": 100,
        "buffer_size": 500,
        "batch_size": 16,
        "hidden_sizes": (16,),
        "num_envs": 5,
    }
    return Config(**defaults | fields)


@pytest.fixture(scope="module")
def states():
    """Seven updates of 10 transitions into a ring of 40 that began with 20."""
    fields = {"buffer_size": 40, "learning_starts": 20, "train_frequency": 2}
    return states_of(make(small(target_network_frequency=3, **fields)), 7)


def test_target_network_is_copied_at_its_period_and_only_then(states):
    for number, (before, after) in enumerate(pairwise(states), start=1):
        expected = after.params if number % 3 == 0 else before.target_params
        for got, want in pairs(after.target_params, expected):
            np.testing.assert_array_equal(got, want)
        assert not np.array_equal(before.params[0][0], after.params[0][0])


def test_target_network_moves_by_tau():
    before, after = states_of(make(small(target_network_frequency=1, tau=0.25)), 1)
    mixed = optax.incremental_update(after.params, before.target_params, 0.25)
    np.testing.assert_allclose(after.target_params[0][0], mixed[0][0], rtol=1e-6)
    assert not np.array_equal(after.target_params[0][0], before.target_params[0][0])


def test_replay_holds_the_latest_transitions_in_order_of_writing(states):
    for step, (before, after) in enumerate(pairwise(states)):
        start = (2 + step) % 4 * 10
        old, new = (np.asarray(state.buffer.obs) for state in (before, after))
        written = np.arange(start, start + 10)
        np.testing.assert_array_equal(np.delete(old, written, 0), np.delete(new, written, 0))
        np.testing.assert_array_equal(new[start : start + 5], np.asarray(before.env.obs))
        assert not np.array_equal(old[written], new[written])


def test_the_budget_counts_every_environment_step():
    check_budget(make(small(learning_starts=101)), 105, 1_000)


def test_minatar_is_replayed_as_bool_and_seen_by_a_convolution():
    algorithm = make(small(env_id="Breakout-MinAtar", buffer_size=100))
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    for images in (state.buffer.obs, state.buffer.next_obs):
        assert images.shape == (100, 10, 10, 4) and images.dtype == bool
    numbers = jax.tree.leaves(state.buffer._replace(obs=(), next_obs=()))
    assert [x.dtype for x in numbers] == [jnp.int32, jnp.float32, bool, bool]
    assert state.params[0][0].shape == (9 * 4, 16)  # 16 filters of 3 x 3
    after, _ = jax.jit(algorithm.update)(jax.jit(algorithm.init)(jax.random.key(0)), jnp.int32(0))
    assert np.isfinite(after.params[0][0]).all()


@pytest.mark.parametrize(
    "name", ["Together-probe", "TogetherVector-probe", "ResetTrapVector-probe"]
)
def test_it_learns_the_values_and_best_actions_of_the_probes(name):
    check_q_probe(dqn, name)
