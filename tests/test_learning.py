"""The rows of tier `test` of the learning suite, whose thresholds and sources stand there."""

import pytest

from benchmarks.learning import run_row, suite

ROWS = {name: row for name, row in suite().items() if row["tier"] == "test"}


@pytest.mark.learning
@pytest.mark.parametrize("name", ROWS)
def test_it_reaches_its_threshold(name, tmp_path):
    line = run_row(name, ROWS[name], tmp_path / "run")
    assert line["reached"] == "yes", line


def test_every_row_is_complete_and_every_algorithm_has_one():
    from helpers import ALGORITHMS

    rows = suite()
    assert {row["algorithm"] for row in rows.values()} == set(ALGORITHMS)
    keys = {"algorithm", "env_id", "flags", "seeds", "episodes", "threshold", "reference"}
    for name, row in rows.items():
        assert row.keys() == keys | {"source", "tier"}, name
        assert row["seeds"] >= 8 and row["episodes"] >= 100 and row["source"], name
