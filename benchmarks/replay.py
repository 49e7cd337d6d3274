"""Compare the cost of prioritized and of uniform replay: `python -m benchmarks.replay`.

    replay    each update adds 4 transitions of CartPole's size and draws 64; the prioritized ones
              also renew the priorities of those 64. `sum_tree` is common/prioritized.py;
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
from common.buffers import rows, uniform_buffer
from common.envs import Transition
from common.prioritized import init_priorities, sample_rows, set_priorities
from common.runner.program import init_run, run_updates
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
    os.environ.setdefault("NPROC", "1")  # as the runner does
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
    """Return the median microseconds of an update of each contestant, by name.

    A contestant is a function from keys [S] to a carry, and one from carry, start and stop to the
    carry after those updates.
    """
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
    """Return transitions of CartPole's size, [T, N, ...]."""
    shape = num_steps, BLOCK
    obs, flag = jnp.zeros((*shape, 4)), jnp.zeros(shape, bool)
    return Transition(obs, jnp.zeros(shape, jnp.int32), jnp.ones(shape), obs, flag, flag)


def total(batch: Transition) -> jax.Array:
    """Return the sum over all fields: XLA would leave out the draw of a field that nothing uses."""
    return sum(jnp.sum(x, dtype=float) for x in batch)


def replays(capacity: int) -> dict:
    """Return the contestants: rings that are full from the start, with random priorities."""
    num_blocks = capacity // BLOCK
    uniform = uniform_buffer(BLOCK * num_blocks, BLOCK, BATCH)

    def with_uniform(buffer_state, key, step):
        buffer_state = uniform.add(buffer_state, transitions(1), num_blocks + step)
        batch = uniform.sample(buffer_state, key, num_blocks + step + 1)
        return buffer_state, total(batch)

    def with_tree(buffer_state, key, step):
        ring, priorities = buffer_state
        key_sample, key_priority = jax.random.split(key)
        ring = uniform.add(ring, transitions(1), num_blocks + step)
        new_rows = (num_blocks + step) % num_blocks * BLOCK + jnp.arange(BLOCK)
        priorities = set_priorities(priorities, new_rows, priorities.largest)
        index, _ = sample_rows(priorities, key_sample, BATCH)
        batch = rows(ring, index)
        priority = jax.random.uniform(key_priority, (BATCH,))
        return (ring, set_priorities(priorities, index, priority)), total(batch)

    def with_cumsum(buffer_state, key, step):
        ring, priorities = buffer_state
        key_sample, key_priority = jax.random.split(key)
        ring = uniform.add(ring, transitions(1), num_blocks + step)
        start = (num_blocks + step) % num_blocks * BLOCK
        priorities = jax.lax.dynamic_update_slice(priorities, jnp.ones(BLOCK), (start,))
        sums = jnp.cumsum(priorities)
        low = (jnp.arange(BATCH) + jax.random.uniform(key_sample, (BATCH,))) * sums[-1] / BATCH
        index = jnp.minimum(jnp.searchsorted(sums, low, side="right"), BLOCK * num_blocks - 1)
        batch = jax.tree.map(lambda x: x[index], ring)
        priorities = priorities.at[index].set(jax.random.uniform(key_priority, (BATCH,)))
        return (ring, priorities), total(batch)

    def contestant(init, update):
        def start(keys):
            return jax.vmap(lambda key: (init(), key))(keys), jnp.zeros(len(keys))

        def run(carry, first, last):
            def body(step, carry):
                (buffer_state, keys), sums = carry
                step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
                buffer_state, drawn = jax.vmap(update, (0, 0, None))(buffer_state, step_keys, step)
                return (buffer_state, keys), sums + drawn

            return jax.lax.fori_loop(first, last, body, carry)

        return start, run

    def full():
        return uniform.init(transitions(num_blocks))

    ones = jnp.ones(BLOCK * num_blocks)
    return {
        "uniform": contestant(full, with_uniform),
        "sum_tree": contestant(lambda: (full(), init_priorities(ones)), with_tree),
        "cumsum": contestant(lambda: (full(), ones), with_cumsum),
    }


def updates(capacity: int) -> dict:
    """Return the contestants: the runner's loop over updates of both files."""

    def contestant(module):
        algorithm = module.make(module.Config(buffer_size=capacity, total_timesteps=10_000_000))
        start = functools.partial(init_run, algorithm.init, algorithm.update)

        def run(run_state, first, last):
            return run_updates(algorithm.update, run_state, first, last, jnp.bool_(False))

        return start, run

    return {"dqn": contestant(dqn), "prioritized_dqn": contestant(prioritized_dqn)}


if __name__ == "__main__":
    main()
