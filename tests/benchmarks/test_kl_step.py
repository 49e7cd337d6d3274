"""What benchmarks/kl_step.py reads, and one small run of it."""

import csv

import numpy as np
import pytest

from benchmarks import kl_step
from benchmarks.learning import suite


def test_curves_are_those_of_every_seed(tmp_path):
    lines = ["seed,step,episode_return", "3,8,nan", "3,16,2.5", "4,8,nan", "4,16,7"]
    (tmp_path / "metrics.csv").write_text("\n".join(lines))
    steps, returns = kl_step.curves_of(tmp_path / "metrics.csv")
    assert steps.tolist() == [8, 16]
    np.testing.assert_array_equal(returns, [[np.nan, 2.5], [np.nan, 7]])


@pytest.mark.slow
def test_a_whole_run_and_what_is_left_alone_the_second_time(tmp_path, monkeypatch, capfd):
    flags = "--total-timesteps 9_000 --hidden-sizes 8"
    row = suite()["a2c-cartpole"] | {"flags": flags, "episodes": 2}
    monkeypatch.setattr(kl_step, "suite", lambda: {"a2c-cartpole": row})
    monkeypatch.setattr(kl_step, "CACHE", tmp_path / "cache")
    words = ["_", "a2c", "--tasks", "cartpole", "--steps", "3200", "--seeds", "2"]
    monkeypatch.setattr("sys.argv", [*words, "--out", str(tmp_path)])
    for wrote in (True, False):
        kl_step.main()
        assert ("greedy policy" in capfd.readouterr().out) == wrote
        with open(tmp_path / "kl_step.csv", newline="") as file:
            (line,) = csv.DictReader(file)
        assert (line["algorithm"], line["steps"], line["seeds"]) == ("a2c", "3200", "2")
        assert 5 < float(line["training_min"]) <= float(line["training_max"]) < 500
        assert f"{flags} --total-timesteps 3200" in line["command"]
    assert (tmp_path / "kl_step.png").stat().st_size > 10_000


def test_rows_that_are_missing_are_named(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["_", "sac"])
    with pytest.raises(SystemExit):
        kl_step.main()
    assert "no row in suite.toml: sac-acrobot, sac-cartpole" in capsys.readouterr().err
