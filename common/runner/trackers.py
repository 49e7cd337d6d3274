"""Trackers of --track: the rows of metrics.csv in TensorBoard or Weights & Biases, while they come.

A run, or each setting of a sweep, is one curve a metric: the IQM over seeds, and from 5 seeds on
its 95 % interval as `<metric>/low` and `<metric>/high`. The first 10 seeds have curves of their
own. A point of the IQM is written once all seeds have it, which they have at the end at the latest.

A run that goes on writes what its checkpoints hold again, in place of what was there: every point
is there once. Of several processes the one that merges the results writes, at the end. A tracker
that fails while the run trains is left out from then on.
"""

import contextlib
import dataclasses
import io
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.runner.blocks import Block, Job, setting_label, steps_after
from common.runner.cli import Run, fail, warn
from common.runner.console import print_line
from common.runner.run_folder import block_path, load_trained
from common.runner.sharing import share_of
from common.runner.statistics import bands

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
MAX_SEEDS = 10  # that have curves of their own
MAX_SETTINGS = 100  # of a sweep
TIME_SHARE = 0.05  # most of the time that intervals may take while the run trains


class Writer(NamedTuple):
    """One run of a tracker."""

    write: Callable[[int, dict[str, float]], None]  # values at an environment step
    close: Callable[[], None]
    where: str  # to see it


class Tracker(NamedTuple):
    """What a run calls."""

    update: Callable[[Block, list[int], dict], None]  # with a block's rows so far, {name: [L, M]}
    complete: Callable[[], None]  # once all blocks are trained


def check(run: Run, num_settings: int) -> None:
    """Raise ValueError if a tracker of --track cannot be used here."""
    for name in trackers_of(run):
        if find_spec(PACKAGES[name]) is None:
            raise ValueError(f"--track {name} needs {PACKAGES[name]}: pip install {PACKAGES[name]}")
    if run.track and num_settings > MAX_SETTINGS:
        raise ValueError(
            f"--track shows at most {MAX_SETTINGS} settings, and the sweep has {num_settings}"
        )


def trackers_of(run: Run) -> list[str]:
    """Return the names in --track."""
    return run.track.split(",") if run.track else []


@contextlib.contextmanager
def tracking(job: Job, blocks: list[Block]) -> Iterator[Tracker]:
    """Yield the Tracker of a run of these blocks. Exits with code 2 if a tracker refuses at the
    start."""
    if not job.run.track:
        yield Tracker(lambda *rows: None, lambda: None)
        return
    kinds: dict[str, Callable[[Job, str, dict], Writer]] = {}  # those that have not failed
    latest: dict[int, tuple[Block, list[int], dict]] = {}  # rows so far, by block
    writers: dict[tuple[str, str], Writer] = {}  # by tracker and curve
    written: dict[str, int] = {}  # rows
    is_started, due = False, 0.0

    def attempt(name: str, function: Callable, *arguments) -> Any:
        """Call a tracker. If it fails before the run has started, exit with code 2; if later, warn
        and leave it out."""
        try:
            return function(*arguments)
        except Exception as error:  # whatever its package raises
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            if not is_started:
                fail(2, f"--track {name}: {kind}{error}")
            kinds.pop(name, None)
            warn(f"--track {name} failed and is left out; the run goes on: {kind}{error}")

    def open_curve(curve: str, about: dict) -> None:
        for name, open_writer in list(kinds.items()):
            if (name, curve) not in writers:
                writer = attempt(name, open_writer, job, curve, about)
                if writer:
                    writers[name, curve] = writer

    def add(curve: str, about: dict, steps: np.ndarray, rows: list[dict[str, float]]) -> None:
        """Write the rows of a curve that follow those written."""
        for step, row in zip(steps, rows, strict=True):
            values = {name: float(x) for name, x in row.items() if np.isfinite(x)}
            open_curve(curve, about)
            for name in list(kinds):
                attempt(name, writers[name, curve].write, int(step), values)
        written[curve] = written.get(curve, 0) + len(rows)

    def add_seeds(block: Block, updates: list[int], history: dict) -> None:
        for i, seed in enumerate(block.seed.tolist()):
            if job.run.num_seeds > 1 and not job.run.sweep and seed < job.run.seed + MAX_SEEDS:
                curve = f"seed_{seed}"
                new = slice(written.get(curve, 0), None)
                steps = steps_after(block.algorithm, np.array(updates[new], int))
                rows = [{k: x[j, i] for k, x in history.items()} for j in range(len(updates))[new]]
                add(curve, {"seed": seed}, steps, rows)

    def add_setting(g: int, at_end: bool) -> None:
        """Write the rows that all seeds of a setting have; at the end those that any has."""
        own = [block for block in blocks if g in block.config_index]
        found = [latest[block.index] for block in own if block.index in latest]
        if len(found) < len(own):
            return
        curve, about = names_of(job, g)
        updates = max((updates for _, updates, _ in found), key=len)
        last = len(updates) if at_end else min(len(updates) for _, updates, _ in found)
        new = range(written.get(curve, 0), last)
        if not new:
            return
        names = list(found[0][2])
        table = np.full((job.run.num_seeds, len(new), len(names)), np.nan)
        for block, own_updates, history in found:
            is_own = block.config_index == g
            some = new[: max(0, len(own_updates) - new.start)]
            for k, name in enumerate(names):
                rows = history[name][some.start : some.stop, is_own].T
                table[block.seed[is_own] - job.run.seed, : len(some), k] = rows
        curves = bands(table.reshape(job.run.num_seeds, -1))
        line, low, high = (x.reshape(len(new), len(names)) for x in curves)
        rows = []
        for j in range(len(new)):
            row = dict(zip(names, line[j], strict=True))
            if job.run.num_seeds > 1:
                row |= {f"{name}/low": x for name, x in zip(names, low[j], strict=True)}
                row |= {f"{name}/high": x for name, x in zip(names, high[j], strict=True)}
            rows.append(row)
        steps = steps_after(found[0][0].algorithm, np.array(updates)[new.start : new.stop])
        add(curve, about, steps, rows)

    def update(block: Block, updates: list[int], history: dict, at_end: bool = False) -> None:
        nonlocal due
        latest[block.index] = block, updates, history
        add_seeds(block, updates, history)
        if time.monotonic() > due and not at_end:
            clock = time.monotonic()
            for g in np.unique(block.config_index).tolist():
                add_setting(g, False)
            due = time.monotonic() + (time.monotonic() - clock) / TIME_SHARE

    def read(block: Block) -> None:
        arrays, header = load_trained(job, block)
        names = [name for name in arrays if name.startswith("history/")]
        history = {name.removeprefix("history/"): arrays[name] for name in names}
        update(block, header["at"]["rows"], history, at_end=True)

    def complete() -> None:
        for block in blocks:
            read(block)
        for g in range(len(job.grid)):
            add_setting(g, True)

    try:
        for name in trackers_of(job.run):
            kinds[name] = attempt(name, TRACKERS[name], job.folder)
        if share_of(job.run)[1] > 1:  # the others' rows come at the end
            is_started = True
            yield Tracker(lambda *rows: None, complete)
        else:
            for block in blocks:
                if block_path(job, block, "trained.npz").exists():
                    read(block)
            open_curve(*names_of(job, 0))
            for (_, curve), writer in writers.items():
                if curve == names_of(job, 0)[0]:
                    print_line(job.run, writer.where)
            is_started = True
            yield Tracker(update, complete)
    finally:
        is_started = True
        for (name, _), writer in writers.items():
            if name in kinds:
                attempt(name, writer.close)


def names_of(job: Job, g: int) -> tuple[str, dict[str, Any]]:
    """Return the name of a setting's curve and what distinguishes it."""
    if job.run.sweep:
        return setting_label(job.grid[g]), job.grid[g]
    return (
        ("iqm", {}) if job.run.num_seeds > 1 else (f"seed_{job.run.seed}", {"seed": job.run.seed})
    )


def tensorboard_writers(folder: Path) -> Callable[[Job, str, dict], Writer]:
    """Return `open_writer(job, curve, about)`; what a run that goes on has written is gone."""
    from tensorboardX import SummaryWriter  # pyright: ignore[reportMissingImports]

    shutil.rmtree(folder / "tensorboard", ignore_errors=True)

    def open_writer(job: Job, curve: str, about: dict) -> Writer:
        events = SummaryWriter(str(folder / "tensorboard" / file_name(curve)), flush_secs=5)
        charts: dict[str, list] = {}

        def write(step: int, values: dict[str, float]) -> None:
            for name in values:  # an interval is a band in TensorBoard's custom scalars
                if f"{name}/low" in values and name not in charts:
                    charts[name] = ["Margin", [name, f"{name}/low", f"{name}/high"]]
                    events.add_custom_scalars({"IQM and 95 % interval over seeds": charts})
            for name, x in values.items():
                events.add_scalar(name, x, step)

        return Writer(write, events.close, f"tensorboard --logdir {folder}")

    return open_writer


def wandb_writers(folder: Path) -> Callable[[Job, str, dict], Writer]:
    """Return `open_writer(job, curve, about)`, which raises ValueError, one line, if wandb refuses.
    A curve keeps its id when a run goes on."""
    import wandb  # pyright: ignore[reportMissingImports]

    (folder / "wandb").mkdir(exist_ok=True)
    stored = folder / "wandb" / "id"
    if not stored.exists():
        stored.write_text(uuid.uuid4().hex[:8])
    group = stored.read_text()

    def open_writer(job: Job, curve: str, about: dict) -> Writer:
        own_id = f"{group}-{file_name(curve)}"[:128]
        for old in (folder / "wandb").glob(f"offline-run-*-{own_id}"):
            shutil.rmtree(old)
        config = {"algorithm": job.name, **dataclasses.asdict(job.config), **about}
        try:
            with without_terminal():
                run = wandb.init(
                    project=None if "WANDB_PROJECT" in os.environ else "manyseeds",
                    id=own_id,
                    name=f"{folder.name} {curve}",
                    group=folder.name,
                    job_type="seed" if "seed" in about else "iqm",
                    config={**config, "num_seeds": job.run.num_seeds},
                    dir=folder,
                    resume="allow",
                    reinit="create_new",
                    settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
                )
        except wandb.Error as error:
            raise ValueError(f"{error} Or set WANDB_MODE=offline.") from error

        def write(step: int, values: dict[str, float]) -> None:
            if step >= run.starting_step:  # else it is there, from before the run went on
                run.log(values, step=step)

        where = f"wandb sync {folder}/wandb/offline-run-*" if run.offline else str(run.url)
        return Writer(write, run.finish, where)

    return open_writer


@contextlib.contextmanager
def without_terminal() -> Iterator[None]:
    """Let nothing wait for an answer on the terminal."""
    stdin, sys.stdin = sys.stdin, io.StringIO()
    try:
        yield
    finally:
        sys.stdin = stdin


def file_name(curve: str) -> str:
    """Return the name of a curve as that of a file."""
    return "".join(x if x.isalnum() or x in "=._-" else "_" for x in curve)


TRACKERS = {"tensorboard": tensorboard_writers, "wandb": wandb_writers}
