"""n_step_dqn.py: its equations by hand and against a loop over the stream, and what it learns."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    check_budget,
    check_q_probe,
    check_td_loss,
    every_end,
    first_update,
    pairs,
    relu_mlp,
    states_of,
)

from algorithms import dqn, n_step_dqn
from algorithms.n_step_dqn import Config, NStep, make, n_step, td_error
from common.envs import Transition

PARAMS = jnp.array([[7.0, 3.0], [1.0, 5.0]])  # Q(s, a; θ): the action taken is worth 3
TARGET_PARAMS = jnp.array([[0.0, 0.0], [40.0, 20.0]])  # max_a' Q(s', a'; θ⁻) = 40


def error(params, target_params, t):
    """The TD error of an n-step transition, from tables."""
    next_value = jnp.max(target_params[t.next_obs])
    return td_error(params[t.obs, t.action], t.reward, next_value, t.terminated, t.discount)


def window(rewards, terminated=(), truncated=()):
    """Steps from state 0 to 1 to 2 ..., with ends at those places."""
    n = len(rewards)
    at = lambda places: jnp.isin(jnp.arange(n), jnp.array(places, int))
    return Transition(
        obs=jnp.arange(n),
        action=10 + jnp.arange(n),
        reward=jnp.array(rewards, float),
        next_obs=1 + jnp.arange(n),
        terminated=at(terminated),
        truncated=at(truncated),
    )


@pytest.mark.parametrize(
    "terminated, truncated, expected",
    [
        ([], [], (0, 10, 1 + 2 / 2 + 4 / 4, 3, False, 1 / 8)),
        ([2], [], (0, 10, 1 + 2 / 2 + 4 / 4, 3, True, 1 / 8)),
        ([], [2], (0, 10, 1 + 2 / 2 + 4 / 4, 3, False, 1 / 8)),
        ([1], [], (0, 10, 1 + 2 / 2, 2, True, 1 / 4)),
        ([], [1], (0, 10, 1 + 2 / 2, 2, False, 1 / 4)),  # bootstraps, two steps on
        ([1], [1], (0, 10, 1 + 2 / 2, 2, True, 1 / 4)),
        ([0], [], (0, 10, 1, 1, True, 1 / 2)),
        ([0, 1, 2], [], (0, 10, 1, 1, True, 1 / 2)),  # later ends are other episodes'
        ([2], [0], (0, 10, 1, 1, False, 1 / 2)),
    ],
)
def test_n_step_by_hand(terminated, truncated, expected):
    with jax.numpy_rank_promotion("raise"):
        got = n_step(window([1, 2, 4], terminated, truncated), 0.5)
    assert tuple(x.item() for x in got) == expected


def test_what_follows_an_end_does_not_matter():
    steps = window([1, jnp.nan, jnp.inf], truncated=[0])
    np.testing.assert_array_equal(n_step(steps, 0.5).reward, 1)


@every_end
def test_td_error_of_an_episode_that_ends_after_two_of_three_steps(
    terminated, truncated, bootstraps
):
    """R = 2 + 0.5 6 + 0.25 8, and 40 is three steps away, or what is left of it if it ended."""
    steps = Transition(
        obs=jnp.array([0, 3, 3]),
        action=jnp.array([1, 0, 0]),
        reward=jnp.array([2.0, 6.0, 8.0]),
        next_obs=jnp.array([3, 1 if terminated or truncated else 3, 1]),
        terminated=jnp.array([False, terminated, False]),
        truncated=jnp.array([False, truncated, False]),
    )
    with jax.numpy_rank_promotion("raise"):
        got = error(PARAMS, TARGET_PARAMS, n_step(steps, 0.5))
    if terminated or truncated:
        assert got == 2 + 0.5 * 6 + bootstraps * 0.25 * 40 - 3
    else:
        assert got == 2 + 0.5 * 6 + 0.25 * 8 + 0.125 * 40 - 3


def test_gradient_is_semi_gradient():
    """Only Q(s, a; θ) is differentiated: neither the target nor any other entry of θ."""
    t = NStep(jnp.int32(0), jnp.int32(1), 2.0, jnp.int32(1), jnp.array(False), 0.5)
    gradient, target_gradient = jax.grad(error, argnums=(0, 1))(PARAMS, TARGET_PARAMS, t)
    np.testing.assert_array_equal(gradient, [[0, -1], [0, 0]])
    np.testing.assert_array_equal(target_gradient, np.zeros((2, 2)))


def test_an_update_descends_the_squared_td_error_of_its_batch():
    update = first_update(n_step_dqn, n_step=3)
    assert len(np.unique(update.batch.discount)) == 3
    next_q = relu_mlp(update.state.target_params, update.batch.next_obs)
    check_td_loss(update, relu_mlp, next_q.max(-1))


def by_loop(stream, start, n, gamma):
    """The n-step transition of every environment from step `start` of a stream [T, N] on."""
    result = []
    for e in range(stream.reward.shape[1]):
        total, discount = 0.0, 1.0
        for i in range(start, start + n):
            total += discount * stream.reward[i, e]
            discount *= gamma
            if stream.terminated[i, e] or stream.truncated[i, e]:
                break
        first, last = (start, e), (i, e)
        end = stream.next_obs[last], stream.terminated[last], discount
        result.append((stream.obs[first], stream.action[first], total, *end))
    return NStep(*(np.array(x) for x in zip(*result, strict=True)))


def small(module=n_step_dqn, **fields):
    """Episodes of 1, 2 and 8 steps, terminated and truncated."""
    defaults = {
        "env_id": "Together-probe",
        "total_timesteps": 1_000,
        "learning_starts": 100,
        "buffer_size": 500,
        "batch_size": 16,
        "hidden_sizes": (16,),
        "num_envs": 5,
        "gamma": 0.75,
    }
    return module.Config(**defaults | fields)


def assert_rows(data, start, expected):
    rows = jax.tree.map(lambda x: np.asarray(x)[start : start + len(expected.reward)], data)
    for got, want in zip(rows, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("n, train_frequency", [(2, 1), (3, 2), (5, 3), (11, 4)])
def test_replay_holds_the_n_step_transitions_of_the_stream(n, train_frequency):
    """20 updates into a ring of 8 blocks, which wraps twice; n of 11 is longer than any episode."""
    block = 5 * train_frequency
    fields = {"train_frequency": train_frequency, "learning_starts": 3 * block}
    config = small(n_step=n, buffer_size=8 * block, total_timesteps=3_000, **fields)
    states = states_of(make(config), 20)
    stream, ends = states[0].pending, set()
    for update, (_, after) in enumerate(pairwise(states)):
        new = jax.tree.map(lambda x: x[max(0, n - 1 - train_frequency) :], after.pending)
        assert len(new.reward) == train_frequency
        stream = jax.tree.map(lambda *x: np.concatenate(x), stream, new)
        for block_number in range(max(0, update - 4), update + 1):  # these are not yet overwritten
            for t in range(train_frequency):
                start = block_number * train_frequency + t
                row = (3 + block_number) % 8 * block + 5 * t
                assert_rows(after.buffer, row, by_loop(stream, start, n, 0.75))
        rows = after.buffer
        ends |= set(zip(rows.discount.tolist(), rows.terminated.tolist(), strict=True))
    ends.discard((0.0, False))  # rows that nothing has been written to
    steps_until = {0.75**k for k in range(1, min(n, 8) + 1)}
    assert {discount for discount, _ in ends} == steps_until
    assert {terminated for _, terminated in ends} == {True, False}


def test_init_fills_the_replay_with_the_n_step_transitions_of_the_random_stream():
    """DQN takes the same random steps from the same key, and keeps them one by one."""
    n, steps = 4, 60
    start = jax.jit(make(small(n_step=n, learning_starts=5 * steps)).init)(jax.random.key(3))
    one_by_one = dqn.make(small(dqn, learning_starts=5 * (steps + n - 1)))
    stream = jax.jit(one_by_one.init)(jax.random.key(3)).buffer
    stream = jax.tree.map(
        lambda x: np.asarray(x)[: 5 * (steps + n - 1)].reshape(-1, 5, *x.shape[1:]), stream
    )
    for t in range(steps):
        assert_rows(start.buffer, 5 * t, by_loop(stream, t, n, 0.75))
    for pending, last in pairs(start.pending, jax.tree.map(lambda x: x[steps:], stream)):
        np.testing.assert_array_equal(pending, last)
    assert not start.buffer.discount[5 * steps :].any()


@pytest.mark.parametrize("env_id", ["Together-probe", "CartPole-v1"])
def test_one_step_is_dqn_bit_for_bit(env_id):
    fields = {"env_id": env_id, "train_frequency": 2, "buffer_size": 200, "learning_starts": 100}
    ours = states_of(make(small(n_step=1, gamma=0.99, **fields)), 40)
    theirs = states_of(dqn.make(small(dqn, gamma=0.99, **fields)), 40)
    for a, b in zip(ours, theirs, strict=True):
        for x, y in pairs((a.params, a.target_params, a.env), (b.params, b.target_params, b.env)):
            np.testing.assert_array_equal(x, y)
        for field in ("obs", "action", "reward", "next_obs", "terminated"):
            x, y = getattr(a.buffer, field), getattr(b.buffer, field)
            np.testing.assert_array_equal(x, y)


def test_the_budget_counts_every_environment_step():
    check_budget(make(small(learning_starts=101, n_step=3)), 105 + 2 * 5, 1_000)


@pytest.mark.parametrize(
    "name",
    [
        "Together-probe",
        pytest.param("TogetherVector-probe", marks=pytest.mark.slow),
        "ResetTrapVector-probe",
    ],
)
def test_it_learns_the_values_and_best_actions_of_the_probes(name):
    check_q_probe(n_step_dqn, name)


def test_n_is_at_least_one():
    with pytest.raises(ValueError, match="--n-step"):
        Config(n_step=0)
