"""double_dqn.py: its equation by hand, and what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import check_q_probe, check_td_loss, first_update, relu_mlp

from algorithms import double_dqn, dqn
from algorithms.double_dqn import td_error

PARAMS = jnp.array([[7.0, 3.0], [1.0, 5.0]])  # Q(s, a; θ) = 3, and argmax_a' Q(s', a'; θ) = 1
TARGET_PARAMS = jnp.array([[0.0, 0.0], [40.0, 20.0]])  # Q(s', 1; θ⁻) = 20, not the greatest


def error(params, target_params, terminated=False):
    """The TD error from state 0 to 1 by action 1, with reward 2 and γ = 0.5."""
    next_value = target_params[1][jnp.argmax(params[1])]
    return td_error(params[0, 1], 2.0, next_value, terminated, 0.5)


@pytest.mark.parametrize("terminated", [False, True])
def test_td_error_bootstraps_unless_terminated(terminated):
    with jax.numpy_rank_promotion("raise"):
        got = error(PARAMS, TARGET_PARAMS, jnp.array(terminated))
    assert got == 2 + 0.5 * 20 * (not terminated) - 3


def test_gradient_is_semi_gradient():
    """Only Q(s, a; θ) is differentiated: neither the choice nor the value of the next action."""
    gradient, target_gradient = jax.grad(error, argnums=(0, 1))(PARAMS, TARGET_PARAMS)
    np.testing.assert_array_equal(gradient, [[0, -1], [0, 0]])
    np.testing.assert_array_equal(target_gradient, np.zeros((2, 2)))
    same = jax.grad(lambda params: error(params, params))(PARAMS)
    np.testing.assert_array_equal(same, [[0, -1], [0, 0]])


def test_an_update_values_the_action_that_theta_chooses():
    update = first_update(double_dqn)
    next_obs = update.batch.next_obs
    chosen = relu_mlp(update.state.params, next_obs).argmax(-1)
    next_q = relu_mlp(update.state.target_params, next_obs)
    assert (chosen != next_q.argmax(-1)).any()
    check_td_loss(update, relu_mlp, jnp.take_along_axis(next_q, chosen[:, None], axis=-1)[:, 0])


@pytest.fixture(scope="module")
def tables():
    """First updates of both files, where a network without hidden layers is a table."""
    fields = {"env_id": "Together-probe", "hidden_sizes": (), "gamma": 1.0}
    return {module: first_update(module, **fields) for module in (dqn, double_dqn)}


def mean_errors(update, params, target_params):
    """The mean TD error of the batch, for each of many tables: the loss is the mean square, so that
    its gradient along the biases adds up to minus twice the mean."""

    def mean_error(params, target_params):
        state = update.state._replace(params=params, target_params=target_params)
        after, _ = update.algorithm.update(state, jnp.int32(0))
        _, bias = after.opt_state[0].mu[0]
        return -jnp.sum(bias) / (1 - 0.9) / 2

    return np.asarray(jax.jit(jax.vmap(mean_error))(params, target_params))


def random_tables(key, update):
    """4,000 tables of N(0, 1)."""
    weights, bias = update.state.params[0]
    return [(jax.random.normal(key, (4_000, *weights.shape)), jnp.zeros((4_000, *bias.shape)))]


def test_it_is_dqn_when_both_networks_agree(tables):
    """The same values, or three times as great: the same order of actions."""
    params = random_tables(jax.random.key(0), tables[dqn])
    for factor in (1, 3, -1):
        target_params = jax.tree.map(lambda x, factor=factor: factor * x, params)
        errors = [mean_errors(update, params, target_params) for update in tables.values()]
        if factor > 0:
            np.testing.assert_allclose(errors[1], errors[0], rtol=1e-5, atol=1e-5)
        else:
            assert (errors[1] < errors[0] - 0.001).all()  # the least value for the greatest


def test_noise_in_the_target_network_is_not_maximised(tables):
    """All actions are worth 0 but for noise: DQN's target is too high, this one is not."""
    params, target_params = (
        random_tables(key, tables[dqn]) for key in jax.random.split(jax.random.key(0), 2)
    )
    for module, update in tables.items():
        batch = update.batch
        noise = np.mean(~batch.terminated) * 0.5642  # E of the greater of 2 N(0, 1)
        expected = batch.reward.mean() + (noise if module is dqn else 0)
        assert noise > 0.2
        assert abs(mean_errors(update, params, target_params).mean() - expected) < 0.05


@pytest.mark.parametrize("name", ["Together-probe", "ResetTrapVector-probe"])
def test_it_learns_the_values_and_best_actions_of_the_probes(name):
    check_q_probe(double_dqn, name)
