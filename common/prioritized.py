"""Prioritized experience replay as pure functions over plain arrays.

Schaul et al. 2016, Prioritized Experience Replay, https://arxiv.org/abs/1511.05952, proportional
variant: transition i is drawn with probability P(i) = p_i / Σ_k p_k. The exponent α of the paper's
equation (1) is the caller's: what is stored here is its p_i^α.

The priorities are the leaves of a tree in which each node is the sum of its `RADIX` children. A
change of a leaf recomputes the sums above it from their children, so rounding errors do not
accumulate, and one batch may contain the same leaf twice.
"""

import math
from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from common.buffers import rows, uniform_buffer

RADIX = 16


class PrioritizedState(NamedTuple):
    transitions: Any  # [capacity, ...]
    sum_tree: tuple[jax.Array, ...]  # levels from the leaves up, each a multiple of RADIX long
    max_priority: jax.Array  # the largest so far, initially 1


class Sample(NamedTuple):
    transitions: Any  # [B, ...]
    index: jax.Array  # [B] rows
    probability: jax.Array  # [B] P(i)


class PrioritizedBuffer(NamedTuple):
    """A ring of transitions as in common/buffers.py; buffer_state is a PrioritizedState."""

    init: Callable  # transitions [T, N, ...] -> buffer_state, with them in the first T * N rows
    add: Callable  # buffer_state, transitions [T, N, ...], blocks written before -> buffer_state
    sample: Callable  # buffer_state, key -> Sample
    update: Callable  # buffer_state, index [B], priority [B] -> buffer_state


def build_sum_tree(priorities: jax.Array) -> tuple[jax.Array, ...]:
    """Return the levels of the sum tree over `priorities` [capacity], from the leaves up."""
    levels, sums = [], priorities
    while not levels or len(sums) > 1:
        sums = jnp.pad(sums, (0, -len(sums) % RADIX))
        levels.append(sums)
        sums = sums.reshape(-1, RADIX).sum(-1)
    return tuple(levels)


def update_sum_tree(
    levels: tuple[jax.Array, ...], index: jax.Array, priority: jax.Array
) -> tuple[jax.Array, ...]:
    """Set the leaves `index` [B] to `priority` [B], and recompute the sums above them.

    If `index` names a leaf twice, one of its values is kept; the sums are those of what is kept.
    """
    changed = []
    for sums in levels:
        sums = sums.at[index].set(priority, mode="promise_in_bounds")
        changed.append(sums)
        index = index // RADIX
        priority = sums.reshape(-1, RADIX).at[index].get(mode="promise_in_bounds").sum(-1)
    return tuple(changed)


def sample_sum_tree(
    levels: tuple[jax.Array, ...], low: jax.Array, offset: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the leaf i with Σ_{k<i} p_k <= low + offset < Σ_{k<=i} p_k, and p_i.

    A leaf of priority 0 is never returned, whatever the rounding: prefix sums never decrease, and
    do not change where a child is 0. `low` and `offset` are separate arguments because their sum
    would have too few digits for a large tree.
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
    """Sample from the latest `buffer_size` transitions (rounded up to whole blocks of `block_size`)
    in proportion to their priorities."""
    ring = uniform_buffer(buffer_size, block_size, batch_size)
    num_blocks = -(-buffer_size // block_size)

    def init(transitions):
        num_rows = math.prod(jax.tree.leaves(transitions)[0].shape[:2])
        priorities = (jnp.arange(num_blocks * block_size) < num_rows).astype(float)
        return PrioritizedState(
            ring.init(transitions), build_sum_tree(priorities), max_priority=jnp.ones(())
        )

    def add(buffer_state, transitions, num_written):
        transitions = ring.add(buffer_state.transitions, transitions, num_written)
        index = num_written % num_blocks * block_size + jnp.arange(block_size)
        max_priority = buffer_state.max_priority
        priorities = jnp.full(block_size, max_priority)
        sum_tree = update_sum_tree(buffer_state.sum_tree, index, priorities)
        return PrioritizedState(transitions, sum_tree, max_priority)

    def sample(buffer_state, key):
        total = jnp.sum(buffer_state.sum_tree[-1])
        stratum = total / batch_size
        low = jnp.arange(batch_size) * stratum
        offset = jax.random.uniform(key, (batch_size,)) * stratum
        index, priority = jax.vmap(sample_sum_tree, (None, 0, 0))(
            buffer_state.sum_tree, low, offset
        )
        return Sample(rows(buffer_state.transitions, index), index, priority / total)

    def update(buffer_state, index, priority):
        sum_tree = update_sum_tree(buffer_state.sum_tree, index, priority)
        max_priority = jnp.maximum(buffer_state.max_priority, jnp.max(priority))
        return PrioritizedState(buffer_state.transitions, sum_tree, max_priority)

    return PrioritizedBuffer(init, add, sample, update)
