"""--parquet: the same rows in another format, if pyarrow is there."""

import csv
import importlib.util

import numpy as np
import pytest
from helpers import run

FLAGS = "--total-timesteps 4000 --steps-per-update 20 --num-seeds 3 --log-points 7 --parquet"
FLAGS = [*FLAGS.split(), "--sweep", "learning_rate=0.1,0.5", "--eval-episodes", "2", "--quiet"]


def test_parquet_has_the_rows_of_csv(tmp_path):
    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    run("algorithms.q_learning", *FLAGS, "--out", tmp_path / "a")
    run("algorithms.q_learning", *(x for x in FLAGS if x != "--parquet"), "--out", tmp_path / "b")
    for name in ("metrics", "evaluation"):
        assert not (tmp_path / "a" / f"{name}.csv").exists()
        table = parquet.read_table(tmp_path / "a" / f"{name}.parquet")
        with open(tmp_path / "b" / f"{name}.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert table.column_names == list(rows[0]) and table.num_rows == len(rows) > 10
        for column in table.column_names:
            text = [float(row[column]) for row in rows]
            np.testing.assert_allclose(table[column].to_numpy(), text, rtol=1e-6)


def test_without_pyarrow_a_line_says_so_before_training(tmp_path):
    if importlib.util.find_spec("pyarrow"):
        pytest.skip("pyarrow is there")
    done = run("algorithms.q_learning", *FLAGS, "--out", tmp_path / "a", check=2)
    assert done.stdout == "" and not (tmp_path / "a").exists()
    assert done.stderr == "q_learning: --parquet needs pyarrow: pip install pyarrow\n"
