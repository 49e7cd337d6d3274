"""Experience replay as pure functions over pytrees of arrays."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Buffer(NamedTuple):
    """A ring of transitions, written in blocks of one update's transitions.

    Its state is the transitions alone. How many blocks were written is an argument: it follows
    from the update's index, so it stays a scalar when seeds are vmapped, and a write stays a slice.
    """

    init: Callable  # transitions [T, N, ...] -> buffer_state, with them in the first T * N rows
    add: Callable  # buffer_state, transitions [T, N, ...], blocks written before -> buffer_state
    sample: Callable  # buffer_state, key, blocks written -> transitions [B, ...]


def uniform_buffer(buffer_size: int, block_size: int, batch_size: int) -> Buffer:
    """Sample uniformly, with replacement, from the latest `buffer_size` transitions.

    `buffer_size` is rounded up to whole blocks of `block_size`.
    """
    num_blocks = -(-buffer_size // block_size)

    def init(transitions):
        def pad(x):
            x = x.reshape(-1, *x.shape[2:])
            return jnp.zeros((num_blocks * block_size, *x.shape[1:]), x.dtype).at[: len(x)].set(x)

        return jax.tree.map(pad, transitions)

    def add(buffer_state, transitions, num_written):
        start = num_written % num_blocks * block_size

        def write(ring, x):
            x = x.reshape(block_size, *x.shape[2:])
            return jax.lax.dynamic_update_slice_in_dim(ring, x, start, axis=0)

        return jax.tree.map(write, buffer_state, transitions)

    def sample(buffer_state, key, num_written):
        size = jnp.minimum(num_written, num_blocks) * block_size
        index = jax.random.bits(key, (batch_size,)) % size.astype(jnp.uint32)  # bias: size / 2^32
        return rows(buffer_state, index)

    return Buffer(init, add, sample)


def rows(tree: Any, index: jax.Array) -> Any:
    """Return the rows `index` [B], all within bounds, of arrays [capacity, ...]."""
    return jax.tree.map(lambda x: x.at[index].get(mode="promise_in_bounds"), tree)
