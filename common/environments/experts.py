"""Experts that need no training: controllers, Riccati equations, dynamic programming.

A controller is a function of one observation that returns an action in the environment's units.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from common.datasets import unscale_action
from common.environments.linear import make_system
from common.environments.tabular import make_mdp
from common.envs import Env, lazy


def make_expert(env_id: str, env: Env, run: str = "") -> Callable:
    """Return an expert, `policy(obs [N, ...], key) -> action [N, ...]`; continuous actions are in
    [-1, 1].

    `run` is the folder of a trained run, whose best seed is then the expert. ValueError if there is
    no expert of this environment.
    """
    if run:
        return trained_expert(env_id, env, run)
    control = CONTROLLERS.get(env_id)
    if env_id.endswith("-tabular"):
        control = tabular_controller(env_id)
    if env_id.endswith("-linear"):
        control = linear_controller(env_id)
    if control is None:
        known = f"one is known of {', '.join(CONTROLLERS)}, -tabular, -linear"
        raise ValueError(f"--env-id {env_id} needs --expert or --dataset: no expert; {known}")

    def policy(obs, key):
        return unscale_action(env, jax.vmap(control)(obs))

    return policy


def trained_expert(env_id: str, env: Env, run: str) -> Callable:
    """Return the policy of the best seed of a run; ValueError if it cannot be the expert here."""
    try:
        act, trained_env_id = lazy("common.runner.results", "load_expert")(run)
    except Exception as error:  # of the file, whatever is wrong with it
        raise ValueError(f"--expert {run}: {error}") from error
    if trained_env_id != env_id:
        raise ValueError(f"--expert {run} was trained in {trained_env_id}, not in {env_id}")

    def policy(obs, key):
        action = jax.vmap(act)(obs, jax.random.split(key, len(obs)))
        return unscale_action(env, action)

    return policy


def cart_pole(obs: jax.Array) -> jax.Array:
    """Push towards the side that the pole falls to: right if .05 x + .15 ẋ + θ + .2 θ̇ > 0."""
    return (obs @ jnp.array([0.05, 0.15, 1.0, 0.2]) > 0).astype(int)


def mountain_car(obs: jax.Array) -> jax.Array:
    """Push in the direction of motion; on the left slope turn back before the car stops."""
    position, velocity = obs
    is_turning = (position < -0.6) & (velocity > -0.01)
    return jnp.where((velocity > 0) | is_turning, 2, 0)


def mountain_car_continuous(obs: jax.Array) -> jax.Array:
    """Push in the direction of motion with .3: as little as reaches the goal, for effort costs."""
    return jnp.where(obs[1] >= 0, 0.3, -0.3)[None]


def pendulum(obs: jax.Array) -> jax.Array:
    """Swing up by energy, u = .5 θ̇ (E* - E), and balance, u = -12 θ - 3 θ̇, where cos θ > .8.

    With m = l = 1 and g = 10, E = θ̇² / 2 + 15 cos θ (per unit of the moment of inertia 1/3), which
    is E* = 15 at rest above (Åström & Furuta 2000, https://doi.org/10.1016/S0005-1098(99)00140-5).
    """
    cos, sin, velocity = obs
    energy = 0.5 * velocity**2 + 15 * cos
    swing = 0.5 * velocity * (15 - energy)
    balance = -12 * jnp.arctan2(sin, cos) - 3 * velocity
    return jnp.clip(jnp.where(cos > 0.8, balance, swing), -2, 2)[None]


def fast(obs: jax.Array) -> jax.Array:
    """Accelerate, always."""
    return jnp.ones(1)


CONTROLLERS = {
    "CartPole-v1": cart_pole,
    "MountainCar-v0": mountain_car,
    "MountainCarContinuous-v0": mountain_car_continuous,
    "Pendulum-v1": pendulum,
    "Fast-brax": fast,
}


def tabular_controller(env_id: str) -> Callable:
    """argmax_a q*(s,a) of an MDP by value iteration.

    A discount factor just below 1 prefers the shortest of equally good ways.
    """
    mdp, gamma = make_mdp(env_id), 0.999
    P, r = np.asarray(mdp.P, float), np.einsum("sat,sat->sa", mdp.P, mdp.R)
    q, change = r, np.inf
    while change > 1e-8:
        new = r + gamma * P @ q.max(-1)
        q, change = new, np.abs(new - q).max()
    actions = np.argmax(q, axis=-1)
    return lambda state: jnp.asarray(actions)[state]


def linear_controller(env_id: str) -> Callable:
    """u = -K x with K = (R + Bᵀ P B)⁻¹ Bᵀ P A, and P from the algebraic Riccati equation."""
    with jax.ensure_compile_time_eval():
        system = make_system(env_id)
    A, B, Q, R, *_ = (np.asarray(x, float) for x in system)
    P = scipy.linalg.solve_discrete_are(A, B, Q, R)
    gain = np.linalg.solve(R + B.T @ P @ B, B.T @ P @ A)
    return lambda x: -jnp.asarray(gain, float) @ x
