"""One run by several devices and by two processes: the bits of one process on one device. What the
end of a process leaves is in test_processes.py."""

import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import ROOT, run, run_here

FLAGS = "--total-timesteps 6_000 --learning-starts 200 --buffer-size 1000 --batch-size 16"
FLAGS += " --hidden-sizes 16 --num-envs 4 --eval-episodes 3 --log-points 10 --checkpoint-every 0.1"
FLAGS = [*FLAGS.split(), "--num-seeds", "4", "--sweep", "learning_rate=1e-3,3e-3", "--quiet"]
ONE = {"JAX_NUM_CPU_DEVICES": "1"}
RESULTS = ("metrics.csv", "evaluation.csv")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("blocks") / "whole"
    run("algorithms.dqn", *FLAGS, "--out", folder, env=ONE)
    return folder


def assert_same(folder, whole):
    for name in RESULTS:
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    with np.load(folder / "policy.npz") as mine, np.load(whole / "policy.npz") as other:
        assert mine.files == other.files
        for name in set(mine.files) - {"header", "sha256"}:
            np.testing.assert_array_equal(mine[name], other[name])
    ranking = [json.loads((x / "summary.json").read_text())["sweep"] for x in (folder, whole)]
    assert ranking[0] == ranking[1]
    assert not (folder / "blocks").exists()


def start(folder, *flags):
    command = [sys.executable, "-m", "algorithms.dqn", *FLAGS, "--out", str(folder), *flags]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | ONE, **pipes)


def ended(*processes, timeout=240):
    """Return the exit codes and the errors of processes."""
    errors = [process.communicate(timeout=timeout)[1] for process in processes]
    return [process.returncode for process in processes], errors


def on(num_devices, *arguments):
    """A run on so many devices: in this process if it has as many."""
    if num_devices == jax.device_count():
        return run_here(*arguments)
    return run(*arguments, env={"JAX_NUM_CPU_DEVICES": str(num_devices)})


@pytest.mark.parametrize("num_devices", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_devices_change_no_bit(num_devices, whole, tmp_path):
    on(num_devices, "algorithms.dqn", *FLAGS, "--out", tmp_path / "a")
    assert_same(tmp_path / "a", whole)


def test_ppo_has_the_bits_of_one_device_on_two(tmp_path):
    """With 8 and with 4 seeds in a block it has not; the size of blocks is that of one device."""
    flags = ["--num-seeds", "8", "--total-timesteps", "4096", "--eval-episodes", "0", "--quiet"]
    for count in (1, 2):
        on(count, "algorithms.ppo", *flags, "--out", tmp_path / str(count))
    with np.load(tmp_path / "1/policy.npz") as one, np.load(tmp_path / "2/policy.npz") as two:
        assert len(one.files) > 10
        for name in set(one.files) - {"header", "sha256"}:
            np.testing.assert_array_equal(one[name], two[name])


def free_port():
    with socket.socket() as any_socket:
        any_socket.bind(("127.0.0.1", 0))
        return any_socket.getsockname()[1]


def together(folder, count):
    address = f"127.0.0.1:{free_port()}"
    return [start(folder, "--distributed", f"{address}/{count}/{i}") for i in range(count)]


@pytest.mark.slow
def test_processes_that_are_connected_train_one_run(whole, tmp_path):
    codes, errors = ended(*together(tmp_path / "a", 2))
    assert codes == [0, 0], errors
    assert_same(tmp_path / "a", whole)


def test_the_best_setting_is_reported_on_fresh_episodes_and_fresh_seeds(tmp_path):
    """The scores that chose it are too high: it is evaluated again, and trained again."""
    flags = ["--sweep", "learning_rate=1e-3,3e-3", "--num-seeds", "2", "--retrain-best", "3"]
    flags += ["--total-timesteps", "4000", "--out", tmp_path / "a"]
    done = run_here("algorithms.dqn", *[x for x in FLAGS if x != "--quiet"], *flags)
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    best = json.loads((tmp_path / "a" / "best" / "summary.json").read_text())
    assert best["seeds"] == 3 and summary["retrained"] == best["evaluation"]
    fresh, old = summary["fresh_evaluation"], summary["evaluation"]
    assert any(abs(fresh[name] - old[name]) > 1e-3 for name in ("iqm", "min", "max"))
    with np.load(tmp_path / "a" / "best" / "policy.npz") as policy:
        assert policy["member/seed"].tolist() == [2, 3, 4]
    config = json.loads((tmp_path / "a" / "best" / "config.json").read_text())["config"]
    assert config["learning_rate"] == summary["best"]["learning_rate"]
    assert "on fresh episodes, 3 episodes:" in done.stdout and "(3 fresh seeds)" in done.stdout


@pytest.mark.slow
def test_a_sweep_over_environments_ranks_each_by_itself(tmp_path):
    flags = [x for x in FLAGS[: FLAGS.index("--num-seeds")] if x != "--quiet"]
    flags += ["--sweep", "env_id=CartPole-v1,Acrobot-v1", "gamma=0.9,0.99", "--num-seeds", "1"]
    run_here("algorithms.dqn", *flags, "--total-timesteps", "2000", "--out", tmp_path / "a")
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert [row["rank"] for row in summary["sweep"]] in ([1, 2, 1, 2], [1, 2, 1, 1])  # or a tie
    first = [row["setting"].split()[0] for row in summary["sweep"]]
    assert first == ["env_id=CartPole-v1"] * 2 + ["env_id=Acrobot-v1"] * 2
    assert summary["best"] is None and summary["evaluation"] is None
