"""How near an update is to what the machine allows: `python -m benchmarks.limits [NAME ...]`.

Times an update of each algorithm with its defaults, all seeds in one program on one device and one
thread, beside the least time that its parts take alone, and writes results/limits.csv and the table
of limits.md. Microseconds of an update of all seeds; medians of interleaved rounds. The columns:

    update_us       the update, as the runner performs it
    environment_us  its environment steps alone, with constant actions
    products_us     its matrix products, counted in the traced program, at the rate of a product of
                    two 512 x 512 matrices
    arithmetic_us   its operations on single numbers, counted there too: additions and the like at
                    the rate of a chain of them, divisions, exponentials and the like at tanh's
    random_us       its random bits, counted there too, at the rate of a large draw
    memory_us       its State without replay memory, read and written once, at the rate of a copy
    call_us         calling the compiled program without an update, shared by those of a call
    largest         which of the six is the largest
    ratio           the update over that one
    compile_s       seconds of compiling it, from an empty cache
    warm_compile_s  the same with the compiled program in the cache: tracing, lowering, loading
    load            of the machine, its average over the last minute, before the first round

Loops without a fixed number of rounds count once; of the branches of a `cond` the dearer counts.
"""

import argparse
import atexit
import csv
import importlib
import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr

from benchmarks.exploration import save
from benchmarks.family import put
from benchmarks.learning import RESULTS, ROOT, table
from benchmarks.speed import fastest
from benchmarks.updates import SECONDS, Run, compiled, play
from common.envs import make_env
from common.runner.cli import parse
from common.runner.program import run_updates
from common.runner.threefry import unroll_threefry

PAGE = ROOT / "benchmarks" / "limits.md"
MANY_STEPS = 2_000  # of an environment, timed together


class Work(NamedTuple):
    """What a program does."""

    products: float = 0  # multiplications and additions in matrix products
    random_words: float = 0  # of 32 bits
    cheap: float = 0  # operations on single numbers: additions and the like
    dear: float = 0  # divisions, exponentials and the like

    def times(self, n: float) -> "Work":
        return Work(*(n * x for x in self))

    def plus(self, other: "Work") -> "Work":
        return Work(*(x + y for x, y in zip(self, other, strict=True)))


class Rates(NamedTuple):
    """What the machine does in a microsecond."""

    products: float
    random_words: float
    cheap: float
    dear: float
    bytes: float


CHEAP = "add sub mul neg abs sign max min clamp select_n lt le gt ge eq ne and or not xor floor"
CHEAP += " ceil round square integer_pow add_any"
REDUCING = "reduce_sum reduce_max reduce_min reduce_and reduce_or argmax argmin cumsum"
DEAR = "div rem pow sqrt rsqrt cbrt exp exp2 expm1 log log1p tanh logistic sin cos tan asin acos"
DEAR += " atan atan2 sinh cosh erf erf_inv erfc lgamma"


def main() -> None:
    every = sorted(path.stem for path in (ROOT / "algorithms").glob("[!_]*.py"))
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.limits",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: every algorithm")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(every):
        parser.error(f"no such algorithm: {', '.join(sorted(unknown))}")
    unroll_threefry()
    use_cache()
    rates = measured_rates()
    runs = [compiled(name, n, "") for name in arguments.names or every for n in arguments.seeds]
    load = round(os.getloadavg()[0], 1)
    for _ in range(arguments.rounds):
        for run in runs:
            play(run, SECONDS)
    lines = [line_of(run, rates, load) for run in runs]
    save(RESULTS / "limits.csv", lines, "algorithm", "seeds")
    with open(RESULTS / "limits.csv", newline="") as file:
        put(PAGE, "limits", table(by_algorithm(list(csv.DictReader(file)))))


def by_algorithm(lines: list[dict]) -> list[list[str]]:
    """Return the page's table: a row for each algorithm, a column for each number of seeds."""
    found = {(line["algorithm"], int(line["seeds"])): line for line in lines}
    seeds = sorted({n for _, n in found})
    rows = [["algorithm", *(f"us, {n}" for n in seeds), *(f"ratio, {n}" for n in seeds)]]
    rows[0] += ["largest floor", "compile_s", "warm_compile_s"]
    for name in sorted({name for name, _ in found}):
        mine = [found.get((name, n), {}) for n in seeds]
        cells = [[line.get(key, "") for line in mine] for key in ("update_us", "ratio")]
        last = next(line for line in reversed(mine) if line)
        ends = [last[key] for key in ("largest", "compile_s", "warm_compile_s")]
        rows.append([name, *cells[0], *cells[1], *ends])
    return rows


def measured_rates() -> Rates:
    """Return what one device of this machine does in a microsecond."""
    matrix, side = jnp.full((512, 512), 1e-3), 512
    words = jnp.zeros(2**20, jnp.uint32)
    numbers = jnp.zeros(2**24, jnp.float32)
    product = jax.jit(lambda x: x @ x)
    draw = jax.jit(lambda x: jax.random.bits(jax.random.key(x[0]), x.shape))
    copy = jax.jit(lambda x: x + 1)

    def chain(operation, length):
        """Operations in a microsecond of a chain on numbers that stay in the cache."""
        rounds, few = 1_000, jnp.full(4_096, 0.5)

        def once(_, x):
            for _ in range(length):
                x = operation(x)
            return x

        program = jax.jit(lambda x: jax.lax.fori_loop(0, rounds, once, x))
        return rounds * length * few.size / (1e6 * fastest(program, few))

    return Rates(
        2 * side**3 / (1e6 * fastest(product, matrix)),
        words.size / (1e6 * fastest(draw, words)),
        2 * chain(lambda x: x * 0.99 + 0.01, 16),
        chain(jnp.tanh, 16),
        2 * numbers.nbytes / (1e6 * fastest(copy, numbers)),
    )


def line_of(run: Run, rates: Rates, load: float) -> dict[str, Any]:
    """Return a run's line of the table."""
    module: Any = importlib.import_module(f"algorithms.{run.name}")
    config, _ = parse(module.Config, run.name, "", [])
    algorithm = run.algorithm
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    work = work_of(jax.make_jaxpr(algorithm.update)(state, jnp.int32(0))).times(run.seeds)
    floors = {
        "environment_us": environment_us(config, algorithm, run.seeds),
        "products_us": work.products / rates.products,
        "arithmetic_us": work.cheap / rates.cheap + work.dear / rates.dear,
        "random_us": work.random_words / rates.random_words,
        "memory_us": 2 * run.seeds * bytes_without_replay(state) / rates.bytes,
        "call_us": call_us(run) / run.length,
    }
    update = statistics.median(run.microseconds) * algorithm.steps_per_update * run.seeds
    largest = max(floors, key=lambda name: floors[name])
    shown = {name: f"{x:.3g}" for name, x in ({"update_us": update} | floors).items()}
    return {
        "algorithm": run.name,
        "env_id": config.env_id,
        "seeds": run.seeds,
        "steps_per_update": algorithm.steps_per_update,
        **shown,
        "largest": largest.removesuffix("_us"),
        "ratio": f"{update / floors[largest]:.3g}",
        "compile_s": round(run.compile_seconds, 1),
        "warm_compile_s": round(compile_again(algorithm, jax.eval_shape(lambda: run.state)), 1),
        "load": load,
    }


def environment_us(config: Any, algorithm: Any, seeds: int) -> float:
    """Return the microseconds of an update's environment steps, all seeds together, with actions
    that do not depend on anything; 0 where nothing is played. Many steps are timed at once, or the
    call of the program would count."""
    if not hasattr(config, "total_timesteps") or not algorithm.steps_per_update:
        return 0.0
    num_envs = getattr(config, "num_envs", 1)
    env = make_env(config.env_id, num_envs)
    num_steps = algorithm.steps_per_update / num_envs
    action = jnp.zeros((num_envs, *env.action_shape), float if env.num_actions is None else int)

    def steps(states, keys):
        def one(state, key):
            body = lambda t, s: env.step(s, action, jax.random.fold_in(key, t))[0]
            return jax.lax.fori_loop(0, MANY_STEPS, body, state)

        return jax.vmap(one)(states, keys)

    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    states = jax.jit(jax.vmap(env.reset))(keys)
    return 1e6 * fastest(jax.jit(steps), states, keys) * num_steps / MANY_STEPS


def use_cache() -> None:
    """Keep compiled programs in a folder that is empty now and removed when Python ends."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def compile_again(algorithm: Any, state: Any) -> float:
    """Return the seconds of compiling the loop over updates as `compiled` does, all forgotten but
    what is in the cache on disk."""
    jax.clear_caches()
    loop = jax.jit(lambda *args: run_updates(algorithm.update, *args), donate_argnums=0)
    clock = time.monotonic()
    loop.lower(state, jnp.int32(0), jnp.int32(1), jnp.bool_(True)).compile()
    return time.monotonic() - clock


def call_us(run: Run) -> float:
    """Return the microseconds of a call of the program that makes no update."""
    seconds = []
    for _ in range(20):
        clock = time.perf_counter()
        span = jnp.int32(0), jnp.int32(0), jnp.bool_(True)
        run.state = jax.block_until_ready(run.loop(run.state, *span))
        seconds.append(time.perf_counter() - clock)
    return 1e6 * min(seconds)


def bytes_without_replay(state: Any) -> int:
    """Return the bytes of a seed's State but for its replay memory."""
    kept = state._replace(buffer=None) if hasattr(state, "buffer") else state
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(kept))


def work_of(program: Any) -> Work:
    """Return the work of a jaxpr, its inner ones included."""
    total = Work()
    for equation in (program.jaxpr if isinstance(program, ClosedJaxpr) else program).eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            inner = math.prod(left[i] for i in contracted)
            total = total.plus(Work(products=2 * inner * math.prod(out)))
        elif name == "random_bits":
            words = math.prod(equation.outvars[0].aval.shape) * params["bit_width"] / 32
            total = total.plus(Work(random_words=words))
        elif name in CHEAP.split():
            total = total.plus(Work(cheap=equation.outvars[0].aval.size))
        elif name in REDUCING.split():
            total = total.plus(Work(cheap=equation.invars[0].aval.size))
        elif name in DEAR.split():
            total = total.plus(Work(dear=equation.outvars[0].aval.size))
        elif name == "cond":
            total = total.plus(max(map(work_of, params["branches"]), key=lambda work: work[0]))
        else:
            times = params["length"] if name == "scan" else 1
            for inner in inner_programs(params):
                total = total.plus(work_of(inner).times(times))
    return total


def inner_programs(params: dict) -> list:
    """Return the jaxprs among the parameters of a primitive."""
    is_program: Callable = lambda x: isinstance(x, ClosedJaxpr | Jaxpr)
    return [x for x in params.values() if is_program(x)]


if __name__ == "__main__":
    main()
