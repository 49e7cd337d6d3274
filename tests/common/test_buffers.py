"""common/buffers.py against a deque."""

from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.buffers import rows, uniform_buffer


def blocks(first, num_steps, num_envs):
    """Transitions [T, N] numbered from `first` on (from 1, so that a 0 is an empty row)."""
    ids = first + jnp.arange(num_steps * num_envs).reshape(num_steps, num_envs)
    return {"id": ids, "obs": ids[..., None] * jnp.ones(3)}


@pytest.mark.parametrize("buffer_size", [12, 13, 60])
@pytest.mark.parametrize("num_steps, num_envs", [(1, 4), (2, 3), (4, 1)])
@pytest.mark.parametrize("warmup_blocks", [0, 2])
def test_the_ring_holds_the_latest_transitions(buffer_size, num_steps, num_envs, warmup_blocks):
    size = num_steps * num_envs
    buffer = uniform_buffer(buffer_size, size, 64)
    capacity = -(-buffer_size // size) * size
    oracle = deque(range(1, warmup_blocks * size + 1), maxlen=capacity)
    buffer_state = buffer.init(blocks(1, warmup_blocks * num_steps, num_envs))
    add, sample = jax.jit(buffer.add), jax.jit(buffer.sample)
    for step in range(40):
        first = 1 + (warmup_blocks + step) * size
        buffer_state = add(buffer_state, blocks(first, num_steps, num_envs), warmup_blocks + step)
        oracle.extend(range(first, first + size))
        ids = np.asarray(buffer_state["id"])
        assert sorted(ids[ids > 0]) == list(oracle)
        batch = sample(buffer_state, jax.random.key(step), warmup_blocks + step + 1)
        assert set(np.asarray(batch["id"])) <= set(oracle)
        np.testing.assert_array_equal(batch["obs"][:, 0], batch["id"])


def test_sampling_is_uniform_over_what_was_written():
    buffer = uniform_buffer(100, 10, 50_000)
    buffer_state = buffer.init(blocks(1, 3, 10))
    ids = np.asarray(buffer.sample(buffer_state, jax.random.key(0), 3)["id"])
    counts = np.bincount(ids, minlength=101)
    assert counts[0] == 0 and counts[31:].sum() == 0
    chi2 = ((counts[1:31] - 50_000 / 30) ** 2 / (50_000 / 30)).sum()
    assert chi2 < 58  # the 99.9 % quantile with 29 degrees of freedom


def test_positions_stay_right_beyond_what_float32_counts():
    """Addition 2^24 + 1 still goes to its own slot."""
    buffer = uniform_buffer(12, 4, 8)
    buffer_state = buffer.init(blocks(1, 3, 4))
    number = 2**24 + 1
    after = buffer.add(buffer_state, blocks(1_000, 1, 4), jnp.int32(number))
    changed = np.flatnonzero(np.asarray(after["id"]) >= 1_000)
    np.testing.assert_array_equal(changed, number % 3 * 4 + np.arange(4))


def test_every_bit_comes_back():
    """Booleans, small and large integers, NaN payloads and denormal numbers, whole images."""
    bits = jax.random.bits(jax.random.key(0), (2, 3, 4, 5))
    transitions = {
        "float32": jax.lax.bitcast_convert_type(bits, jnp.float32),
        "bool": bits % 2 == 0,
        "int32": bits[..., 0].astype(jnp.int32),
        "uint8": bits[:, :, 0, 0].astype(jnp.uint8),
        "bfloat16": bits.astype(jnp.bfloat16),
    }
    buffer = uniform_buffer(12, 6, 64)
    blank = jax.tree.map(jnp.zeros_like, transitions)
    buffer_state = jax.jit(buffer.add)(buffer.init(blank), transitions, 1)
    written = jax.jit(rows)(buffer_state, jnp.arange(6, 12))
    for first, kept in ((0, buffer.init(transitions)), (0, written), (6, buffer_state)):
        for name, x in kept.items():
            assert x.dtype == name and x.shape[1:] == transitions[name].shape[2:]
            assert x[first : first + 6].tobytes() == transitions[name].tobytes(), name
    batch = jax.jit(buffer.sample)(buffer_state, jax.random.key(0), 2)
    for name, x in batch.items():
        assert x.dtype == name and x.shape == (64, *transitions[name].shape[2:])


def test_every_bit_of_float64_comes_back():
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (2, 3, 4), jnp.float64)
        buffer = uniform_buffer(6, 6, 1)
        assert buffer.init({"x": x})["x"].tobytes() == x.tobytes()
        assert buffer.add({"x": jnp.zeros((6, 4))}, {"x": x}, 3)["x"].tobytes() == x.tobytes()


def test_bool_stays_bool_and_takes_one_byte():
    buffer_state = uniform_buffer(8, 2, 4).init({"obs": jnp.ones((1, 2, 5), bool)})
    assert buffer_state["obs"].dtype == bool and buffer_state["obs"].nbytes == 8 * 5


def test_rows_are_those_of_the_index_in_every_array():
    tree = {"id": jnp.arange(5), "obs": jnp.arange(30.0).reshape(5, 2, 3)}
    index = np.array([4, 0, 4, 2])
    batch = jax.jit(rows)(tree, index)
    np.testing.assert_array_equal(batch["id"], index)
    np.testing.assert_array_equal(batch["obs"], np.asarray(tree["obs"])[index])


@pytest.mark.parametrize("num_steps, num_envs", [(1, 3), (1, 5), (2, 4), (0, 4)])
def test_a_block_of_another_size_is_refused(num_steps, num_envs):
    """It would overwrite part of another block, or leave old transitions in its own."""
    buffer = uniform_buffer(12, 4, 8)
    buffer_state = buffer.init(blocks(1, 1, 4))
    with pytest.raises((TypeError, ValueError), match="reshape|not a block"):
        jax.jit(buffer.add)(buffer_state, blocks(5, num_steps, num_envs), 1)


def test_more_than_the_buffer_holds_is_refused_at_once():
    with pytest.raises((TypeError, ValueError)):
        uniform_buffer(8, 4, 8).init(blocks(1, 3, 4))
