"""iql.py: its equations against exact expectiles and tables, one whole update, what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    all_ends,
    check_continuous_probe,
    check_gradient,
    every_end,
    first_offline_update,
    play_at_random,
    relu_mlp,
    relu_q,
    twin_critic_values,
)
from jax.scipy.stats import norm

from algorithms import iql
from algorithms.iql import advantage_weight, expectile_loss, policy_loss, td_error
from common.datasets import sample_rows

EXPECTILES = {0.5: 0.9, 0.7: 1.342105, 0.9: 2.192308, 0.99: 2.898058, 0.999: 2.989531}


def expectiles(q_values, probability, expectile):
    """argmin_V of the loss over actions that occur with `probability`, [..., A] -> [...]; by
    Newton's method, which is exact once the signs of the errors are."""

    def slopes(value):
        loss = lambda v: jnp.sum(probability * expectile_loss(q_values - v[..., None], expectile))
        gradient, ones = jax.grad(loss)(value), jnp.ones_like(value)
        return gradient, jax.jvp(jax.grad(loss), (value,), (ones,))[1]

    def step(i, value):
        first, second = slopes(value)
        return value - first / second

    return jax.lax.fori_loop(0, 20, step, jnp.sum(probability * q_values, axis=-1))


@pytest.mark.parametrize("expectile, exact", EXPECTILES.items())
def test_expectiles_of_three_values(expectile, exact):
    """They go from the mean to the largest value, and never beyond."""
    got = expectiles(jnp.array([0.0, 1.0, 3.0]), jnp.array([0.5, 0.3, 0.2]), expectile)
    np.testing.assert_allclose(got, exact, atol=1e-6)


def test_the_loss_by_hand():
    errors = jnp.array([2.0, -2.0, 0.0])
    np.testing.assert_allclose(expectile_loss(errors, 0.7), [0.7 * 4, 0.3 * 4, 0], rtol=1e-6)
    np.testing.assert_allclose(expectile_loss(errors, 0.5), [2, 2, 0])


# A random MDP of 6 states and 3 actions, of which the data lack some; state 5 is the end.
RNG = np.random.default_rng(0)
P = RNG.dirichlet(np.ones(6) / 2, (6, 3))
R = RNG.normal(size=(6, 3))
BETA = RNG.dirichlet(np.ones(3), 6) * np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1]] * 2)
BETA /= BETA.sum(-1, keepdims=True)
DISCOUNT = 0.9 * (np.arange(6) != 5)  # of the next state


def learned_values(expectile):
    """Q of the pairs in the data, by sweeps of both equations."""
    terminated = jnp.arange(6) == 5

    def sweep(i, q_values):
        values = expectiles(q_values, jnp.array(BETA), expectile)
        errors = td_error(q_values[..., None], jnp.array(R)[..., None], values, terminated, 0.9)
        return q_values + jnp.sum(P * errors, axis=-1)

    return jax.jit(lambda: jax.lax.fori_loop(0, 300, sweep, jnp.zeros((6, 3))))()


def values_of_policy(policy):
    """Q = R + P γ V, V = Σ π Q, by a linear solve."""
    mixed = np.einsum("sa,sat->st", policy, P) * DISCOUNT
    values = np.linalg.solve(np.eye(6) - mixed, np.sum(policy * R, axis=-1))
    return R + P @ (DISCOUNT * values)


def test_with_half_it_is_sarsas_value_of_the_behaviour():
    with jax.enable_x64(True):
        np.testing.assert_allclose(learned_values(0.5), values_of_policy(BETA), atol=1e-6)


def test_near_one_it_is_the_optimum_over_the_actions_in_the_data():
    """By policy iteration in the MDP without the other actions. With them it would be better."""
    best = []
    for support in (BETA > 0, np.ones((6, 3), bool)):
        policy = support / support.sum(-1, keepdims=True)
        for _ in range(20):
            q_values = np.where(support, values_of_policy(policy), -np.inf)
            policy = np.eye(3)[q_values.argmax(-1)]
        best.append(values_of_policy(policy))
    with jax.enable_x64(True):
        learned = learned_values(1 - 1e-6)
    np.testing.assert_allclose(learned, best[0], atol=1e-4)
    assert np.abs(best[1] - best[0]).max() > 0.5


@every_end
def test_both_errors_bootstrap_from_v_of_the_next_state(terminated, truncated, bootstraps):
    got = td_error(jnp.array([3.0, 5.0]), 2.0, 40.0, jnp.array(terminated), 0.5)
    np.testing.assert_array_equal(got, 2 + 0.5 * 40 * bootstraps - np.array([3.0, 5.0]))


def test_weights_are_exponentials_of_advantages_up_to_100():
    q_values, values = jnp.array([2.0, 0.0, 9.0, 1e4]), jnp.array([1.0, 1.0, 1.0, 0.0])
    got = advantage_weight(q_values, values, 2.0)
    np.testing.assert_allclose(got, [np.exp(2), np.exp(-2), 100, 100], rtol=1e-6)
    np.testing.assert_allclose(advantage_weight(q_values, values, 0.0), np.ones(4))
    assert policy_loss(-1.5, 100.0) == 150


@pytest.fixture(scope="module")
def update():
    with pytest.MonkeyPatch.context() as patch:
        fields = {"env_id": "Continuous-probe", "tau": 0.25, "expectile": 0.8, "beta": 2.0}
        update = first_offline_update(iql, patch, **fields)
    return update, all_ends(sample_rows(update.before.dataset, update.key_step, 64))


def smaller_value(update, batch):
    """min_j Q(s, a; φⱼ⁻), where either is the smaller one somewhere."""
    values = np.asarray(relu_q(update.before.target_params, batch.obs, batch.action))
    assert set(values.argmin(-1)) == {0, 1}
    return values.min(-1)


def test_v_descends_the_expectile_loss_of_the_targets_smaller_value(update):
    update, batch = update
    q_values = smaller_value(update, batch)

    def loss(params):
        errors = q_values - relu_mlp(params, batch.obs)[:, 0]
        return jnp.mean(jnp.where(errors < 0, 0.2, 0.8) * errors**2)

    check_gradient(update.after.value_opt_state, loss, update.before.value_params)


def test_both_critics_learn_v_of_the_next_state(update):
    update, batch = update
    next_values = relu_mlp(update.after.value_params, batch.next_obs)[:, 0]
    targets = batch.reward + 0.8 * ~batch.terminated * next_values

    def loss(params):
        errors = targets[:, None] - relu_q(params, batch.obs, batch.action)
        return jnp.mean(jnp.sum(errors**2, axis=-1))

    before = update.before.critic_params
    np.testing.assert_allclose(update.metrics["loss"], loss(before), rtol=1e-5)
    check_gradient(update.after.critic_opt_state, loss, before)


def test_the_policy_descends_the_weighted_likelihood_of_the_datas_actions(update):
    """Of a normal distribution that is not squashed."""
    update, batch = update
    values = np.asarray(relu_mlp(update.after.value_params, batch.obs))[:, 0]
    weights = np.minimum(np.exp(2 * (smaller_value(update, batch) - values)), 100)

    def loss(params):
        network, log_std = params
        mean = jnp.tanh(relu_mlp(network, batch.obs))
        log_probs = norm.logpdf(batch.action, mean, jnp.exp(log_std)).sum(-1)
        return -jnp.mean(weights * log_probs)

    np.testing.assert_allclose(update.metrics["weight"], weights.mean(), rtol=1e-5)
    check_gradient(update.after.opt_state, loss, update.before.params)


def test_targets_move_by_tau(update):
    update, _ = update
    learned = (update.after.target_params, update.before.target_params, update.after.critic_params)
    for new, old, x in zip(*map(jax.tree.leaves, learned), strict=True):
        np.testing.assert_allclose(new, 0.25 * x + 0.75 * old, rtol=1e-5, atol=1e-7)


def test_it_acts_by_the_mean_within_the_bounds(update):
    update, batch = update
    params = update.after.params
    action = update.algorithm.act(params, batch.obs[0], jax.random.key(0))
    mean = np.tanh(relu_mlp(params[0], batch.obs[0]))
    np.testing.assert_allclose(action, 1 + 2 * mean, rtol=1e-5)  # actions are in [-1, 3]


def test_it_learns_the_values_and_best_actions_of_the_probe(monkeypatch):
    """From random actions. In the states where actions matter the next state is the end, so Q does
    not depend on τ."""
    play_at_random(monkeypatch, iql)
    fields = {"num_episodes": 2_000, "num_iterations": 30, "gradient_steps": 200, "beta": 3.0}
    fields |= {"batch_size": 128, "hidden_sizes": (64,), "learning_rate": 2e-3}
    check_continuous_probe(iql, twin_critic_values, **fields)
