"""What comes before a run, and what its errors mean to a user."""

import dataclasses
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax

from common.algorithm import MAX_INT, Algorithm
from common.environments.env_parameters import parameters_of
from common.runner import checkpoint, run_folder, sharing, trackers
from common.runner.blocks import Job, block_size, plan
from common.runner.checkpoint import CheckpointError
from common.runner.cli import Run, configured, settings
from common.runner.console import print_line
from common.runner.evaluation import can_sample
from common.runner.loop import Stopped
from common.runner.program import load_module, run_shapes, start_jax, unpad


def prepare(
    name: str,
    make: Callable[[Any], Algorithm],
    config: Any,
    run: Run,
    given: set[str],
    grid: list[dict[str, Any]] | None = None,
) -> Job:
    """Start JAX, check every configuration, and make the run's folder or find the one that goes on;
    return the Job. `given` are the fields that the command line names, and `grid` settings that
    were drawn elsewhere."""
    imports = tuple(str(Path(x).resolve()) if x.endswith(".py") else x for x in run.imports)
    run = dataclasses.replace(run, imports=imports)
    folder = Path(run.resume or run.out or run_folder.new_path(name, config.env_id))
    every_field = {x.name for kind in (config, run) for x in dataclasses.fields(kind)}
    if run.resume:
        config, run = run_folder.read_flags(folder, name, config, run, given)
    elif (folder / "config.json").exists():  # the same command starts, joins and resumes
        config, run = run_folder.read_flags(folder, name, config, run, every_field)
    if run.parquet and find_spec("pyarrow") is None:
        raise ValueError("--parquet needs pyarrow: pip install pyarrow")
    drawn = run_folder.read_settings(folder) if run.num_settings else []
    drawn = drawn or grid
    grid = drawn or settings(run.sweep, config, run.num_settings, run.seed)
    num_members = len(grid) * run.num_seeds
    trackers.check(run, len(grid))
    sharing.connect(run)
    start_jax(min(num_members, run.seeds_at_once or num_members))
    for module in run.imports:
        load_module(module)
    if not drawn and any(item.lstrip("-").startswith("env.") for item in run.sweep):
        parameters = parameters_of(config.env_id)  # whose types only the environment knows
        grid = settings(run.sweep, config, run.num_settings, run.seed, parameters)
    for setting in grid:
        algorithm = make(configured(config, setting))
        if algorithm.num_updates > MAX_INT:
            raise ValueError(f"--total-timesteps: more than {MAX_INT:,} updates")
        if run.eval_policy == "sample" and not (algorithm.act and can_sample(algorithm.act)):
            raise ValueError(f"--eval-policy sample: {name} learns no distribution of actions")
    if not run.block:
        num_devices = len(jax.local_devices()) * sharing.share_of(run)[1]
        is_cpu = jax.local_devices()[0].platform == "cpu"
        block = block_size(num_members, None if is_cpu else num_devices)
        run = dataclasses.replace(run, block=min(block, run.seeds_at_once or block))
    if not (folder / "config.json").exists() and not run_folder.create(
        folder, name, config, run, grid
    ):
        config, run = run_folder.read_flags(folder, name, config, run, every_field)
    job = Job(name, make, config, run, grid, folder)
    if run.resume and "total_timesteps" in given and (folder / "summary.json").exists():
        go_on(job)
    return job


def go_on(job: Job) -> None:
    """Make a finished run one of more steps, if it has fewer; CheckpointError, and nothing is
    changed, if its checkpoints cannot be used for them."""
    steps, folder = job.config.total_timesteps, job.folder
    earlier = json.loads((folder / "config.json").read_text())["config"]["total_timesteps"]
    if steps == earlier:
        return
    if job.run.share or job.run.distributed:
        raise ValueError("--total-timesteps: a finished run goes on in one process; leave --share")
    for block in plan(job):
        found = run_folder.load_block(job, block, "checkpoint.npz")
        if found is None:
            path = run_folder.block_path(job, block, "checkpoint.npz")
            raise CheckpointError(f"{path} is missing, so the run cannot go on")
        checkpoint.restore(unpad(run_shapes(job, block), len(block.seed)), found[0], "run_state/")
    run_folder.go_on(folder, steps)
    print_line(
        job.run,
        f"{folder} goes on from {earlier:,} to {steps:,} steps; "
        "from here on its schedules are those of the longer run",
    )


def explain(error: BaseException, folder: Path | None) -> tuple[int, str]:
    """Return the exit code and the line for an error before (folder is None) or in a run; raise it
    if it is a fault of the program."""
    text = str(error)
    match error:
        case Stopped(code=int(code)):
            return code, f"stopped; continue with --resume {folder}"
        case KeyboardInterrupt():
            return 130, f"stopped; continue with --resume {folder}" if folder else "stopped"
        case CheckpointError():
            return 3, text
        case OSError() if folder is None:
            return 5, f"cannot write {error.filename}: {error.strerror}; choose another --out"
        case OSError():
            return (
                5,
                f"cannot write to {folder}: {error.strerror}; fix that, then --resume {folder}",
            )
        case ValueError() if folder is None:  # a message without a flag is about the environment
            return 2, text if "--" in text else f"--env-id: {text}"
        case MemoryError():
            return 2, "out of memory; --seeds-at-once trains fewer seeds at a time"
        case jax.errors.JaxRuntimeError() if "RESOURCE_EXHAUSTED" in text:
            return 2, "out of memory; --seeds-at-once trains fewer seeds at a time"
    raise error
