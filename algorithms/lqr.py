"""Linear-quadratic regulator (LQR), with a known model or one fitted to transitions.

Kalman 1960, Contributions to the theory of optimal control; Bertsekas 2017, Dynamic Programming and
Optimal Control, vol. 1, section 3.1, http://www.athenasc.com/dpbook.html

    x' = A x + B u + w,   cost Σ_t γᵗ (xᵀ Q x + uᵀ R u),   the least of it from x: xᵀ P x + constant

    K = γ (R + γ Bᵀ P B)⁻¹ Bᵀ P A,   u = -K x
    P ← Q + γ Aᵀ P (A - B K)                                                (Riccati's equation)

One update is one Riccati step, backwards in time from P = 0. An infinite horizon has the last gain;
a finite one the gain of each of its steps, which `act` cannot play, as nobody tells it the time.
`--identify` first acts at random and fits A and B by least squares, which Riccati's equation then
takes for the truth (certainty equivalence; Mania et al. 2019, https://arxiv.org/abs/1902.07826).
`episode_return` is an expectation, exactly. In Random-linear every seed has its own system, and no
environment exists to play it in, so the final evaluation is left out.

Departs from the book: a discount; a fixed number of steps, of which the metric `riccati_residual`
tells when they are enough. JAX_ENABLE_X64=1 gives float64.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from common.algorithm import Algorithm, require
from common.environments.linear import (
    LINEAR,
    System,
    as_floats,
    first_state,
    make_system,
    next_state,
    solve,
)
from common.networks import orthonormal
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "DoubleIntegrator-linear"  # any <name>-linear
    num_steps: int = 50  # Riccati steps; the length of a finite horizon
    horizon: Literal["infinite", "finite"] = "infinite"  # one gain, or one for each step
    gamma: float = 1.0  # discount factor
    identify: bool = False  # fit A and B to transitions under random actions
    num_transitions: int = 200  # of these

    def __post_init__(self):
        require(self, "num_steps >= 1", "0 <= gamma <= 1", "num_transitions >= 1")


class Params(NamedTuple):
    P: jax.Array  # [n, n]
    gains: jax.Array  # [T, m, n] of the steps of a finite horizon, or T = 1


class State(NamedTuple):
    params: Params
    system: System  # the true one
    model: System  # what Riccati's equation is given
    best_cost: jax.Array  # expected discounted cost of an episode with the true system's gains


def gain(system: System, P, gamma) -> jax.Array:
    """K = γ (R + γ Bᵀ P B)⁻¹ Bᵀ P A, [m, n]."""
    A, B, _, R, *_ = system
    return gamma * solve(R + gamma * B.T @ P @ B, B.T @ P @ A)


def riccati(system: System, P, K, gamma) -> jax.Array:
    """Q + γ Aᵀ P (A - B K), made symmetric, [n, n]."""
    A, B, Q, *_ = system
    P = Q + gamma * A.T @ P @ (A - B @ K)
    return (P + P.T) / 2


def step_back(system: System, params: Params, step, gamma) -> Params:
    """The gain of the step before, `step` steps from the end, and its P."""
    K = gain(system, params.P, gamma)
    last = len(params.gains) - 1
    gains = params.gains.at[jnp.maximum(last - step, 0)].set(K)
    return Params(riccati(system, params.P, K, gamma), gains)


def start_cost(system: System, P) -> jax.Array:
    """E[xᵀ P x] of a first state."""
    return jnp.sum(jnp.diag(P) * jnp.square(system.start) / 3)


def expected_cost(system: System, gains, gamma) -> jax.Array:
    """E[Σ_t γᵗ (xᵀ Q x + uᵀ R u)] of u = -K_t x with gains [T, m, n], exactly: the covariance of x
    becomes (A - B K) Σ (A - B K)ᵀ + diag(noise²)."""
    A, B, Q, R, noise, start = system

    def step(carry, K):
        covariance, discount = carry
        cost = discount * jnp.trace((Q + K.T @ R @ K) @ covariance)
        closed = A - B @ K
        covariance = closed @ covariance @ closed.T + jnp.diag(jnp.square(noise))
        return (covariance, discount * gamma), cost

    first = jnp.diag(jnp.square(start) / 3), jnp.ones(())
    return jnp.sum(jax.lax.scan(step, first, gains)[1])


def explore(system: System, key, num_transitions: int, max_steps: int, max_action: float):
    """x [T, n], u [T, m] and x' of uniformly random actions, with a first state again after every
    `max_steps` steps."""

    def step(x, inputs):
        t, key = inputs
        key_first, key_action, key_noise = jax.random.split(key, 3)
        x = jnp.where(t % max_steps == 0, first_state(system, key_first), x)
        shape = system.R.shape[:1]
        u = jax.random.uniform(key_action, shape, minval=-max_action, maxval=max_action)
        next_x = next_state(system, x, u, key_noise)
        return next_x, (x, u, next_x)

    inputs = jnp.arange(num_transitions), jax.random.split(key, num_transitions)
    return jax.lax.scan(step, jnp.zeros_like(system.start), inputs)[1]


def least_squares(system: System, x, u, next_x) -> System:
    """The system with argmin_{A,B} Σ |A x + B u - x'|² over transitions [T, ...]: of inputs [x, u]
    with orthonormal columns q, [A B]ᵀ = (qᵀ [x, u])⁻¹ qᵀ x'. The normal equations would square the
    condition number, which is large where an unstable system ran away."""
    inputs = jnp.concatenate([x, u], axis=1)
    q = orthonormal(inputs)
    A, B = jnp.split(solve(q.T @ inputs, q.T @ next_x).T, [x.shape[1]], axis=1)
    return system._replace(A=A, B=B)


def make(config: Config) -> Algorithm:
    num_unknowns = sum(jax.eval_shape(lambda: make_system(config.env_id)).B.shape)
    if config.num_transitions < num_unknowns:
        raise ValueError(
            f"--num-transitions {config.num_transitions}: {config.env_id} has {num_unknowns} "
            "unknowns in each row of A and B; give more transitions than that"
        )
    _, max_steps, max_action, is_random = LINEAR[config.env_id]
    finite = config.horizon == "finite"

    def played(params):
        """The gains of the steps of an episode."""
        _, *shape = params.gains.shape
        return params.gains if finite else jnp.broadcast_to(params.gains, (max_steps, *shape))

    def nothing(system):
        n, m = system.B.shape
        num_gains = config.num_steps if finite else 1
        return Params(jnp.zeros((n, n)), jnp.zeros((num_gains, m, n)))

    def init(key):
        key_system, key_explore = jax.random.split(key)
        system = as_floats(make_system(config.env_id, key_system))
        model = system
        if config.identify:
            data = explore(system, key_explore, config.num_transitions, max_steps, max_action)
            model = least_squares(system, *data)

        best = jax.lax.fori_loop(
            0,
            config.num_steps,
            lambda step, params: step_back(system, params, step, config.gamma),
            nothing(system),
        )
        cost = expected_cost(system, played(best), config.gamma)
        return State(nothing(system), system, model, cost)

    def update(state, step):
        params = step_back(state.model, state.params, step, config.gamma)
        gains, model, system = played(params), state.model, state.system
        errors = [jnp.abs(model.A - system.A), jnp.abs(model.B - system.B)]
        metrics = {
            "episode_return": -expected_cost(system, gains, 1.0),
            "value": -start_cost(system, params.P),
            "riccati_residual": jnp.max(jnp.abs(params.P - state.params.P)),
            "cost_ratio": expected_cost(system, gains, config.gamma) / state.best_cost,
            "model_error": jnp.max(jnp.concatenate(errors, axis=1)),
        }
        return state._replace(params=params), metrics

    def act(params, obs, key):
        return -params.gains[0] @ obs

    act = None if finite or is_random else act
    return Algorithm(init, update, act, config.num_steps, 1)


if __name__ == "__main__":
    main(Config, make)
