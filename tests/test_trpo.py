"""trpo.py: its line search by hand, on a bandit whose steps are known, and against the natural
policy gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import check_actor_critic_probe, every_end, pairs, small_config
from natural_gradient import REWARD, SMALL, P, bandit_update, first_update, step_of

from algorithms import natural_policy_gradient, trpo
from algorithms.trpo import improvement, line_search, make, step_size, td_error, value_loss


@every_end
def test_td_error_by_hand(terminated, truncated, bootstraps):
    error = td_error(1.0, 3.0, 8.0, jnp.array(terminated), 0.5)
    np.testing.assert_allclose(error, 3 + 0.5 * 8 * bootstraps - 1)


def test_equations_by_hand():
    np.testing.assert_allclose(improvement(jnp.log(0.6), jnp.log(0.4), -2.0), -1.0, rtol=1e-5)
    assert improvement(-1.5, -1.5, 2.0) == 0 and jax.grad(improvement)(-1.5, -1.5, 2.0) == 2
    np.testing.assert_allclose(step_size(jnp.float32(0.5), 0.01), 0.2, rtol=1e-6)
    assert np.isfinite(step_size(jnp.float32(0), 0.01))
    assert value_loss(1.0, 4.0) == 4.5 and jax.grad(value_loss)(1.0, 4.0) == -3.0


@pytest.mark.parametrize(
    "improvements, kls, expected",
    [
        ([0.1, 0.2, 0.3], [0.005, 0.003, 0.001], 0),
        ([0.1, 0.2, 0.3], [0.02, 0.01, 0.001], 1),  # δ itself is in the region
        ([-0.1, 0.0, 0.3], [0.005, 0.003, 0.001], 2),  # no improvement is none
        ([-0.1, 0.2, -0.3], [0.005, 0.02, 0.001], None),
        ([np.nan, np.inf, 0.1], [np.nan, np.nan, 0.001], 2),  # far too long a step
    ],
)
def test_line_search_by_hand(improvements, kls, expected):
    tried, outcomes = [], jnp.array([improvements, kls])

    def outcome(size):
        jax.debug.callback(lambda x: tried.append(float(x)), size, ordered=True)
        return tuple(outcomes[:, jnp.log2(4 / size).astype(int)])

    size, gain, kl, accepted = line_search(outcome, jnp.float32(4), 0.5, 3, 0.01)
    jax.effects_barrier()
    last = 2 if expected is None else expected
    assert accepted == (expected is not None) and tried == [4, 2, 1][: last + 1]
    np.testing.assert_array_equal([size, gain, kl], [tried[-1], *outcomes[:, last]])


@pytest.mark.parametrize("sign, cuts", [(1, 1), (-1, 0)])
def test_the_step_of_a_bandit_is_known(monkeypatch, sign, cuts):
    """The whole step has a KL divergence of .0100497, so the line search cuts it once; that for the
    opposite rewards has less than δ, and is taken."""
    p, metrics = bandit_update(trpo, monkeypatch, sign * REWARD, target_kl=0.01)
    beta = 0.8**cuts * 0.2020305
    np.testing.assert_allclose(metrics["step_size"], beta, rtol=1e-6)
    expected = P * np.exp(sign * beta * REWARD)
    np.testing.assert_allclose(p, expected / expected.sum(), atol=1e-7)
    np.testing.assert_allclose(metrics["kl"], P @ np.log(P / p), rtol=1e-9)
    np.testing.assert_allclose(metrics["improvement"], sign * (p - P) @ REWARD, rtol=1e-9)
    assert metrics["accepted"] == 1 and metrics["kl"] <= 0.01


@pytest.mark.parametrize("env_id", ["TogetherVector-probe", "Continuous-probe"])
def test_an_update_is_a_part_of_the_natural_policy_gradient(monkeypatch, env_id):
    """Whose update is compared with dense matrices. Statistics of observations start as those of
    nothing: if the loss saw others than the policy did, it would differ."""
    natural = first_update(natural_policy_gradient, monkeypatch, env_id)
    update = first_update(trpo, monkeypatch, env_id, norm_obs=True)
    part = update.metrics["step_size"] / natural.metrics["step_size"]
    cuts = np.log(part) / np.log(0.8)
    assert update.metrics["accepted"] and abs(cuts - round(cuts)) < 1e-4
    full = step_of(natural)
    np.testing.assert_allclose(step_of(update), part * full, rtol=0, atol=1e-4 * np.abs(full).max())
    for x, y in pairs(update.after.critic_params, natural.after.critic_params):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)


def test_a_step_stays_in_the_trust_region_or_is_not_taken():
    """With a single try about half of the steps are too long: then θ keeps its bits."""
    fields = SMALL | {"total_timesteps": 1_200, "num_backtracks": 1, "cg_damping": 1e-3}
    algorithm = make(small_config(trpo, **fields, env_id="CartPole-v1"))
    update, state = jax.jit(algorithm.update), jax.jit(algorithm.init)(jax.random.key(0))
    outcomes = []
    for step in range(algorithm.num_updates):
        before, (state, metrics) = state, update(state, jnp.int32(step))
        is_same = [np.array_equal(x, y) for x, y in pairs(before.params.actor, state.params.actor)]
        outcomes.append(bool(metrics["accepted"]))
        if metrics["accepted"]:
            assert 0 < metrics["kl"] <= 0.01 and metrics["improvement"] > 0
            assert metrics["step_size"] > 0 and not any(is_same)
        else:
            assert metrics["kl"] == metrics["improvement"] == metrics["step_size"] == 0
            assert all(is_same)
    assert 3 <= sum(outcomes) <= len(outcomes) - 3


def test_it_learns_the_values_and_best_actions_of_the_probes():
    fields = {"num_steps": 32, "learning_rate": 5e-3, "update_epochs": 4, "num_minibatches": 4}
    for name in ("Together-probe", "ResetTrap-probe"):
        check_actor_critic_probe(trpo, name, total_timesteps=30_000, **fields)
