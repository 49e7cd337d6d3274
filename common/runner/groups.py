"""What a run consists of: members (one seed with one setting of the sweep) in groups."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from common.algorithm import Algorithm
from common.runner.cli import Run


class Job(NamedTuple):
    """What is to be done, and where."""

    name: str  # the algorithm's
    make: Callable[[Any], Algorithm]
    config: Any
    run: Run
    grid: list[dict[str, Any]]  # the settings of the sweep; [{}] without one
    folder: Path


class Group(NamedTuple):
    """Members [M] that train together."""

    policy: int  # members with the same number share a program, and shapes of params
    config: Any  # all that they have in common
    floats: dict[str, np.ndarray]  # [M] the swept floats
    setting: np.ndarray  # [M] index into the job's grid
    seed: np.ndarray  # [M]


def plan(job: Job) -> list[Group]:
    """The members in groups: alike in everything but floats, at most `--seeds-at-once` each."""
    names = [name for name, x in job.grid[0].items() if isinstance(x, float)]
    fixed = [tuple((k, x) for k, x in setting.items() if k not in names) for setting in job.grid]
    groups = []
    for policy, combination in enumerate(dict.fromkeys(fixed)):
        settings = [i for i, other in enumerate(fixed) if other == combination]
        setting = np.repeat(settings, job.run.num_seeds)
        seed = np.tile(job.run.seed + np.arange(job.run.num_seeds), len(settings))
        floats = {name: np.array([float(job.grid[i][name]) for i in setting]) for name in names}
        config = dataclasses.replace(job.config, **dict(combination))
        parts = math.ceil(len(seed) / (job.run.seeds_at_once or len(seed)))
        for part in np.array_split(np.arange(len(seed)), parts):
            some = {name: x[part] for name, x in floats.items()}
            groups.append(Group(policy, config, some, setting[part], seed[part]))
    return groups


def numbered(groups: list[Group]):
    """Of each member in turn: its group, its number, its row among its policy's, its setting."""
    rows = dict.fromkeys((group.policy for group in groups), 0)
    number = 0
    for group in groups:
        for setting in group.setting:
            yield group, number, rows[group.policy], int(setting)
            rows[group.policy] += 1
            number += 1


def log_points(num_updates: int, num_points: int) -> list[int]:
    """After which updates a row of metrics is due: evenly spaced, the last one at the end."""
    num_points = min(num_points, num_updates)
    return [num_updates * (i + 1) // num_points for i in range(num_points)]


def steps_after(algorithm: Algorithm, update: int) -> int:
    """Environment steps of one seed after that many updates."""
    return algorithm.initial_steps + update * algorithm.steps_per_update


def first(tree, num_members: int):
    """The members' rows [M, ...] of something padded [P, ...]; shapes alone will do."""

    def rows(x):
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct((num_members, *x.shape[1:]), x.dtype)
        return x if len(x) == num_members else x[:num_members]

    return jax.tree.map(rows, tree)


def setting_label(setting: dict) -> str:
    """As in a sweep's ranking."""
    return " ".join(f"{name}={value}" for name, value in setting.items())
