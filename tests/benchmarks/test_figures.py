"""benchmarks/figures.py: every figure at a tiny size, and how numbers become curves."""

import numpy as np
import pytest

from benchmarks.figures import FIGURES, draw, first_episodes, lengths

SIZES = {
    "6.2": {"num_episodes": 10, "num_steps": 400},
    "6.4": {"num_episodes": 5, "num_steps": 2_000},
    "6.7": {"num_episodes": 20},
    "7.2": {"alphas": (0.4, 0.6), "ns": (4,)},
    "8.2": {"num_episodes": 3, "num_steps": 6_000, "plans": (5,)},
    "8.4": {"num_steps": (1_500, 3_500)},
    "12.6": {"alphas": (0.3, 0.9), "lambdas": (0.8,)},
}
EXPECTED = {  # some numbers of each, and what they may be
    "6.2": lambda x: [(x["values"][0], 0.5, 0.5), (x["TD(0)"][:, -1], 0.01, 0.2)],
    "6.4": lambda x: [(x["SARSA"], -2_000, -13), (x["Q-learning"], -2_000, -13)],
    "6.7": lambda x: [(x["Q-learning"], 0, 100), (x["double Q-learning"], 0, 100)],
    "7.2": lambda x: [(x["n = 4"], 0.2, 0.4)],
    "8.2": lambda x: [(x["n = 5"], 14, 2_000)],
    "8.4": lambda x: [
        (np.diff(x["blocking, Dyna-Q"]), 0, 1),
        (x["blocking, Dyna-Q+"][-1], 30, 150),
        (x["shortcut, Dyna-Q+"][-1], 100, 250),
    ],
    "12.6": lambda x: [(x["λ = 0.8"][:1], 0.2, 0.4)],
}


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[pytest.mark.slow] if x == "8.4" else []) for x in FIGURES]
)
def test_figure_is_drawn_and_returns_its_numbers(name, tmp_path):
    numbers = draw(name, tmp_path, num_seeds=4, **SIZES[name])
    assert (tmp_path / f"figure-{name}.png").read_bytes()[:4] == b"\x89PNG"
    for x, low, high in EXPECTED[name](numbers):
        assert np.size(x) and np.all((low <= x) & (x <= high)), x


def test_first_episodes_are_the_first_numbers_of_each_row():
    x = np.array([[np.nan, 1, np.nan, 2, 3], [4, 5, np.nan, np.nan, 6]])
    np.testing.assert_array_equal(first_episodes(x, 2), [[1, 2], [4, 5]])
    with pytest.raises(ValueError, match="only 3 of 4 episodes"):
        first_episodes(x, 4)


def test_lengths_are_the_steps_between_ends():
    returns = np.array([np.nan, np.nan, 0.0, 1.0, np.nan, 0.0])
    np.testing.assert_array_equal(lengths(returns, 3), [3, 1, 2])
