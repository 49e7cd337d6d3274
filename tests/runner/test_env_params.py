"""`--env-params` and `--sweep env.<name>`: what a run does with them."""

import csv
import json

import jax
import numpy as np
import pytest
from helpers import run_here

from common.runner import loop
from common.runner.results import load_agent

SMALL = ["--num-envs", "2", "--hidden-sizes", "4", "--eval-episodes", "3", "--quiet"]
SMALL += ["--log-points", "2", "--num-steps", "10"]
LIMIT = ["--env-params", "max_steps_in_episode=9"]


def reinforce(*arguments, check=0):
    return run_here("algorithms.reinforce", *arguments, check=check)


def table(path):
    with open(path) as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def limited(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "limited"
    flags = ["--env-params", "max_steps_in_episode=9", "gravity=8:12"]
    reinforce(*SMALL, *flags, "--num-seeds", 2, "--total-timesteps", 200, "--out", folder)
    return folder


def test_training_evaluation_and_tools_have_the_parameters(limited, tmp_path):
    stored = json.loads((limited / "config.json").read_text())
    assert stored["config"]["env_id"] == "CartPole-v1+max_steps_in_episode=9+gravity=8:12"
    assert all(float(row["episode_length"]) <= 9 for row in table(limited / "metrics.csv"))
    lengths = {int(row["episode_length"]) for row in table(limited / "evaluation.csv")}
    assert max(lengths) == 9
    assert load_agent(limited)(np.zeros(4), jax.random.key(0)).shape == ()
    run_here("common.record", limited, "--out", tmp_path / "a.npz", "--episodes", 2)
    with np.load(tmp_path / "a.npz") as file:
        assert np.bincount(file["episode"]).max() <= 9
        assert json.loads(bytes(file["header"]))["env_id"] == stored["config"]["env_id"]


def test_the_id_of_config_json_runs_again_with_the_same_bits(limited, tmp_path):
    env_id = json.loads((limited / "config.json").read_text())["config"]["env_id"]
    flags = ["--env-id", env_id, "--num-seeds", 2, "--total-timesteps", 200]
    reinforce(*SMALL, *flags, "--out", tmp_path / "again")
    for name in ("metrics.csv", "evaluation.csv"):
        assert (limited / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    done = reinforce("--resume", limited, "--env-params", "gravity=3", check=3)
    assert "has --env-id CartPole-v1+max_steps_in_episode=9+gravity=8:12" in done.stderr


def test_floats_of_a_sweep_share_a_compile_and_are_the_runs_alone(tmp_path, monkeypatch):
    compiled = []

    def counted(*arguments, lower=loop.lower_for_training):
        compiled.append(arguments)
        return lower(*arguments)

    monkeypatch.setattr(loop, "lower_for_training", counted)
    common = [*SMALL, "--total-timesteps", 100, "--num-seeds", 2]
    reinforce(*common, *LIMIT, "--sweep", "env.force_mag=5,30", "--out", tmp_path / "sweep")
    assert len(compiled) == 1
    rows = table(tmp_path / "sweep/metrics.csv")
    assert {row["env.force_mag"] for row in rows} == {"5.0", "30.0"}
    flags = [*LIMIT, "force_mag=30"]
    reinforce(*common, *flags, "--out", tmp_path / "alone")
    own = [row for row in rows if row.pop("env.force_mag") == "30.0"]
    for row, alone in zip(own, table(tmp_path / "alone/metrics.csv"), strict=True):
        for name, x in alone.items():
            np.testing.assert_allclose(float(row[name]), float(x), rtol=1e-3, err_msg=name)
    summary = json.loads((tmp_path / "sweep/summary.json").read_text())
    assert summary["best"] is None  # returns of different tasks are not compared
    act = load_agent(tmp_path / "sweep", **{"env.force_mag": 30.0})
    assert act(np.zeros(4), jax.random.key(0)).shape == ()


@pytest.mark.slow
def test_a_sweep_of_what_shapes_a_program_compiles_for_each(tmp_path, monkeypatch):
    compiled = []

    def counted(*arguments, lower=loop.lower_for_training):
        compiled.append(arguments)
        return lower(*arguments)

    monkeypatch.setattr(loop, "lower_for_training", counted)
    sweep = ["--sweep", "env.max_steps_in_episode=4,6", "--total-timesteps", 60]
    reinforce(*SMALL, *sweep, "--out", tmp_path / "a")
    assert len(compiled) == 2
    lengths = {
        row["env.max_steps_in_episode"]: row["episode_length"]
        for row in table(tmp_path / "a/evaluation.csv")
    }
    assert lengths == {"4": "4", "6": "6"}


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--env-params", "gravty=9"], "gravty: CartPole-v1 has only max_steps_in_episode"),
        (["--env-params", "gravity"], "write name=number or name=low:high"),
        (["--env-params", "gravity=1", "gravity=2"], "gravity: named twice"),
        (["--env-params", "gravity=abc"], "gravity=abc: must be a number"),
        (["--sweep", "env.gravty=1,2"], "env.gravty: CartPole-v1 has only"),
        (["--sweep", "env.gravity=1,x"], "'x' is not of type float"),
        (["--sweep", "env.max_steps_in_episode=1.5,2"], "'1.5' is not of type int"),
        (["--sweep", "env.gravity=1:2"], "say how often with --num-settings"),
    ],
)
def test_wrong_parameters_are_one_line_and_exit_code_2(flags, says, tmp_path):
    done = reinforce(*flags, "--out", tmp_path / "a", check=2)
    assert says in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "a").exists()
