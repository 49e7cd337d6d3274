"""The race with mctx: every contestant is timed, on the same boards, and finds the same values."""

import math

import numpy as np
import pytest

from benchmarks.mcts import CONTESTANTS, boards, race
from common.environments.games import board


@pytest.mark.slow
def test_every_contestant_is_timed_with_what_it_found():
    lines = race("TicTacToe-game", "playout", num_roots=8, num_simulations=60, rounds=1)
    assert [line["contestant"] for line in lines] == list(CONTESTANTS)
    assert all(0 < line["simulations_per_second"] < math.inf for line in lines)
    assert lines[0]["ratio"] == 1 and all(0 <= line["best_move"] <= 1 for line in lines)
    value = {line["contestant"]: line["root_value"] for line in lines}
    assert abs(value["manyseeds"] - value["mctx, UCT"]) < 0.2  # a standard error is about 0.06


def test_the_boards_have_none_to_three_pieces():
    pieces = np.asarray([board(state) for state in boards("TicTacToe-game", 8)])
    assert np.abs(pieces).sum(1).tolist() == [0, 1, 2, 3] * 2
    assert pieces.sum(1).tolist() == [0, 1, 0, 1] * 2
