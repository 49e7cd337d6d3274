"""The cost of prioritized replay: the contestants run, and what they draw is used."""

import math

import jax
import jax.numpy as jnp
import pytest

from benchmarks import replay


@pytest.mark.slow
def test_every_contestant_is_timed():
    for contestants in (replay.replays(64), replay.updates(1_000)):
        times = replay.race(contestants, seeds=2, rounds=1, seconds=0.01)
        assert list(times) == list(contestants)
        assert all(0 < x < math.inf for x in times.values())


def test_the_replays_draw_in_every_update():
    """64 rewards of 1 for each of two seeds, three times."""
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    for name, (start, run) in replay.replays(64).items():
        (buffer_state, _), drawn = run(start(keys), jnp.int32(0), jnp.int32(3))
        assert (drawn == 3 * 64).all()
        if name == "sum_tree":
            leaves = buffer_state[1].sum_tree[0]
            assert ((leaves > 0) & (leaves <= 1)).all() and (leaves < 1).any(axis=1).all()
