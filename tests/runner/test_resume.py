"""What a resumed run does not do again."""

import csv
import sys

import numpy as np
import pytest

from algorithms.q_learning import Config, make
from common.run import main
from common.runner import loop

FLAGS = "--total-timesteps 4000 --steps-per-update 20 --num-seeds 4 --block 4 --log-points 10"
FLAGS = [*FLAGS.split(), "--eval-episodes", "2", "--quiet", "--checkpoint-every", "1e-9"]


def full(*_):
    raise OSError(28, "no space left on device")


def check_same(folder, other):
    """All results have the same bytes, and all parameters the same bits."""
    with np.load(folder / "policy.npz") as a, np.load(other / "policy.npz") as b:
        assert set(a.files) == set(b.files)
        for name in set(a.files) - {"header", "sha256"}:
            np.testing.assert_array_equal(a[name], b[name])
    for name in ("metrics.csv", "evaluation.csv"):
        assert (folder / name).read_bytes() == (other / name).read_bytes()


def test_a_block_that_goes_on_is_not_started_again(tmp_path, monkeypatch):
    """What `init_run` returns would be in memory beside what is read from the disk."""
    started = []

    class Counted(loop.Program):
        def __new__(cls, device, init_run=None, **fields):
            def init(*members):
                started.append(device)
                return init_run(*members)

            return super().__new__(cls, device, init_run and init, **fields)

    def train(folder):
        monkeypatch.setattr(sys, "argv", ["q_learning", *FLAGS, "--out", str(tmp_path / folder)])
        started.clear()
        main(Config, make)

    monkeypatch.setattr(loop, "Program", Counted)
    monkeypatch.setattr(loop, "SAVE_SHARE", float("inf"))
    train("whole")
    assert len(started) == 1
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(loop, "save_trained", full)
        train("stopped")
    assert (tmp_path / "stopped/blocks/000000/checkpoint.npz").exists()
    train("stopped")
    assert not started
    check_same(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.slow
def test_a_sweep_of_settings_drawn_at_random_goes_on_with_the_same(tmp_path, monkeypatch):
    """One setting is trained, the disk is full at the second, and --resume does the rest."""
    sweep = ["--sweep", "learning_rate=log:0.01:1", "--num-settings", "3"]
    flags = [*FLAGS, *sweep, "--num-seeds", "2", "--block", "2"]

    def train(*flags):
        monkeypatch.setattr(sys, "argv", ["q_learning", *map(str, flags), "--quiet"])
        main(Config, make)

    train(*flags, "--out", tmp_path / "whole")
    save, saved = loop.save_trained, []

    def save_first(*arguments):
        full() if saved else saved.append(save(*arguments))

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(loop, "save_trained", save_first)
        train(*flags, "--out", tmp_path / "stopped")
    assert len(list(tmp_path.glob("stopped/blocks/*/trained.npz"))) == 1
    train("--resume", tmp_path / "stopped")
    check_same(tmp_path / "whole", tmp_path / "stopped")
    with open(tmp_path / "whole/metrics.csv", newline="") as file:
        rates = {float(row["learning_rate"]) for row in csv.DictReader(file)}
    assert len(rates) == 3 and min(rates) >= 0.01 and max(rates) <= 1
