"""What an algorithm is, and how it is driven."""

import dataclasses
import math
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

LARGEST = 2**31 - 1  # integer that a compiled program takes; steps are counted outside of it
COUNTED = {"total_timesteps": 10**15, "eval_every": 10**15}


class Algorithm(NamedTuple):
    """An algorithm is three pure functions and how often to call them; some have a picture."""

    init: Callable  # key -> State, ready for `update`
    update: Callable  # State, step -> State, metrics: a lax.scan body over the update's index
    act: Callable | None  # params, obs, key -> action: the evaluation policy, for one observation
    num_updates: int
    steps_per_update: int  # environment steps of one update, all its environments together
    initial_steps: int = 0  # environment steps taken in `init`
    picture: Callable | None = None  # State of one seed, matplotlib's Figure: draws picture.png


def require(config: Any, *conditions: str) -> None:
    """ValueError unless every condition on the fields of `config`, a Python expression, holds.

    All floats must be finite, and no integer may be beyond all reason. Fields that are being
    vmapped have no value to test and are left alone: whoever vmaps them tests each setting first.
    """
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    concrete = {name: x for name, x in fields.items() if not isinstance(x, jax.core.Tracer)}
    for name, value in concrete.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{flag(name)} {value}: must be a finite number")
        largest = COUNTED.get(name, LARGEST)
        sizes = value if isinstance(value, tuple) else (value,)
        if any(isinstance(size, int) and abs(size) > largest for size in sizes):
            raise ValueError(f"{flag(name)}: must be at most {largest:,}")
    for condition in conditions:
        names = compile(condition, "condition", "eval").co_names
        if all(name in concrete or name not in fields for name in names) and not eval(
            condition, {"all": all, "len": len}, concrete
        ):
            given = " ".join(f"{flag(name)} {fields[name]}" for name in names if name in fields)
            raise ValueError(f"{given}: must satisfy {condition}")


def lookup(table: dict[str, Any], env_id: str, what: str) -> Any:
    """The entry of that id, or ValueError with the nearest one and all that there are."""
    if env_id not in table:
        closest = get_close_matches(env_id, table, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"there is no {what} {env_id!r}; did you mean {closest!r}? "
            f"Choose with --env-id, one of: {', '.join(table)}"
        )
    return table[env_id]


def flag(name: str) -> str:
    """The command-line flag of a field."""
    return "--" + name.replace("_", "-")


class Progress(NamedTuple):
    """What a run carries from update to update; every leaf has a leading axis of seeds, [S]."""

    state: Any  # the algorithm's State
    mean: dict[str, jax.Array]  # [S] each metric's mean since the last report
    count: dict[str, jax.Array]  # [S] over how many updates; NaN reports nothing
    diverged: jax.Array  # [S] the first update after which params were not finite, or -1


def begin(init: Callable, update: Callable, keys: jax.Array) -> Progress:
    """The Progress of `init(key)` for every seed's key [S]."""
    state = jax.vmap(init)(keys)
    metrics = jax.eval_shape(jax.vmap(update, (0, None)), state, jnp.int32(0))[1]
    mean = {name: jnp.zeros(x.shape, x.dtype) for name, x in metrics.items()}
    count = {name: jnp.zeros(x.shape, jnp.int32) for name, x in metrics.items()}
    diverged = jnp.full(metrics["episode_return"].shape, -1, jnp.int32)
    return Progress(state, mean, count, diverged)


def advance(update: Callable, progress: Progress, start, stop, fresh) -> Progress:
    """Updates `start` to `stop - 1` of every seed; `fresh` starts the metrics' means anew.

    `step` has no seed axis: schedules, ring positions and conditions on it stay scalar. Seeds
    never mix, so one that diverges leaves the others as they were; it keeps the params that it had
    before, and reports nothing any more. (To keep its whole State would copy the replay memories
    of all seeds at every update.)
    """

    def body(step, progress):
        state, metrics = jax.vmap(update, (0, None))(progress.state, step)
        finite = jax.vmap(all_finite)(state.params)
        diverged = jnp.where((progress.diverged < 0) & ~finite, step, progress.diverged)
        healthy = diverged < 0
        params = jax.vmap(newer_if)(healthy, state.params, progress.state.params)
        reports = {k: healthy & ~jnp.isnan(x) for k, x in metrics.items()}
        count = {k: progress.count[k] + x for k, x in reports.items()}
        mean = {
            k: progress.mean[k]
            + jnp.where(reports[k], (x - progress.mean[k]) / jnp.maximum(count[k], 1), 0)
            for k, x in metrics.items()
        }
        return Progress(state._replace(params=params), mean, count, diverged)

    progress = progress._replace(
        mean=jax.tree.map(lambda x: jnp.where(fresh, 0, x), progress.mean),
        count=jax.tree.map(lambda x: jnp.where(fresh, 0, x), progress.count),
    )
    return jax.lax.fori_loop(start, stop, body, progress)


def newer_if(healthy, new, old):
    """The tree `new` of a healthy seed, `old` of another."""
    return jax.tree.map(lambda x, y: jnp.where(healthy, x, y), new, old)


def all_finite(params) -> jax.Array:
    """Whether no number in `params` is NaN or infinite."""
    leaves = [x for x in jax.tree.leaves(params) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.array([jnp.isfinite(x).all() for x in leaves]))
