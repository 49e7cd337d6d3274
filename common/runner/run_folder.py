"""The run folder during a run: config.json, metrics.csv, and the checkpoint to resume from."""

import csv
import dataclasses
import io
import json
import platform
import sys
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import jax
import numpy as np

from common.algorithm import Algorithm, flag
from common.runner import checkpoint
from common.runner.checkpoint import CheckpointError
from common.runner.cli import Run, warn
from common.runner.groups import Group, Job, steps_after
from common.runner.program import RunState, unpad

RESUME_FLAGS = {"resume", "quiet", "checkpoint_every"}  # flags that --resume does not fix


def new_folder(name: str, config: Any, run: Run) -> Path:
    """Make a run's folder with its config.json; ValueError if the folder already holds a run."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    stem = f"{name}-{config.env_id}-{stamp}"
    unique = (Path("runs") / f"{stem}{suffix}" for suffix in ("", *(f"-{i}" for i in range(2, 99))))
    folder = Path(run.out) if run.out else next(path for path in unique if not path.exists())
    if (folder / "config.json").exists():
        raise ValueError(f"--out {folder} already holds a run; --resume {folder} continues it")
    folder.mkdir(parents=True, exist_ok=True)
    flags = {"config": dataclasses.asdict(config), "run": dataclasses.asdict(run)}
    write_json(folder / "config.json", {"algorithm": name, **flags, "command": sys.argv[1:]})
    return folder


def read_flags(name: str, Config: type, config: Any, run: Run) -> tuple[Any, Run]:
    """Return the Config and the Run of the folder to resume.

    CheckpointError if there is none, if it is of another algorithm, or if a flag given with
    --resume contradicts it.
    """
    folder = Path(run.resume)
    try:
        stored = json.loads((folder / "config.json").read_text())
        algorithm = stored["algorithm"]
        old_config = from_json(Config, stored["config"]) if algorithm == name else None
        old_run = from_json(Run, stored["run"])
    except FileNotFoundError:
        raise CheckpointError(f"--resume {folder}: no run there (it has no config.json)") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"--resume {folder}: config.json cannot be read: {error}") from None
    if algorithm != name:
        raise CheckpointError(
            f"--resume {folder}: a run of {algorithm}; use python -m algorithms.{algorithm}"
        )
    for new, old in ((config, old_config), (run, old_run)):
        for field in dataclasses.fields(new):
            value, old_value = getattr(new, field.name), getattr(old, field.name)
            if field.name not in RESUME_FLAGS and value not in (field.default, old_value):
                raise CheckpointError(
                    f"--resume {folder}: that run has {flag(field.name)} {old_value}; "
                    "leave the flag out, or start a new run"
                )
    kept = {name: getattr(run, name) for name in RESUME_FLAGS}
    return old_config, dataclasses.replace(old_run, **kept)


def from_json(kind: type, fields: dict[str, Any]) -> Any:
    """Return a dataclass with fields read from JSON, where tuples are lists.

    TypeError if a field does not exist or a value is of another type; ValueError if the dataclass
    refuses it.
    """
    made = kind(**{k: tuple(x) if isinstance(x, list) else x for k, x in fields.items()})
    for field in dataclasses.fields(kind):
        value = getattr(made, field.name)
        kinds = (float, int) if field.type is float else (field.type,)
        if field.type in (int, float, bool, str) and type(value) not in kinds:
            raise TypeError(f"{flag(field.name)} {value!r} is not of type {field.type.__name__}")
    return made


def latest_checkpoint(job: Job) -> tuple[dict[str, np.ndarray], dict] | None:
    """Return the arrays and the header of the folder's checkpoint; None if there is none yet.

    If the checkpoint is damaged, prints a warning and returns the previous one. CheckpointError if
    none can be used.
    """
    reasons = []
    for name in ("checkpoint.npz", "previous.npz"):
        path = job.folder / name
        if not path.exists():  # after a kill between the two renames of a save
            continue
        try:
            arrays, header = checkpoint.load(path)
            check_header(job, path, header)
        except CheckpointError as error:
            reasons.append(str(error))
            continue
        if reasons:
            updates = header["at"]["update"]
            warn(f"warning: {reasons[0]}; continuing from {name}, {updates:,} updates")
        then, now = (x["versions"] | {"device": x["device"]} for x in (header, provenance()))
        changed = [f"{k} {then[k]}, now {x}" for k, x in now.items() if then[k] != x]
        if changed:
            warn(f"warning: saved with {'; '.join(changed)}: the last digits may change")
        return arrays, header
    if reasons:
        raise CheckpointError(f"{reasons[0]}; start a new run")
    return None


def check_header(job: Job, path: Path, header: dict) -> None:
    """Raise CheckpointError unless a checkpoint is of this run and all rows it counts exist."""
    flags = json.loads(json.dumps(checkpoint_header(job)))
    if any(header[name] != x for name, x in flags.items()):
        raise CheckpointError(f"{path} was written with other flags than config.json names")
    metrics = job.folder / "metrics.csv"
    if not metrics.exists() or metrics.stat().st_size < header["at"]["metrics_bytes"]:
        raise CheckpointError(f"{metrics} has lost rows that {path} counts on")


def checkpoint_header(job: Job) -> dict[str, Any]:
    """Return what a checkpoint's header says about its run."""
    run = {k: x for k, x in dataclasses.asdict(job.run).items() if k not in RESUME_FLAGS}
    return {"algorithm": job.name, "config": dataclasses.asdict(job.config), "run": run}


def provenance() -> dict[str, Any]:
    """Return versions and device: what else determines the exact result."""
    packages = ("jax", "jaxlib", "optax", "gymnax", "numpy")
    versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    device = f"{jax.devices()[0].device_kind} x{len(jax.devices())}"
    return {"versions": versions, "device": device}


def write_metrics(
    file: BinaryIO,
    job: Job,
    group: Group,
    algorithm: Algorithm,
    update: int,
    run_state: RunState,
    extra: dict[str, np.ndarray],
) -> None:
    """Write one row per member: seed, swept fields, environment steps, then the metrics' means
    since the last row and the `extra` columns [M]."""
    num_members = len(group.seed)
    mean, count = jax.device_get(unpad((run_state.mean, run_state.count), num_members))
    columns = {name: np.where(count[name] > 0, x, np.nan) for name, x in mean.items()} | extra
    if "episode_length" in columns:
        columns["episodes"] = count["episode_return"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if file.tell() == 0:
        writer.writerow(["seed", *job.grid[0], "step", *columns])
    for i in range(num_members):
        swept = job.grid[group.config_index[i]].values()
        numbers = (f"{x[i]:.7g}" for x in columns.values())
        writer.writerow([group.seed[i], *swept, steps_after(algorithm, update), *numbers])
    file.write(text.getvalue().encode())


def read_metrics(job: Job) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return metrics.csv as steps [G, L] and metrics [G, S, L]: G configurations, S seeds, L rows;
    NaN where a seed has fewer rows."""
    with open(job.folder / "metrics.csv", newline="") as file:
        header, *rows = csv.reader(file)
    names = header[header.index("step") + 1 :]
    config_indices = {tuple(map(str, setting.values())): g for g, setting in enumerate(job.grid)}
    shape = (len(job.grid), job.run.num_seeds)
    series = {(g, s): [] for g in range(shape[0]) for s in range(shape[1])}
    for row in rows:
        g, values = config_indices[tuple(row[1 : len(job.grid[0]) + 1])], row[-len(names) - 1 :]
        series[g, int(row[0]) - job.run.seed].append([float(x) for x in values])
    table = np.full((*shape, max(map(len, series.values())), len(names) + 1), np.nan)
    for member, points in series.items():
        if points:  # none if all members of its group diverged before the first row
            table[member][: len(points)] = points
    steps = np.nanmax(table[..., 0], axis=1)
    return steps, {name: table[..., i] for i, name in enumerate(names, start=1)}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all; OSError if the disk refuses."""
    text = json.dumps(content, indent=2) + "\n"
    checkpoint.write_atomically(path, lambda file: file.write(text.encode()))
