"""What an update costs: `python -m benchmarks.updates [NAME ...] [--seeds 1 8] [--rounds 5]`.

Times the harness's loop over updates of each algorithm with its defaults (or with the flags of
FLAGS), all its seeds in one program on one device, and writes results/updates.csv. Rounds are
interleaved: each runs every program once, for about as long; the median counts. The columns:

    step_us      microseconds of an environment step of one seed: those of an update, over the steps
                 that the update takes and the seeds
    relative     step_us over that of the file that RELATIVE names, with as many seeds
    compile_s    seconds of the first compilation, from an empty cache
    load         of the machine, its average over the last minute, before the first round
"""

import argparse
import importlib
import os
import shlex
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.exploration import save
from benchmarks.learning import RESULTS
from common.runner.cli import parse
from common.runner.program import init_run, run_updates

FLAGS = {  # other than the defaults: rollouts of the same size as those of the file compared with
    "trpo": "--num-envs 4 --num-steps 128",
    "natural_policy_gradient": "--num-envs 4 --num-steps 128",
}
RELATIVE = {
    "trpo": "ppo",
    "natural_policy_gradient": "ppo",
    "ppo_rnn": "ppo",
    "impala": "a2c",
    "a3c": "a2c",
    "v_mpo": "a2c",
    "acer": "a2c",
    "mpo": "sac",
    "d4pg": "ddpg",
}
SECONDS = 0.5  # of one program in one round


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.updates",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = sorted({*RELATIVE, *RELATIVE.values()})
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {', '.join(names)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    runs = [compiled(name, seeds) for name in arguments.names or names for seeds in arguments.seeds]
    load = round(os.getloadavg()[0], 1)
    for _ in range(arguments.rounds):
        for run in runs:
            play(run, SECONDS)
    save(RESULTS / "updates.csv", rows({(run.name, run.seeds): run for run in runs}, load))


@dataclass
class Run:
    """A compiled loop over updates, and what it has done."""

    name: str
    seeds: int
    env_id: str
    algorithm: Any
    loop: Any
    state: Any
    compile_seconds: float
    done: int = 0  # updates, from the start again when there are no more
    length: int = 1  # updates at once
    microseconds: list[float] = field(default_factory=list)  # of an environment step, each round


def compiled(name: str, seeds: int, flags: str | None = None) -> Run:
    """Return a Run whose `length` takes about a quarter of SECONDS."""
    flags = FLAGS.get(name, "") if flags is None else flags
    module: Any = importlib.import_module(f"algorithms.{name}")
    config, _ = parse(module.Config, name, "", shlex.split(flags))
    algorithm = module.make(config)
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    state = jax.jit(lambda keys: init_run(algorithm.init, algorithm.update, keys))(keys)
    loop = jax.jit(lambda *args: run_updates(algorithm.update, *args), donate_argnums=0)
    clock = time.monotonic()
    loop = loop.lower(state, jnp.int32(0), jnp.int32(1), jnp.bool_(True)).compile()
    seconds = time.monotonic() - clock
    run = Run(name, seeds, config.env_id, algorithm, loop, state, seconds)
    while advance(run) < SECONDS / 4 and run.length < algorithm.num_updates // 4:
        run.length *= 2
    return run


def advance(run: Run) -> float:
    """Make `length` updates; return their seconds."""
    span = jnp.int32(run.done), jnp.int32(run.done + run.length), jnp.bool_(True)
    clock = time.monotonic()
    run.state = jax.block_until_ready(run.loop(run.state, *span))
    run.done = (run.done + run.length) % max(1, run.algorithm.num_updates - run.length)
    return time.monotonic() - clock


def play(run: Run, least: float) -> None:
    """Make updates for at least so many seconds, and write down what a step took."""
    seconds, updates = 0.0, 0
    while seconds < least:
        seconds += advance(run)
        updates += run.length
    steps = updates * run.algorithm.steps_per_update * run.seeds
    run.microseconds.append(1e6 * seconds / steps)


def rows(runs: dict[tuple[str, int], Run], load: float) -> list[dict]:
    """Return the lines of the table; ratios are medians of those of single rounds."""
    lines = []
    for (name, seeds), run in runs.items():
        other = runs.get((RELATIVE.get(name, ""), seeds))
        pairs = zip(run.microseconds, other.microseconds, strict=True) if other else []
        ratios = [ours / theirs for ours, theirs in pairs]
        line = {
            "algorithm": name,
            "flags": FLAGS.get(name, ""),
            "env_id": run.env_id,
            "seeds": seeds,
            "steps_per_update": run.algorithm.steps_per_update,
            "step_us": round(statistics.median(run.microseconds), 3),
            "relative_to": other.name if other else "",
            "relative": round(statistics.median(ratios), 2) if ratios else "",
            "compile_s": round(run.compile_seconds, 1),
            "load": load,
        }
        lines.append(line)
    return lines


if __name__ == "__main__":
    main()
