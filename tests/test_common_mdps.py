"""The MDPs of common/mdps.py against gymnasium's tables, printed values and exact solutions."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.mdps import (
    MDP,
    TABULAR,
    cliff_walking,
    frozen_lake,
    garnet,
    grid_world,
    grid_world_5x5,
    make_mdp,
    tabulate,
    taxi,
)

BUILT = {env_id: make_mdp(env_id) for env_id in TABULAR} | {
    "dry 4x4": frozen_lake("4x4", is_slippery=False),
    "dry 8x8": frozen_lake("8x8", is_slippery=False),
}


def expected_reward(mdp):
    """r(s,a) = Σ_s' P(s'|s,a) r(s,a,s'), [S, A]."""
    return np.einsum("ijk,ijk->ij", mdp.P, mdp.R)


def optimal_values(mdp, gamma, num_sweeps=None):
    """V* [S] by value iteration; with `num_sweeps`, the best that so many steps can earn."""
    num_states, num_actions, _ = mdp.P.shape
    P, reward = mdp.P.reshape(-1, num_states), expected_reward(mdp)
    value = np.zeros(num_states)
    for _ in range(num_sweeps or 100_000):
        previous = value
        value = (reward + gamma * (P @ value).reshape(num_states, num_actions)).max(axis=1)
        if num_sweeps is None and np.abs(value - previous).max() < 1e-13:
            return value
    assert num_sweeps, "value iteration did not converge"
    return value


def random_policy_values(mdp, gamma):
    """V of the uniform policy: (I - γ P_π) V = r_π, solved over the states that do not end."""
    going = ~mdp.terminal
    transition = mdp.P.mean(axis=1)[np.ix_(going, going)]
    value = np.zeros(len(mdp.terminal))
    value[going] = np.linalg.solve(
        np.eye(going.sum()) - gamma * transition, expected_reward(mdp).mean(axis=1)[going]
    )
    return value


@pytest.mark.parametrize("name", BUILT)
def test_every_mdp_is_well_formed(name):
    mdp = BUILT[name]
    num_states, num_actions, _ = mdp.P.shape
    assert mdp.P.shape == mdp.R.shape == (num_states, num_actions, num_states)
    assert mdp.start.shape == mdp.terminal.shape == (num_states,)
    assert mdp.terminal.dtype == bool
    precision = 1e-12 if mdp.P.dtype == np.float64 else 1e-6
    assert (mdp.P >= 0).all() and (mdp.start >= 0).all()
    np.testing.assert_allclose(mdp.P.sum(axis=2), 1.0, atol=precision)
    np.testing.assert_allclose(mdp.start.sum(), 1.0, atol=precision)
    assert np.isfinite(mdp.R).all()


@pytest.mark.parametrize("name", BUILT)
def test_terminal_states_are_absorbing_with_reward_zero_and_never_started_in(name):
    mdp = BUILT[name]
    assert (mdp.start[mdp.terminal] == 0).all()
    for state in np.flatnonzero(mdp.terminal):
        assert (mdp.P[state, :, state] == 1).all()
        assert (mdp.R[state] == 0).all()


@pytest.mark.parametrize("name", [name for name in BUILT if name != "Garnet-tabular"])
def test_fixed_mdps_are_float64_numpy_arrays(name):
    mdp = BUILT[name]
    assert all(isinstance(field, np.ndarray) for field in mdp)
    assert mdp.P.dtype == mdp.R.dtype == mdp.start.dtype == np.float64


def test_terminal_states_are_where_the_layouts_say():
    def terminal(mdp):
        return np.flatnonzero(mdp.terminal).tolist()

    assert terminal(cliff_walking()) == [47]
    assert terminal(frozen_lake("4x4")) == [5, 7, 11, 12, 15]
    assert terminal(frozen_lake("8x8")) == [19, 29, 35, 41, 42, 46, 49, 52, 54, 59, 63]
    assert terminal(grid_world()) == [0, 15]
    assert terminal(grid_world_5x5()) == []
    # Taxi: 25 cells x 4 destinations with the passenger already there.
    assert terminal(taxi()) == [s for s in range(500) if s // 4 % 5 == s % 4]


@pytest.mark.parametrize(
    "mdp, env_id, kwargs",
    [
        (cliff_walking(), "CliffWalking-v1", {}),
        (frozen_lake("4x4", is_slippery=True), "FrozenLake-v1", {"map_name": "4x4"}),
        (frozen_lake("4x4", is_slippery=False), "FrozenLake-v1", {"is_slippery": False}),
        (frozen_lake("8x8", is_slippery=True), "FrozenLake-v1", {"map_name": "8x8"}),
        (
            frozen_lake("8x8", is_slippery=False),
            "FrozenLake-v1",
            {"map_name": "8x8", "is_slippery": False},
        ),
        (taxi(), "Taxi-v4", {}),
    ],
)
def test_arrays_equal_gymnasiums_tables_entry_by_entry(mdp, env_id, kwargs):
    env = gymnasium.make(env_id, **kwargs).unwrapped
    num_states, num_actions, _ = mdp.P.shape
    assert (num_states, num_actions) == (env.observation_space.n, env.action_space.n)
    np.testing.assert_array_equal(mdp.start, env.initial_state_distrib)

    probability = np.zeros_like(mdp.P)
    for state in np.flatnonzero(~mdp.terminal):
        for action in range(num_actions):
            for p, next_state, reward, terminated in env.P[state][action]:
                probability[state, action, next_state] += p
                assert mdp.R[state, action, next_state] == reward
                assert mdp.terminal[next_state] == terminated
    going = ~mdp.terminal
    np.testing.assert_allclose(mdp.P[going], probability[going], rtol=0, atol=1e-15)
    assert (mdp.R[mdp.P == 0] == 0).all()


@pytest.mark.parametrize(
    "env_id, gymnasium_id",
    [
        ("CliffWalking-tabular", "CliffWalking-v1"),
        ("FrozenLake-tabular", "FrozenLake-v1"),
        ("FrozenLake8x8-tabular", "FrozenLake8x8-v1"),
        ("Taxi-tabular", "Taxi-v4"),
    ],
)
def test_time_limits_are_gymnasiums_where_it_has_one(env_id, gymnasium_id):
    limit = gymnasium.spec(gymnasium_id).max_episode_steps
    assert TABULAR[env_id].max_steps == (limit or 10_000)


# Expected values: solved exactly from gymnasium's own tables, and worked by hand where a formula.
@pytest.mark.parametrize(
    "mdp, gamma, num_sweeps, expected",
    [
        (cliff_walking(), 1.0, None, -13.0),
        (cliff_walking(), 0.99, None, -12.247898),
        (frozen_lake("4x4"), 1.0, None, 0.823529),
        (frozen_lake("4x4"), 0.99, None, 0.542026),
        (frozen_lake("4x4"), 0.9, None, 0.068891),
        (frozen_lake("4x4"), 1.0, 100, 0.744190),
        (frozen_lake("8x8"), 0.99, None, 0.414640),
        (frozen_lake("8x8"), 1.0, 100, 0.640719),
        (frozen_lake("8x8"), 1.0, 200, 0.913220),
        (frozen_lake("4x4", is_slippery=False), 0.99, None, 0.99**5),  # 6 steps
        (frozen_lake("8x8", is_slippery=False), 0.99, None, 0.99**13),  # 14 steps
        (taxi(), 1.0, None, 7.93),
        (taxi(), 0.99, None, 6.327464),
    ],
)
def test_optimal_value_of_the_start_is_the_exact_one(mdp, gamma, num_sweeps, expected):
    value = mdp.start @ optimal_values(mdp, gamma, num_sweeps)
    assert value == pytest.approx(expected, abs=1e-6)


def test_grid_world_has_the_random_policys_values_of_example_4_1():
    expected = [0, -14, -20, -22, -14, -18, -20, -20, -20, -20, -18, -14, -22, -20, -14, 0]
    np.testing.assert_allclose(random_policy_values(grid_world(), 1.0), expected, atol=1e-6)


def test_grid_world_5x5_has_the_random_policys_values_of_figure_3_2():
    expected = [
        [3.3, 8.8, 4.4, 5.3, 1.5],
        [1.5, 3.0, 2.3, 1.9, 0.5],
        [0.1, 0.7, 0.7, 0.4, -0.4],
        [-1.0, -0.4, -0.4, -0.6, -1.2],
        [-1.9, -1.3, -1.2, -1.4, -2.0],
    ]
    value = random_policy_values(grid_world_5x5(), 0.9).reshape(5, 5)
    np.testing.assert_array_equal(value.round(1), expected)


def test_grid_world_5x5_has_the_optimal_values_of_figure_3_5():
    expected = [
        [22.0, 24.4, 22.0, 19.4, 17.5],
        [19.8, 22.0, 19.8, 17.8, 16.0],
        [17.8, 19.8, 17.8, 16.0, 14.4],
        [16.0, 17.8, 16.0, 14.4, 13.0],
        [14.4, 16.0, 14.4, 13.0, 11.7],
    ]
    value = optimal_values(grid_world_5x5(), 0.9).reshape(5, 5)
    np.testing.assert_array_equal(value.round(1), expected)
    assert value[0, 1] == pytest.approx(10 / (1 - 0.9**5), abs=1e-6)  # A, and back to it, for ever


def test_grid_actions_go_where_their_names_say():
    # From the second row, second column: where each action leads.
    def successors(mdp, state):
        return mdp.P[state].argmax(axis=1).tolist()

    assert successors(cliff_walking(), 13) == [1, 14, 25, 12]  # up, right, down, left
    assert successors(frozen_lake("8x8", is_slippery=False), 9) == [8, 17, 10, 1]  # l, d, r, u
    assert successors(grid_world(), 5) == [1, 9, 6, 4]  # up, down, right, left
    assert successors(grid_world_5x5(), 6) == [1, 11, 7, 5]  # north, south, east, west


def test_outcomes_with_the_same_successor_add_up_and_average_their_rewards():
    def outcomes(state, action):
        return [(0.25, 1, 8.0), (0.25, 1, -2.0), (0.5, 0, 1.0)]

    mdp = tabulate(np.array([2, 0]), np.array([False, True]), 1, outcomes)
    np.testing.assert_array_equal(mdp.P, [[[0.5, 0.5]], [[0.0, 1.0]]])
    np.testing.assert_array_equal(mdp.R, [[[1.0, 3.0]], [[0.0, 0.0]]])
    np.testing.assert_array_equal(mdp.start, [1.0, 0.0])


@pytest.fixture(scope="module")
def garnets():
    """256 Garnet MDPs, made in one vmapped call: every field has a leading axis of keys."""
    mdps = jax.jit(jax.vmap(garnet))(jax.random.split(jax.random.key(0), 256))
    return MDP(*(np.asarray(field) for field in mdps))


def test_garnets_of_different_keys_differ_in_successors_probabilities_and_rewards(garnets):
    for field in [garnets.P > 0, np.sort(garnets.P, axis=-1), garnets.R]:
        assert len(np.unique(field.reshape(256, -1), axis=0)) == 256


def test_garnet_of_a_key_is_the_same_alone_again_and_in_a_batch(garnets):
    key = jax.random.split(jax.random.key(0), 256)[7]
    alone, again = garnet(key), make_mdp("Garnet-tabular", key)
    for name in MDP._fields:
        np.testing.assert_array_equal(getattr(alone, name), getattr(again, name))
        np.testing.assert_allclose(
            np.asarray(getattr(alone, name), float), np.asarray(getattr(garnets, name)[7], float)
        )


def test_garnets_state_action_pairs_have_exactly_branching_successors(garnets):
    assert garnets.P.shape == (256, 30, 4, 30)
    assert ((garnets.P > 0).sum(axis=-1) == 5).all()
    np.testing.assert_allclose(garnets.P.sum(axis=-1), 1.0, atol=1e-6)


@pytest.mark.parametrize("branching", [1, 2, 7])
def test_garnet_takes_its_sizes(branching):
    mdp = garnet(jax.random.key(1), num_states=7, num_actions=3, branching=branching)
    assert mdp.P.shape == mdp.R.shape == (7, 3, 7)
    assert ((mdp.P > 0).sum(axis=-1) == branching).all()
    np.testing.assert_allclose(mdp.P.sum(axis=-1), 1.0, atol=1e-6)


def test_garnets_are_drawn_from_their_distributions(garnets):
    # 30 720 state-action pairs; each tolerance is at least four standard errors.
    chosen = (garnets.P > 0).mean(axis=(0, 1, 2))
    np.testing.assert_allclose(chosen, 5 / 30, atol=0.01)
    # A gap between 4 uniform cut points is Beta(1, 4): mean 1/5, second moment 1/15.
    gaps = garnets.P[garnets.P > 0]
    assert gaps.mean() == pytest.approx(1 / 5, abs=1e-6)
    assert (gaps**2).mean() == pytest.approx(1 / 15, abs=0.001)
    rewards = garnets.R[..., 0]
    np.testing.assert_array_equal(garnets.R - rewards[..., None], 0.0)
    assert rewards.mean() == pytest.approx(0.0, abs=0.025)
    assert rewards.std() == pytest.approx(1.0, abs=0.02)
    # Rewards do not depend on where the transitions go.
    largest = garnets.P.max(axis=-1)
    assert abs(np.corrcoef(largest.ravel(), rewards.ravel())[0, 1]) < 0.025


def test_garnet_uses_no_key_twice():
    def reuse(key):
        return jax.random.normal(key) + jax.random.uniform(key)

    with jax.debug_key_reuse(True):
        jax.make_jaxpr(garnet)(jax.random.key(0))
        with pytest.raises(jax.errors.KeyReuseError):  # the check does see a reuse
            jax.make_jaxpr(reuse)(jax.random.key(0))


def test_garnet_is_strongly_typed():
    mdp = jax.eval_shape(garnet, jax.random.key(0))
    assert [field.dtype for field in mdp] == [*3 * [jnp.result_type(float)], bool]
    assert not any(field.weak_type for field in mdp)


@pytest.mark.parametrize("env_id", TABULAR)
def test_random_says_whether_the_mdp_depends_on_the_key(env_id):
    ours, default, other = (
        make_mdp(env_id, key) for key in [jax.random.key(0), None, jax.random.key(1)]
    )
    np.testing.assert_array_equal(ours.P, default.P)
    np.testing.assert_array_equal(ours.R, default.R)
    assert np.array_equal(ours.P, other.P) != TABULAR[env_id].random


@pytest.mark.parametrize(
    "wrong, closest",
    [
        ("CliffWalkng-tabular", "CliffWalking-tabular"),
        ("Taxi-v4", "Taxi-tabular"),
        ("frozenlake8x8-tabular", "FrozenLake8x8-tabular"),
    ],
)
def test_an_unknown_id_is_refused_in_one_line_that_says_what_to_do(wrong, closest):
    with pytest.raises(ValueError) as error:
        make_mdp(wrong)
    message = str(error.value)
    assert "\n" not in message
    assert repr(wrong) in message
    assert f"did you mean {closest!r}" in message
    assert "--env-id" in message
    assert all(env_id in message for env_id in TABULAR)
