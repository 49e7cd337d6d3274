"""Linear-quadratic regulator (LQR), with a known model or one fitted to transitions.

Kalman 1960, Contributions to the theory of optimal control; Bertsekas 2017, Dynamic Programming and
Optimal Control, vol. 1, section 3.1, http://www.athenasc.com/dpbook.html

    x' = A x + B u + w,   cost Σ_t γᵗ (xᵀ Q x + uᵀ R u),   lowest cost from x: xᵀ P x + c

    K = γ (R + γ Bᵀ P B)⁻¹ Bᵀ P A,   u = -K x
    c ← γ (c + E[wᵀ P w])
    P ← Q + γ Aᵀ P (A - B K)                                                (Riccati equation)

One update is one Riccati step, backwards in time from P = 0 and c = 0: after k updates the lowest
cost is that of k steps. With an infinite horizon the last gain
is used at every step; with a finite one each step has its own, and as `act` does not know the time
step, it is None. `--fit-model` takes random actions and fits A and B by least squares; Riccati's
equation then uses the fitted model as if it were exact (certainty equivalence; Mania et al. 2019,
https://arxiv.org/abs/1902.07826). In Random-linear every seed has its own system, which no
environment can play, so `act` is None there, too.

Departs from the book: a discount; a fixed number of Riccati steps (`riccati_residual` shows whether
they suffice). JAX_ENABLE_X64=1 gives float64.

Metrics: `episode_return`, minus the expected cost of an episode, without a discount; `value`, minus
the lowest expected cost of k steps in the model (discounted); `riccati_residual`, largest change of
an entry of P; `cost_ratio`, the expected discounted cost of an episode, divided by the lowest one,
in which every step has its own gain; `model_error`, largest error of an entry of A and B.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from common.algorithm import Algorithm, require
from common.distributions import orthonormalize
from common.environments.linear import (
    LINEAR,
    System,
    first_state,
    make_system,
    next_state,
    solve,
)
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "DoubleIntegrator-linear"  # any <name>-linear
    num_riccati_steps: int = 50  # also the length of a finite horizon
    horizon: Literal["infinite", "finite"] = "infinite"  # one gain, or one for each step
    gamma: float = 1.0  # discount factor
    fit_model: bool = False  # fit A and B to transitions under random actions
    num_transitions: int = 200  # to which the model is fitted

    def __post_init__(self):
        require(self, "horizon in ('infinite', 'finite')")  # not a number of steps here


class Params(NamedTuple):
    P: jax.Array  # [n, n]
    c: jax.Array  # [] cost of the noise
    gains: jax.Array  # [T, m, n]: K of each step of a finite horizon, or T = 1


class State(NamedTuple):
    params: Params
    system: System  # the true one
    model: System  # the one that the Riccati equation uses
    best_cost: jax.Array  # lowest expected discounted cost of an episode, in the true system


def gain(system: System, P, gamma) -> jax.Array:
    """K = γ (R + γ Bᵀ P B)⁻¹ Bᵀ P A, [m, n]."""
    A, B, R = system.A, system.B, system.R
    return gamma * solve(R + gamma * B.T @ P @ B, B.T @ P @ A)


def riccati(system: System, P, K, gamma) -> jax.Array:
    """Q + γ Aᵀ P (A - B K), made symmetric, [n, n]."""
    A, B, Q = system.A, system.B, system.Q
    P = Q + gamma * A.T @ P @ (A - B @ K)
    return (P + P.T) / 2


def step_back(system: System, params: Params, step, gamma) -> Params:
    """Take Riccati step number `step`, counted from the end of the horizon, and store its gain."""
    K = gain(system, params.P, gamma)
    c = gamma * (params.c + jnp.sum(jnp.diag(params.P) * jnp.square(system.noise)))
    last = len(params.gains) - 1
    gains = params.gains.at[jnp.maximum(last - step, 0)].set(K)
    return Params(riccati(system, params.P, K, gamma), c, gains)


def start_cost(system: System, P, c) -> jax.Array:
    """E[xᵀ P x] + c over first states, []."""
    return jnp.sum(jnp.diag(P) * jnp.square(system.start) / 3) + c


def expected_cost(system: System, gains, gamma) -> jax.Array:
    """E[Σ_t γᵗ (xᵀ Q x + uᵀ R u)] of u = -K_t x with gains [T, m, n], []; exact.

    The covariance of x follows Σ ← (A - B K) Σ (A - B K)ᵀ + diag(noise²).
    """
    A, B, Q, R = system.A, system.B, system.Q, system.R

    def step(carry, K):
        covariance, discount = carry
        cost = discount * jnp.trace((Q + K.T @ R @ K) @ covariance)
        closed_loop = A - B @ K
        covariance = closed_loop @ covariance @ closed_loop.T + jnp.diag(jnp.square(system.noise))
        return (covariance, discount * gamma), cost

    start = jnp.diag(jnp.square(system.start) / 3), jnp.ones(())
    return jnp.sum(jax.lax.scan(step, start, gains)[1])


def explore(system: System, key, num_transitions: int, max_steps: int, max_action: float):
    """Take uniformly random actions; a new episode begins after every `max_steps` steps.

    Returns x [T, n], u [T, m] and x' [T, n].
    """

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
    """argmin_{A,B} Σ |A x + B u - x'|² over transitions [T, ...]; the system with A and B replaced.

    With orthonormal columns q of the inputs [x, u], [A B]ᵀ = (qᵀ [x, u])⁻¹ qᵀ x'. The normal
    equations would square the condition number, which is large if an unstable system diverged.
    """
    inputs = jnp.concatenate([x, u], axis=1)
    q = orthonormalize(inputs)
    A, B = jnp.split(solve(q.T @ inputs, q.T @ next_x).T, [x.shape[1]], axis=1)
    return system._replace(A=A, B=B)


def make(config: Config) -> Algorithm:
    num_unknowns = sum(jax.eval_shape(lambda: make_system(config.env_id)).B.shape)
    if config.num_transitions < num_unknowns:
        raise ValueError(
            f"--num-transitions {config.num_transitions}: {config.env_id} has {num_unknowns} "
            "unknowns in each row of A and B; give more transitions than that"
        )
    task = LINEAR[config.env_id]
    is_finite = config.horizon == "finite"

    def episode_gains(params):
        """Return the gain of each step of an episode, [T, m, n]."""
        if is_finite:
            return params.gains
        return jnp.broadcast_to(params.gains, (task.max_steps, *params.gains.shape[1:]))

    def zero_params(system, num_gains):
        n, m = system.B.shape
        return Params(jnp.zeros((n, n)), jnp.zeros(()), jnp.zeros((num_gains, m, n)))

    def lowest_cost(system):
        def step(i, params):
            return step_back(system, params, i, config.gamma)

        num_steps = config.num_riccati_steps if is_finite else task.max_steps
        params = jax.lax.fori_loop(0, num_steps, step, zero_params(system, num_steps))
        return start_cost(system, params.P, params.c)

    def init(key):
        key_system, key_explore = jax.random.split(key)
        system = make_system(config.env_id, key_system)
        model = system
        if config.fit_model:
            x, u, next_x = explore(
                system, key_explore, config.num_transitions, task.max_steps, task.max_action
            )
            model = least_squares(system, x, u, next_x)
        num_gains = config.num_riccati_steps if is_finite else 1
        return State(zero_params(system, num_gains), system, model, lowest_cost(system))

    def update(state, step):
        system, model = state.system, state.model
        params = step_back(model, state.params, step, config.gamma)
        gains = episode_gains(params)
        errors = [jnp.abs(model.A - system.A), jnp.abs(model.B - system.B)]
        metrics = {
            "episode_return": -expected_cost(system, gains, 1.0),
            "value": -start_cost(system, params.P, params.c),
            "riccati_residual": jnp.max(jnp.abs(params.P - state.params.P)),
            "cost_ratio": expected_cost(system, gains, config.gamma) / state.best_cost,
            "model_error": jnp.max(jnp.concatenate(errors, axis=1)),
        }
        return state._replace(params=params), metrics

    def act(params, obs, key):
        return -params.gains[0] @ obs

    act = None if is_finite or task.random else act
    return Algorithm(init, update, act, config.num_riccati_steps, 1)


if __name__ == "__main__":
    main(Config, make)
