"""The comparison of searches, small."""

import numpy as np
import pytest

from algorithms import rrt
from benchmarks import graph_search


@pytest.mark.slow
def test_lines_and_picture_of_few_seeds(tmp_path):
    line = graph_search.search("GridWorld-tabular", 12)
    assert line["length, Dijkstra"] == line["length, A*"] <= line["length, greedy"]
    assert 1 <= line["expanded, A*"] <= line["expanded, Dijkstra"]
    grown = graph_search.grow("Pendulum-v1", 100, 3)
    assert grown[0].shape == grown[1].shape == (3, 2)
    graph_search.draw(tmp_path / "picture.png", {"Pendulum-v1": grown})
    config = rrt.Config("PointRobot-obstacles", num_nodes=50)
    graph_search.show(tmp_path / "tree.png", rrt, config, seed=0)
    assert (tmp_path / "tree.png").stat().st_size > 10_000
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_progress_is_shown_at_numbers_of_samples():
    """Four updates of 50 samples: one of two seeds has a plan of 30 steps after 100, both later."""
    success = np.array([[0, 1, 1, 1], [0, 0, 0, 1]])
    steps = np.array([[np.nan, 30, 28, 20], [np.nan, np.nan, np.nan, 10]])
    lines = graph_search.progress("Some-env", success, steps)
    assert [line["samples"] for line in lines] == [50, 100, 200]
    assert [line["with_a_plan"] for line in lines] == [0, 0.5, 1]
    assert np.isnan(lines[0]["median_steps"])
    assert [line["median_steps"] for line in lines[1:]] == [30, 15]
