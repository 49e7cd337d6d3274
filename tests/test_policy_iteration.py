"""policy_iteration.py: exact values, and agreement with a linear solve, as value_iteration.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algorithms.policy_iteration import Config, make, policy_evaluation, policy_improvement
from common.environments.mdp import MDP
from common.environments.tabular import TABULAR, make_mdp

TWO_STATES = MDP(  # action 0 stays with reward 1, action 1 leads to the other state with reward 0
    P=jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.5, 0.5]]]),
    R=jnp.array([[[1.0, 9.0], [9.0, 0.0]], [[9.0, 2.0], [4.0, 8.0]]]),
    start=jnp.array([1.0, 0.0]),
    terminal=jnp.array([False, False]),
)


def test_one_sweep_of_an_evaluation_by_hand():
    policy = jnp.array([[0.25, 0.75], [0.0, 1.0]])
    v, sweeps = policy_evaluation(TWO_STATES, policy, jnp.array([10.0, 20.0]), 0.5, 0.0, 1)
    # .25 (1 + .5·10) + .75 (0 + .5·20);  .5 (4 + .5·10) + .5 (8 + .5·20)
    np.testing.assert_allclose(v, [9, 13.5])
    assert sweeps == 1


def test_an_evaluation_ends_when_no_value_changes_by_more_than_theta():
    """Staying in the second state pays 2 a step: at γ = .5 sweep n changes V by 4 · 2⁻ⁿ, the most
    of all, and leaves it at 4 (1 - 2⁻ⁿ)."""
    stay = jnp.array([[1.0, 0.0], [1.0, 0.0]])
    for theta, most, sweeps in [(2.0, 9, 1), (1.9, 9, 2), (0.25, 9, 4), (0.2, 9, 5), (0.2, 3, 3)]:
        v, made = policy_evaluation(TWO_STATES, stay, jnp.zeros(2), 0.5, theta, most)
        assert made == sweeps
        np.testing.assert_allclose(v, [2 - 2 * 0.5**sweeps, 4 - 4 * 0.5**sweeps], rtol=1e-6)


def test_an_action_is_given_up_only_for_one_that_is_better_by_more_than_theta():
    q = jnp.array([[1.0, 2.0, 2.0], [1.0, 2.0, 2.0], [1.0, 1.0, 0.0], [1.0, 1.25, 0.0]])
    policy = policy_improvement(jnp.array([0, 2, 1, 0]), q, 0.25)
    np.testing.assert_array_equal(policy, [1, 2, 1, 0])


def solved(env_id, gamma, num_iterations=50, seed=0, **fields):
    """The params at the end, and the metrics of every update."""
    algorithm = make(Config(env_id=env_id, gamma=gamma, **fields))
    state, update, metrics = algorithm.init(jax.random.key(seed)), jax.jit(algorithm.update), []
    for step in range(num_iterations):
        state, measured = update(state, step)
        metrics.append(measured)
    return state.params, {name: np.array([x[name] for x in metrics]) for name in metrics[0]}


def test_the_random_policy_has_the_values_of_example_4_1():
    expected = [0, -14, -20, -22, -14, -18, -20, -20, -20, -20, -18, -14, -22, -20, -14, 0]
    with jax.enable_x64(True):
        mdp = jax.tree.map(jnp.asarray, make_mdp("GridWorld-tabular"))
        v, _ = policy_evaluation(mdp, jnp.full((16, 4), 0.25), jnp.zeros(16), 1.0, 1e-9, 10_000)
    np.testing.assert_allclose(v, expected, atol=1e-6)


# Exact values by linear solves, and gymnasium's tables; the mean over the starts.
EXACT = [
    ("CliffWalking-tabular", 1.0, -13.0),
    ("FrozenLake-tabular", 1.0, 0.823529),
    ("FrozenLake-tabular", 0.99, 0.542026),
    ("FrozenLake8x8-tabular", 0.99, 0.414640),
    ("WindyGridWorld-tabular", 1.0, -15.0),
    ("DynaMaze-tabular", 0.95, 0.95**13),
    ("Blackjack-tabular", 1.0, -0.0431131),
]


@pytest.mark.parametrize("env_id, gamma, exact", EXACT)
def test_values_of_the_start_are_exact(env_id, gamma, exact):
    with jax.enable_x64(True):
        params, _ = solved(env_id, gamma, theta=1e-10, num_sweeps=2_000 if gamma < 1 else 200)
        value = make_mdp(env_id).start @ np.asarray(params.v)
    np.testing.assert_allclose(value, exact, atol=1e-6)


def assert_optimal(env_id, params, gamma):
    """V is the policy's, by a linear solve, and solves the Bellman equation, to 1e-6."""
    mdp, states = make_mdp(env_id), np.arange(len(params.v))
    rewards, policy = np.einsum("ijk,ijk->ij", mdp.P, mdp.R), np.asarray(params.policy)
    system = np.eye(len(states)) - gamma * mdp.P[states, policy]
    exact = np.linalg.solve(system, rewards[states, policy])
    np.testing.assert_allclose(params.v, exact, atol=1e-6)
    np.testing.assert_allclose((rewards + gamma * mdp.P @ exact).max(1), exact, atol=1e-6)


FIXED = [name for name, entry in TABULAR.items() if not entry.random]


@pytest.mark.parametrize("env_id", [x for x in FIXED if x != "JacksCarRental-tabular"])
def test_it_agrees_with_a_linear_solve_on_every_mdp(env_id):
    with jax.enable_x64(True):
        params, _ = solved(env_id, 0.9, num_iterations=25, theta=1e-9)
    assert_optimal(env_id, params, 0.9)


def test_one_sweep_an_evaluation_is_value_iteration():
    """From V = 0, the first evaluation is of the first action; from then on V ← max_a of it."""
    params, _ = solved("GridWorld5x5-tabular", 0.9, 12, num_sweeps=1, theta=0.0)
    mdp = make_mdp("GridWorld5x5-tabular")
    v = (mdp.P[:, 0] * mdp.R[:, 0]).sum(-1)
    for _ in range(11):
        v = (mdp.P * (mdp.R + 0.9 * v)).sum(-1).max(-1)
    np.testing.assert_allclose(params.v, v, atol=1e-4)


@pytest.mark.parametrize(
    "env_id, num_sweeps, value",
    [("Gambler-tabular", 1, 0.3990636), ("Gambler-tabular", 1_000, 0.3990636)]
    + [("Taxi-tabular", 10, 7.93)],
)
def test_few_sweeps_or_many_the_policy_becomes_optimal_and_stable(env_id, num_sweeps, value):
    """In float32, where rounding parts what is equally good: stakes, and ways; nothing cycles."""
    _, metrics = solved(env_id, 1.0, 80, num_sweeps=num_sweeps)
    assert metrics["policy_changes"][0] > 0 and (metrics["policy_changes"][-20:] == 0).all()
    assert (metrics["sweeps"] <= num_sweeps).all()
    np.testing.assert_allclose(metrics["value"][-1], value, rtol=1e-5)


def test_metrics_count_changes_and_sweeps_and_measure_the_residual():
    algorithm = make(Config(env_id="GridWorld5x5-tabular", gamma=0.9, num_sweeps=3))
    before = jax.jit(algorithm.init)(jax.random.key(0))
    after, metrics = jax.jit(algorithm.update)(before, 0)
    mdp, v = make_mdp("GridWorld5x5-tabular"), np.asarray(after.params.v)
    q = (mdp.P * (mdp.R + 0.9 * v)).sum(-1)
    changed = (np.asarray(after.params.policy) != np.asarray(before.params.policy)).sum()
    assert metrics["policy_changes"] == changed > 0 and metrics["sweeps"] == 3
    np.testing.assert_allclose(metrics["bellman_residual"], np.abs(q.max(-1) - v).max(), rtol=1e-5)
    np.testing.assert_allclose(metrics["value"], v.mean(), rtol=1e-5)


def test_every_seed_solves_its_own_garnet():
    values = [np.asarray(solved("Garnet-tabular", 0.9, 20, seed)[0].v) for seed in range(2)]
    for seed, v in enumerate(values):
        mdp = make_mdp("Garnet-tabular", jax.random.key(seed))
        best = np.asarray((mdp.P * (mdp.R + 0.9 * v)).sum(-1).max(-1))
        np.testing.assert_allclose(v, best, atol=1e-4)
    assert make(Config(env_id="Garnet-tabular")).act is None  # no environment has a seed's own MDP
    assert not np.allclose(*values)


# Figure 4.2, the last policy: cars moved from the first place to the second; a row for each number
# of cars at the first place, from 20 down to 0, a column for 0 to 20 at the second.
FIGURE_4_2 = """
 5  5  5  5  4  4  3  3  3  3  2  2  2  2  2  1  1  1  0  0  0
 5  5  5  4  4  3  3  2  2  2  2  1  1  1  1  1  0  0  0  0  0
 5  5  5  4  3  3  2  2  1  1  1  1  0  0  0  0  0  0  0  0  0
 5  5  5  4  3  2  2  1  1  0  0  0  0  0  0  0  0  0  0  0  0
 5  5  5  4  3  2  1  1  0  0  0  0  0  0  0  0  0  0  0  0  0
 5  5  5  4  3  2  1  0  0  0  0  0  0  0  0  0  0  0  0  0  0
 5  5  4  4  3  2  1  0  0  0  0  0  0  0  0  0  0  0  0  0  0
 5  5  4  3  3  2  1  0  0  0  0  0  0  0  0  0  0  0  0  0  0
 5  5  4  3  2  2  1  0  0  0  0  0  0  0  0  0  0  0  0  0  0
 5  4  4  3  2  1  1  0  0  0  0  0  0  0  0  0  0  0  0  0  0
 4  4  3  3  2  1  0  0  0  0  0  0  0  0  0  0  0  0  0  0  0
 4  3  3  2  2  1  0  0  0  0  0  0  0  0  0  0  0  0  0  0  0
 3  3  2  2  1  1  0  0  0  0  0  0  0  0  0  0  0  0  0  0  0
 3  2  2  1  1  0  0  0  0  0  0  0  0  0  0  0  0  0  0  0  0
 2  2  1  1  0  0  0  0  0  0  0  0  0  0  0  0  0  0  0  0  0
 1  1  1  0  0  0  0  0  0  0  0  0  0  0  0  0  0  0  0  0  0
 0  0  0  0  0  0  0  0  0  0  0  0  0  0  0  0  0  0  0 -1 -1
 0  0  0  0  0  0  0  0  0  0  0  0  0  0  0 -1 -1 -1 -1 -1 -2
 0  0  0  0  0  0  0  0  0  0  0 -1 -1 -1 -1 -1 -2 -2 -2 -2 -2
 0  0  0  0  0  0  0  0  0 -1 -1 -1 -2 -2 -2 -2 -2 -3 -3 -3 -3
 0  0  0  0  0  0  0  0 -1 -1 -2 -2 -2 -3 -3 -3 -3 -3 -4 -4 -4
"""


def test_jack_moves_his_cars_as_in_figure_4_2():
    with jax.enable_x64(True):
        params, metrics = solved("JacksCarRental-tabular", 0.9, 6, theta=1e-8)
    assert metrics["policy_changes"][-1] == 0
    assert_optimal("JacksCarRental-tabular", params, 0.9)
    policy = np.asarray(params.policy).reshape(21, 21)
    first, second = np.indices((21, 21))
    moved = np.clip(policy - 5, -second, first)  # no more than there are
    np.testing.assert_array_equal(moved[::-1], np.array(FIGURE_4_2.split(), int).reshape(21, 21))
