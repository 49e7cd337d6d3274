"""Measure gradients through an environment: `python -m benchmarks.analytic_gradient`.

left    |∂x_H/∂x_0| of the scalar systems x' = a x + u, by reverse mode through H steps of their
        environments, and |a|^H, which theory predicts
right   the gain that apg.py and shac.py find for the velocity of the double integrator, by the
        length H of their windows; the fixed point that is predicted for apg.py; Riccati's gain

The picture is results/analytic_gradient.png, the numbers results/analytic_gradient.csv.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

from algorithms import apg, shac
from benchmarks.exploration import save, train
from benchmarks.learning import RESULTS
from common.environments.linear import LINEAR, Linear, System, double_integrator, make_linear_env
from common.runner.plots import COLORS, blank_figure, tidy, write_picture
from common.runner.program import start_jax
from common.runner.statistics import interval, iqm

FACTORS = [0.9, 1.0, 1.1, 1.3]
STEPS = [1, 2, 5, 10, 20, 40, 80]
WINDOWS = [2, 5, 10, 20]
EPISODE = 20  # steps of an episode of the double integrator


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.analytic_gradient")
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where CSV and picture go")
    arguments = parser.parse_args()
    if arguments.seeds < 1 or not arguments.out.is_dir():
        parser.error("--seeds must be at least 1, and --out a folder")
    start_jax()
    growth = {a: [derivative(a, H) for H in STEPS] for a in FACTORS}
    lines = [gain_line(module, H, arguments.seeds) for module in (apg, shac) for H in WINDOWS]
    save(arguments.out / "analytic_gradient.csv", lines)
    draw(growth, lines, arguments.seeds, arguments.out)


def derivative(a: float, num_steps: int) -> float:
    """∂x_H/∂x_0 of x' = a x + u with u = 0, in reverse mode through the environment's steps."""
    one = np.ones((1, 1))
    system = System(A=a * one, B=one, Q=one, R=one, noise=np.zeros(1), start=np.ones(1))
    LINEAR["Scalar-linear"] = Linear(lambda key: system, 1_000, 1.0)
    env = make_linear_env("Scalar-linear", 1)
    state = env.reset(jax.random.key(0))

    def last_x(x):
        def step(state, key):
            return env.step(state, jnp.zeros((1, 1)), key)[0], None

        start = state._replace(inner=(x, state.inner[1]))
        keys = jax.random.split(jax.random.key(1), num_steps)
        return jax.lax.scan(step, start, keys)[0].obs[0, 0]

    return float(jax.jit(jax.grad(last_x))(state.inner[0])[0, 0])


def config_of(module, window: int, total_timesteps: int = 512_000):
    """Return the Config of a linear policy for the double integrator."""
    fields = {"gamma": 1.0} if module is apg else {"gamma": 0.99, "critic_learning_rate": 3e-3}
    return module.Config(
        env_id="DoubleIntegrator-linear",
        total_timesteps=total_timesteps,
        num_envs=64,
        num_steps=window,
        learning_rate=1e-2,
        norm_obs=False,
        squash=False,
        init_std=0.1,
        hidden_sizes=(),
        **fields,
    )


def gain_line(module, window: int, num_seeds: int, **fields) -> dict:
    """Train seeds 0, 1, ...; return the interquartile means of the two gains, and what is
    predicted."""
    _, state = train(module.make(config_of(module, window, **fields)), lambda *_: (), num_seeds)
    [(weights, _)], _ = state.params.actor
    gains = -3 * np.asarray(weights)[..., 0]  # the bound of actions is 3
    predicted = myopic_gain(window) if module is apg else riccati_gain(0.99)
    low, high = interval(gains[:, 1])
    return {
        "algorithm": module.__name__.rpartition(".")[2],
        "window": window,
        "position": f"{iqm(gains[:, 0]):.4f}",
        "predicted_position": f"{predicted[0]:.4f}",
        "velocity": f"{iqm(gains[:, 1]):.4f}",
        "low": f"{low:.4f}",
        "high": f"{high:.4f}",
        "predicted_velocity": f"{predicted[1]:.4f}",
        "largest_error": f"{np.abs(gains / predicted - 1).max():.2%}",
        "seeds": num_seeds,
    }


def riccati_gain(gamma: float) -> np.ndarray:
    """(R + γ Bᵀ P B)⁻¹ γ Bᵀ P A, with P the fixed point of Riccati's equation."""
    A, B, Q, R, *_ = double_integrator()
    P = Q
    for _ in range(10_000):
        K = np.linalg.solve(R + gamma * B.T @ P @ B, gamma * B.T @ P @ A)
        P = Q + gamma * A.T @ P @ (A - B @ K)
    return K[0]


def moments(gain: np.ndarray, moment: np.ndarray, num_steps: int) -> list[np.ndarray]:
    """E[x xᵀ] in each of so many steps under u = -gain x, and after them."""
    system = double_integrator()
    closed, found = system.A - system.B @ gain[None], [moment]
    for _ in range(num_steps):
        found.append(closed @ found[-1] @ closed.T + np.diag(system.noise**2))
    return found


def myopic_gain(window: int) -> np.ndarray:
    """Return the gain at which the mean gradient of all windows of an episode is 0.

    The states in which the windows begin depend on the gain, but their gradients do not know it.
    """
    system = double_integrator()
    start, gain = np.diag(system.start**2 / 3), np.array([0.4, 1.2])

    def cost(gain, starts):
        weight = system.Q + system.R * np.outer(gain, gain)
        found = [x for start in starts for x in moments(gain, start, window)[:-1]]
        return sum(np.trace(weight @ x) for x in found)

    for _ in range(50):
        starts = moments(gain, start, EPISODE)[:EPISODE:window]
        gain = minimize(cost, gain, (starts,), method="BFGS", options={"gtol": 1e-9}).x
    return gain


def draw(growth: dict, lines: list[dict], num_seeds: int, folder: Path) -> None:
    """Draw both panels."""
    figure = blank_figure(height=4)
    left, right = figure.subplots(1, 2)
    for color, (a, found) in zip(COLORS, growth.items(), strict=False):
        left.plot(STEPS, np.abs(found), "o", color=color, markersize=5, label=f"a = {a}")
        left.plot(STEPS, [a**H for H in STEPS], color=color, linewidth=1)
    left.set(xlabel="steps H", yscale="log")
    tidy(left, "|∂x_H/∂x_0|: measured, and |a|^H")
    left.legend(frameon=False, fontsize=8)
    for color, name in zip(COLORS, ("apg", "shac"), strict=False):
        chosen = [line for line in lines if line["algorithm"] == name]
        windows = [line["window"] for line in chosen]
        middle, low, high, predicted = (
            np.array([float(line[column]) for line in chosen])
            for column in ("velocity", "low", "high", "predicted_velocity")
        )
        errors = np.clip([middle - low, high - middle], 0, None)
        right.errorbar(windows, middle, errors, fmt="o", color=color, markersize=5, label=name)
        right.plot(windows, predicted, color=color, linewidth=1)
    right.axhline(riccati_gain(1.0)[1], color="0.4", linewidth=1, linestyle=":", label="Riccati")
    right.set(xlabel="steps H of a window", xticks=WINDOWS)
    tidy(right, "gain for the velocity: found, and predicted")
    right.legend(frameon=False, fontsize=8)
    caption = f"double integrator, {num_seeds} seeds: IQM, 95 % intervals"
    caption += " · python -m benchmarks.analytic_gradient"
    write_picture(folder / "analytic_gradient.png", figure, caption)


if __name__ == "__main__":
    main()
