"""sac.py: its equations by hand, and what it learns."""

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
    relu_mlp,
    relu_q,
    replayed,
    small_continuous,
    states_of,
    twin_critic_values,
)
from probes import CONTINUOUS_VALUES, GAMMA

from algorithms import sac
from algorithms.sac import (
    correlated_noise,
    make,
    policy_loss,
    squashed_log_prob,
    td_error,
    temperature_loss,
)

CRITICS, PARAMS, NOISE, ALPHA = jnp.array([[1.0, 0.25], [3.0, 0.5]]), 0.1, 0.25, 0.3
VALUES = np.array([1 * 2 - (0.5 - 0.25 * 2) ** 2, 3 * 2 - (0.5 - 0.5 * 2) ** 2])  # Q(s, a; φᵢ)


def q(params, obs, action):
    """c0 obs - (a - c1 obs)² of two critics, for numbers; [2]."""
    return params[:, 0] * obs - (action - params[:, 1] * obs) ** 2


def policy(params, obs, noise):
    """An action, and for its log-probability a number that is easy to follow."""
    return params * obs + noise, 10 * noise


def errors(critic_params, target_params, params, alpha, terminated=False):
    """The TD errors [2] from s = 2 by a = 0.5 to s' = 5, with reward 3 and γ = 0.5."""
    next_action, log_prob = policy(params, 5.0, NOISE)
    next_value = jnp.min(q(target_params, 5.0, next_action)) - alpha * log_prob
    return td_error(q(critic_params, 2.0, 0.5), 3.0, next_value, terminated, 0.5)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("terminated", [False, True])
def test_td_error_has_the_value_and_the_entropy_unless_terminated(order, terminated):
    """a' = 0.1 x 5 + 0.25 = 0.75, ln π = 2.5; the values of a' are 8.4375 and 4.4375."""
    targets = jnp.array([[2.0, 0.4], [1.0, 0.3]])[::order]
    got = errors(CRITICS, targets, PARAMS, ALPHA, jnp.array(terminated))
    target = 3 + 0.5 * (not terminated) * (5 - (0.75 - 1.5) ** 2 - 0.3 * 2.5)
    np.testing.assert_allclose(got, target - VALUES, rtol=1e-5)


def test_gradient_is_semi_gradient_and_each_critic_has_its_own():
    targets = jnp.array([[2.0, 0.4], [1.0, 0.3]])
    jacobian, *others = jax.jacobian(errors, argnums=(0, 1, 2, 3))(CRITICS, targets, PARAMS, ALPHA)
    np.testing.assert_allclose(jacobian[0], [[-2, 0], [0, 0]], atol=1e-6)
    np.testing.assert_allclose(jacobian[1], [[0, 0], [-2, 2]], atol=1e-6)  # -2 (a - c1 s) s
    assert not any(x.any() for x in others)


def test_policy_loss_is_entropy_at_its_temperature_less_the_smaller_value():
    """a = 0.1 x 2 + 0.25 = 0.45: Q is 2 - 0.05² and 6 - 0.55², and ∂Q₁/∂θ = -2 (a - 0.5) s."""

    def loss(params):
        action, log_prob = policy(params, 2.0, NOISE)
        return policy_loss(jnp.min(q(CRITICS, 2.0, action)), log_prob, ALPHA)

    np.testing.assert_allclose(loss(PARAMS), 0.3 * 2.5 - (2 - 0.05**2), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(loss)(PARAMS), -0.2, rtol=1e-5)


# One update, against its losses and their gradients worked out with other formulas.


def sampled(params, obs, noise):
    """tanh(m + σ ε) and its log-probability, with tanh' = 4 / (eˣ + e⁻ˣ)²."""
    mean, log_std = jnp.split(relu_mlp(params, obs), 2, axis=-1)
    x = mean + jnp.exp(log_std) * noise
    log_slope = 2 * (jnp.log(2) - jnp.logaddexp(x, -x))
    log_prob = -(noise**2) / 2 - jnp.log(2 * jnp.pi) / 2 - log_std - log_slope
    return jnp.tanh(x), log_prob.sum(-1)


@pytest.fixture(scope="module")
def first_update():
    return first_continuous_update(sac, num_keys=4, which_samples=2, alpha=0.4)


def policy_noises(update):
    """ε of the actor's actions and of the next actions, [2, B, A]."""
    return jax.random.normal(update.keys[3], (2, *update.batch.action.shape))


def test_both_critics_learn_the_smaller_value_and_the_entropy(first_update):
    """With the squared errors of their batch, for all kinds of ends. Either critic is the smaller
    one somewhere."""
    config, before, after, metrics, batch, _ = first_update
    next_action, log_prob = sampled(before.params, batch.next_obs, policy_noises(first_update)[1])
    next_values = np.asarray(relu_q(before.target_params, batch.next_obs, next_action))
    assert set(next_values.argmin(-1)) == {0, 1}
    soft_values = next_values.min(-1) - 0.4 * log_prob
    targets = batch.reward + config.gamma * ~batch.terminated * soft_values

    def loss(params):
        errors = targets[:, None] - relu_q(params, batch.obs, batch.action)
        return jnp.mean(jnp.sum(errors**2, axis=-1))

    np.testing.assert_allclose(metrics["loss"], loss(before.critic_params), rtol=1e-5)
    check_gradient(after.critic_opt_state, loss, before.critic_params)


def test_the_actor_ascends_the_smaller_value_and_the_entropy(first_update):
    """Of the critics after their step, in the same batch."""
    _, before, after, _, batch, _ = first_update

    def loss(params):
        action, log_prob = sampled(params, batch.obs, policy_noises(first_update)[0])
        return jnp.mean(0.4 * log_prob - relu_q(after.critic_params, batch.obs, action).min(-1))

    check_gradient(after.opt_state, loss, before.params)


def test_the_temperature_follows_the_entropy_of_the_batch(first_update):
    _, before, after, metrics, batch, _ = first_update
    _, log_prob = sampled(before.params, batch.obs, policy_noises(first_update)[0])
    loss = lambda log_alpha: -jnp.exp(log_alpha) * (log_prob.mean() - 1)
    check_gradient(after.alpha_opt_state, loss, before.log_alpha)
    np.testing.assert_allclose(metrics["entropy"], -log_prob.mean(), rtol=1e-4)


def test_temperature_falls_when_entropy_is_above_the_target_and_rises_below():
    """dJ/d ln α = -α (ln π + H): at entropy 2 (ln π = -2) and H = -1, -α (-3) = 3 α."""
    gradient = jax.grad(temperature_loss)
    np.testing.assert_allclose(gradient(jnp.log(0.5), -2.0, -1), 1.5, rtol=1e-6)
    np.testing.assert_allclose(gradient(jnp.log(0.5), 3.0, -1), -1.0, rtol=1e-6)
    assert gradient(jnp.log(0.5), 1.0, -1) == 0


def test_log_prob_is_exact_and_its_gradient_finite_far_out():
    """Against NumPy in long double, where tanh' = 4 / (eˣ + e⁻ˣ)²."""
    x = np.linspace(-100, 100, 4_001)
    mean, log_std = 0.7, -0.4
    wide = x.astype(np.longdouble)
    normal = -((wide - mean) ** 2) / (2 * np.exp(2 * log_std)) - log_std - np.log(2 * np.pi) / 2
    log_slope = 2 * (np.log(2) - np.log(np.exp(wide) + np.exp(-wide)))

    def log_prob(x):
        return squashed_log_prob(x[None], (x[None] - mean) / np.exp(log_std), log_std)

    with jax.numpy_rank_promotion("raise"):
        got = jax.vmap(log_prob)(x.astype(np.float32))
    np.testing.assert_allclose(got, (normal - log_slope).astype(float), rtol=2e-5, atol=2e-5)
    gradient = jax.vmap(jax.grad(log_prob))(x.astype(np.float32))
    expected = -(x - mean) / np.exp(2 * log_std) + 2 * np.tanh(x)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)


def test_density_of_actions_integrates_to_1_and_multiplies_over_components():
    def log_prob(*x):
        return squashed_log_prob(jnp.array(x), (jnp.array(x) - 0.3) / np.exp(-0.5), -0.5)

    a = np.linspace(-1, 1, 200_003)[1:-1]
    density = np.exp(jax.vmap(log_prob)(np.arctanh(a)))
    np.testing.assert_allclose(density.sum() * (a[1] - a[0]), 1, rtol=1e-3)
    np.testing.assert_allclose(log_prob(0.2, -1.0), log_prob(0.2) + log_prob(-1.0), rtol=1e-6)


@pytest.mark.parametrize("log_std", [-3.0, -14.0])
def test_log_prob_of_a_narrow_policy_is_that_of_its_noise(log_std):
    """In an update, where m = 2.5 and σ is the same everywhere, against float64. The x in float32
    is 2.5 + σ ε rounded: for ln σ = -14 that has hardly a digit of ε."""
    config = small_continuous(sac)
    algorithm = make(config)
    state = jax.jit(algorithm.init)(jax.random.key(0))
    *layers, (w, b) = state.params
    params = [*layers, (jnp.zeros_like(w), jnp.array([2.5, log_std]))]
    _, metrics = jax.jit(algorithm.update)(state._replace(params=params), jnp.int32(0))
    key_policy = jax.random.split(jax.random.fold_in(state.key, 0), 4)[3]
    noise = np.float64(jax.random.normal(key_policy, (2, config.batch_size, 1)))[0]
    x = 2.5 + np.exp(log_std) * noise
    log_prob = -(noise**2) / 2 - np.log(2 * np.pi) / 2 - log_std + 2 * np.log(np.cosh(x))
    np.testing.assert_allclose(metrics["entropy"], -log_prob.mean(), rtol=1e-5)


def test_noise_is_standard_normal_with_the_memory_that_is_asked_for():
    def step(x, key):
        x = correlated_noise(key, x, 0.8)
        return x, x

    first, *keys = jax.random.split(jax.random.key(0), 101)
    x = np.asarray(jax.lax.scan(step, jax.random.normal(first, (5_000,)), jnp.stack(keys))[1])
    np.testing.assert_allclose([x[0].std(), x[-1].std(), x.std()], 1, atol=0.03)
    np.testing.assert_allclose((x[1:] * x[:-1]).mean(), 0.8, atol=0.01)
    independent = correlated_noise(first, jnp.full(5, 100.0), 0.0)
    np.testing.assert_allclose(independent, jax.random.normal(first, (5,)), rtol=1e-5)


@pytest.fixture(scope="module")
def states():
    return states_of(make(small_continuous(sac, tau=0.25, alpha=0.4)), 6)


def test_targets_start_equal_and_move_by_tau(states):
    check_targets(states, lambda state: state.critic_params, tau=0.25)


def test_critics_begin_different_and_stay_so(states):
    for state in (states[0], states[-1]):
        for w, _ in (*state.critic_params, *state.target_params):
            assert not np.isclose(w[0], w[1]).any()


def test_the_temperature_starts_as_given_and_falls_toward_the_target_entropy(states):
    """A policy that begins near tanh(N(0, 1)) has an entropy of about .2, above the target of -1
    and below +1."""
    np.testing.assert_allclose(np.exp(states[0].log_alpha), 0.4, rtol=1e-6)
    assert all(before.log_alpha - after.log_alpha > 1e-5 for before, after in pairwise(states))


def test_behaviour_is_a_sample_of_the_policy(states):
    """5 steps an update, after 2,000 at random: arctanh a = m + σ ε."""
    noise = []
    for step, (before, after) in enumerate(pairwise(states)):
        transitions = replayed(after, 2_000 + 5 * step, 2_005 + 5 * step)
        mean, log_std = np.split(relu_mlp(before.params, transitions.obs), 2, axis=-1)
        noise.append((np.arctanh(transitions.action) - mean) / np.exp(log_std))
    np.testing.assert_allclose(noise, [state.noise for state in states[1:]], atol=1e-3)
    assert len(np.unique(noise)) == 30
    np.testing.assert_allclose(np.std(noise), 1, rtol=0.35)
    np.testing.assert_allclose(np.mean(noise), 0, atol=0.5)


def test_act_is_the_mean_action_within_the_bounds(states):
    obs = jnp.eye(8)[4]
    action = make(small_continuous(sac)).act(states[-1].params, obs, jax.random.key(0))
    expected = 1 + 2 * np.tanh(relu_mlp(states[-1].params, obs)[:1])
    np.testing.assert_allclose(action, expected, rtol=1e-5)


def test_the_budget_counts_every_environment_step():
    check_budget(make(small_continuous(sac, learning_starts=2_001)), 2_005, 3_000)


def test_it_learns_the_values_and_best_actions_of_the_probes():
    """Where the action is free the policy has nearly the entropy of a uniform one, ln 2; states 2
    and 6 have it in the state that follows."""

    def soft_values(state):
        bonus = GAMMA * np.exp(state.log_alpha) * np.log(2)
        return CONTINUOUS_VALUES + bonus * np.array([0, 0, 1, 0, 0, 0, 1 / (1 - GAMMA)])

    check_continuous_probe(sac, twin_critic_values, soft_values, alpha=0.2)
