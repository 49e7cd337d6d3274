"""What a run prints."""

import contextlib
import functools
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import jax
import numpy as np

from common.algorithm import Algorithm
from common.runner.blocks import Block, Job, steps_after
from common.runner.cli import Run
from common.runner.evaluation import MAX_LENGTH, POLICIES
from common.runner.program import RunState

MAX_BYTES = 2**62


def print_line(run: Run, *lines: str) -> None:
    """Print lines, unless the run is quiet; nothing at all once the reader has gone (`| head`)."""
    if run.quiet:
        return
    try:
        print(*lines, sep="\n", flush=True)
    except UnicodeEncodeError:  # a terminal that is not UTF-8
        print(*(line.encode("ascii", "replace").decode() for line in lines), sep="\n", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def title(job: Job, blocks: list[Block], num_devices: int) -> str:
    """Return what will be trained, in one line, with the memory of what trains at a time."""
    algorithm = blocks[0].algorithm
    size = bytes_of(algorithm) * rows_at_once(blocks, num_devices)
    seeds = f"{job.run.num_seeds:,} seed{'s' * (job.run.num_seeds > 1)}"
    steps = steps_after(algorithm, algorithm.num_updates)
    is_played = hasattr(job.config, "total_timesteps")
    parts = [
        job.name,
        job.config.env_id,
        f"{len(job.grid)} settings x {seeds}" if job.run.sweep else seeds,
        f"{steps:,} steps each" if is_played else f"{algorithm.num_updates:,} updates each",
        f"{len(blocks)} blocks" if len(blocks) > num_devices else "",
        f"share {job.run.share}" if job.run.share else "",
        f"{jax.local_devices()[0].platform} x{num_devices}",
        f"{size / 2**20:,.0f} MiB" if size >= 2**20 else f"{size / 2**10:,.0f} KiB",
    ]
    return " · ".join(part for part in parts if part)


@functools.lru_cache(1)
def bytes_of(algorithm: Algorithm) -> int:
    """Return the bytes of one seed's State."""
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))


def rows_at_once(blocks: list[Block], num_devices: int) -> int:
    """Return how many members train at a time, at most: the largest block on every device."""
    return sum(sorted(block.num_rows for block in blocks)[-num_devices:])


def memory_warning(each: float, rows: int, free: int) -> str:
    """Return a warning if `rows` members that train at a time, of `each` bytes, are larger than
    `free` bytes, else ""."""
    if each * rows <= free:
        return ""
    fitting = int(0.8 * free / each)  # results need some memory, too
    advice = f"--seeds-at-once {fitting} may fit" if fitting else "not even one seed fits"
    needed, free_gib = each * rows / 2**30, free / 2**30
    return f"warning: needs about {needed:.3g} GiB, of which {free_gib:.3g} are free: {advice}"


def program_bytes(program: Any) -> int:
    """Return the bytes that a compiled program needs: its arguments, which it overwrites, and what
    it holds on the way; 0 if it is not compiled."""
    sizes = program.memory_analysis() if hasattr(program, "memory_analysis") else None
    return sizes.argument_size_in_bytes + sizes.temp_size_in_bytes if sizes else 0


def free_bytes(devices: list) -> int:
    """Return the memory that is free on these devices, a CPU's being that of the machine; a very
    large number if the system does not tell."""
    if devices[0].platform == "cpu":
        with contextlib.suppress(OSError), open("/proc/meminfo") as file:
            lines = dict(line.split(":") for line in file)
            return int(lines["MemAvailable"].split()[0]) * 1024
        return MAX_BYTES
    stats = [device.memory_stats() or {} for device in devices]
    return sum(x.get("bytes_limit", MAX_BYTES) - x.get("bytes_in_use", 0) for x in stats)


def summary_lines(job: Job, summary: dict, ranking: list[dict]) -> list[str]:
    """Return the last lines: a sweep's ranking, returns over seeds, diverged seeds, the folder."""
    lines = []
    policy = POLICIES[job.run.eval_policy]
    kind = policy if summary["evaluation"] else "training"
    if job.run.sweep and any(row["iqm"] is not None for row in ranking):
        width = max(len(row["setting"]) for row in ranking)
        is_sure = len(ranking) > 1 and ranking[0]["best_probability"] is not None
        rule = "; %: share of resamples of the seeds in which it leads" if is_sure else ""
        lines.append(f"{kind} return, best settings first (equal ones share a rank{rule}):")
        for row in ranking[:20]:
            some = row["diverged"] and row["iqm"] is not None
            note = f"   {row['diverged']} diverged" if some else ""
            share = f"{row['best_probability']:6.0%}" if is_sure else ""
            lines.append(
                f"{row['rank']:4d}{share}  {row['setting']:{width}}  {spread_text(row)}{note}"
            )
        if summary["best"]:
            lines.append("of the best setting, whose scores above were also those that chose it:")
    seeds = f"({job.run.num_seeds:,} seed{'s' * (job.run.num_seeds > 1)})"
    if summary["training"] and summary["training"]["iqm"] is not None:
        lines.append(f"training return, last 10 %:  {spread_text(summary['training'])}   {seeds}")
    scored = ("evaluation", f"{policy} policy"), ("fresh_evaluation", "on fresh episodes")
    for name, text in scored:
        if summary.get(name) and summary[name]["iqm"] is not None:
            episodes = f"{text}, {job.run.eval_episodes} episodes:"
            lines.append(f"{episodes:28} {spread_text(summary[name])}   {seeds}")
    if summary["retrained"]:
        count = f"({job.run.retrain_best:,} fresh seeds)"
        lines.append(
            f"trained again, {kind}:{' ' * 7}{spread_text(summary['retrained'])}   {count}"
        )
    lines += silence(job, summary)
    diverged = summary["diverged_seeds"]
    if diverged:
        first = ", ".join(f"seed {x['seed']} at update {x['update']}" for x in diverged[:5])
        more = f" and {len(diverged) - 5} more" if len(diverged) > 5 else ""
        total = len(job.grid) * job.run.num_seeds
        lines.append(f"{len(diverged)}/{total} seeds diverged: {first}{more}; they have no score")
    files = sorted(path.name for path in job.folder.iterdir() if not path.name.startswith("."))
    return [*lines, f"{job.folder}/  {'  '.join(files)}"]


def silence(job: Job, summary: dict) -> list[str]:
    """Return the lines that say why a run has no returns, or why some of them are cut."""
    lines = []
    if summary["episodes"] == 0 and hasattr(job.config, "total_timesteps"):
        lines.append(
            f"no episode ended within {summary['steps']:,} steps, so there is no training return: "
            "raise --total-timesteps"
        )
    if summary["unfinished_episodes"]:
        lines.append(
            f"{summary['unfinished_episodes']:,} episodes of the evaluation had not ended after "
            f"{MAX_LENGTH:,} steps; their returns are those so far"
        )
    return lines


def spread_text(x: dict[str, Any]) -> str:
    """Return IQM, interval and extremes, as `summarize` has them, as text."""
    if x["iqm"] is None:
        return "diverged"
    if x["min"] == x["max"]:
        return "all {iqm:.4g}".format(**x) if x["low"] is not None else "{iqm:.4g}".format(**x)
    interval = "" if x["low"] is None else " [{low:.4g}, {high:.4g}]".format(**x)
    return "IQM {iqm:.4g}{interval}   min {min:.4g}   max {max:.4g}".format(interval=interval, **x)


@contextlib.contextmanager
def display(job: Job, blocks: list[Block], share: int = 0) -> Iterator[Callable]:
    """Yield `show(state, block, update, RunState)`, which shows the progress of these blocks.

    `state` is what is under way, "" for training; the others are a block, its updates so far and
    its RunState, if they are news. On a terminal it is a bar; otherwise a line at every tenth of
    the run, but at most one per second, and at least every 15 seconds.
    """
    work = {
        b.index: b.algorithm.num_updates * b.algorithm.steps_per_update * len(b.seed)
        for b in blocks
    }
    total, done, returns, stages = sum(work.values()), {}, {}, {}
    last_tenth, last_time, began = 0, -math.inf, time.monotonic()

    def figures(block: Block | None, update: int, run_state: RunState | None) -> dict[str, Any]:
        """Return the texts to show; speed and time are those since the first chunk."""
        nonlocal began
        if block is None and not done:
            began = time.monotonic()
        if block is not None and run_state is not None:
            share = update / block.algorithm.num_updates
            done[block.index] = work[block.index] * share
            known = run_state.count["episode_return"] > 0
            returns[block.index] = run_state.mean["episode_return"][known]
            if "stage" in run_state.mean:  # of an algorithm that learns one thing after the other
                stages[block.index] = run_state.mean["stage"].max()
        ended = np.concatenate([*returns.values(), np.zeros(0)])
        seconds = time.monotonic() - began
        so_far = sum(done.values())
        return {
            "steps": metric_prefix(so_far) + "steps",
            "speed": metric_prefix(so_far / max(seconds, 1e-9)) + "steps/s" if seconds else "",
            "time": str(timedelta(seconds=round(seconds))),
            "stage": f"stage {min(stages.values()):.1f}" if stages else "",
            "result": f"return {ended.mean():.4g}" if len(ended) else "",
        }

    def line(state, block=None, update=0, run_state=None):
        nonlocal last_tenth, last_time
        texts = figures(block, update, run_state)
        if block is None:
            return print_line(job.run, f"{state} ...") if state else None
        share = sum(done.values()) / total
        tenth, clock = int(10 * share), time.monotonic()
        if tenth > last_tenth and (clock > last_time + 1 or tenth == 10) or clock > last_time + 15:
            last_tenth, last_time = tenth, clock
            print_line(job.run, f"{100 * share:3.0f} %  {'  '.join(filter(None, texts.values()))}")

    if job.run.quiet or (job.run.distributed and share > 0):  # one process speaks for all
        yield lambda *state: None
    elif not sys.stdout.isatty():
        yield line
    else:
        from rich.progress import BarColumn, Progress, TextColumn

        names = ("steps", "speed", "time", "stage", "result", "state")
        texts = [TextColumn("{task.fields[" + name + "]}") for name in names]
        with Progress(BarColumn(), TextColumn("{task.percentage:3.0f} %"), *texts) as bar:
            task = bar.add_task("", total=total, **dict.fromkeys(names, ""))

            def draw(state, block=None, update=0, run_state=None):
                texts = figures(block, update, run_state)
                bar.update(task, completed=sum(done.values()), state=state, **texts)

            yield draw


def metric_prefix(x: float) -> str:
    """Return a number with three digits and a metric prefix: 1234567 as '1.23 M '."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if x >= size:
            return f"{x / size:.3g} {letter} "
    return f"{x:.3g} "
