"""record.py: what trained policies do, as files that --dataset reads."""

import json

import jax
import numpy as np
import pytest
from helpers import run_here

from common.datasets import read_dataset
from common.environments.experts import make_expert
from common.envs import bound_action, make_env, map_actions
from common.runner.checkpoint import load
from common.runner.results import load_agent

SMALL = "--num-seeds 3 --eval-episodes 4 --hidden-sizes 8 --num-iterations 2 --gradient-steps 5"


@pytest.fixture(scope="module")
def cloned(tmp_path_factory):
    """A run of three hardly trained seeds on the pendulum."""
    folder = tmp_path_factory.mktemp("runs") / "cloned"
    flags = [*SMALL.split(), "--env-id", "Pendulum-v1", "--num-episodes", "2", "--quiet"]
    run_here("algorithms.behaviour_cloning", *flags, "--out", folder)
    return folder


def test_episodes_of_all_seeds_are_recorded_whole(cloned, tmp_path):
    path = tmp_path / "data.npz"
    done = run_here("common.record", cloned, "--episodes", "7", "--out", path)
    arrays, header = load(path)
    assert "7 episodes, 1,400 steps of Pendulum-v1" in done.stdout
    assert header["env_id"] == "Pendulum-v1" and header["seeds"] == [0, 1, 2]
    assert header["algorithm"] == "behaviour_cloning" and header["run"] == "cloned"
    np.testing.assert_array_equal(arrays["episode"], np.repeat(np.arange(7), 200))
    np.testing.assert_array_equal(np.flatnonzero(arrays["truncated"]), 200 * np.arange(7) + 199)
    assert not arrays["terminated"].any()
    returns = arrays["reward"].reshape(7, 200).sum(1)
    np.testing.assert_allclose(header["returns"], returns, rtol=1e-5)
    for seed, first, last in [(0, 0, 2), (1, 2, 4), (2, 4, 7)]:  # each acts in episodes of its own
        own = (first <= arrays["episode"]) & (arrays["episode"] < last)
        act = jax.vmap(load_agent(cloned, seed=seed), (0, None))
        actions = act(arrays["obs"][own], jax.random.key(0))
        np.testing.assert_allclose(arrays["action"][own], actions, rtol=1e-5, atol=1e-6)
    same = arrays["obs"][1:] == arrays["next_obs"][:-1]
    np.testing.assert_array_equal(~same.all(1), arrays["truncated"][:-1])


def test_actions_are_those_of_the_seed_in_the_units_of_the_environment(cloned, tmp_path):
    path = tmp_path / "data.npz"
    run_here("common.record", cloned, "--episodes", "1", "--seed", "1", "--out", path)
    arrays, _ = load(path)
    act = load_agent(cloned, seed=1)
    actions = jax.vmap(act, (0, None))(arrays["obs"], jax.random.key(0))
    np.testing.assert_allclose(arrays["action"], actions, rtol=1e-5, atol=1e-6)
    env = map_actions(make_env("Pendulum-v1", 1), bound_action)
    data = read_dataset(str(path), "Pendulum-v1", env).data(())
    np.testing.assert_allclose(2 * data.transitions.action, actions, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_policy_with_memory_is_recorded_from_its_first_memory(tmp_path):
    flags = "--total-timesteps 512 --num-envs 2 --num-steps 32 --num-minibatches 1 --memory-size 4"
    flags += " --hidden-sizes 4 --eval-episodes 2 --quiet --env-id CartPole-v1"
    run_here("algorithms.ppo_rnn", *flags.split(), "--out", tmp_path / "run")
    run_here("common.record", tmp_path / "run", "--episodes", "3", "--out", tmp_path / "x.npz")
    arrays, header = load(tmp_path / "x.npz")
    act, memory = load_agent(tmp_path / "run"), None
    first = arrays["episode"] == 1
    for obs, action in zip(arrays["obs"][first], arrays["action"][first], strict=True):
        played, memory = act(memory, obs, jax.random.key(0))
        assert int(played) == action
    assert len(header["returns"]) == 3 and sum(header["returns"]) == len(arrays["reward"])


def test_a_recorded_run_is_an_expert_and_a_dataset(cloned, tmp_path):
    path = tmp_path / "data.npz"
    run_here("common.record", cloned, "--episodes", "3", "--out", path)
    flags = [*SMALL.split(), "--env-id", "Pendulum-v1", "--num-episodes", "2", "--quiet"]
    for source in ("--dataset", path), ("--expert", cloned):
        folder = tmp_path / source[0]
        run_here("algorithms.behaviour_cloning", *flags, *source, "--out", folder)
        summary = json.loads((folder / "summary.json").read_text())
        assert np.isfinite(summary["evaluation"]["iqm"])


def test_a_trained_expert_acts_in_units_of_the_bounds(cloned):
    env = map_actions(make_env("Pendulum-v1", 5), bound_action)
    obs = jax.random.normal(jax.random.key(0), (5, 3))
    actions = jax.vmap(load_agent(cloned), (0, None))(obs, jax.random.key(0))  # within ±2
    expert = make_expert("Pendulum-v1", env, str(cloned))
    np.testing.assert_allclose(2 * expert(obs, jax.random.key(0)), actions, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_recorded_is_refused_in_one_line(cloned, tmp_path):
    out = ["--out", tmp_path / "x.npz"]
    for arguments, message in [
        ([tmp_path / "none", *out], "no trained policies there"),
        ([cloned, "--episodes", "2", *out], "at least one for each of 3 seeds"),
        ([cloned, "--seed", "9", *out], "no member with"),
        ([cloned, "--out", tmp_path / "none" / "x.npz"], "cannot write"),
        ([cloned], "--out"),
    ]:
        done = run_here("common.record", *arguments, check=2)
        assert message in done.stderr and done.stderr.count("\n") == 1, done.stderr
    name, env = "algorithms.behaviour_cloning", ["--env-id", "CartPole-v1", "--quiet"]
    done = run_here(name, *env, "--expert", cloned, check=2)
    assert "was trained in Pendulum-v1, not in CartPole-v1" in done.stderr
    done = run_here(
        "algorithms.behaviour_cloning", *env, "--dataset", cloned / "policy.npz", check=2
    )
    assert "not a file that python -m common.record wrote" in done.stderr
