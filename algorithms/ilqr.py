"""Iterative linear-quadratic regulator (iLQR), with bounds on the controls.

Li & Todorov 2004, Iterative linear quadratic regulator, https://doi.org/10.5220/0001143902220229
Tassa et al. 2012, Synthesis and stabilization, https://doi.org/10.1109/IROS.2012.6386025; and 2014,
Control-limited differential dynamic programming, https://doi.org/10.1109/ICRA.2014.6907001

    Q_x = l_x + f_xᵀ V'_x,   Q_u = l_u + f_uᵀ V'_x,   Q_xx = l_xx + f_xᵀ V'_xx f_x
    Q_uu = l_uu + f_uᵀ V'_xx f_u,   Q_ux = l_ux + f_uᵀ V'_xx f_x             (2012, eq. 5)
    Q̃_uu = Q_uu + μ f_uᵀ f_u,   Q̃_ux = Q_ux + μ f_uᵀ f_x                     (2012, eq. 10)
    k = argmin ½ kᵀ Q̃_uu k + kᵀ Q_u with low ≤ u + k ≤ high                  (2014)
    K = -Q̃_uu⁻¹ Q̃_ux for the controls inside their bounds, else 0            (2014)
    V_x = Q_x + Kᵀ Q_uu k + Kᵀ Q_u + Q_uxᵀ k,   V_xx likewise                (2012, eq. 11)
    û = u + α k + K (x̂ - x)                                                  (2012, eq. 12)

with cost l = -reward, and f the environment's own step, differentiated. Each seed draws start
states and plans a whole episode from each of them; one update is one iteration of all plans.

Departs from the papers: no second derivatives of f (as in 2004); initial plans by random shooting,
without which Pendulum does not swing up; μ changes by a constant factor, once an iteration: where
Q̃_uu is not positive definite, that iteration fails; the line search takes the best α, not the first
that is good enough, and accepts it if it raises the return by a fraction of at least 1e-6; the
minimum within the bounds is exact for one control, and nearly always for more. JAX_ENABLE_X64=1
gives float64.

Metrics: `episode_return`, mean return that the environment gives to the best plan of each start;
`value`, mean return that these plans predict; `improved`, the part of all plans that this iteration
improved.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from common.algorithm import Algorithm, require
from common.environments.dynamics import Dynamics, make_dynamics
from common.environments.linear import solve
from common.envs import EnvState, make_env
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "Pendulum-v1"  # one with transition gradients in gymnax, or any <name>-linear
    num_iterations: int = 30  # of every plan
    num_starts: int = 100  # states to plan from
    num_initial_plans: int = 2  # plans for each start, of which the best is executed
    num_samples: int = 64  # control sequences sampled for each block of an initial plan
    shooting_horizon: int = 10  # blocks in such a sequence
    action_repeat: int = 4  # steps in a block, during which the control is constant
    num_step_sizes: int = 8  # α = 1, 1/2, 1/4, ... that are tried
    regularization_factor: float = 10.0  # μ is multiplied by it after a failure, else divided

    def __post_init__(self):
        require(self, "shooting_horizon >= 1", "action_repeat >= 1", "regularization_factor > 1")


class Plan(NamedTuple):
    x: jax.Array  # [T, n] states in which the controls act
    controls: jax.Array  # [T, m]
    gains: jax.Array  # [T, m, n] K
    total: jax.Array  # return


class State(NamedTuple):
    key: jax.Array
    params: Plan  # [N, G, ...] for G initial plans from each of N starts
    mu: jax.Array  # [N, G]
    starts: EnvState  # [N]


class Expansion(NamedTuple):
    """Derivatives of the dynamics f(x, u) and of the cost l(x, u)."""

    fx: jax.Array  # [n, n]
    fu: jax.Array  # [n, m]
    lx: jax.Array  # [n]
    lu: jax.Array  # [m]
    lxx: jax.Array  # [n, n]
    lux: jax.Array  # [m, n]
    luu: jax.Array  # [m, m]


def simulate(dynamics: Dynamics, x, policy: Callable, inputs):
    """Apply `policy(x, input) -> control` for each of the inputs [T, ...], from state x [n].

    Returns the last state, the return up to the end of the episode, and the states [T, n] and
    controls [T, m] along the way.
    """

    def step(carry, policy_input):
        x, active, total = carry
        control = policy(x, policy_input)
        next_x, reward, terminated = dynamics.step(x, control)
        total += jnp.where(active, reward, 0)
        return (next_x, active & ~terminated, total), (x, control)

    start = x, jnp.bool_(True), jnp.zeros(())
    (last_x, _, total), (states, controls) = jax.lax.scan(step, start, inputs)
    return last_x, total, states, controls


def expand(dynamics: Dynamics, x, u) -> Expansion:
    """f_x, f_u, l_x, l_u, l_xx, l_ux, l_uu at x [n] and u [m]."""

    def f(x, u):
        next_x, _, _ = dynamics.step(x, u)
        return next_x

    def cost(x, u):
        _, reward, _ = dynamics.step(x, u)
        return -reward

    fx, fu = jax.jacfwd(f, (0, 1))(x, u)
    lx, lu = jax.grad(cost, (0, 1))(x, u)
    (lxx, _), (lux, luu) = jax.hessian(cost, (0, 1))(x, u)
    return Expansion(fx, fu, lx, lu, lxx, lux, luu)


def boxed_newton(H, g, low, high):
    """argmin ½ kᵀ H k + gᵀ k with low ≤ k ≤ high, where low ≤ 0 ≤ high; all [m], H [m, m].

    By projected Newton steps, exact for m = 1. Also returns which components are free, bool [m]:
    inside their bounds, or pulled inside by the gradient.
    """

    def is_free(k):
        gradient = H @ k + g
        return ~((k <= low) & (gradient > 0) | (k >= high) & (gradient < 0))

    k = jnp.zeros_like(g)
    for _ in range(2 * len(g) - 1):
        newton_step = solve_free(H, (H @ k + g)[:, None], is_free(k))[:, 0]
        k = jnp.clip(k - newton_step, low, high)
    return k, is_free(k)


def free_part(H, free) -> jax.Array:
    """The free rows and columns of H [m, m], free: bool [m]; those of the identity elsewhere."""
    return jnp.where(free[:, None] & free, H, jnp.eye(len(H)))


def solve_free(H, right, free) -> jax.Array:
    """H⁻¹ right [m, k] for the free rows and columns of H [m, m], free: bool [m]; else 0."""
    return solve(free_part(H, free), jnp.where(free[:, None], right, 0))


def is_positive_definite(H) -> jax.Array:
    """Return whether all pivots of Gaussian elimination are above 0, for a symmetric H [m, m]."""
    pivots = []
    for i in range(len(H)):
        pivots.append(H[i, i])
        H = H - jnp.outer(H[:, i], H[i]) / H[i, i]
    return jnp.all(jnp.array(pivots) > 0)


def backward(expansions: Expansion, controls, mu, low, high):
    """k [T, m] and K [T, m, n] for expansions [T, ...] and controls [T, m]; V = 0 at the end.

    Also returns whether Q̃_uu of the free controls is positive definite, bool [T].
    """

    def step(value, inputs):
        Vx, Vxx = value
        d, u = inputs
        Qx, Qu = d.lx + d.fx.T @ Vx, d.lu + d.fu.T @ Vx
        Qxx = d.lxx + d.fx.T @ Vxx @ d.fx
        Qux = d.lux + d.fu.T @ Vxx @ d.fx
        Quu = d.luu + d.fu.T @ Vxx @ d.fu
        regularized_Quu = Quu + mu * d.fu.T @ d.fu
        regularized_Qux = Qux + mu * d.fu.T @ d.fx
        k, free = boxed_newton(regularized_Quu, Qu, low - u, high - u)
        K = -solve_free(regularized_Quu, regularized_Qux, free)
        Vx = Qx + K.T @ Quu @ k + K.T @ Qu + Qux.T @ k
        Vxx = Qxx + K.T @ Quu @ K + K.T @ Qux + Qux.T @ K
        definite = is_positive_definite(free_part(regularized_Quu, free))
        return (Vx, (Vxx + Vxx.T) / 2), (k, K, definite)

    end_value = jnp.zeros(expansions.lx.shape[1:]), jnp.zeros(expansions.lxx.shape[1:])
    return jax.lax.scan(step, end_value, (expansions, controls), reverse=True)[1]


def forward(dynamics: Dynamics, plan: Plan, k, gains, alpha, bounds) -> Plan:
    """û = u + α k + K (x̂ - x) within the bounds (low, high); k [T, m], K: gains [T, m, n]."""

    def policy(x, policy_input):
        planned_x, control, k, K = policy_input
        return jnp.clip(control + alpha * k + K @ (x - planned_x), *bounds)

    inputs = plan.x, plan.controls, k, gains
    _, total, x, controls = simulate(dynamics, plan.x[0], policy, inputs)
    return Plan(x, controls, gains, total)


def make(config: Config) -> Algorithm:
    env = make_env(config.env_id, config.num_starts, actions="continuous")
    dynamics = make_dynamics(config.env_id)
    # At its very bounds, where the environment clips it, a control has derivative 0.
    midpoint = (env.action_high + env.action_low) / 2
    half_range = (env.action_high - env.action_low) / 2
    low, high = midpoint - 0.9999 * half_range, midpoint + 0.9999 * half_range
    num_blocks = -(-env.max_steps // config.action_repeat)

    def play(x, controls):
        return simulate(dynamics, x, lambda x, control: control, controls)

    def initial_plan(key, start) -> Plan:
        """Plan by random shooting, block by block, from state `start` [n].

        For each block, sequences of constant controls are sampled, and the first block of the best
        one is applied. Samples are the previous best, shifted, with between none and all of its
        blocks replaced by random ones.
        """
        shape = config.num_samples, config.shooting_horizon, *env.action_shape
        share_replaced = jnp.linspace(0, 1, config.num_samples)[:, None, None]

        def repeat(blocks):
            return jnp.repeat(blocks, config.action_repeat, axis=0)

        def block(carry, _):
            x, previous, key = carry
            key, key_replace, key_control = jax.random.split(key, 3)
            controls = jax.random.uniform(key_control, shape, minval=-1.0)
            replacements = midpoint + 2 * half_range * controls
            is_replaced = jax.random.uniform(key_replace, shape) < share_replaced
            shifted = jnp.concatenate([previous[1:], jnp.zeros_like(previous[:1])])
            sequences = jnp.clip(jnp.where(is_replaced, replacements, shifted), low, high)
            totals = jax.vmap(lambda blocks: play(x, repeat(blocks))[1])(sequences)
            best = sequences[jnp.argmax(totals)]
            first_block = repeat(best[:1])
            next_x, _, _, _ = play(x, first_block)
            return (next_x, best, key), first_block

        carry = start, jnp.zeros(shape[1:]), key
        _, controls = jax.lax.scan(block, carry, length=num_blocks)
        _, total, x, controls = play(start, jnp.concatenate(controls)[: env.max_steps])
        return Plan(x, controls, jnp.zeros((*controls.shape, x.shape[-1])), total)

    def improve(plan: Plan, mu):
        """Return the plan and its μ after one iteration."""
        expansions = jax.vmap(lambda x, u: expand(dynamics, x, u))(plan.x, plan.controls)
        k, gains, definite = backward(expansions, plan.controls, mu, low, high)

        def line_search(alpha):
            return forward(dynamics, plan, k, gains, alpha, (low, high))

        step_sizes = 0.5 ** jnp.arange(config.num_step_sizes)
        totals = jax.vmap(lambda alpha: line_search(alpha).total)(step_sizes)
        best = jnp.argmax(jnp.where(jnp.isnan(totals), -jnp.inf, totals))
        candidate = line_search(step_sizes[best])
        is_better = candidate.total > plan.total + 1e-6 * jnp.abs(plan.total)
        is_better &= jnp.all(definite)
        plan = jax.tree.map(lambda new, old: jnp.where(is_better, new, old), candidate, plan)
        factor = config.regularization_factor
        mu = jnp.where(is_better, mu / factor, mu * factor)
        return plan, jnp.where(is_better & (mu < 1e-6), 0, jnp.clip(mu, 1e-6, 1e6))

    def best_of(plans: Plan) -> Plan:
        """Return the plan of each start with the highest return, [N, ...]."""
        choice = jnp.argmax(plans.total, axis=1)
        return jax.tree.map(lambda x: jax.vmap(lambda row, i: row[i])(x, choice), plans)

    def execute(plan: Plan, starts: EnvState, key):
        """Execute plans [N, ...] with their feedback in the environment.

        Returns the returns [N], the states [T, N, n] and the controls [T, N, m].
        """

        def step(carry, inputs):
            env_state, returns = carry
            planned_x, control, K, key = inputs
            x = jax.vmap(dynamics.numbers)(env_state.inner)
            feedback = jnp.einsum("nij,nj->ni", K, x - planned_x)
            control = jnp.clip(control + feedback, low, high)
            env_state, _ = env.step(env_state, control, key)
            total, *_, done = env_state.episode
            ends = jnp.isnan(returns) & done  # the first episode that ends counts
            returns = jnp.where(ends, total, returns)
            return (env_state, returns), (x, control)

        time_first = [jnp.moveaxis(x, 1, 0) for x in (plan.x, plan.controls, plan.gains)]
        keys = jax.random.split(key, env.max_steps)
        carry = starts, jnp.full(config.num_starts, jnp.nan)
        (_, returns), (x, controls) = jax.lax.scan(step, carry, (*time_first, keys))
        return returns, x, controls

    def init(key):
        key, key_env, key_plan = jax.random.split(key, 3)
        starts = env.reset(key_env)
        keys = jax.random.split(key_plan, (config.num_starts, config.num_initial_plans))
        x = jax.vmap(dynamics.numbers)(starts.inner)
        plans = jax.vmap(jax.vmap(initial_plan, (0, None)))(keys, x)
        return State(key, params=plans, mu=jnp.zeros(keys.shape), starts=starts)

    def update(state, step):
        plans, mu = jax.vmap(jax.vmap(improve))(state.params, state.mu)
        best = best_of(plans)
        returns, _, _ = execute(best, state.starts, jax.random.fold_in(state.key, step))
        metrics = {
            "episode_return": jnp.mean(returns),
            "value": jnp.mean(best.total),
            "improved": jnp.mean(plans.total > state.params.total, dtype=best.total.dtype),
        }
        return State(state.key, plans, mu, state.starts), metrics

    def picture(state):
        """Return states and controls, planned and realised, of the start with the lowest return."""
        best = best_of(state.params)
        key = jax.random.fold_in(state.key, config.num_iterations)
        returns, x, controls = execute(best, state.starts, key)
        worst = jnp.argmin(returns)
        names = [f"x[{i}]" for i in range(x.shape[-1])]
        names += [f"u[{i}]" for i in range(controls.shape[-1])]
        return {
            "names": names,
            "realised": jnp.concatenate([x, controls], axis=-1)[:, worst],
            "planned": jnp.concatenate([best.x, best.controls], axis=-1)[worst][None],
            "start": jnp.zeros(1, int),
            "title": "the plan with the lowest return",
        }

    return Algorithm(init, update, None, config.num_iterations, 1, picture=picture)


if __name__ == "__main__":
    main(Config, make)
