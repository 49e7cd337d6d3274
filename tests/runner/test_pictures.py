"""picture.png: lines, ranges, boards and shares of visits, drawn from arrays made by hand."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from common.runner.pictures import MAX_PANELS, draw_picture


def drawn(env_id, picture):
    figure = Figure(layout="constrained")
    draw_picture(figure, env_id, picture)
    figure.draw_without_rendering()
    return figure


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_each_plan_is_a_line_from_its_start_over_what_was_realised():
    realised = np.arange(20.0).reshape(10, 2)
    planned = 100 + np.arange(24.0).reshape(3, 4, 2)
    picture = {"names": ["x", "u"], "realised": realised, "planned": planned, "start": [0, 3, 6]}
    figure = drawn("Some-env", picture)
    assert [axes.get_ylabel() for axes in figure.axes] == ["x", "u"]
    assert legend(figure) == ["realised", "planned"]
    assert figure.get_suptitle() == "Some-env"
    for i, axes in enumerate(figure.axes):
        came, *plans = axes.lines
        np.testing.assert_array_equal(came.get_ydata(), realised[:, i])
        assert len(plans) == 3
        for k, line in enumerate(plans):
            np.testing.assert_array_equal(line.get_xdata(), 3 * k + np.arange(4))
            np.testing.assert_array_equal(line.get_ydata(), planned[k, :, i])


def test_a_range_is_filled_at_the_steps_it_is_of():
    realised = np.array([[1.0], [2.0], [3.0]])
    low, high = realised - [[1], [2], [3]], realised + 1
    figure = drawn("Some-env", {"names": ["x"], "realised": realised, "low": low, "high": high})
    (axes,) = figure.axes
    corners = axes.collections[0].get_paths()[0].vertices
    for t in range(3):
        values = corners[corners[:, 0] == t, 1]
        assert (values.min(), values.max()) == (low[t, 0], high[t, 0])
    assert legend(figure) == ["predicted, 5 % to 95 %", "realised"]


def test_components_have_names_where_these_are_known_and_a_picture_may_have_a_title():
    array = np.zeros((5, 4))
    picture = {"names": ["x[1]", "obs[0]", "obs[2]", "speed"], "realised": array}
    picture |= {"low": array, "high": array, "title": "what came"}
    figure = drawn("Pendulum-v1", picture)
    assert [axes.get_ylabel() for axes in figure.axes] == ["θ′", "cos θ", "θ′", "speed"]
    assert figure.get_suptitle() == "Pendulum-v1: what came"
    assert figure.axes[-1].get_xlabel() == "step"
    figure = drawn("Some-env", picture)
    assert [axes.get_ylabel() for axes in figure.axes] == picture["names"]


def test_learned_values_are_beside_the_exact_ones():
    value, exact = np.arange(7.0), np.arange(7.0) / 2
    picture = {"value": value, "exact": exact, "policy": np.full((7, 2), 0.5)}
    learned, true = drawn("RandomWalk5-tabular", picture).axes[0].lines
    assert learned.get_xdata().tolist() == [1, 2, 3, 4, 5]  # the ends are terminal
    np.testing.assert_array_equal(learned.get_ydata(), value[1:-1])
    np.testing.assert_array_equal(true.get_ydata(), exact[1:-1])
    picture["exact"] = np.full(7, np.nan)
    (learned,) = drawn("FrozenLake-misc", picture).axes[0].lines
    np.testing.assert_array_equal(learned.get_ydata(), value)


def test_on_a_map_the_learned_values_are_the_colours():
    value = np.arange(16.0)
    picture = {"value": value, "exact": np.zeros(16), "policy": np.full((16, 4), 0.25)}
    axes, bar = drawn("GridWorld-tabular", picture).axes
    colours = axes.images[1].get_array().ravel()
    np.testing.assert_array_equal(colours[1:-1], value[1:-1])
    assert bar.get_ylabel() == "learned value"


def test_maps_of_the_states_are_side_by_side_and_walls_are_left_out():
    maps = np.arange(2 * 54.0).reshape(2, 54)
    figure = drawn("DynaMaze-tabular", {"names": ["true", "found"], "maps": maps})
    for axes, bar, name, values in zip(
        figure.axes[:2], figure.axes[2:], ["true", "found"], maps, strict=True
    ):
        shown = axes.images[0].get_array().filled(np.nan)
        assert shown.shape == (6, 9) and np.isnan(shown[0, 7]) and np.isnan(shown).sum() == 7
        assert shown[2, 3] == values[2 * 9 + 3] and bar.get_ylabel() == name
    (axes,) = drawn("Garnet-tabular", {"names": ["true"], "maps": maps[:1]}).axes
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), maps[0])
    assert axes.get_ylabel() == "true"


def test_a_search_is_drawn_on_the_grid():
    """Cells 0 and 1 were expanded, 2 and 4 are open, 3 is a wall, the path is 0, 1, 2."""
    order, parent, at = np.zeros(16, int), np.zeros(16, int), np.arange(16)
    order[:2], parent[1:3] = [1, 2], [0, 1]
    picture = {"order": order, "parent": parent, "frontier": (at == 2) | (at == 4)}
    picture |= {"wall": at == 3, "goal": at == 2, "path": at < 3}
    figure = drawn("GridWorld-tabular", picture)
    axes, bar = figure.axes
    walls, heat = (image.get_array() for image in axes.images)
    assert walls[0, 3] == 0.25 and np.sum(walls == 1) == 15
    assert heat[0, :2].tolist() == [1, 2] and heat.mask.sum() == 14
    frontier, first, second, _ = axes.lines
    assert frontier.get_xydata().tolist() == [[2, 0], [0, 1]]
    assert first.get_xydata().tolist() == [[1, 0], [0, 0]]
    assert second.get_xydata().tolist() == [[2, 0], [1, 0]]
    assert texts(axes) == {(0, 0): "S", (0, 2): "G"} and bar.get_ylabel() == "expanded as number"
    assert legend(figure) == ["frontier", "path"]


@pytest.mark.parametrize("env_id, num_boxes", [("PointRobot-obstacles", 2), ("Pendulum-v1", 0)])
def test_a_tree_is_drawn_with_its_plan_and_the_obstacles(env_id, num_boxes):
    edges = np.arange(18.0).reshape(3, 3, 2)
    edges[0] = np.nan  # no edge
    picture = {"names": ["x[0]", "x[1]"], "edges": edges, "path": np.array([False, False, True])}
    figure = drawn(env_id, picture | {"goal": np.array([[1.0, 2], [3, 4]])})
    (axes,) = figure.axes
    blue = [line.get_xydata().tolist() for line in axes.lines if line.get_linewidth() == 0.5]
    thick = [line.get_xydata().tolist() for line in axes.lines if line.get_linewidth() == 2.5]
    assert blue[1] == edges[1].tolist() and thick[0] == edges[2].tolist()
    assert len(axes.collections) == num_boxes + 1
    names = {"Pendulum-v1": ("θ", "θ′"), "PointRobot-obstacles": ("x", "y")}
    assert (axes.get_xlabel(), axes.get_ylabel()) == names[env_id]
    assert legend(figure) == ["tree", "plan", "goal"] and "2 edges" in axes.get_title(loc="left")


def test_only_as_many_components_are_drawn_as_can_be_read():
    names = [f"obs[{i}]" for i in range(30)]
    array = np.zeros((5, 30))
    figure = drawn("Some-env", {"names": names, "realised": array, "low": array, "high": array})
    assert [axes.get_ylabel() for axes in figure.axes] == names[:MAX_PANELS]


def texts(axes):
    """What is written in the cells, by (row, column)."""
    return {text.get_position()[::-1]: text.get_text() for text in axes.texts}


def test_a_board_has_its_pieces_and_the_visits_where_a_move_would_go():
    """Tic-tac-toe: X has the centre and O a corner; X moves. Then O moves on another board."""
    boards = np.zeros((2, 9), np.int8)
    boards[0, [4, 0]] = [1, -1]
    boards[1, 8] = 1
    visits = np.array([[0, 5, 0, 10, 0, 0, 0, 5, 0], [8, 0, 0, 0, 0, 0, 0, 0, 0]])
    figure = drawn("TicTacToe-game", {"visits": visits, "boards": boards})
    first, second, *empty = figure.axes
    assert all(not axes.axison and not axes.texts for axes in empty)
    assert first.get_title("left") == "X to move" and second.get_title("left") == "O to move"
    expected = {(i, j): "0" for i in range(3) for j in range(3)}
    visited = {(0, 1): "25", (1, 0): "50", (2, 1): "25"}
    assert texts(first) == expected | visited | {(1, 1): "X", (0, 0): "O"}
    assert texts(second) == expected | {(2, 2): "X", (0, 0): "100"}


def test_in_connect_four_a_column_shows_its_visits_where_the_piece_would_land():
    cells = np.zeros((6, 7), np.int8)
    cells[:, 2] = [-1, 1, -1, 1, -1, 1]  # a full column
    cells[5, 3] = 1
    visits = np.array([[1, 0, 0, 3, 0, 0, 0]])
    figure = drawn("ConnectFour-game", {"visits": visits, "boards": cells.reshape(1, 42)})
    numbers = {cell: text for cell, text in texts(figure.axes[0]).items() if text not in "XO"}
    landing = {(5, 0): "25", (5, 1): "0", (4, 3): "75", (5, 4): "0", (5, 5): "0", (5, 6): "0"}
    assert numbers == landing


def test_without_a_board_the_shares_of_the_visits_are_stacked_over_time():
    figure = drawn("CartPole-v1", {"visits": np.array([[3, 1], [0, 0], [2, 2]])})
    (axes,) = figure.axes
    bottom, top = (area.get_paths()[0].vertices for area in axes.collections)
    assert bottom[bottom[:, 0] == 0, 1].max() == 0.75
    assert top[top[:, 0] == 2, 1].max() == 1


def test_other_keys_are_refused():
    with pytest.raises(ValueError, match="no picture of"):
        draw_picture(Figure(), "CartPole-v1", {"visits": np.ones((2, 2)), "names": ["x"]})
