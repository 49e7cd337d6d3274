"""What a user does with the files beside running them: debug, train from Python, load agents."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT, run, run_here

from algorithms import q_learning
from common.run import train
from common.runner.results import load_agent

SMALL = "--total-timesteps 1000 --learning-starts 200 --buffer-size 500 --batch-size 8 --quiet"
SMALL = [*SMALL.split(), "--hidden-sizes", "8", "--num-seeds", "2", "--eval-episodes", "2"]
SHORT = ["--eval-episodes", "1", "--quiet"]


def test_a_run_whose_metrics_are_nan_is_no_fault_for_jax_debug_nans(tmp_path):
    jax.config.update("jax_debug_nans", True)
    try:
        run_here("algorithms.dqn", *SMALL, "--out", tmp_path / "a")
    finally:
        jax.config.update("jax_debug_nans", False)


@pytest.mark.slow
def test_a_run_works_without_jit(tmp_path):
    flags = ["--total-timesteps", "20", "--steps-per-update", "5", *SHORT]
    flags += ["--env-id", "RandomWalk5-tabular"]  # whose episodes are short
    env = {"JAX_DISABLE_JIT": "1"}
    run("algorithms.q_learning", *flags, "--out", tmp_path / "plain", env=env)
    run_here("algorithms.q_learning", *flags, "--out", tmp_path / "jitted")
    with np.load(tmp_path / "plain/policy.npz") as x, np.load(tmp_path / "jitted/policy.npz") as y:
        np.testing.assert_allclose(x["0/"], y["0/"], rtol=1e-6)


def test_an_array_at_the_top_of_a_file_is_answered_in_one_line(tmp_path):
    source = (ROOT / "algorithms" / "q_learning.py").read_text()
    file = tmp_path / "early.py"
    file.write_text(source.replace("\n\n\n", "\n\nZERO = jnp.zeros(1)\n\n\n", 1))
    env = {k: x for k, x in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    env |= {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(file), "--total-timesteps", "1000", "--num-seeds", "2", *SHORT]
    options = {"capture_output": True, "text": True, "timeout": 240, "env": env, "cwd": tmp_path}
    done = subprocess.run([*command, "--out", "a"], **options)
    assert done.returncode == 0 and done.stderr.count("\n") == 1, done.stderr
    assert "JAX had started before the run" in done.stderr


def test_an_output_that_is_not_utf_8_is_no_fault(tmp_path):
    flags = ["--total-timesteps", "1000", "--eval-episodes", "1", "--out", tmp_path / "a"]
    done = run("algorithms.q_learning", *flags, env={"PYTHONIOENCODING": "ascii"})
    assert "q_learning ? CliffWalking-tabular" in done.stdout and done.stderr == ""


def test_training_from_python_has_the_bits_of_the_command_line(tmp_path):
    config = q_learning.Config(total_timesteps=2000)
    before = {name: getattr(jax.config, name) for name in ("jax_enable_x64", "jax_num_cpu_devices")}
    states, metrics = train(config, q_learning.make, num_seeds=2, seed=3)
    assert before == {name: getattr(jax.config, name) for name in before}
    assert metrics["episode_return"].shape == (2, q_learning.make(config).num_updates)
    flags = ["--total-timesteps", "2000", "--num-seeds", "2", "--seed", "3", *SHORT]
    run_here("algorithms.q_learning", *flags, "--out", tmp_path / "a")
    with np.load(tmp_path / "a" / "policy.npz") as policy:
        np.testing.assert_array_equal(policy["0/"], states.params)


@pytest.mark.parametrize("name", ["td_lambda", "monte_carlo"])
def test_agents_of_files_whose_config_has_a_policy_are_loaded(name, tmp_path):
    run_here(f"algorithms.{name}", "--total-timesteps", "1000", *SHORT, "--out", tmp_path / "a")
    assert load_agent(tmp_path / "a")(3, jax.random.key(0)) >= 0


def test_an_agent_that_has_no_policy_is_refused_in_words(tmp_path):
    flags = ["--total-timesteps", "20", "--num-envs", "2", "--num-simulations", "4", "--quiet"]
    run_here("algorithms.mcts", *flags, "--out", tmp_path / "a")
    with pytest.raises(ValueError, match="this planner has no policy"):
        load_agent(tmp_path / "a")


def test_an_agent_with_memory_is_given_what_it_returned(tmp_path):
    """None at the start of an episode. In a grid world no map of it is drawn: what it does in a
    state depends on the states before."""
    flags = ["--env-id", "CliffWalking-tabular", "--total-timesteps", "1024", "--no-norm-obs"]
    run_here("algorithms.ppo_rnn", *flags, *SHORT, "--out", tmp_path / "a")
    agent, key = load_agent(tmp_path / "a"), jax.random.key(0)
    action, memory = agent(None, 36, key)
    again, _ = agent(jnp.zeros(64), 36, key)
    assert action == again and memory.shape == (64,) and memory.any()
    assert not np.array_equal(agent(memory, 36, key)[1], memory)
    assert not (tmp_path / "a" / "policy.png").exists()


def test_an_agent_of_a_file_elsewhere_is_loaded_from_that_file(tmp_path):
    file = tmp_path / "my_learner.py"
    file.write_text((ROOT / "algorithms" / "q_learning.py").read_text())
    command = [sys.executable, str(file), "--total-timesteps", "1000", *SHORT, "--out", "a"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=tmp_path, env=env, check=True, timeout=240)
    assert load_agent(tmp_path / "a")(3, jax.random.key(0)) >= 0
