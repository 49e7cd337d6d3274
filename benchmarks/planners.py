"""Race planners and tables against libraries: `python -m benchmarks.planners [--trajax CLONE]`.

    iLQR             30 iterations of Pendulum-v1's 200 steps, of each start from the same controls:
                     ours, and trajax (a clone of https://github.com/google/trajax), vmapped over
                     starts; `result` is the mean return that the plans predict
    value iteration  500 sweeps of JacksCarRental-tabular: ours, a loop in NumPy and pymdptoolbox
                     (`pip install pymdptoolbox`); `result` is the largest difference of V from ours
    Q-learning       20,000 steps of Taxi-tabular: ours, with so many seeds at once, and
                     pymdptoolbox, whose time with one seed counts for each; no `result`: the
                     latter begins anew every 100 steps

Everything runs in this process and on one device, without compiling; a library that is missing is
left out. Seconds are medians of interleaved rounds, `ratio` is the peer's over ours.

Unequal: trajax has no bounds on controls, no regularisation and no line search past the first step
that is good enough; our iteration also plays its plans in the environment, to report their return.
pymdptoolbox and NumPy count in float64.
"""

import argparse
import importlib
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from algorithms import ilqr, q_learning, value_iteration
from benchmarks.exploration import save
from benchmarks.learning import RESULTS
from benchmarks.speed import existing_folder, positive
from common.environments.dynamics import make_dynamics
from common.environments.tabular import make_mdp
from common.runner.program import init_run, run_updates
from common.runner.threefry import unroll_threefry

OURS = "manyseeds"
PAGES = {"iLQR": "ilqr", "value iteration": "value_iteration", "Q-learning": "q_learning"}
ITERATIONS, SWEEPS, STEPS = 30, 500, 20_000
GAMMA = 0.99  # of the tables: pymdptoolbox wants one below 1
Contestants = dict[str, Callable[[], float]]  # what each computes; returns `result`


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planners", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--trajax", type=existing_folder, help="a clone of it")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--starts", type=positive, nargs="+", default=[1, 8, 64], help="of iLQR")
    parser.add_argument("--seeds", type=positive, nargs="+", default=[1, 64], help="of Q-learning")
    parser.add_argument("--out", type=existing_folder, default=RESULTS, help="folder for the CSV")
    arguments = parser.parse_args()
    unroll_threefry()
    toolbox = None
    if importlib.util.find_spec("mdptoolbox"):
        toolbox = importlib.import_module("mdptoolbox.mdp")
    trajax = None
    if arguments.trajax:
        sys.path.insert(0, str(arguments.trajax))
        trajax = importlib.import_module("trajax.optimizers")
    races = [("iLQR", n, plans(n, trajax)) for n in arguments.starts]
    races += [("value iteration", 1, sweeps(toolbox))]
    races += [("Q-learning", n, steps(n, toolbox)) for n in arguments.seeds]
    lines = []
    for race in races:
        lines += raced(*race, arguments.rounds)
        print(*race[:2], flush=True)
    save(arguments.out / "planners.csv", lines)


def raced(work: str, size: int, contestants: Contestants, rounds: int) -> list[dict]:
    """Return the contestants' lines."""
    results = {name: compute() for name, compute in contestants.items()}  # which compiles
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, compute in contestants.items():
            clock = time.perf_counter()
            compute()
            seconds[name].append(time.perf_counter() - clock)
    median = {name: statistics.median(x) for name, x in seconds.items()}
    if work == "Q-learning":
        median |= {name: size * x for name, x in median.items() if name != OURS}  # one by one
    return [
        {
            "page": PAGES[work],
            "work": work,
            "size": size,
            "contestant": name,
            "seconds": median[name],
            "ratio": float("nan") if name == OURS else median[name] / median[OURS],
            "result": results[name],
        }
        for name in contestants
    ]


def plans(num_starts: int, trajax) -> Contestants:
    """Return iLQR here and there, from the same starts and controls."""
    config = ilqr.Config(num_starts=num_starts, num_initial_plans=1, num_iterations=ITERATIONS)
    algorithm, dynamics = ilqr.make(config), make_dynamics(config.env_id)
    first = jax.jit(algorithm.init)(jax.random.key(0))

    @jax.jit
    def improved(state):
        step = lambda state, i: (algorithm.update(state, i)[0], None)
        state, _ = jax.lax.scan(step, state, jnp.arange(ITERATIONS))
        return jnp.mean(state.params.total)

    contestants: Contestants = {OURS: lambda: float(improved(first))}
    if trajax is None:
        return contestants
    x, controls = first.params.x[:, 0, 0], first.params.controls[:, 0]
    horizon = controls.shape[1]

    def cost(x, u, t):
        return jnp.where(t < horizon, -dynamics.step(x, u)[1], 0.0)

    def next_x(x, u, t):
        return dynamics.step(x, u)[0]

    @jax.jit
    def planned(x, controls):
        options = {"maxiter": ITERATIONS, "grad_norm_threshold": 0.0}
        solve = lambda x, u: trajax.ilqr(cost, next_x, x, u, **options)[2]
        return -jnp.mean(jax.vmap(solve)(x, controls))

    return contestants | {"trajax": lambda: float(planned(x, controls))}


def sweeps(toolbox) -> Contestants:
    """Return value iteration here, as a loop in NumPy, and in pymdptoolbox."""
    config = value_iteration.Config("JacksCarRental-tabular", SWEEPS, GAMMA)
    algorithm, mdp = value_iteration.make(config), make_mdp(config.env_id)
    P, R = np.asarray(mdp.P, float), np.asarray(mdp.R, float)
    rewards = np.sum(P * R, axis=-1)  # r(s, a)
    found = {}

    @jax.jit
    def ours(state):
        step = lambda state, i: (algorithm.update(state, i)[0], None)
        return jax.lax.scan(step, state, jnp.arange(SWEEPS))[0].params.v

    first = algorithm.init(jax.random.key(0))

    def difference(v) -> float:
        return float(np.max(np.abs(v - found[OURS])))

    def plan() -> float:
        found[OURS] = np.asarray(ours(first))
        return 0.0

    def loop() -> float:
        v = np.zeros(len(P))
        for _ in range(SWEEPS):
            v = np.max(rewards + GAMMA * (P @ v), axis=1)
        return difference(v)

    contestants: Contestants = {OURS: plan, "NumPy": loop}
    if toolbox is None:
        return contestants
    by_action = np.moveaxis(P, 1, 0).copy()

    def solve() -> float:
        # An epsilon that is never reached; the number of sweeps is set after its own bound of it.
        solver = toolbox.ValueIteration(by_action, rewards, GAMMA, epsilon=1e-300)
        solver.max_iter = SWEEPS
        solver.run()
        return difference(np.asarray(solver.V))

    return contestants | {"pymdptoolbox": solve}


def steps(num_seeds: int, toolbox) -> Contestants:
    """Return Q-learning here, of so many seeds together, and in pymdptoolbox, of one."""
    config = q_learning.Config("Taxi-tabular", STEPS, gamma=GAMMA)
    algorithm = q_learning.make(config)
    keys = jax.vmap(jax.random.key)(jnp.arange(num_seeds))
    first = jax.jit(lambda keys: init_run(algorithm.init, algorithm.update, keys))(keys)
    span = jnp.int32(0), jnp.int32(algorithm.num_updates), jnp.bool_(True)
    train = jax.jit(lambda state: run_updates(algorithm.update, state, *span))

    def learn() -> float:
        jax.block_until_ready(train(first))
        return float("nan")

    contestants: Contestants = {OURS: learn}
    if toolbox is None:
        return contestants
    mdp = make_mdp(config.env_id)
    P = np.moveaxis(np.asarray(mdp.P, float), 1, 0).copy()
    rewards = np.sum(np.asarray(mdp.P * mdp.R, float), axis=-1)

    def learn_there() -> float:
        toolbox.QLearning(P, rewards, GAMMA, n_iter=STEPS).run()
        return float("nan")

    return contestants | {"pymdptoolbox": learn_there}


if __name__ == "__main__":
    main()
