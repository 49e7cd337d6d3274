"""What benchmarks/steps_to_threshold.py reads and counts, and one small run of it."""

import csv

import numpy as np
import pytest

from benchmarks import steps_to_threshold
from benchmarks.learning import suite


def test_steps_before_the_first_return_at_the_threshold():
    steps = np.array([10, 20, 30])
    returns = np.array([[1, 5, 2], [5, 1, 1], [1, 2, 3], [1, 1, 5], [np.nan, np.nan, np.nan]])
    first, ever = steps_to_threshold.first_steps(steps, returns, 5)
    assert first.tolist() == [20, 10, 30, 30, 30]
    assert ever.tolist() == [True, True, False, True, False]


def test_curves_are_the_rows_that_have_an_evaluation(tmp_path):
    lines = ["seed,step,episode_return,evaluation_return", "3,8,1,nan", "3,16,1,2.5", "3,24,1,4"]
    lines += ["4,8,1,nan", "4,16,1,7", "4,24,1,9.5"]
    lines += ["5,8,1,nan", "5,16,1,3", "5,24,1,nan"]  # diverged during training
    (tmp_path / "metrics.csv").write_text("\n".join(lines))
    steps, returns = steps_to_threshold.curves_of(tmp_path / "metrics.csv")
    assert steps.tolist() == [16, 24]
    np.testing.assert_array_equal(returns, [[2.5, 4], [7, 9.5], [3, np.nan]])


@pytest.mark.slow
def test_a_whole_run_and_what_is_left_alone_the_second_time(tmp_path, monkeypatch, capfd):
    flags = "--total-timesteps 2_000 --hidden-sizes 8 8 --batch-size 8"
    row = suite()["dqn-cartpole"] | {"flags": flags, "threshold": 5.0, "episodes": 2}
    monkeypatch.setattr(steps_to_threshold, "suite", lambda: {"dqn-cartpole": row})
    monkeypatch.setattr(steps_to_threshold, "CACHE", tmp_path / "cache")
    words = ["_", "--algorithms", "dqn", "--tasks", "cartpole", "--seeds", "2"]
    monkeypatch.setattr("sys.argv", [*words, "--out", str(tmp_path)])
    for wrote in (True, False):
        steps_to_threshold.main()
        assert ("greedy policy" in capfd.readouterr().out) == wrote
        with open(tmp_path / "steps_to_threshold.csv", newline="") as file:
            (line,) = csv.DictReader(file)
        assert line["algorithm"] == "dqn" and line["never"] == "0" and line["seeds"] == "2"
        assert 1_000 < int(line["min"]) <= int(line["max"]) <= 2_000
        assert f"{flags} --eval-every 50" in line["command"]
    assert (tmp_path / "steps_to_threshold.png").stat().st_size > 10_000
