"""The compiled program of a run: all seeds, vmapped."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class RunState(NamedTuple):
    """What a run carries from update to update; every leaf has a leading axis of seeds, [S]."""

    state: Any  # the algorithm's State
    mean: dict[str, jax.Array]  # [S] each metric's mean since the last report
    count: dict[str, jax.Array]  # [S] over how many updates; NaN reports nothing
    diverged: jax.Array  # [S] the first update after which params were not finite, or -1


def init_run(init: Callable, update: Callable, keys: jax.Array) -> RunState:
    """Return the RunState of `init(key)` for every seed's key [S]."""
    state = jax.vmap(init)(keys)
    metrics = jax.eval_shape(jax.vmap(update, (0, None)), state, jnp.int32(0))[1]
    mean = {name: jnp.zeros(x.shape, x.dtype) for name, x in metrics.items()}
    count = {name: jnp.zeros(x.shape, jnp.int32) for name, x in metrics.items()}
    diverged = jnp.full(metrics["episode_return"].shape, -1, jnp.int32)
    return RunState(state, mean, count, diverged)


def run_updates(update: Callable, run_state: RunState, start, stop, reset_means) -> RunState:
    """Run updates `start` to `stop - 1` of every seed; `reset_means` resets the metrics' means.

    `step` has no seed axis: schedules, ring positions and conditions on it stay scalar. A seed
    that diverges keeps the params from before and reports nothing more; the others do not change.
    (Keeping its whole State would copy the replay memories of all seeds in every update.)
    """

    def body(step, run_state):
        state, metrics = jax.vmap(update, (0, None))(run_state.state, step)
        finite = jax.vmap(all_finite)(state.params)
        diverged = jnp.where((run_state.diverged < 0) & ~finite, step, run_state.diverged)
        healthy = diverged < 0
        params = jax.vmap(select_if)(healthy, state.params, run_state.state.params)
        reports = {k: healthy & ~jnp.isnan(x) for k, x in metrics.items()}
        count = {k: run_state.count[k] + x for k, x in reports.items()}
        mean = {
            k: run_state.mean[k]
            + jnp.where(reports[k], (x - run_state.mean[k]) / jnp.maximum(count[k], 1), 0)
            for k, x in metrics.items()
        }
        return RunState(state._replace(params=params), mean, count, diverged)

    run_state = run_state._replace(
        mean=jax.tree.map(lambda x: jnp.where(reset_means, 0, x), run_state.mean),
        count=jax.tree.map(lambda x: jnp.where(reset_means, 0, x), run_state.count),
    )
    return jax.lax.fori_loop(start, stop, body, run_state)


def select_if(healthy, new, old):
    """Return `new` if the seed is healthy, else `old`."""
    return jax.tree.map(lambda x, y: jnp.where(healthy, x, y), new, old)


def all_finite(params) -> jax.Array:
    """Return whether no number in `params` is NaN or infinite."""
    leaves = [x for x in jax.tree.leaves(params) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.array([jnp.isfinite(x).all() for x in leaves]))
