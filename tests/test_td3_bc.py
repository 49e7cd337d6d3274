"""td3_bc.py: its equations by hand, one whole update, and what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    all_ends,
    check_continuous_probe,
    check_gradient,
    first_offline_update,
    pairs,
    play_at_random,
    relu_mlp,
    relu_q,
    twin_critic_values,
)

from algorithms import td3, td3_bc
from algorithms.td3_bc import obs_statistics, policy_loss, q_weight, smoothed_action
from common.datasets import sample_rows


def test_the_actors_loss_by_hand():
    """(.5 - .1)² - 2 · 3; with two components the square is their mean, (.16 + 1) / 2."""
    np.testing.assert_allclose(policy_loss(3.0, jnp.array([0.5]), jnp.array([0.1]), 2.0), -5.84)
    action, data_action = jnp.array([0.5, -0.5]), jnp.array([0.1, 0.5])
    np.testing.assert_allclose(policy_loss(3.0, action, data_action, 2.0), 0.58 - 6, rtol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0, 4.0, 1e6])
def test_the_best_action_lies_between_the_datas_and_that_of_q(weight):
    """With Q = -(a - 1)² and the action a_D in the data, a = (λ + a_D) / (λ + 1): cloning without
    λ, TD3 with a large one."""
    data_action = jnp.array([-0.6])
    best = (weight + data_action) / (weight + 1)

    def loss(action):
        return policy_loss(-jnp.sum(jnp.square(action - 1)), action, data_action, weight)

    # relative to the gradient's two parts, which cancel
    np.testing.assert_allclose(jax.grad(loss)(best) / (1 + weight), 0, atol=1e-6)
    assert best == data_action if weight == 0 else best > data_action


def test_lambda_is_of_the_batch_and_without_gradient():
    values = jnp.array([1.0, -3.0, 8.0])
    assert q_weight(values, 2.0) == 0.5
    assert q_weight(values / 8, 2.0) == 4
    np.testing.assert_array_equal(jax.grad(q_weight)(values, 2.0), np.zeros(3))


def test_descent_with_lambda_of_the_batch_ends_where_it_should():
    """Two transitions of one state, Q = -(a - 1)² for both, a_D = -.2 in the mean, and α = .2: at
    a = 0 is λ = α / (a - 1)² = .2 and a = (λ + a_D) / (λ + 1). A gradient through λ would end at
    a_D, since then λ E|Q| is constant."""
    data_actions = jnp.array([[-0.6], [0.2]])

    def loss(action):
        actions = jnp.tile(action, (2, 1))
        q_values = -jnp.square(actions - 1)[:, 0]
        weight = q_weight(q_values, 0.2)
        return jax.vmap(policy_loss, (0, 0, 0, None))(
            q_values, actions, data_actions, weight
        ).mean()

    descend = jax.jit(
        lambda x: jax.lax.fori_loop(0, 500, lambda i, x: x - 0.1 * jax.grad(loss)(x), x)
    )
    np.testing.assert_allclose(descend(jnp.array([0.5])), 0, atol=1e-4)


def test_what_td3_has_is_as_it_is_there():
    for name in ("td_error", "smoothed_action"):
        one, other = getattr(td3, name), getattr(td3_bc, name)
        assert one.__code__.co_code == other.__code__.co_code
        assert one.__code__.co_consts == other.__code__.co_consts


FIELDS = {"policy_noise": 0.4, "noise_clip": 0.3, "tau": 0.25, "alpha": 2.0}


@pytest.fixture(scope="module")
def update():
    """One step of the critics and one of the actor; half of the noise is clipped. With the batch
    at unit scale."""
    with pytest.MonkeyPatch.context() as patch:
        update = first_offline_update(td3_bc, patch, env_id="Continuous-probe", **FIELDS)
    key_sample, _ = jax.random.split(update.key_step)
    batch = all_ends(sample_rows(update.before.dataset, key_sample, 64))
    _, mean, var = update.before.params.statistics
    seen = lambda obs: np.clip((obs - mean) / np.sqrt(var + 1e-8), -10, 10)
    return update, batch._replace(obs=seen(batch.obs), next_obs=seen(batch.next_obs))


def test_statistics_are_of_the_rows_that_hold_data(update):
    """The rest of the rows is never looked at."""
    state = update[0].before
    data = state.dataset
    num_rows = int(data.size)
    assert 100 <= num_rows < len(data.transitions.reward)
    obs = np.asarray(data.transitions.obs)[:num_rows]
    elsewhere = data.transitions.obs.at[num_rows:].set(1e6)
    changed = data._replace(transitions=data.transitions._replace(obs=elsewhere))
    for got in (state.params.statistics, obs_statistics(changed)):
        np.testing.assert_allclose(got.mean, obs.mean(0), rtol=1e-5)
        np.testing.assert_allclose(got.var, obs.var(0), rtol=1e-4, atol=1e-7)


def test_both_critics_learn_the_smaller_value_of_the_smoothed_action(update):
    update, batch = update
    config, before = update.config, update.before
    _, key_noise = jax.random.split(update.key_step)
    noise = 0.4 * np.asarray(jax.random.normal(key_noise, batch.action.shape))
    target, target_critics = before.target_params
    next_action = np.tanh(relu_mlp(target, batch.next_obs)) + np.clip(noise, -0.3, 0.3)
    next_values = np.asarray(relu_q(target_critics, batch.next_obs, np.clip(next_action, -1, 1)))
    assert set(next_values.argmin(-1)) == {0, 1}
    assert set(next_values.argmin(-1)) == {0, 1}
    targets = batch.reward + config.gamma * ~batch.terminated * next_values.min(-1)

    def loss(params):
        errors = targets[:, None] - relu_q(params, batch.obs, batch.action)
        return jnp.mean(jnp.sum(errors**2, axis=-1))

    np.testing.assert_allclose(update.metrics["loss"], loss(before.critic_params), rtol=1e-5)
    check_gradient(update.after.critic_opt_state, loss, before.critic_params)


def test_the_actor_follows_the_first_critic_and_the_data(update):
    update, batch = update
    critic = jax.tree.map(lambda x: x[0], update.after.critic_params)

    def values(params):
        return relu_q(critic, batch.obs, jnp.tanh(relu_mlp(params, batch.obs)))

    params = update.before.params.actor_params
    weight = 2.0 / np.abs(values(params)).mean()

    def loss(params):
        distance = jnp.square(jnp.tanh(relu_mlp(params, batch.obs)) - batch.action).mean()
        return distance - weight * values(params).mean()

    check_gradient(update.after.opt_state, loss, params)


def test_targets_move_by_tau_and_the_data_and_statistics_stay(update):
    update, _ = update
    before, after = update.before, update.after
    learned = after.params.actor_params, after.critic_params
    for new, old, x in zip(
        *map(jax.tree.leaves, (after.target_params, before.target_params, learned)), strict=True
    ):
        np.testing.assert_allclose(new, 0.25 * x + 0.75 * old, rtol=1e-5, atol=1e-7)
    for x, y in pairs(
        (before.dataset, before.params.statistics), (after.dataset, after.params.statistics)
    ):
        np.testing.assert_array_equal(x, y)


def test_smoothed_action_by_hand():
    np.testing.assert_allclose(smoothed_action(0.9, 0.25, 0.3), 1.0)
    np.testing.assert_allclose(smoothed_action(0.5, -2.0, 0.3), 0.2, rtol=1e-6)


def test_with_a_large_alpha_it_learns_the_values_and_best_actions_of_the_probe(monkeypatch):
    """Then it is TD3, on data of random actions; what it sees is at unit scale. Where the tolerance
    of the actions ends, Q is .06 below its maximum."""
    play_at_random(monkeypatch, td3_bc)

    def values_of(config, state, obs, action):
        _, mean, var = state.params.statistics
        return twin_critic_values(config, state, (obs - mean) / jnp.sqrt(var + 1e-8), action)

    fields = {"num_episodes": 2_000, "num_iterations": 20, "gradient_steps": 200, "alpha": 1e4}
    fields |= {"batch_size": 128, "hidden_sizes": (64, 64), "learning_rate": 2e-3}
    check_continuous_probe(td3_bc, values_of, tolerance=0.25, **fields)
