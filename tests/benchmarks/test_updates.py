"""What an update costs: the table's numbers, from runs of known times, and one real run."""

import math

import pytest

from benchmarks import updates
from benchmarks.updates import Run


def run_of(name, microseconds):
    class Algorithm:
        steps_per_update = 64

    return Run(name, 1, "CartPole-v1", Algorithm, None, None, 2.0, microseconds=microseconds)


def test_ratios_are_medians_of_rounds():
    """A round in which the machine was busy changes no ratio."""
    runs = {
        ("a2c", 1): run_of("a2c", [1.0, 10.0, 1.0]),
        ("impala", 1): run_of("impala", [1.1, 11.0, 1.2]),
        ("a3c", 8): run_of("a3c", [3.0, 3.0, 3.0]),  # with nothing to compare with
    }
    a2c, impala, a3c = updates.rows(runs, load=0.5)
    assert (a2c["step_us"], a2c["relative"]) == (1.0, "")
    assert (impala["step_us"], impala["relative_to"], impala["relative"]) == (1.2, "a2c", 1.1)
    assert (a3c["relative_to"], a3c["relative"]) == ("", "")


def test_a_run_is_timed_and_starts_again_when_it_has_made_all_updates():
    run = updates.compiled("q_learning", seeds=2)
    for _ in range(3):
        updates.play(run, 1e-6)
    assert len(run.microseconds) == 3 and all(0 < x < math.inf for x in run.microseconds)
    assert 0 <= run.done < run.algorithm.num_updates
    run.done = run.algorithm.num_updates - run.length - 1
    updates.advance(run)
    assert run.done + run.length <= run.algorithm.num_updates


@pytest.mark.parametrize("name", sorted({*updates.RELATIVE, *updates.RELATIVE.values()}))
def test_what_is_compared_exists(name):
    assert (updates.RESULTS.parent.parent / "algorithms" / f"{name}.py").exists()
