"""The run, as a story: train the blocks, evaluate them, write the results.

Each device works on one block at a time, in compiled chunks of updates of about half a second.
Between chunks the run shows its progress, saves checkpoints and looks for signals; nothing calls
back from inside a compiled program. While devices compute this thread sleeps, so that it sees a
signal at any moment.
"""

import contextlib
import dataclasses
import json
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from common.algorithm import Algorithm
from common.runner import checkpoint
from common.runner.blocks import Block, Job, log_points, plan, steps_after
from common.runner.cli import configured, fail, warn
from common.runner.console import (
    bytes_of,
    display,
    free_bytes,
    memory_warning,
    print_line,
    program_bytes,
    summary_lines,
    title,
)
from common.runner.program import (
    FRESH,
    Program,
    RunState,
    evaluation_id,
    lower_evaluation,
    lower_training,
    member_algorithm,
    member_shapes,
    place,
    unpad,
    without_floats,
)
from common.runner.results import (
    draw_first,
    read_table,
    training_scores,
    write_metrics,
    write_policies,
    write_results,
)
from common.runner.run_folder import (
    block_path,
    create,
    drop_blocks,
    load_block,
    load_trained,
    save_block,
    write_json,
)
from common.runner.sharing import merging, own_blocks, share_of, wait_for_others
from common.runner.statistics import summarize
from common.runner.trackers import Tracker, tracking

CHUNK_SECONDS = 0.5  # between looks at the clock and the screen
SAVE_SHARE = 0.05  # most of the time that saving checkpoints may take
SIGNALS = [getattr(signal, x) for x in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, x)]


class Work(NamedTuple):
    """What all steps of a run use."""

    job: Job
    devices: list
    width: int  # blocks that train at a time, in all processes
    pool: ThreadPoolExecutor  # in which XLA compiles
    received: list[int]  # signals
    show: Callable  # shows the progress, see `display`
    compile_seconds: list[float]
    tracker: Tracker


def run(job: Job) -> None:
    """Train what is left of a run, or of this process's share of it, and write its results.

    Raises Stopped after a signal, with checkpoints saved. Exits with 4 if all seeds diverged.
    """
    if (job.folder / "summary.json").exists():
        drop_blocks(job)
        more = "; with a larger --total-timesteps it goes on" if job.run.keep_checkpoint else ""
        print_line(job.run, f"{job.folder} is finished; there is nothing to resume{more}")
        return
    blocks = plan(job)
    own, (index, num_shares) = own_blocks(job, blocks), share_of(job.run)
    most = job.run.seeds_at_once // job.run.block if job.run.seeds_at_once else len(own)
    devices = jax.local_devices()[: max(1, min(most, len(own)))]
    width = min(len(devices) * num_shares, len(blocks))
    print_line(job.run, title(job, blocks, len(devices)))
    pool = ThreadPoolExecutor(2 * len(devices) + 2)
    try:
        with caught_signals() as received, tracking(job, blocks) as tracker:
            with display(job, own, index) as show:
                work = Work(job, devices, width, pool, received, show, [], tracker)
                train_and_evaluate(work, own, blocks)
            summary = finish(work, blocks)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    if summary and len(summary["diverged_seeds"]) == len(job.grid) * job.run.num_seeds:
        earliest = min(seed["update"] for seed in summary["diverged_seeds"])
        fail(4, f"all seeds diverged, the first at update {earliest}; try a lower learning rate")


def train_and_evaluate(work: Work, own: list[Block], blocks: list[Block]) -> None:
    """Train and evaluate the `own` blocks of a run, and wait for those of other processes."""
    job = work.job
    side_by_side(work, missing(job, own, "trained.npz"), lower_for_training, train_block)
    if not missing(job, blocks, "trained.npz"):
        with merging(job) as is_mine, caught_signals(work.received):
            if is_mine:  # before the evaluation, which may be stopped
                table = read_table(job, blocks)
                write_metrics(job, blocks, table)
                write_policies(job, blocks, training_scores(table))
    if last_file(job, blocks) == "episodes.npz":
        left = missing(job, own, "episodes.npz")
        side_by_side(work, left, lower_evaluation, evaluate_block)
    if share_of(job.run)[0] == 0:
        wait_for_others(
            job, lambda: not missing(job, blocks, last_file(job, blocks)), work.received
        )
    else:
        wait_for_others(job, (job.folder / "summary.json").exists, work.received)
    if work.received:
        raise Stopped(128 + work.received[0])


def missing(job: Job, blocks: list[Block], name: str) -> list[Block]:
    """Return the blocks that do not have that file yet."""
    return [block for block in blocks if not block_path(job, block, name).exists()]


def last_file(job: Job, blocks: list[Block]) -> str:
    """Return the file that a block ends with."""
    is_evaluated = job.run.eval_episodes and blocks[0].algorithm.act is not None
    return "episodes.npz" if is_evaluated else "trained.npz"


def finish(work: Work, blocks: list[Block]) -> dict[str, Any] | None:
    """Merge what the blocks left and print it; return the summary, None if others will merge."""
    job = work.job
    left = missing(job, blocks, last_file(job, blocks))
    with merging(job) as is_mine, caught_signals(work.received):
        if (job.folder / "summary.json").exists() or not is_mine:
            return None
        if left:
            share = f"share {job.run.share} is done; " if job.run.share else ""
            print_line(job.run, f"{share}{len(left)} of {len(blocks)} blocks are left to others")
            return None
        summary, ranking = write_results(job, blocks, work.width, sum(work.compile_seconds))
        work.tracker.complete()
        if summary.get("best"):
            check_best(work, blocks, summary)
        write_json(job.folder / "summary.json", summary)  # last: it marks the run as finished
        drop_blocks(job)
    print_line(job.run, *summary_lines(job, summary, ranking))
    return summary


def check_best(work: Work, blocks: list[Block], summary: dict[str, Any]) -> None:
    """Add to a sweep's summary what its best setting reaches on scores that did not choose it: of
    fresh episodes, and of fresh seeds with `--retrain-best`."""
    job = work.job
    config = configured(job.config, summary["best"])
    alone = {
        "sweep": (),
        "num_settings": 0,
        "keep_checkpoint": False,
        "share": "",
        "distributed": "",
        "retrain_best": 0,
    }
    if last_file(job, blocks) == "episodes.npz":
        again = evaluate_again(work, config, summary["best"])
        summary["fresh_evaluation"] = summarize(again.mean(-1))
    if job.run.retrain_best:
        seeds = {"seed": job.run.seed + job.run.num_seeds, "num_seeds": job.run.retrain_best}
        flags = dataclasses.replace(job.run, **alone, **seeds, quiet=True)
        folder = job.folder / "best"
        create(folder, job.name, config, flags, [{}])
        run(Job(job.name, job.make, config, flags, [{}], folder))
        best = json.loads((folder / "summary.json").read_text())
        summary["retrained"] = best["evaluation"] or best["training"]


def evaluate_again(work: Work, config: Any, setting: dict[str, Any]) -> np.ndarray:
    """Return the returns [S, E] of fresh episodes of a sweep's setting."""
    job, num_seeds = work.job, work.job.run.num_seeds
    arrays, header = checkpoint.load(job.folder / "policy.npz")
    is_best = arrays["member/setting"] == header["settings"].index(setting)
    rows, program_id = arrays["member/row"][is_best], arrays["member/program"][is_best][0]
    seed = arrays["member/seed"][is_best]
    members = {}, np.zeros(num_seeds, int), seed
    block = Block(0, -1, num_seeds, config, job.make(config), *members)
    params = checkpoint.restore(
        member_shapes(block)[1],
        {name: x[rows] for name, x in arrays.items() if name.startswith(f"{program_id}/")},
        f"{program_id}/",
    )
    returns = []

    def task(work, block, program):
        (evaluate,) = program.evaluate.values()
        episodes = evaluate(*place(({}, params, block.seed), block, program.device))
        yield episodes, False
        returns.append(np.asarray(episodes[0]))

    side_by_side(work, [block], partial(lower_evaluation, salt=FRESH), task)
    is_scored = np.isfinite(arrays["member/score"][is_best])
    return np.where(is_scored[:, None], returns[0], np.nan)


def side_by_side(work: Work, blocks: list[Block], lower: Callable, task: Callable) -> None:
    """Run `task(work, block, program)` for every block, one at a time on each device.

    A task is a generator that yields the arrays it waits for, and whether they are waited for after
    a signal. `lower(job, block, devices, pool)` returns Futures of the fields of the devices'
    Programs; blocks with the same program_id share them. Ends the program after a signal.
    """
    waiting, free, running = deque(blocks), list(work.devices), {}
    programs, program_id = {}, None
    while running or (waiting and not work.received):
        while waiting and free and not work.received:
            if waiting[0].program_id != program_id:
                programs = compiled(work, lower, waiting[0])
                if work.received:
                    break
                program_id = waiting[0].program_id
            block, device = waiting.popleft(), free.pop(0)
            steps = task(work, block, programs[device])
            waits_for = go_on(steps, device)
            assert waits_for is not None, "a task waits at least once"
            running[device] = steps, *waits_for
        for device in wait_for_any(work, running):
            steps = running.pop(device)[0]
            waits_for = go_on(steps, device)
            if waits_for is None:
                free.append(device)
            else:
                running[device] = steps, *waits_for
    if work.received:
        raise Stopped(128 + work.received[0])


def go_on(steps: Iterator, device: Any) -> tuple[Any, bool] | None:
    """Return what a task waits for next, None if it is done; its own small computations are not to
    wait for another device, which is busy."""
    with jax.default_device(device):
        return next(steps, None)


def wait_for_any(work: Work, running: dict) -> list:
    """Return the devices whose arrays are ready, as soon as there are some.

    After a signal drops those that need not be waited for.
    """
    delay, said = 1e-4, False
    while running:
        if work.received and not said:
            said = True
            print_line(work.job.run, "stopping ... (a second signal ends the run at once)")
            for device in [d for d, (_, _, is_kept) in running.items() if not is_kept]:
                del running[device]
        ready = [
            device
            for device, (_, arrays, _) in running.items()
            if all(x.is_ready() for x in jax.tree.leaves(arrays))
        ]
        if ready:
            return ready
        time.sleep(delay)
        delay = min(1.5 * delay, 2e-3)
    return []


def compiled(work: Work, lower: Callable, block: Block) -> dict[Any, Program]:
    """Return the Programs of a block, by device; {} after a signal."""
    work.show("compiling")
    clock = time.monotonic()
    futures = lower(work.job, block, work.devices, work.pool)
    while not all(future.done() for future in futures.values()):
        if work.received:
            return {}
        time.sleep(2e-3)
    functions = {name: future.result() for name, future in futures.items() if isinstance(name, str)}
    evaluations = {x[1]: f.result() for x, f in futures.items() if isinstance(x, tuple)}
    seconds = time.monotonic() - clock
    if lower is lower_for_training:
        if not work.compile_seconds:
            warn_of_memory(work, block, functions["run_updates"][0])
        work.compile_seconds.append(seconds)
        print_line(work.job.run, f"compiled in {seconds:.1f} s")
    work.show("" if lower is lower_for_training else "evaluating")
    return {
        device: Program(
            device,
            **{name: f[i] for name, f in functions.items()},
            evaluate={env_id: f[i] for env_id, f in evaluations.items()},
        )
        for i, device in enumerate(work.devices)
    }


def warn_of_memory(work: Work, block: Block, program: Any) -> None:
    """Say so if training needs more memory than is free."""
    each = max(bytes_of(block.algorithm), program_bytes(program) / block.num_rows)
    rows = block.num_rows * len(work.devices)
    if warning := memory_warning(each, rows, free_bytes(work.devices)):
        warn(warning)


def lower_for_training(
    job: Job, block: Block, devices: list, pool: ThreadPoolExecutor
) -> dict[str | tuple[str, str], Future]:
    """Return Futures of all that the training of a block needs."""
    futures, evaluation = lower_training(job, block, devices, pool), {}
    if job.run.eval_every:
        points = log_points(block.algorithm.num_updates, job.run.log_points)
        evaluation = lower_evaluation(job, block, devices, pool, updates=points)
    return futures | evaluation


def train_block(work: Work, block: Block, program: Program) -> Iterator[tuple[Any, bool]]:
    """Train a block from its first update, or from its checkpoint, to its last."""
    job, algorithm = work.job, block.algorithm
    points = log_points(algorithm.num_updates, job.run.log_points)
    floats, seed = place((block.floats, block.seed), block, program.device)
    assert program.init_run and program.run_updates
    if (found := restored(job, block, program)) is not None:
        at, history, run_state = found
        is_over = bool(jnp.all(run_state.diverged >= 0))
        at["ended"] = at["update"] == points[-1] or is_over  # not if a finished run goes on
        yield run_state.diverged, False
    else:
        at, history = {"update": 0, "seconds": 0.0, "rows": [], "ended": False}, {}
        run_state = program.init_run(floats, seed)
        yield run_state.diverged, False
    saved_at, save_seconds, length = time.monotonic(), 0.0, 1
    while at["update"] < points[-1] and not at["ended"]:
        start, clock = at["update"], time.monotonic()
        point = next(p for p in points if p > start)
        end = min(point, start + length)
        is_new_row = start in (0, *at["rows"])
        span = jnp.int32(start), jnp.int32(end), jnp.bool_(is_new_row)
        run_state = program.run_updates(run_state, *span)
        yield run_state.diverged, True

        elapsed = time.monotonic() - clock
        length = max(1, int((end - start) * min(8, CHUNK_SECONDS / max(elapsed, 1e-3))))
        at = at | {"update": end, "seconds": at["seconds"] + elapsed}
        own = jax.device_get(unpad(run_state._replace(state=None), len(block.seed)))
        at["ended"] = end == points[-1] or bool(np.all(own.diverged >= 0))
        work.show("", block, end, own)
        if end == point or at["ended"]:
            row = metrics_row(own)
            if program.evaluate:
                row["evaluation_return"] = np.full(len(block.seed), np.nan)
            if is_evaluated(job, algorithm, at["rows"], end):
                evaluate = program.evaluate[evaluation_id(block.config, algorithm, end)]
                returns, _ = evaluate(floats, run_state.state.params, seed)
                yield returns, True
                means = np.asarray(unpad(returns, len(block.seed))).mean(-1)
                row["evaluation_return"] = np.where(own.diverged < 0, means, np.nan)
            at["rows"] = [*at["rows"], end]
            history = add_row(history, row)
            work.tracker.update(block, at["rows"], history)
        is_due = time.monotonic() - saved_at > max(
            job.run.checkpoint_every, save_seconds / SAVE_SHARE
        )
        if not at["ended"] and (work.received or is_due):
            saved_at = time.monotonic()
            save_checkpoint(job, block, run_state, history, at)
            save_seconds, saved_at = time.monotonic() - saved_at, time.monotonic()
        if not at["ended"] and work.received:
            return
    save_trained(job, block, run_state, history, at)


def save_checkpoint(
    job: Job, block: Block, run_state: RunState, history: dict, at: dict[str, Any]
) -> None:
    """Save all that a block needs to go on. OSError if the disk refuses."""
    tree = {"run_state": unpad(run_state, len(block.seed)), "history": history}
    save_block(job, block, "checkpoint.npz", tree, at, keep_previous=True)


def restored(
    job: Job, block: Block, program: Program
) -> tuple[dict[str, Any], dict[str, np.ndarray], RunState] | None:
    """Return a block's position, its rows of metrics {name: [L, M]} and its RunState, from its
    checkpoint; None if there is none yet. CheckpointError if none can be used."""
    found = load_block(job, block, "checkpoint.npz", "previous.npz")
    if found is None:
        return None
    arrays, header = found
    values = checkpoint.restore(unpad(program.shapes, len(block.seed)), arrays, "run_state/")
    history = {k.removeprefix("history/"): x for k, x in arrays.items() if k.startswith("history/")}
    return header["at"], history, place(values, block, program.device)


def metrics_row(run_state: RunState) -> dict[str, np.ndarray]:
    """Return the members' means since the last row, each [M]; NaN where there is nothing to
    report; and the number of episodes."""
    mean, count = run_state.mean, run_state.count
    row = {name: np.where(count[name] > 0, x, np.nan) for name, x in mean.items()}
    return row | (
        {"episodes": np.asarray(count["episode_return"])} if "episode_length" in row else {}
    )


def add_row(history: dict[str, np.ndarray], row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the rows {name: [L, M]} and one more."""
    if not history:
        return {name: x[None] for name, x in row.items()}
    return {name: np.concatenate([history[name], x[None]]) for name, x in row.items()}


def is_evaluated(job: Job, algorithm: Algorithm, rows: list[int], update: int) -> bool:
    """Return whether a row, after these, is the first one at or after a multiple of `--eval-every`
    steps."""
    every = job.run.eval_every
    previous = max(rows, default=0)
    if not every or algorithm.act is None:
        return False
    return steps_after(algorithm, previous) // every < steps_after(algorithm, update) // every


def save_trained(
    job: Job,
    block: Block,
    run_state: RunState,
    history: dict[str, np.ndarray],
    at: dict[str, Any],
) -> None:
    """Save what a block has learned, draw the picture of the first, and drop its checkpoints, but
    for the last one with `--keep-checkpoint`."""
    if block.index == 0 and block.algorithm.picture is not None:
        first = {name: jnp.asarray(x[0]) for name, x in block.floats.items()}
        picture = member_algorithm(job, block.config, first).picture
        assert picture is not None
        draw_first(job, picture, unpad(without_floats(run_state.state), 1))
    own = unpad((run_state.state.params, run_state.diverged), len(block.seed))
    params = {f"params/{name}": x for name, x in checkpoint.named_arrays(own[0]).items()}
    tree = {**params, "diverged": own[1], "history": history}
    if job.run.keep_checkpoint:
        save_checkpoint(job, block, run_state, history, at)
    save_block(job, block, "trained.npz", tree, at)
    for name in (
        ("previous.npz",) if job.run.keep_checkpoint else ("checkpoint.npz", "previous.npz")
    ):
        block_path(job, block, name).unlink(missing_ok=True)


def evaluate_block(work: Work, block: Block, program: Program) -> Iterator[tuple[Any, bool]]:
    """Evaluate what a block has learned: whole episodes of every member."""
    job, num_members = work.job, len(block.seed)
    arrays, header = load_trained(job, block)
    shapes = unpad(member_shapes(block)[1], num_members)
    params = checkpoint.restore(shapes, arrays, "params/")
    members = place((block.floats, params, block.seed), block, program.device)
    (evaluate,) = program.evaluate.values()
    episodes = evaluate(*members)
    yield episodes, False
    returns, lengths = (np.asarray(x) for x in unpad(episodes, num_members))
    is_scored = (arrays["diverged"][:, None] < 0) & np.isfinite(returns)
    tree = {"returns": np.where(is_scored, returns, np.nan), "lengths": lengths}
    save_block(job, block, "episodes.npz", tree, header["at"])


class Stopped(SystemExit):
    """Raised to end the program after a signal, while devices may still compute."""


@contextlib.contextmanager
def caught_signals(outer: list[int] | None = None) -> Iterator[list[int]]:
    """Yield a list that the signals which end a run are appended to; a second one ends the program
    at once.

    With the list of an `outer` context the first one raises Stopped wherever the program is, which
    loses nothing while results are merged: 100,000 seeds take a minute.
    """
    received = [] if outer is None else outer

    def handle(number, frame):
        if received:
            os._exit(128 + number)
        received.append(number)
        if outer is not None:
            raise Stopped(128 + number)

    old = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield received
    finally:
        if not received:  # else the program ends, and a second one must still end it at once
            for number, handler in old.items():
                signal.signal(number, handler)
