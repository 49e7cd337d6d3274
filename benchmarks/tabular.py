"""Measure tabular algorithms: `python -m benchmarks.tabular [--table throughput|convergence]`.

    throughput   environment steps per second of Q-learning on the cliff, of 1, 64 and 4096 seeds
                 together, as the runner trains them: over all devices, and without compiling
    convergence  how near Q-learning, Expected SARSA and Dyna-Q come to Q* with step sizes that fall
                 with the visits: the largest error over all states and actions that can be reached,
                 as a part of the range of Q*; at most .05 is asked for

The rounds of throughput are interleaved, its numbers medians. Lines go to results/tabular.csv and
tabular_convergence.csv.
"""

import argparse
import csv
import importlib
import platform
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from algorithms import q_learning
from benchmarks.learning import RESULTS, commit, table
from common.environments.mdp import reachable
from common.environments.tabular import make_mdp
from common.runner.blocks import Job, plan
from common.runner.cli import parse
from common.runner.program import Program, lower_training, place, start_jax

SECONDS = 1.0  # that one measurement takes, about
LIMIT = 0.05  # of the range of Q*
# The environment, γ, and flags: Q-learning's and Expected SARSA's, Dyna-Q's.
CONVERGENCE = {
    "CliffWalking-tabular": (
        1.0,
        "--total-timesteps 30_000 --learning-rate-power 0.6 --epsilon 0.5",
        "--total-timesteps 10_000 --learning-rate-power 0.6 --epsilon 0.5",
    ),
    "FourRooms-tabular": (
        0.9,
        "--total-timesteps 1_000_000 --learning-rate-power 0.6 --epsilon 0.3",
        "--total-timesteps 400_000 --learning-rate-power 0.6 --epsilon 0.3 --num-outcomes 128",
    ),
    "FrozenLake-tabular": (
        0.9,
        "--total-timesteps 2_000_000 --learning-rate-power 0.85 --epsilon 0.6",
        "--total-timesteps 1_200_000 --learning-rate-power 0.8 --epsilon 0.6 --num-outcomes 1024",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tabular", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--table", choices=("throughput", "convergence"), default="throughput")
    parser.add_argument("--rounds", type=int, default=7, help="of throughput")
    parser.add_argument("--seeds", type=int, default=64, help="of convergence")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the CSV goes")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.seeds < 1 or not arguments.out.is_dir():
        parser.error("--rounds and --seeds must be at least 1, and --out a folder")
    start_jax()
    if arguments.table == "throughput":
        lines, name = throughput(arguments.rounds), "tabular.csv"
    else:
        lines, name = convergence(arguments.seeds), "tabular_convergence.csv"
    origin = {
        "machine": f"{platform.machine()}, {jax.device_count()} x {jax.devices()[0].platform}",
        "versions": f"jax={jax.__version__}",
        "commit": commit(),
    }
    with open(arguments.out / name, "w", newline="") as file:
        writer = csv.DictWriter(file, lines[0] | origin, lineterminator="\n")
        writer.writeheader()
        writer.writerows(line | origin for line in lines)
    print(table([list(lines[0]), *(list(line.values()) for line in lines)]))


def compiled(algorithm, seeds: int, flags: list[str]):
    """Return the Algorithm of so many seeds, their Program on one device, and their RunState before
    the first update."""
    words = ["--num-seeds", str(seeds), "--block", str(seeds), "--eval-episodes", "0", *flags]
    config, run = parse(algorithm.Config, "benchmarks.tabular", "", words)
    job = Job("", algorithm.make, config, run, [{}], Path())
    (block,) = plan(job)
    device = jax.devices()[0]
    with ThreadPoolExecutor() as pool:
        futures = lower_training(job, block, [device], pool)
    program = Program(device, **{name: future.result()[0] for name, future in futures.items()})
    run_state = program.init_run(*place((block.floats, block.seed), block, device))
    return algorithm.make(config), program, run_state


def timed_updates(program, run_state, start: int, stop: int):
    """Return the RunState after updates `start` to `stop - 1`, and the seconds they took."""
    clock = time.perf_counter()
    span = jnp.int32(start), jnp.int32(stop), jnp.bool_(start == 0)
    run_state = jax.block_until_ready(program.run_updates(run_state, *span))
    return run_state, time.perf_counter() - clock


def throughput(rounds: int) -> list[dict]:
    programs, run_states, updates, rates = {}, {}, {}, {1: [], 64: [], 4096: []}
    for seeds in rates:
        made, programs[seeds], run_state = compiled(q_learning, seeds, [])
        for _ in range(2):  # the first call is not like the others
            run_state, seconds = timed_updates(programs[seeds], run_state, 0, 2)
        run_states[seeds], updates[seeds] = run_state, max(2, round(2 * SECONDS / seconds))
    for _ in range(rounds):
        for seeds, program in programs.items():
            run_states[seeds], seconds = timed_updates(
                program, run_states[seeds], 0, updates[seeds]
            )
            steps = seeds * updates[seeds] * made.steps_per_update
            rates[seeds].append(steps / seconds)
    # Each round's own ratio: what disturbs the machine disturbs its neighbours in time alike.
    ratios = {seeds: np.divide(rate, rates[1]) for seeds, rate in rates.items()}
    return [
        {
            "seeds": seeds,
            "steps_per_second": f"{statistics.median(rate):.0f}",
            "low": f"{min(rate):.0f}",
            "high": f"{max(rate):.0f}",
            "ratio": f"{statistics.median(ratios[seeds]):.1f}",
            "rounds": rounds,
        }
        for seeds, rate in rates.items()
    ]


def convergence(seeds: int) -> list[dict]:
    lines = []
    for env_id, (gamma, flags, flags_of_dyna_q) in CONVERGENCE.items():
        for name, more in {
            "q_learning": flags,
            "expected_sarsa": f"{flags} --target-epsilon 0",
            "dyna_q": f"{flags_of_dyna_q} --num-planning-steps 5",
        }.items():
            words = f"--env-id {env_id} --gamma {gamma} --learning-rate 1 {more}"
            algorithm = importlib.import_module(f"algorithms.{name}")
            made, program, run_state = compiled(algorithm, seeds, words.split())
            run_state, seconds = timed_updates(program, run_state, 0, made.num_updates)
            params = np.asarray(run_state.state.params)[:seeds]
            error = errors(params, *optimal_values(env_id, gamma))
            lines.append(
                {
                    "algorithm": name,
                    "env_id": env_id,
                    "seeds": seeds,
                    "mean_error": f"{error.mean():.4f}",
                    "max_error": f"{error.max():.4f}",
                    "reached": "yes" if error.max() <= LIMIT else "no",
                    "seconds": f"{seconds:.0f}",
                    "flags": words,
                }
            )
            print(*lines[-1].values(), sep="  ", flush=True)
    return lines


def optimal_values(env_id: str, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """Return Q* [S, A] by value iteration, and which states an action can be taken in, [S]."""
    mdp = make_mdp(env_id)
    q = np.zeros(mdp.P.shape[:2])
    for _ in range(2_000):
        q = np.sum(mdp.P * (mdp.R + gamma * q.max(-1)), axis=-1)
    return q, reachable(mdp.P.sum(1), mdp.start > 0) & ~mdp.terminal


def errors(params, q, reached) -> np.ndarray:
    """Return the largest error of each seed's table [S, A], as a part of the range of Q*."""
    return np.abs(params - q)[:, reached].max((1, 2)) / np.ptp(q[reached])


if __name__ == "__main__":
    main()
