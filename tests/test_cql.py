"""cql.py: its equations by hand, an exact bandit, one whole update, and what it learns."""

import inspect
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    all_ends,
    check_gradient,
    check_q_probe,
    first_offline_update,
    pairs,
    play_at_random,
    relu_mlp,
    states_of,
)

from algorithms import cql, dqn
from algorithms.cql import Config, conservative_gap, make, td_error
from common.datasets import sample_rows


def test_the_gap_by_hand():
    """ln (1 + 3 + 4) - ln 3."""
    q_values = jnp.log(jnp.array([1.0, 3.0, 4.0]))
    np.testing.assert_allclose(conservative_gap(q_values, 1), np.log(8 / 3), rtol=1e-6)
    lowered = jax.grad(conservative_gap)(q_values, 1)  # softmax less what was taken
    np.testing.assert_allclose(lowered, [1 / 8, 3 / 8 - 1, 1 / 2], rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_a_bandit_is_valued_as_the_equation_says(alpha):
    """Three arms, drawn with probabilities β: Q = r - α (softmax(Q) / β - 1). What the policy is
    worth in the data is kept, and the arm that was drawn least is lowered most."""
    r, beta = np.array([1, 0, 0.5]), np.array([0.6, 0.3, 0.1])
    arms = jnp.arange(3)

    def loss(q_values):
        errors = td_error(q_values, jnp.array(r), 99.0, jnp.ones(3), 0.9)
        gaps = jax.vmap(conservative_gap, (None, 0))(q_values, arms)
        return jnp.sum(beta * (jnp.square(errors) + 2 * alpha * gaps))

    step = lambda i, q_values: q_values - 0.5 * jax.grad(loss)(q_values)
    q_values = jax.jit(lambda: jax.lax.fori_loop(0, 500, step, jnp.zeros(3)))()
    np.testing.assert_allclose(
        q_values, r - alpha * (jax.nn.softmax(q_values) / beta - 1), atol=1e-5
    )
    np.testing.assert_allclose(beta @ q_values, beta @ r, atol=1e-5)
    if alpha:
        np.testing.assert_allclose(q_values, [1.021815, 0.082515, 0.121563], atol=2e-6)


@pytest.fixture(scope="module")
def update():
    with pytest.MonkeyPatch.context() as patch:
        fields = {"env_id": "TogetherVector-probe", "alpha": 0.3}
        return first_offline_update(cql, patch, **fields, target_network_frequency=1, tau=0.25)


def test_without_alpha_the_loss_is_dqns_bit_for_bit(monkeypatch, update):
    play_at_random(monkeypatch, cql)
    before = update.before
    batch = sample_rows(before.dataset, jax.random.key(3), 64)
    losses = []
    for module, fields in ((cql, {"alpha": 0.0}), (dqn, {})):
        config = module.Config("TogetherVector-probe", gamma=0.8, hidden_sizes=(16,), **fields)
        loss = inspect.getclosurevars(module.make(config).update).nonlocals["loss"]
        step = jax.jit(jax.value_and_grad(loss))
        losses.append(step(before.params, before.target_params, batch))
    for x, y in pairs(*losses):
        np.testing.assert_array_equal(x, y)


def test_an_update_descends_the_errors_and_the_gap_of_its_batch(update):
    before = update.before
    batch = all_ends(sample_rows(before.dataset, update.key_step, 64))
    next_values = relu_mlp(before.target_params, batch.next_obs).max(-1)
    targets = batch.reward + 0.8 * ~batch.terminated * next_values

    def loss(params):
        q_values = relu_mlp(params, batch.obs)
        taken = jnp.take_along_axis(q_values, batch.action[:, None], axis=-1)[:, 0]
        gap = jnp.log(jnp.exp(q_values).sum(-1)) - taken
        return jnp.mean((targets - taken) ** 2) + 2 * 0.3 * jnp.mean(gap)

    np.testing.assert_allclose(update.metrics["loss"], loss(before.params), rtol=1e-5)
    check_gradient(update.after.opt_state, loss, before.params)


def test_metrics_are_of_the_data_and_the_learned_network(update):
    batch = sample_rows(update.before.dataset, update.key_batch, 64)
    q_values = np.asarray(relu_mlp(update.after.params, batch.obs))
    action = np.asarray(batch.action)
    value = q_values[np.arange(64), action].mean()
    np.testing.assert_allclose(update.metrics["value"], value, rtol=1e-5)
    agreement = (q_values.argmax(-1) == action).mean()
    np.testing.assert_allclose(update.metrics["agreement"], agreement, rtol=1e-6)
    assert np.isnan(update.metrics["episode_return"])


def test_target_network_moves_by_tau(update):
    for new, old, x in zip(
        *map(jax.tree.leaves, (update.after.target_params, update.before.target_params)),
        jax.tree.leaves(update.after.params),
        strict=True,
    ):
        np.testing.assert_allclose(new, 0.25 * x + 0.75 * old, rtol=1e-5, atol=1e-7)


def test_target_network_is_copied_at_its_period_and_only_then():
    """Three gradient steps an update, a copy every four: after updates 2 and 3 (steps 4 and 8)
    it has changed, and after update 4, on step 12, it is the network."""
    fields = {"num_episodes": 2, "gradient_steps": 3, "batch_size": 16, "hidden_sizes": (16,)}
    states = states_of(make(Config(**fields, target_network_frequency=4)), 5)
    moved = []
    for before, after in pairwise(states):
        moved.append(not np.array_equal(before.target_params[0][0], after.target_params[0][0]))
    assert moved == [False, True, True, True, False]
    for x, y in pairs(states[4].params, states[4].target_params):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("name", ["TogetherVector-probe", "ResetTrapVector-probe"])
def test_without_alpha_it_learns_the_values_and_best_actions_of_the_probes(monkeypatch, name):
    """From random actions."""
    play_at_random(monkeypatch, cql)
    fields = {"num_episodes": 500, "num_iterations": 20, "gradient_steps": 200, "alpha": 0.0}
    check_q_probe(cql, name, **fields)
