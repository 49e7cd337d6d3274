"""The runner from outside: run folders, resuming after any kind of end, groups, sweeps, faults."""

import contextlib
import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT, run, run_here

import algorithms.dqn
from algorithms import reinforce
from common.algorithm import Algorithm
from common.run import main
from common.runner import checkpoint, loop
from common.runner.blocks import Job, block_size, log_points, plan, steps_after
from common.runner.cli import Run, settings
from common.runner.console import bytes_of
from common.runner.loop import caught_signals
from common.runner.program import init_run, run_updates
from common.runner.results import load_agent

SMALL = "--total-timesteps 3000 --learning-starts 200 --buffer-size 1000 --batch-size 16"
SMALL += " --hidden-sizes 16 --num-envs 4 --eval-episodes 5 --log-points 10"
SMALL = SMALL.split()
# Long enough to be stopped in the middle.
LONG = ["--total-timesteps", "150_000", "--checkpoint-every", "0.05", "--num-seeds", "2"]


def dqn(*arguments, call=run_here, **kwargs):
    """A run in this process; with `call=run` in one of its own."""
    return call("algorithms.dqn", *SMALL, *arguments, **kwargs)


def rows(folder, name="metrics.csv"):
    with open(folder / name, newline="") as file:
        return list(csv.DictReader(file))


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "a"
    done = dqn("--num-seeds", "4", "--seed", "5", "--out", folder, call=run)
    return folder, done.stdout


def test_a_run_leaves_its_folder(finished):
    folder, printed = finished
    names = {path.name for path in folder.iterdir()}
    tables, pictures = {"metrics.csv", "evaluation.csv"}, {"curves.png"}
    others = {"config.json", "summary.json", "policy.npz"}
    assert {x for x in names if not x.startswith(".")} == tables | pictures | others
    table = rows(folder)
    metrics = ["episode_length", "episode_return", "loss", "value", "episodes"]
    assert list(table[0]) == ["seed", "step", *metrics]
    assert [row["seed"] for row in table] == ["5", "6", "7", "8"] * 10
    steps = [int(row["step"]) for row in table[::4]]
    assert steps == [200 + 2800 * i // 10 for i in range(1, 11)]
    episodes = rows(folder, "evaluation.csv")
    assert list(episodes[0]) == ["seed", "episode", "episode_return", "episode_length"]
    assert len(episodes) == 4 * 5
    assert all(float(row["episode_return"]) == int(row["episode_length"]) for row in episodes)
    assert len({row["episode_return"] for row in episodes[:5]}) > 1
    config = json.loads((folder / "config.json").read_text())
    assert config["config"]["batch_size"] == 16 and config["run"]["num_seeds"] == 4


def test_the_summary_follows_from_the_tables(finished):
    folder, printed = finished
    result = summary(folder)
    per_seed = {}
    for row in rows(folder, "evaluation.csv"):
        per_seed.setdefault(row["seed"], []).append(float(row["episode_return"]))
    means = sorted(np.mean(x) for x in per_seed.values())
    np.testing.assert_allclose(result["evaluation"]["iqm"], np.mean(means[1:3]), rtol=1e-6)
    np.testing.assert_allclose(result["evaluation"]["min"], means[0], rtol=1e-6)
    last = [float(row["episode_return"]) for row in rows(folder)[-4:]]
    assert result["training"]["max"] == max(last)
    assert result["steps"] == 3_000 and result["diverged_seeds"] == []
    assert result["evaluation"]["low"] is None  # 4 seeds are too few for an interval
    assert result["steps_per_second"] > 0 and result["peak_bytes"] > 1e6
    assert {"jax", "optax"} <= set(result["versions"])
    assert re.search(
        r"dqn · CartPole-v1 · 4 seeds · 3,000 steps each · 4 blocks · cpu x2 · \d+ KiB", printed
    )
    assert re.search(r"compiled in \d+\.\d s", printed)
    assert re.search(r"100 %  11\.2 k steps .* return \d", printed)
    assert re.search(r"training return, last 10 %:  IQM [\d.]+   min .*\(4 seeds\)", printed)
    assert re.search(r"greedy policy, 5 episodes: +IQM", printed)


def test_five_lines_load_one_agent(finished):
    folder, _ = finished
    best, seed_6 = load_agent(folder), load_agent(folder, seed=6)
    obs = jnp.array([0.0, 0.5, 0.02, -0.5])
    assert best(obs, jax.random.key(0)) in (0, 1) and seed_6(obs, jax.random.key(0)) in (0, 1)
    arrays, header = checkpoint.load(folder / "policy.npz")
    assert arrays["member/seed"].tolist() == [5, 6, 7, 8] and header["settings"] == [{}]
    w, b = (arrays[f"0/1/{i}"][1] for i in (0, 1))
    hidden = np.maximum(np.asarray(obs) @ arrays["0/0/0"][1] + arrays["0/0/1"][1], 0)
    assert seed_6(obs, jax.random.key(0)) == np.argmax(hidden @ w + b)
    per_seed = [[] for _ in range(4)]
    for row in rows(folder, "evaluation.csv"):
        per_seed[int(row["seed"]) - 5].append(float(row["episode_return"]))
    np.testing.assert_allclose(arrays["member/score"], np.mean(per_seed, axis=1))
    best_seed = 5 + int(np.argmax(np.mean(per_seed, axis=1)))
    many = np.random.default_rng(0).normal(size=(50, 4)) / 10
    acts = lambda act: [int(act(x, jax.random.key(0))) for x in many]
    assert acts(best) == acts(load_agent(folder, seed=best_seed))
    with pytest.raises(ValueError, match="no member"):
        load_agent(folder, seed=99)


def test_same_flags_same_bytes(finished, tmp_path):
    dqn("--num-seeds", "4", "--seed", "5", "--out", tmp_path / "b")
    for name in ("metrics.csv", "evaluation.csv"):
        assert (tmp_path / "b" / name).read_bytes() == (finished[0] / name).read_bytes()
    assert_same_arrays(tmp_path / "b", finished[0])


def assert_same_arrays(a, b, name="policy.npz"):
    (x, _), (y, _) = checkpoint.load(a / name), checkpoint.load(b / name)
    assert x.keys() == y.keys()
    for key in x:
        assert x[key].dtype == y[key].dtype and x[key].tobytes() == y[key].tobytes(), key


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long") / "a"
    dqn(*LONG, "--out", folder)
    return folder


def test_a_run_stopped_in_the_middle_resumes_bit_for_bit(uninterrupted, tmp_path):
    """It is killed, interrupted and terminated in turn, and goes on after each."""
    folder = tmp_path / "b"
    command = [sys.executable, "-m", "algorithms.dqn", *SMALL, *LONG, "--out", str(folder)]
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
        before = saves(folder)
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        wait_for_checkpoint(folder, process, before)
        process.send_signal(number)
        error = process.communicate(timeout=120)[1]
        assert not (folder / "summary.json").exists()
        if number == signal.SIGKILL:
            assert process.returncode == -signal.SIGKILL
        else:
            assert process.returncode == 128 + number
            assert error.count("\n") == 1 and f"--resume {folder}" in error
        at = checkpoint.load(checkpoints(folder)[0])[1]["at"]
        assert 0 < at["update"] < 37_450
        command = [sys.executable, "-m", "algorithms.dqn", "--resume", str(folder)]
    run_here("algorithms.dqn", "--resume", folder, "--quiet")
    assert_same_arrays(folder, uninterrupted)
    for name in ("metrics.csv", "evaluation.csv"):
        assert (folder / name).read_bytes() == (uninterrupted / name).read_bytes()


def checkpoints(folder):
    """Return the checkpoints of the blocks, first to last."""
    return sorted(folder.glob("blocks/*/checkpoint.npz"))


def saves(folder):
    """Return which checkpoints there are, and from when."""
    return {(path, path.stat().st_mtime_ns) for path in checkpoints(folder)}


def wait_for_checkpoint(folder, process, before=frozenset()):
    """Wait until there is one that was not there before."""
    deadline = time.monotonic() + 120
    while not saves(folder) - before:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.2)


def test_a_second_interrupt_ends_the_program_at_once(tmp_path):
    command = [sys.executable, "-m", "algorithms.dqn", *SMALL, *LONG, "--out", str(tmp_path / "a")]
    process = subprocess.Popen(
        [*command, "--total-timesteps", "100_000_000", "--log-points", "1"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for_checkpoint(tmp_path / "a", process)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130


def test_handlers_of_signals_come_back_unless_one_has_ended_the_run(monkeypatch):
    """Python's own handlers would answer a second signal with a traceback."""
    numbers = signal.SIGINT, signal.SIGTERM
    before = [signal.getsignal(number) for number in numbers]
    try:
        with caught_signals():
            pass
        assert [signal.getsignal(number) for number in numbers] == before
        with caught_signals() as received:
            signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM]
        ended = []
        monkeypatch.setattr(os, "_exit", ended.append)
        signal.raise_signal(signal.SIGINT)
        assert ended == [130]
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def test_resuming_a_finished_run_changes_nothing(finished):
    folder, _ = finished
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "nothing to resume" in run_here("algorithms.dqn", "--resume", folder).stdout
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_damaged_checkpoint_is_refused_with_exit_code_3(finished, tmp_path):
    folder = tmp_path / "c"
    folder.mkdir()
    (folder / "config.json").write_bytes((finished[0] / "config.json").read_bytes())
    whole = (finished[0] / "policy.npz").read_bytes()
    (folder / "blocks" / "000001").mkdir(parents=True)
    (folder / "blocks" / "000001" / "checkpoint.npz").write_bytes(whole[: len(whole) // 2])
    done = run_here("algorithms.dqn", "--resume", folder, check=3)
    assert done.stderr.count("\n") == 1 and "damaged" in done.stderr


X64_ONE_DEVICE = {"JAX_ENABLE_X64": "1", "JAX_NUM_CPU_DEVICES": "1"}


@contextlib.contextmanager
def float64():
    """In all threads, in which jax.enable_x64 is not."""
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", False)


def params_of(folder):
    arrays = checkpoint.load(folder / "policy.npz")[0]
    return {k: x for k, x in arrays.items() if not k.startswith("member/")}


FIVE = ["--num-seeds", "5", "--total-timesteps", "1000"]


@pytest.fixture(scope="module")
def one_block(tmp_path_factory):
    """Five seeds in one block, in float64."""
    folder = tmp_path_factory.mktemp("five") / "all"
    with float64():
        dqn(*FIVE, "--block", 5, "--out", folder)
    return folder


@pytest.mark.parametrize(
    "block, num_devices", [(2, 2), (3, 2), pytest.param(4, 1, marks=pytest.mark.slow)]
)
def test_blocks_of_any_size_train_the_same_seeds(block, num_devices, one_block, tmp_path):
    """In float64 they agree to 1e-9; blocks of 2 and 3 of 5 seeds are padded."""
    flags = [*FIVE, "--block", block, "--out", tmp_path / "some"]
    if num_devices == 1:
        dqn(*flags, call=run, env=X64_ONE_DEVICE)
    else:
        with float64():
            dqn(*flags)
    together, apart = params_of(one_block), params_of(tmp_path / "some")
    assert together.keys() == apart.keys()
    for name, x in together.items():
        assert x.dtype == np.float64 and len(x) == 5
        np.testing.assert_allclose(apart[name], x, rtol=0, atol=1e-9)
        assert len(np.unique(x.reshape(5, -1), axis=0)) == 5 or not x.any()
    key = lambda row: (int(row["step"]), int(row["seed"]))
    for one, other in zip(
        sorted(rows(one_block), key=key),
        sorted(rows(tmp_path / "some"), key=key),
        strict=True,
    ):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_allclose(float(one[name]), float(other[name]), rtol=1e-6)


@pytest.mark.slow
def test_devices_share_a_state_that_holds_an_empty_array(tmp_path):
    """The State of n-step DQN with n = 1 has no pending steps."""
    arguments = [*SMALL, "--n-step", "1", "--num-seeds", "3", "--total-timesteps", "1000"]
    with float64():
        run_here("algorithms.n_step_dqn", *arguments, "--out", tmp_path / "two")
    run("algorithms.n_step_dqn", *arguments, "--out", tmp_path / "one", env=X64_ONE_DEVICE)
    apart, together = params_of(tmp_path / "two"), params_of(tmp_path / "one")
    for name, x in together.items():
        np.testing.assert_allclose(apart[name], x, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "num_members, given, expected",
    [
        (1, {}, (1, "1")),
        (10**6, {}, (len(os.sched_getaffinity(0)), "1")),
        (1, {"NPROC": "3"}, (1, "3")),
        (1, {"JAX_NUM_CPU_DEVICES": "2"}, (2, "1")),
    ],
)
def test_a_device_for_each_seed_and_core_and_no_more_threads(num_members, given, expected):
    code = f"import jax, os; from common.runner.program import start_jax; start_jax({num_members});"
    code += "print((jax.device_count(), os.environ['NPROC']))"
    mine = {k: x for k, x in os.environ.items() if k not in ("JAX_NUM_CPU_DEVICES", "NPROC")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=mine | given, cwd=ROOT, capture_output=True, timeout=240
    )
    assert done.stdout.decode() == f"{expected}\n"


def test_the_size_of_blocks_does_not_depend_on_the_devices_of_a_cpu():
    sizes = {n: block_size(n, None) for n in (1, 4, 8, 32, 512, 20_000, 100_000)}
    assert sizes == {1: 1, 4: 1, 8: 2, 32: 8, 512: 8, 20_000: 313, 100_000: 1563}
    assert block_size(100_000, 64) == 1563 and block_size(3, 2) == 2


@pytest.mark.parametrize(
    "flags, expected",
    [
        ("--num-seeds 3", 3),
        ("--num-seeds 3 --sweep gamma=0.9,0.99", 6),
        ("--num-seeds 3 --sweep gamma=0.9,0.99 --seeds-at-once 2", 2),
    ],
)
def test_devices_are_asked_for_as_many_members_as_train_at_once(flags, expected, monkeypatch):
    asked = []

    def stop(num_members):
        asked.append(num_members)
        raise KeyboardInterrupt

    monkeypatch.setattr("common.runner.start.start_jax", stop)
    monkeypatch.setattr(sys, "argv", ["dqn", *flags.split()])
    with pytest.raises(SystemExit):
        main(algorithms.dqn.Config, algorithms.dqn.make)
    assert asked == [expected]


@pytest.mark.slow
def test_memory_follows_the_group(tmp_path):
    """Compare 8 replay memories of 21 MB each, all at once and one at a time."""
    arguments = ["--num-seeds", "8", "--total-timesteps", "280", "--eval-episodes", "0"]
    arguments += ["--buffer-size", "500_000"]
    together = dqn(*arguments, "--block", "4", "--out", tmp_path / "all", call=run).stdout
    apart = dqn(*arguments, "--seeds-at-once", "1", "--out", tmp_path / "some", call=run).stdout
    assert "160 MiB" in together and "20 MiB" in apart and "8 blocks" in apart
    peaks = [summary(tmp_path / name)["peak_bytes"] for name in ("all", "some")]
    assert peaks[0] - peaks[1] > 100 * 2**20


def test_a_run_that_will_not_fit_says_so_first(tmp_path, monkeypatch):
    monkeypatch.setattr("common.runner.loop.free_bytes", lambda devices: 2**21)
    flags = ["--num-seeds", "8", "--total-timesteps", "280", "--buffer-size", "20_000"]
    done = dqn(*flags, "--out", tmp_path / "run")
    assert "of which 0.00195 are free: --seeds-at-once 1 " in done.stderr
    assert (tmp_path / "run" / "summary.json").exists()


def test_what_a_program_holds_on_the_way_counts_too(tmp_path, monkeypatch):
    """A rollout of 512 steps is no part of the State, and larger than it."""
    monkeypatch.setattr("common.runner.loop.free_bytes", lambda devices: 2**18)
    flags = ["--num-seeds", "4", "--block", "4", "--eval-episodes", "0", "--hidden-sizes", "4"]
    flags += ["--num-envs", "4", "--num-steps", "512", "--total-timesteps", "4044", "--quiet"]
    done = run_here("algorithms.reinforce", *flags, "--out", tmp_path / "run")
    state = bytes_of(reinforce.make(reinforce.Config(num_envs=4, hidden_sizes=(4,))))
    assert 4 * state < 2**18 and "warning: needs about" in done.stderr


def test_float32_blocks_agree_to_rounding_after_20_updates(tmp_path):
    arguments = ["--num-seeds", "8", "--total-timesteps", "280", "--eval-episodes", "0"]
    dqn(*arguments, "--block", "8", "--out", tmp_path / "all")
    dqn(*arguments, "--block", "2", "--out", tmp_path / "some")
    for name, x in params_of(tmp_path / "all").items():
        np.testing.assert_allclose(params_of(tmp_path / "some")[name], x, rtol=0, atol=1e-5)


def test_a_sweep_ranks_its_settings_and_a_diverged_seed_is_never_scored(tmp_path):
    """Learning rate 1e38 overflows in the first updates: its seeds are flagged with the update and
    have no score, and those of the other setting have the same bits as next to a healthy one."""
    folder, healthy = tmp_path / "a", tmp_path / "b"
    common = ["--num-seeds", "2", "--log-points", "5", "--block", "4"]
    done = dqn("--sweep", "learning_rate=1e38,1e-3", *common, "--out", folder)
    dqn("--sweep", "learning_rate=2e-3,1e-3", *common, "--out", healthy)
    result = summary(folder)
    assert result["best"] == {"learning_rate": 1e-3}
    assert [row["setting"] for row in result["sweep"]] == [
        "learning_rate=0.001",
        "learning_rate=1e+38",
    ]
    assert result["sweep"][1]["iqm"] is None and result["sweep"][1]["diverged"] == 2
    assert [(x["seed"], x["learning_rate"]) for x in result["diverged_seeds"]] == [
        (0, 1e38),
        (1, 1e38),
    ]
    assert all(0 <= x["update"] < 5 for x in result["diverged_seeds"])
    assert "2/4 seeds diverged: seed 0 at update" in done.stdout
    assert done.stdout.count("compiled in") == 1
    assert {"sweep.png", "curves.png"} <= {path.name for path in folder.iterdir()}
    scored = {row["learning_rate"]: row["episode_return"] for row in rows(folder, "evaluation.csv")}
    assert scored["1e+38"] == "nan" and float(scored["0.001"]) > 0
    assert all(np.isfinite(x).all() for x in params_of(folder).values())  # those before that update
    for name in ("metrics.csv", "evaluation.csv"):
        one, other = (
            [row for row in rows(x, name) if row["learning_rate"] == "0.001"]
            for x in (folder, healthy)
        )
        assert one == other
    for name, x in params_of(folder).items():
        np.testing.assert_array_equal(x[2:], params_of(healthy)[name][2:])
    agent = load_agent(folder, learning_rate=1e-3)
    assert agent(jnp.zeros(4), jax.random.key(0)) in (0, 1)


def test_if_all_seeds_diverge_the_exit_code_is_4(tmp_path):
    done = dqn("--learning-rate", "1e38", "--num-seeds", "2", "--out", tmp_path / "a", check=4)
    assert done.stderr.count("\n") == 1 and "all seeds diverged" in done.stderr
    assert summary(tmp_path / "a")["evaluation"]["iqm"] is None


def test_a_sweep_over_shapes_compiles_once_for_each_and_over_floats_once(tmp_path):
    done = dqn(
        "--sweep",
        "learning_rate=1e-3,3e-3",
        "num_envs=2,4",
        "--out",
        tmp_path / "a",
        "--num-seeds",
        "2",
    )
    assert done.stdout.count("compiled in") == 2
    assert len(summary(tmp_path / "a")["sweep"]) == 4
    swept = {(row["learning_rate"], row["num_envs"]) for row in rows(tmp_path / "a")}
    assert swept == {("0.001", "2"), ("0.001", "4"), ("0.003", "2"), ("0.003", "4")}
    load_agent(tmp_path / "a", num_envs=2, learning_rate=3e-3)


def test_evaluation_during_training(tmp_path):
    dqn("--eval-every", "1000", "--out", tmp_path / "a")
    table = [(int(row["step"]), row["evaluation_return"]) for row in rows(tmp_path / "a")]
    evaluated = [step for step, value in table if value != "nan"]
    assert evaluated == [1_040, 2_160, 3_000]  # the first rows at or after 1000, 2000, 3000


def test_a_run_continues_when_its_reader_has_gone(tmp_path):
    command = [sys.executable, "-m", "algorithms.dqn", *SMALL, "--out", tmp_path / "a"]
    shell = f"set -o pipefail; {shlex.join(map(str, command))} | head -1"
    done = subprocess.run(
        ["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0 and done.stderr == ""
    assert summary(tmp_path / "a")["steps"] == 3_000


def test_quiet_prints_nothing(tmp_path):
    done = dqn("--quiet", "--out", tmp_path / "a")
    assert done.stdout == "" and done.stderr == ""


def test_a_module_can_bring_environments(tmp_path):
    (tmp_path / "my_envs.py").write_text(
        "import gymnax\nfrom gymnax.environments.classic_control.cartpole import CartPole\n"
        'gymnax.register("MyPole-v0", CartPole)\n'
    )
    env = {"PYTHONPATH": str(tmp_path)}
    flags = ["--import", "my_envs", "--env-id", "MyPole-v0", "--out", tmp_path / "a"]
    dqn(*flags, call=run, env=env)
    assert summary(tmp_path / "a")["env_id"] == "MyPole-v0"


def test_a_table_is_a_policy_too(tmp_path):
    """The params of Q-learning are one array, whose path name is empty."""
    run_here("algorithms.q_learning", "--num-seeds", "2", "--out", tmp_path / "a", "--quiet")
    act = load_agent(tmp_path / "a", seed=1)
    q = params_of(tmp_path / "a")["0/"][1]
    assert [int(act(s, jax.random.key(0))) for s in range(48)] == list(q.argmax(-1))


def test_an_agent_is_loaded_with_the_config_it_was_trained_with(tmp_path):
    """The Config of Monte Carlo has a field `policy`."""
    flags = ["--total-timesteps", "2000", "--quiet"]
    run_here("algorithms.monte_carlo", *flags, "--out", tmp_path / "a")
    assert load_agent(tmp_path / "a")(3, jax.random.key(0)) >= 0


def test_dynamic_programming_runs_without_returns(tmp_path):
    done = run_here("algorithms.value_iteration", "--env-id", "Garnet-tabular", "--num-seeds", "3",
                    "--num-sweeps", "50", "--out", tmp_path / "a")  # fmt: skip
    assert "nan" not in done.stdout and "return" not in done.stdout
    assert summary(tmp_path / "a")["training"]["iqm"] is None
    assert float(rows(tmp_path / "a")[-1]["bellman_residual"]) < 1


@pytest.mark.parametrize("name", ["q_learning", pytest.param("dqn", marks=pytest.mark.slow)])
def test_the_copied_file_ends_with_the_same_params_as_the_runner(name, tmp_path):
    """In float64: how loops are nested changes the last bits, on one processor more than on
    another."""
    env = {"JAX_NUM_CPU_DEVICES": "1", "JAX_ENABLE_X64": "1"}
    arguments = [*(SMALL[:10] if name == "dqn" else SMALL[:2]), "--num-seeds", "3"]
    assert "--eval-episodes" not in arguments
    run(f"algorithms.{name}", *arguments, "--out", tmp_path / "a", env=env)
    run("common.copy", name, tmp_path / "alone.py")
    empty = tmp_path / "empty"
    empty.mkdir()
    command = [sys.executable, "-I", str(tmp_path / "alone.py"), *arguments]
    subprocess.run(command, cwd=empty, check=True, timeout=240, env=os.environ | env)
    params = params_of(tmp_path / "a")
    with np.load(empty / "alone.npz") as alone:
        for leaf, x in zip(params, alone.values(), strict=True):
            assert x.dtype == np.float64
            np.testing.assert_allclose(params[leaf], x, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "argv, code, says",
    [
        (["--env-id", "CartPol-v1"], 2, "did you mean CartPole-v1?"),
        (["--env-id", "Pendulum-v1"], 2, "continuous actions"),
        (["--sweep", "env_id=CartPole-v1,Pendulum-v1"], 2, "continuous actions"),
        (["--sweep", "learning_rat=1"], 2, "did you mean learning_rate?"),
        (["--import", "no_such_module"], 2, "no_such_module"),
        (["--resume", "nothing"], 3, "no run there"),
        (["--resume", "other"], 3, "a run of q_learning; use python -m algorithms.q_learning"),
        (["--resume", "mine", "--gamma", "0.5"], 3, "--gamma 0.99, not 0.5"),
        (["--resume", "mine", "--num-seeds", "7"], 3, "--num-seeds 2"),
        (["--resume", "broken"], 3, "config.json"),
        (["--out", "file/run"], 5, "cannot write"),
        (["--resume", "mine", "--num-seeds", "1"], 3, "--num-seeds 2, not 1"),
        (["--out", "mine"], 3, "--num-seeds 2, not 1"),
        (["--share", "0/2"], 2, "need --out"),
        (["--share", "2/2", "--out", "a"], 2, "write i/n"),
        (["--distributed", "here", "--out", "a"], 2, "host:port/n/i"),
    ],
)
def test_bad_input_is_one_line_and_leaves_everything_as_it_was(
    argv, code, says, tmp_path, monkeypatch, capsys
):
    from algorithms import dqn as module

    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for name in ("other", "mine", "broken"):
        (tmp_path / name).mkdir()
    stored = {"config": {}, "run": {"num_seeds": 2}}
    (tmp_path / "mine" / "config.json").write_text(json.dumps({"algorithm": "dqn", **stored}))
    (tmp_path / "other" / "config.json").write_text(
        json.dumps({"algorithm": "q_learning", **stored})
    )
    (tmp_path / "broken" / "config.json").write_text("{")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["dqn", *argv])
    with pytest.raises(SystemExit) as stop:
        main(module.Config, module.make)
    captured = capsys.readouterr()
    assert stop.value.code == code, captured.err
    assert captured.err.count("\n") == 1 and len(captured.err) <= 200 and says in captured.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_disk_that_fills_up_is_exit_code_5_and_keeps_the_last_checkpoint(tmp_path):
    """A limit on the size of files stands for the full disk."""
    folder = tmp_path / "a"
    many = ["--total-timesteps", "3000", "--num-seeds", "64", "--block", "64"]
    command = [sys.executable, "-m", "algorithms.q_learning", *many, "--out", folder]
    limited = "ulimit -f 60; exec " + shlex.join(map(str, command))  # KiB: less than a checkpoint
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0"}
    done = subprocess.run(
        ["bash", "-c", limited],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
    )
    assert done.returncode == 5, done.stderr
    assert done.stderr.count("\n") == 1 and "--resume" in done.stderr
    assert not list(folder.rglob("*.tmp"))
    run_here("algorithms.q_learning", "--resume", folder, "--quiet")
    assert summary(folder)["steps"] == 3_000


def job(sweep=(), **fields):
    Config, make = algorithms.dqn.Config, algorithms.dqn.make
    one = Run(sweep=tuple(sweep), **fields)
    return Job("dqn", make, Config(), one, settings(one.sweep, Config()), None)


def test_a_plan_groups_members_by_what_cannot_be_vmapped():
    groups = plan(job(["gamma=0.9,0.99", "batch_size=8,16"], num_seeds=3, seed=10, block=6))
    assert [group.program_id for group in groups] == [0, 1]
    assert [group.config.batch_size for group in groups] == [8, 16]
    np.testing.assert_array_equal(groups[0].seed, [10, 11, 12] * 2)
    np.testing.assert_array_equal(groups[0].config_index, [0, 0, 0, 2, 2, 2])
    np.testing.assert_allclose(groups[0].floats["gamma"], [0.9] * 3 + [0.99] * 3)


@pytest.mark.parametrize("num_seeds, block, sizes", [
    (256, 64, [64] * 4), (10, 4, [4, 3, 3]), (3, 8, [3]), (5, 0, [5]), (5, 1, [1] * 5),
])  # fmt: skip
def test_blocks_are_even_and_never_larger_than_asked(num_seeds, block, sizes):
    groups = plan(job(num_seeds=num_seeds, block=block))
    assert {group.num_rows for group in groups} == {max(sizes)}
    assert [group.index for group in groups] == list(range(len(sizes)))
    assert [len(group.seed) for group in groups] == sizes
    np.testing.assert_array_equal(np.concatenate([g.seed for g in groups]), np.arange(num_seeds))


def test_log_points_are_even_and_end_at_the_end():
    assert log_points(10, 4) == [2, 5, 7, 10]
    assert log_points(3, 100) == [1, 2, 3]
    assert log_points(10**12, 3)[-1] == 10**12


def test_how_updates_fall_into_chunks_changes_no_bit():
    from helpers import keys

    from algorithms.dqn import Config, make

    algorithm = make(Config(learning_starts=100, buffer_size=500, hidden_sizes=(8,)))
    start = jax.jit(lambda k: init_run(algorithm.init, algorithm.update, k))(keys(0, 1))
    step = jax.jit(lambda *args: run_updates(algorithm.update, *args))
    ends = []
    for parts in ([0, 60], [0, 1, 7, 30, 59, 60]):
        run_state = start
        for a, b in zip(parts[:-1], parts[1:], strict=True):
            run_state = step(run_state, jnp.int32(a), jnp.int32(b), jnp.bool_(a == 0))
        ends.append({k: x.tobytes() for k, x in checkpoint.named_arrays(run_state).items()})
    assert ends[0] == ends[1]


def test_metrics_are_means_over_what_was_reported():
    """NaN is left out of the mean; the count of a metric that was never reported is 0."""

    def update(state, step):
        value = jnp.where(step % 2 == 0, jnp.nan, step.astype(float))
        return state, {"episode_return": value, "value": jnp.float32(jnp.nan)}

    class State(NamedTuple):
        params: jax.Array

    init = lambda key: State(jnp.zeros(2))
    run_state = init_run(init, update, jax.random.split(jax.random.key(0), 3))
    run_state = run_updates(update, run_state, jnp.int32(0), jnp.int32(6), jnp.bool_(True))
    np.testing.assert_allclose(run_state.mean["episode_return"], [3.0] * 3)  # of 1, 3, 5
    np.testing.assert_array_equal(run_state.count["episode_return"], [3] * 3)
    np.testing.assert_array_equal(run_state.count["value"], [0] * 3)
    run_state = run_updates(update, run_state, jnp.int32(6), jnp.int32(8), jnp.bool_(True))
    np.testing.assert_allclose(run_state.mean["episode_return"], [7.0] * 3)  # the mean starts again


@pytest.mark.parametrize("some", [False, True])
def test_means_over_episodes_or_some_steps_weigh_each_of_them_once(some):
    """One episode of 500 in one update and 50 of 10 in another have a mean of 19.6, not 255."""

    def update(state, step):
        episodes = jnp.array([1, 0, 50])[step]
        mean = jnp.array([500.0, jnp.nan, 10.0])[step]
        returns = {"episode_return": mean, "episode_length": 2 * mean, "episodes": episodes}
        value = {"value": jnp.array([4.0, 2.0, 3.0])[step]}
        return state, returns | value | ({"counted": jnp.array([1, 2, 5])[step]} if some else {})

    class State(NamedTuple):
        params: jax.Array

    run_state = init_run(lambda key: State(jnp.zeros(2)), update, jnp.zeros(1))
    run_state = run_updates(update, run_state, jnp.int32(0), jnp.int32(3), jnp.bool_(True))
    row = loop.metrics_row(jax.device_get(run_state._replace(state=None)))
    np.testing.assert_allclose(row["episode_return"], [1000 / 51], rtol=1e-6)
    np.testing.assert_allclose(row["episode_length"], [2000 / 51], rtol=1e-6)
    assert row["episodes"] == 51
    np.testing.assert_allclose(row["value"], [(4 + 2 * 2 + 5 * 3) / 8 if some else 3], rtol=1e-6)


def test_divergence_is_flagged_at_its_update_and_only_there():
    class State(NamedTuple):
        params: jax.Array
        bad_at: jax.Array

    def update(state, step):
        params = jnp.where(step == state.bad_at, jnp.inf, state.params + 1)
        return state._replace(params=params), {"episode_return": jnp.float32(0)}

    init = lambda bad_at: State(jnp.zeros(3), bad_at)
    run_state = init_run(init, update, jnp.array([5, -1, 17]))
    run_state = run_updates(update, run_state, jnp.int32(0), jnp.int32(20), jnp.bool_(True))
    np.testing.assert_array_equal(run_state.diverged, [5, -21, 17])  # -1 - 20 updates: healthy


def test_steps_are_counted_exactly_beyond_what_float32_and_int32_hold():
    """The host counts them as Python integers, in the rows of metrics.csv and in the plan."""
    for start in (2**24 - 1, 2**31 - 1, 2**32 - 1, 2**53 - 1):
        algorithm = Algorithm(None, None, None, 2**20, steps_per_update=1, initial_steps=start)
        assert [steps_after(algorithm, u) for u in range(4)] == [start + u for u in range(4)]
    many = algorithm._replace(steps_per_update=2**20, initial_steps=1)
    assert steps_after(many, log_points(2**30, 7)[-1]) == 2**50 + 1


def test_a_run_traces_its_update_once(tmp_path, monkeypatch):
    """The number of chunks, rows and checkpoints does not matter."""
    from algorithms import q_learning

    traces = []

    def make(config):
        algorithm = q_learning.make(config)

        def update(state, step):
            traces.append(step)
            return algorithm.update(state, step)

        return algorithm._replace(update=update)

    make.__module__ = "algorithms.q_learning"
    flags = "--total-timesteps 2000 --steps-per-update 20 --log-points 25 --eval-episodes 2 --quiet"
    out = ["--checkpoint-every", "1e-9", "--out", str(tmp_path / "a")]
    monkeypatch.setattr(sys, "argv", ["q_learning", *flags.split(), *out])
    sizes = []
    monkeypatch.setattr(loop, "metrics_row", counted(loop.metrics_row, sizes))
    main(q_learning.Config, make)
    assert len(sizes) == 25
    assert len(traces) == 1  # by init_run and run_updates together
    traces.clear()
    monkeypatch.setattr(sys, "argv", [*sys.argv[:-1], str(tmp_path / "b"), "--log-points", "5"])
    main(q_learning.Config, make)
    assert len(traces) == 1


def counted(function, calls):
    def call(*arguments):
        calls.append(arguments)
        return function(*arguments)

    return call
