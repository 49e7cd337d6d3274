"""Prioritized experience replay: the priorities of the rows of a ring (common/buffers.py).

Schaul et al. 2016, Prioritized Experience Replay, https://arxiv.org/abs/1511.05952, proportional
variant: transition i is drawn with probability P(i) = p_i / Σ_k p_k. The exponent α of the paper's
equation (1) is the caller's: what is stored here is its p_i^α.

The priorities are the leaves of a tree in which each node is the sum of its `RADIX` children. A
change of a leaf recomputes the sums above it from their children, so rounding errors do not
accumulate, and one batch may contain the same leaf twice.
"""

from itertools import accumulate
from typing import NamedTuple

import jax
import jax.numpy as jnp

RADIX = 16


class Priorities(NamedTuple):
    """Priorities of the rows of a ring."""

    sum_tree: tuple[jax.Array, ...]  # levels from the leaves up, each a multiple of RADIX long
    largest: jax.Array  # the largest that was ever set, at least 1


def init_priorities(leaves: jax.Array) -> Priorities:
    """Return the priorities of all rows, `leaves` [capacity]: 1 for a full one, 0 for others."""
    levels, sums = [], leaves
    while not levels or len(sums) > 1:
        sums = jnp.pad(sums, (0, -len(sums) % RADIX))
        levels.append(sums)
        sums = sums.reshape(-1, RADIX).sum(-1)
    return Priorities(tuple(levels), largest=jnp.ones(()))


def set_priorities(priorities: Priorities, index: jax.Array, priority: jax.Array) -> Priorities:
    """Set those of the rows `index` [B] to `priority`, [B] or one for all.

    If `index` names a row twice, one of its values is kept; the sums are those of what is kept.
    """
    largest = jnp.maximum(priorities.largest, jnp.max(priority))
    levels = []
    for sums in priorities.sum_tree:
        sums = sums.at[index].set(priority, mode="promise_in_bounds")
        levels.append(sums)
        index = index // RADIX
        priority = sums.reshape(-1, RADIX).at[index].get(mode="promise_in_bounds").sum(-1)
    return Priorities(tuple(levels), largest)


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


def sample_rows(
    priorities: Priorities, key: jax.Array, batch_size: int
) -> tuple[jax.Array, jax.Array]:
    """Draw rows in proportion to their priorities; return them and P(i), both [B].

    The sum is cut into B equal parts, and each has one draw (appendix B.2.1).
    """
    total = jnp.sum(priorities.sum_tree[-1])
    stratum = total / batch_size
    low = jnp.arange(batch_size) * stratum
    offset = jax.random.uniform(key, (batch_size,)) * stratum
    index, priority = jax.vmap(sample_sum_tree, (None, 0, 0))(priorities.sum_tree, low, offset)
    return index, priority / total
