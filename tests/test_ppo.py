"""ppo.py: its equations by hand, its minibatches, and what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import check_actor_critic_probe, check_always_cut, pairs, small_config, states_of

from algorithms import ppo
from algorithms.ppo import Config, approximate_kl, make, policy_loss, value_loss
from common.envs import make_env

AT_ONCE = {"update_epochs": 1, "num_minibatches": 1}


@pytest.mark.parametrize(
    "ratio, advantage, expected, slope",
    [
        (1.0, 2.0, -2.0, -2.0),  # at θ_old: the policy gradient
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.4, 0.0),  # more probable than 1 + ε and good: no reason to go on
        (0.5, 2.0, -1.0, -1.0),  # less probable and good: back
        (0.5, -2.0, 1.6, 0.0),
        (1.5, -2.0, 3.0, 3.0),
    ],
)
def test_policy_loss_by_hand(ratio, advantage, expected, slope):
    """The slope is with respect to ln π: ρ A inside the clip, 0 outside."""
    log_ratio = float(np.log(ratio))
    loss = lambda log_prob: policy_loss(log_prob - 3.0, -3.0, advantage, 0.2)
    np.testing.assert_allclose(loss(log_ratio), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(loss)(log_ratio), slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "value, clip, expected, slope",
    [
        (1.0, 0.2, 0.5 * 2.0**2, -2.0),  # at w_old
        (1.1, 0.2, 0.5 * 1.9**2, -1.9),
        (1.5, 0.2, 0.5 * 1.8**2, 0.0),  # moved by more than ε: the clipped error is the larger
        (0.0, 0.2, 0.5 * 3.0**2, -3.0),  # moved away from the target: the true error is
        (1.5, jnp.inf, 0.5 * 1.5**2, -1.5),  # not clipped
    ],
)
def test_value_loss_by_hand(value, clip, expected, slope):
    loss = lambda value: value_loss(value, 1.0, 3.0, clip)
    np.testing.assert_allclose(loss(value), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(loss)(value), slope, rtol=1e-5, atol=1e-6)


def test_approximate_kl_is_unbiased_and_never_negative():
    old, new = jnp.log(jnp.array([0.2, 0.5, 0.3])), jnp.log(jnp.array([0.3, 0.3, 0.4]))
    each = approximate_kl(new, old)
    assert (each >= 0).all()
    kl = jnp.sum(jnp.exp(old) * (old - new))
    np.testing.assert_allclose(jnp.sum(jnp.exp(old) * each), kl, rtol=1e-5)


def shuffles(monkeypatch, num_updates, **fields):
    """The orders in which each epoch of some updates used a rollout's transitions, [epochs, B]."""
    seen = []
    rows = ppo.rows

    def record(index):  # of one minibatch
        seen.append(np.asarray(index))
        return index

    def spy(batch, index):
        return rows(batch, jax.pure_callback(record, index, index))

    monkeypatch.setattr(ppo, "rows", spy)
    config = small_config(ppo, **fields)
    states_of(make(config), num_updates)
    return np.reshape(seen, (num_updates * config.update_epochs, -1))


def test_every_epoch_has_a_permutation_of_its_own(monkeypatch):
    seen = shuffles(monkeypatch, 2, update_epochs=3)
    assert seen.shape == (6, 80) and len(np.unique(seen, axis=0)) == 6
    np.testing.assert_array_equal(np.sort(seen), np.tile(np.arange(80), (6, 1)))


def test_every_permutation_is_equally_likely(monkeypatch):
    fields = {"num_envs": 2, "num_steps": 2, "num_minibatches": 1, "update_epochs": 6_000}
    seen = shuffles(monkeypatch, 4, **fields)
    _, counts = np.unique(seen, axis=0, return_counts=True)
    assert counts.sum() == 24_000 and len(counts) == 24
    assert np.square(counts - 1_000).sum() / 1_000 < 50  # χ² with 23 degrees: 0.1 % above 49.7


def test_a_large_rollout_is_shuffled_through_and_through(monkeypatch):
    """Half of all neighbours ascend, within 5 standard deviations of (n + 1) / 12, and the place of
    a number says nothing about it."""
    size = 65_536
    fields = {"num_envs": 4_096, "num_steps": 16, "total_timesteps": size, **AT_ONCE}
    (index,) = shuffles(monkeypatch, 1, **fields)
    np.testing.assert_array_equal(np.sort(index), np.arange(size))
    ascending = np.sum(np.diff(index) > 0)
    assert abs(ascending - (size - 1) / 2) < 5 * np.sqrt((size + 1) / 12)
    assert abs(np.corrcoef(index, np.arange(size))[0, 1]) < 5 / np.sqrt(size)


def first_update(**fields):
    """The algorithm, its State before and after an update, and the metrics."""
    algorithm = make(small_config(ppo, **fields))
    before = jax.jit(algorithm.init)(jax.random.key(0))
    return algorithm, before, *jax.jit(algorithm.update)(before, jnp.int32(0))


def test_kl_and_clip_fraction_are_0_in_the_first_minibatch_and_not_later():
    for fields, is_zero in ((AT_ONCE, True), ({"learning_rate": 0.01}, False)):
        _, _, _, metrics = first_update(**fields)
        assert (metrics["clip_fraction"] == 0) == is_zero
        assert (abs(metrics["approx_kl"]) < 1e-7) == is_zero


def test_learning_rate_falls_linearly_to_0():
    """Adam's first steps move each weight by the learning rate, which is that of the update in all
    epochs, and 0 after the last update."""
    algorithm = make(small_config(ppo, **AT_ONCE | {"update_epochs": 2}))
    state, update = jax.jit(algorithm.init)(jax.random.key(0)), jax.jit(algorithm.update)
    last = algorithm.num_updates
    moved = [change(state, update(state, jnp.int32(step))[0]) for step in (0, last // 3, last)]
    np.testing.assert_allclose(moved, [2e-3, 2e-3 * (1 - last // 3 / last), 0], 0.05, 1e-8)


def change(before, after):
    changes = pairs(before.params.actor, after.params.actor)
    return max(float(jnp.abs(x - y).max()) for x, y in changes)


def test_networks_start_as_the_details_say():
    algorithm = make(Config(env_id="Pendulum-v1", init_std=0.5))
    state = jax.jit(algorithm.init)(jax.random.key(0))
    layers, log_std = state.params.actor
    for (w, b), gain in zip(layers, (2**0.5, 2**0.5, 0.01), strict=True):
        singular = np.linalg.svd(w, compute_uv=False)
        np.testing.assert_allclose(singular, np.full_like(singular, gain), rtol=1e-4)
        assert not b.any()
    np.testing.assert_allclose(np.linalg.svd(state.critic_params[-1][0])[1], [1.0], rtol=1e-4)
    np.testing.assert_allclose(np.exp(log_std), [0.5], rtol=1e-6)


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "Breakout-MinAtar"])
def test_statistics_are_part_of_the_policy(env_id):
    fields = {"env_id": env_id, "norm_obs": True, "norm_reward": True}
    algorithm, _, state, _ = first_update(**AT_ONCE, **fields)
    assert state.params.statistics.count == 80
    obs = make_env(env_id, 1).reset(jax.random.key(1)).obs[0]
    far = state.params.statistics._replace(mean=state.params.statistics.mean + 3)
    play = lambda statistics: algorithm.act(
        state.params._replace(statistics=statistics), obs, jax.random.key(2)
    )
    assert np.isfinite(play(far)).all()
    if env_id == "Pendulum-v1":
        assert play(far) != play(state.params.statistics)


def test_an_update_learns_from_observations_as_the_policy_saw_them():
    """Statistics of nothing change nothing: the first update is that without them."""
    fields = {"env_id": "Pendulum-v1", **AT_ONCE}
    plain, normalized = (first_update(norm_obs=x, **fields)[2] for x in (False, True))
    for x, y in pairs(plain.params.actor, normalized.params.actor):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-6)


def test_the_entropy_bonus_widens_the_policy():
    """With a large coefficient Adam's first step raises ln σ by the learning rate."""
    _, before, after, _ = first_update(env_id="Pendulum-v1", ent_coef=1e3, **AT_ONCE)
    np.testing.assert_allclose(after.params.actor[1] - before.params.actor[1], 1e-3, rtol=0.01)


def test_actions_may_leave_the_bounds_but_the_environment_never_sees_it():
    """With a huge std nearly all actions are clipped, and rewards stay those of the bounds."""
    *_, metrics = first_update(env_id="MountainCarContinuous-v0", init_std=1e3, **AT_ONCE)
    assert np.isfinite(metrics["value_loss"]) and metrics["value_loss"] < 10


def test_a_time_limit_after_every_step_is_no_end():
    fields = {"total_timesteps": 30_000, "num_steps": 32, "learning_rate": 5e-3}
    check_always_cut(ppo, clip_vloss=False, **fields)


@pytest.mark.parametrize("name", ["Together-probe", "ResetTrap-probe"])
def test_it_learns_the_values_and_best_actions_of_the_probes(name):
    fields = {
        "total_timesteps": 30_000,
        "num_steps": 32,
        "learning_rate": 5e-3,
        "clip_vloss": False,
    }
    check_actor_critic_probe(ppo, name, **fields)
