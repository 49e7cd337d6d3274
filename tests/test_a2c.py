"""a2c.py: its equations by hand, its gradient against that of PPO, and what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import check_actor_critic_probe, check_always_cut, pairs, small_config

from algorithms import a2c, ppo
from algorithms.a2c import policy_loss, td_error, value_loss
from common.envs import rollout


@pytest.mark.parametrize("terminated", [False, True])
def test_td_error_by_hand(terminated):
    error = td_error(1.0, 3.0, 8.0, jnp.array(terminated), 0.5)
    np.testing.assert_allclose(error, 3 + 0.5 * 8 * (not terminated) - 1)


def test_losses_by_hand():
    assert policy_loss(-1.5, 2.0) == 3.0
    assert jax.grad(policy_loss)(-1.5, 2.0) == -2.0
    assert value_loss(1.0, 4.0) == 4.5
    assert jax.grad(value_loss)(1.0, 4.0) == -3.0


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("norm_adv", [False, True])
def test_the_first_gradient_of_ppo_is_that_of_a2c(monkeypatch, env_id, norm_adv):
    """On the same rollout, in one epoch of one minibatch: Adam's first moment is the gradient."""

    def same(env, policy, state, key, num_steps):
        return rollout(env, policy, state, jax.random.key(5), num_steps)

    moments = []
    for module, fields in ((a2c, {}), (ppo, {"update_epochs": 1, "num_minibatches": 1})):
        monkeypatch.setattr(module, "rollout", same)
        fields |= {
            "num_envs": 4,
            "norm_adv": norm_adv,
            "max_grad_norm": 0.5,
            "gae_lambda": 0.95,
            "env_id": env_id,
        }
        algorithm = module.make(small_config(module, **fields))
        state = jax.jit(algorithm.init)(jax.random.key(0))
        state, _ = jax.jit(algorithm.update)(state, jnp.int32(0))
        moments.append(optax.tree_utils.tree_get(state.opt_state, "mu"))
    for mine, other in pairs(*moments):
        assert np.any(mine)
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-6)


def test_a_time_limit_after_every_step_is_no_end():
    check_always_cut(a2c, total_timesteps=60_000, num_steps=16, learning_rate=1e-2)


@pytest.mark.parametrize("name", ["Together-probe", "ResetTrap-probe"])
def test_it_learns_the_values_and_best_actions_of_the_probes(name):
    fields = {
        "total_timesteps": 60_000,
        "num_steps": 16,
        "learning_rate": 1e-2,
        "max_grad_norm": 10.0,
    }
    check_actor_critic_probe(a2c, name, **fields)
