"""policy.png: values by hand, what the picture shows, and which runs get one."""

import jax
import numpy as np
import pytest
from helpers import run_here
from matplotlib import image
from matplotlib.figure import Figure

from algorithms import value_iteration
from common.environments.gridworlds import DOWN, LEFT, RIGHT, UP, Grid
from common.environments.mdp import MDP
from common.environments.tabular import TABULAR, make_mdp
from common.runner import policy_map
from common.runner.blocks import Job, plan
from common.runner.cli import Run
from common.runner.results import draw_best, write_policies
from common.runner.run_folder import save_block


def test_values_of_a_policy_by_hand():
    """0 stays or goes to 1 with equal probability, for -1; 1 ends with 4; 2 stays for ever."""
    P = np.zeros((4, 1, 4))
    P[0, 0, :2], P[1, 0, 3], P[2, 0, 2], P[3, 0, 3] = 0.5, 1, 1, 1
    R = np.zeros((4, 1, 4))
    R[0], R[1], R[2] = -1, 4, 1
    mdp = MDP(P, R, np.array([1, 0, 0, 0]), np.array([False, False, False, True]))
    policy = np.ones((4, 1))
    # v0 = -1 + (v0 + v1) γ / 2; v2 has no value at γ = 1
    np.testing.assert_allclose(policy_map.known_values(mdp, policy, 1.0), [2, 4, np.nan, 0])
    np.testing.assert_allclose(policy_map.known_values(mdp, policy, 0.5), [0, 4, 2, 0])


def test_a_state_that_may_lead_into_a_trap_has_no_value_either():
    P = np.zeros((3, 1, 3))
    P[0, 0], P[1, 0, 1], P[2, 0, 2] = [0.0, 0.1, 0.9], 1, 1
    mdp = MDP(P, np.ones((3, 1, 3)), np.array([1, 0, 0]), np.array([False, False, True]))
    values = policy_map.known_values(mdp, np.ones((3, 1)), 1.0)
    np.testing.assert_array_equal(np.isnan(values), [True, True, False])


WALL, GREY, WHITE = (64, 64, 64), (217, 217, 217), (255, 255, 255)
LOWEST, HIGHEST = (68, 1, 84), (253, 231, 36)  # viridis


def shares(path):
    """Return the share of the picture that each colour has."""
    pixels = (image.imread(path)[..., :3] * 255).round().astype(int).reshape(-1, 3)
    found, counts = np.unique(pixels, axis=0, return_counts=True)
    return dict(zip(map(tuple, found.tolist()), counts / len(pixels), strict=True))


def test_walls_ends_and_values_are_visible(tmp_path):
    path = tmp_path / "policy.png"
    policy_map.draw_policy(path, "DynaMaze-tabular", lambda obs, key: 0, 0.95, 0, "up")
    maze = shares(path)
    assert maze[WALL] > 5 * maze[GREY] > 0.03  # seven walls, one goal
    assert maze[LOWEST] > 0.3 and maze[HIGHEST] > 0.005  # up leads to the goal in one column
    policy_map.draw_policy(path, "FrozenLake-tabular", lambda obs, key: 1, 0.95, 0, "down")
    assert shares(path)[GREY] > 0.1 > 0.01 > shares(path).get(WALL, 0)
    policy_map.draw_policy(path, "CliffWalking-tabular", lambda obs, key: 0, 1.0, 0, "up for ever")
    assert shares(path)[WHITE] > 0.5 and shares(path)[LOWEST] < 0.01
    assert [x.name for x in tmp_path.iterdir()] == ["policy.png"]


@pytest.mark.parametrize("env_id", [name for name, x in TABULAR.items() if x.grid])
def test_arrows_point_to_where_the_steps_lead(env_id):
    """The direction in which an action most often leads is the one that is drawn."""
    mdp, (layout, directions) = make_mdp(env_id), TABULAR[env_id].grid
    height, width = len(layout), len(layout[0])
    assert len(mdp.terminal) == height * width and mdp.P.shape[1] == len(directions)
    count = np.zeros((4, 4))
    for state in np.flatnonzero(~mdp.terminal):
        for i, (rows, columns) in enumerate(directions):
            row, column = state // width + rows, state % width + columns
            if 0 <= row < height and 0 <= column < width:
                count[:, i] += mdp.P[state, :, row * width + column]
    if "FrozenLake" in env_id:  # where all directions but the opposite one are equally likely
        assert (count[range(4), [2, 3, 0, 1]] == 0).all() and (count > 0).sum() == 12
    else:
        np.testing.assert_array_equal(count.argmax(axis=1), range(4))


@pytest.mark.parametrize("action, head_first", [(0, True), (2, False)])  # up, down
def test_an_arrows_head_is_where_it_points_to(tmp_path, action, head_first):
    path = tmp_path / "policy.png"
    policy_map.draw_policy(path, "CliffWalking-tabular", lambda obs, key: action, 1.0, 0, "")
    pixels = image.imread(path)[..., :3]
    width = pixels.shape[1]
    black = (pixels == 0).all(-1)[:, width // 5 : width // 2].sum(1)  # in each row of pixels
    rows = np.flatnonzero(black)
    arrows = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    assert len(arrows) == 3
    for arrow in arrows:
        assert (black[arrow].argmax() < len(arrow) / 2) == head_first


def drawn(monkeypatch, env_id, act, num_steps):
    """Return what `draw_policy` would draw: the id, the policy's probabilities, its values, ..."""
    seen = {}
    monkeypatch.setattr(policy_map, "plot_states", lambda figure, *rest: seen.update(rest=rest))
    monkeypatch.setattr(policy_map, "write_picture", lambda path, figure: None)
    policy_map.draw_policy("", env_id, act, None, num_steps, "")
    return seen["rest"]


def test_a_maze_is_drawn_as_it_is_at_the_end(monkeypatch):
    act = lambda obs, key: 0
    for num_steps, env_id in [
        (999, "OpenRightMaze-tabular"),
        (1_000, "OpenLeftMaze-tabular"),
    ]:
        assert drawn(monkeypatch, "BlockingMaze-tabular", act, num_steps)[0] == env_id
    assert drawn(monkeypatch, "DynaMaze-tabular", act, 10**6)[0] == "DynaMaze-tabular"


def test_without_a_discount_it_is_the_mdps_own(monkeypatch):
    """Up from below the goal of the maze: 1; from the cell below that: γ = .95."""
    _, _, value, label, _ = drawn(monkeypatch, "DynaMaze-tabular", lambda obs, key: 0, 0)
    np.testing.assert_allclose(value[[17, 26]], [1, 0.95])
    assert label == "value of this policy, γ = 0.95"


@pytest.mark.parametrize("values, is_flat", [([1, 1 + 1e-7], True), ([1, 1.01], False)])
def test_values_without_differences_have_one_colour_and_a_note(values, is_flat):
    """Rounding is no difference."""
    axes = Figure().add_subplot()
    heat = policy_map.plot_heat(axes, np.array([[*values, np.nan]]), "value")
    pixels = heat.to_rgba(heat.get_array())[0, :2]
    assert np.array_equal(*pixels) == is_flat
    assert ("all are 1: no differences" in heat.colorbar.ax.get_ylabel()) == is_flat


def test_a_random_policy_has_an_arrow_for_each_action_as_long_as_its_share():
    """A certain action has one long arrow through the middle of its cell."""
    axes = Figure().add_subplot()
    grid = Grid(["..", ".."], [UP, DOWN, RIGHT, LEFT])
    policy = np.array([[0.5, 0.25, 0.25, 0], [0, 0, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]])
    live = np.array([[True, True], [False, False]])
    policy_map.draw_arrows(axes, grid, policy, live, np.full((2, 2), "black"))
    arrows = [(*q.XY[k], q.U[k], q.V[k]) for q in axes.collections for k in range(len(q.XY)) if q.N]
    lengths = {(round(x), round(y), np.sign(u), np.sign(v)): abs(u + v) for x, y, u, v in arrows}
    expected = {(0, 0, 0, -1): 0.42, (0, 0, 0, 1): 0.21, (0, 0, 1, 0): 0.21}
    expected[round(1 - 0.4), 0, 1, 0] = 0.8
    assert lengths == pytest.approx(expected)


def test_blackjack_has_the_axes_of_figure_5_2():
    """Hit below 17, and with a usable ace below 18; values that tell each state apart."""
    states = np.arange(213)
    total, usable = states % 100 // 10 + 12, states // 100
    policy = np.eye(2)[(total < 17 + usable).astype(int)]
    figure = Figure()
    policy_map.plot_states(figure, "Blackjack-tabular", policy, states + 0.0, "value", "title")
    usable_policy, other_policy, usable_value, other_value = (x.images[0] for x in figure.axes[:4])
    for image_, hits in ((usable_policy, 6), (other_policy, 5)):
        np.testing.assert_array_equal(image_.get_array()[:, 0], np.arange(10) < hits)
    assert usable_value.get_array()[3, 9] == 100 + 10 * 3 + 9  # a sum of 15 against a ten
    assert other_value.get_array()[0, 0] == 0
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()][:2] == ["A", "2"]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()][::9] == ["12", "21"]


def test_jacks_cars_are_counted_as_they_can_move():
    """Action 10 moves five cars from the first place, or as many as there are."""
    policy, figure = np.eye(11)[np.full(441, 10)], Figure()
    value = np.arange(441.0)
    policy_map.plot_states(figure, "JacksCarRental-tabular", policy, value, "value", "")
    moved = figure.axes[0].images[0].get_array()
    np.testing.assert_array_equal(moved[:, 7], np.minimum(np.arange(21), 5))
    assert figure.axes[1].images[0].get_array()[2, 3] == 21 * 2 + 3  # two and three cars
    assert figure.axes[0].get_xlabel().startswith("cars at the second place")


def test_the_gamblers_stakes_are_drawn_as_they_count():
    policy, figure = np.eye(50)[np.full(101, 29)], Figure()  # he would stake 30
    value = np.arange(101.0)
    policy_map.plot_states(figure, "Gambler-tabular", policy, value, "value", "")
    left, right = (axes.lines[0] for axes in figure.axes)
    np.testing.assert_array_equal(left.get_ydata(), range(1, 100))
    assert right.get_ydata()[[9, 49, 89]].tolist() == [10, 30, 10]


def test_a_random_policy_is_drawn_with_its_probabilities(monkeypatch):
    act = lambda obs, key: jax.numpy.where(obs == 0, jax.random.randint(key, (), 0, 2), 3)
    _, policy, *_ = drawn(monkeypatch, "FrozenLake-tabular", act, 0)
    np.testing.assert_array_equal(policy[1:], np.tile([0, 0, 0, 1], (15, 1)))
    assert 0.2 < policy[0, 0] < 0.8 and policy[0, :2].sum() == 1


def test_a_run_in_a_grid_world_gets_a_picture(tmp_path):
    flags = ["--env-id", "CliffWalking-tabular", "--gamma", "1.0", "--num-sweeps", 20, "--quiet"]
    run_here("algorithms.value_iteration", *flags, "--out", tmp_path / "a")
    assert shares(tmp_path / "a" / "policy.png").keys() >= {GREY, LOWEST, HIGHEST}
    for env_id in ("Taxi-tabular", "RandomWalk5-tabular", "FrozenLake-misc", "CartPole-v1"):
        assert not policy_map.has_map(env_id)  # and its runs get none


def test_the_policy_drawn_is_that_of_the_best_member(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(policy_map, "draw_policy", lambda *rest: seen.update(rest=rest))
    policy = np.repeat(np.arange(4, dtype="i")[:, None], 16, axis=1)  # of row i: action i
    zeros = np.zeros((4, 16, 4), "f")
    params = value_iteration.Params(v=zeros[..., 0], q=zeros, policy=policy)
    settings = [{"gamma": 0.9}, {"gamma": 0.5}]
    run = Run(num_seeds=2, seed=5, block=4)
    config = value_iteration.Config()
    job = Job("value_iteration", value_iteration.make, config, run, settings, tmp_path)
    blocks = plan(job)
    tree = {"params": params, "diverged": np.full(4, -1), "history": {}}
    save_block(job, blocks[0], "trained.npz", tree, {"rows": [], "update": 1, "seconds": 1.0})
    write_policies(job, blocks, np.array([[np.nan, 1.0], [3.0, 2.0]]))
    draw_best(job)
    path, env_id, act, gamma, num_steps, title = seen["rest"]
    assert (path, env_id, gamma) == (tmp_path / "policy.png", "FrozenLake-tabular", 0.5)
    assert act(7, jax.random.key(0)) == 2 and num_steps == 0
    assert title == (
        "value_iteration on FrozenLake-tabular\nthe policy of gamma=0.5 seed=5, the best of 4"
    )
