"""The rows of tier `test` of the learning suite, whose thresholds and sources stand there."""

import importlib
import math
import re
import shlex
import sys

import pytest

from benchmarks import learning, pages
from benchmarks.learning import (
    averages,
    band,
    chosen,
    command,
    command_line,
    in_words,
    lines,
    missing_package,
    run_row,
    suite,
)
from common.runner.cli import parse

ROWS = {name: row for name, row in suite().items() if row["tier"] == "test"}


def or_skip(row):
    """The row, unless its environment is of a suite that is not installed."""
    if package := missing_package(row):
        pytest.skip(f"needs a package: pip install {package}")
    return row


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_it_reaches_its_threshold(name, tmp_path, monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # as users run it
    line = run_row(name, or_skip(ROWS[name]), tmp_path / "run")
    assert line["reached"] == "yes", line


def test_every_row_is_complete_and_every_algorithm_has_one():
    from helpers import ALGORITHMS

    rows = suite()
    assert {row["algorithm"] for row in rows.values()} == set(ALGORITHMS)
    keys = {"algorithm", "env_id", "flags", "seeds", "episodes", "threshold", "reference"}
    for name, row in rows.items():
        scored = {"metric", "last"} if "metric" in row else set()
        assert row.keys() - {"note"} == keys | {"source", "tier", "tuned_seeds"} | scored, name
        assert re.match(r"none|not recorded|some of|from|\d", row["tuned_seeds"]), name
        assert row["seeds"] >= 8 and row["source"], name
        assert row["episodes"] >= 100 or "metric" in row, name
        low, high = band(row)
        assert low < high and 0 < row.get("last", 1) <= 1, name


@pytest.mark.parametrize("name", suite())
def test_the_command_of_a_row_is_one_that_its_algorithm_takes(name):
    row = or_skip(suite()[name])
    module = importlib.import_module(f"algorithms.{row['algorithm']}")
    config, run = parse(module.Config, name, "", command(row)[2:])
    assert config.env_id == row["env_id"] and run.num_seeds == row["seeds"]
    assert module.make(config).num_updates > 0


def test_a_row_whose_suite_is_not_installed_is_left_out(monkeypatch, capsys):
    row = {"algorithm": "ppo", "env_id": "Snake-v1-jumanji", "tier": "cpu"}
    monkeypatch.setattr(learning, "suite", lambda: {"ppo-snake": row})
    monkeypatch.setattr(learning, "run_row", lambda *_: pytest.fail("it ran"))
    monkeypatch.setattr(sys, "argv", ["learning", "ppo-snake"])
    monkeypatch.setattr(sys, "meta_path", [])  # where packages are found
    learning.main()
    assert capsys.readouterr().out.strip() == (
        "ppo-snake: left out, it needs a package: pip install jumanji"
    )
    assert missing_package({"env_id": "CartPole-v1"}) is None


def test_a_metric_is_averaged_over_the_last_part_of_every_seed(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("seed,step,x\n0,10,1\n1,10,9\n0,20,3\n1,20,nan\n0,30,5\n1,30,7\n0,40,nan\n")
    assert averages(path, "x", 1.0) == [3, 8]
    assert averages(path, "x", 0.5) == [5, 7]
    assert [math.isnan(x) for x in averages(path, "x", 0.1)] == [True, True]


def test_a_threshold_is_a_number_or_a_band():
    assert in_words({"threshold": -13.0}) == "-13" and band({"threshold": 2}) == (2, math.inf)
    row = {"threshold": [-30.0, -23.0], "metric": "episode_return", "last": 0.2}
    assert band(row) == (-30, -23)
    assert in_words(row) == "-30 to -23 (episode_return, last 20%)"


def test_rows_that_want_an_accelerator_run_only_when_they_are_asked_for():
    rows = {
        "dqn-a": {"algorithm": "dqn", "tier": "cpu"},
        "dqn-b": {"algorithm": "dqn", "tier": "gpu"},
        "ppo-a": {"algorithm": "ppo", "tier": "gpu"},
        "ppo-b": {"algorithm": "ppo", "tier": "test"},
    }
    assert chosen(rows, [], None) == ["dqn-a", "ppo-b"]
    assert chosen(rows, ["dqn"], None) == ["dqn-a"]
    assert chosen(rows, ["dqn", "ppo-a"], None) == ["dqn-a", "ppo-a"]
    assert chosen(rows, ["dqn"], "gpu") == ["dqn-b"]
    assert chosen(rows, [], "gpu") == ["dqn-b", "ppo-a"]
    assert chosen(rows, ["ppo-a"], "cpu") == []


@pytest.mark.parametrize("flags", ["", "--learning-rate 5e-4 --hidden-sizes 64 64"])
def test_a_page_shows_the_flags_of_the_run_not_those_of_the_suite(flags, tmp_path, monkeypatch):
    row = suite()["dqn-cartpole"] | {"flags": flags}
    monkeypatch.setattr(learning, "RESULTS", tmp_path)
    ran = command_line(row)
    written = dict.fromkeys(learning.COLUMNS, "1") | {"row": "dqn-cartpole", "command": ran}
    learning.write_line(written)
    assert lines() == {"dqn-cartpole": written}
    shown = pages.one_result("dqn-cartpole", row | {"flags": "--gamma 0.5"})
    assert f"\n{ran}\n" in shown and flags in shown and "--gamma" not in shown


@pytest.mark.parametrize("name", lines())
def test_a_committed_result_is_of_the_training_that_its_row_asks_for(name):
    """A flag that is renamed must be renamed in learning.csv too."""
    asked = f"python {shlex.join(command(suite()[name]))}"
    ran = lines()[name]["command"]
    training = [words.partition(" --eval-episodes ")[0] for words in (asked, ran)]
    assert training[0] == training[1]
