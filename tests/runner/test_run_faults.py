"""A run that was stopped, and whose files were then damaged: it resumes with the right bits, if
need be from the previous checkpoint, or it ends with exit code 3 and one line."""

import json
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from helpers import ROOT, run_here

from algorithms import q_learning
from common import run
from common.runner import checkpoint, loop, run_folder
from common.runner.blocks import Job, plan
from common.runner.checkpoint import CheckpointError
from common.runner.cli import Run

FLAGS = (
    "--total-timesteps 400 --steps-per-update 20 --num-seeds 2 --eval-episodes 2 --log-points 10"
)
FLAGS = [*FLAGS.split(), "--block", "2", "--checkpoint-every", "1e-9"]  # after every chunk
BLOCK = "blocks/000000"


class Killed(BaseException):
    """Stands for kill -9."""


def main(*arguments, patch, killed_at=0):
    """Return the exit code of Q-learning with those flags, killed before that save of a
    checkpoint, counted from 1; 0: not killed."""
    number, save = 0, checkpoint.save

    def counted(path, *rest):
        nonlocal number
        number += path.name == "checkpoint.npz"
        if path.name == "checkpoint.npz" and number == killed_at:
            raise Killed
        save(path, *rest)

    patch.setattr(checkpoint, "save", counted)
    patch.setattr(loop, "SAVE_SHARE", np.inf)
    patch.setattr(sys, "argv", ["q_learning", *map(str, arguments), "--quiet"])
    try:
        run.main(q_learning.Config, q_learning.make)
    except SystemExit as stop:
        return stop.code
    except Killed:
        return "killed"
    finally:
        patch.setattr(checkpoint, "save", save)
    return 0


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return the folder of a whole run and of one killed after its sixth checkpoint, to read."""
    path = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        assert main(*FLAGS, "--out", path / "whole", patch=patch) == 0
        assert main(*FLAGS, "--out", path / "killed", patch=patch, killed_at=7) == "killed"
    return path


@pytest.fixture
def killed(folders, tmp_path):
    return shutil.copytree(folders / "killed", tmp_path / "killed")


def assert_same_results(path, whole):
    for name in ("metrics.csv", "evaluation.csv"):
        assert (path / name).read_bytes() == (whole / name).read_bytes()
    mine, other = (checkpoint.load(x / "policy.npz")[0] for x in (path, whole))
    assert mine.keys() == other.keys()
    assert all(mine[k].tobytes() == other[k].tobytes() for k in mine)
    assert not (path / "blocks").exists()


def damage(path):
    data = bytearray(path.read_bytes())
    for i in range(256):  # more than the padding between two arrays, in which a bit means nothing
        data[len(data) // 2 + i] ^= 1
    path.write_bytes(data)


def job_of(path):
    config, flags = run_folder.read_flags(
        path, "q_learning", q_learning.Config(), Run(resume=str(path)), {"resume"}
    )
    return Job("q_learning", q_learning.make, config, flags, [{}], path)


def test_a_run_keeps_two_checkpoints_and_when_it_is_done_none(folders):
    """The first chunk is one update, so that the first look at signals comes early."""
    updates = [
        checkpoint.load(folders / "killed" / BLOCK / name)[1]["at"]["update"]
        for name in ("previous.npz", "checkpoint.npz")
    ]
    assert updates == [8, 10]  # after 1, 2, 4, 6, 8, 10
    assert not (folders / "whole" / "blocks").exists()


@pytest.mark.parametrize("fault", ["none", "damaged", "empty", "missing", "both missing"])
def test_a_resumed_run_ends_with_the_same_bits(fault, killed, folders, monkeypatch, capsys):
    """It resumes from the checkpoint, or from the previous one if that is damaged or missing, as it
    is between the two renames of a save; and from the start if there is none."""
    path = killed / BLOCK / "checkpoint.npz"
    match fault:
        case "damaged":
            damage(path)
        case "empty":
            path.write_bytes(b"")
        case "missing":
            path.unlink()
        case "both missing":
            path.unlink()
            path.with_name("previous.npz").unlink()
    assert main("--resume", killed, patch=monkeypatch) == 0
    assert_same_results(killed, folders / "whole")
    error = capsys.readouterr().err
    if fault in ("damaged", "empty"):
        assert error.count("\n") == 1 and len(error) <= 200
        assert "damaged" in error and "continuing from previous.npz, 8 updates" in error
    else:
        assert error == ""


def zeroed_header(path):
    """Replace a file by zeros of the same size."""
    path.write_bytes(bytes(path.stat().st_size))


def rewritten(**header):
    """Return a function that replaces fields of a file's header, with the right SHA-256."""

    def rewrite(path):
        arrays, old = checkpoint.load(path)
        nested = checkpoint.save
        nested(path, arrays, old | header)

    return rewrite


def of_another_shape(path):
    arrays, header = checkpoint.load(path)
    first = next(name for name in arrays if name.endswith("params"))
    checkpoint.save(path, arrays | {first: arrays[first][:, :-1]}, header)


@pytest.mark.parametrize(
    "change, says",
    [
        (damage, "damaged"),
        (zeroed_header, "damaged"),
        (rewritten(algorithm="sarsa"), "other flags"),
        (rewritten(config={"gamma": 0.5}), "other flags"),
        (rewritten(format=1), "has format 1"),
        (of_another_shape, "this program expects"),
    ],
)
def test_if_no_checkpoint_can_be_used_the_exit_code_is_3(change, says, killed, monkeypatch, capsys):
    for name in ("checkpoint.npz", "previous.npz"):
        change(killed / BLOCK / name)
    files = lambda: {x.name: x.read_bytes() for x in killed.rglob("*") if x.is_file()}
    before = files()
    assert main("--resume", killed, patch=monkeypatch) == 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and len(error) <= 200 and says in error.replace("...", says)
    assert files() == before


def test_an_interrupt_while_results_are_written_is_one_line(killed, folders, monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_results", interrupted)
        assert main("--resume", killed, patch=patch) == 130
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "--resume" in error
    assert main("--resume", killed, patch=monkeypatch) == 0
    assert_same_results(killed, folders / "whole")


def test_a_changed_source_is_a_warning(killed, folders, monkeypatch, capsys):
    path = killed / BLOCK / "checkpoint.npz"
    header = checkpoint.load(path)[1]
    assert {"q_learning.py", "envs.py"} <= header["sources"].keys()
    rewritten(sources=header["sources"] | {"q_learning.py": "0"})(path)
    assert main("--resume", killed, patch=monkeypatch) == 0
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "another q_learning.py" in error
    assert_same_results(killed, folders / "whole")


def test_a_field_that_the_config_has_gained_is_a_warning(killed, folders, monkeypatch, capsys):
    stored = json.loads((killed / "config.json").read_text())
    del stored["config"]["epsilon"]
    (killed / "config.json").write_text(json.dumps(stored))
    for name in ("checkpoint.npz", "previous.npz"):
        rewritten(config=stored["config"])(killed / BLOCK / name)
    assert main("--resume", killed, patch=monkeypatch) == 0
    assert "had no --epsilon yet" in capsys.readouterr().err
    assert_same_results(killed, folders / "whole")


def test_the_same_command_goes_on(killed, folders, monkeypatch, capsys):
    assert main(*FLAGS, "--out", killed, patch=monkeypatch) == 0
    assert_same_results(killed, folders / "whole")
    assert main(*FLAGS, "--gamma", "0.5", "--out", killed, patch=monkeypatch) == 3
    assert "--gamma" in capsys.readouterr().err


def test_a_flag_given_at_its_default_is_not_ignored(killed, monkeypatch, capsys):
    assert main("--resume", killed, "--num-seeds", 1, patch=monkeypatch) == 3
    assert "--num-seeds 2, not 1" in capsys.readouterr().err


def test_a_run_may_end_without_its_evaluation(killed, monkeypatch):
    assert main("--resume", killed, "--eval-episodes", 0, patch=monkeypatch) == 0
    assert json.loads((killed / "summary.json").read_text())["evaluation"] is None
    assert (killed / "policy.npz").exists() and not (killed / "evaluation.csv").exists()


def test_saves_take_at_most_a_twentieth_of_the_time(tmp_path, monkeypatch):
    """With --checkpoint-every at nothing: 20 chunks of no time, and saves that take a tenth of a
    second each."""
    monkeypatch.setattr(loop, "SAVE_SHARE", loop.SAVE_SHARE)
    saves, save = [], loop.save_block

    def slow(job, block, name, *rest, **kwargs):
        saves.append(name)
        time.sleep(0.1)
        save(job, block, name, *rest, **kwargs)

    monkeypatch.setattr(loop, "save_block", slow)
    monkeypatch.setattr(sys, "argv", ["q_learning", *FLAGS, "--out", str(tmp_path / "a")])
    run.main(q_learning.Config, q_learning.make)
    assert saves.count("checkpoint.npz") <= 2 and saves.count("trained.npz") == 1


ENDLESS = """
import gymnax
from gymnax.environments.classic_control.cartpole import CartPole, EnvParams

class Endless(CartPole):
    @property
    def default_params(self):
        return EnvParams(max_steps_in_episode=10**9, x_threshold=1e9, theta_threshold_radians=1e9)

gymnax.register("Endless-v0", Endless)
"""


@pytest.mark.parametrize(
    "number",
    [signal.SIGHUP, pytest.param(signal.SIGINT, marks=pytest.mark.slow)],  # one handler hears both
)
def test_an_evaluation_without_an_end_can_be_stopped_and_the_policy_is_there(number, tmp_path):
    (tmp_path / "endless.py").write_text(ENDLESS)
    flags = ["--import", tmp_path / "endless.py", "--env-id", "Endless-v0", "--num-seeds", "4"]
    flags += ["--total-timesteps", "2000", "--eval-episodes", "2000", "--out", tmp_path / "a"]
    command = [sys.executable, "-m", "algorithms.a2c", *map(str, flags)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, **pipes)
    lines = iter(process.stdout.readline, "")
    assert any(line.startswith("evaluating") for line in lines)
    assert (tmp_path / "a" / "policy.npz").exists() and (tmp_path / "a" / "metrics.csv").exists()
    time.sleep(1)  # it evaluates, in one compiled program
    process.send_signal(number)
    clock = time.monotonic()
    error = process.communicate(timeout=100)[1]
    assert time.monotonic() - clock < 10
    assert process.returncode == 128 + number and error.count("\n") == 1, error
    done = run_here("algorithms.a2c", "--resume", tmp_path / "a", "--eval-episodes", 0)
    assert "no episode ended within 1,984 steps" in done.stdout


def test_other_versions_are_a_warning(killed, folders, monkeypatch, capsys):
    path = killed / BLOCK / "checkpoint.npz"
    header = checkpoint.load(path)[1]
    rewritten(versions=header["versions"] | {"jax": "0.0.1", "python": "2.7"})(path)
    assert main("--resume", killed, patch=monkeypatch) == 0
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "jax 0.0.1, now 0." in error and "python 2.7, now" in error
    assert_same_results(killed, folders / "whole")


@pytest.mark.parametrize("with_previous", [pytest.param(True, marks=pytest.mark.slow), False])
def test_300_flipped_bits_and_30_truncations_are_never_a_wrong_load(with_previous, killed, capsys):
    paths = [killed / BLOCK / name for name in ("checkpoint.npz", "previous.npz")]
    newest, before = (contents(checkpoint.load(path)) for path in paths)
    assert newest != before
    if not with_previous:
        paths[1].unlink()
    whole, job, rng = paths[0].read_bytes(), job_of(killed), np.random.default_rng(1)
    flips = [(int(rng.integers(len(whole))), int(rng.integers(8))) for _ in range(300)]
    files = [whole[:i] + bytes([whole[i] ^ 1 << bit]) + whole[i + 1 :] for i, bit in flips]
    files += [whole[: len(whole) * i // 30] for i in range(30)]
    outcomes = {"whole": 0, "previous": 0, "refused": 0}
    for damaged in files:
        paths[0].write_bytes(damaged)
        try:
            resumed = contents(load(job))
        except CheckpointError as error:
            assert not with_previous and "\n" not in str(error)
            outcomes["refused"] += 1
        else:
            warning = capsys.readouterr().err
            assert resumed == (before if warning else newest)
            outcomes["previous" if warning else "whole"] += 1
    caught = outcomes["previous" if with_previous else "refused"]
    assert caught + outcomes["whole"] == 330 and caught >= 200


def load(job):
    return run_folder.load_block(job, plan(job)[0], "checkpoint.npz", "previous.npz")


def contents(loaded):
    arrays, header = loaded
    return {name: (x.dtype, x.shape, x.tobytes()) for name, x in arrays.items()}, header


def test_a_flipped_bit_in_config_json_is_never_another_run(killed):
    """It is refused as it is read, or by the checkpoint, whose header has the flags."""
    path, right = killed / "config.json", job_of(killed)
    whole, rng = path.read_bytes(), np.random.default_rng(2)
    header = checkpoint.load(killed / BLOCK / "checkpoint.npz")[1]
    flags = json.loads(json.dumps(run_folder.run_header(right)))
    assert {name: header[name] for name in flags} == flags
    outcomes = {"read": 0, "refused": 0}
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            job = job_of(killed)
            load(job)
        except (CheckpointError, ValueError) as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1
        else:
            assert run_folder.run_header(job) == run_folder.run_header(right)
            outcomes["read"] += 1
    assert outcomes["refused"] > 100 and outcomes["read"] > 10


def test_nothing_is_compiled_between_chunks(killed, tmp_path, monkeypatch):
    """A run, and a resumed one, compile two programs before the first chunk, none before the
    last."""
    events, compile_now, write = [], jax.stages.Lowered.compile, loop.metrics_row

    def compiled(*arguments, **kwargs):
        events.append("program")
        return compile_now(*arguments, **kwargs)

    def heard(name, *arguments, **kwargs):
        if name.endswith("backend_compile_duration"):
            events.append("compiled")

    monkeypatch.setattr(jax.stages.Lowered, "compile", compiled)
    monkeypatch.setattr(loop, "metrics_row", lambda x: (events.append("row"), write(x))[1])
    jax.monitoring.register_event_duration_secs_listener(heard)
    for flags, rows in (([*FLAGS, "--out", tmp_path / "a"], 10), (["--resume", killed], 5)):
        events.clear()
        assert main(*flags, patch=monkeypatch) == 0
        first = events.index("row")
        last = len(events) - events[::-1].index("row")
        assert events[:first].count("program") == events[:last].count("program") == 2
        assert events[:first].count("compiled") >= 2
        assert events[first:last] == ["row"] * rows
