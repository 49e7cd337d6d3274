"""What benchmarks/model_based.py reads and counts, and one small run of it."""

import csv

import numpy as np
import pytest

from benchmarks import model_based


def test_a_curve_has_the_mean_return_of_the_episodes_of_each_thousand_steps(tmp_path):
    lines = ["seed,step,episode_return,episodes", "3,400,-100,1", "3,800,nan,0", "3,1000,-400,2"]
    lines += ["3,1400,nan,0", "3,2000,nan,0", "3,3000,-50,1"]
    lines += ["4,400,-10,1", "4,1000,nan,0", "4,1800,-20,1", "4,2800,-30,1"]
    (tmp_path / "metrics.csv").write_text("\n".join(lines))
    steps, returns = model_based.curve_of(tmp_path / "metrics.csv")
    assert steps.tolist() == [1_000, 3_000]  # in the second thousand seed 3 ended no episode
    np.testing.assert_array_equal(returns, [[-300, -50], [-10, -30]])


def test_a_curve_that_falls_again_has_not_reached_the_threshold():
    steps = np.array([10, 20, 30, 40])
    first = lambda *line: model_based.first_above(steps, np.array([line, line]), -2.0)
    assert first(-9, -1, -9, -1) == 40
    assert first(-9, -1, -2.5, -1) == 20
    assert first(-9, -9, -9, -9) == ""


@pytest.mark.slow
def test_a_small_run_writes_the_table_and_the_picture(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(model_based, "CACHE", tmp_path / "cache")
    small = "--total-timesteps 900 --learning-starts 300 --hidden-sizes 8 --batch-size 8"
    words = ["_", "--contestants", "SAC", "--seeds", "2", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", [*words, "--flags", small])
    for wrote in (True, False):
        model_based.main()
        assert ("compiled" in capfd.readouterr().out) == wrote
    with open(tmp_path / "model_based.csv", newline="") as file:
        (line,) = csv.DictReader(file)
    assert line["algorithm"] == "SAC" and line["seeds"] == "2"
    assert -2_000 < float(line["iqm"]) < -500 and line["steps_to_threshold"] == ""
    assert (tmp_path / "model_based.png").stat().st_size > 10_000
