"""common/prioritized.py against float64 sums and probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import keys, load, small_config

from benchmarks.kernels import parsed
from common.prioritized import (
    RADIX,
    init_priorities,
    sample_rows,
    sample_sum_tree,
    set_priorities,
)
from common.runner.program import init_run, run_updates


def assert_sums(levels, leaves, rtol=1e-6):
    """The tree's levels are the sums of those leaves, up to a few roundings."""
    sums = np.asarray(leaves, np.float64)
    for level in levels:
        np.testing.assert_allclose(level[: len(sums)], sums, rtol=rtol)
        assert not np.asarray(level[len(sums) :]).any()
        sums = np.pad(sums, (0, -len(sums) % RADIX)).reshape(-1, RADIX).sum(-1)
    assert len(sums) == 1


SIZES = [1, 2, RADIX - 1, RADIX, RADIX + 1, 1_000, RADIX**2, RADIX**3 + 1, 20_000]


@pytest.mark.parametrize("size", SIZES)
def test_nodes_are_the_sums_of_their_leaves(size):
    leaves = jax.random.uniform(jax.random.key(size), (size,))
    priorities = init_priorities(leaves)
    assert_sums(priorities.sum_tree, leaves)
    index = jax.random.randint(jax.random.key(1), (40,), 0, size)
    leaves = leaves.at[index].set(1 + index / 7)  # one value for each leaf, however often named
    assert_sums(jax.jit(set_priorities)(priorities, index, 1 + index / 7).sum_tree, leaves)


@pytest.mark.parametrize("size", [*SIZES, 10**5, 10**6])
def test_a_leaf_is_found_where_the_running_sum_passes(size):
    """Against searchsorted in float64; where float32 cannot tell, the next leaf will do."""
    leaves = jax.random.uniform(jax.random.key(size), (size,)) ** 3
    leaves = leaves * (jax.random.uniform(jax.random.key(2), (size,)) < 0.7) + (size < 3)
    levels = init_priorities(leaves).sum_tree
    ends = np.cumsum(np.asarray(leaves, np.float64))
    low = jnp.arange(64) * jnp.float32(ends[-1] / 64)
    offset = jax.random.uniform(jax.random.key(3), (500, 64)) * jnp.float32(ends[-1] / 64)
    found = jax.jit(jax.vmap(jax.vmap(sample_sum_tree, (None, 0, 0)), (None, None, 0)))
    found, priority = map(np.asarray, found(levels, low, offset))
    np.testing.assert_array_equal(priority, np.asarray(leaves)[found])
    assert priority.all()
    u = np.asarray(low, np.float64) + np.asarray(offset, np.float64)
    begins = np.append(0, ends)[found]
    slack = 4e-7 * len(levels) * ends[-1]
    assert (begins - slack <= u).all() and (u <= ends[found] + slack).all()
    if size <= 1_000:
        assert np.mean(found == np.searchsorted(ends, u, side="right")) > 0.998


@pytest.mark.parametrize("size", [1, 5, 300, 5_000])
@pytest.mark.parametrize("where", ["first", "last", "alternate"])
def test_a_leaf_of_priority_zero_is_never_found(size, where):
    """Not even at the ends of the range, or beyond the last by rounding."""
    at = jnp.arange(size)
    positive = {"first": at < size // 3 + 1, "last": at >= size * 2 // 3, "alternate": at % 2 == 0}
    leaves = jnp.where(positive[where], 0.1 + jax.random.uniform(jax.random.key(0), (size,)), 0)
    levels = init_priorities(leaves).sum_tree
    total = jnp.sum(levels[-1])
    u = jnp.concatenate(
        [
            jnp.array([0.0, 1e-38, 1e-9, 1 - 2.0**-24, 1, 1 + 1e-6, 2]) * total,
            jnp.cumsum(leaves),  # the boundaries themselves
            jax.random.uniform(jax.random.key(1), (20_000,)) * total,
        ]
    )
    found, priority = map(np.asarray, jax.vmap(sample_sum_tree, (None, 0, None))(levels, u, 0.0))
    assert priority.all() and found.max() < size
    np.testing.assert_array_equal(priority, np.asarray(leaves)[found])


def test_a_million_priorities_do_not_use_up_the_digits_of_a_draw():
    """A leaf of 1/64 among a million of 1 is found at its share of the points, although float32
    numbers near the sum are 1/16 apart."""
    size = 2**20
    small = size - 100
    levels = init_priorities(jnp.ones(size).at[small].set(1 / 64)).sum_tree
    low = jnp.float32(size / 64 * 63)
    offset = small - size / 64 * 63 - 1 + jnp.arange(1_024) / 512  # from 1 before it to 1 beyond
    found = np.asarray(jax.vmap(sample_sum_tree, (None, None, 0))(levels, low, offset)[0])
    assert list(np.unique(found)) == [small - 1, small, small + 1]
    assert abs(np.sum(found == small) - 512 / 64) <= 1


@pytest.mark.parametrize("capacity", [50, 1_003, 5_000])
def test_rows_are_drawn_in_proportion_to_their_priorities(capacity):
    """The last 7 rows are still empty."""
    rows = jnp.arange(capacity - 7)
    priority = 0.1 + jax.random.uniform(jax.random.key(0), rows.shape) ** 2
    priorities = init_priorities((jnp.arange(capacity) < capacity - 7).astype(float))
    priorities = set_priorities(priorities, rows, priority)
    draw = jax.jit(sample_rows, static_argnums=2)
    index, probability = draw(priorities, jax.random.key(1), 50_000)
    expected = np.asarray(priority, np.float64)
    expected /= expected.sum()
    np.testing.assert_allclose(probability, expected[index], rtol=2e-6)

    counts = np.bincount(index, minlength=capacity)
    assert not counts[capacity - 7 :].any()
    # Stratified: a row that is a whole number of parts long is drawn at least that often less one.
    assert (np.abs(counts[: capacity - 7] - 50_000 * expected) < 2).all()


def test_single_draws_follow_the_distribution():
    """One draw a batch has one stratum: chi-square over independent keys."""
    priority = jnp.arange(1.0, 31.0) % 7 + 0.5
    priorities = init_priorities(priority)
    keys = jax.random.split(jax.random.key(0), 60_000)
    index = jax.vmap(lambda key: sample_rows(priorities, key, 1)[0][0])(keys)
    expected = 60_000 * np.asarray(priority / priority.sum())
    chi2 = ((np.bincount(index, minlength=30) - expected) ** 2 / expected).sum()
    assert chi2 < 58  # the 99.9 % quantile with 29 degrees of freedom


def test_draws_are_stratified():
    """64 draws of 64 equal priorities: each row once, whatever the key."""
    priorities = init_priorities(jnp.ones(64))
    for seed in range(20):
        index, _ = sample_rows(priorities, jax.random.key(seed), 64)
        np.testing.assert_array_equal(np.sort(index), np.arange(64))


def test_a_row_that_is_named_twice_keeps_one_value_and_exact_sums():
    index, priority = jnp.array([3, 3, 5, 3, 99]), jnp.array([0.25, 8.0, 0.5, 2.0, 4.0])
    priorities = jax.jit(set_priorities)(init_priorities(jnp.ones(100)), index, priority)
    kept = float(priorities.sum_tree[0][3])
    assert kept in (0.25, 8.0, 2.0)
    leaves = np.ones(100)
    leaves[[3, 5, 99]] = kept, 0.5, 4
    np.testing.assert_array_equal(priorities.sum_tree[0][:100], leaves)
    total = np.sum(priorities.sum_tree[-1])
    assert total == leaves.sum()  # exactly: these are short binary fractions
    assert priorities.largest == 8


def test_the_largest_priority_is_that_of_all_time_and_not_rounded():
    priorities = init_priorities(jnp.array([1.0, 1.0, 0, 0, 0, 0, 0, 0]))
    priorities = set_priorities(priorities, jnp.array([0, 1]), jnp.array([0.7, 0.3]))
    priorities = set_priorities(priorities, jnp.array([2, 3]), priorities.largest)
    np.testing.assert_array_equal(priorities.sum_tree[0][:4], jnp.array([0.7, 0.3, 1.0, 1.0]))
    priorities = set_priorities(priorities, jnp.array([2, 3]), jnp.array([7.7, 0.1]))
    priorities = set_priorities(priorities, jnp.array([2]), jnp.array([0.2]))
    priorities = set_priorities(priorities, jnp.array([4, 5]), priorities.largest)
    np.testing.assert_array_equal(priorities.sum_tree[0][2:6], jnp.array([0.2, 0.1, 7.7, 7.7]))


def test_a_hundred_thousand_updates_leave_no_drift():
    size, batch = 3_000, 16

    def change(number, carry):
        priorities, leaves = carry
        key_index, key_priority = jax.random.split(jax.random.fold_in(jax.random.key(0), number))
        index = jax.random.randint(key_index, (batch,), 0, size)
        priority = 10 ** jax.random.uniform(key_priority, (batch,), minval=-4, maxval=2)
        priorities = set_priorities(priorities, index, priority)
        return priorities, leaves.at[index].set(priorities.sum_tree[0][index])

    start = init_priorities(jnp.ones(size)), jnp.ones(size)
    priorities, leaves = jax.jit(lambda x: jax.lax.fori_loop(0, 100_000, change, x))(start)
    assert len(np.unique(leaves)) > size / 2
    levels = priorities.sum_tree
    assert_sums(levels, leaves, rtol=5e-7)
    assert abs(np.sum(levels[-1]) / np.asarray(leaves, np.float64).sum() - 1) < 5e-7


@pytest.mark.parametrize(
    "name", ["prioritized_dqn", pytest.param("rainbow", marks=pytest.mark.slow)]
)
def test_no_update_copies_the_priorities(name):
    """XLA copied all of them in each update while a probability, which the new priorities do not
    wait for, was read from the tree once more."""
    module = load(name)
    algorithm = module.make(small_config(module, buffer_size=50_000, total_timesteps=100_000))
    run_state = jax.eval_shape(lambda: init_run(algorithm.init, algorithm.update, keys(0, 1)))
    span = jnp.int32(0), jnp.int32(1), jnp.bool_(True)
    program = jax.jit(lambda *args: run_updates(algorithm.update, *args), donate_argnums=0)
    computations = parsed(program.lower(run_state, *span).compile().as_text())
    size = f"[2,{run_state.state.priorities.sum_tree[0].shape[1]}]"
    shapes = [(shape, op) for body in computations.values() for shape, op, _ in body]
    assert any(size in shape for shape, _ in shapes)  # they are there
    assert not any(size in shape for shape, op in shapes if op == "copy")
