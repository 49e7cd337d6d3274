"""Experience replay as pure functions over plain arrays."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from common.envs import Transition


class Buffer(NamedTuple):
    """A ring of transitions [capacity, ...], written in blocks of one update's transitions.

    The ring's state is the data alone. The number of blocks written so far is an argument: it
    follows from the update's index, so it stays a scalar when seeds are vmapped, and a write
    stays a slice.
    """

    init: Callable  # transitions [T, N, ...] -> data, with those in the first T * N rows
    add: Callable  # data, transitions [T, N, ...], blocks written before -> data
    sample: Callable  # data, key, blocks written -> transitions [B, ...]


def uniform_buffer(buffer_size: int, block_size: int, batch_size: int) -> Buffer:
    """Samples uniformly, with replacement, from the latest `buffer_size` transitions (rounded up
    to whole blocks of `block_size`)."""
    num_blocks = -(-buffer_size // block_size)

    def flat(transitions):
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), transitions)

    def init(transitions):
        def pad(x):
            return jnp.zeros((num_blocks * block_size, *x.shape[1:]), x.dtype).at[: len(x)].set(x)

        return jax.tree.map(pad, flat(transitions))

    def add(data, transitions, num_written):
        start = num_written % num_blocks * block_size

        def write(ring, x):
            return jax.lax.dynamic_update_slice_in_dim(ring, x, start, axis=0)

        return jax.tree.map(write, data, flat(transitions))

    def sample(data, key, num_written) -> Transition:
        size = jnp.minimum(num_written, num_blocks) * block_size
        index = jax.random.randint(key, (batch_size,), 0, size)
        return jax.tree.map(lambda x: x.at[index].get(mode="promise_in_bounds"), data)

    return Buffer(init, add, sample)
