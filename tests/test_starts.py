"""The cost of fresh starts: the contestants run, and episodes end in those that begin anew."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import keys, run

from benchmarks import starts
from benchmarks.replay import race


def test_every_contestant_is_timed():
    contestants = starts.contestants("InvertedPendulum-brax", 2)
    assert list(contestants) == ["bare", "ahead", "reset"]
    times = race(contestants, seeds=2, rounds=1, seconds=0.01)
    assert all(0 < x < math.inf for x in times.values())


@pytest.mark.parametrize(
    "name, least, most", [("bare", 0, 200), ("ahead", 4, 80), ("reset", 4, 80)]
)
def test_poles_fall_again_only_where_they_start_again(name, least, most):
    """100 steps of two environments for each seed; a pole that fell stays down, or starts anew."""
    begin, go = starts.contestants("InvertedPendulum-brax", 2)[name]
    _, _, (rewards, ends) = go(begin(keys(0, 1)), jnp.int32(0), jnp.int32(100))
    assert np.isfinite(rewards).all()
    assert (ends >= least).all() and (ends <= most).all()
    if name == "bare":
        assert (ends > 80).all()


def test_what_is_no_environment_of_brax_is_refused():
    done = run("benchmarks.starts", "--env-ids", "Hoper-brax", check=2)
    assert "did you mean Hopper-brax?" in done.stderr
