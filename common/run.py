"""The command line of every algorithm, `main(Config, make)`, and training from Python, `train`: the
only door to the runner."""

import gc
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from common.algorithm import Algorithm
from common.runner.cli import fail, given_fields, parse, warn


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
    from common.runner.start import explain, prepare

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
