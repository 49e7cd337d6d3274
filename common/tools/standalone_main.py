"""The command line: seeds trained in parallel, and their params saved."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from common.algorithm import require
from common.runner.program import RunState, init_run, run_updates
from common.runner.threefry import unroll_threefry


def main(config_class: type, make: Callable) -> None:
    """Trains as the flags say, prints the training return, saves the params of every seed."""
    os.environ.setdefault("NPROC", "1")  # threads cost small networks more time than they save
    unroll_threefry()

    @dataclass(frozen=True)
    class Flags(config_class):
        seed: int = 0  # the first seed; the others count up from it
        num_seeds: int = 1  # seeds trained in parallel
        out: str = f"{Path(__file__).stem}.npz"  # file for the params, with a leading axis of seeds

        def __post_init__(self):
            """Nothing yet: tyro would put what is wrong in a box. It is checked below."""

    flags = tyro.cli(Flags)
    try:
        require(flags, "seed >= 0", "num_seeds >= 1", "seed + num_seeds < 2**31")
        config = {field.name: getattr(flags, field.name) for field in fields(config_class)}
        algorithm = make(config_class(**config))
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    Path(flags.out).parent.mkdir(parents=True, exist_ok=True)

    keys = jnp.stack([jax.random.key(flags.seed + k) for k in range(flags.num_seeds)])
    init = jax.jit(lambda keys: init_run(algorithm.init, algorithm.update, keys))
    run = jax.jit(lambda *args: run_updates(algorithm.update, *args), donate_argnums=0)
    progress = init(keys)
    for start, stop in pairwise(np.unique(np.linspace(0, algorithm.num_updates, 11, dtype=int))):
        progress = run(progress, jnp.int32(start), jnp.int32(stop), jnp.bool_(True))
        steps = algorithm.initial_steps + stop * algorithm.steps_per_update
        percent = 100 * stop // algorithm.num_updates
        print(f"{percent:3} %  {steps:,} steps  return {training_return(progress):.4g}", flush=True)

    with open(flags.out, "wb") as file:
        leaves = jax.tree_util.tree_leaves_with_path(progress.state.params)
        np.savez(file, **{"params" + jax.tree_util.keystr(path): x for path, x in leaves})
    print(f"training return {training_return(progress):.4g}; params in {flags.out}")
    for k in np.flatnonzero(np.asarray(progress.diverged) >= 0):
        stopped = f"diverged at update {progress.diverged[k]}; its params are those before"
        print(f"seed {flags.seed + k} {stopped}", file=sys.stderr)


def training_return(progress: RunState) -> jax.Array:
    """The mean over seeds of what they report; NaN if no episode has ended."""
    mean, count = progress.mean["episode_return"], progress.count["episode_return"]
    return jnp.nanmean(jnp.where(count > 0, mean, jnp.nan))
