"""shac.py: its actor and its critic against the equations, and values at time limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic_gradient import (
    central_differences,
    check_first_gradient,
    elu_mlp,
    first_moment,
    first_state,
    play,
)
from helpers import every_end, float64, gae_by_double_sum, small_config

from algorithms import shac
from algorithms.shac import td_error, value_loss, window_return
from common.environments.linear import LINEAR, Linear, System, make_system, mean_state, stage_cost
from common.normalization import normalize


@every_end
def test_the_return_of_a_window_by_hand(terminated, truncated, bootstraps):
    """The second of three steps ends an episode, or not; the window's last value counts anyway."""
    reward, next_value = jnp.array([2.0, 3.0, 5.0]), jnp.array([70.0, 80.0, 90.0])
    end = jnp.array([False, True, False])
    found = window_return(reward, next_value, end & terminated, end & truncated, 0.5)
    ends = terminated or truncated
    last = 5 + 0.5 * 90
    expected = 2 + 0.5 * (3 + 0.5 * 80 * bootstraps * ends) + (1 if ends else 0.25) * last
    np.testing.assert_allclose(found, expected)
    found = window_return(
        reward[:2], next_value[:2], end[:2] & terminated, end[:2] & truncated, 0.5
    )
    np.testing.assert_allclose(found, 2 + 0.5 * (3 + 0.5 * 80 * bootstraps))


@every_end
def test_td_error_by_hand(terminated, truncated, bootstraps):
    error = td_error(1.0, 3.0, 8.0, jnp.array(terminated), 0.5)
    np.testing.assert_allclose(error, 3 + 0.5 * 8 * bootstraps - 1)


def test_value_loss_by_hand():
    assert value_loss(1.0, 4.0) == 9.0
    assert jax.grad(value_loss)(1.0, 4.0) == -6.0


def test_with_one_step_and_the_exact_value_it_is_the_deterministic_policy_gradient():
    """dQ/du of the double integrator, with V = -xᵀ P x: -2 [(R + γ Bᵀ P B) u + γ Bᵀ P A x]."""
    with float64():
        system = jax.tree.map(np.asarray, make_system("DoubleIntegrator-linear"))
        P, x, gamma = np.array([[3.0, 1.0], [1.0, 2.0]]), jnp.array([0.7, -0.4]), 0.9
        no = jnp.zeros(1, bool)

        def one_step(u):
            next_x = mean_state(system, x, u)
            reward, next_value = -stage_cost(system, x, u)[None], -(next_x @ P @ next_x)[None]
            return window_return(reward, next_value, no, no, gamma)

        u = jnp.array([0.3])
        A, B, R = system.A, system.B, system.R
        exact = -2 * ((R + gamma * B.T @ P @ B) @ u + gamma * B.T @ P @ A @ x)
        np.testing.assert_allclose(jax.grad(one_step)(u), exact, rtol=1e-9)


def test_the_gradient_is_that_of_central_differences_with_values_at_all_ends():
    """The window of 30 steps has resets after 5, 17 and 30; V(s') is that of the target network."""

    def loss(config, state, transitions):
        obs = normalize(state.params.statistics, transitions.next_obs)
        next_value = elu_mlp(state.target_params, obs)[..., 0]
        total = 0.0
        for n, ends in enumerate([[4, 29], [16, 29], [29]]):
            start = 0
            for end in ends:
                powers = config.gamma ** jnp.arange(end - start + 2)
                total += powers[:-1] @ transitions.reward[start : end + 1, n]
                total += powers[-1] * next_value[end, n]
                start = end + 1
        return -total / 3 / 30

    check_first_gradient(shac, 3, loss, critic_hidden_sizes=(4,), num_minibatches=3, gamma=0.9)


def test_the_critic_learns_the_lambda_return_of_its_target_which_follows_it():
    """One minibatch of one pass. The target's params differ from the critic's."""
    with float64():
        fields = {"update_epochs": 1, "num_minibatches": 1, "max_grad_norm": 1e9, "gamma": 0.9}
        config, algorithm, state = first_state(shac, critic_hidden_sizes=(4,), **fields)
        target_params = jax.tree.map(lambda x: x + 0.2, state.target_params)
        state = state._replace(target_params=target_params)
        after, metrics = jax.jit(algorithm.update)(state, jnp.int32(0))
        transitions, _ = jax.jit(lambda: play(config, state, state.params.actor, 3))()
        obs, next_obs = (
            normalize(state.params.statistics, x) for x in (transitions.obs, transitions.next_obs)
        )
        value, next_value = (elu_mlp(target_params, x)[..., 0] for x in (obs, next_obs))
        error = transitions.reward + 0.9 * next_value - value
        done = np.asarray(transitions.truncated)
        decay = 0.9 * config.td_lambda
        sums = [gae_by_double_sum(np.asarray(error[:, n]), done[:, n], decay) for n in range(3)]
        target = value + np.stack(sums, 1)
        loss = lambda params: jnp.mean(jnp.square(elu_mlp(params, obs)[..., 0] - target))
        expected = central_differences(loss, state.critic_params)
        found = first_moment(after.critic_opt_state)
        np.testing.assert_allclose(metrics["value_loss"], loss(state.critic_params), rtol=1e-9)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
    np.testing.assert_allclose(metrics["value"], np.asarray(value).mean(), rtol=1e-9)
    trees = after.target_params, target_params, after.critic_params
    for new, old, learned in zip(*map(jax.tree.leaves, trees), strict=True):
        expected = 0.8 * np.asarray(learned) + 0.2 * np.asarray(old)
        np.testing.assert_allclose(new, expected, rtol=1e-9)


def test_a_time_limit_after_every_step_is_no_end(monkeypatch):
    """x' = x, reward -x², actions of no weight: V = -x² / (1 - γ), whose mean is -1/3 / (1 - γ)."""
    one, zero = np.ones((1, 1)), np.zeros(1)
    system = System(A=one, B=one, Q=one, R=one, noise=zero, start=np.ones(1))
    monkeypatch.setitem(LINEAR, "Cut-linear", Linear(lambda key: system, 1, 1e-6))
    config = shac.Config(
        env_id="Cut-linear",
        total_timesteps=30_000,
        num_envs=16,
        num_steps=4,
        gamma=0.9,
        critic_hidden_sizes=(16,),
        hidden_sizes=(),
    )
    algorithm = shac.make(config)

    def train(key):
        steps = jnp.arange(algorithm.num_updates)
        return jax.lax.scan(algorithm.update, algorithm.init(key), steps)[1]["value"]

    value = jax.jit(train)(jax.random.key(0))
    np.testing.assert_allclose(value[-200:].mean(), -1 / 3 / (1 - 0.9), rtol=0.05)


def test_an_environment_whose_step_has_no_gradient_is_refused():
    with pytest.raises(ValueError, match=r"^Fast-brax: no observation has a gradient .* needs one"):
        shac.make(small_config(shac, env_id="Fast-brax"))
