"""A signal ends a run within seconds in each of its parts, and nothing that was done is lost."""

import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT, run_here

FLAGS = "--env-id Blackjack-tabular --total-timesteps 20_000 --steps-per-update 20 --num-seeds 40"
FLAGS = [*FLAGS.split(), "--block", "10", "--log-points", "40", "--eval-episodes", "3", "--quiet"]
# Each call of a part takes as long as with many seeds, and says that it has begun.
SLOW = """
import runpy, sys, time
from common.runner import loop, results

module, name, seconds = {"loop": loop, "results": results}[sys.argv[1]], *sys.argv[2:4]
plain = getattr(module, name)

def slow(*arguments):
    print("begun", flush=True)
    time.sleep(float(seconds))
    return plain(*arguments)

setattr(module, name, slow)
sys.argv = ["q_learning", *sys.argv[4:]]
runpy.run_module("algorithms.q_learning", run_name="__main__", alter_sys=True)
"""
WHOLE = ("loop", "summary_lines", "0")  # called when the results are written
PARTS = [
    ("loop", "metrics_row", "0.1"),  # training
    ("results", "lines", "0.5"),  # metrics.csv, 20 s
    ("results", "write_evaluation", "30"),
    ("results", "draw_training", "30"),
]


def start(folder, part):
    command = [sys.executable, "-c", SLOW, *part, *FLAGS, "--out", str(folder)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=dict(os.environ), **pipes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stop") / "whole"
    assert start(folder, WHOLE).communicate(timeout=240) == ("begun\n", "")  # and no more: --quiet
    return folder


INT, TERM = signal.SIGINT, signal.SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [[INT, TERM, INT, TERM], [TERM, INT, TERM, INT]])
def test_a_signal_is_heard_in_every_part(numbers, whole, tmp_path):
    for part, number in zip(PARTS, numbers, strict=True):
        with start(tmp_path / "a", part) as process:
            assert process.stdout.readline() == "begun\n"
            process.send_signal(number)
            clock = time.monotonic()
            error = process.communicate(timeout=240)[1]
            seconds = time.monotonic() - clock
        assert process.returncode == 128 + number, (part, error)
        assert error.count("\n") == 1 and "stopped; continue with --resume" in error
        assert seconds < 10, part
        assert (tmp_path / "a/blocks").exists() and not (tmp_path / "a/summary.json").exists()
    assert run_here("algorithms.q_learning", *FLAGS, "--out", tmp_path / "a").stderr == ""
    for name in ("metrics.csv", "evaluation.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (whole / name).read_bytes()
