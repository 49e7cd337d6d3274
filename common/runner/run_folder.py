"""The run folder: made, written, read back."""

import csv
import dataclasses
import functools
import importlib
import io
import json
import math
import platform
import resource
import sys
from collections.abc import Callable
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np

from common.algorithm import Algorithm, flag
from common.runner import checkpoint, report
from common.runner import policy_map as grid
from common.runner.checkpoint import CheckpointError
from common.runner.cli import Run, warn
from common.runner.groups import Group, Job, first, numbered, setting_label, steps_after

FREE = {"resume", "quiet", "checkpoint_every"}  # flags that may change when a run goes on


def new_folder(name: str, config, run: Run) -> Path:
    """Makes the run's folder and its config.json, or refuses one that already holds a run."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    stem = f"{name}-{config.env_id}-{stamp}"
    unique = (Path("runs") / f"{stem}{suffix}" for suffix in ("", *(f"-{i}" for i in range(2, 99))))
    folder = Path(run.out) if run.out else next(path for path in unique if not path.exists())
    if (folder / "config.json").exists():
        raise ValueError(f"--out {folder} already holds a run; --resume {folder} goes on with it")
    folder.mkdir(parents=True, exist_ok=True)
    flags = {"config": dataclasses.asdict(config), "run": dataclasses.asdict(run)}
    write_json(folder / "config.json", {"algorithm": name, **flags, "command": sys.argv[1:]})
    return folder


def resumed(name: str, Config: type, config, run: Run):
    """The Config and Run of the folder to resume; the flags given now must not contradict them."""
    folder = Path(run.resume)
    try:
        stored = json.loads((folder / "config.json").read_text())
        algorithm = stored["algorithm"]
        old_config = from_json(Config, stored["config"]) if algorithm == name else None
        old_run = from_json(Run, stored["run"])
    except FileNotFoundError:
        raise CheckpointError(f"--resume {folder}: no run there (it has no config.json)") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"--resume {folder}: config.json cannot be read: {error}") from None
    if algorithm != name:
        raise CheckpointError(
            f"--resume {folder}: a run of {algorithm}; use python -m algorithms.{algorithm}"
        )
    for new, old in ((config, old_config), (run, old_run)):
        for field in dataclasses.fields(new):
            given = getattr(new, field.name)
            if field.name not in FREE and given not in (field.default, getattr(old, field.name)):
                raise CheckpointError(
                    f"--resume {folder}: that run has {flag(field.name)} "
                    f"{getattr(old, field.name)}; leave the flag out, or start a new run"
                )
    kept = {name: getattr(run, name) for name in FREE}
    return old_config, dataclasses.replace(old_run, **kept)


def from_json(kind: type, fields: dict):
    """A dataclass of its fields as JSON wrote them, where tuples are lists."""
    made = kind(**{k: tuple(x) if isinstance(x, list) else x for k, x in fields.items()})
    for field in dataclasses.fields(kind):
        value = getattr(made, field.name)
        kinds = (float, int) if field.type is float else (field.type,)
        if field.type in (int, float, bool, str) and type(value) not in kinds:
            raise TypeError(f"{flag(field.name)} {value!r} is not of type {field.type.__name__}")
    return made


def latest_checkpoint(job: Job) -> tuple[dict[str, np.ndarray], dict] | None:
    """Arrays and header of the folder's checkpoint, or if that is damaged, with a warning, of the
    one before; None before the first. CheckpointError if none can be used."""
    reasons = []
    for name in ("checkpoint.npz", "previous.npz"):
        path = job.folder / name
        if not path.exists():  # as between the two renames that put a new one in place
            continue
        try:
            arrays, header = checkpoint.load(path)
            check_header(job, path, header)
        except CheckpointError as error:
            reasons.append(str(error))
            continue
        if reasons:
            warn(f"warning: {reasons[0]}; going on from {name}, {header['at']['update']:,} updates")
        then, now = (x["versions"] | {"device": x["device"]} for x in (header, origin()))
        changed = [f"{k} {then[k]}, now {x}" for k, x in now.items() if then[k] != x]
        if changed:
            warn(f"warning: saved with {'; '.join(changed)}: the last digits may change")
        return arrays, header
    if reasons:
        raise CheckpointError(f"{reasons[0]}; start a new run")
    return None


def check_header(job: Job, path: Path, header: dict) -> None:
    """CheckpointError unless the checkpoint is of this very run and all its rows are there."""
    flags = json.loads(json.dumps(header_of(job)))
    if any(header[name] != x for name, x in flags.items()):
        raise CheckpointError(f"{path} was written with other flags than config.json names")
    metrics = job.folder / "metrics.csv"
    if not metrics.exists() or metrics.stat().st_size < header["at"]["metrics_bytes"]:
        raise CheckpointError(f"{metrics} has lost rows that {path} counts on")


def header_of(job: Job) -> dict:
    """What a checkpoint says about the run that it is of."""
    run = {k: x for k, x in dataclasses.asdict(job.run).items() if k not in FREE}
    return {"algorithm": job.name, "config": dataclasses.asdict(job.config), "run": run}


def write_metrics(file, job: Job, group: Group, algorithm, update, progress, extra) -> None:
    """One row a member: its seed, swept fields and steps, then the metrics since the last row."""
    num_members = len(group.seed)
    mean, count = jax.device_get(first((progress.mean, progress.count), num_members))
    columns = {name: np.where(count[name] > 0, x, np.nan) for name, x in mean.items()} | extra
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if file.tell() == 0:
        writer.writerow(["seed", *job.grid[0], "step", *columns])
    for i in range(num_members):
        swept = job.grid[group.setting[i]].values()
        numbers = (f"{x[i]:.7g}" for x in columns.values())
        writer.writerow([group.seed[i], *swept, steps_after(algorithm, update), *numbers])
    file.write(text.getvalue().encode())


def read_metrics(job: Job):
    """metrics.csv as steps [G, L] and metrics, each [G, S, L], for every setting and seed."""
    with open(job.folder / "metrics.csv", newline="") as file:
        header, *rows = csv.reader(file)
    names = header[header.index("step") + 1 :]
    numbers = {tuple(map(str, setting.values())): g for g, setting in enumerate(job.grid)}
    shape = (len(job.grid), job.run.num_seeds)
    series = {(g, s): [] for g in range(shape[0]) for s in range(shape[1])}
    for row in rows:
        setting, values = numbers[tuple(row[1 : len(job.grid[0]) + 1])], row[-len(names) - 1 :]
        series[setting, int(row[0]) - job.run.seed].append([float(x) for x in values])
    table = np.full((*shape, max(map(len, series.values())), len(names) + 1), np.nan)
    for member, points in series.items():
        if points:  # none: all members of its group had diverged before the first row
            table[member][: len(points)] = points
    steps = np.nanmax(table[..., 0], axis=1)
    return steps, {name: table[..., i] for i, name in enumerate(names, start=1)}


def write_results(job: Job, groups: list[Group], finished: dict, seconds: float, compiling: float):
    """Everything that a finished run leaves; its summary, and the ranking of its settings."""
    folder = job.folder
    setting = np.concatenate([group.setting for group in groups])
    column = np.concatenate([group.seed for group in groups]) - job.run.seed

    def table(values, fill):  # [M] -> [G, S]
        result = np.full((len(job.grid), job.run.num_seeds), fill)
        result[setting, column] = values
        return result

    steps, metrics = read_metrics(job)
    diverged = table(finished["diverged"], -1)
    training = np.where(diverged < 0, report.final_scores(metrics["episode_return"]), np.nan)
    evaluated = finished["returns"].shape[1] > 0
    evaluation = table(finished["returns"].mean(-1), np.nan) if evaluated else None
    score = evaluation if evaluated else training
    labels = [setting_label(setting) for setting in job.grid]
    ranking = report.sweep_table(labels, score)
    best = labels.index(ranking[0]["setting"])

    bad = [
        {"seed": job.run.seed + int(s), **job.grid[g], "update": int(diverged[g, s])}
        for g, s in zip(*np.nonzero(diverged >= 0), strict=True)
    ]
    num_steps = sum(
        len(group.seed) * algorithm.num_updates * algorithm.steps_per_update
        for group in groups
        for algorithm in [job.make(group.config)]
    )
    summary = {
        "algorithm": job.name,
        "env_id": job.config.env_id,
        "steps": int(np.nanmax(steps)),
        "seeds": job.run.num_seeds,
        "training": report.summarize(training[best]),
        "evaluation": report.summarize(evaluation[best]) if evaluated else None,
        "steps_per_second": num_steps / max(seconds, 1e-9),
        "compile_seconds": compiling,
        "run_seconds": seconds,
        "peak_bytes": peak_bytes(),
        "diverged_seeds": bad,
        **origin(),
    }
    if job.run.sweep:
        summary |= {"best": job.grid[best], "sweep": ranking}

    write_episodes(job, groups, finished)
    members = write_policies(job, groups, finished, score)
    if grid.has_map(job.config.env_id):
        draw_best(job, members, finished)
    heading = f"{job.name} on {job.config.env_id}"
    unit = "environment steps" if hasattr(job.config, "total_timesteps") else "updates"
    if job.run.sweep:
        report.plot_curves(folder / "curves.png", steps, metrics, labels, heading, unit)
        kind = "greedy" if evaluated else "training"
        report.plot_sweep(folder / "sweep.png", labels, score, f"{kind} return")
    else:
        alone = {name: x[0] for name, x in metrics.items()}
        report.plot_curves(folder / "curves.png", steps[0], alone, None, heading, unit)
    write_json(folder / "summary.json", summary)  # last: it marks the run as finished
    return summary, ranking


def write_episodes(job: Job, groups: list[Group], finished: dict) -> None:
    """evaluation.csv: every episode of the final policies."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["seed", *job.grid[0], "episode", "episode_return", "episode_length"])
    seeds = np.concatenate([group.seed for group in groups])
    for _, i, _, g in numbered(groups):
        episodes = zip(finished["returns"][i], finished["lengths"][i], strict=True)
        for episode, (total, length) in enumerate(episodes):
            row = [seeds[i], *job.grid[g].values(), episode, f"{total:.7g}", length]
            writer.writerow(row)
    checkpoint.write_atomically(
        job.folder / "evaluation.csv", lambda file: file.write(text.getvalue().encode())
    )


def write_policies(job: Job, groups: list[Group], finished: dict, score) -> list[dict]:
    """policy.npz: the params of every member, and whose they are (returned); score [G, S]."""
    seeds = np.concatenate([group.seed for group in groups])
    members = []
    for group, i, row, g in numbered(groups):
        final = score[g, seeds[i] - job.run.seed]
        member = {"seed": int(seeds[i]), **job.grid[g], "policy": group.policy, "row": row}
        members.append(member | {"score": None if np.isnan(final) else float(final)})
    params = {name: x for name, x in finished.items() if "/" in name}
    header = {"algorithm": job.name, "config": dataclasses.asdict(job.config), "members": members}
    checkpoint.save(job.folder / "policy.npz", params, {**header, "imports": job.run.imports})
    return members


def draw_first(job: Job, algorithm: Algorithm, states) -> None:
    """picture.png: what the algorithm shows of the first of those States [1, ...]."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained", facecolor="white")
    algorithm.picture(jax.tree.map(lambda x: x[0], states), figure)
    report.write_picture(job.folder / "picture.png", figure)


def draw_best(job: Job, members: list[dict], finished: dict) -> None:
    """policy.png: the policy of the best member of a run in a grid world."""
    member = max(members, key=rank)
    swept = {name: member[name] for name in job.grid[0]}
    config = dataclasses.replace(job.config, **swept)
    algorithm = job.make(config)
    if algorithm.act is None:
        return
    params = {name: x for name, x in finished.items() if "/" in name}
    act = functools.partial(algorithm.act, member_params(algorithm, params, member))
    of = f", the best of {len(members)}" if len(members) > 1 else ""
    who = setting_label(swept | {"seed": member["seed"]})
    title = f"{job.name} on {config.env_id}\nthe policy of {who}{of}"
    steps = steps_after(algorithm, algorithm.num_updates) // getattr(config, "num_envs", 1)
    lived = steps if hasattr(config, "total_timesteps") else 0  # dynamic programming plays none
    gamma = getattr(config, "gamma", 1.0)
    grid.draw_policy(job.folder / "policy.png", config.env_id, act, gamma, lived, title)


def write_json(path: Path, content: dict) -> None:
    text = json.dumps(content, indent=2) + "\n"
    checkpoint.write_atomically(path, lambda file: file.write(text.encode()))


def origin() -> dict:
    """On what the bits of a result depend, besides the flags."""
    packages = ("jax", "jaxlib", "optax", "gymnax", "numpy")
    versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    device = f"{jax.devices()[0].device_kind} x{len(jax.devices())}"
    return {"versions": versions, "device": device}


def peak_bytes() -> int:
    """The most memory that was used: on the accelerators, or else by this process."""
    stats = [device.memory_stats() or {} for device in jax.devices()]
    on_devices = sum(stat.get("peak_bytes_in_use", 0) for stat in stats)
    if on_devices:
        return on_devices
    status = Path("/proc/self/status")  # Linux, where ru_maxrss is inherited from who started us
    if status.exists():
        return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def load_agent(folder, seed: int | None = None, **swept) -> Callable:
    """The trained policy of one seed, `obs, key -> action`; by default the best seed's.

    `swept` chooses among the settings of a sweep, for example learning_rate=1e-3.
    """
    arrays, header = checkpoint.load(Path(folder) / "policy.npz")
    for module in header["imports"]:
        importlib.import_module(module)
    wanted = swept if seed is None else {"seed": seed, **swept}
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


def rank(member: dict) -> float:
    """By what the best member is chosen: its score, if it has one."""
    return -math.inf if member["score"] is None else member["score"]


def member_params(algorithm, arrays: dict, member: dict):
    """The params of one member of policy.npz."""
    shape = jax.eval_shape(lambda key: algorithm.init(key).params, jax.random.key(0))
    prefix = f"{member['policy']}/"
    rows = {name: x[member["row"]] for name, x in arrays.items() if name.startswith(prefix)}
    return jax.device_put(checkpoint.restore(shape, rows, prefix))
