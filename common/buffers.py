"""Experience replay as pure functions over plain arrays."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Buffer(NamedTuple):
    """A ring of transitions, written in blocks of one update's transitions.

    The ring's state is the data alone. The number of blocks written so far is an argument: it
    follows from the update's index, so it stays a scalar when seeds are vmapped, and a write
    stays a slice.
    """

    init: Callable  # transitions [T, N, ...] -> data, with those in the first T * N rows
    add: Callable  # data, transitions [T, N, ...], blocks written before -> data
    sample: Callable  # data, key, blocks written -> transitions [B, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """One transition a row, all its numbers side by side: a write is then two slices and a sample
    two gathers, however many fields a transition has."""

    words: jax.Array  # [capacity, W] uint32: the bits of the fields of 4 or 8 bytes
    bytes: jax.Array  # [capacity, B] uint8: those of the smaller ones, such as booleans
    tree: Any = dataclasses.field(metadata={"static": True})  # how the fields are nested
    fields: tuple = dataclasses.field(metadata={"static": True})  # shape and dtype of each


def pack(transitions) -> Rows:
    """Transitions [T, N, ...] as T * N rows."""
    leaves, tree = jax.tree.flatten(transitions)
    num_rows = math.prod(leaves[0].shape[:2])
    words, small = [jnp.zeros((num_rows, 0), jnp.uint32)], [jnp.zeros((num_rows, 0), jnp.uint8)]
    for x in leaves:
        part = words if x.dtype.itemsize >= 4 else small
        unit = part[0].dtype
        bits = x.astype(unit) if x.dtype.kind == "b" else jax.lax.bitcast_convert_type(x, unit)
        part.append(bits.reshape(num_rows, math.prod(bits.shape[2:])))
    fields = tuple((x.shape[2:], x.dtype) for x in leaves)
    return Rows(jnp.concatenate(words, axis=1), jnp.concatenate(small, axis=1), tree, fields)


def unpack(rows: Rows):
    """The transitions [B, ...] of B rows, bit for bit those that were packed."""
    leaves, used = [], {"words": 0, "bytes": 0}
    for shape, dtype in rows.fields:
        part = "words" if dtype.itemsize >= 4 else "bytes"
        bits, begin = getattr(rows, part), used[part]
        split = () if dtype.itemsize == bits.dtype.itemsize else (-1,)  # units of one number
        used[part] += math.prod(shape) * dtype.itemsize // bits.dtype.itemsize
        x = bits[:, begin : used[part]].reshape(len(bits), *shape, *split)
        leaves.append(x != 0 if dtype.kind == "b" else jax.lax.bitcast_convert_type(x, dtype))
    return jax.tree.unflatten(rows.tree, leaves)


def uniform_buffer(buffer_size: int, block_size: int, batch_size: int) -> Buffer:
    """Samples uniformly, with replacement, from the latest `buffer_size` transitions (rounded up
    to whole blocks of `block_size`)."""
    num_blocks = -(-buffer_size // block_size)

    def init(transitions):
        def pad(x):
            return jnp.zeros((num_blocks * block_size, *x.shape[1:]), x.dtype).at[: len(x)].set(x)

        return jax.tree.map(pad, pack(transitions))

    def add(data, transitions, num_written):
        start = num_written % num_blocks * block_size

        def write(ring, x):
            return jax.lax.dynamic_update_slice_in_dim(ring, x, start, axis=0)

        return jax.tree.map(write, data, pack(transitions))

    def sample(data, key, num_written):
        size = jnp.minimum(num_written, num_blocks) * block_size
        index = jax.random.bits(key, (batch_size,)) % size.astype(jnp.uint32)  # bias: size / 2^32
        return unpack(jax.tree.map(lambda x: x.at[index].get(mode="promise_in_bounds"), data))

    return Buffer(init, add, sample)
