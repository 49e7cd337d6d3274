"""value_iteration.py: exact values, and agreement with an independent solver."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import trained

from algorithms.value_iteration import Config, make, policy_improvement, sweep_q, sweep_v
from common.environments.mdp import MDP
from common.environments.tabular import TABULAR, make_mdp

TWO_STATES = MDP(  # action 0 stays with reward 1, action 1 leads to the other state with reward 0
    P=jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.5, 0.5]]]),
    R=jnp.array([[[1.0, 9.0], [9.0, 0.0]], [[9.0, 2.0], [4.0, 8.0]]]),
    start=jnp.array([1.0, 0.0]),
    terminal=jnp.array([False, False]),
)


def test_one_sweep_of_v_by_hand():
    v, q = sweep_v(TWO_STATES, jnp.array([10.0, 20.0]), 0.5)
    # q(0,·) = 1 + .5·10, 0 + .5·20;  q(1,·) = 2 + .5·20, .5 (4 + 5) + .5 (8 + 10)
    np.testing.assert_allclose(q, [[6, 10], [12, 13.5]])
    np.testing.assert_allclose(v, [10, 13.5])


def test_one_sweep_of_q_by_hand():
    q = jnp.array([[10.0, 3.0], [-1.0, 20.0]])  # its maxima are the v above
    _, q = sweep_q(TWO_STATES, q, 0.5)
    np.testing.assert_allclose(q, [[6, 10], [12, 13.5]])


def test_an_action_stays_unless_another_is_better_by_more_than_theta():
    q = jnp.array([[1.0, 1.0], [1.0, 1.05], [1.0, 1.2], [0.0, 5.0]])
    policy = policy_improvement(jnp.array([1, 0, 0, 1]), q, 0.1)
    np.testing.assert_array_equal(policy, [1, 0, 1, 1])


def solved(env_id, gamma, num_sweeps, table="V", seeds=(0,)):
    algorithm = make(Config(env_id=env_id, gamma=gamma, num_sweeps=num_sweeps, table=table))
    return algorithm, trained(algorithm, list(seeds), num_sweeps)


# Exact values by linear solves, and gymnasium's tables; the mean over starts for Taxi.
EXACT = [
    ("CliffWalking-tabular", 1.0, 100, -13.0),
    ("CliffWalking-tabular", 0.99, 100, -12.247898),
    ("FrozenLake-tabular", 1.0, 5_000, 0.823529),
    ("FrozenLake-tabular", 0.99, 3_000, 0.542026),
    ("FrozenLake-tabular", 0.9, 500, 0.068891),
    ("FrozenLake8x8-tabular", 0.99, 3_000, 0.414640),
    ("Taxi-tabular", 1.0, 50, 7.93),
    ("Taxi-tabular", 0.99, 50, 6.327464),
]


@pytest.mark.parametrize("table", ["V", "Q"])
@pytest.mark.parametrize("env_id, gamma, num_sweeps, exact", EXACT)
def test_values_of_the_start_are_exact(env_id, gamma, num_sweeps, exact, table):
    with jax.enable_x64(True):
        _, progress = solved(env_id, gamma, num_sweeps, table)
        value = make_mdp(env_id).start @ np.asarray(progress.state.params.v[0])
    np.testing.assert_allclose(value, exact, atol=1e-6)


def test_optimal_values_of_the_5x5_grid_are_those_of_figure_3_5():
    _, progress = solved("GridWorld5x5-tabular", 0.9, 300)
    expected = """22.0 24.4 22.0 19.4 17.5 19.8 22.0 19.8 17.8 16.0 17.8 19.8 17.8 16.0 14.4
                  16.0 17.8 16.0 14.4 13.0 14.4 16.0 14.4 13.0 11.7"""
    expected = np.array(expected.split(), float)
    np.testing.assert_allclose(progress.state.params.v[0], expected, atol=0.05)


def policy_iteration(mdp, gamma):
    """An independent solver: evaluation by a linear solve, greedy improvement; v [S]."""
    P, R = np.asarray(mdp.P, float), np.asarray(mdp.R, float)
    states, rewards = np.arange(len(P)), (P * R).sum(-1)
    policy = np.zeros(len(P), int)
    while True:
        v = np.linalg.solve(np.eye(len(P)) - gamma * P[states, policy], rewards[states, policy])
        q = rewards + gamma * P @ v
        if np.all(q.max(-1) <= q[states, policy] + 1e-12):
            return v
        policy = q.argmax(-1)


@pytest.mark.parametrize("env_id", [name for name, entry in TABULAR.items() if not entry.random])
def test_it_agrees_with_policy_iteration_on_every_mdp(env_id):
    with jax.enable_x64(True):
        _, progress = solved(env_id, 0.9, 300)
        v = np.asarray(progress.state.params.v[0])
    np.testing.assert_allclose(v, policy_iteration(make_mdp(env_id), 0.9), atol=1e-6)


def test_every_seed_solves_its_own_garnet():
    with jax.enable_x64(True):
        algorithm, progress = solved("Garnet-tabular", 0.9, 300, seeds=(0, 1, 2))
        values = np.asarray(progress.state.params.v)
        for v, seed in zip(values, range(3), strict=True):
            exact = policy_iteration(make_mdp("Garnet-tabular", jax.random.key(seed)), 0.9)
            np.testing.assert_allclose(v, exact, atol=1e-6)
    assert algorithm.act is None  # no environment has the seed's own MDP
    assert not np.allclose(values[0], values[1])


def test_the_bellman_residual_is_the_largest_change_and_contracts():
    algorithm = make(Config(env_id="GridWorld5x5-tabular", gamma=0.9))
    state, residuals = jax.jit(algorithm.init)(jax.random.key(0)), []
    for step in range(10):
        before = np.asarray(state.params.v)
        state, metrics = jax.jit(algorithm.update)(state, step)
        residuals.append(float(metrics["bellman_residual"]))
        assert residuals[-1] == np.abs(np.asarray(state.params.v) - before).max()
    assert residuals[0] == 10
    assert all(b <= 0.9 * a + 1e-5 for a, b in zip(residuals[:-1], residuals[1:], strict=True))


def test_the_greedy_policy_walks_the_optimal_path():
    algorithm, progress = solved("CliffWalking-tabular", 1.0, 100)
    params = jax.tree.map(lambda x: x[0], progress.state.params)
    mdp, state, total = make_mdp("CliffWalking-tabular"), 36, 0
    while not mdp.terminal[state]:
        action = int(algorithm.act(params, state, None))
        next_state = int(mdp.P[state, action].argmax())
        total += mdp.R[state, action, next_state]
        state = next_state
    assert total == -13


def chance_to_arrive(env_id, policy):
    """The probability [] that a policy [S] reaches the goal within the time limit."""
    mdp, states = make_mdp(env_id), np.arange(len(policy))
    where = mdp.start
    for _ in range(TABULAR[env_id].max_steps):
        where = where @ mdp.P[states, policy]
    return where @ mdp.terminal


@pytest.mark.parametrize("gamma", [1.0, None])
@pytest.mark.parametrize("table", ["V", "Q"])
@pytest.mark.parametrize("env_id", ["DynaMaze-tabular", "FourRooms-tabular"])
def test_the_policy_arrives_even_where_all_values_are_1(env_id, table, gamma):
    """A mere argmax over the last Q arrives never in the maze, and in 23 % of the rooms' starts."""
    _, progress = solved(env_id, gamma, 500, table)
    policy = np.asarray(progress.state.params.policy[0])
    assert chance_to_arrive(env_id, policy) > 1 - 1e-6
    spread = np.ptp(np.asarray(progress.state.params.v[0])[~make_mdp(env_id).terminal])
    assert (spread < 1e-3) == (gamma == 1.0)  # by default the values show the way
