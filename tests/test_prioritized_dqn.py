"""prioritized_dqn.py: its equations by hand, and what it learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import check_q_probe, relu_mlp, states_of

from algorithms import prioritized_dqn
from algorithms.prioritized_dqn import Config, importance_weights, make, priority, td_error
from common.prioritized import sample_rows, set_priorities

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


def test_priority_by_hand():
    errors = jnp.array([0.0, 3.75, -3.75, -0.75])
    np.testing.assert_allclose(priority(errors, 0.5, 0.25), [0.5, 2, 2, 1])
    np.testing.assert_allclose(priority(errors, 1.0, 0.25), [0.25, 4, 4, 1])
    np.testing.assert_array_equal(priority(errors, 0.0, 0.25), np.ones(4))


@pytest.mark.parametrize("num_transitions", [3, 1_000])
@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_importance_weights_are_those_of_the_paper(num_transitions, beta):
    probability = np.array([0.02, 0.5, 0.08])
    weights = (num_transitions * probability) ** -beta
    got = importance_weights(jnp.array(probability), beta)
    np.testing.assert_allclose(got, weights / weights.max(), rtol=1e-6)
    assert got.max() == 1


def test_importance_weights_by_hand():
    got = importance_weights(jnp.array([0.01, 0.04, 0.09]), 0.5)
    np.testing.assert_allclose(got, [1, 1 / 2, 1 / 3], rtol=1e-6)


def small(**fields):
    defaults = {
        "total_timesteps": 1_000,
        "learning_starts": 100,
        "buffer_size": 500,
        "batch_size": 16,
        "hidden_sizes": (16,),
        "num_envs": 5,
        "prioritized_replay_alpha": 0.7,
        "prioritized_replay_beta": 0.3,
        "prioritized_replay_eps": 0.01,
    }
    return Config(**defaults | fields)


@functools.cache
def programs(config):
    """The State before an update, of a key and a step; and the update; jitted."""
    algorithm = make(config)
    next_state = lambda step, state: algorithm.update(state, step)[0]
    before = lambda key, step: jax.lax.fori_loop(0, step, next_state, algorithm.init(key))
    return jax.jit(before), jax.jit(algorithm.update)


def drawn(config, before, step):
    """What an update draws, and the priorities by which it does, with those of the new rows."""
    after, metrics = programs(config)[1](before, jnp.int32(step))
    new_rows = (20 + step) * 5 % 500 + jnp.arange(5)
    priorities = set_priorities(before.priorities, new_rows, before.priorities.largest)
    key_sample = jax.random.split(jax.random.fold_in(before.key, step))[1]
    index, probability = sample_rows(priorities, key_sample, config.batch_size)
    return index, probability, priorities, after, metrics


@pytest.mark.parametrize("step", [0, 90, 179])
def test_an_update_weights_the_loss_and_renews_the_priorities(step):
    """179 is the last update, where β is nearly 1; the ring has wrapped by then."""
    config = small()
    assert make(config).num_updates == 180
    before = programs(config)[0](jax.random.key(0), jnp.int32(step))
    index, _, priorities, after, metrics = drawn(config, before, step)
    t = jax.tree.map(lambda x: x[index], after.buffer)
    next_values = relu_mlp(before.target_params, t.next_obs).max(-1)
    values = relu_mlp(before.params, t.obs)[np.arange(16), t.action]
    errors = np.asarray(t.reward + 0.99 * ~t.terminated * next_values - values, np.float64)

    leaves = np.asarray(priorities.sum_tree[0], np.float64)
    probability = leaves[index] / leaves.sum()
    beta = 0.3 + 0.7 * step / 180
    weights = (500 * probability) ** -beta
    loss = np.mean(weights / weights.max() * errors**2)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-4)

    leaves[index] = (np.abs(errors) + 0.01) ** 0.7
    np.testing.assert_allclose(after.priorities.sum_tree[0], leaves, rtol=1e-3)
    largest = max(before.priorities.largest, leaves[index].max())
    np.testing.assert_allclose(after.priorities.largest, largest, rtol=1e-3)


def test_alpha_0_draws_uniformly_and_weights_nothing():
    states = states_of(make(small(prioritized_replay_alpha=0.0)), 30)
    leaves = np.asarray(states[-1].priorities.sum_tree[0])
    np.testing.assert_array_equal(leaves, np.arange(len(leaves)) < 100 + 30 * 5)
    _, probability, *_ = drawn(small(prioritized_replay_alpha=0.0), states[-1], 30)
    np.testing.assert_allclose(importance_weights(probability, 1.0), np.ones(16), rtol=1e-6)


def test_new_rows_have_the_largest_priority_beyond_what_float32_counts():
    """Update 2^24 + 1 still writes its own rows, and they are those of its priorities."""
    before = states_of(make(small()), 1)[-1]
    before = before._replace(priorities=before.priorities._replace(largest=jnp.float32(7.5)))
    step = 2**24 + 1
    index, _, _, after, _ = drawn(small(), before, step)
    new_rows = (20 + step) * 5 % 500 + np.arange(5)
    moved = np.any(np.asarray(after.buffer.obs != before.buffer.obs), axis=-1)
    np.testing.assert_array_equal(np.flatnonzero(moved), new_rows)
    unseen = np.setdiff1d(new_rows, index)
    assert len(unseen) and (after.priorities.sum_tree[0][unseen] == 7.5).all()


@pytest.mark.parametrize(
    "name",
    [
        "Together-probe",
        pytest.param("TogetherVector-probe", marks=pytest.mark.slow),
        "ResetTrapVector-probe",
    ],
)
def test_it_learns_the_values_and_best_actions_of_the_probes(name):
    check_q_probe(prioritized_dqn, name)
