"""double_dqn.py: its equation by hand, and what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import check_q_probe, every_end

from algorithms import double_dqn, dqn
from algorithms.double_dqn import td_error
from common.envs import Transition, make_env
from common.networks import network_for


def q(params, obs):
    return params[obs]


def transition(terminated, truncated):
    return Transition(jnp.int32(0), jnp.int32(1), 2.0, jnp.int32(1), terminated, truncated)


PARAMS = jnp.array([[7.0, 3.0], [1.0, 5.0]])  # Q(s, a; θ) = 3, and argmax_a' Q(s', a'; θ) = 1
TARGET_PARAMS = jnp.array([[0.0, 0.0], [40.0, 20.0]])  # Q(s', 1; θ⁻) = 20, not the greatest


@every_end
def test_td_error_values_the_action_that_theta_chooses(terminated, truncated, bootstraps):
    t = transition(jnp.array(terminated), jnp.array(truncated))
    with jax.numpy_rank_promotion("raise"):
        error = td_error(PARAMS, TARGET_PARAMS, t, q, 0.5)
    assert error == 2 + 0.5 * 20 * bootstraps - 3


@every_end
def test_it_is_dqn_when_both_networks_agree(terminated, truncated, bootstraps):
    t = transition(jnp.array(terminated), jnp.array(truncated))
    for target_params in (PARAMS, 3 * PARAMS):  # the same values, the same order of actions
        expected = dqn.td_error(PARAMS, target_params, t, q, 0.5)
        assert td_error(PARAMS, target_params, t, q, 0.5) == expected
    assert td_error(PARAMS, -PARAMS, t, q, 0.5) == 2 - 0.5 * 5 * bootstraps - 3


def test_noise_in_the_target_network_is_not_maximised():
    """All next actions are worth 0 but for noise: DQN's target is too high, this one is not."""
    keys = jax.random.split(jax.random.key(0), 2)
    params, target_params = (jax.random.normal(key, (4_000, 2, 10)) for key in keys)
    t = transition(jnp.array(False), jnp.array(False))
    targets = {
        module: jax.vmap(module.td_error, (0, 0, None, None, None))(
            params.at[:, 0].set(0), target_params, t, q, 1.0
        )
        for module in (dqn, double_dqn)
    }
    assert abs(targets[double_dqn].mean() - 2) < 0.05
    assert abs(targets[dqn].mean() - (2 + 1.539)) < 0.05  # E of the greatest of 10 N(0, 1)


def test_gradient_is_semi_gradient():
    """Only Q(s, a; θ) is differentiated: neither the choice nor the value of the next action."""
    t = transition(jnp.array(False), jnp.array(False))
    gradient, target_gradient = jax.grad(td_error, argnums=(0, 1))(PARAMS, TARGET_PARAMS, t, q, 0.5)
    np.testing.assert_array_equal(gradient, [[0, -1], [0, 0]])
    np.testing.assert_array_equal(target_gradient, np.zeros((2, 2)))
    same = jax.grad(lambda params: td_error(params, params, t, q, 0.5))(PARAMS)
    np.testing.assert_array_equal(same, [[0, -1], [0, 0]])


def values_of(config, state, obs):
    network = network_for(make_env(config.env_id, 1), config.hidden_sizes, 2)
    return network.apply(state.params, obs).max(-1)


@pytest.mark.parametrize("name", ["Together-probe", "ResetTrapVector-probe"])
def test_it_learns_the_values_and_best_actions_of_the_probes(name):
    check_q_probe(double_dqn, name, values_of)
