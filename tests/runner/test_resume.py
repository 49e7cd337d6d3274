"""What a resumed run does not do again."""

import sys

import numpy as np
import pytest

from algorithms.q_learning import Config, make
from common.run import main
from common.runner import loop

FLAGS = "--total-timesteps 4000 --steps-per-update 20 --num-seeds 4 --block 4 --log-points 10"
FLAGS = [*FLAGS.split(), "--eval-episodes", "2", "--quiet", "--checkpoint-every", "1e-9"]


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

    def full(*_):
        raise OSError(28, "no space left on device")

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
    with np.load(tmp_path / "whole/policy.npz") as a, np.load(tmp_path / "stopped/policy.npz") as b:
        for name in set(a.files) - {"header", "sha256"}:
            np.testing.assert_array_equal(a[name], b[name])
    for name in ("metrics.csv", "evaluation.csv"):
        files = [(tmp_path / folder / name).read_bytes() for folder in ("whole", "stopped")]
        assert files[0] == files[1]
