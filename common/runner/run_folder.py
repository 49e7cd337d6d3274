"""The folder of a run: its flags, and the files of its blocks until the run is finished.

blocks/<index>/ holds checkpoint.npz and previous.npz while the block trains, then trained.npz
(params, metrics), then episodes.npz (the evaluation). Whoever finds all of them merges them.
"""

import dataclasses
import functools
import hashlib
import json
import os
import platform
import shutil
import sys
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from common.algorithm import flag
from common.runner import checkpoint
from common.runner.blocks import Block, Job
from common.runner.checkpoint import CheckpointError
from common.runner.cli import Run, warn

# Flags that may differ when a run goes on.
FREE_FLAGS = {"resume", "out", "quiet", "checkpoint_every", "share", "distributed", "eval_episodes"}
FREE_FLAGS |= {"parquet", "track"}


def new_path(name: str, env_id: str) -> Path:
    """Return the path of a folder that does not exist, runs/<algorithm>-<environment>-<time>."""
    env_id = env_id.replace(":", "to")  # rsync, scp and Windows read a colon otherwise
    stem = f"{name}-{env_id}-{datetime.now().strftime('%Y%m%d-%H%M%S')}"
    names = (f"{stem}{suffix}" for suffix in ("", *(f"-{i}" for i in range(2, 99))))
    return next(path for path in map(Path("runs").joinpath, names) if not path.exists())


def create(folder: Path, name: str, config: Any, run: Run, grid: list[dict[str, Any]]) -> bool:
    """Make a run's folder with its config.json; return False if another process was first."""
    folder.mkdir(parents=True, exist_ok=True)
    flags = {"config": dataclasses.asdict(config), "run": dataclasses.asdict(run)}
    content = {"algorithm": name, **flags, "command": sys.argv[1:]}
    if run.num_settings:
        content["settings"] = grid
    own = folder / f".config.json.{os.getpid()}"
    write_json(own, content)
    try:
        os.link(own, folder / "config.json")  # fails if it exists
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        os.replace(own, folder / "config.json")
    finally:
        own.unlink(missing_ok=True)
    return True


def drop_blocks(job: Job) -> None:
    """Remove the files of the blocks of a finished run, but for what it needs to go on with
    `--keep-checkpoint`."""
    if not job.run.keep_checkpoint:
        shutil.rmtree(job.folder / "blocks", ignore_errors=True)
    for path in (job.folder / "blocks").glob("*/*"):
        if path.name != "checkpoint.npz":
            path.unlink(missing_ok=True)


def go_on(folder: Path, total_timesteps: int) -> None:
    """Make a finished run one of more steps, whose blocks go on from their checkpoints. OSError if
    the disk refuses; what is done so far is then the old run, which `--resume` finishes again."""
    content = json.loads((folder / "config.json").read_text())
    earlier = content["config"]["total_timesteps"]
    (folder / "summary.json").unlink(missing_ok=True)
    for path in (folder / "blocks").glob("*/*"):
        if path.name != "checkpoint.npz":
            path.unlink(missing_ok=True)
    shutil.rmtree(folder / "best", ignore_errors=True)  # trained for fewer steps
    content["config"]["total_timesteps"] = total_timesteps
    content.setdefault("went_on_after", []).append(earlier)
    write_json(folder / "config.json", content)


def read_settings(folder: Path) -> list[dict[str, Any]]:
    """Return the settings that were drawn when a run began; [] if none were, or if there is none.
    CheckpointError if the file cannot be read."""
    try:
        return json.loads((folder / "config.json").read_text()).get("settings", [])
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder}/config.json cannot be read: {error}") from None


def read_flags(folder: Path, name: str, config: Any, run: Run, given: set[str]) -> tuple[Any, Run]:
    """Return the Config and the Run of a folder that goes on.

    `given` are the fields that count. CheckpointError if there is no run, if it is of another
    algorithm, or if one of those fields contradicts it.
    """
    try:
        stored = json.loads((folder / "config.json").read_text())
        algorithm = stored["algorithm"]
        if algorithm == name:
            old_config, old_run = from_json(type(config), stored["config"]), None
        old_run = from_json(Run, stored["run"])
    except FileNotFoundError:
        raise CheckpointError(f"--resume {folder}: no run there (it has no config.json)") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{folder}/config.json cannot be read: {error}") from None
    if algorithm != name:
        raise CheckpointError(
            f"{folder} holds a run of {algorithm}; use python -m algorithms.{algorithm}"
        )
    for new, old in ((config, old_config), (run, old_run)):
        for field in dataclasses.fields(new):
            value, old_value = getattr(new, field.name), getattr(old, field.name)
            if field.name not in given or field.name in FREE_FLAGS:
                continue
            if field.name == "block" and not value:  # the run decided
                continue
            if field.name == "total_timesteps" and run.resume and value > old_value:
                refuse_to_go_on(folder, old_run)
                old_config = dataclasses.replace(old_config, total_timesteps=value)
                continue
            if value != old_value:
                raise CheckpointError(
                    f"the run in {folder} has {flag(field.name)} {old_value}, not {value}; "
                    "leave the flag as it was, or start a new run with another --out"
                )
    now = {name: getattr(run, name) for name in FREE_FLAGS & given - {"eval_episodes"}}
    if "eval_episodes" in given and run.eval_episodes != old_run.eval_episodes:
        if run.eval_episodes:
            raise CheckpointError(
                f"the run in {folder} has --eval-episodes {old_run.eval_episodes}; "
                "it may end with that many or with 0"
            )
        now |= {"eval_episodes": 0, "eval_every": 0}
    for field in dataclasses.fields(old_config):
        if field.name not in stored["config"]:
            value = getattr(old_config, field.name)
            warn(f"warning: the run had no {flag(field.name)} yet; it goes on with {value}")
    return old_config, dataclasses.replace(old_run, **now)


def refuse_to_go_on(folder: Path, run: Run) -> None:
    """Raise CheckpointError unless a run can go on for more steps."""
    if not run.keep_checkpoint:
        raise CheckpointError(
            f"the run in {folder} kept no checkpoint, so it cannot go on for more steps; train it "
            "anew with --keep-checkpoint, or with more --total-timesteps at once"
        )
    if not (folder / "summary.json").exists():
        raise CheckpointError(
            f"the run in {folder} is not finished; first --resume it without --total-timesteps"
        )


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


def block_path(job: Job, block: Block, name: str) -> Path:
    """Return the path of a file of a block."""
    return job.folder / "blocks" / f"{block.index:06d}" / name


def save_block(
    job: Job, block: Block, name: str, tree: Any, at: dict[str, Any], keep_previous: bool = False
) -> None:
    """Save a file of a block with its position `at`; OSError if the disk refuses."""
    path = block_path(job, block, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    previous = path.with_name("previous.npz") if keep_previous else None
    checkpoint.save(path, tree, {**run_header(job), "at": at, **provenance()}, previous)


def load_block(job: Job, block: Block, *names: str) -> tuple[dict[str, np.ndarray], dict] | None:
    """Return the arrays and the header of the first of a block's files that can be used; None if
    there is none yet.

    Warns if one is damaged and another follows it. CheckpointError if none can be used.
    """
    reasons = []
    for name in names:
        path = block_path(job, block, name)
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
        warn_of_changes(header)
        return arrays, header
    if reasons:
        raise CheckpointError(f"{reasons[0]}; delete it to train its seeds again")
    return None


def load_trained(job: Job, block: Block) -> tuple[dict[str, np.ndarray], dict]:
    """Return the arrays and the header of what a block has learned. CheckpointError if its file
    cannot be used."""
    found = load_block(job, block, "trained.npz")
    assert found is not None, "a block is trained before this is called"
    return found


def check_header(job: Job, path: Path, header: dict) -> None:
    """Raise CheckpointError unless a file is of this run."""
    flags = json.loads(json.dumps(run_header(job)))
    for name in ("config", "run"):  # which may have gained a field since
        header[name] = flags[name] | header[name]
    steps = flags["config"].get("total_timesteps", 0)
    goes_on = job.run.keep_checkpoint and path.name in ("checkpoint.npz", "previous.npz")
    if goes_on and header["config"].get("total_timesteps", 0) < steps:
        header["config"]["total_timesteps"] = steps
    if any(header[name] != x for name, x in flags.items()):
        raise CheckpointError(f"{path} was written with other flags than config.json names")


def run_header(job: Job) -> dict[str, Any]:
    """Return what the header of a block's file says about its run."""
    free = FREE_FLAGS | {"eval_every"}
    run = {k: x for k, x in dataclasses.asdict(job.run).items() if k not in free}
    return {"algorithm": job.name, "config": dataclasses.asdict(job.config), "run": run}


def warn_of_changes(header: dict) -> None:
    """Warn once if versions, the kind of device or the sources are not those of a header."""
    then, now = ({**x["versions"], "device": x["device"]} for x in (header, provenance()))
    changed = [f"{k} {then.get(k)}, now {x}" for k, x in now.items() if then.get(k) != x]
    edited = [k for k, x in sources().items() if header["sources"].get(k, x) != x]
    if edited:
        changed.append(f"another {', '.join(edited)}")
    if changed and (text := "; ".join(changed)) not in _warned:
        _warned.add(text)
        warn(f"warning: saved with {text}: the result may differ")


_warned: set[str] = set()


def provenance() -> dict[str, Any]:
    """Return versions, device and sources: what else determines the exact result."""
    device = jax.local_devices()[0].device_kind
    return {"versions": versions(), "device": device, "sources": sources()}


@functools.cache  # a run of many blocks asks hundreds of times
def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that training uses."""
    packages = ("jax", "jaxlib", "optax", "gymnax", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def sources() -> dict[str, str]:
    """Return a hash of every loaded file of algorithms/ and of what algorithms use of common/."""
    digests = {}
    for name, module in sorted(sys.modules.items()):
        path = getattr(module, "__file__", None)
        is_ours = name.startswith(("algorithms.", "common.")) or name == "__main__"
        if is_ours and path and ".runner." not in name and ".tools." not in name:
            digests[os.path.basename(path)] = digest_of(path)
    return digests


@functools.cache
def digest_of(path: str) -> str:
    """Return a hash of a file as it was when this process first asked."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all; OSError if the disk refuses."""
    text = json.dumps(content, indent=2) + "\n"
    checkpoint.write_atomically(path, lambda file: file.write(text.encode()))
