"""What prioritized replay costs beside uniform replay: `python -m benchmarks.replay`.

    replay    each update adds 4 transitions of CartPole's size and draws 64; the prioritized ones
              renew the priorities of those 64 as well. `sum_tree` is common/prioritized.py;
              `cumsum` is the plain way, a running sum over all priorities at each draw.
    update    the whole update of dqn.py and of prioritized_dqn.py, with their defaults

Microseconds of one update of all seeds together: medians over rounds in which every contestant runs
once, on one device. The lines go to results/replay.csv.
"""

import argparse
import functools
import os
import statistics
import time

import jax
import jax.numpy as jnp

from algorithms import dqn, prioritized_dqn
from benchmarks.learning import RESULTS, table
from benchmarks.speed import existing_folder, origin, positive, rows_to_show, write
from common.buffers import uniform_buffer
from common.envs import Transition
from common.prioritized import prioritized_buffer
from common.runner.program import run_updates
from common.runner.threefry import unroll_threefry

CAPACITIES = (1_000, 10_000, 100_000, 1_000_000)
BLOCK, BATCH = 4, 64


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.replay", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--capacities", type=positive, nargs="+", default=CAPACITIES)
    parser.add_argument("--seeds", type=positive, default=64)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--out", type=existing_folder, default=RESULTS, help="folder for the CSV")
    arguments = parser.parse_args()
    if min(arguments.capacities) < 1_000:
        parser.error("--capacities: at least 1,000, what DQN begins with")
    os.environ.setdefault("NPROC", "1")  # as the harness does
    unroll_threefry()
    lines = []
    for capacity in arguments.capacities:
        for what, contestants in (("replay", replays(capacity)), ("update", updates(capacity))):
            times = race(contestants, arguments.seeds, arguments.rounds)
            for name, microseconds in times.items():
                ratio = microseconds / next(iter(times.values()))
                line = {"what": what, "capacity": capacity, "seeds": arguments.seeds}
                line |= {"contestant": name, "microseconds": microseconds, "ratio": ratio}
                lines.append(line | origin([{"versions": {"jax": jax.__version__}}]))
                print(f"{what} {capacity:,} {name}: {microseconds:.0f} us, {ratio:.2f}", flush=True)
    print(table(rows_to_show(lines)))
    write(arguments.out / "replay.csv", lines)


def race(contestants: dict, seeds: int, rounds: int, seconds: float = 1.0) -> dict[str, float]:
    """The median microseconds of an update of each, by name. A contestant is a function of keys [S]
    that makes a carry, and one of carry, start and stop that makes so many updates of it."""
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    at, times = {}, {name: [] for name in contestants}
    for name, (start, run) in contestants.items():
        carry = jax.block_until_ready(jax.jit(start)(keys))
        run = jax.jit(run, donate_argnums=0)
        carry = jax.block_until_ready(run(carry, jnp.int32(0), jnp.int32(1)))
        clock = time.perf_counter()
        carry = jax.block_until_ready(run(carry, jnp.int32(1), jnp.int32(6)))
        length = max(5, int(seconds / ((time.perf_counter() - clock) / 5)))
        at[name] = run, carry, 6, length
    for _ in range(rounds):
        for name, (run, carry, step, length) in at.items():
            clock = time.perf_counter()
            carry = jax.block_until_ready(run(carry, jnp.int32(step), jnp.int32(step + length)))
            times[name].append((time.perf_counter() - clock) / length * 1e6)
            at[name] = run, carry, step + length, length
    return {name: statistics.median(x) for name, x in times.items()}


def transitions(num_steps: int) -> Transition:
    """Of CartPole's size, [T, N, ...]."""
    shape = num_steps, BLOCK
    obs, flag = jnp.zeros((*shape, 4)), jnp.zeros(shape, bool)
    return Transition(obs, jnp.zeros(shape, jnp.int32), jnp.ones(shape), obs, flag, flag)


def replays(capacity: int) -> dict:
    """Rings that are full from the start. What an update draws goes into a sum, or it would not be
    drawn; a priority is a random number."""
    num_blocks = capacity // BLOCK
    uniform = uniform_buffer(BLOCK * num_blocks, BLOCK, BATCH)
    tree = prioritized_buffer(BLOCK * num_blocks, BLOCK, BATCH)

    def with_uniform(data, key, step):
        data = uniform.add(data, transitions(1), num_blocks + step)
        return data, uniform.sample(data, key, num_blocks + step + 1).reward.sum()

    def with_tree(data, key, step):
        key_sample, key_priority = jax.random.split(key)
        data = tree.add(data, transitions(1), num_blocks + step)
        batch, index, _ = tree.sample(data, key_sample)
        data = tree.update(data, index, jax.random.uniform(key_priority, (BATCH,)))
        return data, batch.reward.sum()

    def with_cumsum(data, key, step):
        rows, priorities = data
        key_sample, key_priority = jax.random.split(key)
        rows = uniform.add(rows, transitions(1), num_blocks + step)
        start = (num_blocks + step) % num_blocks * BLOCK
        priorities = jax.lax.dynamic_update_slice(priorities, jnp.ones(BLOCK), (start,))
        sums = jnp.cumsum(priorities)
        low = (jnp.arange(BATCH) + jax.random.uniform(key_sample, (BATCH,))) * sums[-1] / BATCH
        index = jnp.minimum(jnp.searchsorted(sums, low, side="right"), BLOCK * num_blocks - 1)
        reward = jax.tree.map(lambda x: x[index], rows).words.sum()
        priorities = priorities.at[index].set(jax.random.uniform(key_priority, (BATCH,)))
        return (rows, priorities), reward

    def contestant(init, update):
        def start(keys):
            return jax.vmap(lambda key: (init(), key))(keys), jnp.zeros(len(keys))

        def run(carry, first, last):
            def body(step, carry):
                (data, keys), total = carry
                now = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
                data, drawn = jax.vmap(update, (0, 0, None))(data, now, step)
                return (data, keys), total + drawn

            return jax.lax.fori_loop(first, last, body, carry)

        return start, run

    def full(buffer):
        return buffer.init(transitions(num_blocks))

    return {
        "uniform": contestant(lambda: full(uniform), with_uniform),
        "sum_tree": contestant(lambda: full(tree), with_tree),
        "cumsum": contestant(lambda: (full(uniform), jnp.ones(BLOCK * num_blocks)), with_cumsum),
    }


def updates(capacity: int) -> dict:
    """The loop of the harness, of both files."""

    def contestant(module):
        algorithm = module.make(module.Config(buffer_size=capacity, total_timesteps=10_000_000))
        start = functools.partial(init_run, algorithm.init, algorithm.update)

        def run(progress, first, last):
            return run_updates(algorithm.update, progress, first, last, jnp.bool_(False))

        return start, run

    return {"dqn": contestant(dqn), "prioritized_dqn": contestant(prioritized_dqn)}


if __name__ == "__main__":
    main()
