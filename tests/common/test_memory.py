"""common/memory.py against loops and NumPy; evaluations of policies with memory."""

import jax
import jax.numpy as jnp
import numpy as np
import probes  # noqa: F401  (it registers environments)
import pytest

from common.buffers import uniform_buffer
from common.envs import make_env, rollout
from common.exploration import random_policy
from common.memory import cut_sequences, gru, recurrent, reset_memory, rollout_with_memory
from common.networks import mlp
from common.runner.evaluation import evaluate


def gru_by_hand(u, x, h):
    """Cho et al. 2014, equations 5 to 8, unit by unit."""
    size, sigmoid = len(h), lambda x: 1 / (1 + np.exp(-x))
    r = [sigmoid(x[i] + sum(u[j, i] * h[j] for j in range(size))) for i in range(size)]
    z = [
        sigmoid(x[size + i] + sum(u[j, size + i] * h[j] for j in range(size))) for i in range(size)
    ]
    new = []
    for i in range(size):
        candidate = x[2 * size + i] + sum(u[j, 2 * size + i] * r[j] * h[j] for j in range(size))
        new.append(z[i] * h[i] + (1 - z[i]) * np.tanh(candidate))
    return new


def test_gru_is_its_equations():
    rng = np.random.default_rng(0)
    u, x, h = rng.normal(size=(4, 12)), rng.normal(size=12), rng.normal(size=4)
    expected = gru_by_hand(u, x, h)
    np.testing.assert_allclose(gru(jnp.array(u), jnp.array(x), jnp.array(h)), expected, rtol=1e-5)
    # z = 1 keeps the memory, z = 0 and r = 0 forget it.
    gates = np.array([-100.0] * 4 + [100.0] * 4 + [0.3] * 4)
    np.testing.assert_allclose(gru(0 * u, gates, h), h, rtol=1e-6)
    gates[4:8] = -100
    np.testing.assert_allclose(gru(jnp.array(u), gates, 0 * h), np.tanh([0.3] * 4), rtol=1e-6)


def small_recurrent(max_steps=1):
    return recurrent(mlp([3, 5]), 5, 4, mlp([4, 2]), max_steps)


def test_a_recurrent_network_is_its_parts():
    network = small_recurrent()
    params = network.init(jax.random.key(0))
    ((w, b),), (w_in, b_in, u), ((w_out, b_out),) = jax.tree.map(np.asarray, params)
    x, memory = np.array([0.2, -1.0, 0.5], np.float32), np.array([0.1, 0.0, -0.4, 0.9], np.float32)
    y, after = network.apply(params, memory, x)
    expected = gru_by_hand(u, (x @ w + b) @ w_in + b_in, memory)
    np.testing.assert_allclose(after, expected, rtol=1e-5)
    np.testing.assert_allclose(y, np.array(expected) @ w_out + b_out, rtol=1e-4)
    assert not network.init_memory().any() and network.init_memory().shape == (4,)


def test_unroll_is_apply_step_by_step_with_resets():
    """For several environments at once; the memories are from before each reset, and the last one
    from after it."""
    with jax.enable_x64(True):
        network = small_recurrent()
        params = network.init(jax.random.key(0))
        x = jax.random.normal(jax.random.key(1), (7, 2, 3))
        done = jnp.zeros((7, 2), bool).at[jnp.array([2, 3, 6]), jnp.array([0, 1, 1])].set(True)
        first = jax.random.normal(jax.random.key(2), (2, 4))
        y, memories, last = jax.jit(network.unroll)(params, first, x, done)
        memory = first
        for t in range(7):
            output, memory = jax.jit(network.apply)(params, memory, x[t])
            np.testing.assert_allclose(output, y[t], rtol=1e-14)  # sums in another order
            np.testing.assert_allclose(memory, memories[t], rtol=1e-14)
            memory = jnp.where(done[t][:, None], network.init_memory(), memory)
        np.testing.assert_allclose(memory, last, rtol=1e-14)
        assert not last[1].any() and last[0].all()


def test_no_gradient_crosses_a_reset():
    network = small_recurrent()
    params = network.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (5, 3))
    done = jnp.array([False, True, False, False, False])

    def late(first, x):
        return network.unroll(params, first, x, done)[0][2:].sum()

    to_first, to_x = jax.grad(late, argnums=(0, 1))(jnp.ones(4), x)
    assert not to_first.any() and not to_x[:2].any() and to_x[2:].any(-1).all()


def test_memories_decay_over_as_many_steps_as_asked():
    """The bias of z is ln u, u ~ U(1, max_steps): z = u / (1 + u)."""
    network = recurrent(mlp([3, 5]), 5, 2_000, mlp([2_000, 2]), max_steps=99)
    _, b, _ = network.init(jax.random.key(0))[1]
    steps = np.exp(b[2_000:4_000])
    assert not b[:2_000].any() and not b[4_000:].any()
    assert steps.min() >= 1 and steps.max() <= 99 and abs(steps.mean() - 50) < 3


def test_memory_is_reset_where_episodes_end():
    """Of each environment on its own; arrays of any shape."""
    memory = {"a": jnp.ones((3, 2)), "b": jnp.arange(3)}
    initial = {"a": jnp.zeros(2), "b": jnp.array(7)}
    reset = reset_memory(memory, jnp.array([True, False, True]), initial)
    np.testing.assert_array_equal(reset["a"], [[0, 0], [1, 1], [0, 0]])
    np.testing.assert_array_equal(reset["b"], [7, 1, 7])


@pytest.mark.parametrize("env_id", ["CartPole-v1", "AlwaysTruncated-probe"])
def test_a_rollout_hands_each_environment_its_own_memory(env_id):
    """A memory that counts the steps of its episode: 0 after each end, terminated or truncated."""
    env, num_steps = make_env(env_id, 3), 60

    def policy(memory, obs, key):
        count, which = memory
        return random_policy(env)(obs, key), (count + 1, which)

    def roll(key):
        start = (jnp.zeros(3, int), 10 * jnp.arange(3))
        states = env.reset(key), start
        return rollout_with_memory(env, policy, states, (jnp.array(0), jnp.array(5)), key, 60)

    (state, memory), t, before, metrics = jax.jit(roll)(jax.random.key(0))
    done = np.asarray(t.terminated | t.truncated)
    count, which = np.zeros(3, int), 10 * np.arange(3)
    for step in range(num_steps):
        np.testing.assert_array_equal(before[0][step], count)
        np.testing.assert_array_equal(before[1][step], which)
        count, which = np.where(done[step], 0, count + 1), np.where(done[step], 5, which)
    np.testing.assert_array_equal(memory[0], count)
    assert done.any(0).all() and metrics["episodes"] == done.sum()
    plain, transitions, _ = jax.jit(
        lambda key: rollout(env, random_policy(env), env.reset(key), key, 60)
    )(jax.random.key(0))
    np.testing.assert_array_equal(plain.obs, state.obs)
    np.testing.assert_array_equal(transitions.reward, t.reward)


def test_an_evaluation_begins_with_the_memory_of_each_environment():
    """A policy that pushes the pole left at even steps and right at odd ones has the returns of the
    same policy played by hand."""
    env = make_env("CartPole-v1", 4)
    act = lambda params, count, obs, key: (count % 2, count + 1)
    play = lambda key: evaluate(env, act, None, key, lambda: jnp.array(1))
    returns, lengths = jax.jit(play)(jax.random.key(0))
    key_reset, key_steps = jax.random.split(jax.random.key(0))
    state, step = env.reset(key_reset), jax.jit(env.step)
    expected, ended = np.zeros(4), np.zeros(4, bool)
    for t in range(500):
        state, transition = step(state, jnp.full(4, (t + 1) % 2), key_steps)
        expected += ~ended
        ended |= np.asarray(transition.terminated)
        if ended.all():
            break
    np.testing.assert_array_equal(returns, expected)
    np.testing.assert_array_equal(lengths, expected)


def stream(first, num_steps, num_envs=2):
    """Memories before steps first, first + 1, ... of every environment, and those steps: the number
    of a step is 100 times its environment and its place in it."""
    step = first + jnp.arange(num_steps)[:, None] + 100 * jnp.arange(num_envs)
    return {"before": -step[..., None]}, {"step": step, "obs": step[..., None] * jnp.ones(3)}


@pytest.mark.parametrize("num_steps, overlap", [(3, 2), (2, 5), (4, 0), (1, 0)])
def test_sequences_are_steps_in_a_row_from_the_memory_before_the_first(num_steps, overlap):
    memories, transitions = stream(1, 3 * num_steps + overlap)
    memory, steps = cut_sequences(memories, transitions, num_steps, overlap)
    length = num_steps + overlap
    for k in range(3):
        for n in range(2):
            expected = 1 + 100 * n + k * num_steps + np.arange(length)
            np.testing.assert_array_equal(steps["step"][k, n], expected)
            np.testing.assert_array_equal(steps["obs"][k, n], np.outer(expected, np.ones(3)))
            np.testing.assert_array_equal(memory["before"][k, n], [-expected[0]])
    assert steps["step"].shape == (3, 2, length)


@pytest.mark.parametrize("num_rows, warmup_blocks", [(8, 0), (7, 3), (2, 1)])
def test_no_sequence_crosses_the_head_of_a_ring(num_rows, warmup_blocks):
    """A block is a sequence of each of two environments; one is added at a time."""
    num_steps, overlap = 3, 4
    buffer = uniform_buffer(num_rows, 2, 64)
    warmup = stream(1, warmup_blocks * num_steps + overlap)
    ring = buffer.init(cut_sequences(*warmup, num_steps, overlap))
    add, num_blocks = jax.jit(buffer.add), -(-num_rows // 2)
    for number in range(warmup_blocks, warmup_blocks + 11):
        new = stream(1 + number * num_steps, num_steps + overlap)
        ring = add(ring, cut_sequences(*new, num_steps, overlap), number)
        oldest = max(0, number + 1 - num_blocks)
        firsts = []
        for memory, steps in zip(ring.memory["before"], ring.transitions["step"], strict=True):
            if steps.any():
                np.testing.assert_array_equal(steps, steps[0] + np.arange(num_steps + overlap))
                assert memory == -steps[0]
                firsts.append(int(steps[0]))
        expected = [1 + 3 * k + 100 * n for n in (0, 1) for k in range(oldest, number + 1)]
        assert sorted(firsts) == expected
