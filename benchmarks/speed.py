"""Race against peers: `python -m benchmarks.speed [--work dqn|ppo|...] [--table equal|...]`.

Peers come from PyPI, each into its own virtual environment under .cache/peers, and train
through their public interface (peers/driver.py). Three that are not there join with
`--purejaxrl CLONE` (of https://github.com/luchris429/purejaxrl), `--stoix CLONE` (of
https://github.com/EdanToledo/Stoix) and `--mbrl-lib CLONE` (of
https://github.com/facebookresearch/mbrl-lib), where they have the algorithm. Ours is the command
that users type. Everything is interleaved: round 1 runs every contestant once, then round 2, each
run in a fresh process with a time limit. A peer that does not install, fails or hangs is a line of
the table.

    equal   the same work, as peers/settings.py spells it for each library
    best    time until the greedy policies of 32 seeds reach IQM 475 on CartPole-v1, each library
            with the DQN or PPO settings that it publishes
    floor   ours: microseconds of a DQN update, and of the arithmetic that it needs at least
    hangs   ours: short runs of 32 seeds, spread over the cores and on one device in turn, counted

Numbers are medians over rounds; lines go to results/speed_<work>.csv, speed_best_<work>.csv,
speed_floor.csv and speed_hangs_<work>.csv. Odd rounds start from an empty compilation cache, even
ones from the cache of the round before.
"""

import argparse
import csv
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from algorithms import dqn
from benchmarks.learning import commit, table
from benchmarks.peers.settings import ONE_SEED, OURS, OURS_ALONE, WORKS, Work
from common.algorithm import flag
from common.envs import make_env
from common.networks import make_network
from common.runner.program import init_run, run_updates
from common.runner.statistics import iqm

ROOT = Path(__file__).parent.parent
PEERS_FOLDER = ROOT / ".cache" / "peers"
DRIVER = ROOT / "benchmarks" / "peers" / "driver.py"
PACKAGES = {
    "rejax": ("rejax", "gymnax<1", "jax<0.11"),
    "stable-baselines3": ("stable-baselines3", "torch==2.13.0"),  # that pin is a small CPU build
    "sbx-rl": ("sbx-rl", "torch==2.13.0"),
    "brax": ("brax==0.14.2", "jax==0.9.2"),  # its training does not run with a newer JAX
    "purejaxrl": ("gymnax<1", "jax<0.11", "six", "flax", "optax", "flashbax"),
    "mbrl-lib": ("torch==2.13.0", "gymnasium", "hydra-core", "numpy", "tqdm", "termcolor"),
    "stoix": (  # with the versions of JAX, and of what depends on it, in Stoix's lock file
        *("jax==0.5.3", "flax==0.10.5", "chex==0.1.89", "tensorflow-probability==0.25.0"),
        *("distrax==0.1.5", "rlax", "flashbax", "stoa-env", "gymnax<1", "hydra-core", "colorama"),
    ),
}
CLONES = {
    "purejaxrl": "purejaxrl",
    "stoix": "stoix/systems",
    "mbrl-lib": "mbrl/algorithms",
}  # peers, and a folder of the clone
TARGET = 475.0  # the IQM that `best` races to
EVAL_EVERY = 2_500  # environment steps between looks at it
BEST_SEEDS, BEST_SEEDS_ONE_BY_ONE = 32, 3  # a peer that trains one seed reaches it on so many
INSTALL_SECONDS = 1_800
NUMBERS = ("steps_per_second", "compile_seconds", "peak_mib", "episode_return")


class Job(NamedTuple):
    """A run of a contestant."""

    contestant: str
    work: Work
    seeds: int
    first_seed: int
    settings: dict  # in the contestant's own words
    eval_every: int = 0  # environment steps between greedy evaluations; 0: none
    folder: str = ""  # a clone, for the peers of CLONES


def main() -> None:
    arguments = parse(sys.argv[1:])
    broken = install(arguments.peers)
    print(table(RACES[arguments.table](arguments, broken)))


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--work", choices=WORKS, default="dqn", help="what is trained")
    add("--table", choices=RACES, default="equal")
    add("--seeds", type=positive, nargs="+", default=[1, 8, 32, 128], help="of table equal")
    add("--rounds", type=positive, default=5, help="every contestant runs once in each")
    peers = [name for name in PACKAGES if name not in CLONES]
    add("--peers", choices=peers, nargs="*", default=peers, help="default: all")
    for name in CLONES:
        add(flag(name), type=Path, metavar="CLONE", help="a clone of it; it is then a peer too")
    add("--steps", type=positive, help="of table equal, of one seed; default: as the work says")
    add("--timeout", type=positive, default=1_800, help="seconds, after which a run counts as hung")
    add(
        "--out",
        type=existing_folder,
        default=ROOT / "benchmarks" / "results",
        help="folder for the CSV",
    )
    arguments = parser.parse_args(argv)
    if arguments.table in ("floor", "hangs"):
        arguments.peers = []
    work = WORKS[arguments.work]
    if arguments.table == "floor" and arguments.work != "dqn":
        parser.error("--table floor is of --work dqn")
    if arguments.table == "best" and work.best is None:
        parser.error(f"--table best is not of --work {arguments.work}")
    for name, folder in CLONES.items():
        clone = getattr(arguments, name.replace("-", "_"))
        if clone and not (clone / folder).is_dir():
            parser.error(f"{flag(name)} {clone}: has no folder {folder}; give a clone")
        if clone and arguments.table in ("equal", "best"):
            arguments.peers = [*arguments.peers, name]
    arguments.steps = arguments.steps or work.steps
    arguments.peers = [name for name in arguments.peers if name in work.equal(arguments.steps)]
    if arguments.steps < (least := min(work.steps, 4_000)):
        parser.error(f"--steps {arguments.steps}: must be at least {least}, the first are random")
    return arguments


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def existing_folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {text}")
    return Path(text)


# The tables


def race_equal(arguments, broken: dict[str, str]) -> list[list]:
    """Write the CSV after every round, so that a race that is stopped leaves its measurements."""
    work = WORKS[arguments.work]
    settings = work.equal(arguments.steps)
    entries = [
        (name, seeds)
        for seeds in sorted(set(arguments.seeds))
        for name in (OURS, OURS_ALONE, *arguments.peers)
        if name not in ONE_SEED
    ] + [(name, 1) for name in arguments.peers if name in ONE_SEED]
    runs, lines = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(arguments.rounds):
            for name, seeds in entries:
                first, folder = number * seeds, clone_of(name, arguments)
                job = Job(name, work, seeds, first, settings[name], folder=folder)
                cache = Path(scratch) / f"{name}-{seeds}"
                run = {"cold": number % 2 == 0, "contestant": name, "seeds": seeds}
                run |= attempt(job, arguments.timeout, cache, run["cold"], broken)
                runs.append(run)
                report(number, run)
            lines = [
                equal_line(runs, name, seeds)
                for seeds in sorted(set(arguments.seeds))
                for name in (OURS, OURS_ALONE, *arguments.peers)
            ]
            with_ratios(lines, "steps_per_second", max, lambda ours, peer: ours / peer)
            write(arguments.out / f"speed_{arguments.work}.csv", lines)
    return rows_to_show(lines)


def equal_line(runs: list[dict], name: str, seeds: int) -> dict:
    """Return the medians of a contestant's runs; one that trains one seed takes more in turn, at
    the same steps per second and with one process's memory."""
    measured = 1 if name in ONE_SEED else seeds
    mine = [run for run in runs if (run["contestant"], run["seeds"]) == (name, measured)]
    done = [run for run in mine if run["status"] == "ok"]
    cold = [run for run in done if run["cold"]]
    warm = [run for run in done if not run["cold"]]
    return {
        "contestant": name,
        "seeds": seeds,
        "steps_per_second": median(done, "steps_per_second"),
        "ratio": math.nan,
        "compile_seconds": median(cold, "compile_seconds"),
        "warm_compile_seconds": median(warm, "compile_seconds"),
        "peak_mib": median(done, "peak_mib"),
        "episode_return": median(done, "episode_return"),
        **outcome(mine),
        "note": f"measured with 1 seed; {seeds} one by one" if measured < seeds else "",
        **origin(done),
    }


def race_best(arguments, broken: dict[str, str]) -> list[list]:
    """Measure where IQM 475 is reached in one run with evaluations, and the rate in runs without.

    Seconds to it are its steps at the measured rate, so the random steps at the start count as much
    as others; `seconds_with_compile` adds compiling from an empty cache once.
    """
    work = WORKS[arguments.work]
    settings = work.best()
    names = (OURS, OURS_ALONE, *arguments.peers)
    curves, runs, lines = {}, [], []
    with tempfile.TemporaryDirectory() as scratch:
        cache = Path(scratch) / "cache"
        for name in names:
            seeds = 1 if name in ONE_SEED else BEST_SEEDS
            parts = range(BEST_SEEDS_ONE_BY_ONE if name in ONE_SEED else 1)
            folder = clone_of(name, arguments)
            done = [
                attempt(
                    Job(name, work, seeds, part, settings[name], EVAL_EVERY, folder),
                    *(arguments.timeout, cache, True, broken),
                )
                for part in parts
            ]
            print(f"{name}, evaluated: {', '.join(run['status'] for run in done)}", flush=True)
            curves[name] = joined([run.get("curve", []) for run in done])
        for number in range(arguments.rounds):
            for name in names:
                seeds = 1 if name in ONE_SEED else BEST_SEEDS
                run = {"contestant": name, "seeds": seeds, "cold": True}
                folder = clone_of(name, arguments)
                job = Job(name, work, seeds, number, settings[name], folder=folder)
                runs.append(run | attempt(job, arguments.timeout, cache, True, broken))
                report(number, runs[-1])
            lines = [best_line(runs, name, curves[name]) for name in names]
            with_ratios(lines, "seconds_with_compile", min, lambda ours, peer: peer / ours)
            write(arguments.out / f"speed_best_{arguments.work}.csv", lines)
    return rows_to_show(lines)


def best_line(runs: list[dict], name: str, curve: list) -> dict:
    mine = [run for run in runs if run["contestant"] == name]
    done = [run for run in mine if run["status"] == "ok"]
    steps = steps_to(curve, TARGET)
    seconds = BEST_SEEDS * steps / median(done, "steps_per_second")
    few = f"measured with 1 seed, IQM over {BEST_SEEDS_ONE_BY_ONE}; {BEST_SEEDS} one by one"
    return {
        "contestant": name,
        "seeds": BEST_SEEDS,
        "seconds_with_compile": seconds + median(done, "compile_seconds"),
        "ratio": math.nan,
        "seconds": seconds,
        "steps_to_475": steps,
        "highest_iqm": max((iqm(returns) for _, returns in curve), default=math.nan),
        "steps_per_second": median(done, "steps_per_second"),
        "episode_return": median(done, "episode_return"),
        **outcome(mine),
        "note": few if name in ONE_SEED else "",
        **origin(done),
    }


def joined(curves: list[list]) -> list:
    """Join curves of single seeds [[steps, [return]], ...], up to the end of the shortest."""
    return [
        [points[0][0], [x for _, returns in points for x in returns]]
        for points in zip(*curves, strict=False)
    ]


def steps_to(curve: list, target: float) -> float:
    """Return a seed's steps at the first point whose IQM over seeds reaches the target."""
    return next((steps for steps, returns in curve if iqm(returns) >= target), math.nan)


def race_floor(arguments, broken: dict[str, str]) -> list[list]:
    """Measure each number of seeds in a separate process, on one device."""
    sizes = {1: 2_000, 32: 200}  # seeds, and the updates that are timed at once
    runs = {seeds: [] for seeds in sizes}
    for number in range(arguments.rounds):
        for seeds, updates in sizes.items():
            code = f"from benchmarks.speed import floor; floor({seeds}, {updates})"
            run = spawn([sys.executable, "-c", code], child_environment(1), arguments.timeout)
            runs[seeds].append(run)
            print(f"round {number + 1}  {seeds} seeds: {run['status']} {run['reason']}", flush=True)
    lines = [floor_line(runs[seeds], seeds) for seeds in sizes]
    write(arguments.out / "speed_floor.csv", lines)
    return rows_to_show(lines)


def race_hangs(arguments, broken: dict[str, str]) -> list[list]:
    """Run both kinds once a round; a run that is not over in time counts as hung."""
    work = WORKS[arguments.work]
    settings, seeds = work.equal(arguments.steps), BEST_SEEDS
    runs = {OURS: [], OURS_ALONE: []}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(arguments.rounds):
            for name, mine in runs.items():
                job = Job(name, work, seeds, number * seeds, settings[name])
                cache = Path(scratch) / name
                mine.append(attempt(job, arguments.timeout, cache, number == 0, broken))
                report(number, {"contestant": name, "seeds": seeds, **mine[-1]})
    label = {"work": arguments.work, "seeds": seeds, "steps": arguments.steps}
    lines = []
    for name, mine in runs.items():
        done = [run for run in mine if run["status"] == "ok"]
        lines.append({"contestant": name, **label, **outcome(mine), **origin(done)})
    write(arguments.out / f"speed_hangs_{arguments.work}.csv", lines)
    return rows_to_show(lines)


def floor_line(runs: list[dict], seeds: int) -> dict:
    done = [run for run in runs if run["status"] == "ok"]
    names = ("environment_us", "arithmetic_us", "update_us")
    times = {name: median(done, name) for name in names}
    overhead = times["update_us"] / times["arithmetic_us"]
    return {"seeds": seeds, **times, "overhead": overhead, **outcome(runs), **origin(done)}


def floor(seeds: int, updates: int) -> None:
    """Print, as JSON, microseconds per update of all seeds together: the environment's step alone;
    with it the acting forward pass and the gradient on one fixed batch, without sampling and
    without an optimiser; and the whole update as the runner performs it."""
    config = dqn.Config(**WORKS["dqn"].equal(100_000)[OURS])
    env = make_env(config.env_id, config.num_envs)
    network = make_network(env, config.hidden_sizes, env.num_actions)
    algorithm = dqn.make(config)
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    run_state = jax.jit(lambda keys: init_run(algorithm.init, algorithm.update, keys))(keys)
    batches = jax.tree.map(lambda x: x[:, : config.batch_size].copy(), run_state.state.buffer)

    def environment(step, carry, key, _):
        state, params = carry
        action = jnp.full(config.num_envs, step % env.num_actions)
        return env.step(state, action, jax.random.fold_in(key, step))[0], params

    def loss(params, batch):
        # θ⁻ = θ: XLA would compute the targets of constant params once for all updates.
        target_params = jax.lax.stop_gradient(params)

        def error(transition):
            q_value = network.apply(params, transition.obs)[transition.action]
            next_value = jnp.max(network.apply(target_params, transition.next_obs))
            reward, terminated = transition.reward, transition.terminated
            return dqn.td_error(q_value, reward, next_value, terminated, config.gamma)

        return jnp.mean(jnp.square(jax.vmap(error)(batch)))

    def arithmetic(step, carry, key, batch):
        state, params = carry
        action = jnp.argmax(network.apply(params, state.obs), axis=-1)
        state, _ = env.step(state, action, jax.random.fold_in(key, step))
        grads = jax.grad(loss)(params, batch)
        return state, jax.tree.map(lambda p, g: p - 1e-6 * g, params, grads)

    def repeated(body):
        def run(carry, keys, batches):
            all_seeds = jax.vmap(body, (None, 0, 0, 0))
            step = lambda i, carry: all_seeds(i, carry, keys, batches)
            return jax.lax.fori_loop(0, updates, step, carry)

        return jax.jit(run)

    def update(run_state, *span):
        return run_updates(algorithm.update, run_state, *span, True)

    carry = (run_state.state.env, run_state.state.params)
    result = {
        name: 1e6 / updates * fastest(repeated(body), carry, keys, batches)
        for name, body in (("environment_us", environment), ("arithmetic_us", arithmetic))
    }
    span = jnp.int32(0), jnp.int32(updates)
    update = jax.jit(update, donate_argnums=0)
    result["update_us"] = 1e6 / updates * fastest(update, run_state, *span)
    print(json.dumps(result | {"versions": {"jax": jax.__version__}}))


def fastest(function: Callable, carry, *rest) -> float:
    """Return the seconds of the fastest of five calls, each on the result of the one before."""
    carry = jax.block_until_ready(function(carry, *rest))
    seconds = []
    for _ in range(5):
        clock = time.perf_counter()
        carry = jax.block_until_ready(function(carry, *rest))
        seconds.append(time.perf_counter() - clock)
    return min(seconds)


RACES = {"equal": race_equal, "best": race_best, "floor": race_floor, "hangs": race_hangs}


# One run


def attempt(job: Job, timeout: float, cache: Path, cold: bool, broken: dict[str, str]) -> dict:
    """Return a run's numbers, its status (ok, failed or hung) and the reason; never raise."""
    if job.contestant in broken:
        return {"status": "failed", "reason": broken[job.contestant]}
    if cold:
        shutil.rmtree(cache, ignore_errors=True)
    devices = 1 if job.contestant == OURS_ALONE else None
    environment = child_environment(devices) | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    if job.contestant not in (OURS, OURS_ALONE, "brax") and job.work.name == "PPO":
        environment["NPROC"] = "4"  # with fewer, drawing orthogonal weights hangs
    if job.contestant in ONE_SEED:
        environment["OMP_NUM_THREADS"] = "1"  # two busy cores: 9,000 steps a second, or 100 with 2
    if job.contestant in (OURS, OURS_ALONE):
        return train_ours(job, environment, timeout)
    request = {"algorithm": job.work.name, "env_id": job.work.env_id, "settings": job.settings}
    request |= {k: getattr(job, k) for k in ("seeds", "first_seed", "eval_every", "folder")}
    words = [peer_python(job.contestant), DRIVER, job.contestant, json.dumps(request)]
    return spawn(list(map(str, words)), environment, timeout)


def train_ours(job: Job, environment: dict, timeout: float) -> dict:
    """Run the command that users type; return its results."""
    return run_ours(words_of(job), environment, timeout)


def words_of(job: Job) -> list[str]:
    """Return the algorithm and the flags of our command for this job."""
    words = [job.work.algorithm, "--env-id", job.work.env_id]
    words += ["--num-seeds", str(job.seeds), "--seed", str(job.first_seed)]
    words += ["--eval-every", str(job.eval_every)] if job.eval_every else []
    for name, value in job.settings.items():
        if isinstance(value, bool):
            words.append(flag(name if value else f"no_{name}"))
        else:
            values = value if isinstance(value, tuple) else (value,)
            words += [flag(name), *map(str, values)]
    return words


def run_ours(words: list[str], environment: dict, timeout: float) -> dict:
    """Run `python -m algorithms.<words>`; return the results in its run folder."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        python = [sys.executable, "-m", f"algorithms.{words[0]}", *words[1:]]
        python += ["--quiet", "--out", str(folder)]
        done = spawn(python, environment, timeout, wants_json=False)
        if done["status"] != "ok":
            return done
        summary = json.loads((folder / "summary.json").read_text())
        files = [folder / name for name in ("evaluation.csv", "metrics.csv")]  # a planner has one
        returns = column(next(path for path in files if path.exists()), "episode_return")
        return done | {
            "steps_per_second": summary["steps_per_second"],
            "compile_seconds": summary["compile_seconds"],
            "peak_mib": summary["peak_bytes"] / 2**20,
            "episode_return": statistics.fmean(x for x in returns if not math.isnan(x)),
            "curve": curve_of(folder / "metrics.csv") if "--eval-every" in words else [],
            "versions": {name: summary["versions"][name] for name in ("jax", "gymnax")},
        }


def spawn(words: list[str], environment: dict, timeout: float, wants_json: bool = True) -> dict:
    """Run a command; return its last line, which is JSON, with its status and the reason."""
    try:
        done = subprocess.run(
            words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return {"status": "hung", "reason": f"not finished after {timeout} s"}
    except OSError as error:
        return {"status": "failed", "reason": error.strerror}
    if done.returncode:
        return {"status": "failed", "reason": last_line(done.stderr) or f"exit {done.returncode}"}
    try:
        result = json.loads(last_line(done.stdout)) if wants_json else {}
    except ValueError:
        return {"status": "failed", "reason": "printed no result"}
    return result | {"status": "ok", "reason": ""}


def child_environment(devices: int | None) -> dict[str, str]:
    """Return a run's environment; `devices` None leaves their number to the runner."""
    mine = {k: x for k, x in os.environ.items() if not k.startswith(("JAX_", "XLA_", "NPROC"))}
    mine |= {"JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}
    return mine | ({"JAX_NUM_CPU_DEVICES": str(devices)} if devices else {})


def column(path: Path, name: str) -> list[float]:
    with open(path, newline="") as file:
        return [float(line[name]) for line in csv.DictReader(file)]


def curve_of(path: Path) -> list:
    """Return [[steps, greedy return of each seed], ...] of a metrics.csv with evaluations."""
    points = {}
    with open(path, newline="") as file:
        for line in csv.DictReader(file):
            value = float(line["evaluation_return"])
            if not math.isnan(value):
                points.setdefault(int(line["step"]), []).append(value)
    return [[steps, returns] for steps, returns in points.items()]


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else ""


# Peers


def clone_of(peer: str, arguments: argparse.Namespace) -> str:
    return str(getattr(arguments, peer.replace("-", "_")) or "") if peer in CLONES else ""


def peer_python(peer: str) -> Path:
    folder = PEERS_FOLDER / peer
    return folder / "Scripts" / "python.exe" if os.name == "nt" else folder / "bin" / "python"


def install(peers: list[str]) -> dict[str, str]:
    """Build the virtual environments that are missing; return the reasons of those that fail."""
    broken = {}
    for peer in peers:
        marker = PEERS_FOLDER / peer / "installed"
        wanted = " ".join(PACKAGES[peer])
        if marker.exists() and marker.read_text() == wanted:
            continue
        print(f"installing {wanted}", flush=True)
        make = [sys.executable, "-m", "venv", "--clear", str(PEERS_FOLDER / peer)]
        fill = [str(peer_python(peer)), "-m", "pip", "install", "--quiet", *PACKAGES[peer]]
        for words in (make, fill):
            done = spawn(words, dict(os.environ), INSTALL_SECONDS, wants_json=False)
            if done["status"] != "ok":
                broken[peer] = f"does not install: {done['reason']}"
                print(f"{peer} {broken[peer]}", flush=True)
                break
        else:
            marker.write_text(wanted)
    return broken


# Lines


def median(runs: list[dict], name: str) -> float:
    return statistics.median(run[name] for run in runs) if runs else math.nan


def outcome(runs: list[dict]) -> dict:
    """Return how many runs succeeded, hung and failed, and the reasons."""
    statuses = [run["status"] for run in runs]
    reasons = dict.fromkeys(run["reason"] for run in runs if run["reason"])
    counts = {name: statuses.count(name) for name in ("ok", "hung", "failed")}
    return counts | {"reason": "; ".join(reasons)}


def origin(runs: list[dict]) -> dict:
    versions = runs[0]["versions"] if runs else {}
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": " ".join(f"{k}={x}" for k, x in versions.items()),
        "commit": commit(),
    }


def with_ratios(lines: list[dict], name: str, best: Callable, ratio: Callable) -> None:
    """Set on our lines how many times better they are than the best peer with as many seeds."""
    for line in lines:
        rivals = [
            other[name]
            for other in lines
            if other["seeds"] == line["seeds"] and other["contestant"] in PACKAGES
        ]
        rivals = [x for x in rivals if not math.isnan(x)]
        if line["contestant"] not in PACKAGES and rivals:
            line["ratio"] = ratio(line[name], best(rivals))


def report(number: int, run: dict) -> None:
    """Print one line as soon as a run is over."""
    what = f"round {number + 1}  {run['contestant']}, {run['seeds']} seeds"
    numbers = "  ".join(f"{name} {shown(run[name])}" for name in NUMBERS if name in run)
    print(f"{what}: {numbers or run['status'] + ': ' + run['reason']}", flush=True)


def write(path: Path, lines: list[dict]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, lines[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: shown(x, comma="") for k, x in line.items()} for line in lines)


def others(path: Path, lines: list[dict], *names: str) -> list[dict]:
    """Return the lines of a file that differ from each of `lines` in some of these columns."""
    if not names or not path.exists():
        return []
    new = {tuple(str(line[name]) for name in names) for line in lines}
    with open(path, newline="") as file:
        return [x for x in csv.DictReader(file) if tuple(x[name] for name in names) not in new]


def rows_to_show(lines: list[dict]) -> list[list]:
    """Return a table for the screen, without the machine, versions and commit."""
    names = [name for name in lines[0] if name not in ("machine", "versions", "commit")]
    return [names, *([shown(line[name]) for name in names] for line in lines)]


def shown(value, comma: str = ",") -> str:
    """Return a number as text with four digits; NaN, nothing measured, is empty."""
    if not isinstance(value, float):
        return str(value)
    if math.isnan(value):
        return ""
    return f"{value:{comma}.0f}" if abs(value) >= 1_000 else f"{value:.4g}"


if __name__ == "__main__":
    main()
