"""q_learning.py: its equations by hand, the probes, and the cliff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    check_table_probe,
    check_table_steps,
    error_on_the_cliff,
    histories,
    keys,
    online_return,
    trained,
)

from algorithms import q_learning
from algorithms.q_learning import Config, make, td_error
from common.envs import make_env
from common.runner.evaluation import evaluate


@pytest.mark.parametrize("terminated", [False, True])
def test_td_error_bootstraps_unless_terminated(terminated):
    error = td_error(3.0, 2.0, 5.0, jnp.array(terminated), 0.5)
    assert error == 2 + 0.5 * 5 * (not terminated) - 3


def test_a_step_moves_q_to_the_best_next_value(monkeypatch):
    check_table_steps(q_learning, monkeypatch, lambda q, entry, obs: q[obs].max())


def test_one_step_changes_one_entry_by_alpha_times_the_error():
    algorithm = make(Config(steps_per_update=1, total_timesteps=1, learning_rate=0.25))
    before = jax.jit(algorithm.init)(jax.random.key(0))
    q = before.params.at[:].set(-8.0)
    after, metrics = jax.jit(algorithm.update)(before._replace(params=q), jnp.int32(0))
    np.testing.assert_array_equal(after.visits, after.params != -8)
    changed = np.argwhere(np.asarray(after.params) != -8)
    assert changed.shape == (1, 2) and changed[0, 0] == 36  # the start of the cliff walk
    # δ = r + γ max Q - Q = r, and r is -1, or -100 into the cliff
    assert float(metrics["td_error"]) in (1.0, 100.0)
    assert after.params[tuple(changed[0])] == -8 - 0.25 * metrics["td_error"]


@pytest.mark.parametrize("name", ["Together-probe", "ResetTrap-probe"])
def test_it_learns_the_values_and_best_actions_of_the_probes(name):
    check_table_probe(q_learning, name)


def test_cliff_walking_as_in_figure_6_4():
    """Sutton & Barto 2018, Figure 6.4: ε = .1, α = .5, γ = 1, 500 episodes. The online return of
    the last 100 lies in [-53, -47] over 64 seeds (an independent simulation of 100 runs gave
    -50.2; the exact ε-greedy return of Q* is -50.8), and the greedy path is optimal, -13."""
    algorithm = make(Config(steps_per_update=1, total_timesteps=25_000))
    states, returns = histories(algorithm, "episode_return", 64)
    online = online_return([x[~np.isnan(x)] for x in returns])
    assert -53 <= online <= -47, online
    env = make_env("CliffWalking-tabular", 1)
    play = jax.vmap(lambda q, key: evaluate(env, algorithm.act, q, key)[0])
    np.testing.assert_array_equal(play(states.params, keys(*range(64))), -13)


def test_with_decaying_steps_it_converges_to_the_optimal_values():
    """The largest error over all states and actions that can be reached is below .05 of the range
    of the true values, for every one of 64 seeds."""
    config = Config(total_timesteps=30_000, learning_rate=1.0, learning_rate_power=0.6, epsilon=0.5)
    error = error_on_the_cliff(make(config), 64)
    assert error.max() <= 0.05, error


@pytest.mark.parametrize("env_id", ["FrozenLake-misc", "FrozenLake-tabular"])
def test_frozen_lake_is_the_same_through_gymnax_and_as_a_table(env_id):
    """The exact optimum within 100 steps is .744 (dynamic programming); a constant step size and
    ε = .1 come near it."""
    config = Config(env_id=env_id, total_timesteps=200_000, gamma=0.99, learning_rate=0.05)
    algorithm = make(config)
    progress = trained(algorithm, range(8), algorithm.num_updates)
    env = make_env(env_id, 400)
    play = jax.jit(jax.vmap(lambda q, key: evaluate(env, algorithm.act, q, key)[0].mean()))
    returns = np.asarray(play(progress.state.params, keys(*range(8))))
    assert np.median(returns) >= 0.70, returns  # gymnasium's reward threshold for FrozenLake-v1
