"""`python -m common.tune`: batches of settings that Optuna asks for."""

import csv
import json
import sys

import pytest
from helpers import run_here

SMALL = "q_learning --env-id CliffWalking-tabular --total-timesteps 2_000 --eval-episodes 2"
SPACE = ["--sweep", "learning_rate=log:1e-3:1", "epsilon=0.05,0.5", "--num-settings", "3"]


def tune(*arguments, check: int | None = 0):
    return run_here("common.tune", *SMALL.split(), *arguments, check=check)


def test_it_asks_and_tells_in_batches_and_retrains_the_best(tmp_path, monkeypatch):
    optuna, told = pytest.importorskip("optuna"), []
    tell = optuna.study.Study.tell

    def heard(study, trial, value):
        told.append((trial.params["learning_rate"], value))
        return tell(study, trial, value)

    monkeypatch.setattr(optuna.study.Study, "tell", heard)
    flags = [*SPACE, "--rounds", "2", "--num-seeds", "2", "--retrain-best", "3"]
    printed = tune(*flags, "--out", tmp_path).stdout
    with open(tmp_path / "trials.csv", newline="") as file:
        trials = list(csv.DictReader(file))
    assert [trial["round"] for trial in trials] == ["0"] * 3 + ["1"] * 3
    for (rate, value), trial in zip(told, trials, strict=True):
        assert float(trial["learning_rate"]) == pytest.approx(rate, rel=1e-3)
        assert float(trial["iqm"]) == value
    rates = [float(trial["learning_rate"]) for trial in trials]
    assert len(set(rates)) == 6 and all(1e-3 <= x <= 1 and x == float(f"{x:.4g}") for x in rates)
    assert {trial["epsilon"] for trial in trials} <= {"0.05", "0.5"}
    for number in range(2):
        summary = json.loads((tmp_path / f"round-{number}" / "summary.json").read_text())
        listed = sorted(float(x["iqm"]) for x in trials if x["round"] == str(number))
        assert listed == sorted(row["iqm"] for row in summary["sweep"])
    best = max(trials, key=lambda trial: float(trial["iqm"]))
    assert f"with learning_rate={best['learning_rate']} epsilon={best['epsilon']}\n" in printed
    retrained = json.loads((tmp_path / "best" / "config.json").read_text())
    assert str(retrained["config"]["learning_rate"]) == best["learning_rate"]
    assert (retrained["run"]["seed"], retrained["run"]["num_seeds"]) == (2, 3)

    (tmp_path / "trials.csv").rename(tmp_path / "before.csv")
    tune(*flags, "--out", tmp_path)  # all is done: it reads what was trained
    assert (tmp_path / "before.csv").read_text() == (tmp_path / "trials.csv").read_text()


@pytest.mark.parametrize(
    "argv, reason",
    [
        (["--sweep", "learning_rate=0.1:1"], "--num-settings"),
        (["--num-settings", "3"], "--sweep"),
        ([*SPACE, "--rounds", "0"], "--rounds above 0"),
        ([*SPACE, "--rounds", "x"], "invalid int value"),
        (["--sweep", "env.gravity=8:12", "--num-settings", "3"], "no --sweep env."),
        (["--sweep", "learning=0.1:1", "--num-settings", "3"], "no such field"),
        ([*SPACE, "--seeds", "3"], "unknown flag --seeds"),
    ],
)
def test_bad_input_is_one_line(argv, reason, tmp_path):
    done = tune(*argv, "--out", tmp_path / "new", check=2)
    assert reason in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_setting_that_the_algorithm_refuses_is_one_line(tmp_path):
    pytest.importorskip("optuna")
    sweep = ["--sweep", "num_minibatches=3,5", "--num-settings", "2"]
    done = run_here("common.tune", "ppo", *sweep, "--out", tmp_path / "new", check=2)
    assert "num_minibatches" in done.stderr and done.stderr.count("\n") == 1


def test_a_missing_package_or_algorithm_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "optuna", None)
    done = tune(*SPACE, "--out", tmp_path / "new", check=2)
    assert done.stderr.endswith("tune needs optuna: pip install optuna\n")
    done = run_here("common.tune", "q_lerning", *SPACE, check=2)
    assert "algorithms.q_lerning" in done.stderr and done.stderr.count("\n") == 1
