"""What a finished run leaves: policy.npz, metrics.csv, evaluation.csv, summary.json and pictures.

Shapes: G configurations of a sweep, S seeds, L rows of metrics, E episodes, M members of a block.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import math
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from common.algorithm import Algorithm
from common.environments.env_parameters import join_id
from common.envs import make_env
from common.runner import checkpoint, plots, policy_map, statistics
from common.runner.blocks import Block, Job, environment_steps, setting_label, steps_after
from common.runner.checkpoint import CheckpointError
from common.runner.cli import configured, split_setting
from common.runner.evaluation import MAX_LENGTH, POLICIES
from common.runner.program import load_module
from common.runner.run_folder import from_json, load_block, load_trained, provenance
from common.runner.values import make_values


class Table(NamedTuple):
    """What all members did in training, by configuration and seed."""

    updates: np.ndarray  # [G, S, L] int, after each row; 0 where a member has no such row
    metrics: dict[str, np.ndarray]  # [G, S, L] each; NaN: nothing to report
    diverged: np.ndarray  # [G, S] the update after which params were not finite, or -1
    seconds: float  # of training, summed over blocks


def read_table(job: Job, blocks: list[Block]) -> Table:
    """Return the rows of all blocks. CheckpointError if a file cannot be used."""
    loaded = [(block, *load_trained(job, block)) for block in blocks]
    num_rows = max(len(header["at"]["rows"]) for _, _, header in loaded)
    shape = len(job.grid), job.run.num_seeds
    updates = np.zeros((*shape, num_rows), np.int64)
    diverged = np.full(shape, -1)
    names = [k.removeprefix("history/") for k in loaded[0][1] if k.startswith("history/")]
    metrics = {name: np.full(updates.shape, np.nan, np.float32) for name in names}
    for block, arrays, header in loaded:
        rows = header["at"]["rows"]
        place = block.config_index, block.seed - job.run.seed
        updates[(*place, slice(len(rows)))] = rows
        diverged[place] = arrays["diverged"]
        for name in names:
            metrics[name][(*place, slice(len(rows)))] = arrays[f"history/{name}"].T
    return Table(updates, metrics, diverged, sum(x["at"]["seconds"] for _, _, x in loaded))


def read_episodes(job: Job, blocks: list[Block]) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the returns and lengths [G, S, E] of the evaluation; None if there is none.
    CheckpointError if a file cannot be used."""
    loaded = [(x, found) for x in blocks if (found := load_block(job, x, "episodes.npz"))]
    if len(loaded) < len(blocks):
        return None
    shape = len(job.grid), job.run.num_seeds, loaded[0][1][0]["returns"].shape[1]
    returns, lengths = np.full(shape, np.nan), np.zeros(shape, int)
    for block, (arrays, _) in loaded:
        place = block.config_index, block.seed - job.run.seed
        returns[place], lengths[place] = arrays["returns"], arrays["lengths"]
    return returns, lengths


def write_results(
    job: Job, blocks: list[Block], width: int, compile_seconds: float
) -> tuple[dict, list[dict]]:
    """Write the files of a finished run but summary.json; return the summary and the ranking of the
    configurations.

    `width` is the number of blocks that trained at a time. OSError if the disk refuses.
    """
    table, episodes = read_table(job, blocks), read_episodes(job, blocks)
    if not table_path(job, "metrics").exists():  # else it is of this training
        write_metrics(job, blocks, table)
    training = training_scores(table)
    evaluation = None if episodes is None else episodes[0].mean(-1)
    scores = training if evaluation is None else evaluation
    labels = [setting_label(setting) for setting in job.grid]
    tasks = [task_of(setting) for setting in job.grid]
    ranking = statistics.sweep_table(labels, scores, tasks)
    best = labels.index(ranking[0]["setting"]) if len(set(tasks)) == 1 else None
    seconds = table.seconds / width

    def of_best(own):  # there is no best setting where tasks differ
        if best is None or own is None:
            return None
        if own is scores:  # a bootstrap over 100,000 seeds takes seconds
            return {name: ranking[0][name] for name in ("iqm", "low", "high", "min", "max")}
        return statistics.summarize(own[best])

    summary = {
        "algorithm": job.name,
        "env_id": job.config.env_id,
        "steps": max(steps_after(x.algorithm, x.algorithm.num_updates) for x in blocks),
        "updates": max(block.algorithm.num_updates for block in blocks),
        "seeds": job.run.num_seeds,
        "training": of_best(training),
        "evaluation": of_best(evaluation),
        "retrained": None,
        "episodes": int(np.nansum(table.metrics.get("episodes", 1))),
        "unfinished_episodes": 0 if episodes is None else int(np.sum(episodes[1] == MAX_LENGTH)),
        "steps_per_second": trained_steps(job, blocks, table) / max(seconds, 1e-9),
        "compile_seconds": compile_seconds,
        "run_seconds": seconds,
        "peak_bytes": peak_bytes(),
        "diverged_seeds": [
            {"seed": job.run.seed + int(s), **job.grid[g], "update": int(table.diverged[g, s])}
            for g, s in zip(*np.nonzero(table.diverged >= 0), strict=True)
        ],
        **provenance(),
    }
    if job.run.sweep:
        summary |= {"best": None if best is None else job.grid[best], "sweep": ranking}
    if episodes is not None:
        write_evaluation(job, *episodes)
    write_policies(job, blocks, scores)
    if policy_map.has_map(job.config.env_id):
        draw_best(job)
    policy = POLICIES[job.run.eval_policy]
    score_name = "training return" if evaluation is None else f"{policy} return"
    draw_training(job, table, scores, score_name)
    return summary, ranking


def task_of(setting: dict[str, Any]) -> tuple:
    """Return what tells the tasks of a sweep apart: the environment and its parameters."""
    return tuple((k, x) for k, x in setting.items() if k == "env_id" or k.startswith("env."))


def training_scores(table: Table) -> np.ndarray:
    """Return every member's mean return over the last tenth of its rows, [G, S]; NaN if it
    diverged."""
    episodes = table.metrics.get("episodes", np.float32(1))
    scores = statistics.final_scores(table.metrics["episode_return"], episodes)
    return np.where(table.diverged < 0, scores, np.nan)


def trained_steps(job: Job, blocks: list[Block], table: Table) -> int:
    """Return the environment steps of all members in the updates that they trained."""
    total = 0
    for block in blocks:
        updates = table.updates[block.config_index, block.seed - job.run.seed].max(-1)
        total += int(updates.sum()) * block.algorithm.steps_per_update
    return total


def write_metrics(job: Job, blocks: list[Block], table: Table) -> None:
    """Write metrics.csv, one row per point and member. OSError if the disk refuses."""
    programs = {}
    for block in blocks:
        configs = programs.setdefault(block.program_id, (block.algorithm, set()))[1]
        configs |= set(block.config_index.tolist())
    names = [name for name in table.metrics if name != "episodes"]
    names += [name for name in table.metrics if name == "episodes"]
    seeds = job.run.seed + np.arange(job.run.num_seeds)

    def chunks():
        for algorithm, configs in programs.values():
            for row in range(table.updates.shape[-1]):
                for g in sorted(configs):
                    has_row = table.updates[g, :, row] > 0
                    steps = steps_after(algorithm, table.updates[g, has_row, row])
                    metrics = {name: table.metrics[name][g, has_row, row] for name in names}
                    yield g, {"seed": seeds[has_row], "step": steps, **metrics}

    write_table(job, "metrics", chunks())


def write_evaluation(job: Job, returns: np.ndarray, lengths: np.ndarray) -> None:
    """Write evaluation.csv from [G, S, E]: one row per episode of the final policies.

    OSError if the disk refuses.
    """
    num_seeds, num_episodes = returns.shape[1:]

    def chunks():
        for g in range(len(job.grid)):
            for seeds in np.array_split(np.arange(num_seeds), -(-num_seeds // 1000)):
                yield (
                    g,
                    {
                        "seed": np.repeat(job.run.seed + seeds, num_episodes),
                        "episode": np.tile(np.arange(num_episodes), len(seeds)),
                        "episode_return": returns[g, seeds].ravel(),
                        "episode_length": lengths[g, seeds].ravel(),
                    },
                )

    write_table(job, "evaluation", chunks())


def table_path(job: Job, name: str) -> Path:
    """Return the path of a table of results."""
    return job.folder / f"{name}.{'parquet' if job.run.parquet else 'csv'}"


def write_table(job: Job, name: str, chunks: Iterator[tuple[int, dict[str, np.ndarray]]]) -> None:
    """Write a table whole or not at all, from chunks of rows of one configuration each: its index
    in the grid, and columns, of which the seed comes first. OSError if the disk refuses."""
    write = write_parquet if job.run.parquet else write_csv
    checkpoint.write_atomically(table_path(job, name), lambda file: write(file, job.grid, chunks))


def write_csv(file: Any, grid: list[dict], chunks: Iterator) -> None:
    """Write chunks of rows, see `write_table`, as text: integers whole, and floats as float32."""
    for number, (g, columns) in enumerate(chunks):
        seed, *names = columns
        if number == 0:
            file.write((",".join([seed, *grid[g], *names]) + "\n").encode())
        values = [escaped(value) for value in grid[g].values()]
        formats = ["%d" if columns[name].dtype.kind == "i" else "%.7g" for name in names]
        text = ",".join(["%d", *values, *formats])
        file.write(lines(text, *(x.tolist() for x in columns.values())).encode())


def write_parquet(file: Any, grid: list[dict], chunks: Iterator) -> None:
    """Write chunks of rows, see `write_table`, as groups of rows of a Parquet file."""
    # It need not be installed.
    import pyarrow  # pyright: ignore[reportMissingImports]
    from pyarrow import parquet  # pyright: ignore[reportMissingImports]

    with contextlib.ExitStack() as stack:
        writer = None
        for g, columns in chunks:
            num_rows = len(columns["seed"])
            swept = {name: np.full(num_rows, value) for name, value in grid[g].items()}
            table = pyarrow.table({"seed": columns.pop("seed"), **swept, **columns})
            if writer is None:
                writer = parquet.ParquetWriter(file, table.schema, compression="zstd")
                stack.enter_context(writer)
            writer.write_table(table)


def lines(template: str, *columns: list) -> str:
    """Return one line for each entry of the columns. (One `%` for all of them is ten times as fast
    as csv.writer.)"""
    flat = tuple(x for row in zip(*columns, strict=True) for x in row)
    return (template + "\n") * len(columns[0]) % flat


def escaped(value: Any) -> str:
    """Return a swept value as text for CSV and for the % operator."""
    text = str(value).replace("%", "%%")
    return f'"{text}"' if "," in text else text


def write_policies(job: Job, blocks: list[Block], scores: np.ndarray) -> None:
    """Write policy.npz, the params of every member with its score from [G, S]. OSError if the disk
    refuses.

    Arrays "<program_id>/<name>" are params, [members of that program, ...]; "member/seed",
    "member/setting" (an index into the header's settings), "member/program", "member/row" (in the
    arrays of its program), "member/score" (NaN if it has none) and "member/sha256" (of its params)
    describe the members, [members].
    """
    parts, members, rows = {}, [], {}
    for block in blocks:
        arrays, _ = load_trained(job, block)
        own = {k.removeprefix("params/"): x for k, x in arrays.items() if k.startswith("params/")}
        for name, x in own.items():
            parts.setdefault(f"{block.program_id}/{name}", []).append(x)
        for i, (g, seed) in enumerate(zip(block.config_index, block.seed, strict=True)):
            row = rows[block.program_id] = rows.get(block.program_id, -1) + 1
            digest = hashlib.sha256(b"".join(own[name][i].tobytes() for name in sorted(own)))
            score = scores[g, seed - job.run.seed]
            members.append((seed, g, block.program_id, row, score, digest.digest()))
    seed, setting, program, row, score, digest = zip(*members, strict=True)
    tree = {name: np.concatenate(parts.pop(name)) for name in list(parts)}
    tree |= {"member/seed": np.array(seed), "member/setting": np.array(setting)}
    tree |= {"member/program": np.array(program), "member/row": np.array(row)}
    tree |= {"member/score": np.array(score, float)}
    tree |= {"member/sha256": np.frombuffer(b"".join(digest), np.uint8).reshape(-1, 32)}
    header = {"algorithm": job.name, "source": str(source_of(job.make)), "settings": job.grid}
    header |= {"config": dataclasses.asdict(job.config), "imports": job.run.imports}
    checkpoint.save(job.folder / "policy.npz", tree, header)


def source_of(make: Callable) -> Path:
    """Return the file that defines an algorithm."""
    return Path(str(sys.modules[make.__module__].__file__)).resolve()


def load_agent(
    folder: str | Path, seed: int | None = None, what: str = "action", **setting: Any
) -> Callable:
    """Return the trained policy of one seed, `obs, key -> action`; by default the best seed's.

    With `what="q"` return its values of a state, `obs -> Q [A]`, and with "v" `obs -> V []`.

    A policy with memory is `memory, obs, key -> action, memory`: give it None at the start of an
    episode, and then what it returned.

    `setting` selects among the configurations of a sweep, for example learning_rate=1e-3. Reads the
    params of that seed only. CheckpointError if policy.npz cannot be read; ValueError if it has no
    such member, or if the algorithm has no policy that acts on an observation, or no such values.
    """
    if what not in ("action", "q", "v"):
        raise ValueError(f'what={what!r}: must be "action", "q" or "v"')
    path = Path(folder) / "policy.npz"
    algorithm, params, fields = load_member(path, seed, setting)
    act, init_memory = algorithm.act, algorithm.init_memory
    if act is None:
        raise ValueError(f"{folder}: this planner has no policy; it acts only inside its own run")
    if what != "action":
        env = make_env(env_id_of(path, fields), 1)
        return jax.jit(make_values(algorithm, params, env, what))
    if init_memory is None:
        return jax.jit(functools.partial(act, params))

    def act_with_memory(memory, obs, key):
        return act(params, init_memory() if memory is None else memory, obs, key)

    return jax.jit(act_with_memory)


def load_expert(folder: str) -> tuple[Callable, str]:
    """Return the policy of the best seed, `obs, key -> action`, and the id of its environment.
    ValueError if it has a memory or needs a planner; other errors as of `load_agent`."""
    path = Path(folder) / "policy.npz"
    if not path.exists():
        raise ValueError("no trained policies there (it has no policy.npz)")
    algorithm, params, fields = load_member(path, None, {})
    if algorithm.act is None or algorithm.init_memory is not None:
        raise ValueError("an expert must act on one observation, without memory or planner")
    return functools.partial(algorithm.act, params), env_id_of(path, fields)


def env_id_of(path: Path, fields: dict) -> str:
    """Return the id of the environment that a member of policy.npz was trained in, by its fields.
    Errors as of `load_agent`."""
    header = checkpoint.load_header(path, "member/")[0]
    parameters = split_setting(fields)[0]
    return join_id(fields.get("env_id", header["config"]["env_id"]), parameters)


def load_member(
    path: Path, seed: int | None, setting: dict[str, Any]
) -> tuple[Algorithm, Any, dict]:
    """Return the Algorithm and the params of one member of policy.npz, the one with the highest
    score that matches, and its fields. Errors as of `load_agent`."""
    header, table = checkpoint.load_header(path, "member/")
    for module in header["imports"]:
        load_module(module)
    settings = header["settings"]
    matches = [all(s.get(k) == x for k, x in setting.items()) for s in settings]
    is_wanted = np.array(matches)[table["member/setting"]]
    is_wanted &= seed is None or table["member/seed"] == seed
    if not is_wanted.any():
        wanted = setting if seed is None else {"seed": seed, **setting}
        raise ValueError(f"{path.parent} has no member with {wanted}")
    score = np.nan_to_num(table["member/score"], nan=-math.inf)
    index = int(np.argmax(np.where(is_wanted, score, -np.inf) + np.where(is_wanted, 0, -np.inf)))
    index = index if is_wanted[index] else int(np.argmax(is_wanted))
    module = load_source(header)
    fields = settings[table["member/setting"][index]]
    config = configured(from_json(module.Config, header["config"]), fields)
    algorithm = module.make(config)
    shapes = jax.eval_shape(lambda key: algorithm.init(key).params, jax.random.key(0))
    prefix = f"{table['member/program'][index]}/"
    rows = checkpoint.load_rows(path, prefix, int(table["member/row"][index]))
    digest = hashlib.sha256(b"".join(rows[name].tobytes() for name in sorted(rows))).digest()
    if digest != table["member/sha256"][index].tobytes():
        raise CheckpointError(f"{path} is damaged (the SHA-256 of that seed is wrong)")
    params = jax.device_put(checkpoint.restore(shapes, rows, prefix))
    return algorithm, params, {"seed": int(table["member/seed"][index]), **fields}


def load_source(header: dict) -> Any:
    """Return the module of an algorithm: that of algorithms/, or else the file that trained it."""
    path = Path(header["source"])
    try:
        module = importlib.import_module(f"algorithms.{header['algorithm']}")
        if Path(str(module.__file__)).resolve() == path or not path.exists():
            return module
    except ModuleNotFoundError:
        pass
    return load_module(str(path))


def draw_training(job: Job, table: Table, scores: np.ndarray, score_name: str) -> None:
    """Draw curves.png, and sweep.png if there is a sweep."""
    title = f"{job.name} on {job.config.env_id}"
    unit = "environment steps" if hasattr(job.config, "total_timesteps") else "updates"
    path, labels = job.folder / "curves.png", [setting_label(setting) for setting in job.grid]
    steps = np.full((len(job.grid), table.updates.shape[-1]), np.nan)
    for g, setting in enumerate(job.grid):
        algorithm = job.make(configured(job.config, setting))
        updates = table.updates[g].max(0)
        steps[g] = [steps_after(algorithm, int(u)) if u else np.nan for u in updates]
    metrics = {name: x for name, x in table.metrics.items() if name != "episodes"}
    if job.run.sweep:
        plots.plot_curves(path, steps, metrics, labels, title, unit)
        plots.plot_sweep(job.folder / "sweep.png", labels, scores, score_name)
    else:
        single = {name: x[0] for name, x in metrics.items()}
        plots.plot_curves(path, steps[0], single, None, title, unit)


def draw_first(job: Job, picture: Callable, states: Any) -> None:
    """Draw picture.png, an algorithm's `picture` of the first of its States [1, ...]."""
    from matplotlib.figure import Figure

    from common.runner.pictures import draw_picture

    figure = Figure(figsize=(7, 4.5), layout="constrained", facecolor="white")
    state = jax.tree.map(lambda x: x[0], states)
    draw_picture(figure, job.config.env_id, picture(state))
    plots.write_picture(job.folder / "picture.png", figure)


def draw_best(job: Job) -> None:
    """Draw policy.png: the policy of the best member of a run in a grid world."""
    algorithm, params, fields = load_member(job.folder / "policy.npz", None, {})
    if algorithm.act is None or algorithm.picture is not None:  # which shows what was learned
        return
    if algorithm.init_memory is not None:  # what it does in a state depends on those before
        return
    config = configured(job.config, {k: x for k, x in fields.items() if k != "seed"})
    num_members = len(job.grid) * job.run.num_seeds
    choice = f", the best of {num_members}" if num_members > 1 else ""
    seed = fields.pop("seed")
    label = setting_label(fields | {"seed": seed})
    title = f"{job.name} on {config.env_id}\nthe policy of {label}{choice}"
    num_steps = environment_steps(config, algorithm, algorithm.num_updates)
    act = functools.partial(algorithm.act, params)
    gamma = getattr(config, "gamma", None)  # None: the MDP's own
    path = job.folder / "policy.png"
    policy_map.draw_policy(path, config.env_id, act, gamma, num_steps, title)


def peak_bytes() -> int:
    """Return the most memory that was in use: on the accelerators, or else by this process."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    on_devices = sum(stat.get("peak_bytes_in_use", 0) for stat in stats)
    if on_devices:
        return on_devices
    status = Path("/proc/self/status")  # Linux, whose ru_maxrss starts at the parent process
    if status.exists():
        return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
