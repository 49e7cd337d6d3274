"""common/normalization.py against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import load

from common.envs import Transition, make_env
from common.normalization import (
    Statistics,
    add_batch,
    no_obs_statistics,
    no_statistics,
    normalize,
    scale_rewards,
)


def test_statistics_are_those_of_all_that_was_seen():
    rng = np.random.default_rng(0)
    batches = [rng.normal(3, 2, (n, 5, 2)).astype(np.float32) for n in (1, 4, 7, 100)]
    statistics = no_statistics((2,))
    for batch in batches:
        statistics = add_batch(statistics, batch)
    everything = np.concatenate(batches).reshape(-1, 2)
    assert statistics.count == len(everything)
    np.testing.assert_allclose(statistics.mean, everything.mean(0), rtol=1e-5)
    np.testing.assert_allclose(statistics.var, everything.var(0), rtol=1e-5)


def test_statistics_stay_right_after_ten_million():
    rng = np.random.default_rng(1)
    batch = rng.normal(50, 0.1, 512).astype(np.float32)
    start = Statistics(jnp.float32(1e7), jnp.float32(batch.mean()), jnp.float32(batch.var()))
    many = jax.jit(lambda s, x: jax.lax.fori_loop(0, 2_000, lambda _, s: add_batch(s, x), s))
    statistics = many(start, batch)
    assert statistics.count == 1e7 + 2_000 * 512
    np.testing.assert_allclose(statistics.mean, batch.mean(), rtol=1e-5)
    np.testing.assert_allclose(statistics.var, batch.var(), rtol=1e-3)


def test_observations_come_to_mean_0_and_std_1_and_are_clipped():
    env = make_env("Pendulum-v1", 1)
    nothing = no_obs_statistics(env, True)
    obs = np.random.default_rng(2).normal(5, 3, (20, 4, 3)).astype(np.float32)
    untouched = normalize(nothing, obs)
    np.testing.assert_allclose(untouched, np.clip(obs, -10, 10), rtol=1e-5)
    statistics = add_batch(nothing, obs)
    seen = normalize(statistics, obs)
    np.testing.assert_allclose(seen.mean((0, 1)), np.zeros(3), atol=1e-5)
    np.testing.assert_allclose(seen.std((0, 1)), np.ones(3), rtol=1e-4)
    assert (normalize(statistics, obs + 1e6) == 10).all()
    assert no_obs_statistics(env, False) is add_batch(None, obs) is None
    assert normalize(None, obs) is obs


def test_numbered_states_are_refused():
    with pytest.raises(ValueError, match="norm-obs"):
        no_obs_statistics(make_env("FrozenLake-misc", 1), True)
    no_obs_statistics(make_env("FrozenLake-misc", 1), False)


def test_rewards_are_divided_by_the_std_of_their_discounted_sum_across_rollouts():
    state, totals, running = (jnp.zeros(3), no_statistics(())), [], np.zeros(3)
    rng = np.random.default_rng(3)
    for _ in range(3):
        reward = rng.normal(1, 5, (6, 3)).astype(np.float32)
        terminated, truncated = rng.random((2, 6, 3)) < 0.15
        t = Transition(None, None, jnp.asarray(reward), None, terminated, truncated)
        state, got = scale_rewards(state, t, 0.9)
        for now, done in zip(reward, terminated | truncated, strict=True):
            running = 0.9 * running + now
            totals.append(running)
            running = np.where(done, 0, running)
        expected = np.clip(reward / np.std(totals), -10, 10)
        np.testing.assert_allclose(got, expected, rtol=1e-4)
    state, got = scale_rewards(None, t, 0.9)
    assert state is None and got is t.reward


@pytest.mark.parametrize(
    "name, fields",
    [
        ("a2c", {"num_steps": 1, "num_envs": 1}),
        ("q_actor_critic", {"num_steps": 1, "num_envs": 1}),
        ("ppo", {"num_steps": 2, "num_envs": 2, "num_minibatches": 4}),
    ],
)
def test_a_single_advantage_is_not_normalized(name, fields):
    """It would be 0."""
    Config = load(name).Config
    with pytest.raises(ValueError, match="--num-envs.*--norm-adv True: must satisfy"):
        Config(**fields)
    Config(**fields, norm_adv=False)
    Config(**fields | {"num_envs": 2 * fields["num_envs"]})
