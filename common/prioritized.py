"""Prioritized experience replay as pure functions over plain arrays.

Schaul et al. 2016, Prioritized Experience Replay, https://arxiv.org/abs/1511.05952, proportional
variant: transition i is drawn with probability P(i) = p_i / Σ_k p_k. The exponent α of the paper's
equation (1) is the caller's: what is stored here is its p_i^α.

The priorities are the leaves of a tree in which a node is the sum of its `RADIX` children. Whoever
changes a leaf adds up its ancestors' children anew: nothing is added to or taken from a sum, so no
rounding error accumulates, and a leaf may be named twice in one batch.
"""

import math
from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from common.buffers import Rows, uniform_buffer, unpack

RADIX = 16


class Prioritized(NamedTuple):
    rows: Rows  # [capacity, ...]
    sums: tuple[jax.Array, ...]  # the tree's levels from the leaves up, each a multiple of RADIX
    max_priority: jax.Array  # the largest so far, at first 1


class Sample(NamedTuple):
    transitions: Any  # [B, ...]
    index: jax.Array  # [B] rows
    probability: jax.Array  # [B] P(i)


class PrioritizedBuffer(NamedTuple):
    """A ring of transitions as in common/buffers.py."""

    init: Callable  # transitions [T, N, ...] -> data, with those in the first T * N rows
    add: Callable  # data, transitions [T, N, ...], blocks written before -> data
    sample: Callable  # data, key -> Sample
    update: Callable  # data, index [B], priority [B] -> data


def tree_of(leaves) -> tuple[jax.Array, ...]:
    """The levels above the priorities [capacity], and these first."""
    levels, sums = [], leaves
    while not levels or len(sums) > 1:
        sums = jnp.pad(sums, (0, -len(sums) % RADIX))
        levels.append(sums)
        sums = sums.reshape(-1, RADIX).sum(-1)
    return tuple(levels)


def set_leaves(levels, index, priority) -> tuple[jax.Array, ...]:
    """The tree with those leaves set, [B]. Of a leaf that is named twice one value stays, and its
    ancestors are sums of what stayed."""
    changed = []
    for sums in levels:
        sums = sums.at[index].set(priority, mode="promise_in_bounds")
        changed.append(sums)
        index = index // RADIX
        priority = sums.reshape(-1, RADIX).at[index].get(mode="promise_in_bounds").sum(-1)
    return tuple(changed)


def find_leaf(levels, low, offset) -> tuple[jax.Array, jax.Array]:
    """The leaf i with Σ_{k<i} p_k <= low + offset < Σ_{k<=i} p_k, and p_i.

    A leaf of priority 0 is never found, whatever the rounding: running sums do not fall, and stay
    exactly the same where a child is 0; the child that reaches their end is the last one taken.
    `low` and `offset` are apart because their sum would have too few digits for a large tree.
    """
    node = jnp.int32(0)
    for sums in reversed(levels):
        children = sums.reshape(-1, RADIX).at[node].get(mode="promise_in_bounds")
        node, before = node * RADIX, jnp.zeros((), sums.dtype)
        prefix = list(accumulate(children))
        priority = children[0]
        for part, child in zip(prefix[:-1], children[1:], strict=True):
            passed = (part <= low + offset) & (part < prefix[-1])
            node, before = node + passed, jnp.where(passed, part, before)
            priority = jnp.where(passed, child, priority)
        low -= before
    return node, priority


def prioritized_buffer(buffer_size: int, block_size: int, batch_size: int) -> PrioritizedBuffer:
    """Draws from the latest `buffer_size` transitions (rounded up to whole blocks of `block_size`)
    in proportion to their priorities."""
    ring = uniform_buffer(buffer_size, block_size, batch_size)
    num_blocks = -(-buffer_size // block_size)

    def init(transitions):
        num_rows = math.prod(jax.tree.leaves(transitions)[0].shape[:2])
        priorities = (jnp.arange(num_blocks * block_size) < num_rows).astype(float)
        return Prioritized(ring.init(transitions), tree_of(priorities), jnp.ones(()))

    def add(data, transitions, num_written):
        index = num_written % num_blocks * block_size + jnp.arange(block_size)
        sums = set_leaves(data.sums, index, jnp.full(block_size, data.max_priority))
        return Prioritized(ring.add(data.rows, transitions, num_written), sums, data.max_priority)

    def sample(data, key):
        total = jnp.sum(data.sums[-1])
        part = total / batch_size
        low = jnp.arange(batch_size) * part
        offset = jax.random.uniform(key, (batch_size,)) * part
        index, priority = jax.vmap(find_leaf, (None, 0, 0))(data.sums, low, offset)
        rows = jax.tree.map(lambda x: x.at[index].get(mode="promise_in_bounds"), data.rows)
        return Sample(unpack(rows), index, priority / total)

    def update(data, index, priority):
        sums = set_leaves(data.sums, index, priority)
        return Prioritized(data.rows, sums, jnp.maximum(data.max_priority, jnp.max(priority)))

    return PrioritizedBuffer(init, add, sample, update)
