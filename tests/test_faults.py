"""benchmarks/faults.py: a short round of it, and that it notices what it is there to notice."""

import csv
import random
import shutil

import pytest
from helpers import run

from benchmarks import faults
from benchmarks.faults import Ended, Run, differs, flipped, wrong


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("faults")
    flags = ["--total-timesteps", "400", "--num-steps", "20", "--num-seeds", "2", "--quiet"]
    run("algorithms.q_learning", *flags, "--out", path / "whole")
    return Run("q_learning", flags, path / "whole", path, random.Random(0))


def test_two_kills_inside_a_save_end_with_the_same_bytes(whole, monkeypatch):
    """Between the two renames, and with half a file written."""
    flags = [*whole.flags, "--checkpoint-every", "1e-9"]
    points = [
        lambda *x, point=point: faults.in_a_save(*x, point=point)
        for point in ("after previous.npz replace", "write 12")
    ]
    row = faults.struck(whole._replace(flags=flags), "kill -9 in a save", points, -9)
    assert (row.attempts, row.passed) == (2, 2), row


def test_what_differs_is_found(whole, tmp_path):
    other = shutil.copytree(whole.whole, tmp_path / "other")
    assert differs(whole, other) == ""
    rows = (other / "metrics.csv").read_bytes()
    (other / "metrics.csv").write_bytes(rows + rows[-20:])
    assert differs(whole, other) == "metrics.csv differs"
    assert wrong(whole, other, Ended(0, ""), -9) == ""  # rows after those that are counted on
    (other / "metrics.csv").write_bytes(rows.replace(b"1", b"2", 1))
    assert wrong(whole, other, Ended(0, ""), -9) == "rows are wrong"
    (other / "metrics.csv").write_bytes(rows[:-1])
    assert wrong(whole, other, Ended(0, ""), -9) == "rows are wrong"
    data = (other / "checkpoint.npz").read_bytes()
    (other / "checkpoint.npz").write_bytes(flipped(data, 4 * len(data)))
    assert "damaged" in wrong(whole, other, Ended(0, ""), -9)
    assert wrong(whole, other, Ended(1, "Traceback"), -9) == "exit code 1: Traceback"
    assert wrong(whole, other, Ended(130, "two\nlines\n"), 130).startswith("not one line")


def test_the_table_that_is_kept_has_no_failure():
    with open(faults.RESULTS / "faults.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == faults.COLUMNS
    assert all(row["passed"] == row["attempts"] for row in rows)
    assert {"kill -9", "kill -9 in a save", "damaged"} <= {row["fault"] for row in rows}
