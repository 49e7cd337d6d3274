"""The harness: `main(Config, make)` is the command line of every algorithm.

A run is a Python loop over compiled chunks of updates: all seeds, and all settings of a sweep, in
one vmapped program spread over the machine's devices. Between chunks it prints, writes metrics.csv,
saves checkpoints and looks for signals; nothing calls back from inside the compiled program.
"""

import contextlib
import dataclasses
import functools
import gc
import importlib
import inspect
import math
import os
import shlex
import signal
import sys
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
from common.envs import evaluate, make_env
from common.runner import checkpoint
from common.runner.checkpoint import CheckpointError
from common.runner.cli import fail, parse, settings
from common.runner.console import display, results, say, title
from common.runner.groups import Group, Job, first, log_points, plan, steps_after
from common.runner.program import RunState, init_run, run_updates
from common.runner.run_folder import (
    draw_first,
    header_of,
    latest_checkpoint,
    new_folder,
    origin,
    resumed,
    write_metrics,
    write_results,
)
from common.runner.threefry import unroll_threefry

CHUNK_SECONDS = 0.5  # between looks at the clock, the screen and signals
EVALUATION = 0x5EED  # folded into a seed's key for its evaluation: far from what `init` splits off


class Swept(NamedTuple):
    """An algorithm's State beside the swept floats that it was made with."""

    floats: dict[str, jax.Array]
    params: Any
    rest: Any  # the State, but for its params

    @property
    def state(self):
        return self.rest._replace(params=self.params)


def swept(floats, state) -> Swept:
    return Swept(floats, state.params, state._replace(params=None))


class Program(NamedTuple):
    """The compiled functions of a group; members are padded from M to P, a multiple of devices."""

    algorithm: Algorithm
    begin: Callable  # floats, seed [P] -> RunState [P]
    advance: Callable  # RunState, start, stop, fresh -> RunState
    evaluate: Callable  # RunState, seed [P] -> episode_return [P, E], episode_length [P, E]
    place: Callable  # tree [M, ...] -> tree [P, ...] on the devices
    compile_seconds: float


def main(Config: type, make: Callable[[Any], Algorithm]) -> None:
    """Parses the command line, trains, evaluates, and leaves a run folder."""
    name = Path(inspect.getfile(make)).stem
    description = (sys.modules[make.__module__].__doc__ or "").strip().partition("\n")[0]
    config, run = parse(Config, f"python -m algorithms.{name}", description, sys.argv[1:])
    try:
        if run.resume:
            config, run = resumed(name, Config, config, run)
        grid = settings(run.sweep, config)
        num_members = len(grid) * run.num_seeds
        start_jax(min(num_members, run.seeds_at_once or num_members))
        for module in run.imports:
            importlib.import_module(module)
        for setting in grid:
            if make(dataclasses.replace(config, **setting)).num_updates > MAX_INT:
                raise ValueError(f"--total-timesteps: more than {MAX_INT:,} updates")
        folder = Path(run.resume) if run.resume else new_folder(name, config, run)
    except ModuleNotFoundError as error:
        fail(2, f"--import: {error}; run from the folder that contains it")
    except ValueError as error:  # what names no flag is about the environment
        fail(2, str(error) if "--" in str(error) else f"--env-id: {error}")
    except CheckpointError as error:
        fail(3, str(error))
    except OSError as error:
        fail(5, f"cannot write {error.filename}: {error.strerror}; choose another --out")
    except KeyboardInterrupt:
        fail(130, "stopped before training began")
    if (folder / "summary.json").exists():
        say(run, f"{folder} is finished; there is nothing to resume")
        return
    gc.freeze()  # what is imported stays; the collector would walk it time and again as JAX traces
    try:
        train(Job(name, make, config, run, grid, folder))
    except CheckpointError as error:
        fail(3, str(error))
    except OSError as error:
        fail(5, f"cannot write to {folder}: {error.strerror}; mend that, then --resume {folder}")
    except KeyboardInterrupt:
        fail(130, f"stopped; --resume {folder} goes on")
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            fail(2, "out of memory; --seeds-at-once trains fewer seeds at a time")
        raise


def start_jax(num_members: int = MAX_INT) -> None:
    """Sets what JAX reads when it first looks for devices, and when it compiles."""
    unroll_threefry()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # Vmapped small networks keep one core busy, so seeds are spread over one CPU device a core.
    # JAX_NUM_CPU_DEVICES=1 turns that off.
    if jax.config.jax_num_cpu_devices < 1:
        jax.config.update("jax_num_cpu_devices", min(cores, num_members))
    # More threads than devices cost a small network a quarter of its speed: they hand each other
    # operations that take less time than that does.
    os.environ.setdefault("NPROC", "1")
    if jax.config.jax_compilation_cache_dir is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "manyseeds"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def train(job: Job) -> None:
    """The whole run: from the first update, or from the checkpoint, to the last file."""
    groups = plan(job)
    say(job.run, title(job, groups))
    checkpoint_path, metrics_path = job.folder / "checkpoint.npz", job.folder / "metrics.csv"
    previous_path = job.folder / "previous.npz"
    at = {"group": 0, "update": 0, "metrics_bytes": 0, "seconds": 0.0}
    saved, finished, compile_seconds, program = None, {}, 0.0, None
    found = latest_checkpoint(job) if job.run.resume else None
    if found:
        saved, header = found
        at, prefix = header["at"], "finished/"
        finished = {k.removeprefix(prefix): x for k, x in saved.items() if k.startswith(prefix)}
    seconds = at["seconds"]

    metrics_path.touch()
    with (
        open(metrics_path, "r+b") as file,
        caught_signals() as received,
        display(job, groups) as show,
    ):
        for index, group in list(enumerate(groups))[at["group"] :]:
            if program is None or group.policy != groups[index - 1].policy:
                program = build(job, groups, group)
                compile_seconds += program.compile_seconds
                say(job.run, f"compiled in {program.compile_seconds:.1f} s")
            members = program.place((group.floats, group.seed))
            progress, start = program.begin(*members), 0
            if saved is not None:
                shape = first(jax.eval_shape(lambda x: x, progress), len(group.seed))
                progress = program.place(checkpoint.restore(shape, saved, "progress/"))
                saved, start = None, at["update"]
            file.seek(file.truncate(at["metrics_bytes"]))  # later rows will be written again
            saved_at = time.monotonic()
            points = log_points(program.algorithm.num_updates, job.run.log_points)
            training = chunks(program, progress, start, points)
            for progress, update, is_point, elapsed in training:
                seconds += elapsed
                done = update == points[-1] or np.all(np.asarray(progress.diverged) >= 0)
                if is_point or done:
                    extra = evaluated_on_the_way(job, program, points, update, progress, members)
                    write_metrics(file, job, group, program.algorithm, update, progress, extra)
                show(index, update, seconds, first(progress, len(group.seed)))
                if done or received or time.monotonic() - saved_at > job.run.checkpoint_every:
                    file.flush()
                    os.fsync(file.fileno())
                    at = {"group": index, "update": update}
                    at |= {"metrics_bytes": file.tell(), "seconds": seconds}
                    tree = {"progress": first(progress, len(group.seed)), "finished": finished}
                    header = {**header_of(job), "at": at, **origin()}
                    checkpoint.save(checkpoint_path, tree, header, previous_path)
                    saved_at = time.monotonic()
                if received:
                    how = f"--resume {shlex.quote(str(job.folder))} goes on from here"
                    fail(128 + received[0], f"stopped and saved at {update:,} updates; {how}")
                if done:
                    break
            finished = collect(finished, group, progress, program.evaluate(progress, members[1]))
            if index == 0 and program.algorithm.picture is not None:
                draw_first(job, program.algorithm, first(progress.state.state, 1))
            del progress, training  # memory holds one group at a time
    outcome = write_results(job, groups, finished, seconds, compile_seconds)
    previous_path.unlink(missing_ok=True)
    say(job.run, *results(job, *outcome))
    if np.all(finished["diverged"] >= 0):
        earliest = finished["diverged"].min()
        fail(4, f"all seeds diverged, the first at update {earliest}; try a lower learning rate")


def chunks(program: Program, progress: RunState, update: int, points: list[int]):
    """Trains, and after every chunk yields the RunState, the updates made, whether they are one of
    `points`, and the seconds it took. How updates fall into chunks changes no result."""
    length, fresh = 8, update in (0, *points)
    while update < points[-1]:
        clock = time.monotonic()
        point = next(p for p in points if p > update)
        stop = min(point, update + length)
        span = jnp.int32(update), jnp.int32(stop)
        progress = jax.block_until_ready(program.advance(progress, *span, jnp.bool_(fresh)))
        elapsed = time.monotonic() - clock
        length = max(1, int((stop - update) * min(8, CHUNK_SECONDS / max(elapsed, 1e-3))))
        update, fresh = stop, stop == point
        yield progress, update, fresh, elapsed


def build(job: Job, groups: list[Group], group: Group) -> Program:
    """Compiles the training of a group, and of all groups with the same policy number."""
    devices = jax.devices()
    size = max(len(other.seed) for other in groups if other.policy == group.policy)
    devices = devices[: min(len(devices), size)]
    mesh = Mesh(np.array(devices), ("seeds",))
    padded = math.ceil(size / len(devices)) * len(devices)
    split, same = PartitionSpec("seeds"), PartitionSpec()
    alone = len(devices) == 1
    sharding = SingleDeviceSharding(devices[0]) if alone else NamedSharding(mesh, split)

    def algorithm(floats) -> Algorithm:
        return job.make(dataclasses.replace(group.config, **floats))

    def init(member):
        floats, seed = member
        return swept(floats, algorithm(floats).init(jax.random.key(seed)))

    @functools.partial(jax.jit, inline=True)  # traced once for `begin` and `advance`
    def update(before, step):
        state, metrics = algorithm(before.floats).update(before.state, step)
        return swept(before.floats, state), metrics

    def play(trained, seed):
        act = algorithm(trained.floats).act
        if act is None or not job.run.eval_episodes:
            return jnp.zeros(0), jnp.zeros(0, int)
        env = make_env(group.config.env_id, job.run.eval_episodes)
        key = jax.random.fold_in(jax.random.key(seed), EVALUATION)
        return evaluate(env, act, trained.params, key)

    def spread(function, *specs, donate=()):
        if alone:
            return jax.jit(function, donate_argnums=donate)

        def own(*trees):  # XLA does not take an array without elements from several devices
            trees = jax.tree.map(lambda x: x if x.size else jnp.zeros(x.shape, x.dtype), trees)
            return function(*trees)

        # Each device runs the program on its own seeds and never waits for another.
        program = jax.shard_map(own, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)
        return jax.jit(program, donate_argnums=donate)

    def place(tree):
        def rows(x):  # those beyond the members repeat the last one, and are left out again
            return x if len(x) == padded else x[np.minimum(np.arange(padded), len(x) - 1)]

        return jax.tree.map(lambda x: jax.device_put(rows(x), sharding), tree)

    def placed(shape):
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

    clock = time.monotonic()
    members = place((group.floats, group.seed))
    start = spread(lambda *members: init_run(init, update, members), split, split)
    advancing = spread(functools.partial(run_updates, update), split, same, same, same, donate=0)
    progress = jax.tree.map(placed, jax.eval_shape(start, *members))
    span = jnp.int32(0), jnp.int32(1), jnp.bool_(True)
    with ThreadPoolExecutor() as pool:  # XLA compiles one while the other is lowered
        compiled_start = pool.submit(start.lower(*members).compile)
        compiled_advancing = pool.submit(advancing.lower(progress, *span).compile)
    return Program(
        algorithm=job.make(group.config),
        begin=compiled_start.result(),
        advance=compiled_advancing.result(),
        evaluate=spread(lambda progress, seed: jax.vmap(play)(progress.state, seed), split, split),
        place=place,
        compile_seconds=time.monotonic() - clock,
    )


def evaluated_on_the_way(job: Job, program, points, update, progress, members) -> dict:
    """The column of `--eval-every`: the greedy return, in the first row after so many steps."""
    every = job.run.eval_every
    if not every or program.algorithm.act is None:
        return {}
    before = max((point for point in points if point < update), default=0)
    last, now = (steps_after(program.algorithm, u) // every for u in (before, update))
    if now == last:
        return {"evaluation_return": np.full(len(members[1]), np.nan)}
    returns, _ = program.evaluate(progress, members[1])
    healthy = np.asarray(progress.diverged) < 0
    return {"evaluation_return": np.where(healthy, np.asarray(returns).mean(-1), np.nan)}


def collect(finished: dict, group: Group, progress: RunState, episodes) -> dict:
    """`finished` with the results of a group: params of each policy number, and for each member
    the evaluation's returns and lengths [E], and the update at which it diverged or -1."""
    num_members = len(group.seed)
    arrays = checkpoint.named_arrays(first(progress.state.params, num_members))
    results = {f"{group.policy}/{name}": x for name, x in arrays.items()}
    returns, lengths = (np.asarray(first(x, num_members)) for x in episodes)
    diverged = np.asarray(first(progress.diverged, num_members))
    scored = (diverged[:, None] < 0) & np.isfinite(returns)  # a diverged seed has no score
    returns = np.where(scored, returns, np.nan)
    results |= {"returns": returns, "lengths": lengths, "diverged": diverged}
    return finished | {
        name: np.concatenate([finished[name], x]) if name in finished else x
        for name, x in results.items()
    }


@contextlib.contextmanager
def caught_signals():
    """A list that SIGINT or SIGTERM is added to; a second one ends the program at once."""
    received = []

    def handle(number, frame):
        if received:
            os._exit(128 + number)
        received.append(number)

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        if not received:  # else the program is ending, and a second one must still end it at once
            for number, handler in old.items():
                signal.signal(number, handler)
