"""What benchmarks/option_critic.py counts, and one small run of it."""

import csv

import numpy as np
import pytest

from benchmarks import option_critic
from common.environments.tabular import TABULAR, make_mdp


def test_the_fewest_steps_are_those_of_value_iteration():
    assert option_critic.fewest_steps(make_mdp("FourRooms-tabular")) == pytest.approx(15.0117, 1e-5)
    assert option_critic.fewest_steps(make_mdp("DynaMaze-tabular")) == 14


def steps_of(*lengths):
    """One seed's lengths of episodes, where they end; NaN on the other steps."""
    x = np.full(sum(lengths), np.nan)
    x[np.cumsum(lengths) - 1] = lengths
    return x


def test_recovery_counts_episodes_that_begin_after_the_change(monkeypatch):
    monkeypatch.setattr(option_critic, "WINDOW", 2)
    x = steps_of(3, 4, 9, 2, 5, 2, 3, 1)  # begin at 0, 3, 7, 16, 18, 23, 25, 28
    assert option_critic.recovered(x, 8, 2.5) == (2, 15, True)  # 2 and 3 steps
    assert option_critic.recovered(x, 7, 3.5) == (1, 9, True)
    assert option_critic.recovered(x, 16, 2.5) == (2, 7, True)
    assert option_critic.recovered(x, 8, 1.5) == (5, 21, False)


def test_means_and_shares_by_hand(monkeypatch):
    monkeypatch.setattr(option_critic, "BIN", 2)
    nan = np.nan
    x = np.array([[1, nan, nan, nan, 2, 4, 9]])
    np.testing.assert_array_equal(option_critic.binned(x), [[1, nan, 3]])
    options = np.array([[0, 0, 1, 2], [2, 2, 2, 1]])
    np.testing.assert_array_equal(option_critic.largest_share(options), [0.5, 0.75])
    assert option_critic.in_words(np.array([1234.5, 1234.5])) == "1,234"
    assert option_critic.in_words(np.full(16, 2.5)) == "2.50 [2.50, 2.50]"


@pytest.mark.slow
def test_a_whole_run(tmp_path, monkeypatch):
    entry = TABULAR["MovingGoalMaze-tabular"]._replace(change_after=10_000)
    monkeypatch.setitem(TABULAR, "MovingGoalMaze-tabular", entry)
    agents = {name: option_critic.AGENTS[name] for name in ("4 options", "SARSA, ε = .1")}
    monkeypatch.setattr(option_critic, "AGENTS", agents)
    monkeypatch.setattr(option_critic, "DRAWN", [*agents])
    words = ["_", "--seeds", "2", "--steps", "20000", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", words)
    option_critic.main()
    with open(tmp_path / "option_critic.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["agent"] for line in lines] == [*agents]
    assert 1 < float(lines[0]["option_before"]) < 4 and lines[1]["option_before"] == ""
    assert (tmp_path / "option_critic.png").stat().st_size > 10_000


def test_a_run_that_ends_before_the_goal_moves_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["_", "--steps", "50000"])
    with pytest.raises(SystemExit):
        option_critic.main()
    assert "--steps more than 50,000" in capsys.readouterr().err
