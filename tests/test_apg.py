"""apg.py: its gradient against central differences, what it loses, and the gain that it finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic_gradient import check_first_gradient, first_state, play
from helpers import float64, keys, small_config
from scipy.optimize import minimize

from algorithms import apg
from algorithms.apg import discounts, window_return
from common.environments.linear import double_integrator


@pytest.mark.parametrize("terminated, truncated", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_the_return_of_a_window_by_hand(terminated, truncated):
    """The second of four steps ends an episode, or not: what follows is discounted anew."""
    reward, end = jnp.array([2.0, 3.0, 5.0, 7.0]), jnp.array([False, True, False, False])
    found = window_return(reward, end & bool(terminated), end & bool(truncated), 0.5)
    later = 5 + 0.5 * 7
    np.testing.assert_allclose(
        found, 2 + 0.5 * 3 + (later if terminated or truncated else 0.25 * later)
    )


def test_discounts_begin_again_behind_an_end():
    done = jnp.array([False, False, True, True, False])
    np.testing.assert_allclose(discounts(done, 0.9), [1, 0.9, 0.81, 1, 1])


def by_hand(reward, done, gamma):
    """Σ γ^k r of one window, by a loop."""
    total, discount = 0.0, 1.0
    for t in range(len(reward)):
        total += discount * reward[t]
        discount = jnp.where(done[t], 1.0, gamma * discount)
    return total


def test_the_gradient_is_that_of_central_differences_over_ends_of_episodes():
    """The window of 30 steps has resets after 5, 17 and 30."""

    def loss(config, state, transitions):
        reward, done = transitions.reward, transitions.truncated
        returns = [by_hand(reward[:, n], done[:, n], config.gamma) for n in range(3)]
        return -sum(returns) / 3 / 30

    check_first_gradient(apg, 2, loss)


def test_the_next_window_begins_where_the_last_one_ended():
    with float64():
        config, algorithm, state = first_state(apg)
        after, metrics = jax.jit(algorithm.update)(state, jnp.int32(0))
        window = jax.jit(lambda state: play(config, state, state.params.actor, 2))
        transitions, env_state = window(state)
        returns = [
            by_hand(transitions.reward[:, n], transitions.truncated[:, n], config.gamma)
            for n in range(3)
        ]
    np.testing.assert_allclose(after.env.obs, env_state.obs, rtol=1e-9)
    np.testing.assert_array_equal(after.env.inner.time, [25, 13, 0])
    np.testing.assert_allclose(metrics["value"], np.mean(returns), rtol=1e-9)
    mean = np.asarray(transitions.obs).mean((0, 1))
    np.testing.assert_allclose(after.params.statistics.mean, mean, rtol=1e-9)
    assert metrics["episodes"] == 3 == transitions.truncated.sum()


@pytest.mark.parametrize("squash", [False, True])
def test_a_clip_at_the_bounds_loses_the_gradient_and_is_reported(squash):
    """Of normal actions with σ = 1, in units of their bounds, 31.7 % are beyond these."""
    fields = {
        "env_id": "DoubleIntegrator-linear",
        "squash": squash,
        "init_std": 1.0,
        "hidden_sizes": (),
    }
    config = small_config(apg, num_envs=2_000, num_steps=2, total_timesteps=4_000, **fields)
    algorithm = apg.make(config)
    update = jax.jit(lambda key: algorithm.update(algorithm.init(key), jnp.int32(0))[1]["lost"])
    np.testing.assert_allclose(update(jax.random.key(0)), 0 if squash else 0.3173, atol=0.02)


@pytest.mark.parametrize(
    "env_id", ["Fast-brax", "PointRobot-misc", "MountainCarContinuous-v0", "CartPole-v1"]
)
def test_environments_without_gradients_are_refused(env_id):
    """Fast-brax accelerates if an action is above 0, PointRobot rewards if the goal is near: such
    conditions have no derivative but 0."""
    with pytest.raises(ValueError, match=f"^{env_id}.* this algorithm needs "):
        apg.make(small_config(apg, env_id=env_id))


def expected_cost(gain, horizon):
    """Of u = -gain x, over the first `horizon` steps of the double integrator, by moments."""
    system, K = double_integrator(), np.array([gain])
    closed, weight = system.A - system.B @ K, system.Q + K.T @ system.R @ K
    moment, total = np.diag(system.start**2 / 3), 0.0
    for _ in range(horizon):
        total += np.trace(weight @ moment)
        moment = closed @ moment @ closed.T + np.diag(system.noise**2)
    return total


def test_the_gain_of_a_linear_policy_is_the_best_one():
    """Of the double integrator, within 1 % of the optimum over the 20 steps of an episode, which is
    itself within 1.6 % of Riccati's gain."""
    found = minimize(expected_cost, [0.4, 1.2], 20, method="Nelder-Mead", options={"xatol": 1e-6})
    config = apg.Config(
        env_id="DoubleIntegrator-linear",
        total_timesteps=256_000,
        num_envs=64,
        num_steps=20,
        learning_rate=1e-2,
        gamma=1.0,
        norm_obs=False,
        squash=False,
        init_std=0.1,
        hidden_sizes=(),
    )
    algorithm = apg.make(config)

    def train(key):
        steps = jnp.arange(algorithm.num_updates)
        return jax.lax.scan(algorithm.update, algorithm.init(key), steps)[0].params.actor

    [(weights, _)], _ = jax.jit(jax.vmap(train))(keys(0, 1))
    gains = -3 * weights[..., 0]  # the bound of actions is 3
    np.testing.assert_allclose(gains, [found.x] * 2, rtol=0.01)
    np.testing.assert_allclose(found.x, [0.422082, 1.243929], rtol=0.016)
