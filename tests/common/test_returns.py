"""common/returns.py against loops in float64 and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algorithms.a2c import td_error
from common.returns import gae

GAMMA, LAMBDA = 0.9, 0.7


@jax.jit
def compiled(reward, value, next_value, terminated, truncated, gamma, gae_lambda):
    """The advantages of a trajectory, [T]."""
    error = td_error(value, reward, next_value, terminated, gamma)
    return gae(error, terminated | truncated, gamma, gae_lambda)


def trajectory(length, seed, ends=0.2):
    rng = np.random.default_rng(seed)
    reward, value, next_value = rng.normal(size=(3, length))
    terminated, truncated = rng.random((2, length)) < ends
    return reward, value, next_value, terminated, truncated


def by_definition(reward, value, next_value, terminated, truncated, gamma, gae_lambda):
    """A_t = Σ_k (γ λ)^k δ_{t+k}, over the rest of the episode."""
    delta = reward + gamma * np.where(terminated, 0, next_value) - value
    advantages = []
    for t in range(len(reward)):
        total = 0.0
        for k in range(t, len(reward)):
            total += (gamma * gae_lambda) ** (k - t) * delta[k]
            if terminated[k] or truncated[k]:
                break
        advantages.append(total)
    return np.array(advantages)


@pytest.mark.parametrize("length", [1, 2, 5, 64])
def test_gae_is_the_discounted_sum_of_td_errors_within_an_episode(length):
    for seed in range(25):
        t = trajectory(length, seed)
        with jax.numpy_rank_promotion("raise"):
            got = compiled(*map(jnp.asarray, t), GAMMA, LAMBDA)
        np.testing.assert_allclose(got, by_definition(*t, GAMMA, LAMBDA), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "terminated, truncated, first, last",
    [
        (False, False, 1 + 0.5 * 10 - 3 + 0.5 * 0.5 * 18, 2 + 0.5 * 40 - 4),
        (True, False, 1 - 3, 2 + 0.5 * 40 - 4),  # no bootstrap, and nothing of what follows
        (False, True, 1 + 0.5 * 10 - 3, 2 + 0.5 * 40 - 4),  # bootstrap, and nothing of it either
        (True, True, 1 - 3, 2 + 0.5 * 40 - 4),
    ],
)
def test_two_steps_by_hand(terminated, truncated, first, last):
    flags = jnp.array([terminated, False]), jnp.array([truncated, False])
    values = jnp.array([3.0, 4.0]), jnp.array([10.0, 40.0])
    got = compiled(jnp.array([1.0, 2.0]), *values, *flags, 0.5, 0.5)
    np.testing.assert_allclose(got, [first, last])


def test_lambda_0_is_the_one_step_td_error():
    reward, value, next_value, terminated, truncated = t = trajectory(30, 0)
    expected = reward + GAMMA * (1 - terminated) * next_value - value
    np.testing.assert_allclose(compiled(*t, GAMMA, 0.0), expected, rtol=1e-5, atol=1e-6)


def test_lambda_1_is_the_return_less_the_value():
    """The Monte Carlo return where the MDP ends, with the value of next_obs where a clock does."""
    reward, value, next_value, terminated, truncated = trajectory(30, 1)
    goes_on = ~(terminated | truncated)[:-1]
    next_value[:-1] = np.where(goes_on, value[1:], next_value[:-1])
    returns, after = np.zeros(30), next_value[-1]
    for i in reversed(range(30)):
        if truncated[i]:
            after = next_value[i]
        returns[i] = after = reward[i] + GAMMA * (not terminated[i]) * after
    got = compiled(reward, value, next_value, terminated, truncated, GAMMA, 1.0)
    np.testing.assert_allclose(got, returns - value, rtol=1e-4, atol=1e-5)


def test_gamma_0_is_the_reward_less_the_value():
    reward, value, *_ = t = trajectory(30, 2)
    np.testing.assert_allclose(compiled(*t, 0.0, LAMBDA), reward - value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 1.0])
def test_a_chain_that_never_ends_is_worth_r_over_1_minus_gamma_under_a_time_limit(gae_lambda):
    """The value that no advantage would change is the true one: r / (1 - γ)."""
    truncated = jnp.arange(24) % 8 == 7
    right = jnp.full(24, 1 / (1 - GAMMA))
    never, ones = jnp.zeros(24, bool), jnp.ones(24)
    advantages = compiled(ones, right, right, never, truncated, GAMMA, gae_lambda)
    np.testing.assert_allclose(advantages, np.zeros(24), atol=1e-5)
    ended = compiled(ones, right, right, truncated, never, GAMMA, gae_lambda)
    assert ended[7] == pytest.approx(1 - 1 / (1 - GAMMA))  # were the limit an end


@pytest.mark.parametrize("flag", ["terminated", "truncated"])
def test_no_advantage_depends_on_what_comes_after_a_cut(flag):
    none, cut = np.zeros(8, bool), np.arange(8) == 3
    flags = (cut, none) if flag == "terminated" else (none, cut)
    x = np.random.default_rng(0).normal(size=(3, 8))

    def before_the_cut(x):
        return compiled(*x, *flags, GAMMA, LAMBDA)[:4]

    slopes = jax.jacobian(before_the_cut)(jnp.asarray(x, jnp.float32))  # [4, 3, 8]
    assert not np.any(slopes[:, :, 4:])
    assert np.all(slopes[0, 0, :4])
    assert np.any(slopes[:, 2, 3]) == (flag == "truncated")


def test_the_value_of_a_reset_observation_changes_nothing_before_it():
    """Values of the observations that follow a reset are 1e6; the steps before it do not see it."""
    reward, value, next_value, terminated, truncated = trajectory(40, 3)
    done = terminated | truncated
    after = np.concatenate([[False], done[:-1]])
    before = compiled(reward, value, next_value, terminated, truncated, GAMMA, LAMBDA)
    wild = np.where(after, 1e6, value)
    got = compiled(reward, wild, next_value, terminated, truncated, GAMMA, LAMBDA)
    np.testing.assert_array_equal(before[~after], got[~after])
