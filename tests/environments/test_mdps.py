"""The tabular MDPs against gymnasium's tables, printed values and exact solutions."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, stats

from common.environments.gridworlds import (
    FOUR_ROOMS,
    LAKE_4X4,
    LAKE_8X8,
    MACROCELLS,
    SECOND_GOAL,
    cliff_walking,
    four_rooms,
    frozen_lake,
    grid_world,
    grid_world_5x5,
    icy_grid_world,
    macrocells,
    random_maze,
    windy_grid_world,
)
from common.environments.mdp import sparse, tabulate
from common.environments.tabular import TABULAR, id_after, make_mdp, make_tabular_env
from common.environments.textbook import (
    blackjack,
    gamblers_problem,
    garnet,
    jacks_car_rental,
    maximization_bias,
    random_walk,
    taxi,
)

BUILT = {env_id: make_mdp(env_id) for env_id in TABULAR} | {
    "dry 4x4": frozen_lake(LAKE_4X4, is_slippery=False),
    "dry 8x8": frozen_lake(LAKE_8X8, is_slippery=False),
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


def policy_values(mdp, policy, gamma):
    """V of a policy [S, A]: (I - γ P_π) V = r_π, solved over the states that do not end."""
    going = ~mdp.terminal
    transition = np.einsum("ij,ijk->ik", policy, mdp.P)[np.ix_(going, going)]
    reward = (policy * expected_reward(mdp)).sum(axis=1)[going]
    value = np.zeros(len(mdp.terminal))
    value[going] = np.linalg.solve(np.eye(going.sum()) - gamma * transition, reward)
    return value


def random_policy_values(mdp, gamma):
    """V of the uniform policy."""
    return policy_values(mdp, np.full(mdp.P.shape[:2], 1 / mdp.P.shape[1]), gamma)


def soft_values(mdp, epsilon):
    """V of the best ε-soft policy at γ = 1, by policy iteration among those."""
    num_states, num_actions, _ = mdp.P.shape
    value = random_policy_values(mdp, 1.0)
    for _ in range(100):
        best = (expected_reward(mdp) + mdp.P @ value).round(9).argmax(axis=1)
        policy = np.full((num_states, num_actions), epsilon / num_actions)
        policy[np.arange(num_states), best] += 1 - epsilon
        previous, value = value, policy_values(mdp, policy, 1.0)
        if np.abs(value - previous).max() < 1e-12:
            return value
    raise AssertionError("policy iteration did not converge")


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


RANDOM = ("Garnet-tabular", "Macrocells-tabular", "RandomMaze-tabular")


@pytest.mark.parametrize("name", [name for name in BUILT if name not in RANDOM])
def test_fixed_mdps_are_float64_numpy_arrays(name):
    mdp = BUILT[name]
    assert all(isinstance(field, np.ndarray) for field in jax.tree.leaves(mdp))
    assert mdp.P.dtype == mdp.R.dtype == mdp.start.dtype == np.float64


def test_terminal_states_are_where_the_layouts_say():
    def terminal(mdp):
        return np.flatnonzero(mdp.terminal).tolist()

    assert terminal(cliff_walking()) == [47]
    assert terminal(frozen_lake(LAKE_4X4)) == [5, 7, 11, 12, 15]
    assert terminal(frozen_lake(LAKE_8X8)) == [19, 29, 35, 41, 42, 46, 49, 52, 54, 59, 63]
    assert terminal(grid_world()) == [0, 15]
    assert terminal(grid_world_5x5()) == []
    assert terminal(windy_grid_world()) == [37]
    assert terminal(random_walk(5, 0.0)) == [0, 6]
    assert terminal(random_walk(19, -1.0)) == [0, 20]
    assert terminal(gamblers_problem()) == [0, 100]
    # Walls count as terminal, but for those of a maze that open at another time.
    assert terminal(make_mdp("DynaMaze-tabular")) == [7, 8, 11, 16, 20, 25, 29, 41]
    for maze in ("BlockingMaze", "ShortcutMaze", "OpenRightMaze", "OpenLeftMaze", "OpenBothMaze"):
        assert terminal(make_mdp(f"{maze}-tabular")) == [8, *range(28, 35)]
    # Taxi: 25 cells x 4 destinations with the passenger already there.
    assert terminal(taxi()) == [s for s in range(500) if s // 4 % 5 == s % 4]


@pytest.mark.parametrize(
    "mdp, env_id, kwargs",
    [
        (cliff_walking(), "CliffWalking-v1", {}),
        (frozen_lake(LAKE_4X4, is_slippery=True), "FrozenLake-v1", {"map_name": "4x4"}),
        (frozen_lake(LAKE_4X4, is_slippery=False), "FrozenLake-v1", {"is_slippery": False}),
        (frozen_lake(LAKE_8X8, is_slippery=True), "FrozenLake-v1", {"map_name": "8x8"}),
        (
            frozen_lake(LAKE_8X8, is_slippery=False),
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
        (frozen_lake(LAKE_4X4), 1.0, None, 0.823529),
        (frozen_lake(LAKE_4X4), 0.99, None, 0.542026),
        (frozen_lake(LAKE_4X4), 0.9, None, 0.068891),
        (frozen_lake(LAKE_4X4), 1.0, 100, 0.744190),
        (frozen_lake(LAKE_8X8), 0.99, None, 0.414640),
        (frozen_lake(LAKE_8X8), 1.0, 100, 0.640719),
        (frozen_lake(LAKE_8X8), 1.0, 200, 0.913220),
        (frozen_lake(LAKE_4X4, is_slippery=False), 0.99, None, 0.99**5),  # 6 steps
        (frozen_lake(LAKE_8X8, is_slippery=False), 0.99, None, 0.99**13),  # 14 steps
        (taxi(), 1.0, None, 7.93),
        (taxi(), 0.99, None, 6.327464),
        (windy_grid_world(), 1.0, None, -15.0),  # the book's best path
        (random_walk(19, -1.0), 1.0, None, 1.0),
        (make_mdp("DynaMaze-tabular"), 0.95, None, 0.95**13),  # 14 steps
        (make_mdp("BlockingMaze-tabular"), 0.95, None, 0.95**9),  # 10 steps, and then 16
        (make_mdp("OpenLeftMaze-tabular"), 0.95, None, 0.95**15),
        (make_mdp("ShortcutMaze-tabular"), 0.95, None, 0.95**15),  # 16 steps, and then 10
        (make_mdp("OpenBothMaze-tabular"), 0.95, None, 0.95**9),
        (maximization_bias(), 1.0, None, 0.0),
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


@pytest.mark.parametrize(
    "p_heads, expected",
    [
        (0.4, {25: 0.16, 50: 0.4, 75: 0.64, 51: 0.403098, 1: 0.002066, 99: 0.964333}),
        (0.25, {25: 0.0625, 50: 0.25, 75: 0.4375}),
    ],
)
def test_the_gamblers_chances_are_the_exact_ones(p_heads, expected):
    value = optimal_values(gamblers_problem(p_heads), 1.0)
    np.testing.assert_allclose(value[[*expected]], [*expected.values()], atol=1e-6)


def test_random_walks_have_the_values_of_examples_6_2_and_7_1():
    value = random_policy_values(random_walk(5, 0.0), 1.0)
    np.testing.assert_allclose(value[1:-1], np.arange(1, 6) / 6, atol=1e-9)
    value = random_policy_values(random_walk(19, -1.0), 1.0)
    np.testing.assert_allclose(value[1:-1], np.arange(-9, 10) / 10, atol=1e-9)
    for num_states in (5, 19):
        assert random_walk(num_states, 0.0).start[(num_states + 1) // 2] == 1


def test_the_best_epsilon_soft_policies_are_worth_what_they_should():
    """The limits of SARSA at ε = .1; in the mazes, minus the steps."""
    assert cliff_walking().start @ soft_values(cliff_walking(), 0.1) == pytest.approx(
        -20.7077, abs=1e-4
    )
    steps = {"DynaMaze": 15.81, "BlockingMaze": 11.07, "OpenLeftMaze": 17.54}
    steps |= {"ShortcutMaze": 17.54, "OpenBothMaze": 11.07}
    for maze, expected in steps.items():
        mdp = make_mdp(f"{maze}-tabular")
        mdp = mdp._replace(R=np.where(mdp.terminal[:, None, None], 0.0, -1.0) + 0 * mdp.P)
        assert mdp.start @ soft_values(mdp, 0.1) == pytest.approx(-expected, abs=0.005)


def successor(mdp, state, action):
    """Where a certain step leads."""
    assert mdp.P[state, action].max() == 1
    return int(mdp.P[state, action].argmax())


def test_the_wind_blows_up_from_the_column_that_was_left():
    mdp = windy_grid_world()
    up, right, down, left = range(4)
    assert successor(mdp, 38, left) == 27  # the book's example: right of the goal, to above it
    assert successor(mdp, 30, right) == 31 and successor(mdp, 33, right) == 24
    assert successor(mdp, 36, down) == 26 and successor(mdp, 36, up) == 6
    assert successor(mdp, 16, up) == 6 and successor(mdp, 9, up) == 9  # not off the grid
    assert (mdp.R[~mdp.terminal].min(-1) == -1).all()


def test_walls_keep_out_and_those_that_come_and_go_let_out():
    up, down, right, left = range(4)
    mdp = make_mdp("DynaMaze-tabular")
    assert successor(mdp, 10, right) == 10 and successor(mdp, 2, down) == 2
    assert successor(mdp, 17, up) == 8 and mdp.R[17, up, 8] == 1 and mdp.R.sum() == 1
    before, after = make_mdp("BlockingMaze-tabular"), make_mdp("OpenLeftMaze-tabular")
    assert [successor(mdp, 44, up) for mdp in (before, after)] == [35, 44]
    assert [successor(mdp, 36, up) for mdp in (before, after)] == [36, 27]
    assert [successor(mdp, 35, up) for mdp in (before, after)] == [26, 26]
    before, after = make_mdp("ShortcutMaze-tabular"), make_mdp("OpenBothMaze-tabular")
    assert [successor(mdp, 44, up) for mdp in (before, after)] == [44, 35]
    assert [successor(mdp, 36, up) for mdp in (before, after)] == [27, 27]


def test_discounts_are_those_of_the_sources():
    """Sutton & Barto 2018: .9 in Examples 3.5 and 4.2, .95 in 8.1, 1 where none is named and
    episodes end; Sutton, Precup & Singh 1999: .9; Bacon et al. 2017: .99. An Env has the discount
    of its MDP."""
    discounted = {
        "GridWorld5x5-tabular": 0.9,
        "JacksCarRental-tabular": 0.9,
        "FourRooms-tabular": 0.9,
        "FourRoomsSecondGoal-tabular": 0.99,
        "MovingGoalMaze-tabular": 0.99,
        "Ledge-tabular": 0.99,  # undiscounted in its source, whose episodes end
        "SteadyLedge-tabular": 0.99,
        "DynaMaze-tabular": 0.95,
        "BlockingMaze-tabular": 0.95,
        "OpenLeftMaze-tabular": 0.95,
        "ShortcutMaze-tabular": 0.95,
        "OpenRightMaze-tabular": 0.95,
        "OpenBothMaze-tabular": 0.95,
        "FrozenLake-tabular": 0.99,  # no source names one
        "FrozenLake8x8-tabular": 0.99,
        "Garnet-tabular": 0.99,
        "IcyGridWorld-tabular": 0.7,
        "Macrocells-tabular": 0.99,
    }
    for env_id, entry in TABULAR.items():
        assert entry.gamma == discounted.get(env_id, 1.0), env_id
    assert make_tabular_env("FourRooms-tabular", 2).gamma == 0.9


@pytest.mark.parametrize("env_id", [name for name, x in TABULAR.items() if x.phases])
def test_what_changes_in_a_maze_is_its_walls_or_its_goal(env_id):
    before, after = map(make_mdp, TABULAR[env_id].phases)
    np.testing.assert_array_equal(before.P, make_mdp(env_id).P)
    assert before.P.shape == after.P.shape and (before.P != after.P).any()
    moves = env_id == "MovingGoalMaze-tabular"
    first, second = [7 * 13 + 9] * moves, [10 * 13 + 10] * moves
    for x, y in ((before.start > 0, after.start > 0), (after.terminal, before.terminal)):
        assert np.flatnonzero(~x & y).tolist() == first
        assert np.flatnonzero(x & ~y).tolist() == second
    assert not any(TABULAR[phase].phases for phase in TABULAR[env_id].phases)


@pytest.mark.parametrize(
    "env_id, num_steps, expected",
    [
        ("BlockingMaze-tabular", 999, "OpenRightMaze-tabular"),
        ("BlockingMaze-tabular", 1_000, "OpenLeftMaze-tabular"),
        ("ShortcutMaze-tabular", 2_999, "OpenLeftMaze-tabular"),
        ("ShortcutMaze-tabular-history2", 3_000, "OpenBothMaze-tabular-history2"),
        ("MovingGoalMaze-tabular", 49_999, "FourRooms-tabular"),
        ("MovingGoalMaze-tabular", 50_000, "FourRoomsSecondGoal-tabular"),
        ("DynaMaze-tabular", 10**6, "DynaMaze-tabular"),
        ("CartPole-v1-history2", 10**6, "CartPole-v1-history2"),
    ],
)
def test_what_a_maze_is_after_so_many_steps_has_an_id(env_id, num_steps, expected):
    assert id_after(env_id, num_steps) == expected


def test_four_rooms_are_gymnaxs_and_steps_go_astray_a_third_of_the_time():
    from gymnax.environments.misc.rooms import FourRooms

    mdp, open_cells = make_mdp("FourRooms-tabular"), np.asarray(FourRooms().env_map).ravel()
    np.testing.assert_array_equal(mdp.start > 0, open_cells & (np.arange(169) != 7 * 13 + 9))
    np.testing.assert_array_equal(mdp.terminal, ~(mdp.start > 0))
    assert open_cells.sum() == 104
    cell = 3 * 13 + 3  # in the middle of a room: up, down, left, right of it
    around = [cell - 13, cell + 13, cell - 1, cell + 1]
    for action in range(4):
        expected = np.full(4, 1 / 9)
        expected[action] = 2 / 3
        np.testing.assert_allclose(mdp.P[cell, action, around], expected)
    corner = 1 * 13 + 1
    assert mdp.P[corner, 0, corner] == pytest.approx(2 / 3 + 1 / 9)
    assert mdp.R[6 * 13 + 9, 1, 7 * 13 + 9] == 1 and (mdp.R > 0).sum() == 2 * 4


def fewest_steps(mdp):
    """The mean number of steps from the start to the end under the best policy."""
    R = np.where(mdp.terminal[:, None, None], 0.0, -1.0) + 0 * mdp.P
    return -mdp.start @ optimal_values(mdp._replace(R=R), 1.0)


def test_the_optima_of_four_rooms_are_the_exact_ones():
    """By value iteration with steps that slip as in Sutton, Precup & Singh 1999. The code that goes
    with Bacon et al. 2017 slips otherwise, and its optimum of 8.39 is no measure of these."""
    mdp = make_mdp("FourRooms-tabular")
    assert fewest_steps(mdp) == pytest.approx(15.0117, abs=1e-4)
    assert mdp.start @ optimal_values(mdp, 0.99) == pytest.approx(0.872251, abs=1e-6)
    lower_right, rows = {}, [row.replace("G", "S") for row in FOUR_ROOMS.layout]
    for i, j in np.ndindex(4, 5):
        row = rows[8 + i][: 7 + j] + "G" + rows[8 + i][8 + j :]
        layout = [*rows[: 8 + i], row, *rows[9 + i :]]
        mdp = four_rooms(FOUR_ROOMS._replace(layout=layout))
        lower_right[8 + i, 7 + j] = fewest_steps(mdp)
    steps = [*lower_right.values()]
    assert np.mean(steps) == pytest.approx(17.1404, abs=1e-4)
    assert [min(steps), max(steps)] == pytest.approx([14.88, 20.56], abs=0.005)
    second = fewest_steps(make_mdp("FourRoomsSecondGoal-tabular"))
    assert second == lower_right[10, 10] == pytest.approx(17.6374, abs=1e-4)
    assert [*map(len, SECOND_GOAL.layout)] == [13] * 13


def test_a_goal_moves_to_the_step_with_its_reward_its_end_and_the_starts():
    """An agent steps down into a cell, at ages around the change: into the second goal, or into the
    first. Where an episode ends another starts, in the goal of the other MDP too."""
    env_id = "MovingGoalMaze-tabular"
    env, change = make_tabular_env(env_id, 3_000), TABULAR[env_id].change_after
    step = jax.jit(env.step)
    state = jax.jit(env.reset)(jax.random.key(0))
    goals, down = {0: 7 * 13 + 9, 1: 10 * 13 + 10}, jnp.ones(3_000, int)
    for age, ends_at in ((change - 1, 0), (change, 1)):
        for number, goal in goals.items():
            above, zeros = jnp.full(3_000, goal - 13), jnp.zeros(3_000, int)
            begin = state._replace(obs=above, inner=(above, zeros, zeros + age))
            after, transition = step(begin, down, jax.random.key(1))
            arrived = np.asarray(transition.next_obs) == goal
            assert 0.6 < arrived.mean() < 0.75  # it slips otherwise
            np.testing.assert_array_equal(transition.terminated, arrived & (number == ends_at))
            np.testing.assert_array_equal(transition.reward, 1.0 * transition.terminated)
            if number == ends_at:
                starts = {int(s) for s in after.obs[arrived]}
                assert starts == set(
                    np.flatnonzero(make_mdp(id_after(env_id, age + 1)).start).tolist()
                )


def test_stakes_are_clipped_to_what_there_is_and_what_is_needed():
    mdp = gamblers_problem()
    for capital, action, stake in [(7, 2, 3), (7, 30, 7), (95, 30, 5), (50, 49, 50)]:
        assert mdp.P[capital, action, capital + stake] == pytest.approx(0.4)
        assert mdp.P[capital, action, capital - stake] == pytest.approx(0.6)
    assert mdp.R[95, 30, 100] == 1 and mdp.R.sum() == 50 * 51 / 2  # from 50 on


@pytest.mark.parametrize(
    "first, second, action, moved", [(12, 6, 9, 4), (2, 19, 10, 2), (20, 4, 0, -4)]
)
def test_jacks_nights_and_days_are_those_of_an_enumeration(first, second, action, moved):
    """All numbers of requests and returns up to 30, one after the other."""
    n = np.arange(31)
    requests1, returns1, requests2, returns2 = (stats.poisson(mean).pmf(n) for mean in (3, 3, 4, 2))

    def day(cars, requests, returns):
        rented = np.minimum(cars, n)
        evening = np.minimum(cars - rented[:, None] + n, 20)
        P, earned = np.zeros((2, 21))
        np.add.at(P, evening, requests[:, None] * returns)
        np.add.at(earned, evening, 10 * rented[:, None] * requests[:, None] * returns)
        return P, earned

    P1, earned1 = day(min(first - moved, 20), requests1, returns1)
    P2, earned2 = day(min(second + moved, 20), requests2, returns2)
    mdp, state = jacks_car_rental(), 21 * first + second
    np.testing.assert_allclose(mdp.P[state, action], np.outer(P1, P2).ravel(), atol=1e-12)
    earned = np.outer(earned1, P2) + np.outer(P1, earned2) - 2 * abs(moved) * np.outer(P1, P2)
    np.testing.assert_allclose(
        mdp.P[state, action] * mdp.R[state, action], earned.ravel(), atol=1e-10
    )


def test_blackjacks_best_policy_and_value_are_those_of_the_book():
    mdp = blackjack()
    value = optimal_values(mdp, 1.0)
    assert mdp.start @ value == pytest.approx(-0.0431131, abs=1e-6)
    q = expected_reward(mdp) + mdp.P @ value
    hits = q[:200].argmax(axis=1).reshape(2, 10, 10)  # usable ace, total, dealer's card
    least_to_stick_on = 12 + hits.sum(axis=1)
    assert (np.sort(hits, axis=1)[:, ::-1] == hits).all()  # a threshold in every column
    # Figure 5.2, for the dealer's ace, 2, ..., 10: without a usable ace, and with one.
    np.testing.assert_array_equal(least_to_stick_on[0], [17, 13, 13, 12, 12, 12, 17, 17, 17, 17])
    np.testing.assert_array_equal(least_to_stick_on[1], [19, 18, 18, 18, 18, 18, 18, 18, 19, 19])


def test_blackjack_is_gymnasiums_hand_by_hand():
    """Deals, cards drawn and final results of gymnasium, against the probabilities of ours."""
    env = gymnasium.make("Blackjack-v1", sab=True).unwrapped
    mdp, rng, seen = blackjack(), np.random.default_rng(0), {}
    env.reset(seed=0)

    def ask():
        """Hits below 12, where no card can hurt; the state's number."""
        while env._get_obs()[0] < 12:
            env.step(1)
        total, card, usable = env._get_obs()
        natural = sorted(env.player) == [1, 10]
        return 199 + card if natural else 100 * usable + 10 * (total - 12) + card - 1

    for _ in range(12_000):
        env.reset()
        state, terminated = ask(), False
        seen.setdefault("start", []).append(state)
        while not terminated:
            action = int(rng.random() < 0.5 and state < 200)
            _, reward, terminated, _, _ = env.step(action)
            next_state = 211 + int(reward) if terminated else ask()
            seen.setdefault((state, action), []).append(next_state)
            assert mdp.P[state, action, next_state] > 0
            assert mdp.R[state, action, next_state] == reward
            state = next_state
    expected = {"start": mdp.start} | {key: mdp.P[key] for key in seen if key != "start"}
    for key, states in seen.items():
        if len(states) >= 150:
            p, n = expected[key], len(states)
            error = np.abs(np.bincount(states, minlength=213) / n - p)
            assert (error <= 5 * np.sqrt(p * (1 - p) / n) + 1e-3).all(), key
    assert sum(len(x) >= 150 for x in seen.values()) >= 15


def test_the_maximisation_bias_lies_in_the_noise():
    mdp = maximization_bias()
    np.testing.assert_array_equal(mdp.P[0, :, 1], [1, 0] * 5)  # left, right, left, ...
    np.testing.assert_array_equal(expected_reward(mdp), [[0.0] * 10, [-0.1] * 10, [0.0] * 10])
    np.testing.assert_array_equal(mdp.noise, [[0.0] * 10, [1.0] * 10, [0.0] * 10])
    np.testing.assert_allclose(random_policy_values(mdp, 1.0), [-0.05, -0.1, 0.0])


def test_grid_actions_go_where_their_names_say():
    # From the second row, second column: where each action leads.
    def successors(mdp, state):
        return mdp.P[state].argmax(axis=1).tolist()

    assert successors(cliff_walking(), 13) == [1, 14, 25, 12]  # up, right, down, left
    assert successors(frozen_lake(LAKE_8X8, is_slippery=False), 9) == [8, 17, 10, 1]  # l, d, r, u
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
    return jax.tree.map(np.asarray, mdps)


def test_garnets_of_different_keys_differ_in_successors_probabilities_and_rewards(garnets):
    for field in [garnets.P > 0, np.sort(garnets.P, axis=-1), garnets.R]:
        assert len(np.unique(field.reshape(256, -1), axis=0)) == 256


def test_garnet_of_a_key_is_the_same_alone_again_and_in_a_batch(garnets):
    key = jax.random.split(jax.random.key(0), 256)[7]
    alone, again = garnet(key), make_mdp("Garnet-tabular", key)
    for field, same, batch in zip(*map(jax.tree.leaves, (alone, again, garnets)), strict=True):
        np.testing.assert_array_equal(field, same)
        np.testing.assert_allclose(np.asarray(field, float), np.asarray(batch[7], float), rtol=1e-6)


def test_garnets_state_action_pairs_have_exactly_branching_successors(garnets):
    assert garnets.P.shape == (256, 30, 4, 30)
    assert ((garnets.P > 0).sum(axis=-1) == 5).all()
    np.testing.assert_allclose(garnets.P.sum(axis=-1), 1.0, atol=1e-6)


def test_random_mazes_are_spanning_trees_of_rooms_with_more_doors():
    """32 of them: every room can be reached by the 99 doors of a tree and a fifth of the other 81.
    Rooms are never walls, corners between four rooms always are."""
    mazes = jax.tree.map(
        np.asarray, jax.jit(jax.vmap(random_maze))(jax.random.split(jax.random.key(0), 32))
    )
    moves = (mazes.P > 0).argmax(-1)
    num_doors = []
    for maze, successor in zip(range(32), moves, strict=True):
        terminal, start = mazes.terminal[maze], mazes.start[maze] > 0
        goal = terminal & np.isin(np.arange(441), successor[~terminal])
        assert start.sum() == goal.sum() == 1
        free = (~terminal | goal).reshape(21, 21)
        assert free[1::2, 1::2].all() and not free[::2, ::2].any()
        assert not free[[0, -1]].any() and not free[:, [0, -1]].any()
        num_doors.append(free.sum() - 100)
        inside = free.copy().ravel()
        assert start.reshape(21, 21)[1::2, 1::2].any() and goal.reshape(21, 21)[1::2, 1::2].any()
        for state in np.flatnonzero(~terminal):
            for action, step in enumerate([-21, 1, 21, -1]):
                assert successor[state, action] == state + step * inside[state + step]
        labels, count = ndimage.label(free)
        assert count == 1 and labels.max() == 1
        rewards = mazes.R[maze].reshape(441, -1)
        assert np.all(rewards == -1.0 * ~terminal[:, None])
    assert min(num_doors) > 99 and abs(np.mean(num_doors) - (99 + 0.2 * 81)) < 5 * 3.6 / 32**0.5
    assert len(np.unique(moves, axis=0)) == 32


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
    assert [field.dtype for field in jax.tree.leaves(mdp)] == [*3 * [jnp.result_type(float)], bool]
    assert not any(field.weak_type for field in jax.tree.leaves(mdp))


def test_on_the_icy_grid_a_fifth_of_the_steps_go_anywhere():
    mdp = icy_grid_world()
    np.testing.assert_allclose(mdp.P[12, 1, [7, 13, 17, 11]], [0.05, 0.85, 0.05, 0.05])
    np.testing.assert_allclose(mdp.P[0, 0, [0, 1, 5]], [0.9, 0.05, 0.05])  # two sides are edges
    assert mdp.start[0] == 1 and np.flatnonzero(mdp.terminal).tolist() == [24]
    arrivals = np.argwhere(mdp.R).tolist()
    assert {ends for _, _, ends in arrivals} == {8, 24}
    assert mdp.R[13, 0, 8] == mdp.R[9, 3, 8] == 0.65 and mdp.R[23, 1, 24] == 1


@pytest.fixture(scope="module")
def rewards():
    """Those of 256 grids of macrocells, by macrocell [256, 4, 4], which are checked to be 8x8."""
    draw = lambda key: macrocells(key).R[:, 0, 0]
    reward = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 256)))
    blocks = reward.reshape(256, 4, 8, 4, 8).transpose(0, 1, 3, 2, 4).reshape(256, 4, 4, 64)
    assert (blocks == blocks[..., :1]).all()
    return blocks[..., 0]


def test_the_rewards_of_macrocells_are_sparse_and_add_up_to_1(rewards):
    np.testing.assert_allclose(rewards.sum(axis=(1, 2)), 1, atol=1e-6)
    num = (rewards > 0).sum(axis=(1, 2))
    assert num.min() == 2
    expected = stats.binom.pmf(np.arange(2, 5), 16, 0.1) / stats.binom.sf(1, 16, 0.1)
    shares = np.bincount(num, minlength=5)[2:5] / 256
    np.testing.assert_allclose(shares, expected, atol=0.12)  # four standard errors
    assert (np.abs((rewards > 0).mean(axis=0) - num.mean() / 16) < 0.1).all()
    assert len(np.unique(rewards.reshape(256, -1), axis=0)) == 256


def test_macrocells_are_walked_with_three_tenths_of_the_steps_anywhere():
    mdp = macrocells(jax.random.key(3))
    assert len(MACROCELLS.layout) == 32 and (mdp.start == 1 / 1024).all()
    np.testing.assert_allclose(mdp.P[33, 1, [1, 34, 65, 32]], [0.075, 0.775, 0.075, 0.075])
    np.testing.assert_allclose(mdp.P[0, 0, [0, 1, 32]], [0.85, 0.075, 0.075])
    assert (mdp.R[:, :1, :1] == mdp.R).all() and not mdp.terminal.any()
    weights = mdp.features.T @ np.asarray(mdp.R)[:, 0, 0] / 64  # a state has one feature
    np.testing.assert_allclose(mdp.features @ weights, mdp.R[:, 0, 0], atol=1e-6)


@pytest.mark.parametrize("env_id", ["Garnet-tabular", "Taxi-tabular", "FrozenLake-tabular"])
def test_a_sparse_mdp_is_the_same_mdp(env_id):
    """With all states as successors, too, where P is traced."""
    mdp = make_mdp(env_id)
    values = np.random.default_rng(0).normal(size=len(mdp.start))
    for small in (sparse(mdp), jax.jit(lambda P: sparse(mdp._replace(P=P)))(jnp.asarray(mdp.P))):
        expected = np.einsum("sak,sk->sa", small.P, values[small.successor])
        np.testing.assert_allclose(expected, mdp.P @ values, atol=1e-5)
        np.testing.assert_allclose(small.R, expected_reward(mdp), atol=1e-5)
        np.testing.assert_allclose(small.start, mdp.start, rtol=1e-6)
        np.testing.assert_array_equal(small.terminal, mdp.terminal)
        np.testing.assert_array_equal(small.features, np.eye(len(mdp.start)))
    num = (mdp.P.sum(axis=1) > 0).sum(axis=1).max()
    assert sparse(mdp).successor.shape == (len(mdp.start), num)
    assert small.successor.shape == (len(mdp.start),) * 2


@pytest.mark.parametrize("env_id", TABULAR)
def test_random_says_whether_the_mdp_depends_on_the_key(env_id):
    ours, default, other = (
        make_mdp(env_id, key) for key in [jax.random.key(0), None, jax.random.key(1)]
    )
    np.testing.assert_array_equal(ours.P, default.P)
    np.testing.assert_array_equal(ours.R, default.R)
    assert np.array_equal(ours.R, other.R) != TABULAR[env_id].random
    assert TABULAR[env_id].random == (env_id in RANDOM)


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
