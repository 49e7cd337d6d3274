"""benchmarks/cost_model.py: its arithmetic, what it measures, and its committed table."""

import csv

import pytest

from benchmarks import cost_model
from benchmarks.cost_model import costs, measured_saves


def test_costs_are_those_worked_by_hand():
    """Ten seeds on four GPUs: blocks of 3, of 2 GiB a seed, at 1 GiB/s."""
    inputs = {"state of a seed": 2 * 2**30, "a seed in a checkpoint": 2.5 * 2**30, "save": 2**30}
    inputs |= {"merge, any number of seeds": 5.0, "merge, a seed": 0.5}
    found = {name: value for name, (value, _) in costs(inputs, 10, 4, 600).items()}
    assert found["block"] == 3 and found["state on a GPU"] == 6
    assert found["bytes of a save"] == 7.5 and found["seconds of a save"] == 6
    assert found["share of time that saves take"] == pytest.approx(6 / 606)
    assert found["all GPUs' saves, two kept"] == 60
    assert found["written by all GPUs"] == pytest.approx(30 * 1024 / 606)
    assert found["merge, in one process"] == 10
    # A short interval gives way: a save may take a twentieth of the time.
    assert costs(inputs, 10, 4, 1)["share of time that saves take"][0] == pytest.approx(1 / 21)


def test_a_checkpoint_holds_the_state():
    found = {name: value for name, (value, _) in measured_saves(2, repeats=1).items()}
    assert 1 <= found["a seed in a checkpoint"] / found["state of a seed"] < 1.05
    assert 0 < found["save"] < found["of it hashing"] * 2


def test_the_committed_table_follows_from_what_was_measured():
    with open(cost_model.RESULTS / "cost_model.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    inputs = {row["quantity"]: float(row["value"]) for row in rows if row["origin"] == "measured"}
    model = {row["quantity"]: float(row["value"]) for row in rows if row["origin"] == "model"}
    expected = costs(inputs, 100_000, 64, 600)
    assert model == {name: pytest.approx(x, rel=2e-3) for name, (x, _) in expected.items()}
