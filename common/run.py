"""The command line of every algorithm: `main(Config, make)`, the only door to the runner."""

import dataclasses
import gc
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from common.algorithm import MAX_INT, Algorithm
from common.runner.checkpoint import CheckpointError
from common.runner.cli import Run, fail, parse, settings
from common.runner.console import print_line
from common.runner.groups import Job
from common.runner.loop import train
from common.runner.program import start_jax
from common.runner.run_folder import new_folder, read_flags


def main(Config: type, make: Callable[[Any], Algorithm]) -> None:
    """Parse the command line, train, evaluate, and leave a run folder.

    Exits with 0 if all is well, 2 for wrong usage, 3 for a checkpoint that cannot be used, 4 if all
    seeds diverged, 5 if the disk refuses, and 128 + n after signal n; with one line on stderr.
    """
    name = Path(inspect.getfile(make)).stem
    description = (sys.modules[make.__module__].__doc__ or "").strip().partition("\n")[0]
    config, run = parse(Config, f"python -m algorithms.{name}", description, sys.argv[1:])
    try:
        job = prepare(name, Config, make, config, run)
    except ModuleNotFoundError as error:
        fail(2, f"--import: {error}; run from the folder that contains it")
    except ValueError as error:  # a message without a flag is about the environment
        fail(2, str(error) if "--" in str(error) else f"--env-id: {error}")
    except CheckpointError as error:
        fail(3, str(error))
    except OSError as error:
        fail(5, f"cannot write {error.filename}: {error.strerror}; choose another --out")
    except KeyboardInterrupt:
        fail(130, "stopped before training began")
    folder = job.folder
    if (folder / "summary.json").exists():
        print_line(job.run, f"{folder} is finished; there is nothing to resume")
        return
    gc.freeze()  # exclude imported objects from garbage collection; scanning them slows tracing
    try:
        train(job)
    except CheckpointError as error:
        fail(3, str(error))
    except OSError as error:
        fail(5, f"cannot write to {folder}: {error.strerror}; fix that, then --resume {folder}")
    except KeyboardInterrupt:
        fail(130, f"stopped; continue with --resume {folder}")
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            fail(2, "out of memory; --seeds-at-once trains fewer seeds at a time")
        raise


def prepare(
    name: str, Config: type, make: Callable[[Any], Algorithm], config: Any, run: Run
) -> Job:
    """Start JAX, check every configuration, and make the run's folder or find the one to resume."""
    if run.resume:
        config, run = read_flags(name, Config, config, run)
    grid = settings(run.sweep, config)
    num_members = len(grid) * run.num_seeds
    start_jax(min(num_members, run.seeds_at_once or num_members))
    for module in run.imports:
        importlib.import_module(module)
    for setting in grid:
        if make(dataclasses.replace(config, **setting)).num_updates > MAX_INT:
            raise ValueError(f"--total-timesteps: more than {MAX_INT:,} updates")
    folder = Path(run.resume) if run.resume else new_folder(name, config, run)
    return Job(name, make, config, run, grid, folder)
