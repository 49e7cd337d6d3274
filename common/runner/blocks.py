"""Members of a run, in blocks that each train on one device.

A member is one seed with one configuration of the sweep. How a run is cut into blocks is fixed when
it starts: whoever trains a block, on whatever machine, trains the same program on the same members.
"""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from common.algorithm import Algorithm
from common.envs import make_env
from common.runner.cli import Run, configured

Count = TypeVar("Count", int, np.ndarray)


class Job(NamedTuple):
    """Run of an algorithm: what to train, and where to write."""

    name: str  # the algorithm's
    make: Callable[[Any], Algorithm]
    config: Any
    run: Run
    grid: list[dict[str, Any]]  # the swept fields of each configuration; [{}] without a sweep
    folder: Path


class Block(NamedTuple):
    """Members [M] that train together."""

    index: int
    program_id: int  # blocks with the same number share a program and the shapes of params
    num_rows: int  # members of the program, P >= M: as many as the largest of its blocks has
    config: Any  # of all members, but for the swept floats
    algorithm: Algorithm  # made of it once for all blocks of the program
    floats: dict[str, np.ndarray]  # [M] the swept floats
    config_index: np.ndarray  # [M] index into the job's grid
    seed: np.ndarray  # [M]


def block_size(num_members: int, num_accelerators: int | None) -> int:
    """Return how many members train together by default.

    On a CPU (None) that does not depend on the number of devices, so that results do not either:
    vmapping more than 8 members saves little there, and 64 blocks keep 64 cores busy. Accelerators
    are fastest with one block each.
    """
    if num_accelerators is not None:
        return math.ceil(num_members / num_accelerators)
    return max(math.ceil(num_members / 64), min(math.ceil(num_members / 4), 8))


def plan(job: Job) -> list[Block]:
    """Return the blocks: members that differ in nothing but swept floats and seeds, at most
    `--block` in each."""
    names = [name for name, x in job.grid[0].items() if isinstance(x, float)]
    if any(name.startswith("env.") for name in names):
        ids = [configured(job.config, setting).env_id for setting in job.grid]
        if len(set(map(static_fields, ids))) > 1:
            names = [name for name in names if not name.startswith("env.")]
    fixed = [tuple((k, x) for k, x in setting.items() if k not in names) for setting in job.grid]
    blocks = []
    for program_id, combination in enumerate(dict.fromkeys(fixed)):
        indices = [i for i, other in enumerate(fixed) if other == combination]
        config_index = np.repeat(indices, job.run.num_seeds)
        seed = np.tile(job.run.seed + np.arange(job.run.num_seeds), len(indices))
        floats = {k: np.array([float(job.grid[i][k]) for i in config_index]) for k in names}
        first = job.grid[indices[0]]  # an id names the parameters that floats then replace
        named = {k: x for k, x in first.items() if k not in names or k.startswith("env.")}
        config = configured(job.config, named)
        algorithm = job.make(config)
        num_blocks = math.ceil(len(seed) / (job.run.block or len(seed)))
        for part in np.array_split(np.arange(len(seed)), num_blocks):
            own_floats = {name: x[part] for name, x in floats.items()}
            num_rows = math.ceil(len(seed) / num_blocks)
            members = own_floats, config_index[part], seed[part]
            blocks.append(Block(len(blocks), program_id, num_rows, config, algorithm, *members))
    return blocks


@functools.cache
def static_fields(env_id: str) -> str:
    """Return as text what a compiled program holds of an environment: bounds and its time limit."""
    fields = make_env(env_id, 1)._replace(reset=None, step=None)
    return str([np.asarray(x).tolist() for x in jax.tree.leaves(fields)])


def log_points(num_updates: int, num_points: int) -> list[int]:
    """Return the updates after which a row of metrics is written: evenly spaced, the last one at
    the end."""
    num_points = min(num_points, num_updates)
    return [num_updates * (i + 1) // num_points for i in range(num_points)]


def steps_after(algorithm: Algorithm, update: Count) -> Count:
    """Return the environment steps of one seed after that many updates."""
    return algorithm.initial_steps + update * algorithm.steps_per_update


def environment_steps(config: Any, algorithm: Algorithm, update: int) -> int:
    """Return the steps of one environment after that many updates; dynamic programming takes 0."""
    steps = steps_after(algorithm, update) // getattr(config, "num_envs", 1)
    return steps if hasattr(config, "total_timesteps") else 0


def setting_label(setting: dict[str, Any]) -> str:
    """Return a configuration's swept fields as text, for example "gamma=0.9 num_envs=4"."""
    return " ".join(f"{name}={value}" for name, value in setting.items())
