"""What the tests over all algorithms share."""

import dataclasses
import importlib
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from common.algorithm import advance, begin

ROOT = Path(__file__).parent.parent
ALGORITHMS = sorted(
    path.stem for path in (ROOT / "algorithms").glob("*.py") if path.stem != "__init__"
)
SMALL = {
    "total_timesteps": 1_200,
    "learning_starts": 200,
    "buffer_size": 1_000,
    "batch_size": 16,
    "hidden_sizes": (16,),
    "num_sweeps": 20,
    "num_steps": 20,
}


def small_config(module, **fields):
    """The file's Config at a size that compiles and runs in a moment."""
    known = {field.name for field in dataclasses.fields(module.Config)}
    return module.Config(**{k: x for k, x in (SMALL | fields).items() if k in known})


def load(name: str):
    return importlib.import_module(f"algorithms.{name}")


def keys(*seeds: int):
    return jax.vmap(jax.random.key)(jnp.array(seeds))


def trained(algorithm, seeds, stop: int, start: int = 0, progress=None):
    """The Progress after updates `start` to `stop - 1` of those seeds."""
    if progress is None:
        progress = jax.jit(lambda k: begin(algorithm.init, algorithm.update, k))(keys(*seeds))
    step = jax.jit(lambda *args: advance(algorithm.update, *args))
    return step(progress, jnp.int32(start), jnp.int32(stop), jnp.bool_(start == 0))


def run(*arguments, check: int | None = 0, timeout: float = 240, **kwargs):
    """`python -m <arguments>` in the repository; its completed process."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=kwargs.pop("cwd", ROOT),
        env={**os.environ, **kwargs.pop("env", {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        **kwargs,
    )
    if check is not None:
        assert done.returncode == check, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done
