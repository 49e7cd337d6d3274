"""What benchmarks/arms.py measures, on small runs, and its arithmetic."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algorithms import agent57
from benchmarks import arms

CONFIG = agent57.Config(
    env_id="DeepSea2-bsuite",
    total_timesteps=400,
    num_envs=2,
    num_steps=4,
    burn_in=0,
    gradient_steps=1,
    learning_starts=16,
    buffer_size=64,
    batch_size=2,
    num_policies=3,
    num_neighbors=1,
    episodic_memory_size=2,
    embedding_size=4,
    hidden_sizes=(4,),
    memory_size=4,
)


@pytest.mark.slow
def test_a_fixed_arm_plays_every_episode_and_is_the_best():
    def last_metrics(arm):
        with mock.patch.multiple(agent57, **arms.fixed_arm(arm)):
            algorithm = agent57.make(CONFIG)
            state = algorithm.init(jax.random.key(0))
            return jax.lax.scan(algorithm.update, state, jnp.arange(3))[1]

    metrics = jax.jit(jax.vmap(last_metrics))(jnp.arange(3))
    np.testing.assert_array_equal(metrics["arm"][:, 1:], [[0, 0], [1, 1], [2, 2]])
    np.testing.assert_array_equal(metrics["best_arm"][:, 1:], [[0, 0], [1, 1], [2, 2]])


@pytest.mark.slow
def test_the_bandit_and_each_arm_are_evaluated_and_the_file_is_as_it_was():
    before = agent57.choose_arm, agent57.mean_returns
    returns = arms.final_returns(CONFIG, np.arange(2))
    assert returns.shape == (4, 2) and (returns <= 0.99 + 1e-6).all() and (returns >= -0.011).all()
    assert before == (agent57.choose_arm, agent57.mean_returns)


def test_a_line_by_hand():
    line = arms.line("Catch-bsuite", 10, np.array([[0.8, 1.0], [0.0, 0.2], [1.0, 1.0]]))
    assert line["agent57"] == 0.9 and line["worst_seed"] == 0.8
    assert line["arm_0"] == 0.1 and line["arm_1"] == 1.0 and line["below_best_arm"] == "10.0 %"
    line = arms.line("DeepSea10-bsuite", 10, np.array([[-0.5], [-0.4], [-1.0]]))
    assert line["below_best_arm"] == "25.0 %"
