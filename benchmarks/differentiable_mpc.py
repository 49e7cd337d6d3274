"""Compare what is learned from few plans of an expert: `python -m benchmarks.differentiable_mpc`.

differentiable_mpc.py, which learns the dynamics, the cost or both, and a network from the first
state to all controls of the plan, learn from the same plans, for the same number of gradient steps.
The bound of ±.3 keeps many controls from being linear functions of the first state. `loss` is the
squared error of the controls from 1,000 new first states, mean over steps and components. For the
network it is the lowest of the whole training, and for the others that at its end.

The picture is results/differentiable_mpc.png, the numbers results/differentiable_mpc.csv.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from algorithms.differentiable_mpc import Config, Model, make, make_problem, matrices, plan
from benchmarks.exploration import save
from benchmarks.learning import RESULTS
from common.environments.linear import first_state
from common.networks import mlp
from common.run import train
from common.runner.plots import COLORS, blank_figure, tidy, write_picture
from common.runner.program import start_jax
from common.runner.statistics import bands, summarize

DEMONSTRATIONS = (10, 50, 100)  # as in the paper
LEARNERS = ("network", "dynamics", "cost", "both")
BATCH = 16  # plans in a gradient step
NUM_NEW = 1_000  # first states of `loss`
HIDDEN = (64, 64)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.differentiable_mpc")
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--updates", type=int, default=60, help="of 50 gradient steps")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where CSV and picture go")
    arguments = parser.parse_args()
    if arguments.seeds < 1 or arguments.updates < 1 or not arguments.out.is_dir():
        parser.error("--seeds and --updates must be at least 1, --out a folder")
    start_jax()
    lines, losses = [], {name: [] for name in LEARNERS}
    for num in DEMONSTRATIONS:
        for name in LEARNERS:
            config = Config(
                learn="dynamics" if name == "network" else name,
                num_demonstrations=num,
                max_action=0.3,
                batch_size=BATCH,
                num_iterations=arguments.updates,
            )
            clock = time.monotonic()
            learn = network_losses if name == "network" else plan_losses
            found = np.asarray(learn(config, arguments.seeds), float)
            losses[name].append(found)
            line = {"demonstrations": num, "learner": name} | described(found)
            line["network_over_it"] = f"{iqm(losses['network'][-1]) / iqm(found):.3g}"
            line |= {"seeds": arguments.seeds, "seconds": f"{time.monotonic() - clock:.0f}"}
            lines.append(line)
            print(line, flush=True)
    draw(losses, arguments.seeds, arguments.out)
    save(arguments.out / "differentiable_mpc.csv", lines)


def iqm(losses: np.ndarray) -> float:
    """Return the interquartile mean over seeds [S]."""
    return summarize(losses)["iqm"]


def described(losses: np.ndarray) -> dict:
    """Return the interquartile mean of losses [S] with its 95 % interval, and the largest."""
    result = summarize(losses)
    interval = "" if result["low"] is None else f" [{result['low']:.2g}, {result['high']:.2g}]"
    return {"loss": f"{result['iqm']:.2g}{interval}", "worst": f"{losses.max():.2g}"}


def controls(config: Config, model: Model, system, x) -> jax.Array:
    """Return the controls of plans from first states [B, n], [B, T, m]; Model() is the expert's."""

    def one(x):
        problem = make_problem(*matrices(model, system), x, config.horizon)
        return plan(problem, config.max_action, config.newton_steps)[0][:, len(x) :]

    return jax.vmap(one)(x)


def new_states(system) -> jax.Array:
    """Draw the first states of `loss`, [NUM_NEW, n]."""
    keys = jax.random.split(jax.random.key(2**31 - 1), NUM_NEW)
    return jax.vmap(lambda key: first_state(system, key))(keys)


def plan_losses(config: Config, num_seeds: int) -> jax.Array:
    """Train the seeds of differentiable_mpc.py; return the loss of each at the end, [S]."""
    states, _ = train(config, make, num_seeds)

    @jax.jit
    @jax.vmap
    def loss(model, system):
        x = new_states(system)
        error = controls(config, model, system, x) - controls(config, Model(), system, x)
        return jnp.mean(jnp.square(error))

    return loss(states.params, states.system)


def network_losses(config: Config, num_seeds: int) -> jax.Array:
    """Train a network on the demonstrations that these seeds of differentiable_mpc.py have; return
    the lowest loss of each, [S]."""
    optimizer = optax.adam(1e-3)

    @jax.jit
    @jax.vmap
    def run(key):
        state = make(config).init(key)
        x, system = state.demonstrations, state.system
        u, new_x = controls(config, Model(), system, x), new_states(system)
        new_u = controls(config, Model(), system, new_x)
        network = mlp([x.shape[1], *HIDDEN, u[0].size])

        def loss(params, x, u):
            output = network.apply(params, x).reshape(u.shape)
            return jnp.mean(jnp.square(output - u))

        def step(carry, i):
            params, opt_state = carry
            index = jax.random.randint(jax.random.fold_in(key, i), (BATCH,), 0, len(x))
            grads = jax.grad(loss)(params, x[index], u[index])
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        def update(carry, i):
            steps = i * config.gradient_steps + jnp.arange(config.gradient_steps)
            carry, _ = jax.lax.scan(step, carry, steps)
            bound = config.max_action
            output = jnp.clip(network.apply(carry[0], new_x), -bound, bound)
            return carry, jnp.mean(jnp.square(output.reshape(new_u.shape) - new_u))

        params = network.init(jax.random.fold_in(key, 2**31 - 1))
        start = params, optimizer.init(params)
        return jnp.min(jax.lax.scan(update, start, jnp.arange(config.num_iterations))[1])

    return run(jax.vmap(jax.random.key)(jnp.arange(num_seeds)))


def draw(losses: dict, num_seeds: int, folder: Path) -> None:
    """Draw the losses over the number of demonstrations."""
    figure = blank_figure(height=3.6)
    axes = figure.subplots()
    for name, color in zip(LEARNERS, COLORS, strict=False):
        line, low, high = bands(np.array(losses[name]).T)
        label = name if name == "network" else f"differentiable MPC, {name}"
        axes.fill_between(DEMONSTRATIONS, low, high, color=color, alpha=0.2, linewidth=0)
        axes.plot(DEMONSTRATIONS, line, "o-", color=color, linewidth=1.6, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(DEMONSTRATIONS, [str(num) for num in DEMONSTRATIONS])
    axes.minorticks_off()
    tidy(axes, "squared error of the controls")
    axes.set_xlabel("plans of the expert")
    axes.legend(frameon=False, fontsize=9)
    caption = f"IQM over {num_seeds} seeds, 95 % interval · python -m benchmarks.differentiable_mpc"
    write_picture(folder / "differentiable_mpc.png", figure, caption)


if __name__ == "__main__":
    main()
