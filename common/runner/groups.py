"""Members of a run, in groups that train together.

A member is one seed with one configuration of the sweep.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.algorithm import Algorithm
from common.runner.cli import Run


class Job(NamedTuple):
    """Run of an algorithm: what to train, and where to write."""

    name: str  # the algorithm's
    make: Callable[[Any], Algorithm]
    config: Any
    run: Run
    grid: list[dict[str, Any]]  # the swept fields of each configuration; [{}] without a sweep
    folder: Path


class Group(NamedTuple):
    """Members [M] that train together."""

    program_id: int  # groups with the same number share a program and the shapes of params
    config: Any  # of all members, but for the swept floats
    floats: dict[str, np.ndarray]  # [M] the swept floats
    config_index: np.ndarray  # [M] index into the job's grid
    seed: np.ndarray  # [M]


def plan(job: Job) -> list[Group]:
    """Return the groups: members that differ in nothing but swept floats and seeds, at most
    `--seeds-at-once` in each."""
    names = [name for name, x in job.grid[0].items() if isinstance(x, float)]
    fixed = [tuple((k, x) for k, x in setting.items() if k not in names) for setting in job.grid]
    groups = []
    for program_id, combination in enumerate(dict.fromkeys(fixed)):
        indices = [i for i, other in enumerate(fixed) if other == combination]
        config_index = np.repeat(indices, job.run.num_seeds)
        seed = np.tile(job.run.seed + np.arange(job.run.num_seeds), len(indices))
        floats = {k: np.array([float(job.grid[i][k]) for i in config_index]) for k in names}
        config = dataclasses.replace(job.config, **dict(combination))
        num_parts = math.ceil(len(seed) / (job.run.seeds_at_once or len(seed)))
        for part in np.array_split(np.arange(len(seed)), num_parts):
            own_floats = {name: x[part] for name, x in floats.items()}
            groups.append(Group(program_id, config, own_floats, config_index[part], seed[part]))
    return groups


def enumerate_members(groups: list[Group]) -> Iterator[tuple[Group, int, int, int]]:
    """Yield (group, member's index, row in policy.npz, index of its configuration) for each
    member."""
    rows = dict.fromkeys((group.program_id for group in groups), 0)
    index = 0
    for group in groups:
        for config_index in group.config_index:
            yield group, index, rows[group.program_id], int(config_index)
            rows[group.program_id] += 1
            index += 1


def log_points(num_updates: int, num_points: int) -> list[int]:
    """Return the updates after which a row of metrics is written: evenly spaced, the last one at
    the end."""
    num_points = min(num_points, num_updates)
    return [num_updates * (i + 1) // num_points for i in range(num_points)]


def steps_after(algorithm: Algorithm, update: int) -> int:
    """Return the environment steps of one seed after that many updates."""
    return algorithm.initial_steps + update * algorithm.steps_per_update


def setting_label(setting: dict[str, Any]) -> str:
    """Return a configuration's swept fields as text, for example "gamma=0.9 num_envs=4"."""
    return " ".join(f"{name}={value}" for name, value in setting.items())
