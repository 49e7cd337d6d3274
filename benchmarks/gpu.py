"""Measure everything that needs a GPU, in order of worth: `bash benchmarks/gpu.sh [--minutes 25]`.

    card      bandwidth of a copy, rate of matrix products, microseconds of an empty kernel
    dqn       the DQN of the race against peers, 1 to 16,384 seeds: the command that users type, and
              its loop over updates alone
    others    PPO, TD3, SAC and Rainbow with 1, 64 and 1,024 seeds, AlphaZero with 1, 8 and 64
    peers     rejax, PureJaxRL and CleanRL, where they are (see below)
    rows      rows of tier `gpu` of the suite
    switches  the loops of DQN and PPO with float32 or TF32 products, with rollouts that are not
              unrolled, and without CUDA's command buffers: what each of them buys

Each run is a process of its own with a time limit, and is a line of gpu.csv (of learning.csv, with
its picture, for rows) as soon as it is over, so a measurement that is cut off keeps what it had. A
run that fails is a line, too. While minutes are left, parts are measured again from the first on,
and lines are medians over these rounds. The columns of gpu.csv:

    steps_per_second   environment steps of all seeds, without compiling and evaluation
    update_us          microseconds of an update of all seeds (of the loop alone)
    of_bandwidth       the bytes that XLA says an update moves, over the time in which a copy of the
                       part `card` moves them: at 1 nothing but memory limits the loop
    peak_mib           the most memory in use on the card
    episode_return     of the final greedy policies, mean over seeds and episodes

Nothing is downloaded. `--peers FOLDER` holds what the peers import (`bash benchmarks/gpu.sh wheels`
fetches it), `--purejaxrl CLONE` and `--cleanrl CLONE` are clones of their repositories; CleanRL
needs torch for this card.
"""

import argparse
import csv
import json
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import learning
from benchmarks.learning import RESULTS, ROOT, command, commit, suite, table
from benchmarks.peers.settings import OURS, WORKS
from benchmarks.speed import Job, run_ours, shown, spawn, words_of

NUMBERS = ["steps_per_second", "update_us", "of_bandwidth", "peak_mib", "compile_seconds"]
NUMBERS += ["episode_return"]
LABELS = ["part", "what", "seeds"]
COLUMNS = [*LABELS, *NUMBERS, "rounds", "note", "card", "versions", "commit"]
LOOP, CARD = "the loop alone", "card"
LEAST = 20.0  # seconds that must be left to begin a run
SWITCHES = {  # what the environment holds, and whether rollouts are unrolled
    "as it is": ({}, True),
    "float32 products": ({"JAX_DEFAULT_MATMUL_PRECISION": "float32"}, True),
    "TF32 products": ({"JAX_DEFAULT_MATMUL_PRECISION": "tensorfloat32"}, True),
    "rollouts not unrolled": ({}, False),
    "no command buffers": ({"XLA_FLAGS": "--xla_gpu_enable_command_buffer="}, True),
}


class Sizes(NamedTuple):
    """How much is measured."""

    dqn_seeds: tuple[int, ...] = (1, 16, 256, 1_024, 4_096, 16_384)
    seeds: tuple[int, ...] = (1, 64, 1_024)
    search_seeds: tuple[int, ...] = (1, 8, 64)
    steps: int = 50_000  # of the race
    flags: str = ""  # of the others
    rows: tuple[str, ...] = ("dqn-breakout", "rainbow-breakout", "ppo-ant", "sac-half-cheetah")
    row_flags: str = ""
    switched: tuple[str, ...] = ("dqn", "ppo")


FULL = Sizes()
TINY = Sizes((2,), (2,), (1,), 4_000, rows=("ppo-cartpole",), switched=("dqn",))
TINY = TINY._replace(
    flags="--total-timesteps 2_000 --hidden-sizes 8 --eval-episodes 2",
    row_flags="--total-timesteps 1_024",
)


class Entry(NamedTuple):
    """One run: a line of the table."""

    part: str
    what: str
    seeds: int
    measure: Callable[[float], dict[str, Any]]  # seconds that it may take -> numbers and status


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--minutes", type=float, default=25.0, help="after which no run begins (25)")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    add("--out", type=Path, default=RESULTS, help="folder for the tables and pictures")
    add("--peers", type=Path, help="folder that the peers import from")
    add("--purejaxrl", type=Path, metavar="CLONE", help="PureJaxRL's repository")
    add("--cleanrl", type=Path, metavar="CLONE", help="CleanRL's repository")
    add("--tiny", action="store_true", help="small sizes and one round, to try the script")
    arguments = parser.parse_args()
    for name in ("peers", "purejaxrl", "cleanrl"):
        if (folder := getattr(arguments, name)) and not folder.is_dir():
            parser.error(f"--{name} {folder}: there is no such folder")
    arguments.out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    left = lambda: 60 * arguments.minutes - (time.monotonic() - begin)
    runs, rounds = [], 1 if arguments.tiny else 5
    for number in range(rounds):
        for part in arguments.parts:
            entries = PARTS[part](arguments, TINY if arguments.tiny else FULL)
            if number and part in (CARD, "rows"):
                continue
            for entry in entries:
                if left() < LEAST:
                    print(f"{arguments.minutes:g} minutes are over", flush=True)
                    return
                runs.append(measured(entry, left(), runs))
                write(arguments.out / "gpu.csv", lines(runs))
            print(f"\n{part}, round {number + 1}, {left() / 60:.1f} minutes left", flush=True)
            print(table(rows_to_show(lines(runs), part)), flush=True)


def measured(entry: Entry, seconds: float, runs: list[dict]) -> dict:
    """Return the numbers of one run; never raise."""
    run = {"part": entry.part, "what": entry.what, "seeds": entry.seeds} | entry.measure(seconds)
    copy = next((x["gigabytes_per_second"] for x in runs if "gigabytes_per_second" in x), None)
    if copy and run.get("bytes"):
        run["of_bandwidth"] = run["bytes"] / (run["update_us"] * 1e-6) / (copy * 1e9)
    numbers = "  ".join(f"{name} {shown(float(run[name]))}" for name in NUMBERS if name in run)
    seeds = f", {entry.seeds:,} seeds" if entry.seeds else ""
    print(f"{entry.what}{seeds}: {numbers or run['reason'] or run['status']}", flush=True)
    return run


# The parts


def card_part(arguments, sizes: Sizes) -> list[Entry]:
    """Return the run that measures what the card can do at most."""
    return [Entry(CARD, "limits of the card", 0, lambda s: child("limits", s, sizes is TINY))]


def dqn_part(arguments, sizes: Sizes) -> list[Entry]:
    """Return the runs of the race's DQN."""
    settings = WORKS["dqn"].equal(sizes.steps)[OURS]
    entries = []
    for seeds in sizes.dqn_seeds:
        job = Job(OURS, WORKS["dqn"], seeds, 0, settings)
        words = words_of(job)
        flags = shlex.join(words[words.index("dqn") + 1 :])
        entries.append(Entry("dqn", "dqn", seeds, command_of(words)))
        entries.append(Entry("dqn", f"dqn, {LOOP}", seeds, loop_of("dqn", flags, seeds)))
    return entries


def others_part(arguments, sizes: Sizes) -> list[Entry]:
    """Return the runs of other algorithms with their defaults."""
    names = {name: sizes.seeds for name in ("ppo", "td3", "sac", "rainbow")}
    names["alphazero"] = sizes.search_seeds
    return [
        Entry("others", name, n, command_of([name, *shlex.split(sizes.flags), *seeds_flag(n)]))
        for name, numbers in names.items()
        for n in numbers
    ]


def peers_part(arguments, sizes: Sizes) -> list[Entry]:
    """Return the runs of the peers that are there."""
    entries = []
    for peer, folder in (("rejax", arguments.peers), ("purejaxrl", arguments.purejaxrl)):
        for work in (WORKS["dqn"], WORKS["ppo"]) if folder else ():
            request = {"algorithm": work.name, "env_id": work.env_id, "eval_every": 0}
            request |= {"settings": work.equal(sizes.steps)[peer], "first_seed": 0}
            for seeds in sizes.seeds:
                own = json.dumps(request | {"seeds": seeds, "folder": str(arguments.purejaxrl)})
                words = [sys.executable, str(ROOT / "benchmarks/peers/driver.py"), peer, own]
                what = f"{peer}, {work.name}"
                entries.append(Entry("peers", what, seeds, peer_of(words, arguments.peers)))
    if arguments.cleanrl:
        entries.append(Entry("peers", "CleanRL, DQN", 1, cleanrl_of(arguments, sizes)))
    return entries


def rows_part(arguments, sizes: Sizes) -> list[Entry]:
    """Return the runs of rows of the suite."""
    rows = suite()

    def run(name, row):
        return lambda seconds: run_row(name, row, arguments.out, seconds)

    entries = []
    for name in sizes.rows:
        row = rows[name] | {"flags": f"{rows[name]['flags']} {sizes.row_flags}"}
        entries.append(Entry("rows", name, row["seeds"], run(name, row)))
    return entries


def switches_part(arguments, sizes: Sizes) -> list[Entry]:
    """Return the runs of loops with each of the SWITCHES."""
    return [
        Entry("switches", f"{name}, {switch}", n, loop_of(name, "", n, variables, is_unrolled))
        for name in sizes.switched
        for n in sizes.seeds[:2]
        for switch, (variables, is_unrolled) in SWITCHES.items()
    ]


PARTS = {
    CARD: card_part,
    "dqn": dqn_part,
    "others": others_part,
    "peers": peers_part,
    "rows": rows_part,
    "switches": switches_part,
}


# One run


def seeds_flag(seeds: int) -> list[str]:
    return ["--num-seeds", str(seeds)]


def variables_of(**more: str) -> dict[str, str]:
    """Return a run's environment: this one's, with a cache of compiled programs."""
    cache = str(ROOT / ".cache" / "gpu")
    return {"JAX_COMPILATION_CACHE_DIR": cache} | dict(os.environ) | more


def command_of(words: list[str]) -> Callable[[float], dict]:
    """Return the measurement of the command `python -m algorithms.<words>`."""
    return lambda seconds: run_ours(words, variables_of(), seconds)


def loop_of(
    name: str, flags: str, seeds: int, variables: dict[str, str] | None = None, unroll: bool = True
) -> Callable[[float], dict]:
    """Return the measurement of an algorithm's loop over updates alone."""
    return lambda seconds: child("loop", seconds, name, flags, seeds, unroll, **(variables or {}))


def child(function: str, seconds: float, *arguments: Any, **variables: str) -> dict:
    """Call a function of this file in a process of its own; return the JSON that it prints."""
    code = f"from benchmarks.gpu import {function}; {function}(*{arguments!r})"
    return spawn([sys.executable, "-c", code], variables_of(**variables), seconds)


def peer_of(words: list[str], site: Path | None) -> Callable[[float], dict]:
    """Return the measurement of a peer, which imports from the folder `site`."""
    variables = {"PYTHONPATH": str(site.resolve())} if site else {}
    return lambda seconds: spawn(words, variables_of(**variables), seconds)


def cleanrl_of(arguments, sizes: Sizes) -> Callable[[float], dict]:
    """Return the measurement of CleanRL's dqn.py, which prints its steps per second as SPS."""
    words = [sys.executable, "cleanrl/dqn.py", "--total-timesteps", str(sizes.steps)]

    def measure(seconds):
        try:
            done = subprocess.run(
                words, cwd=arguments.cleanrl, capture_output=True, text=True, timeout=seconds
            )
        except subprocess.TimeoutExpired:
            return {"status": "hung", "reason": f"not finished after {seconds:.0f} s"}
        rates = re.findall(r"SPS: (\d+)", done.stdout)
        if done.returncode or not rates:
            reason = (done.stderr.strip().splitlines() or ["printed no SPS"])[-1]
            return {"status": "failed", "reason": reason}
        return {"status": "ok", "reason": "", "steps_per_second": float(rates[-1])}

    return measure


def run_row(name: str, row: dict, out: Path, seconds: float) -> dict:
    """Train a row of the suite and put its line into learning.csv, its curves beside that."""
    folder = ROOT / ".cache" / "learning" / f"{name}-{commit()}"
    words = ["-m", f"algorithms.{row['algorithm']}", "--resume", str(folder)]
    if not (folder / "config.json").exists():
        words = [*command(row), "--out", str(folder)]
    done = spawn([sys.executable, *words, "--quiet"], variables_of(), seconds, wants_json=False)
    if not (folder / "summary.json").exists():
        return done
    line = learning.line_of(name, row, folder)
    shutil.copy(folder / "curves.png", out / f"{name}.png")
    path, kept = out / "learning.csv", {}
    source = path if path.exists() else RESULTS / "learning.csv"
    with open(source, newline="") as file:
        kept = {line["row"]: line for line in csv.DictReader(file)}
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, learning.COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows((kept | {name: line}).values())
    numbers = {"steps_per_second": line["steps_per_second"], "episode_return": line["iqm"]}
    return done | {k: float(x) for k, x in numbers.items() if x}


# In a process of its own


def limits(tiny: bool) -> None:
    """Print what the card does at most, as JSON."""
    import jax
    import jax.numpy as jnp

    def seconds(function, x, times=20):
        jax.block_until_ready(function(x))
        clock = time.perf_counter()
        for _ in range(times):
            y = function(x)
        jax.block_until_ready(y)
        return (time.perf_counter() - clock) / times

    def product(precision):
        multiply = jax.jit(lambda a: jnp.dot(a, a, precision=precision))
        return 2e-12 * side**3 / seconds(multiply, jnp.ones((side, side)))

    x, side = jnp.ones(2**20 if tiny else 2**28), 256 if tiny else 8_192
    copy = 2e-9 * x.nbytes / seconds(jax.jit(lambda x: x + 1), x)
    kernels = jax.jit(lambda x: jax.lax.fori_loop(0, 10_000, lambda _, x: jnp.sin(x) + 1, x))
    note = f"copies {copy:,.0f} GB/s; products {product('highest'):.3g} TFLOP/s in float32, "
    note += f"{product('default'):.3g} by default; update_us is an empty kernel"
    kernel_us = 1e6 * seconds(kernels, jnp.ones(1), 3) / 10_000
    print(json.dumps({"gigabytes_per_second": copy, "update_us": kernel_us, "note": note}))


def loop(name: str, flags: str, seeds: int, is_unrolled: bool) -> None:
    """Time an algorithm's loop over updates, all seeds in one program, and print it as JSON."""
    import jax

    if not is_unrolled:
        jax.default_backend = lambda: "cpu"  # which is what `rollout` looks at
        jax.lax.optimization_barrier = lambda x: x  # what `mlp` does on a CPU is not compared
    from benchmarks.updates import compiled, play

    run = compiled(name, seeds, flags)
    for _ in range(5):
        play(run, 0.5)
    stats = jax.local_devices()[0].memory_stats() or {}
    step_us = statistics.median(run.microseconds)
    costs = run.loop.cost_analysis() or {}
    costs = costs[0] if isinstance(costs, list) else costs
    result = {
        "steps_per_second": 1e6 / step_us,
        "update_us": step_us * run.algorithm.steps_per_update * seeds,
        "bytes": costs.get("bytes accessed", 0.0),
        "compile_seconds": run.compile_seconds,
    }
    if "peak_bytes_in_use" in stats:
        result["peak_mib"] = stats["peak_bytes_in_use"] / 2**20
    print(json.dumps(result))


# Lines


def lines(runs: list[dict]) -> list[dict]:
    """Return a line for each run's label, of medians over the rounds in which it succeeded."""
    grouped = {}
    for run in runs:
        grouped.setdefault(tuple(run[name] for name in LABELS), []).append(run)
    result = []
    for label, mine in grouped.items():
        line = dict(zip(LABELS, label, strict=True))
        done = [run for run in mine if run["status"] == "ok"]
        for name in NUMBERS:
            values = [run[name] for run in done if name in run]
            line[name] = shown(float(statistics.median(values)), comma="") if values else ""
        notes = dict.fromkeys(run.get("note") or run["reason"] for run in mine)
        line |= {"rounds": len(done), "note": "; ".join(x for x in notes if x), **machine()}
        result.append(line)
    return result


def machine() -> dict[str, str]:
    """Return the card with its driver, the versions and the commit."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20)
        card = done.stdout.strip().replace(", ", ", driver ") if not done.returncode else ""
    except (OSError, subprocess.TimeoutExpired):
        card = ""
    from importlib.metadata import version

    return {
        "card": card or "no GPU",
        "versions": f"jax={version('jax')} gymnax={version('gymnax')}",
        "commit": commit(),
    }


def write(path: Path, rows: list[dict]) -> None:
    """Replace the table's lines of these labels, and keep the others."""
    label = lambda line: tuple(str(line[name]) for name in LABELS)
    every = {}
    if path.exists():
        with open(path, newline="") as file:
            every = {label(line): line for line in csv.DictReader(file)}
    every |= {label(line): line for line in rows}
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(every.values())


def rows_to_show(rows: list[dict], part: str) -> list[list]:
    """Return a part's lines for the screen."""
    names = ["what", "seeds", *NUMBERS, "rounds", "note"]
    return [names, *([line[name] for name in names] for line in rows if line["part"] == part)]


if __name__ == "__main__":
    main()
