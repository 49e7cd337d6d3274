"""a2c.py: its equations by hand, its gradient beside PPO's, and what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import small_config, trained
from probes import GAMMA, PROBES

from algorithms import a2c, ppo
from algorithms.a2c import Config, make, policy_loss, value_loss
from common.envs import make_env, rollout
from common.networks import network_for


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
        fields |= {"num_envs": 4, "norm_adv": norm_adv, "max_grad_norm": 0.5, "env_id": env_id}
        algorithm = module.make(small_config(module, **fields))
        state = jax.jit(algorithm.init)(jax.random.key(0))
        state, _ = jax.jit(algorithm.update)(state, jnp.int32(0))
        moments.append(optax.tree_utils.tree_get(state.opt_state, "mu"))
    for mine, other in zip(*map(jax.tree.leaves, moments), strict=True):
        assert np.any(mine)
        np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", PROBES)
def test_it_learns_the_values_of_the_probe(name):
    config = Config(
        env_id=name,
        total_timesteps=60_000,
        num_envs=4,
        num_steps=16,
        learning_rate=1e-2,
        gamma=GAMMA,
        ent_coef=0.0,
        max_grad_norm=10.0,
        hidden_sizes=(16,),
    )
    algorithm = make(config)
    state = trained(algorithm, [0, 1], algorithm.num_updates).state
    obs = jnp.arange(len(PROBES[name][0][2]))
    critic = network_for(make_env(name, 1), config.hidden_sizes, 1, jnp.tanh)
    for seed in range(2):
        mine = jax.tree.map(lambda x, seed=seed: x[seed], state)
        values = critic.apply(mine.critic, obs)[:, 0]
        for s, value in PROBES[name][1].items():
            assert abs(values[s] - value) <= 0.05 * max(abs(value), 2), (s, values[s])
        action = lambda s, mine=mine: int(algorithm.act(mine.params, obs[s], jax.random.key(0)))
        if name == "ByAction-probe":
            assert action(0) == 1
        if name == "ByBoth-probe":
            assert [action(0), action(1)] == [0, 1]
