"""A finished run that goes on for more steps."""

import csv
import json
import sys
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from algorithms.q_learning import Config, make
from common.run import main
from common.runner import run_folder

FLAGS = ["--steps-per-update", "20", "--num-seeds", "4", "--block", "2"]
FLAGS += ["--eval-episodes", "2", "--quiet"]


def train(monkeypatch, *argv, make=make):
    """Run q_learning, whose defaults have no schedule."""
    monkeypatch.setattr(sys, "argv", ["q_learning", *map(str, argv)])
    main(Config, make)


def rows_of(folder):
    with open(folder / "metrics.csv") as file:
        return {(row["seed"], row["step"]): row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("runs") / "whole"
        long = [*FLAGS, "--total-timesteps", 4000, "--log-points", 10]
        train(patch, *long, "--out", folder)
    return folder


@pytest.fixture
def short(tmp_path, monkeypatch):
    flags = [*FLAGS, "--total-timesteps", 2000, "--log-points", 5, "--keep-checkpoint"]
    train(monkeypatch, *flags, "--out", tmp_path / "short")
    return tmp_path / "short"


def test_it_ends_as_the_longer_run_with_no_row_lost_or_doubled(whole, short, monkeypatch, capsys):
    before = rows_of(short)
    capsys.readouterr()
    train(monkeypatch, "--resume", short, "--total-timesteps", 4000, "--no-quiet")
    assert "from 2,000 to 4,000 steps; from here on its schedules" in capsys.readouterr().out
    with np.load(whole / "policy.npz") as a, np.load(short / "policy.npz") as b:
        for name in set(a.files) - {"header", "sha256"}:
            np.testing.assert_array_equal(a[name], b[name])
    assert (whole / "evaluation.csv").read_bytes() == (short / "evaluation.csv").read_bytes()
    rows, long = rows_of(short), rows_of(whole)
    assert len((short / "metrics.csv").read_text().splitlines()) == 1 + len(rows)
    steps = [400, 800, 1200, 1600, 2000, 2400, 3200, 4000]
    assert sorted({int(step) for _, step in rows}) == steps
    assert before.items() <= rows.items()
    same = [key for key in rows if int(key[1]) <= 2400]  # the others are means of twice the steps
    assert len(same) == 4 * 6 and all(rows[key] == long[key] for key in same)
    assert json.loads((short / "summary.json").read_text())["steps"] == 4000
    assert json.loads((short / "config.json").read_text())["went_on_after"] == [2000]
    train(monkeypatch, "--resume", short, "--total-timesteps", 4400)  # and once more
    assert json.loads((short / "summary.json").read_text())["steps"] == 4400


@pytest.mark.slow
def test_it_survives_a_kill_at_every_step_of_going_on(whole, short, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    longer = ["--resume", short, "--total-timesteps", 4000]
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(run_folder, "write_json", killed)  # the summary is gone, the flags are old
        train(patch, *longer)
    assert not (short / "summary.json").exists()
    with pytest.raises(SystemExit) as stop:
        train(monkeypatch, *longer)
    assert stop.value.code == 3
    train(monkeypatch, "--resume", short)
    assert json.loads((short / "summary.json").read_text())["steps"] == 2000
    train(monkeypatch, *longer)
    assert (whole / "evaluation.csv").read_bytes() == (short / "evaluation.csv").read_bytes()


class Grown(NamedTuple):
    """A State with an entry for each update."""

    params: Any
    inner: Any
    log: Any


def make_grown(config):
    algorithm = make(config)

    def init(key):
        state = algorithm.init(key)
        return Grown(state.params, state, jnp.zeros(algorithm.num_updates))

    def update(state, step):
        inner, metrics = algorithm.update(state.inner._replace(params=state.params), step)
        return Grown(inner.params, inner, state.log), metrics

    return algorithm._replace(init=init, update=update)


def test_what_cannot_go_on_says_so_and_stays_as_it_was(tmp_path, monkeypatch, capsys):
    short = [*FLAGS, "--total-timesteps", 200, "--log-points", 2]

    def refused(folder, says, *argv, make=make):
        before = (folder / "config.json").read_bytes(), (folder / "summary.json").read_bytes()
        with pytest.raises(SystemExit) as stop:
            train(monkeypatch, "--resume", folder, *argv, make=make)
        message = capsys.readouterr().err
        assert stop.value.code in (2, 3) and says in message and message.count("\n") == 1
        after = (folder / "config.json").read_bytes(), (folder / "summary.json").read_bytes()
        assert before == after

    train(monkeypatch, *short, "--out", tmp_path / "a")
    assert not (tmp_path / "a/blocks").exists()
    refused(tmp_path / "a", "anew with --keep-checkpoint", "--total-timesteps", 400)
    train(monkeypatch, *short, "--keep-checkpoint", "--out", tmp_path / "b", make=make_grown)
    refused(tmp_path / "b", "log is", "--total-timesteps", 400, make=make_grown)
    refused(tmp_path / "b", "not 100", "--total-timesteps", 100, make=make_grown)
    next((tmp_path / "b").glob("blocks/*/checkpoint.npz")).unlink()
    refused(tmp_path / "b", "is missing", "--total-timesteps", 400, make=make_grown)
