"""What a run prints."""

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import jax

from common.runner.cli import Run
from common.runner.groups import Group, Job, steps_after
from common.runner.program import RunState


def print_line(run: Run, *lines: str) -> None:
    """Print lines, unless the run is quiet; nothing at all once the reader has gone (`| head`)."""
    if run.quiet:
        return
    try:
        print(*lines, sep="\n", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def title(job: Job, groups: list[Group]) -> str:
    """Return what will be trained, in one line, with the memory of the largest group's State."""
    num_devices = min(len(jax.devices()), max(len(group.seed) for group in groups))
    algorithm = job.make(groups[0].config)
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))
    size *= max(len(group.seed) for group in groups)
    seeds = f"{job.run.num_seeds} seed{'s' * (job.run.num_seeds > 1)}"
    parts = [
        job.name,
        job.config.env_id,
        f"{len(job.grid)} settings x {seeds}" if job.run.sweep else seeds,
        f"{steps_after(algorithm, algorithm.num_updates):,} steps each",
        f"in {len(groups)} groups" if len(groups) > 1 else "",
        f"{jax.devices()[0].platform} x{num_devices}",
        f"{size / 2**20:,.0f} MiB" if size >= 2**20 else f"{size / 2**10:,.0f} KiB",
    ]
    return " · ".join(part for part in parts if part)


def summary_lines(job: Job, summary: dict, ranking: list[dict]) -> list[str]:
    """Return the last lines: a sweep's ranking, returns over seeds, diverged seeds, the folder."""
    lines = []
    if job.run.sweep and ranking[0]["iqm"] is not None:
        width = max(len(row["setting"]) for row in ranking)
        kind = "greedy" if summary["evaluation"] else "training"
        lines.append(f"{kind} return, best settings first:")
        for row in ranking[:20]:
            some = row["diverged"] and row["iqm"] is not None
            note = f"   {row['diverged']} diverged" if some else ""
            lines.append(f"{row['rank']:4d}  {row['setting']:{width}}  {spread_text(row)}{note}")
        lines.append("of the best setting:")
    seeds = f"({job.run.num_seeds} seed{'s' * (job.run.num_seeds > 1)})"
    if summary["training"]["iqm"] is not None:
        lines.append(f"training return, last 10 %:  {spread_text(summary['training'])}   {seeds}")
    if summary["evaluation"] and summary["evaluation"]["iqm"] is not None:
        episodes = f"greedy policy, {job.run.eval_episodes} episodes:"
        lines.append(f"{episodes:28} {spread_text(summary['evaluation'])}   {seeds}")
    diverged = summary["diverged_seeds"]
    if diverged:
        first = ", ".join(f"seed {x['seed']} at update {x['update']}" for x in diverged[:5])
        more = f" and {len(diverged) - 5} more" if len(diverged) > 5 else ""
        total = len(job.grid) * job.run.num_seeds
        lines.append(f"{len(diverged)}/{total} seeds diverged: {first}{more}; they have no score")
    files = sorted(path.name for path in job.folder.iterdir() if not path.name.startswith("."))
    return [*lines, f"{job.folder}/  {'  '.join(files)}"]


def spread_text(x: dict[str, Any]) -> str:
    """Return IQM, interval and extremes, as `summarize` has them, as text."""
    if x["iqm"] is None:
        return "diverged"
    return "IQM {iqm:.4g} [{low:.4g}, {high:.4g}]   min {min:.4g}   max {max:.4g}".format(**x)


@contextlib.contextmanager
def display(job: Job, groups: list[Group]) -> Iterator[Callable]:
    """Yield `show(group's index, updates so far, seconds, RunState)`, which shows the progress.

    On a terminal it is a bar; otherwise a line at every tenth of the run, but at most one per
    second, and at least every 15 seconds.
    """
    algorithms = [job.make(group.config) for group in groups]
    work = [
        a.num_updates * a.steps_per_update * len(g.seed)
        for a, g in zip(algorithms, groups, strict=True)
    ]
    last_tenth, last_time = 0, -math.inf

    def figures(index: int, update: int, seconds: float, run_state: RunState):
        done = sum(work[:index]) + work[index] * update / algorithms[index].num_updates
        mean, count = jax.device_get((run_state.mean, run_state.count))
        ended = mean["episode_return"][count["episode_return"] > 0]
        return done, {
            "steps": metric_prefix(done) + "steps",
            "speed": metric_prefix(done / max(seconds, 1e-9)) + "steps/s",
            "time": str(timedelta(seconds=round(seconds))),
            "result": f"return {ended.mean():.4g}" if len(ended) else "",
        }

    def line(*state):
        nonlocal last_tenth, last_time
        done, texts = figures(*state)
        tenth, clock = int(10 * done / sum(work)), time.monotonic()
        if tenth > last_tenth and (clock > last_time + 1 or tenth == 10) or clock > last_time + 15:
            last_tenth, last_time = tenth, clock
            print_line(job.run, f"{100 * done / sum(work):3.0f} %  {'  '.join(texts.values())}")

    if job.run.quiet:
        yield lambda *state: None
    elif not sys.stdout.isatty():
        yield line
    else:
        from rich.progress import BarColumn, Progress, TextColumn

        names = ("steps", "speed", "time", "result")
        texts = [TextColumn("{task.fields[" + name + "]}") for name in names]
        with Progress(BarColumn(), TextColumn("{task.percentage:3.0f} %"), *texts) as bar:
            task = bar.add_task("", total=sum(work), **dict.fromkeys(names, ""))

            def draw(*state):
                done, texts = figures(*state)
                bar.update(task, completed=done, **texts)

            yield draw


def metric_prefix(x: float) -> str:
    """Return a number with three digits and a metric prefix: 1234567 as '1.23 M '."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if x >= size:
            return f"{x / size:.3g} {letter} "
    return f"{x:.3g} "
