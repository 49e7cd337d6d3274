"""`--eval-policy sample`: the policy as it is learned, a distribution, beside its mode."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ALGORITHMS, load, run_here, small_config

from common.distributions import sample
from common.runner.evaluation import sampled


def source(name):
    return inspect.getsource(load(name))


USES = r"from common.distributions import (\([^)]*|.*)\bmode\b"
SAMPLED = [name for name in ALGORITHMS if re.search(USES, source(name))]


def test_files_that_take_the_mode_of_a_distribution_can_sample_it():
    assert {"a2c", "ppo", "ppo_rnn", "reinforce", "trpo", "sac", "v_mpo", "mpo"} <= set(SAMPLED)
    for name in SAMPLED:
        assert re.search(r"def act\(params, (memory, )?obs, key, choose=mode\):", source(name)), (
            name
        )


@pytest.mark.parametrize("env_id", ["CartPole-v1", "MountainCarContinuous-v0"])
@pytest.mark.parametrize("name", ["reinforce", "ppo_rnn", "sac"])
def test_sampled_actions_are_those_of_the_distribution(name, env_id):
    """Frequencies, or mean and variance, of the distribution that `choose` is given."""
    module = load(name)
    try:
        algorithm = module.make(small_config(module, env_id=env_id))
    except ValueError:
        pytest.skip("it has no such actions")
    params = algorithm.init(jax.random.key(0)).params
    memory = () if algorithm.init_memory is None else (algorithm.init_memory(),)
    inputs = params, *memory, jnp.array([-0.4, 0.02] if "Mountain" in env_id else [0.1] * 4)
    seen = []

    def keep(distribution):
        seen.append(distribution)
        return sample(jax.random.key(0), distribution)

    algorithm.act(*inputs, jax.random.key(0), choose=keep)
    keys = jax.random.split(jax.random.key(1), 4000)
    act = jax.jit(jax.vmap(lambda key: sampled(algorithm.act)(*inputs, key)))
    actions = act(keys)[0] if memory else act(keys)
    (distribution,) = seen
    if env_id == "CartPole-v1":
        expected = jax.nn.softmax(distribution)
        share = jnp.bincount(actions, length=2) / 4000
        np.testing.assert_allclose(share, expected, atol=4 * 0.5 / np.sqrt(4000))
        return
    squash = jnp.tanh if name == "sac" else lambda x: jnp.clip(x, -1, 1)
    draws = jax.random.normal(jax.random.key(2), (4000, 1))
    expected = squash(distribution.mean + jnp.exp(distribution.log_std) * draws)
    for moment in (1, 2):
        x, y = (np.mean(np.asarray(a) ** moment) for a in (actions, expected))
        assert abs(x - y) < 4 * np.sqrt(2 / 4000)


def test_a_sampled_policy_is_evaluated_and_named(tmp_path):
    flags = "--num-envs 2 --num-steps 10 --hidden-sizes 4 --total-timesteps 200 --num-seeds 2"
    flags = [*flags.split(), "--env-params", "max_steps_in_episode=60"]
    out = ["--out", tmp_path / "a"]
    done = run_here("algorithms.reinforce", *flags, "--eval-policy", "sample", *out)
    assert "sampled policy, 100 episodes" in done.stdout and "greedy" not in done.stdout
    run_here("algorithms.reinforce", *flags, "--out", tmp_path / "b")
    means = {}
    for name in "ab":
        rows = np.genfromtxt(tmp_path / name / "evaluation.csv", delimiter=",", names=True)
        means[name] = [rows["episode_length"][rows["seed"] == seed].mean() for seed in (0, 1)]
    # A fresh policy is nearly the random one, of 22 steps; the mode of seed 1 pushes one way only.
    np.testing.assert_allclose(means["a"], 22, atol=6)
    assert means["b"][1] < 12
    assert (tmp_path / "a/metrics.csv").read_bytes() == (tmp_path / "b/metrics.csv").read_bytes()


def test_what_learns_no_distribution_is_refused(tmp_path):
    done = run_here("algorithms.dqn", "--eval-policy", "sample", "--out", tmp_path / "a", check=2)
    assert done.stderr.count("\n") == 1 and "dqn learns no distribution" in done.stderr
    assert not (tmp_path / "a").exists()
