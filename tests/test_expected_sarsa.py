"""expected_sarsa.py: its equations by hand, the probes, the cliff, and where it converges to."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    check_table_probe,
    check_table_steps,
    episode_returns,
    error_on_the_cliff,
    online_return,
)

from algorithms import expected_sarsa
from algorithms.expected_sarsa import Config, epsilon_greedy_probabilities, make, td_error

NEXT_Q = jnp.array([4.0, 5.0])


@pytest.mark.parametrize("terminated", [False, True])
def test_td_error_bootstraps_unless_terminated(terminated):
    next_value = epsilon_greedy_probabilities(NEXT_Q, 0.2) @ NEXT_Q
    expected = 2 + 0.5 * (0.1 * 4 + 0.9 * 5) * (not terminated) - 3
    error = td_error(3.0, 2.0, next_value, jnp.array(terminated), 0.5)
    np.testing.assert_allclose(error, expected, rtol=1e-6)


def test_a_step_moves_q_to_the_mean_next_value(monkeypatch):
    mean = lambda q, entry, obs: 0.9 * q[obs].max() + 0.1 * q[obs].min()  # of two actions
    check_table_steps(expected_sarsa, monkeypatch, mean, target_epsilon=0.2)


def test_by_default_the_target_explores_as_much_as_the_agent(monkeypatch):
    """The agent has ε = .8: of two actions the best has .6 of the mean, the other .4."""
    mean = lambda q, entry, obs: 0.6 * q[obs].max() + 0.4 * q[obs].min()
    check_table_steps(expected_sarsa, monkeypatch, mean)


@pytest.mark.parametrize(
    "epsilon, expected",
    [
        (0.0, [0, 0.5, 0.5, 0]),
        (0.2, [0.05, 0.45, 0.45, 0.05]),
        (1.0, [0.25, 0.25, 0.25, 0.25]),
    ],
)
def test_probabilities_split_ties_evenly(epsilon, expected):
    probabilities = epsilon_greedy_probabilities(jnp.array([1.0, 3.0, 3.0, 0.0]), epsilon)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["Together-probe", "ResetTrap-probe"])
def test_it_learns_the_values_and_best_actions_of_the_probes(name):
    check_table_probe(expected_sarsa, name)


def test_cliff_walking_as_in_figure_6_4():
    """Sutton & Barto 2018, Figure 6.4: ε = .1, α = .5, γ = 1, 500 episodes. The online return of
    the last 100 is -20.71 ± .7 over 64 seeds: that of the best ε-soft policy is -20.7077."""
    algorithm = make(Config(steps_per_update=1, total_timesteps=20_000))
    online = online_return(episode_returns(algorithm, 64))
    assert -21.41 <= online <= -20.01, online


@pytest.mark.parametrize("target_epsilon", [0.0, 0.1])
def test_with_decaying_steps_it_converges_to_the_best_values_of_its_target(target_epsilon):
    """The largest error over all states and actions that can be reached is below .05 of the range
    of the true values, for every one of 64 seeds. Target ε = 0: Q*."""
    config = Config(
        total_timesteps=30_000,
        learning_rate=1.0,
        learning_rate_power=0.6,
        epsilon=0.5,
        target_epsilon=target_epsilon,
    )
    error = error_on_the_cliff(make(config), 64, target_epsilon)
    assert error.max() <= 0.05, error
