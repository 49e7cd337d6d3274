"""ddpg.py: its equations by hand, and what it learns."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    check_budget,
    check_continuous_probe,
    check_gradient,
    check_targets,
    first_continuous_update,
    parabola,
    relu_mlp,
    relu_q,
    replayed,
    small_continuous,
    states_of,
    trained,
)
from scipy.linalg import solve_discrete_are

from algorithms import ddpg
from algorithms.ddpg import make, ornstein_uhlenbeck, policy_loss, td_error
from common.environments.linear import LINEAR, Linear, double_integrator
from common.envs import make_env, map_actions, scale_action
from common.networks import Network, make_q_network

CRITIC, TARGET_CRITIC, TARGET = jnp.array([1.0, 0.25]), jnp.array([2.0, 0.4]), jnp.float32(0.6)
VALUE = 1 * 2 - (1 - 0.25 * 2) ** 2  # Q(s, a; φ)
NEXT_VALUE = 2 * 5 - (0.6 * 5 - 0.4 * 5) ** 2  # Q(s', μ(s'; θ⁻); φ⁻)


def error(critic_params, target_params, terminated=False):
    """The TD error from s = 2 by a = 1 to s' = 5, with reward 3, γ = 0.5 and μ(s) = θ s."""
    target, target_critic = target_params
    next_value = parabola(target_critic, 5.0, target * 5.0)
    return td_error(parabola(critic_params, 2.0, 1.0), 3.0, next_value, terminated, 0.5)


@pytest.mark.parametrize("terminated", [False, True])
def test_td_error_bootstraps_unless_terminated(terminated):
    with jax.numpy_rank_promotion("raise"):
        got = error(CRITIC, (TARGET, TARGET_CRITIC), jnp.array(terminated))
    np.testing.assert_allclose(got, 3 + 0.5 * NEXT_VALUE * (not terminated) - VALUE, rtol=1e-6)


def test_gradient_is_semi_gradient():
    """Only Q(s, a; φ) is differentiated, not the target."""
    gradient, target_gradient = jax.grad(error, argnums=(0, 1))(CRITIC, (TARGET, TARGET_CRITIC))
    np.testing.assert_allclose(gradient, [-2, -2 * (1 - 0.25 * 2) * 2], rtol=1e-6)
    assert not any(x.any() for x in target_gradient)


def test_policy_gradient_is_that_of_the_value_by_the_action_times_that_of_the_action():
    """∂Q/∂a = -2 (a - c1 s) and ∂μ/∂θ = s: at s = 2, θ = 0.6, a = 1.2."""
    gradient = jax.grad(lambda theta: policy_loss(parabola(CRITIC, 2.0, theta * 2.0)))(0.6)
    np.testing.assert_allclose(gradient, 2 * (1.2 - 0.25 * 2) * 2, rtol=1e-6)


@pytest.fixture(scope="module")
def first_update():
    return first_continuous_update(ddpg, num_keys=3, which_samples=2)


def test_the_critic_descends_the_squared_td_error_of_its_batch(first_update):
    """For all kinds of ends, and with the gradient of Q(s, a; φ) alone."""
    config, before, after, metrics, batch, _ = first_update
    target, target_critic = before.target_params
    next_value = relu_q(target_critic, batch.next_obs, jnp.tanh(relu_mlp(target, batch.next_obs)))
    targets = batch.reward + config.gamma * ~batch.terminated * next_value
    loss = lambda params: jnp.mean((targets - relu_q(params, batch.obs, batch.action)) ** 2)
    np.testing.assert_allclose(metrics["loss"], loss(before.critic_params), rtol=1e-5)
    check_gradient(after.critic_opt_state, loss, before.critic_params)


def test_the_actor_ascends_the_value_of_its_action(first_update):
    """Of the critic after its step, in the same batch."""
    _, before, after, _, batch, _ = first_update

    def loss(params):
        action = jnp.tanh(relu_mlp(params, batch.obs))
        return -relu_q(after.critic_params, batch.obs, action).mean()

    check_gradient(after.opt_state, loss, before.params)


def test_ornstein_uhlenbeck_noise_has_its_stationary_variance_and_memory():
    def step(x, key):
        x = ornstein_uhlenbeck(key, x, 0.2, 0.3)
        return x, x

    keys = jax.random.split(jax.random.key(0), 400)
    x = np.asarray(jax.lax.scan(step, jnp.zeros((2_000, 1)), keys)[1])[50:, :, 0]
    assert abs(x.mean()) < 0.005
    np.testing.assert_allclose(x.var(), 0.3**2 / (1 - 0.8**2), rtol=0.02)
    np.testing.assert_allclose((x[1:] * x[:-1]).mean() / x.var(), 0.8, atol=0.01)


def test_noise_with_theta_1_is_independent_and_gaussian():
    before = jnp.full((3, 2), 100.0)
    noise = ornstein_uhlenbeck(jax.random.key(0), before, 1.0, 0.5)
    np.testing.assert_allclose(noise, 0.5 * jax.random.normal(jax.random.key(0), (3, 2)))


def test_actions_are_scaled_to_the_bounds_and_kept_as_they_were():
    raw = make_env("Continuous-probe", 3)
    np.testing.assert_allclose(scale_action(raw, jnp.array([-1.0, 0, 1])), [-1, 1, 3])
    env = map_actions(raw, scale_action)
    action = jnp.array([[-1.0], [0.25], [1.0]])
    state = jax.jit(env.reset)(jax.random.key(0))
    _, kept = env.step(state, action, jax.random.key(1))
    _, given = raw.step(state, jnp.array([[-1.0], [1.5], [3.0]]), jax.random.key(1))
    np.testing.assert_array_equal(kept.action, action)
    np.testing.assert_array_equal(kept.reward, given.reward)


@pytest.fixture(scope="module")
def states():
    return states_of(make(small_continuous(ddpg, tau=0.25, ou_theta=0.1, exploration_noise=0.3)), 6)


def test_targets_start_equal_and_move_by_tau(states):
    check_targets(states, lambda state: (state.params, state.critic_params), tau=0.25)


def test_noise_continues_within_an_episode_and_restarts_with_one(states):
    for step, (before, after) in enumerate(pairwise(states)):
        transitions = replayed(after, 2_000 + 5 * step, 2_005 + 5 * step)
        ended = transitions.terminated | transitions.truncated
        assert (np.asarray(after.noise)[ended] == 0).all()
        moved = after.noise[~ended] - 0.9 * before.noise[~ended]
        assert (np.abs(moved) > 1e-6).all() and (np.abs(moved) < 0.3 * 5).all()
        greedy = np.tanh(relu_mlp(before.params, transitions.obs))
        expected = np.clip(greedy + np.asarray(after.noise), -1, 1)
        np.testing.assert_allclose(
            transitions.action[~ended], expected[~ended], rtol=1e-5, atol=1e-6
        )
    assert (np.asarray(states[0].noise) == 0).all()


def test_the_first_actions_are_uniform_over_the_range(states):
    actions = states[0].buffer.action[:2_000]
    counts = np.histogram(actions, bins=10, range=(-1, 1))[0]
    np.testing.assert_allclose(counts, 200, atol=4 * np.sqrt(200))


def test_act_is_the_mean_action_within_the_bounds(states):
    algorithm = make(small_continuous(ddpg))
    obs = jnp.eye(8)[4]
    action = algorithm.act(states[-1].params, obs, jax.random.key(0))
    expected = 1 + 2 * np.tanh(relu_mlp(states[-1].params, obs))
    np.testing.assert_allclose(action, expected, rtol=1e-5)


def test_the_budget_counts_every_environment_step():
    check_budget(make(small_continuous(ddpg, learning_starts=2_001)), 2_005, 3_000)


def values_of(config, state, obs, action):
    critic = make_q_network(make_env(config.env_id, 1), config.hidden_sizes)
    return critic.apply(state.critic_params, obs, action)


def test_it_learns_the_values_and_best_actions_of_the_probes():
    check_continuous_probe(ddpg, values_of)


@pytest.mark.slow
def test_a_linear_policy_finds_the_gains_of_riccati(monkeypatch):
    """u = -K x on the double integrator, discounted, to 5 %, on average over the second half of the
    training: with its critic the policy drifts slowly around the best one. Episodes of 5 steps keep
    the states of early policies near; the weights are scaled so that Adam's steps are small for the
    gains."""

    def linear(env, hidden_sizes, num_outputs):
        def apply(w, obs):
            return jnp.arctanh(jnp.clip(0.1 * obs @ w, -0.99, 0.99))  # of which the policy is tanh

        return Network(lambda key: 1e-3 * jax.random.normal(key, (2, num_outputs)), apply)

    system, gamma, bound = double_integrator(), 0.9, 3.0
    monkeypatch.setitem(LINEAR, "Short-linear", Linear(lambda key: system, 5, bound))
    monkeypatch.setattr(ddpg, "make_network", linear)
    algorithm = make(
        ddpg.Config(
            env_id="Short-linear",
            total_timesteps=80_000,
            learning_starts=4,
            buffer_size=10_000,
            gamma=gamma,
            tau=0.05,
            exploration_noise=0.2,
        )
    )
    run_state, weights = trained(algorithm, [0, 1], 10_000, long=True), []
    for start in range(10_000, 19_500, 500):
        run_state = trained(algorithm, [0, 1], start + 500, start, run_state, long=True)
        weights.append(np.array(run_state.state.params)[..., 0])
    gains = -0.1 * bound * np.mean(weights, axis=0)
    A, B, Q, R = gamma**0.5 * system.A, gamma**0.5 * system.B, system.Q, system.R
    P = solve_discrete_are(A, B, Q, R)
    K = np.linalg.solve(R + B.T @ P @ B, B.T @ P @ A)[0]
    error = np.linalg.norm(gains - K, axis=-1) / np.linalg.norm(K)
    assert (error < 0.05).all()
