"""Trackers: every row of metrics.csv once, live, after a resume and from several processes."""

import csv
import importlib.machinery
import json
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from helpers import run, run_here

from common.runner import loop, results, trackers
from common.runner.statistics import interval, iqm

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of protobuf
FLAGS = "--env-id FrozenLake-tabular --total-timesteps 4000 --steps-per-update 20 --log-points 10"
FLAGS = [*FLAGS.split(), "--eval-episodes", "0", "--quiet"]
SEEDS = ["--num-seeds", "6", "--block", "3"]


@pytest.fixture(scope="module", autouse=True)
def _without_pictures():
    """They take half of the time of so small a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "draw_training", lambda *_: None)
        patch.setattr(results, "draw_best", lambda *_: None)
        yield


def train(folder, *flags, check=0):
    return run_here("algorithms.q_learning", *FLAGS, *flags, "--out", folder, check=check)


def metrics_of(folder):
    """The values of metrics.csv but NaN, {(seed, step): {name: value}}."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        (int(row.pop("seed")), int(row.pop("step"))): {
            name: float(x) for name, x in row.items() if np.isfinite(float(x))
        }
        for row in rows
    }


def events_of(folder):
    """What TensorBoard reads: {curve: [(step, name, value)]} of all event files, by their format:
    length, its checksum, an Event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    points = {}
    for path in sorted((folder / "tensorboard").glob("*/events.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += size + 16
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    point = event.step, value.tag, value.simple_value
                    points.setdefault(path.parent.name, []).append(point)
    return points


def check_points(points, folder, seeds):
    """The points of seeds and of their IQM are those of metrics.csv, each once."""
    metrics = metrics_of(folder)
    for seed in seeds:
        found = {(step, name): x for step, name, x in points[f"seed_{seed}"]}
        assert len(found) == len(points[f"seed_{seed}"])
        own = {k: x for k, x in metrics.items() if k[0] == seed}
        expected = {(step, name): x for (_, step), row in own.items() for name, x in row.items()}
        assert found == pytest.approx(expected, rel=1e-5)
    found = {(step, name): x for step, name, x in points["iqm"]}
    assert len(found) == len(points["iqm"])
    by_point = {}
    for (_, step), row in metrics.items():
        for name, x in row.items():
            by_point.setdefault((step, name), []).append(x)
    assert {k: x for k, x in found.items() if "/" not in k[1]} == pytest.approx(
        {k: iqm(x) for k, x in by_point.items()}, rel=1e-5
    )
    for (step, name), values in by_point.items():
        if len(values) >= 5:
            ends = found[step, f"{name}/low"], found[step, f"{name}/high"]
            width = max(values) - min(values)
            assert ends == pytest.approx(interval(values), abs=0.1 * width + 1e-6)
        else:
            assert (step, f"{name}/low") not in found


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "tracked"
    train(folder, *SEEDS, "--track", "tensorboard")
    return folder


def test_tensorboard_has_every_row_once(tracked):
    points = events_of(tracked)
    assert set(points) == {"iqm", *(f"seed_{k}" for k in range(6))}
    check_points(points, tracked, range(6))
    names = {name for _, name, _ in points["iqm"]}
    assert {"episode_return", "episode_return/low", "episode_return/high", "episodes"} <= names


def test_the_reader_of_tensorboard_sees_the_same(tracked):
    multiplexer = pytest.importorskip("tensorboard.backend.event_processing.event_multiplexer")
    reader = multiplexer.EventMultiplexer(size_guidance={"scalars": 0})
    reader.AddRunsFromDirectory(str(tracked)).Reload()
    for curve, points in events_of(tracked).items():
        run = f"tensorboard/{curve}"
        for name in {name for _, name, _ in points}:
            found = [(event.step, event.value) for event in reader.Scalars(run, name)]
            assert found == [(step, x) for step, tag, x in points if tag == name]
    assert "custom_scalars__config__" in reader.Runs()["tensorboard/iqm"]["tensors"]


def test_a_tracker_changes_nothing_else(tracked, tmp_path):
    train(tmp_path / "plain", *SEEDS)
    plain = (tmp_path / "plain" / "metrics.csv").read_bytes()
    assert (tracked / "metrics.csv").read_bytes() == plain
    with np.load(tracked / "policy.npz") as a, np.load(tmp_path / "plain/policy.npz") as b:
        for name in set(a.files) - {"header", "sha256"}:
            np.testing.assert_array_equal(a[name], b[name])
    assert not (tmp_path / "plain" / "tensorboard").exists()


def test_a_run_that_goes_on_has_every_point_once(tmp_path, monkeypatch):
    """It stops after some rows that its checkpoint does not hold, and, of others, after training;
    and it may go on without the flag, which config.json knows."""
    folder = tmp_path / "run"

    def full(*_):
        raise OSError(28, "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_trained", full)
        patch.setattr(loop, "SAVE_SHARE", float("inf"))
        train(folder, *SEEDS, "--track", "tensorboard", "--checkpoint-every", "1e-9", check=5)
    assert len(events_of(folder)["seed_0"]) > 0
    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_results", full)
        run_here("algorithms.q_learning", "--resume", folder, "--quiet", check=5)
    run_here("algorithms.q_learning", "--resume", folder, "--quiet")
    check_points(events_of(folder), folder, range(6))


def test_the_process_that_merges_writes_the_rows_of_all(tmp_path):
    folder = tmp_path / "run"
    train(folder, *SEEDS, "--track", "tensorboard", "--share", "1/2")
    assert not (folder / "tensorboard").exists()
    train(folder, *SEEDS, "--track", "tensorboard", "--share", "0/2")
    check_points(events_of(folder), folder, range(6))


def test_few_and_many_seeds(tmp_path):
    train(tmp_path / "one", "--seed", "7", "--track", "tensorboard")
    points = events_of(tmp_path / "one")
    assert set(points) == {"seed_7"} and not any("/" in name for _, name, _ in points["seed_7"])
    train(tmp_path / "many", "--num-seeds", "12", "--track", "tensorboard")
    points = events_of(tmp_path / "many")
    assert set(points) == {"iqm", *(f"seed_{k}" for k in range(10))}
    check_points(points, tmp_path / "many", range(10))


def test_a_sweep_has_a_curve_for_each_setting(tmp_path):
    sweep = ["--sweep", "learning_rate=0.1,0.5", "steps_per_update=20,40", "--num-seeds", "2"]
    train(tmp_path / "run", *sweep, "--track", "tensorboard")
    points = events_of(tmp_path / "run")
    settings = [(a, b) for a in (0.1, 0.5) for b in (20, 40)]
    assert set(points) == {f"learning_rate={a}_steps_per_update={b}" for a, b in settings}
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for a, b in settings:
        own = [r for r in rows if (r["learning_rate"], r["steps_per_update"]) == (str(a), str(b))]
        expected = {}
        for row in own:
            expected.setdefault(int(row["step"]), []).append(float(row["value"]))
        curve = points[f"learning_rate={a}_steps_per_update={b}"]
        found = {step: x for step, name, x in curve if name == "value"}
        assert found == pytest.approx({k: np.mean(x) for k, x in expected.items()}, rel=1e-5)


# Weights & Biases


class FakeWandb(types.ModuleType):
    """What of wandb is used; `runs` has what was asked of it."""

    class Error(Exception):
        pass

    def __init__(self, folder, starting_step=0, refuses_after=None, fails_at=None):
        super().__init__("wandb")
        self.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
        self.folder, self.starting_step, self.runs = folder, starting_step, []
        self.refuses_after, self.fails_at = refuses_after, fails_at  # curves, and rows of a curve

    def Settings(self, **settings):  # noqa: N802
        return settings

    def init(self, **flags):
        if len(self.runs) == self.refuses_after:
            raise self.Error("No API key configured.\nUse `wandb login` to log in.")
        assert not sys.stdin.isatty()
        (Path(flags["dir"]) / "wandb" / f"offline-run-1-{flags['id']}").mkdir()
        run = types.SimpleNamespace(flags=flags, rows=[], offline=True, is_finished=False)
        run.starting_step = self.starting_step

        def log(values, step):
            if len(run.rows) == self.fails_at:
                raise ConnectionError("the network\nis gone")
            is_live = not (self.folder / "metrics.csv").exists()
            run.rows.append((step, values, is_live))

        def finish():
            run.is_finished = True

        run.log, run.finish = log, finish
        self.runs.append(run)
        return run


def with_wandb(monkeypatch, folder, *flags, check=0, **kwargs):
    """The runs of a fake wandb, by their curves, of a training with that flag."""
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(isatty=lambda: True))
    track = kwargs.pop("track", "wandb")
    fake = FakeWandb(folder, **kwargs)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    done = train(folder, *flags, "--track", track, check=check)
    assert "left out" in done.stderr or all(run.is_finished for run in fake.runs)
    return {run.flags["name"].removeprefix(f"{folder.name} "): run for run in fake.runs}, done


def test_wandb_has_every_row_once_and_live(monkeypatch, tmp_path):
    runs, _ = with_wandb(monkeypatch, tmp_path / "run", *SEEDS)
    points = {
        curve: [(step, name, x) for step, values, _ in run.rows for name, x in values.items()]
        for curve, run in runs.items()
    }
    check_points(points, tmp_path / "run", range(6))
    assert all(is_live for k in range(6) for *_, is_live in runs[f"seed_{k}"].rows)
    for own in runs.values():
        steps = [step for step, *_ in own.rows]
        assert steps == sorted(set(steps))
    flags = [run.flags for run in runs.values()]
    assert {(x["group"], x["project"]) for x in flags} == {("run", "manyseeds")}
    assert {x["job_type"] for x in flags} == {"iqm", "seed"} and len({x["id"] for x in flags}) == 7
    config = runs["seed_3"].flags["config"]
    assert (config["seed"], config["algorithm"]) == (3, "q_learning")
    assert config["env_id"] == "FrozenLake-tabular"


def test_the_iqm_is_live_while_the_last_seeds_train(monkeypatch, tmp_path):
    runs, _ = with_wandb(monkeypatch, tmp_path / "run", "--num-seeds", "6", "--block", "6")
    assert runs["iqm"].rows[0][2]


def test_wandb_goes_on_where_it_was(monkeypatch, tmp_path):
    folder = tmp_path / "run"

    def full(*_):
        raise OSError(28, "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_results", full)
        first, _ = with_wandb(monkeypatch, folder, *SEEDS, check=5)
    last = first["seed_0"].rows[4][0]
    again, _ = with_wandb(monkeypatch, folder, *SEEDS, starting_step=last + 1)
    for curve, own in again.items():
        assert own.flags["id"] == first[curve].flags["id"]
        assert own.flags["resume"] == "allow"
    assert [step for step, *_ in again["seed_0"].rows] == [
        step for step, *_ in first["seed_0"].rows[5:]
    ]
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 7  # the old ones are gone


def test_wandb_that_refuses_ends_before_training_in_one_line(monkeypatch, tmp_path):
    _, done = with_wandb(monkeypatch, tmp_path / "run", *SEEDS, check=2, refuses_after=0)
    line = "--track wandb: No API key configured. Use `wandb login` to log in."
    assert line in done.stderr and done.stderr.count("\n") == 1
    assert "WANDB_MODE=offline" in done.stderr
    assert not (tmp_path / "run" / "blocks").exists()
    with_wandb(monkeypatch, tmp_path / "run", *SEEDS)  # the same command goes on


@pytest.mark.parametrize(
    "kwargs, cause",
    [
        ({"fails_at": 3}, "ConnectionError: the network is gone"),
        ({"refuses_after": 2}, "No API key configured."),
    ],
)
def test_a_tracker_that_fails_while_the_run_trains_is_left_out(
    monkeypatch, tmp_path, tracked, kwargs, cause
):
    """One line says so; the run ends as it would have, and another tracker has everything."""
    folder = tmp_path / "run"
    _, done = with_wandb(monkeypatch, folder, *SEEDS, track="wandb,tensorboard", **kwargs)
    assert f"--track wandb failed and is left out; the run goes on: {cause}" in done.stderr
    assert done.stderr.count("\n") == 1
    assert (folder / "metrics.csv").read_bytes() == (tracked / "metrics.csv").read_bytes()
    check_points(events_of(folder), folder, range(6))


def wandb_history(path):
    """The rows of an offline file of wandb, {step: {name: value}}: LevelDB's log, of blocks of
    32,768 bytes with chunks of checksum, length and kind, after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2  # pyright: ignore[reportMissingImports]

    data, at, part, rows = path.read_bytes(), 7, b"", {}
    while at < len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        part += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            record, part = wandb_internal_pb2.Record.FromString(part), b""
            items = record.history.item
            row = {x.key or "/".join(x.nested_key): json.loads(x.value_json) for x in items}
            if row:
                step = row["_step"]
                assert step not in rows
                rows[step] = {name: x for name, x in row.items() if name[0] != "_"}
    return rows


def test_wandb_itself_offline(tmp_path):
    pytest.importorskip("wandb")
    flags = [*FLAGS, *SEEDS, "--track", "wandb", "--out", tmp_path / "run"]
    run("algorithms.q_learning", *flags, env={"WANDB_MODE": "offline"})  # its end completes files
    points = {}
    for path in (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"):
        rows = wandb_history(path).items()
        curve = path.stem.rpartition("-")[2]
        points[curve] = [(step, name, x) for step, row in rows for name, x in row.items()]
    assert set(points) == {"iqm", *(f"seed_{k}" for k in range(6))}
    check_points(points, tmp_path / "run", range(6))


# The flag


@pytest.mark.parametrize("name, package", trackers.PACKAGES.items())
def test_a_missing_package_is_named_before_training(monkeypatch, tmp_path, name, package):
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    done = train(tmp_path / "run", "--track", name, check=2)
    assert done.stderr.endswith(f"--track {name} needs {package}: pip install {package}\n")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["tb", "wandb,wandb", "tensorboard,", "tensorboard wandb"])
def test_an_unknown_tracker_is_refused(tmp_path, text):
    done = train(tmp_path / "run", "--track", text, check=2)
    assert "write tensorboard, wandb or tensorboard,wandb" in done.stderr


def test_too_many_settings_are_refused(tmp_path):
    values = ",".join(str(x / 1000) for x in range(1, 102))
    sweep = ["--sweep", f"learning_rate={values}", "--track", "tensorboard"]
    done = train(tmp_path / "run", *sweep, check=2)
    assert "--track shows at most 100 settings, and the sweep has 101" in done.stderr
