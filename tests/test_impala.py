"""impala.py: its equations by hand, its update against them and against that of A2C, and what it
learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    check_actor_critic_probe,
    check_always_cut,
    every_end,
    float64,
    pairs,
    random_rollout,
    small_config,
    tanh_mlp,
)

from algorithms import a2c, impala
from algorithms.impala import next_targets, policy_loss, td_error, value_loss, weights
from common.envs import make_env


@every_end
def test_td_error_by_hand(terminated, truncated, bootstraps):
    error = td_error(1.0, 3.0, 8.0, jnp.array(terminated), 0.5)
    np.testing.assert_allclose(error, 3 + 0.5 * 8 * bootstraps - 1)


@pytest.mark.parametrize(
    "correction, expected",
    [
        ("vtrace", ([0.5, 1.0, 2.0], [0.5, 1.0, 2.0], [0.5, 1.0, 1.5])),
        ("one_step", ([0.5, 1.0, 2.0], [1, 1, 1], [1, 1, 1])),
        ("none", ([1, 1, 1], [1, 1, 1], [1, 1, 1])),
    ],
)
def test_weights_by_hand(correction, expected):
    """π / μ is 1/2, 1 and 3, ρ̄ = 2 and c̄ = 3/2."""
    log_prob, old_log_prob = jnp.log(jnp.array([[0.1, 0.4, 0.6], [0.2, 0.4, 0.2]]))
    got = weights(log_prob, old_log_prob, 2.0, 1.5, correction)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@every_end
def test_next_targets_by_hand(terminated, truncated, bootstraps):
    """v of the next step is that of another episode where this one is done; there V(s') stands, as
    it does at the end of the rollout."""
    done = jnp.array([False, terminated or truncated, False])
    got = next_targets(jnp.array([1.0, 2.0, 3.0]), jnp.array([10.0, 20.0, 30.0]), done)
    np.testing.assert_array_equal(got, [2, 20 if terminated or truncated else 3, 30])


def test_losses_by_hand():
    assert policy_loss(-1.5, 0.5, 2.0) == 1.5
    assert jax.grad(policy_loss)(-1.5, 0.5, 2.0) == -1.0
    assert value_loss(1.0, 4.0) == 4.5
    assert jax.grad(value_loss)(1.0, 4.0) == -3.0


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_without_lag_an_update_is_that_of_a2c(monkeypatch, env_id):
    """With all kinds of ends, at λ = 1. Weights are 1, so bounds of at least 1 change nothing."""
    states = []
    for module, own in ((a2c, {}), (impala, {"policy_lag": 0, "rho_bar": 1.5})):
        monkeypatch.setattr(module, "rollout", random_rollout)
        fields = {"env_id": env_id, "num_envs": 4, "num_steps": 20, "norm_reward": True} | own
        fields["learning_rate"] = 2e-3
        with float64():
            algorithm = module.make(small_config(module, **fields))
            state = jax.jit(algorithm.init)(jax.random.key(0))
            states.append(jax.jit(algorithm.update)(state, jnp.int32(0)))
    (parent, parent_metrics), (state, metrics) = states
    for name in ("params", "critic_params", "opt_state", "reward_scale"):
        for got, want in pairs(getattr(state, name), getattr(parent, name)):
            np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-9)
    assert metrics.pop("weight") == 1
    for name, want in parent_metrics.items():
        np.testing.assert_allclose(metrics[name], want, rtol=1e-6)


LAG = 2


@pytest.mark.parametrize("correction", ["vtrace", "one_step", "none"])
def test_an_update_descends_its_equation(monkeypatch, correction):
    """The actors have the parameters of two updates ago; each moment of Adam is .9 of the one
    before and .1 of the gradient."""
    monkeypatch.setattr(impala, "rollout", random_rollout)
    with float64():
        config = small_config(
            impala,
            policy_lag=LAG,
            correction=correction,
            rho_bar=1.2,
            c_bar=0.9,
            gae_lambda=0.95,
            **{"num_envs": 3, "num_steps": 9, "hidden_sizes": (8,), "total_timesteps": 270},
            **{"learning_rate": 0.3, "max_grad_norm": 1e6, "norm_adv": False},
        )
        algorithm = impala.make(config)
        update, state = jax.jit(algorithm.update), jax.jit(algorithm.init)(jax.random.key(0))
        actors = [state.params.actor] * (LAG + 1)
        for step in range(6):
            before, (state, metrics) = state, update(state, jnp.int32(step))
            old_mean, mean = (optax.tree_utils.tree_get(s.opt_state, "mu") for s in (before, state))
            got = jax.tree.map(lambda old, new: (new - 0.9 * old) / 0.1, old_mean, mean)
            want, weight = gradient(before, actors[0], config, step)
            for x, y in pairs(got, want):
                np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-9)
            np.testing.assert_allclose(metrics["weight"], weight, rtol=1e-6)
            actors = [*actors[1:], state.params.actor]
        assert (weight < 0.98) == (correction != "none")  # the lag shows


def gradient(state, old_actor, config, step):
    """∇ of the mean of -ρ ln π (r + γ v_s+1 - V) + c₁ ½ (V - v_s)² - c₂ H, and the mean ρ; each v_s
    a sum over the steps up to the next end."""
    env = make_env(config.env_id, config.num_envs)
    policy = lambda obs, key: jax.random.categorical(key, tanh_mlp(old_actor, obs))
    key = jax.random.fold_in(state.key, step)
    _, transitions, _ = random_rollout(env, policy, state.env, key, config.num_steps)
    done = np.asarray(transitions.terminated | transitions.truncated)
    value = np.asarray(tanh_mlp(state.critic_params, transitions.obs))[..., 0]
    next_value = np.asarray(tanh_mlp(state.critic_params, transitions.next_obs))[..., 0]
    next_value = next_value * ~np.asarray(transitions.terminated)
    error = np.asarray(transitions.reward) + config.gamma * next_value - value
    log_prob = log_probability(state.params.actor, transitions)[0]
    ratio = np.exp(log_prob - log_probability(old_actor, transitions)[0])
    rho = np.ones_like(value) if config.correction == "none" else np.minimum(1.2, ratio)
    corrects = config.correction == "vtrace"
    error_weight = rho if corrects else np.ones_like(value)
    trace = 0.95 * (np.minimum(0.9, ratio) if corrects else np.ones_like(value))
    target, advantage = value.copy(), np.zeros_like(value)
    num_steps, num_envs = value.shape
    for env_index in range(num_envs):
        for s in range(num_steps):
            product = 1.0
            for t in range(s, num_steps):
                target[s, env_index] += product * error_weight[t, env_index] * error[t, env_index]
                product *= config.gamma * trace[t, env_index]
                if done[t, env_index]:
                    break
        for s in range(num_steps):
            is_cut = done[s, env_index] or s + 1 == num_steps
            following = next_value[s, env_index] if is_cut else target[s + 1, env_index]
            total = transitions.reward[s, env_index] + config.gamma * following
            advantage[s, env_index] = total - value[s, env_index]

    def loss(network_params):
        actor, critic = network_params
        log_prob, entropy = log_probability(actor, transitions)
        errors = tanh_mlp(critic, transitions.obs)[..., 0] - target
        total = jnp.mean(-rho * log_prob * advantage) + config.vf_coef * jnp.mean(errors**2) / 2
        return total - config.ent_coef * entropy.mean()

    return jax.grad(loss)((state.params.actor, state.critic_params)), rho.mean()


def log_probability(actor, transitions):
    """ln π(a | s) and H(π(s)), [T, N]."""
    log_probs = jax.nn.log_softmax(tanh_mlp(actor, transitions.obs))
    log_prob = jnp.take_along_axis(log_probs, transitions.action[..., None], axis=-1)[..., 0]
    return log_prob, -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)


FAST = {
    "total_timesteps": 60_000,
    "num_steps": 16,
    "learning_rate": 1e-2,
    "max_grad_norm": 10.0,
    "policy_lag": 2,
}


def test_a_time_limit_after_every_step_is_no_end():
    check_always_cut(impala, **FAST)


@pytest.mark.parametrize(
    "name", [pytest.param("Together-probe", marks=pytest.mark.slow), "ResetTrap-probe"]
)
def test_it_learns_the_values_and_best_actions_of_the_probes(name):
    check_actor_critic_probe(impala, name, **FAST)
