"""Four processes that train one run: the bits of one process, and a bounded end when one dies."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import ROOT, run

FLAGS = "--total-timesteps 40_000 --learning-starts 200 --buffer-size 1000 --batch-size 16"
FLAGS += " --hidden-sizes 16 --num-envs 4 --eval-episodes 3 --log-points 10 --checkpoint-every 0.1"
FLAGS += " --num-seeds 8 --block 4 --sweep learning_rate=1e-3,3e-3 gamma=0.9,0.99 --quiet"
FLAGS = FLAGS.split()  # 32 members in 8 blocks
ONE = {"JAX_NUM_CPU_DEVICES": "1"}
MOST = 30  # seconds until all processes have ended after one has, with a heartbeat of 10

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes") / "whole"
    run("algorithms.dqn", *FLAGS, "--out", folder, env=ONE)
    return folder


def assert_same(folder, whole):
    for name in ("metrics.csv", "evaluation.csv"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    with np.load(folder / "policy.npz") as mine, np.load(whole / "policy.npz") as other:
        assert mine.files == other.files and len(mine["member/seed"]) == 32
        for name in set(mine.files) - {"header", "sha256"}:
            np.testing.assert_array_equal(mine[name], other[name])
    rankings = [json.loads((x / "summary.json").read_text())["sweep"] for x in (folder, whole)]
    assert rankings[0] == rankings[1]
    assert not (folder / "blocks").exists()


def start(folder, *flags):
    command = [sys.executable, "-m", "algorithms.dqn", *FLAGS, "--out", str(folder), *flags]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | ONE, **pipes)


def together(folder, count):
    """Start `count` processes that JAX's runtime connects."""
    with socket.socket() as any_socket:
        any_socket.bind(("127.0.0.1", 0))
        port = any_socket.getsockname()[1]
    return [start(folder, "--distributed", f"127.0.0.1:{port}/{count}/{i}") for i in range(count)]


def ended(processes, seconds=240):
    """Return the exit codes and the errors of processes; kills what has not ended in time."""
    errors = []
    try:
        errors += [process.communicate(timeout=seconds)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], errors


def wait_for_blocks(folder, number, processes):
    """Wait until so many blocks have a file."""
    deadline = time.monotonic() + 240
    while len({path.parent for path in folder.glob("blocks/*/*.npz")}) < number:
        assert all(x.poll() is None for x in processes) and time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("count", [3, 4])
def test_any_number_of_processes_has_the_bits_of_one(count, whole, tmp_path):
    codes, errors = ended(together(tmp_path / "a", count))
    assert codes == [0] * count, errors
    assert_same(tmp_path / "a", whole)


@pytest.mark.parametrize(
    "victims, number, code, resumed_by",
    [
        ([2], signal.SIGKILL, -signal.SIGKILL, 3),
        ([0], signal.SIGKILL, -signal.SIGKILL, 2),
        ([3], signal.SIGTERM, 143, 1),
        ([0], signal.SIGTERM, 143, 3),
        ([0, 1, 2, 3], signal.SIGTERM, 143, 3),
    ],
    ids=["a follower", "the leader", "TERM to one", "TERM to the leader", "TERM to all"],
)
def test_if_some_die_all_end_soon_and_any_number_goes_on(
    victims, number, code, resumed_by, whole, tmp_path
):
    processes = together(tmp_path / "a", 4)
    wait_for_blocks(tmp_path / "a", 4, processes)
    for victim in victims:
        processes[victim].send_signal(number)
    clock = time.monotonic()
    codes, errors = ended(processes)
    assert time.monotonic() - clock < MOST, errors
    # Signalled ones may be ended by JAX's runtime first, if another one has left already.
    assert all(codes[i] in (code, -signal.SIGABRT) for i in victims), errors
    assert code in codes and 0 not in codes
    assert not (tmp_path / "a/summary.json").exists()
    again = together(tmp_path / "a", resumed_by) if resumed_by > 1 else [start(tmp_path / "a")]
    codes, errors = ended(again)
    assert codes == [0] * resumed_by, errors
    assert_same(tmp_path / "a", whole)


def test_four_shares_meet_in_the_folder(whole, tmp_path):
    """One is killed and comes again last; it finds all results and merges them."""
    shares = [start(tmp_path / "a", "--share", f"{i}/4") for i in range(4)]
    wait_for_blocks(tmp_path / "a", 4, shares)
    shares[1].kill()
    codes, errors = ended(shares)
    assert codes == [0, -signal.SIGKILL, 0, 0], errors
    assert not (tmp_path / "a/summary.json").exists()
    assert ended([start(tmp_path / "a", "--share", "1/4")])[0] == [0]
    assert_same(tmp_path / "a", whole)
