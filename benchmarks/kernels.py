"""What a GPU would launch: `python -m benchmarks.kernels [ROW ...]`, on a machine without one.

The CUDA build of XLA compiles for an H200 from its description alone. Each row compiles the
harness's training loop of one algorithm for all its seeds together, ahead of time, and reads the
optimized program (autotuning off):

    kernels      launched by one update: fusions, library calls and copies in the loop over updates,
                 those of inner loops times their trip counts (with a + where a loop has no fixed
                 count: once)
    in the loop  conditionals, copies as large as the replay memory, convolutions and sorts
    temporaries  bytes beyond the State, which is donated, and their part of the replay memory
    limit        of kernels, where there is one to keep

Below a few hundred seeds an update takes about kernels x 1.5 to 3 us; above, bytes count. The first
call downloads the CUDA plugin of the installed JAX (130 MB) into .cache/cuda.
"""

import argparse
import csv
import json
import math
import os
import re
import shlex
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from benchmarks.learning import commit, table
from benchmarks.speed import spawn
from common.runner.program import init_run, run_updates

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "kernels.csv"
SEEDS = 256
RACE = "--batch-size 128 --buffer-size 10_000 --hidden-sizes 64 64"  # and 4 environments x 1 step
# A row: the algorithm, its flags, and the most kernels that an update may launch. In addition every
# file has a row with its defaults.
ROWS = {
    "dqn-race": ("dqn", RACE, 65),
    "dqn-breakout": ("dqn", "--env-id Breakout-MinAtar --batch-size 32 --hidden-sizes 128", None),
    "ppo-race": (
        "ppo",
        "--num-envs 4 --num-steps 128 --update-epochs 4 --num-minibatches 4 --hidden-sizes 64 64",
        2_400,
    ),
}
COLUMNS = ["row", "flags", "seeds", "kernels", "limit", "conditionals", "replay_copies"]
COLUMNS += ["convolutions", "sorts", "temporary_mib", "replay_mib", "temporary_of_replay"]
COLUMNS += ["state_mib", "compile_seconds", "versions", "commit"]
# The numbers of the data sheet that XLA's cost models and code generators look at.
H200 = """
gpu_device_info {
  name: "NVIDIA H200"  device_vendor: "NVIDIA Corporation"
  cuda_compute_capability { major: 9 minor: 0 }
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  device_memory_size: 151397597184  memory_bandwidth: 4800000000000  l2_cache_size: 52428800
  threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_block_limit: 65536  registers_per_core_limit: 65536
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024  thread_dim_limit_y: 1024  thread_dim_limit_z: 64
  driver_version: "13.0.0"  runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0"  dnn_version: "9.10.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H200"
"""


def main() -> None:
    rows = every_row()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(rows)}")
    parser.add_argument("--hlo", type=Path, help="folder for the optimized programs, as text")
    arguments = parser.parse_args()
    if unknown := set(arguments.rows) - set(rows):
        parser.error(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(rows)}")
    plugin = install()
    lines, over = [], []
    for name in arguments.rows or rows:
        line = compiled(name, rows[name], plugin, arguments.hlo)
        print(f"{name}: {line['kernels']} kernels, {line['compile_seconds']} s", flush=True)
        lines.append(line)
        over += [name] if line["limit"] and int(line["kernels"].strip("+")) > line["limit"] else []
    write_lines(lines)
    shown = [c for c in COLUMNS if c not in ("versions", "commit", "flags")]
    print(table([shown, *([line[c] for c in shown] for line in lines)]))
    if over:
        sys.exit(f"above their limits: {', '.join(over)}")


def every_row() -> dict[str, tuple]:
    files = sorted(path.stem for path in (ROOT / "algorithms").glob("*.py"))
    return ROWS | {name: (name, "", None) for name in files if not name.startswith("_")}


def install() -> Path:
    """Install the CUDA plugin of this JAX into a folder that only child processes import from."""
    folder = ROOT / ".cache" / "cuda" / jax.__version__
    if not (folder / "installed").exists():
        packages = [f"jax-cuda13-{part}=={jax.__version__}" for part in ("plugin", "pjrt")]
        print(f"downloading {' and '.join(packages)}", flush=True)
        words = ["-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target"]
        words = [sys.executable, *words, str(folder), *packages]
        done = spawn(words, dict(os.environ), 1_800, wants_json=False)
        if done["status"] != "ok":
            sys.exit(f"the CUDA plugin does not install: {done['reason']}")
        (folder / "installed").touch()
    return folder


def compiled(name: str, row: tuple, plugin: Path, hlo: Path | None) -> dict:
    """Return the line of a row, measured in a child process that has the plugin on its path."""
    algorithm, flags, limit = row
    environment = dict(os.environ)
    environment |= {"PYTHONPATH": str(plugin), "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = "--xla_gpu_autotune_level=0"
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    to = str((hlo / f"{name}.txt").absolute()) if hlo else ""
    code = f"from benchmarks.kernels import child; child({algorithm!r}, {flags!r}, {to!r})"
    done = spawn([sys.executable, "-c", code], environment, 900)
    if done["status"] != "ok":
        sys.exit(f"{name}: {done['reason']}")
    own = {"row": name, "flags": flags, "seeds": SEEDS, "limit": limit or "", "commit": commit()}
    return {column: (own | done)[column] for column in COLUMNS}


def child(algorithm: str, flags: str, hlo: str) -> None:
    """Compile the loop over updates for the GPU and print the counts of its contents, as JSON."""
    import importlib

    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    from common.runner.cli import parse

    # Rollouts are unrolled where the device is not a CPU; this process must trace as there.
    jax.default_backend = lambda: "gpu"
    module = importlib.import_module(f"algorithms.{algorithm}")
    config, _ = parse(module.Config, algorithm, "", shlex.split(flags))
    made = module.make(config)
    device = topologies.get_topology_desc(
        platform="cuda", topology_name="h200", topology="1x1x1", target_config=H200
    ).devices[0]
    sharding = SingleDeviceSharding(device)

    def place(tree):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    keys = jax.eval_shape(lambda: jax.vmap(jax.random.key)(jnp.arange(SEEDS)))
    run_state = jax.eval_shape(lambda keys: init_run(made.init, made.update, keys), keys)
    span = jax.eval_shape(lambda: (jnp.int32(0), jnp.int32(1), jnp.bool_(True)))
    loop = jax.jit(lambda *args: run_updates(made.update, *args), donate_argnums=0)
    clock = time.monotonic()
    done = loop.lower(place(run_state), *place(span)).compile()
    seconds = time.monotonic() - clock
    text, memory = done.as_text(), done.memory_analysis()
    if hlo:
        Path(hlo).write_text(text)
    rings = [size(x) for x in jax.tree.leaves(getattr(run_state.state, "buffer", None))]
    temporary, replay, mib = memory.temp_size_in_bytes, sum(rings), 2**20
    result = contents(text, max(rings, default=0)) | {
        "temporary_mib": round(temporary / mib, 1),
        "replay_mib": round(replay / mib, 1) if replay else "",
        "temporary_of_replay": round(temporary / replay, 3) if replay else "",
        "state_mib": round(memory.argument_size_in_bytes / mib, 1),
        "compile_seconds": round(seconds, 1),
        "versions": f"jax={jax.__version__}",
    }
    print(json.dumps(result))


def size(tree) -> int:
    """Return the bytes of all leaves."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


FREE = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "opt-barrier"}
FREE |= {"after-all", "partition-id", "replica-id", "copy-done", "async-done"}
WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "f64": 8}


def contents(text: str, largest: int) -> dict:
    """Count what one iteration of the loop over updates launches and holds in an optimized program;
    a copy of at least `largest` bytes counts as one of the replay memory."""
    computations = parsed(text)
    found = {"kernels": 0, "unknown": 0, "conditionals": 0, "replay_copies": 0, "sorts": 0}

    def count(name: str, times: int) -> None:
        for shape, opcode, rest in computations[name]:
            if opcode == "while":
                trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', rest)
                found["unknown"] += trips is None
                count(called("body", rest), times * int(trips[1] if trips else 1))
            elif opcode == "call":
                count(called("to_apply", rest), times)
            elif opcode not in FREE:
                found["kernels"] += times
                found["conditionals"] += opcode == "conditional"
                copies = opcode in ("copy", "copy-start", "transpose")
                found["replay_copies"] += copies and 0 < largest <= bytes_of(shape)
                found["sorts"] += opcode == "sort"

    entry = [x for x in computations["ENTRY"] if x[1] == "while"]
    assert len(entry) == 1, f"{len(entry)} loops at the top, not the one over updates"
    count(called("body", entry[0][2]), 1)
    more = "+" if found.pop("unknown") else ""
    convolutions = len(re.findall(r"convolution\(|__cudnn\$conv", text))
    return found | {"kernels": f"{found['kernels']}{more}", "convolutions": convolutions}


def parsed(text: str) -> dict[str, list]:
    """Return the instructions of every computation of an HLO text: (shape, opcode, rest)."""
    computations, instructions = {}, []
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            instructions = computations["ENTRY" if head[1] else head[2]] = []
        elif found := re.match(r"\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\((.*)$", line):
            instructions.append(found.groups())
    return computations


def called(role: str, rest: str) -> str:
    return re.search(rf"{role}=%?([\w.\-]+)", rest)[1]


def bytes_of(shape: str) -> int:
    """Return the bytes of the first array in a shape such as `f32[256,4]{1,0}`."""
    kind, dimensions = re.search(r"(\w+)\[([\d,]*)\]", shape).groups()
    return WIDTHS.get(kind, 4) * math.prod(int(x) for x in dimensions.split(",") if x)


def write_lines(lines: list[dict]) -> None:
    """Put the lines into the committed table, in the order of the rows."""
    old = {}
    if RESULTS.exists():
        with open(RESULTS, newline="") as file:
            old = {line["row"]: line for line in csv.DictReader(file)}
    old |= {line["row"]: line for line in lines}
    with open(RESULTS, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(old[name] for name in every_row() if name in old)


if __name__ == "__main__":
    main()
