"""Differentiable model-predictive control (differentiable MPC).

Differs from lqr.py in bounds on the controls, as ilqr.py has them, and in the derivatives of a
plan with respect to its model: the model is learned from the plans of an expert.

Amos et al. 2018, Differentiable MPC for end-to-end planning and control,
https://arxiv.org/abs/1810.13400

    τ = argmin Σ_t ½ τ_tᵀ C_t τ_t + c_tᵀ τ_t,   τ_t = (x_t, u_t)
        with x_0 given, x_t+1 = F_t τ_t + f_t, -b ≤ u_t ≤ b                          (the plan)
    λ_t = (C_t τ_t + c_t)_x + (F_tᵀ λ_t+1)_x from λ_T = 0                            (multipliers)
    L(θ) = E[|u(θ) - u*|² + w |x(θ) - x*|²], means over steps and components         (imitation)

τ is where Newton's method stops, and its derivative that of this fixed point, whatever led to it:
∂L/∂τ goes backwards through one more LQR, in which controls at their bounds stay there,

    d = argmin Σ_t ½ d_tᵀ C_t d_t + (∂L/∂τ_t)ᵀ d_t
        with d_x,0 = 0, d_x,t+1 = F_t d_t, d_u = 0 where |u| = b
    δ_t = (C_t d_t + ∂L/∂τ_t)_x + (F_tᵀ δ_t+1)_x from δ_T = 0
    ∂L/∂C_t = ½ (d_t τ_tᵀ + τ_t d_tᵀ),   ∂L/∂F_t = δ_t+1 τ_tᵀ + λ_t+1 d_tᵀ
    ∂L/∂c_t = d_t,   ∂L/∂f_t = δ_t+1,   ∂L/∂x_0 = δ_0

Newton's step from τ is the same LQR with C_t τ_t + c_t for ∂L/∂τ_t. Which controls stay at their
bounds is found by active sets: those of a step that leave their bounds join them, and those with
a gradient to the inside are free again (Hintermüller et al. 2002,
https://doi.org/10.1137/S1052623401383558). Without bounds one step is exact.

The expert plans with the true system; what is learned is F = [A B], or C and c (of which the
expert's is 0), or both; the rest is known. C = G Gᵀ with a triangular G, whose diagonal is exp(g),
is positive definite. The MPC controller applies the first control of its plan, and plans again.

Departs from the paper: linear systems only, for which it is exact, without iLQR around it; active
sets for the projected Newton steps of its box-constrained iLQR; the expert's c is 0, where the
paper draws it; B starts at 0, not from N(0, 1): from there every control can find its sign, while
the effect of one that starts with the wrong sign is reduced by |B| → ∞; first states are uniform;
Adam with β₂ = .99 for RMSProp with this decay, which without momentum takes several times as many
steps; the network that the paper compares with is in benchmarks/differentiable_mpc.py.

In Random-linear and NearIdentity-linear, which no environment can play as every seed has its own
system, `act` is None; episodes are played in `update`.

Metrics: `loss`, L(θ), mean over the gradient steps (squared units); `test_loss`, of the controls
alone, at new first states; `model_error`, mean squared error of A, plus that of B, plus those of
C / tr C and c / tr C, as C is known at most up to a factor, divided by their sum at the start;
`episode_return`, mean return of the MPC controller in the true system; `cost_ratio`, the cost of
these episodes, divided by that of the expert as a controller; `value`, minus the mean cost of the
plans in the model; `found`, part of the plans whose active set was found: others have derivative 0.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.environments.linear import (
    LINEAR,
    System,
    first_state,
    make_system,
    next_state,
    solve,
    stage_cost,
)
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "NearIdentity-linear"  # any <name>-linear
    learn: Literal["dynamics", "cost", "both"] = "dynamics"  # what is learned; the rest is known
    horizon: int = 5  # steps of a plan, T
    max_action: float = 10.0  # bound of every control, b; the environment's own if that is lower
    newton_steps: int = 20  # at most, in the search for a plan
    num_demonstrations: int = 0  # plans of the expert; 0: new ones for every gradient step
    num_iterations: int = 100  # updates
    gradient_steps: int = 50  # in each update
    batch_size: int = 128  # plans in a gradient step, and episodes after each update
    learning_rate: float = 1e-2  # of Adam
    state_coef: float = 1.0  # weight of the states in the imitation loss, w; 0: only controls

    def __post_init__(self):
        require(self, "num_demonstrations >= 0", "max_action > 0")


class Problem(NamedTuple):
    """What a plan minimises: Σ_t ½ τ_tᵀ C_t τ_t + c_tᵀ τ_t, and x_t+1 = F_t τ_t + f_t."""

    C: jax.Array  # [T, n + m, n + m]
    c: jax.Array  # [T, n + m]
    F: jax.Array  # [T, n, n + m]
    f: jax.Array  # [T, n]
    x: jax.Array  # [n] x_0


class Model(NamedTuple):
    """θ; () for what is known."""

    dynamics: tuple = ()  # A [n, n], B [n, m]
    cost: tuple = ()  # G [n + m, n + m] with ln of its diagonal, c [n + m]


class State(NamedTuple):
    key: jax.Array
    params: Model
    opt_state: optax.OptState
    system: System  # the true one
    demonstrations: jax.Array | tuple  # [D, n] the first states of the expert's plans, or ()
    first_error: jax.Array  # of the first model


def lqr(C, F, slope, free) -> jax.Array:
    """d = argmin Σ_t ½ d_tᵀ C_t d_t + slope_tᵀ d_t with d_x,t+1 = F_t d_t from 0, [T, n + m].

    Controls that are not free, bool [T, m], stay 0.
    """
    n = F.shape[1]

    def back(value, inputs):
        V, v = value
        C, F, slope, free = inputs
        Q, q = C + F.T @ V @ F, slope + F.T @ v
        Quu = jnp.where(free[:, None] & free, Q[n:, n:], jnp.eye(len(free)))
        right = jnp.where(free[:, None], jnp.column_stack([Q[n:, :n], q[n:]]), 0)
        feedback = -solve(Quu, right)
        K, k = feedback[:, :n], feedback[:, n]
        V, v = Q[:n, :n] + Q[:n, n:] @ K, q[:n] + Q[:n, n:] @ k
        return ((V + V.T) / 2, v), (K, k)

    def forward(x, inputs):
        F, K, k = inputs
        d = jnp.concatenate([x, K @ x + k])
        return F @ d, d

    end = jnp.zeros((n, n)), jnp.zeros(n)
    _, (K, k) = jax.lax.scan(back, end, (C, F, slope, free), reverse=True)
    return jax.lax.scan(forward, end[1], (F, K, k))[1]


def trajectory(problem: Problem, u) -> jax.Array:
    """τ_t = (x_t, u_t) with x_t+1 = F_t τ_t + f_t, for controls [T, m]; [T, n + m]."""

    def step(x, inputs):
        F, f, u = inputs
        tau = jnp.concatenate([x, u])
        return F @ tau + f, tau

    return jax.lax.scan(step, problem.x, (problem.F, problem.f, u))[1]


def slopes(C, tau, c) -> jax.Array:
    """C_t τ_t + c_t, [T, n + m]."""
    return jnp.einsum("tij,tj->ti", C, tau) + c


def objective(tau, C, c) -> jax.Array:
    """Σ_t ½ τ_tᵀ C τ_t + cᵀ τ_t, []."""
    return jnp.sum(tau * (tau @ C / 2 + c))


def multipliers(F, slope) -> jax.Array:
    """λ_t = (slope_t + F_tᵀ λ_t+1)_x from λ_T = 0; λ_0 to λ_T, [T + 1, n]."""
    n = F.shape[1]

    def back(after, inputs):
        F, slope = inputs
        return ((slope + F.T @ after)[:n],) * 2

    end = jnp.zeros(n)
    before = jax.lax.scan(back, end, (F, slope), reverse=True)[1]
    return jnp.concatenate([before, end[None]])


def next_active(u, gradient, active, bound) -> jax.Array:
    """Return -1 or 1 for controls [T, m] that leave their bounds, or are pushed against them by the
    gradient of the cost; 0 for free ones."""
    leaves = jnp.sign(u) * (jnp.abs(u) > bound)
    stays = jnp.where(active * gradient < 0, active, 0)
    return jnp.where(active == 0, leaves, stays)


def search(problem: Problem, bound, newton_steps):
    """Return τ [T, n + m], which controls are at a bound, [T, m] of -1, 0 and 1, and whether these
    are the ones that should be."""
    C, c, F, _, x = problem
    n = len(x)

    def newton(carry):
        tau, active, _, i = carry
        u = jnp.where(active == 0, tau[:, n:], active * bound)
        tau = trajectory(problem, u)
        tau += lqr(C, F, slopes(C, tau, c), active == 0)
        slope = slopes(C, tau, c)
        after = multipliers(F, slope)[1:]
        gradient = (slope + jnp.einsum("tij,ti->tj", F, after))[:, n:]
        new = next_active(tau[:, n:], gradient, active, bound)
        return tau, new, jnp.all(new == active), i + 1

    def is_open(carry):
        *_, found, i = carry
        return ~found & (i < newton_steps)

    zero = jnp.zeros_like(c)
    start = zero, zero[:, n:], jnp.bool_(False), jnp.int32(0)
    tau, active, found, _ = jax.lax.while_loop(is_open, newton, start)
    return tau, active, found


@jax.custom_vjp
def plan(problem: Problem, bound, newton_steps):
    """Return τ [T, n + m], with the derivative of a fixed point, and whether it is one."""
    tau, _, found = search(problem, bound, newton_steps)
    return tau, found


def plan_forward(problem: Problem, bound, newton_steps):
    """Return the plan, and what its derivative needs."""
    tau, active, found = search(problem, bound, newton_steps)
    return (tau, found), (problem, tau, active == 0, found)


def plan_backward(kept, cotangents):
    """∂L/∂C, ∂L/∂c, ∂L/∂F, ∂L/∂f and ∂L/∂x_0 from ∂L/∂τ, by one more LQR."""
    (C, c, F, _, _), tau, free, found = kept
    slope = jnp.where(found, cotangents[0], 0)
    d = lqr(C, F, slope, free)
    multiplier = multipliers(F, slopes(C, tau, c))
    delta = multipliers(F, slopes(C, d, slope))
    outer = jax.vmap(jnp.outer)
    dC = (outer(d, tau) + outer(tau, d)) / 2
    dF = outer(delta[1:], tau) + outer(multiplier[1:], d)
    return Problem(dC, d, dF, delta[1:], delta[0]), None, None


plan.defvjp(plan_forward, plan_backward)


def draw_model(key, n: int, m: int, learn: str) -> Model:
    """A = I + .2 N, B = 0; ln of the diagonal of G, the rest of G, and c .2 N; N ~ N(0, 1)."""
    key_a, key_factor, key_c = jax.random.split(key, 3)
    A, B = jnp.eye(n) + 0.2 * jax.random.normal(key_a, (n, n)), jnp.zeros((n, m))
    G = 0.2 * jax.random.normal(key_factor, (n + m, n + m))
    c = 0.2 * jax.random.normal(key_c, (n + m,))
    return Model(() if learn == "cost" else (A, B), () if learn == "dynamics" else (G, c))


def matrices(model: Model, system: System):
    """C, c and F of the model, and where it has none those of the system: F = [A B] and
    ½ τᵀ C τ = xᵀ Q x + uᵀ R u."""
    A, B, Q, R, *_ = system
    F = jnp.concatenate(model.dynamics or (A, B), axis=1)
    if not model.cost:
        zero = jnp.zeros_like(B)
        return 2 * jnp.block([[Q, zero], [zero.T, R]]), jnp.zeros(F.shape[1]), F
    G, c = model.cost
    G = jnp.tril(G, -1) + jnp.diag(jnp.exp(jnp.diag(G)))
    return G @ G.T, c, F


def make_problem(C, c, F, x, horizon: int) -> Problem:
    """The same C, c and F at every step, and f = 0."""
    steps = [jnp.broadcast_to(y, (horizon, *y.shape)) for y in (C, c, F)]
    return Problem(*steps, jnp.zeros((horizon, len(x))), x)


def model_distance(model: Model, system: System) -> jax.Array:
    """Mean squared errors of A and B, and of C / tr C and c / tr C, added, []."""
    n = len(system.A)
    C, c, F = matrices(model, system)
    true_C, true_c, true_F = matrices(Model(), system)
    error_C = C / jnp.trace(C) - true_C / jnp.trace(true_C)
    errors = (F - true_F)[:, :n], (F - true_F)[:, n:], error_C, (c - true_c) / jnp.trace(C)
    return sum(jnp.mean(jnp.square(error)) for error in errors)


def imitation_loss(tau, expert_tau, n: int, state_coef) -> jax.Array:
    """|u - u*|² + w |x - x*|², means over the steps and components of two plans, []."""
    error = jnp.square(tau - expert_tau)
    return jnp.mean(error[:, n:]) + state_coef * jnp.mean(error[:, :n])


def make(config: Config) -> Algorithm:
    task = LINEAR.get(config.env_id)
    n, m = jax.eval_shape(lambda: make_system(config.env_id)).B.shape
    bound = jnp.minimum(config.max_action, task.max_action)
    optimizer = optax.adam(config.learning_rate, b2=0.99)

    def plan_from(model, system, x):
        problem = make_problem(*matrices(model, system), x, config.horizon)
        return plan(problem, bound, config.newton_steps)

    def first_states(system, key, num):
        return jax.vmap(lambda key: first_state(system, key))(jax.random.split(key, num))

    def loss(model, system, x):
        """Return the mean imitation loss at first states [B, n], and the part of plans found."""

        def one(x):
            expert_tau, expert_found = plan_from(Model(), system, x)
            tau, found = plan_from(model, system, x)
            return imitation_loss(tau, expert_tau, n, config.state_coef), found & expert_found

        losses, found = jax.vmap(one)(x)
        return jnp.mean(losses), jnp.mean(found, dtype=losses.dtype)

    def play(model, system, x, key):
        """Return the costs of an episode from x, and the first plan, of the MPC controller of the
        model and of that of the expert."""
        pairs = zip(matrices(model, system), matrices(Model(), system), strict=True)
        C, c, F = (jnp.stack(pair) for pair in pairs)

        def step(x, t):
            problems = jax.vmap(make_problem, (0, 0, 0, 0, None))(C, c, F, x, config.horizon)
            tau, _ = jax.vmap(plan, (0, None, None))(problems, bound, config.newton_steps)
            u = tau[:, 0, n:]
            costs = jax.vmap(stage_cost, (None, 0, 0))(system, x, u)
            key_noise = jax.random.fold_in(key, t)
            x = jax.vmap(next_state, (None, 0, 0, None))(system, x, u, key_noise)
            return x, (costs, tau)

        _, (costs, tau) = jax.lax.scan(step, jnp.stack([x, x]), jnp.arange(task.max_steps))
        return jnp.sum(costs, axis=0), tau[0]

    def init(key):
        key, key_system, key_model, key_start = jax.random.split(key, 4)
        system = make_system(config.env_id, key_system)
        model = draw_model(key_model, n, m, config.learn)
        demonstrations = ()
        if config.num_demonstrations:
            demonstrations = first_states(system, key_start, config.num_demonstrations)
        error = model_distance(model, system)
        return State(key, model, optimizer.init(model), system, demonstrations, error)

    def update(state, step):
        key_learn, key_start, key_play = jax.random.split(jax.random.fold_in(state.key, step), 3)
        system = state.system

        def sample(key):
            if not config.num_demonstrations:
                return first_states(system, key, config.batch_size)
            index = jax.random.randint(key, (config.batch_size,), 0, config.num_demonstrations)
            return state.demonstrations[index]

        def gradient_step(carry, i):
            model, opt_state = carry
            x = sample(jax.random.fold_in(key_learn, i))
            loss_and_grads = jax.value_and_grad(loss, has_aux=True)
            (loss_value, found), grads = loss_and_grads(model, system, x)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(model, updates), opt_state), (loss_value, found)

        start, steps = (state.params, state.opt_state), jnp.arange(config.gradient_steps)
        (model, opt_state), (losses, found) = jax.lax.scan(gradient_step, start, steps)

        x = first_states(system, key_start, config.batch_size)
        keys = jax.random.split(key_play, config.batch_size)
        costs, tau = jax.vmap(play, (None, None, 0, 0))(model, system, x, keys)
        cost, expert_cost = jnp.mean(costs, axis=0)
        C, c, _ = matrices(model, system)
        planned = jax.vmap(objective, (0, None, None))(tau[:, 0], C, c)
        test_losses = jax.vmap(imitation_loss, (0, 0, None, None))(tau[:, 0], tau[:, 1], n, 0.0)
        metrics = {
            "episode_return": -cost,
            "cost_ratio": cost / expert_cost,
            "value": -jnp.mean(planned),
            "loss": jnp.mean(losses),
            "test_loss": jnp.mean(test_losses),
            "model_error": model_distance(model, system) / state.first_error,
            "found": jnp.mean(found),
        }
        return state._replace(params=model, opt_state=opt_state), metrics

    def act(params, obs, key):
        tau, _ = plan_from(params, make_system(config.env_id), obs)
        return tau[0, n:]

    act = None if task.random else act
    return Algorithm(init, update, act, config.num_iterations, 1)


if __name__ == "__main__":
    main(Config, make)
