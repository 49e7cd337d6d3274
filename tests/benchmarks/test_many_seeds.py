"""benchmarks/many_seeds.py: a small run of it, and its committed table."""

import csv
import sys

import pytest

from benchmarks import many_seeds
from benchmarks.many_seeds import COLUMNS, PARTS


@pytest.mark.slow
def test_the_parts_of_a_run_add_up_and_replace_their_rows(tmp_path, monkeypatch):
    path = tmp_path / "many_seeds.csv"
    path.write_text(",".join(COLUMNS) + "\n20,9,start,1,1,9,2,1,today\n4,9,whole,1,1,9,2,1,today\n")
    monkeypatch.setattr(sys, "argv", ["x", "20", "--steps", "2000", "--out", str(path)])
    many_seeds.main()
    with open(path, newline="") as file:
        old, *rows = csv.DictReader(file)
    assert old["seeds"] == "4" and [row["part"] for row in rows] == PARTS
    assert {(row["seeds"], row["steps"]) for row in rows} == {("20", "2000")}
    *parts, whole = rows
    seconds = [float(row["seconds"]) for row in parts]
    assert (
        min(seconds) >= 0
        and seconds[0] > 0
        and sum(seconds) == pytest.approx(float(whole["seconds"]), abs=1)
    )
    peaks = [int(row["peak_mib"]) for row in rows]
    in_order = [peaks[PARTS.index(x)] for x in ("start", "train", "metrics", "evaluate", "results")]
    assert in_order[0] > 50 and in_order == sorted(in_order) and peaks[-1] == in_order[-1]


def test_the_committed_table_has_all_parts():
    rows = many_seeds.lines(many_seeds.TABLE)
    sizes = dict.fromkeys(row[0] for row in rows)
    assert "20000" in sizes
    assert [row[:3:2] for row in rows] == [[size, part] for size in sizes for part in PARTS]
