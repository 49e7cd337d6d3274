"""How cost grows: the runs of each axis, the fit of memory, and one run as users type it."""

import csv
import importlib

import pytest

from benchmarks import growth
from common.runner.cli import parse


@pytest.mark.parametrize("name", growth.WORKS)
def test_every_run_is_a_command_line_that_the_algorithm_takes(name):
    module = importlib.import_module(f"algorithms.{name}")
    for axis in (*growth.LABELS, "environment"):
        for run in growth.runs_of(axis, name):
            work = growth.WORKS[name]
            steps = max(work.least, work.budget // run.seeds)
            words = [*run.flags.split(), "--total-timesteps", str(steps)]
            words += ["--num-seeds", str(run.seeds)]
            config, flags = parse(module.Config, name, "", words)
            assert flags.block == (run.seeds if axis == "seeds" else 0)
            assert config.total_timesteps == steps
    assert not growth.runs_of("replay", "ppo") and not growth.runs_of("width", "q_learning")


def test_state_grows_with_the_replay_memory():
    small, large = (growth.state_bytes(run) for run in growth.runs_of("replay", "dqn")[:2])
    assert large - small == pytest.approx(9_000 * 45, rel=0.2)  # 8 float32, 1 int32, bools


def test_memory_is_fitted():
    lines = [
        {"algorithm": "dqn", "axis": "seeds", "value": n, "seeds": n, "rounds": 1}
        | {"peak_mib": 300 + 1.5 * n, "state_mib": 0.5}
        for n in (1, 8, 64)
    ]
    fit = growth.fit_of("dqn", lines)
    assert fit is not None and fit["base_mib"] == pytest.approx(300)
    assert fit["each_mib"] == pytest.approx(1.5) and fit["each_over_state"] == pytest.approx(3)
    assert fit["largest_error"] == pytest.approx(0, abs=1e-9)
    assert growth.fit_of("ppo", lines) is None


def test_a_run_that_fails_is_a_line_with_its_reason():
    run = growth.Run("replay", 1, "dqn", 8, "--buffer-size 1")
    line = growth.line_of(run._replace(flags=""), [growth.train(run)])
    assert line["rounds"] == 0 and "buffer_size" in line["reason"].replace("-", "_")
    assert line["steps_per_second"] != line["steps_per_second"]


def test_the_command(tmp_path, monkeypatch):
    work = growth.WORKS["q_learning"]._replace(budget=2_000)
    monkeypatch.setitem(growth.WORKS, "q_learning", work)
    words = ["growth", "seeds", "--algorithms", "q_learning", "--rounds", "1", "--most", "1"]
    monkeypatch.setattr("sys.argv", [*words, "--out", str(tmp_path)])
    growth.main()
    with open(tmp_path / "growth.csv", newline="") as file:
        (line,) = csv.DictReader(file)
    assert (line["axis"], line["seeds"], line["reason"]) == ("seeds", "1", "")
    assert float(line["steps_per_second"].replace(",", "")) > 0
