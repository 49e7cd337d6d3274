"""One run by several processes: who trains which blocks, and who merges them.

Blocks are independent, so processes share nothing but the folder of the run. A share of the blocks
needs no connection between processes; JAX's own runtime (`jax.distributed`) adds one command for
all of them, and ends all if one dies.
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np

from common.runner.blocks import Block, Job
from common.runner.cli import Run

HEARTBEAT = 10  # seconds without a sign of life after which JAX calls a process dead


def connect(run: Run) -> None:
    """Join the processes of `--distributed`; ValueError if JAX cannot find or reach them."""
    if not run.distributed:
        return
    jax.config.update("jax_enable_preemption_service", False)  # it would swallow SIGTERM
    arguments: dict[str, Any] = {"heartbeat_timeout_seconds": HEARTBEAT}
    if run.distributed != "auto":
        address, count, index = run.distributed.rsplit("/", 2)
        arguments |= {"coordinator_address": address, "num_processes": int(count)}
        arguments |= {"process_id": int(index)}
    try:
        jax.distributed.initialize(**arguments)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"--distributed {run.distributed}: {error}") from None


def share_of(run: Run) -> tuple[int, int]:
    """Return the index of this process's share of the blocks, and the number of shares."""
    if run.share:
        index, count = run.share.split("/")
        return int(index), int(count)
    return (jax.process_index(), jax.process_count()) if run.distributed else (0, 1)


def own_blocks(job: Job, blocks: list[Block]) -> list[Block]:
    """Return the blocks of this process's share: neighbours, near in number to other shares'."""
    index, count = share_of(job.run)
    return [blocks[i] for i in np.array_split(np.arange(len(blocks)), count)[index]]


def wait_for_others(job: Job, is_finished: Callable[[], bool], received: list[int]) -> None:
    """Wait, with `--distributed`, until the other processes are done, or a signal is received: the
    leader for all blocks, the others for the leader's results."""
    while job.run.distributed and not is_finished() and not received:
        time.sleep(0.1)


@contextlib.contextmanager
def merging(job: Job) -> Iterator[bool]:
    """Yield whether this process is the one that merges; the lock ends with the process."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield True
        return
    with open(job.folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def leave(code: int) -> NoReturn:
    """End the process at once, without waiting for devices or, at JAX's barrier, for others."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
