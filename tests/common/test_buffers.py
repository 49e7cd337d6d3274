"""common/buffers.py against a deque."""

from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.buffers import pack, uniform_buffer, unpack


def blocks(first, num_steps, num_envs):
    """Transitions [T, N] numbered from `first` on (from 1, so that a 0 is an empty row)."""
    ids = first + jnp.arange(num_steps * num_envs).reshape(num_steps, num_envs)
    return {"id": ids, "obs": ids[..., None] * jnp.ones(3)}


@pytest.mark.parametrize("buffer_size", [12, 13, 60])
@pytest.mark.parametrize("num_steps, num_envs", [(1, 4), (2, 3), (4, 1)])
@pytest.mark.parametrize("num_warmup", [0, 2])
def test_the_ring_holds_the_latest_transitions(buffer_size, num_steps, num_envs, num_warmup):
    size = num_steps * num_envs
    buffer = uniform_buffer(buffer_size, size, 64)
    capacity = -(-buffer_size // size) * size
    oracle = deque(range(1, num_warmup * size + 1), maxlen=capacity)
    data = buffer.init(blocks(1, num_warmup * num_steps, num_envs))
    add, sample = jax.jit(buffer.add), jax.jit(buffer.sample)
    for step in range(40):
        first = 1 + (num_warmup + step) * size
        data = add(data, blocks(first, num_steps, num_envs), num_warmup + step)
        oracle.extend(range(first, first + size))
        ids = np.asarray(unpack(data)["id"])
        assert sorted(ids[ids > 0]) == list(oracle)
        batch = sample(data, jax.random.key(step), num_warmup + step + 1)
        assert set(np.asarray(batch["id"])) <= set(oracle)
        np.testing.assert_array_equal(batch["obs"][:, 0], batch["id"])


def test_sampling_is_uniform_over_what_was_written():
    buffer = uniform_buffer(100, 10, 50_000)
    data = buffer.init(blocks(1, 3, 10))
    ids = np.asarray(buffer.sample(data, jax.random.key(0), 3)["id"])
    counts = np.bincount(ids, minlength=101)
    assert counts[0] == 0 and counts[31:].sum() == 0
    chi2 = ((counts[1:31] - 50_000 / 30) ** 2 / (50_000 / 30)).sum()
    assert chi2 < 58  # the 99.9 % quantile with 29 degrees of freedom


def test_positions_stay_right_beyond_what_float32_counts():
    """Addition 2^24 + 1 still goes to its own slot."""
    buffer = uniform_buffer(12, 4, 8)
    data = buffer.init(blocks(1, 3, 4))
    number = 2**24 + 1
    after = buffer.add(data, blocks(1_000, 1, 4), jnp.int32(number))
    changed = np.flatnonzero(np.asarray(unpack(after)["id"]) >= 1_000)
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
    rows = jax.jit(pack)(transitions)
    assert rows.words.shape == (6, 20 + 4) and rows.bytes.shape == (6, 20 + 1 + 2 * 20)
    for name, x in unpack(rows).items():
        assert x.dtype == name and x.shape == (6, *transitions[name].shape[2:])
        assert x.tobytes() == transitions[name].tobytes(), name


def test_every_bit_of_float64_comes_back():
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (2, 3, 4), jnp.float64)
        assert unpack(pack({"x": x}))["x"].tobytes() == x.tobytes()


def test_bool_stays_bool_and_takes_one_byte():
    data = uniform_buffer(8, 2, 4).init({"obs": jnp.ones((1, 2, 5), bool)})
    assert data.bytes.shape == (8, 5) and data.words.shape == (8, 0)
    assert unpack(data)["obs"].dtype == bool
