"""The compiled program of a group: training and evaluation of all its members, vmapped.

A member is one seed with one configuration of a sweep. Shapes: M members, P members padded to a
multiple of the number of devices, E evaluation episodes.
"""

import dataclasses
import functools
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from common.algorithm import MAX_INT, Algorithm
from common.envs import make_env
from common.runner.evaluation import evaluate
from common.runner.groups import Group, Job
from common.runner.threefry import unroll_threefry

EVALUATION = 0x5EED  # folded into a seed's key for its evaluation; `init` splits that key instead


class RunState(NamedTuple):
    """State of a run between updates; every leaf has a leading axis of members, [M]."""

    state: Any  # the algorithm's State
    mean: dict[str, jax.Array]  # [M] each metric's mean since the last report
    count: dict[str, jax.Array]  # [M] over how many updates or episodes; NaN reports nothing
    diverged: jax.Array  # [M] the first update after which params were not finite, or -1


class WithFloats(NamedTuple):
    """State of an algorithm, together with the swept floats of its Config."""

    floats: dict[str, jax.Array]
    params: Any
    rest: Any  # the State with None for its params

    @property
    def state(self) -> Any:
        """Return the algorithm's State."""
        return self.rest._replace(params=self.params)


class Program(NamedTuple):
    """Compiled functions of a group."""

    algorithm: Algorithm
    init_run: Callable  # floats, seed [P] -> RunState [P]
    run_updates: Callable  # RunState, start, stop, reset_means -> RunState; donates its argument
    evaluate: Callable  # RunState, seed [P] -> episode_return [P, E], episode_length [P, E]
    shard: Callable  # tree [M, ...] -> tree [P, ...], spread over the devices
    compile_seconds: float


def init_run(init: Callable, update: Callable, keys: Any) -> RunState:
    """Return the RunState of `init(key)` for every one of the keys [M]."""
    state = jax.vmap(init)(keys)
    metrics = jax.eval_shape(jax.vmap(update, (0, None)), state, jnp.int32(0))[1]
    metrics.pop("episodes", None)  # the count of episode_return
    mean = {name: jnp.zeros(x.shape, x.dtype) for name, x in metrics.items()}
    count = {name: jnp.zeros(x.shape, jnp.int32) for name, x in metrics.items()}
    diverged = jnp.full(metrics["episode_return"].shape, -1, jnp.int32)
    return RunState(state, mean, count, diverged)


def run_updates(
    update: Callable, run_state: RunState, start: jax.Array, stop: jax.Array, reset_means: jax.Array
) -> RunState:
    """Run updates `start` to `stop - 1` of every member.

    `reset_means` is a bool: whether the means of the metrics start again. `step` has no axis of
    members: schedules, ring positions and conditions on it stay scalar. A member that diverges
    keeps its params from before and reports nothing more; the others do not change. (Keeping its
    whole State would copy the replay memories of all members in every update.)
    """

    def body(step, run_state):
        state, metrics = jax.vmap(update, (0, None))(run_state.state, step)
        finite = jax.vmap(all_finite)(state.params)
        diverged = jnp.where((run_state.diverged < 0) & ~finite, step, run_state.diverged)
        healthy = diverged < 0
        params = jax.vmap(select_if)(healthy, state.params, run_state.state.params)
        episodes = metrics.pop("episodes", None)
        weight = {k: healthy & ~jnp.isnan(x) for k, x in metrics.items()}
        if episodes is not None:  # a mean over episodes counts as often as there were episodes
            weight |= {k: w * episodes for k, w in weight.items() if k.startswith("episode_")}
        count = {k: run_state.count[k] + w for k, w in weight.items()}
        mean = {}
        for k, x in metrics.items():
            change = (x - run_state.mean[k]) * weight[k] / jnp.maximum(count[k], 1)
            mean[k] = run_state.mean[k] + jnp.where(weight[k] > 0, change, 0)
        return RunState(state._replace(params=params), mean, count, diverged)

    run_state = run_state._replace(
        mean=jax.tree.map(lambda x: jnp.where(reset_means, 0, x), run_state.mean),
        count=jax.tree.map(lambda x: jnp.where(reset_means, 0, x), run_state.count),
    )
    return jax.lax.fori_loop(start, stop, body, run_state)


def select_if(healthy: jax.Array, new: Any, old: Any) -> Any:
    """Return the tree `new` if `healthy`, else `old`."""
    return jax.tree.map(lambda x, y: jnp.where(healthy, x, y), new, old)


def all_finite(params: Any) -> jax.Array:
    """Return whether no number in `params` is NaN or infinite."""
    leaves = [x for x in jax.tree.leaves(params) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.array([jnp.isfinite(x).all() for x in leaves]))


def with_floats(floats: dict[str, jax.Array], state: Any) -> WithFloats:
    """Return the State together with the swept floats."""
    return WithFloats(floats, state.params, state._replace(params=None))


def start_jax(num_members: int = MAX_INT) -> None:
    """Set what JAX reads when it first looks for devices, and when it compiles.

    `num_members` is how many train at the same time. Call it before anything else of JAX.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # Vmapped small networks keep one core busy, so members are spread over one CPU device per core.
    # JAX_NUM_CPU_DEVICES=1 turns that off.
    if jax.config.jax_num_cpu_devices < 1:
        jax.config.update("jax_num_cpu_devices", min(cores, num_members))
    # With more threads than devices a small network loses a quarter of its speed: handing an
    # operation to another thread takes longer than the operation.
    os.environ.setdefault("NPROC", "1")
    if jax.config.jax_compilation_cache_dir is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "manyseeds"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    unroll_threefry()


def build(job: Job, groups: list[Group], group: Group) -> Program:
    """Compile the training of a group, and of all groups with the same program_id."""
    size = max(len(other.seed) for other in groups if other.program_id == group.program_id)
    devices = jax.devices()[:size]
    spread, shard, sharding = spread_over(devices, size)
    init, update, play = functions_of_member(job, group.config)
    same, split = PartitionSpec(), PartitionSpec("seeds")

    clock = time.monotonic()
    members = shard((group.floats, group.seed))
    start = spread(lambda *members: init_run(init, update, members), split, split)
    training = spread(functools.partial(run_updates, update), split, same, same, same, donate=0)
    run_state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(start, *members),
    )
    span = jnp.int32(0), jnp.int32(1), jnp.bool_(True)
    with ThreadPoolExecutor() as pool:  # XLA compiles one while the other is lowered
        compiled_start = pool.submit(start.lower(*members).compile)
        compiled_training = pool.submit(training.lower(run_state, *span).compile)
    return Program(
        algorithm=job.make(group.config),
        init_run=compiled_start.result(),
        run_updates=compiled_training.result(),
        evaluate=spread(
            lambda run_state, seed: jax.vmap(play)(run_state.state, seed), split, split
        ),
        shard=shard,
        compile_seconds=time.monotonic() - clock,
    )


def functions_of_member(job: Job, config: Any) -> tuple[Callable, Callable, Callable]:
    """Return `init((floats, seed)) -> WithFloats`, `update(WithFloats, step) -> WithFloats,
    metrics` and `play(WithFloats, seed) -> returns [E], lengths [E]` of one member."""

    def algorithm(floats) -> Algorithm:
        return job.make(dataclasses.replace(config, **floats))

    def init(member):
        floats, seed = member
        return with_floats(floats, algorithm(floats).init(jax.random.key(seed)))

    @functools.partial(jax.jit, inline=True)  # traced once for `init_run` and `run_updates`
    def update(before, step):
        state, metrics = algorithm(before.floats).update(before.state, step)
        return with_floats(before.floats, state), metrics

    def play(trained, seed):
        act = algorithm(trained.floats).act
        if act is None or not job.run.eval_episodes:
            return jnp.zeros(0), jnp.zeros(0, int)
        env = make_env(config.env_id, job.run.eval_episodes)
        key = jax.random.fold_in(jax.random.key(seed), EVALUATION)
        return evaluate(env, act, trained.params, key)

    return init, update, play


def spread_over(devices: list, size: int) -> tuple[Callable, Callable, Any]:
    """Return how at most `size` members are spread over devices.

    `spread(function, *specs, donate) -> function` runs it on every device's own members;
    `shard(tree [M, ...]) -> tree [P, ...]` pads and places arrays; `sharding` is where they lie.
    """
    mesh = Mesh(np.array(devices), ("seeds",))
    split = PartitionSpec("seeds")
    is_alone = len(devices) == 1
    sharding = SingleDeviceSharding(devices[0]) if is_alone else NamedSharding(mesh, split)
    num_rows = math.ceil(size / len(devices)) * len(devices)

    def spread(function, *specs, donate=()):
        if is_alone:
            return jax.jit(function, donate_argnums=donate)

        def own(*trees):  # XLA does not take an array without elements from several devices
            trees = jax.tree.map(lambda x: x if x.size else jnp.zeros(x.shape, x.dtype), trees)
            return function(*trees)

        # Each device runs the program on its own members and never waits for another.
        program = jax.shard_map(own, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)
        return jax.jit(program, donate_argnums=donate)

    def shard(tree):
        def pad(x):  # with copies of the last member, which `unpad` removes
            return x if len(x) == num_rows else x[np.minimum(np.arange(num_rows), len(x) - 1)]

        return jax.tree.map(lambda x: jax.device_put(pad(x), sharding), tree)

    return spread, shard, sharding


def unpad(tree: Any, num_members: int) -> Any:
    """Return the rows of the members [M, ...] of padded arrays or shapes [P, ...]."""

    def rows(x):
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct((num_members, *x.shape[1:]), x.dtype)
        return x if len(x) == num_members else x[:num_members]

    return jax.tree.map(rows, tree)
