"""What a finished run leaves: summary.json, evaluation.csv, policy.npz and pictures.

Shapes: G configurations of a sweep, S seeds, M members (a seed with a configuration), E episodes.
"""

import csv
import dataclasses
import functools
import importlib
import io
import math
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from common.algorithm import Algorithm
from common.runner import checkpoint, plots, policy_map, statistics
from common.runner.groups import Group, Job, enumerate_members, setting_label, steps_after
from common.runner.program import RunState, unpad
from common.runner.run_folder import from_json, provenance, read_metrics, write_json


def append_results(
    finished: dict[str, np.ndarray],
    group: Group,
    run_state: RunState,
    episodes: tuple[jax.Array, jax.Array],
) -> dict[str, np.ndarray]:
    """Return `finished` with the results of one more group, row by row.

    "<program_id>/<name>" are arrays of params; "returns" and "lengths" [M, E] are the evaluation's
    episodes; "diverged" [M] is the update after which a member's params were not finite, or -1.
    """
    num_members = len(group.seed)
    arrays = checkpoint.named_arrays(unpad(run_state.state.params, num_members))
    results = {f"{group.program_id}/{name}": x for name, x in arrays.items()}
    returns, lengths = (np.asarray(unpad(x, num_members)) for x in episodes)
    diverged = np.asarray(unpad(run_state.diverged, num_members))
    has_score = (diverged[:, None] < 0) & np.isfinite(returns)
    returns = np.where(has_score, returns, np.nan)
    results |= {"returns": returns, "lengths": lengths, "diverged": diverged}
    return finished | {
        name: np.concatenate([finished[name], x]) if name in finished else x
        for name, x in results.items()
    }


def write_results(
    job: Job,
    groups: list[Group],
    finished: dict[str, np.ndarray],
    seconds: float,
    compile_seconds: float,
) -> tuple[dict, list[dict]]:
    """Write the files of a finished run; return its summary and the ranking of its configurations.

    `finished` holds the results of all groups, `seconds` is the time spent in training. OSError if
    the disk refuses.
    """
    steps, metrics = read_metrics(job)
    diverged = by_configuration(job, groups, finished["diverged"], -1)
    episodes = metrics.pop("episodes", 1.0)
    scores = statistics.final_scores(metrics["episode_return"], episodes)
    scores = np.where(diverged < 0, scores, np.nan)
    training, evaluation = scores, None
    if finished["returns"].shape[1] > 0:
        means = finished["returns"].mean(-1)
        scores = evaluation = by_configuration(job, groups, means, np.nan)
    labels = [setting_label(setting) for setting in job.grid]
    ranking = statistics.sweep_table(labels, scores)
    best = labels.index(ranking[0]["setting"])

    summary = {
        "algorithm": job.name,
        "env_id": job.config.env_id,
        "steps": int(np.nanmax(steps)),
        "seeds": job.run.num_seeds,
        "training": statistics.summarize(training[best]),
        "evaluation": None if evaluation is None else statistics.summarize(evaluation[best]),
        "steps_per_second": count_steps(job, groups) / max(seconds, 1e-9),
        "compile_seconds": compile_seconds,
        "run_seconds": seconds,
        "peak_bytes": peak_bytes(),
        "diverged_seeds": [
            {"seed": job.run.seed + int(s), **job.grid[g], "update": int(diverged[g, s])}
            for g, s in zip(*np.nonzero(diverged >= 0), strict=True)
        ],
        **provenance(),
    }
    if job.run.sweep:
        summary |= {"best": job.grid[best], "sweep": ranking}
    write_episodes(job, groups, finished)
    members = write_policies(job, groups, finished, scores)
    if policy_map.has_map(job.config.env_id):
        draw_best(job, members, finished)
    score_name = "training return" if evaluation is None else "greedy return"
    draw_training(job, steps, metrics, labels, scores, score_name)
    write_json(job.folder / "summary.json", summary)  # last: it marks the run as finished
    return summary, ranking


def by_configuration(job: Job, groups: list[Group], values: np.ndarray, fill: float) -> np.ndarray:
    """Return the members' values [M] by configuration and seed, [G, S]; `fill` where there is
    none."""
    config_index = np.concatenate([group.config_index for group in groups])
    column = np.concatenate([group.seed for group in groups]) - job.run.seed
    table = np.full((len(job.grid), job.run.num_seeds), fill)
    table[config_index, column] = values
    return table


def count_steps(job: Job, groups: list[Group]) -> int:
    """Return the environment steps of all members in all their updates."""
    algorithms = [job.make(group.config) for group in groups]
    return sum(
        len(group.seed) * algorithm.num_updates * algorithm.steps_per_update
        for group, algorithm in zip(groups, algorithms, strict=True)
    )


def write_episodes(job: Job, groups: list[Group], finished: dict[str, np.ndarray]) -> None:
    """Write evaluation.csv: one row per episode of the final policies."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["seed", *job.grid[0], "episode", "episode_return", "episode_length"])
    seeds = np.concatenate([group.seed for group in groups])
    for _, i, _, g in enumerate_members(groups):
        episodes = zip(finished["returns"][i], finished["lengths"][i], strict=True)
        for episode, (episode_return, length) in enumerate(episodes):
            row = [seeds[i], *job.grid[g].values(), episode, f"{episode_return:.7g}", length]
            writer.writerow(row)
    checkpoint.write_atomically(
        job.folder / "evaluation.csv", lambda file: file.write(text.getvalue().encode())
    )


def write_policies(
    job: Job, groups: list[Group], finished: dict[str, np.ndarray], scores: np.ndarray
) -> list[dict[str, Any]]:
    """Write policy.npz, the params of every member; return its list of members.

    A member is a dict of its seed, its swept fields, its program_id and row in the arrays, and its
    score, from the scores [G, S]; None if it has none.
    """
    seeds = np.concatenate([group.seed for group in groups])
    members = []
    for group, i, row, g in enumerate_members(groups):
        score = scores[g, seeds[i] - job.run.seed]
        member = {"seed": int(seeds[i]), **job.grid[g], "program_id": group.program_id, "row": row}
        members.append(member | {"score": None if np.isnan(score) else float(score)})
    params = {name: x for name, x in finished.items() if "/" in name}
    header = {"algorithm": job.name, "config": dataclasses.asdict(job.config), "members": members}
    checkpoint.save(job.folder / "policy.npz", params, {**header, "imports": job.run.imports})
    return members


def draw_training(
    job: Job,
    steps: np.ndarray,
    metrics: dict[str, np.ndarray],
    labels: list[str],
    scores: np.ndarray,
    score_name: str,
) -> None:
    """Draw curves.png, and sweep.png if there is a sweep; shapes as in `plots`."""
    title = f"{job.name} on {job.config.env_id}"
    unit = "environment steps" if hasattr(job.config, "total_timesteps") else "updates"
    path = job.folder / "curves.png"
    if job.run.sweep:
        plots.plot_curves(path, steps, metrics, labels, title, unit)
        plots.plot_sweep(job.folder / "sweep.png", labels, scores, score_name)
    else:
        single = {name: x[0] for name, x in metrics.items()}
        plots.plot_curves(path, steps[0], single, None, title, unit)


def draw_first(job: Job, algorithm: Algorithm, states: Any) -> None:
    """Draw picture.png from the first of an algorithm's States [1, ...]."""
    from matplotlib.figure import Figure

    from common.runner.pictures import draw_picture

    figure = Figure(figsize=(7, 4.5), layout="constrained", facecolor="white")
    state = jax.tree.map(lambda x: x[0], states)
    draw_picture(figure, job.config.env_id, algorithm.picture(state))
    plots.write_picture(job.folder / "picture.png", figure)


def draw_best(job: Job, members: list[dict[str, Any]], finished: dict[str, np.ndarray]) -> None:
    """Draw policy.png: the policy of the best member of a run in a grid world."""
    member = max(members, key=rank)
    setting = {name: member[name] for name in job.grid[0]}
    config = dataclasses.replace(job.config, **setting)
    algorithm = job.make(config)
    if algorithm.act is None:
        return
    params = {name: x for name, x in finished.items() if "/" in name}
    act = functools.partial(algorithm.act, member_params(algorithm, params, member))
    choice = f", the best of {len(members)}" if len(members) > 1 else ""
    label = setting_label(setting | {"seed": member["seed"]})
    title = f"{job.name} on {config.env_id}\nthe policy of {label}{choice}"
    steps = steps_after(algorithm, algorithm.num_updates) // getattr(config, "num_envs", 1)
    num_steps = steps if hasattr(config, "total_timesteps") else 0  # dynamic programming takes none
    gamma = getattr(config, "gamma", 1.0)
    path = job.folder / "policy.png"
    policy_map.draw_policy(path, config.env_id, act, gamma, num_steps, title)


def peak_bytes() -> int:
    """Return the most memory that was in use: on the accelerators, or else by this process."""
    stats = [device.memory_stats() or {} for device in jax.devices()]
    on_devices = sum(stat.get("peak_bytes_in_use", 0) for stat in stats)
    if on_devices:
        return on_devices
    status = Path("/proc/self/status")  # Linux, whose ru_maxrss starts at the parent process
    if status.exists():
        return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def load_agent(folder: str | Path, seed: int | None = None, **setting: Any) -> Callable:
    """Return the trained policy of one seed, `obs, key -> action`; by default the best seed's.

    `setting` selects among the configurations of a sweep, for example learning_rate=1e-3.
    CheckpointError if policy.npz cannot be read; ValueError if it has no such member.
    """
    arrays, header = checkpoint.load(Path(folder) / "policy.npz")
    for module in header["imports"]:
        importlib.import_module(module)
    wanted = setting if seed is None else {"seed": seed, **setting}
    members = [m for m in header["members"] if all(m.get(k) == x for k, x in wanted.items())]
    if not members:
        raise ValueError(f"{folder} has no member with {wanted}")
    member = max(members, key=rank)
    module = importlib.import_module(f"algorithms.{header['algorithm']}")
    config = from_json(module.Config, header["config"])
    fields = {field.name for field in dataclasses.fields(config)}
    config = dataclasses.replace(config, **{k: x for k, x in member.items() if k in fields})
    algorithm = module.make(config)
    return jax.jit(functools.partial(algorithm.act, member_params(algorithm, arrays, member)))


def rank(member: dict[str, Any]) -> float:
    """Return the sort key: the score, or -inf if the member diverged."""
    return -math.inf if member["score"] is None else member["score"]


def member_params(algorithm: Algorithm, arrays: dict[str, np.ndarray], member: dict) -> Any:
    """Return the params of one member of policy.npz, whose arrays are given."""
    shapes = jax.eval_shape(lambda key: algorithm.init(key).params, jax.random.key(0))
    prefix = f"{member['program_id']}/"
    rows = {name: x[member["row"]] for name, x in arrays.items() if name.startswith(prefix)}
    return jax.device_put(checkpoint.restore(shapes, rows, prefix))
