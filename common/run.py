"""The command line of every algorithm, `main(Config, make)`, and training from Python, `train`: the
only door to the runner."""

import dataclasses
import gc
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from common.algorithm import MAX_INT, Algorithm
from common.runner.cli import Run, fail, given_fields, parse, settings, warn


def train(
    config: Any, make: Callable[[Any], Algorithm], num_seeds: int = 1, seed: int = 0
) -> tuple[Any, dict[str, jax.Array]]:
    """Train seeds in one compiled program; return their States [S, ...] and their metrics, each
    [S, num_updates].

    Writes no file and changes no setting of JAX.
    """
    algorithm = make(config)
    keys = jax.vmap(jax.random.key)(seed + jnp.arange(num_seeds))

    @jax.jit
    def run(keys):
        update = jax.vmap(algorithm.update, (0, None))  # `step` has no axis of seeds
        states = jax.vmap(algorithm.init)(keys)
        return jax.lax.scan(update, states, jnp.arange(algorithm.num_updates))

    states, metrics = run(keys)
    return states, {name: x.T for name, x in metrics.items()}


def main(Config: type, make: Callable[[Any], Algorithm]) -> None:
    """Parse the command line, train, evaluate, and leave a run folder.

    Exits with 0 if all is well, 2 for wrong usage, 3 for a checkpoint that cannot be used, 4 if all
    seeds diverged, 5 if the disk refuses, and 128 + n after signal n; with one line on stderr.
    """
    from common.runner import loop, sharing

    name = Path(inspect.getfile(make)).stem
    description = (sys.modules[make.__module__].__doc__ or "").strip().partition("\n")[0]
    config, run = parse(Config, f"python -m algorithms.{name}", description, sys.argv[1:])
    folder = None
    try:
        job = prepare(name, make, config, run, given_fields(sys.argv[1:]))
        folder = job.folder
        gc.freeze()  # excludes imported objects from garbage collection, which slows tracing
        loop.run(job)
    except (Exception, KeyboardInterrupt, loop.Stopped) as error:
        code, message = explain(error, folder)
        if isinstance(error, loop.Stopped) or run.distributed:
            # Devices may still compute, and other processes wait: Python's exit would, too.
            warn(message)
            sharing.leave(code)
        fail(code, message)


def explain(error: BaseException, folder: Path | None) -> tuple[int, str]:
    """Return the exit code and the line for an error before (folder is None) or in a run; raise it
    if it is a fault of the program."""
    from common.runner.checkpoint import CheckpointError
    from common.runner.loop import Stopped

    text = str(error)
    match error:
        case Stopped():
            return error.code, f"stopped; continue with --resume {folder}"
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


def prepare(
    name: str, make: Callable[[Any], Algorithm], config: Any, run: Run, given: set[str]
) -> Any:
    """Start JAX, check every configuration, and make the run's folder or find the one that goes on;
    return the Job. `given` are the fields that the command line names."""
    from common.runner import run_folder, sharing
    from common.runner.blocks import Job, block_size
    from common.runner.program import load_module, start_jax

    imports = tuple(str(Path(x).resolve()) if x.endswith(".py") else x for x in run.imports)
    run = dataclasses.replace(run, imports=imports)
    folder = Path(run.resume or run.out or run_folder.new_path(name, config.env_id))
    every_field = {x.name for kind in (config, run) for x in dataclasses.fields(kind)}
    if run.resume:
        config, run = run_folder.read_flags(folder, name, config, run, given)
    elif (folder / "config.json").exists():  # the same command starts, joins and resumes
        config, run = run_folder.read_flags(folder, name, config, run, every_field)
    grid = settings(run.sweep, config)
    num_members = len(grid) * run.num_seeds
    sharing.connect(run)
    start_jax(min(num_members, run.seeds_at_once or num_members))
    for module in run.imports:
        load_module(module)
    for setting in grid:
        if make(dataclasses.replace(config, **setting)).num_updates > MAX_INT:
            raise ValueError(f"--total-timesteps: more than {MAX_INT:,} updates")
    if not run.block:
        num_devices = len(jax.local_devices()) * sharing.share_of(run)[1]
        is_cpu = jax.local_devices()[0].platform == "cpu"
        block = block_size(num_members, None if is_cpu else num_devices)
        run = dataclasses.replace(run, block=min(block, run.seeds_at_once or block))
    if not (folder / "config.json").exists() and not run_folder.create(folder, name, config, run):
        config, run = run_folder.read_flags(folder, name, config, run, every_field)
    return Job(name, make, config, run, grid, folder)
