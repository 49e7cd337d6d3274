"""The compiled program of a block on one device: training and evaluation of its members, vmapped.

Shapes: M members of a block, P >= M rows of its program (the block padded with copies of its last
member), E evaluation episodes.
"""

import dataclasses
import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from common.algorithm import MAX_INT, Algorithm
from common.environments.env_parameters import swept
from common.environments.tabular import id_after
from common.envs import make_env
from common.runner.blocks import Block, Job, environment_steps
from common.runner.cli import split_setting, warn
from common.runner.compile_cache import use_compile_cache
from common.runner.evaluation import evaluate, sampled
from common.runner.threefry import unroll_threefry

EVALUATION = 0x5EED  # folded into a seed's key for its evaluation; `init` splits that key instead
FRESH = 0xF4E5  # for a second evaluation, of a sweep's best setting
SLICE = 512  # members that are evaluated together: each slice ends with its own longest episode


class RunState(NamedTuple):
    """State of a block between updates; every leaf has a leading axis of members, [P]."""

    state: Any  # the algorithm's State
    mean: dict[str, jax.Array]  # [P] each metric's mean since the last report
    count: dict[str, jax.Array]  # [P] over how many updates, episodes or steps; NaN reports nothing
    diverged: jax.Array  # [P] first update after which params were not finite, or -1 - updates done


class WithFloats(NamedTuple):
    """State of an algorithm, together with the swept floats of its Config."""

    floats: dict[str, jax.Array]
    params: Any
    rest: Any  # the State with None for its params


class Program(NamedTuple):
    """Compiled functions of blocks on one device."""

    device: Any
    init_run: Callable | None = None  # floats, seed [P] -> RunState [P]
    shapes: RunState | None = None  # what it returns, as shapes
    run_updates: Callable | None = None  # RunState, start, stop, reset_means -> RunState; donates
    evaluate: dict[str, Callable] = {}  # by id of the environment, which may have changed:
    # floats, params, seed [P] -> returns [P, E], lengths [P, E]


def init_run(init: Callable, update: Callable, keys: Any) -> RunState:
    """Return the RunState of `init(key)` for every one of the keys [P]."""
    state = jax.vmap(init)(keys)
    metrics = jax.eval_shape(jax.vmap(update, (0, None)), state, jnp.int32(0))[1]
    for name in ("episodes", "counted"):  # which the counts hold
        metrics.pop(name, None)
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
        # Counted here: if the end of an update read `step`, XLA would copy it in every update.
        before = run_state.diverged
        diverged = jnp.where(before < 0, jnp.where(finite, before - 1, -1 - before), before)
        healthy = diverged < 0
        params = jax.vmap(select_if)(healthy, state.params, run_state.state.params)
        episodes = metrics.pop("episodes", 1)  # a mean over episodes counts every episode once
        counted = metrics.pop("counted", 1)  # and a mean over some of the steps each of these
        mean, count = {}, {}
        for name, x in metrics.items():
            known = healthy & ~jnp.isnan(x)
            weight = known * (episodes if name.startswith("episode_") else counted)
            count[name] = run_state.count[name] + jnp.asarray(weight, jnp.int32)
            change = (x - run_state.mean[name]) * weight / jnp.maximum(count[name], 1)
            mean[name] = run_state.mean[name] + jnp.where(weight > 0, change, 0)
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


def without_floats(state: WithFloats) -> Any:
    """Return the algorithm's State."""
    return state.rest._replace(params=state.params)


def start_jax(num_members: int = MAX_INT) -> None:
    """Set what JAX reads when it first looks for devices, and when it compiles.

    `num_members` is how many train at the same time. Call it before anything else of JAX.
    """
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    # Vmapped small networks keep one core busy, so members are spread over one CPU device per core.
    # JAX_NUM_CPU_DEVICES=1 turns that off.
    if jax.config.jax_num_cpu_devices < 1 and not jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
        try:
            jax.config.update("jax_num_cpu_devices", min(cores, num_members))
        except RuntimeError:
            warn(
                "warning: JAX had started before the run: it uses one CPU device. Make no arrays "
                "while a file is imported, only inside functions"
            )
    # With more threads than devices a small network loses a quarter of its speed: handing an
    # operation to another thread takes longer than the operation.
    os.environ.setdefault("NPROC", "1")
    use_compile_cache()
    unroll_threefry()


def load_module(name: str) -> ModuleType:
    """Import a user's module by its name, or a .py file by its path. ValueError, one line, if that
    fails. Comes after `start_jax`: gymnax starts JAX."""
    gymnax_envs = importlib.import_module("common.environments.gymnax_envs")
    gymnax_envs.load_module(name)
    return sys.modules[Path(name).stem if name.endswith(".py") else name]


def place(tree: Any, block: Block, device: Any) -> Any:
    """Return arrays [M, ...] padded to the rows of the block's program, [P, ...], on a device."""
    rows = np.minimum(np.arange(block.num_rows), len(block.seed) - 1)
    pad = lambda x: x if len(x) == len(rows) else x[rows]
    return jax.tree.map(lambda x: jax.device_put(pad(x), device), tree)


def unpad(tree: Any, num_members: int) -> Any:
    """Return the rows of the members [M, ...] of padded arrays or shapes [P, ...]."""

    def rows(x):
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct((num_members, *x.shape[1:]), x.dtype)
        return x if len(x) == num_members else x[:num_members]

    return jax.tree.map(rows, tree)


def lower_training(
    job: Job, block: Block, devices: list, pool: ThreadPoolExecutor
) -> dict[str, Future]:
    """Return Futures of `init_run`, its shapes, and `run_updates`, for each of the devices."""
    init, update, _ = member_functions(job, block.config, block.config.env_id)
    start = jax.jit(lambda floats, seed: init_run(init, update, (floats, seed)))
    training = jax.jit(functools.partial(run_updates, update), donate_argnums=0)
    floats, _, seed = member_shapes(block)
    span = jnp.int32(0), jnp.int32(1), jnp.bool_(True)
    compiled_start = compile_for(start, (floats, seed), devices, pool)  # while the other is lowered
    run_state = jax.eval_shape(start, floats, seed)
    compiled_training = compile_for(training, (run_state, *span), devices, pool)
    shapes = pool.submit(lambda: [run_state] * len(devices))
    return {"init_run": compiled_start, "shapes": shapes, "run_updates": compiled_training}


def run_shapes(job: Job, block: Block) -> RunState:
    """Return the shapes of a block's RunState, [P]."""
    init, update, _ = member_functions(job, block.config, block.config.env_id)
    floats, _, seed = member_shapes(block)
    return jax.eval_shape(lambda *member: init_run(init, update, member), floats, seed)


def lower_evaluation(
    job: Job,
    block: Block,
    devices: list,
    pool: ThreadPoolExecutor,
    salt: int = EVALUATION,
    updates: Iterable[int] = (),
) -> dict[tuple[str, str], Future]:
    """Return Futures of `evaluate` by id of the environment, compiled for each of the devices; {}
    without a policy.

    The environment is the one that members have lived to after those `updates`, by default all.
    `salt` is folded into the keys: another one gives other episodes.
    """
    algorithm = block.algorithm
    if algorithm.act is None or not job.run.eval_episodes:
        return {}
    futures, shapes = {}, member_shapes(block)
    for update in updates or (algorithm.num_updates,):
        env_id = evaluation_id(block.config, algorithm, update)
        if ("evaluate", env_id) not in futures:
            _, _, play = member_functions(job, block.config, env_id, salt)

            def evaluate_all(*members, play=play):
                return jax.lax.map(lambda member: play(*member), members, batch_size=SLICE)

            function = compile_for(jax.jit(evaluate_all), shapes, devices, pool)
            futures["evaluate", env_id] = function
    return futures


def evaluation_id(config: Any, algorithm: Algorithm, update: int) -> str:
    """Return the id of the environment as it is after that many updates."""
    return id_after(config.env_id, environment_steps(config, algorithm, update))


def member_shapes(block: Block) -> tuple:
    """Return the shapes of a program's floats, params and seeds, [P, ...]."""
    params = jax.eval_shape(lambda key: block.algorithm.init(key).params, jax.random.key(0))

    def rows(x):
        return jax.ShapeDtypeStruct((block.num_rows, *x.shape), x.dtype)

    floats = {name: rows(jax.eval_shape(lambda: jnp.zeros(()))) for name in block.floats}
    return floats, jax.tree.map(rows, params), rows(jax.eval_shape(lambda: jnp.zeros((), int)))


def member_algorithm(job: Job, config: Any, floats: dict[str, Any]) -> Algorithm:
    """Return the algorithm of a member with these values of what is swept."""
    parameters, fields = split_setting(floats)
    with swept(parameters):
        return job.make(dataclasses.replace(config, **fields))


def member_functions(
    job: Job, config: Any, env_id: str, salt: int = EVALUATION
) -> tuple[Callable, Callable, Callable]:
    """Return `init((floats, seed)) -> WithFloats`, `update(WithFloats, step) -> WithFloats,
    metrics` and `play(floats, params, seed) -> returns [E], lengths [E]` of one member."""

    def algorithm(floats) -> Algorithm:
        return member_algorithm(job, config, floats)

    def init(member):
        floats, seed = member
        return with_floats(floats, algorithm(floats).init(jax.random.key(seed)))

    @functools.partial(jax.jit, inline=True)  # traced once for `init_run` and `run_updates`
    def update(before, step):
        state, metrics = algorithm(before.floats).update(without_floats(before), step)
        return with_floats(before.floats, state), metrics

    def play(floats, params, seed):
        with swept(split_setting(floats)[0]):
            env = make_env(env_id, job.run.eval_episodes)
        key = jax.random.fold_in(jax.random.key(seed), salt)
        member = algorithm(floats)
        assert member.act is not None
        act = sampled(member.act) if job.run.eval_policy == "sample" else member.act
        return evaluate(env, act, params, key, member.init_memory)

    return init, update, play


def compile_for(
    function: Callable, arguments: tuple, devices: list, pool: ThreadPoolExecutor
) -> Future:
    """Lower a jitted function of such arguments (arrays or shapes); return a Future of its compiled
    functions, one for each device.

    XLA compiles in a thread of the pool, once: the other devices then find the program in the
    cache. (A program sharded over all devices would end with other bits.)
    """
    if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
        return pool.submit(lambda: [function] * len(devices))

    def lower(device):
        sharding = jax.sharding.SingleDeviceSharding(device)
        shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
        return function.lower(*jax.tree.map(shape, arguments))

    def compile_all(lowered):
        return [lowered.compile(), *(lower(device).compile() for device in devices[1:])]

    return pool.submit(compile_all, lower(devices[0]))
