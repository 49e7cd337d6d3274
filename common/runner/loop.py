"""The loop of a run: compiled chunks of updates, and all that happens between them.

Between chunks the run prints, writes metrics.csv, saves checkpoints and looks for signals; nothing
calls back from inside the compiled program.
"""

import contextlib
import os
import shlex
import signal
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

from common.runner import checkpoint
from common.runner.cli import fail
from common.runner.console import display, print_line, summary_lines, title
from common.runner.groups import Group, Job, log_points, plan, steps_after
from common.runner.program import Program, RunState, build, unpad
from common.runner.results import append_results, draw_first, write_results
from common.runner.run_folder import (
    checkpoint_header,
    latest_checkpoint,
    provenance,
    write_metrics,
)

CHUNK_SECONDS = 0.5  # between looks at the clock, the screen and signals


def train(job: Job) -> None:
    """Train a run from its first update, or from its checkpoint, and write its results.

    Exits with code 128 + n after signal n, with a checkpoint saved, and with 4 if all seeds
    diverged.
    """
    groups = plan(job)
    print_line(job.run, title(job, groups))
    position, finished, restored = restore_position(job)
    seconds, compile_seconds, program = position["seconds"], 0.0, None
    metrics_path = job.folder / "metrics.csv"
    metrics_path.touch()
    with (
        open(metrics_path, "r+b") as file,
        caught_signals() as received,
        display(job, groups) as show,
    ):
        for index, group in list(enumerate(groups))[position["group"] :]:
            if program is None or group.program_id != groups[index - 1].program_id:
                program = build(job, groups, group)
                compile_seconds += program.compile_seconds
                print_line(job.run, f"compiled in {program.compile_seconds:.1f} s")
            num_members = len(group.seed)
            members, run_state = start_group(program, group, restored)
            first_update, restored = position["update"] if restored else 0, None
            file.seek(file.truncate(position["metrics_bytes"]))  # drops rows after the checkpoint
            saved_at = time.monotonic()
            points = log_points(program.algorithm.num_updates, job.run.log_points)
            training = chunks(program, run_state, first_update, points)
            for run_state, update, is_point, elapsed in training:
                seconds += elapsed
                done = update == points[-1] or np.all(np.asarray(run_state.diverged) >= 0)
                if is_point or done:
                    extra = evaluation_column(job, program, points, update, run_state, members)
                    write_metrics(file, job, group, program.algorithm, update, run_state, extra)
                show(index, update, seconds, unpad(run_state._replace(state=None), num_members))
                if done or received or time.monotonic() - saved_at > job.run.checkpoint_every:
                    position = {"group": index, "update": update, "seconds": seconds}
                    position = save_position(
                        job, file, position, unpad(run_state, num_members), finished
                    )
                    saved_at = time.monotonic()
                if received:
                    command = f"--resume {shlex.quote(str(job.folder))}"
                    stop = f"stopped and saved at {update:,} updates; continue with {command}"
                    fail(128 + received[0], stop)
                if done:
                    break
            episodes = program.evaluate(run_state, members[1])
            finished = append_results(finished, group, run_state, episodes)
            if index == 0 and program.algorithm.picture is not None:
                draw_first(job, program.algorithm, unpad(run_state.state.state, 1))
            del run_state, training  # memory holds one group at a time
    outcome = write_results(job, groups, finished, seconds, compile_seconds)
    (job.folder / "previous.npz").unlink(missing_ok=True)
    print_line(job.run, *summary_lines(job, *outcome))
    if np.all(finished["diverged"] >= 0):
        earliest = finished["diverged"].min()
        fail(4, f"all seeds diverged, the first at update {earliest}; try a lower learning rate")


def restore_position(
    job: Job,
) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray] | None]:
    """Return a run's position, the results of its finished groups, and the arrays of its
    checkpoint; None instead of the arrays if it starts from the beginning.

    A position is the group's index, the updates and the training seconds so far, and the size of
    metrics.csv in bytes. CheckpointError if no checkpoint can be used.
    """
    latest = latest_checkpoint(job) if job.run.resume else None
    if latest is None:
        return {"group": 0, "update": 0, "metrics_bytes": 0, "seconds": 0.0}, {}, None
    arrays, header = latest
    prefix = "finished/"
    finished = {k.removeprefix(prefix): x for k, x in arrays.items() if k.startswith(prefix)}
    return header["at"], finished, arrays


def save_position(
    job: Job,
    file: BinaryIO,
    position: dict[str, Any],
    run_state: RunState,
    finished: dict[str, np.ndarray],
) -> dict[str, Any]:
    """Save a checkpoint, after the rows of metrics.csv (`file`) that it counts on; return the
    position with their size. OSError if the disk refuses."""
    file.flush()
    os.fsync(file.fileno())
    position = position | {"metrics_bytes": file.tell()}
    tree = {"run_state": run_state, "finished": finished}
    header = {**checkpoint_header(job), "at": position, **provenance()}
    checkpoint.save(job.folder / "checkpoint.npz", tree, header, job.folder / "previous.npz")
    return position


def start_group(
    program: Program, group: Group, restored: dict[str, np.ndarray] | None
) -> tuple[tuple, RunState]:
    """Return the group's floats and seeds, sharded, and its RunState: from the arrays of a
    checkpoint if there are any, else before the first update."""
    members = program.shard((group.floats, group.seed))
    run_state = program.init_run(*members)
    if restored is not None:
        shapes = unpad(jax.eval_shape(lambda x: x, run_state), len(group.seed))
        run_state = program.shard(checkpoint.restore(shapes, restored, "run_state/"))
    return members, run_state


def chunks(
    program: Program, run_state: RunState, update: int, points: list[int]
) -> Iterator[tuple[RunState, int, bool, float]]:
    """Train; after every chunk yield the RunState, the updates so far, whether their number is one
    of `points`, and the seconds it took.

    How updates are divided into chunks changes no result.
    """
    length, reset_means = 8, update in (0, *points)
    while update < points[-1]:
        clock = time.monotonic()
        point = next(p for p in points if p > update)
        stop = min(point, update + length)
        span = jnp.int32(update), jnp.int32(stop), jnp.bool_(reset_means)
        run_state = jax.block_until_ready(program.run_updates(run_state, *span))
        elapsed = time.monotonic() - clock
        length = max(1, int((stop - update) * min(8, CHUNK_SECONDS / max(elapsed, 1e-3))))
        update, reset_means = stop, stop == point
        yield run_state, update, reset_means, elapsed


def evaluation_column(
    job: Job,
    program: Program,
    points: list[int],
    update: int,
    run_state: RunState,
    members: tuple,
) -> dict[str, np.ndarray]:
    """Return the column of `--eval-every`, the greedy returns [M]; {} without that flag.

    A row has NaN unless it is the first one at or after a multiple of so many steps.
    """
    every = job.run.eval_every
    if not every or program.algorithm.act is None:
        return {}
    previous = max((point for point in points if point < update), default=0)
    counts = [steps_after(program.algorithm, u) // every for u in (previous, update)]
    if counts[0] == counts[1]:
        return {"evaluation_return": np.full(len(members[1]), np.nan)}
    returns, _ = program.evaluate(run_state, members[1])
    healthy = np.asarray(run_state.diverged) < 0
    return {"evaluation_return": np.where(healthy, np.asarray(returns).mean(-1), np.nan)}


@contextlib.contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Yield a list that SIGINT or SIGTERM is appended to; a second one ends the program at once."""
    received = []

    def handle(number, frame):
        if received:
            os._exit(128 + number)
        received.append(number)

    old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        if not received:  # else the program ends, and a second one must still end it at once
            for number, handler in old.items():
                signal.signal(number, handler)
