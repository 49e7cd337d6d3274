"""benchmarks/faults.py: a short round of it, and that it notices every kind of failure."""

import csv
import json
import random
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from helpers import ALGORITHMS, load, run_here

from benchmarks import faults
from benchmarks.faults import Ended, Fault, Run, differs, wrong
from common.runner import checkpoint
from common.runner.cli import parse

EVERY_CHUNK = ["--checkpoint-every", "1e-9"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("faults")
    flags = "--total-timesteps 400 --steps-per-update 20 --num-seeds 2 --block 2 --quiet"
    flags = flags.split()
    run_here("algorithms.q_learning", *flags, "--out", path / "whole")
    return Run("q_learning", flags, path / "whole", path, random.Random(0))


@pytest.mark.slow
def test_two_kills_inside_a_save_end_with_the_same_bytes(whole, monkeypatch):
    """One is between the two renames, the other when half a file is written."""
    flags = [*whole.flags, *EVERY_CHUNK]
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


def test_what_a_checkpoint_holds_is_compared(whole):
    stopped = faults.stopped(whole._replace(flags=[*whole.flags, *EVERY_CHUNK]), "held")
    path = stopped / faults.BLOCK / "checkpoint.npz"
    assert wrong(whole, stopped, Ended(0, ""), -9) == ""
    arrays, header = checkpoint.load(path)
    value = arrays["history/value"]
    checkpoint.save(path, arrays | {"history/value": value + 1}, header)
    assert wrong(whole, stopped, Ended(0, ""), -9) == "rows are wrong"
    short = {name: x[:-1] if name.startswith("history/") else x for name, x in arrays.items()}
    checkpoint.save(path, short, header)
    assert wrong(whole, stopped, Ended(0, ""), -9) == "rows are wrong"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert "damaged" in wrong(whole, stopped, Ended(0, ""), -9)


def test_how_a_run_ends_is_compared(whole):
    other = whole.whole
    assert wrong(whole, other, Ended(1, "Traceback"), -9) == "exit code 1: Traceback"
    assert wrong(whole, other, Ended(130, "two\nlines\n"), 130).startswith("not one line")
    assert wrong(whole, other, Ended(130, ""), 130).startswith("not one line")


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_has_flags_for_a_run_with_several_checkpoints(name):
    module = load(name)
    argv = [*faults.SMALL.split(), *faults.FLAGS[name].split()]
    config, flags = parse(module.Config, name, "", argv)
    assert flags.log_points == 40 and module.make(config).num_updates >= 80


def test_each_algorithm_meets_its_faults():
    assert set(faults.FLAGS) == set(ALGORITHMS) == set(faults.ALGORITHMS)
    assert faults.due("sarsa") == ["kill -9"]
    assert "resume speed" not in faults.due("sac") and "memory" in faults.due("sac")
    assert faults.due("dqn") == faults.FAULTS


def test_rows_are_merged_into_the_existing_table(tmp_path, monkeypatch):
    path = tmp_path / "faults.csv"
    old = [Fault("SIGINT", "dqn", 9, 9, "old"), Fault("kill -9", "sarsa", 3, 2, "old, too")]
    faults.write(path, old)
    assert faults.lines(path) == old and faults.lines(tmp_path / "none.csv") == []

    def fake(name, work, attempts, chosen):
        yield Fault("kill -9", name, attempts, attempts, "new")

    monkeypatch.setattr(faults, "faults", fake)
    monkeypatch.setattr(faults, "start_jax", lambda: None)
    monkeypatch.setattr(sys, "argv", ["faults", "sarsa", "dqn", "a2c", "--out", str(path)])
    with pytest.raises(SystemExit) as stop:
        faults.main()
    assert not stop.value.code
    assert faults.lines(path) == [
        Fault("kill -9", "dqn", 25, 25, "new"),
        old[0],
        Fault("kill -9", "a2c", 3, 3, "new"),
        Fault("kill -9", "sarsa", 3, 3, "new"),
    ]


def test_what_a_process_catches_is_seen():
    code = "import signal; signal.signal(15, lambda *x: 0); print(flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        try:
            process.stdout.readline()
            assert faults.catches(process, signal.SIGTERM)
            assert not faults.catches(process, signal.SIGUSR1)
        finally:
            process.kill()


def test_a_run_says_how_much_memory_it_holds(whole, tmp_path):
    flags = [*whole.flags, "--log-points", "20", "--out", str(tmp_path / "a")]
    ended = faults.finish(faults.start(whole, *flags, through="weigh('q_learning')"))
    sizes = [int(line) for line in ended.error.splitlines()]
    assert ended.code == 0 and len(sizes) == 20
    assert min(sizes) > 50 * 2**20 and max(sizes) < 2**30
    assert differs(whole, tmp_path / "a") == ""


@pytest.mark.parametrize("growth, passed", [(0, 1), (0.0009, 1), (0.0011, 0)])
def test_memory_that_grows_is_found(growth, passed, whole, monkeypatch):
    """The 900 chunks between the two medians add 1,000 times `growth` in MiB."""
    sizes = [int(2**20 * (300 + growth * 1000 / 900 * chunk)) for chunk in range(1100)]
    monkeypatch.setattr(faults, "start", lambda *x, **y: None)
    monkeypatch.setattr(faults, "finish", lambda _: Ended(0, "\n".join(map(str, sizes))))
    assert faults.memory(whole)[2:4] == (1, passed)
    monkeypatch.setattr(faults, "finish", lambda _: Ended(0, "1\n2\n"))
    assert faults.memory(whole)[3] == 0


@pytest.mark.parametrize("speeds, passed", [([0.9, 1, 0.98], 1), ([0.96, 2, 0.8], 0)])
def test_a_resumed_run_that_is_slower_is_found(speeds, passed, whole, tmp_path, monkeypatch):
    """100 updates a second; the run was killed after 50 of 550 updates."""

    def save(folder, update, seconds):
        at = {"at": {"update": update, "seconds": seconds}}
        (folder / faults.BLOCK).mkdir(parents=True, exist_ok=True)
        checkpoint.save(folder / faults.BLOCK / "checkpoint.npz", {"x": np.zeros(1)}, at)
        summary = {"updates": update, "run_seconds": seconds}
        (folder / "summary.json").write_text(json.dumps(summary))
        return folder

    def finish(folder):
        if folder.exists():
            save(folder, 550, 7 + 5 / speeds.pop(0))
        else:
            folder.mkdir()
            save(folder, 550, 5.5)
        return Ended(0, "")

    (tmp_path / "killed").mkdir()
    monkeypatch.setattr(faults, "stopped", lambda *x: save(tmp_path / "killed", 50, 7.0))
    where = lambda flags: flags[flags.index("--out" if "--out" in flags else "--resume") + 1]
    monkeypatch.setattr(faults, "start", lambda run, *flags: tmp_path / where(flags))
    monkeypatch.setattr(faults, "finish", finish)
    row = faults.resume_speed(whole._replace(name="dqn", work=tmp_path), 3)
    assert row[2:4] == (1, passed) and "of 3 pairs" in row.detail


def test_the_committed_table_has_no_failure():
    with open(faults.RESULTS / "faults.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == faults.COLUMNS
    assert all(row["passed"] == row["attempts"] for row in rows)
    assert {"kill -9", "kill -9 in a save", "damaged"} <= {row["fault"] for row in rows}
