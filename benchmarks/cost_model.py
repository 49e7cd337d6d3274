"""Work out what many seeds on many GPUs cost: `python -m benchmarks.cost_model`.

By default 100,000 seeds of DQN, with its default flags, on 64 GPUs of which each trains one block.
What the model needs is measured here: the bytes of a seed's State; the seconds of a save, hashing
and the sync of the disk included; and the CPU seconds of the process that merges, for two numbers
of seeds, so that what one seed takes is told from what any run takes. Speed of training is not part
of it. The table is results/cost_model.csv, shown in scale.md.
"""

import argparse
import csv
import hashlib
import math
import os
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from algorithms import dqn
from benchmarks.family import put
from benchmarks.learning import RESULTS, table
from benchmarks.many_seeds import PAGE, parts
from common.runner import checkpoint
from common.runner.loop import SAVE_SHARE

TABLE = RESULTS / "cost_model.csv"
COLUMNS = ["quantity", "value", "unit", "origin"]
# As many rows and params as a whole run has, with less training; equally many blocks.
MERGE = "--total-timesteps 2_000 --buffer-size 1000 --batch-size 4 --block {block}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost_model")
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seeds", type=int, default=100_000)
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--checkpoint-every", type=float, default=600, help="seconds")
    text = "seeds of the block that is saved, and of the two runs that are merged"
    parser.add_argument("--sample", type=int, nargs=3, default=[256, 1024, 3072], help=text)
    parser.add_argument("--out", type=Path, default=TABLE, help="the table")
    arguments = parser.parse_args()
    saved, few, many = arguments.sample
    if min(arguments.seeds, arguments.gpus, saved, few) < 1 or few >= many:
        parser.error("all numbers are at least 1, and the second run has more seeds than the first")
    found = {**measured_saves(saved), **measured_merge(few, many)}
    rows = [(name, value, unit, "measured") for name, (value, unit) in found.items()]
    inputs = {name: value for name, (value, _) in found.items()}
    model = costs(inputs, arguments.seeds, arguments.gpus, arguments.checkpoint_every)
    rows += [(name, value, unit, "model") for name, (value, unit) in model.items()]
    lines = [[name, f"{value:.4g}", unit, origin] for name, value, unit, origin in rows]
    with open(arguments.out, "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *lines])
    print(table([COLUMNS, *lines]))
    if arguments.out == TABLE:
        put(PAGE, "cost_model", table([COLUMNS, *lines]))


def measured_saves(num_seeds: int, repeats: int = 3) -> dict[str, tuple[float, str]]:
    """Save a block of so many seeds; return the bytes of a seed and the seconds of a save (the
    median of the repeats)."""
    init = dqn.make(dqn.Config()).init
    state = jax.eval_shape(init, jax.random.key(0))
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))
    block = jax.jit(jax.vmap(init))(jax.vmap(jax.random.key)(jnp.arange(num_seeds)))
    arrays = checkpoint.named_arrays(block)
    num_bytes = sum(x.nbytes for x in arrays.values())
    seconds, hashing = [], []
    with tempfile.TemporaryDirectory(dir=".") as folder:
        path = Path(folder) / "checkpoint.npz"
        for _ in range(repeats):
            clock = time.monotonic()
            for x in arrays.values():
                hashlib.sha256(np.ascontiguousarray(x).view(np.uint8))
            hashing.append(time.monotonic() - clock)
            clock = time.monotonic()
            checkpoint.save(path, arrays, {})
            seconds.append(time.monotonic() - clock)
        on_disk = path.stat().st_size
    return {
        "state of a seed": (size, "B"),
        "a seed in a checkpoint": (on_disk / num_seeds, "B"),
        "save": (num_bytes / np.median(seconds), "B/s"),
        "of it hashing": (num_bytes / np.median(hashing), "B/s"),
        "load average": (os.getloadavg()[0], f"{len(os.sched_getaffinity(0))} cores"),
    }


def measured_merge(few: int, many: int) -> dict[str, tuple[float, str]]:
    """Run two numbers of seeds; return what merging them takes at all and for each seed.

    From 1,000 seeds on the time grows in proportion: the bands of curves.png then bound theirs.
    """
    seconds = []
    for num_seeds in (few, many):
        block = math.ceil(num_seeds / 8)
        found = parts("dqn", num_seeds, *MERGE.format(block=block).split())
        seconds.append(found["metrics"][2] + found["results"][2])
    slope = (seconds[1] - seconds[0]) / (many - few)
    if slope <= 0:
        raise SystemExit(f"merging took {seconds} s: the machine is too busy to measure it")
    return {
        "merge, any number of seeds": (seconds[0] - slope * few, "CPU s"),
        "merge, a seed": (slope, "CPU s"),
    }


def costs(
    inputs: dict[str, float], num_seeds: int, num_gpus: int, every: float
) -> dict[str, tuple[float, str]]:
    """Return what a run costs, from the measured `inputs` by name.

    `every` are seconds between checkpoints, which may take SAVE_SHARE of the time.
    """
    block = math.ceil(num_seeds / num_gpus)
    saved = block * inputs["a seed in a checkpoint"]
    seconds = block * inputs["state of a seed"] / inputs["save"]
    interval = max(every, seconds / SAVE_SHARE)
    merge = inputs["merge, any number of seeds"] + num_seeds * inputs["merge, a seed"]
    return {
        "seeds": (num_seeds, ""),
        "GPUs": (num_gpus, ""),
        "block": (block, "seeds"),
        "state on a GPU": (block * inputs["state of a seed"] / 2**30, "GiB"),
        "bytes of a save": (saved / 2**30, "GiB"),
        "seconds of a save": (seconds, "s"),
        "share of time that saves take": (seconds / (seconds + interval), ""),
        "all GPUs' saves, two kept": (2 * num_gpus * saved / 2**30, "GiB"),
        "written by all GPUs": (num_gpus * saved / (seconds + interval) / 2**20, "MiB/s"),
        "merge, in one process": (merge, "CPU s"),
    }


if __name__ == "__main__":
    main()
