"""common/returns.py against loops in float64 and closed forms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import gae_by_double_sum
from recurrence import retrace_by_double_sum

from algorithms.a2c import td_error
from common.returns import gae, retrace, vtrace

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
    return gae_by_double_sum(delta, terminated | truncated, gamma * gae_lambda)


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


# Retrace and V-trace.


@pytest.mark.parametrize("ends", [[], [0], [3], [2, 5], [6]])
def test_retrace_is_the_double_sum(ends):
    rng = np.random.default_rng(0)
    q, error, trace = rng.normal(size=(3, 7))
    done = np.isin(np.arange(7), ends)
    got = retrace(jnp.array(q), jnp.array(error), jnp.array(done), jnp.array(abs(trace)), 0.9)
    np.testing.assert_allclose(
        got, retrace_by_double_sum(q, error, done, abs(trace), 0.9), rtol=1e-5
    )


def test_retrace_without_traces_is_one_step_and_with_all_of_them_the_return():
    """With Q = 0 of everything, errors are rewards."""
    reward = jnp.array([1.0, 2.0, 4.0])
    done, zero, one = jnp.zeros(3, bool), jnp.zeros(3), jnp.ones(3)
    np.testing.assert_array_equal(retrace(zero, reward, done, zero, 0.5), reward)
    np.testing.assert_array_equal(retrace(zero, reward, done, one, 0.5), [3, 4, 4])


def vtrace_by_double_sum(value, error, done, trace, gamma):
    """V-trace as its paper writes it, from ρ δ."""
    targets = []
    for t in range(len(value)):
        total, weight = value[t], 1.0
        for s in range(t, len(value)):
            total += weight * error[s]
            weight *= 0 if done[s] else gamma * trace[s]
        targets.append(total)
    return targets


@pytest.mark.parametrize("ends", [[], [0], [3], [2, 5], [6]])
def test_vtrace_is_the_double_sum(ends):
    rng = np.random.default_rng(1)
    value, error, trace = rng.normal(size=(3, 7))
    done = np.isin(np.arange(7), ends)
    got = vtrace(jnp.array(value), jnp.array(error), jnp.array(done), jnp.array(abs(trace)), 0.9)
    expected = vtrace_by_double_sum(value, error, done, abs(trace), 0.9)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


# An MDP of two states and two actions, whose behaviour is uniform.
TRANSITION = np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.5, 0.5], [0.1, 0.9]]])  # [s, a, s']
REWARD = np.array([[1.0, 0.0], [0.0, 2.0]])  # [s, a]
POLICY = np.array([[0.9, 0.1], [0.3, 0.7]])  # π
BEHAVIOUR = np.full((2, 2), 0.5)  # μ


def value_of(policy):
    """V of a policy by a linear solve, [s]."""
    transition = np.einsum("sa,sab->sb", policy, TRANSITION)
    return np.linalg.solve(np.eye(2) - GAMMA * transition, np.sum(policy * REWARD, axis=1))


def all_trajectories(num_steps):
    """Every course (s, a, ..., s) of these steps, [M, num_steps + 1], [M, num_steps], and the
    probability of each under μ, given its first state."""
    states, actions, probabilities = [], [], []
    for s in itertools.product(range(2), repeat=num_steps + 1):
        for a in itertools.product(range(2), repeat=num_steps):
            p = [BEHAVIOUR[s[t], a[t]] * TRANSITION[s[t], a[t], s[t + 1]] for t in range(num_steps)]
            states.append(s)
            actions.append(a)
            probabilities.append(np.prod(p))
    return np.array(states), np.array(actions), np.array(probabilities)


def fixed_point(targets, initial, index):
    """Iterate x ← E_μ[target of the first step], where `index` [M] says whose target it is."""
    _, _, probability = all_trajectories(2)
    x = initial
    for _ in range(250):
        expected = np.zeros_like(x)
        np.add.at(expected, index, probability * targets(x))
        x = expected
    return x


@pytest.mark.parametrize(
    "rho_max, expected",
    [(0.5, (8.348214, 8.794643)), (1.0, (9.895833, 10.697115)), (1.5, (10.661914, 11.782077))],
)
def test_vtrace_converges_to_the_value_of_the_policy_that_rho_max_names(rho_max, expected):
    """Espeholt et al. 2018, eq. 2: π_ρ̄ ∝ min(ρ̄ μ, π), whatever c̄ is."""
    truncated = np.minimum(rho_max * BEHAVIOUR, POLICY)
    np.testing.assert_allclose(
        value_of(truncated / truncated.sum(axis=1, keepdims=True)), expected, rtol=1e-6
    )
    s, a, _ = all_trajectories(2)
    now, then = s[:, :-1], s[:, 1:]
    ratio = (POLICY / BEHAVIOUR)[now, a]
    for c_max in (0.3, 1.0):
        operator = jax.jit(jax.vmap(vtrace, (0, 0, None, 0, None)))

        def targets(v, c_max=c_max, operator=operator):
            error = np.minimum(rho_max, ratio) * (REWARD[now, a] + GAMMA * v[then] - v[now])
            trace = np.minimum(c_max, ratio)
            return operator(v[now], error, jnp.zeros(2, bool), trace, GAMMA)[:, 0]

        got = fixed_point(targets, np.zeros(2), s[:, 0])
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_retrace_converges_to_the_q_of_the_policy_whoever_acts():
    s, a, _ = all_trajectories(2)
    now, then = s[:, :-1], s[:, 1:]
    trace = np.minimum(1, (POLICY / BEHAVIOUR)[now, a])
    operator = jax.jit(jax.vmap(retrace, (0, 0, None, 0, None)))

    def targets(q):
        q = q.reshape(2, 2)
        error = REWARD[now, a] + GAMMA * np.sum(POLICY * q, axis=1)[then] - q[now, a]
        # The probability of the first action is given.
        return operator(q[now, a], error, jnp.zeros(2, bool), trace, GAMMA)[:, 0] / 0.5

    got = fixed_point(targets, np.zeros(4), 2 * s[:, 0] + a[:, 0])
    expected = REWARD + GAMMA * TRANSITION @ value_of(POLICY)
    np.testing.assert_allclose(got.reshape(2, 2), expected, rtol=1e-5)
    assert not np.allclose(np.sum(POLICY * expected, axis=1), (9.895833, 10.697115), rtol=0.01)


def test_a_truncation_within_a_rollout_takes_the_value_of_the_observation_before_the_reset():
    """A chain with reward 1 whose value is 100 under γ = .99, truncated in the middle: on-policy,
    nothing is to be learned, whatever the value of the observation after the reset is."""
    truncated = jnp.arange(4) == 1
    value, next_value = jnp.array([100.0, 100, -7, 100]), jnp.full(4, 100.0)
    error = td_error(value, 1.0, next_value, jnp.zeros(4, bool), 0.99)
    got = vtrace(value, error, truncated, jnp.ones(4), 0.99)
    np.testing.assert_allclose(got[:2], 100, rtol=1e-6)
