"""td3.py: its equations by hand, and what it learns."""

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
    pairs,
    relu_mlp,
    relu_q,
    replayed,
    small_continuous,
    states_of,
    twin_critic_values,
)

from algorithms import td3
from algorithms.td3 import make, smoothed_action, td_error
from common.buffers import uniform_buffer
from common.envs import make_env
from common.networks import make_q_network

CRITICS, TARGET = jnp.array([[1.0, 0.25], [3.0, 0.5]]), jnp.float32(0.1)
VALUES = np.array([1 * 2 - (0.5 - 0.25 * 2) ** 2, 3 * 2 - (0.5 - 0.5 * 2) ** 2])  # Q(s, a; φᵢ)


def q(params, obs, action):
    """c0 obs - (a - c1 obs)² of two critics, for numbers; [2]."""
    return params[:, 0] * obs - (action - params[:, 1] * obs) ** 2


def next_values(targets, action):
    """Q(s', a; φᵢ⁻)."""
    return [c0 * 5 - (action - c1 * 5) ** 2 for c0, c1 in np.asarray(targets)]


def errors(critic_params, target_params, noise, terminated=False):
    """The TD errors [2] from s = 2 by a = 0.5 to s' = 5, with reward 3, γ = 0.5 and μ(s) = θ s."""
    target, target_critics = target_params
    next_action = smoothed_action(target * 5.0, noise, 10.0)
    next_value = jnp.min(q(target_critics, 5.0, next_action))
    return td_error(q(critic_params, 2.0, 0.5), 3.0, next_value, terminated, 0.5)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("noise, action", [(0.25, 0.75), (-0.5, 0), (0.75, 1), (-2, -1)])
@pytest.mark.parametrize("terminated", [False, True])
def test_td_error_bootstraps_from_the_smoothed_action_unless_terminated(
    order, noise, action, terminated
):
    """μ(s'; θ⁻) = 0.5, and either critic may be smaller."""
    targets = jnp.array([[2.0, 0.4], [1.0, 0.3]])[::order]
    got = errors(CRITICS, (TARGET, targets), jnp.float32(noise), jnp.array(terminated))
    target = 3 + 0.5 * (not terminated) * min(next_values(targets, action))
    np.testing.assert_allclose(got, target - VALUES, rtol=1e-5)


def test_gradient_is_semi_gradient_and_each_critic_has_its_own():
    targets = jnp.array([[2.0, 0.4], [1.0, 0.3]])
    jacobian, target_jacobian = jax.jacobian(errors, argnums=(0, 1))(
        CRITICS, (TARGET, targets), 0.0
    )
    np.testing.assert_allclose(jacobian[0], [[-2, 0], [0, 0]], atol=1e-6)
    np.testing.assert_allclose(jacobian[1], [[0, 0], [-2, 2]], atol=1e-6)  # -2 (a - c1 s) s
    assert not any(x.any() for x in target_jacobian)


@pytest.mark.parametrize(
    "action, noise, expected",
    [(0.5, 0.25, 0.75), (0.5, 2.0, 0.8), (0.5, -2.0, 0.2), (0.9, 0.25, 1.0), (-0.9, -0.2, -1.0)],
)
def test_smoothed_action_clips_the_noise_at_c_and_the_action_at_its_bounds(action, noise, expected):
    """c = 0.3."""
    np.testing.assert_allclose(smoothed_action(action, noise, 0.3), expected, rtol=1e-6)


def test_smoothing_noise_is_gaussian_within_its_bounds():
    normal = jax.random.normal(jax.random.key(0), (100_000,))
    noise = np.asarray(smoothed_action(0.0, 0.2 * normal, 0.3))
    assert noise.min() == np.float32(-0.3) and noise.max() == np.float32(0.3)
    inside = np.abs(noise) < 0.3
    np.testing.assert_allclose(inside.mean(), 0.8664, atol=0.005)  # P(|ε| < 1.5 σ)
    np.testing.assert_allclose((np.abs(noise) < 0.2).mean(), 0.6827, atol=0.005)
    assert not smoothed_action(0.0, 0.0 * normal, 0.5).any()


def test_both_critics_learn_the_smaller_value_of_the_smoothed_action():
    """With the squared errors of their batch, for all kinds of ends. Half of the noise is clipped,
    and either critic is the smaller one somewhere."""
    fields = {"policy_frequency": 1, "policy_noise": 0.4, "noise_clip": 0.3}
    update = first_continuous_update(td3, num_keys=3, which_samples=1, **fields)
    config, before, after, metrics, batch, keys = update
    target, target_critics = before.target_params
    noise = np.clip(0.4 * np.asarray(jax.random.normal(keys[2], batch.action.shape)), -0.3, 0.3)
    next_action = np.clip(np.tanh(relu_mlp(target, batch.next_obs)) + noise, -1, 1)
    next_values = np.asarray(relu_q(target_critics, batch.next_obs, next_action))
    assert set(next_values.argmin(-1)) == {0, 1}
    targets = batch.reward + config.gamma * ~batch.terminated * next_values.min(-1)

    def loss(params):
        errors = targets[:, None] - relu_q(params, batch.obs, batch.action)
        return jnp.mean(jnp.sum(errors**2, axis=-1))

    np.testing.assert_allclose(metrics["loss"], loss(before.critic_params), rtol=1e-5)
    check_gradient(after.critic_opt_state, loss, before.critic_params)


FIELDS = {"tau": 0.25, "policy_frequency": 3, "exploration_noise": 0.1}


@pytest.fixture(scope="module")
def states():
    return states_of(make(small_continuous(td3, **FIELDS)), 6)


def test_targets_start_equal_and_move_by_tau(states):
    check_targets(states, lambda state: (state.params, state.critic_params), tau=0.25)


def test_critics_begin_different_and_stay_so(states):
    for state in (states[0], states[-1]):
        for w, _ in (*state.critic_params, *state.target_params[1]):
            assert not np.isclose(w[0], w[1]).any()


def test_an_update_is_three_critic_steps_and_then_one_of_the_actor(states):
    for step, state in enumerate(states):
        assert state.critic_opt_state[0].count == 3 * step
        assert state.opt_state[0].count == step


def test_behaviour_is_the_actor_with_gaussian_noise(states):
    """15 steps an update, after 2,010 at random; 90 samples of noise, few of them clipped."""
    noise = []
    for step, (before, after) in enumerate(pairwise(states)):
        transitions = replayed(after, 2_010 + 15 * step, 2_025 + 15 * step)
        noise.append(transitions.action - np.tanh(relu_mlp(before.params, transitions.obs)))
    assert len(np.unique(noise)) > 80
    np.testing.assert_allclose(np.std(noise), 0.1, rtol=0.25)
    np.testing.assert_allclose(np.mean(noise), 0, atol=0.035)


def test_the_actor_follows_the_first_critic(states):
    """One step of Adam from rest is the sign of the gradient times the learning rate."""
    config = small_continuous(td3, **FIELDS)
    before, after = states[0], states[1]
    critic = make_q_network(make_env(config.env_id, 1), config.hidden_sizes)
    key_sample = jax.random.split(jax.random.fold_in(before.key, 0), 3)[1]
    buffer = uniform_buffer(config.buffer_size, 15, 3 * config.batch_size)
    batch = buffer.sample(after.buffer, key_sample, 134 + 1)
    obs = batch.obs[-config.batch_size :]

    def loss(params, number):
        critic_params = jax.tree.map(lambda x: x[number], after.critic_params)
        return -critic.apply(critic_params, obs, jnp.tanh(relu_mlp(params, obs))).mean()

    for number, same in ((0, True), (1, False)):
        signs = jax.tree.map(jnp.sign, jax.grad(loss)(before.params, number))
        steps = jax.tree.map(lambda x, y: jnp.sign(y - x), before.params, after.params)
        agree = [np.mean(x == -y) for x, y in pairs(signs, steps)]
        assert (min(agree) > 0.99) == same, (number, agree)


def test_the_budget_counts_every_environment_step():
    algorithm = make(small_continuous(td3, learning_starts=2_001, total_timesteps=3_009))
    check_budget(algorithm, 2_010, 3_000)  # whole updates of 2 x 5 steps


def test_it_learns_the_values_and_best_actions_of_the_probes():
    check_continuous_probe(td3, twin_critic_values)
