"""Iterative linear-quadratic regulator (iLQR), with bounds on the controls.

Li & Todorov 2004, Iterative linear quadratic regulator, https://doi.org/10.5220/0001143902220229
Tassa et al. 2012, Synthesis and stabilization, https://doi.org/10.1109/IROS.2012.6386025; and 2014,
Control-limited differential dynamic programming, https://doi.org/10.1109/ICRA.2014.6907001

    Q_x = l_x + f_xᵀ V'_x,   Q_u = l_u + f_uᵀ V'_x,   Q_xx = l_xx + f_xᵀ V'_xx f_x
    Q_uu = l_uu + f_uᵀ V'_xx f_u,   Q_ux = l_ux + f_uᵀ V'_xx f_x             (2012, eq. 5)
    Q̃_uu = Q_uu + μ f_uᵀ f_u,   Q̃_ux = Q_ux + μ f_uᵀ f_x                     (2012, eq. 10)
    k = argmin ½ kᵀ Q̃_uu k + kᵀ Q_u with low ≤ u + k ≤ high                  (2014)
    K = -Q̃_uu⁻¹ Q̃_ux, for the controls that k leaves free, else 0            (2014)
    V_x = Q_x + Kᵀ Q_uu k + Kᵀ Q_u + Q_uxᵀ k,   V_xx likewise                (2012, eq. 11)
    û = u + α k + K (x̂ - x)                                                  (2012, eq. 12)

with cost l = -reward, and f the environment's own step, differentiated. Each seed draws starts and
plans a whole episode from each of them; one update is one iteration of all plans. `value` is what
the best plan of each start promises, `episode_return` what the environment then pays for it.

Departs from the papers: no second derivatives of f (as in 2004); the first plans are found by
random shooting, without which Pendulum's do not swing up; μ changes by a constant factor; a step is
taken if it raises the return by 1e-6 of it. JAX_ENABLE_X64=1 gives float64.
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
    env_id: str = "Pendulum-v1"  # one with transition gradients in gymnax
    num_iterations: int = 30  # of every plan
    num_starts: int = 100  # states to plan from
    num_guesses: int = 2  # plans for each start, of which the best is played
    num_samples: int = 64  # random sequences of controls, for each block of a first plan
    lookahead: int = 10  # blocks in such a sequence
    hold: int = 4  # steps in a block, for which a random control is held
    num_step_sizes: int = 8  # α = 1, 1/2, 1/4, ... that are tried
    regularization_factor: float = 10.0  # μ times it after a failure, else divided by it

    def __post_init__(self):
        require(
            self,
            "num_iterations >= 1",
            "num_starts >= 1",
            "num_guesses >= 1",
            "num_samples >= 1",
            "lookahead >= 1",
            "hold >= 1",
            "num_step_sizes >= 1",
            "regularization_factor > 1",
        )


class Plan(NamedTuple):
    x: jax.Array  # [T, n] real numbers of the states in which the controls act
    controls: jax.Array  # [T, m]
    gains: jax.Array  # [T, m, n] K
    total: jax.Array  # return


class State(NamedTuple):
    key: jax.Array
    params: Plan  # [N, G, ...] for G guesses from each of N starts
    mu: jax.Array  # [N, G]
    starts: EnvState  # [N]


def simulate(dynamics: Dynamics, x, policy: Callable, inputs):
    """`policy(x, input) -> control` for each of the inputs [T, ...]: the last state, the return
    until the episode is terminated, and the states [T, n] and controls [T, m] on the way."""

    def step(carry, given):
        x, alive, total = carry
        control = policy(x, given)
        after, reward, terminated = dynamics.step(x, control)
        total += jnp.where(alive, reward, 0)
        return (after, alive & ~terminated, total), (x, control)

    (x, _, total), way = jax.lax.scan(step, (x, jnp.bool_(True), jnp.zeros(())), inputs)
    return x, total, *way


def expand(dynamics: Dynamics, x, u):
    """f_x, f_u, l_x, l_u, l_xx, l_ux, l_uu at x and u."""
    f, cost = (lambda x, u: dynamics.step(x, u)[0]), (lambda x, u: -dynamics.step(x, u)[1])
    (lxx, _), (lux, luu) = jax.hessian(cost, (0, 1))(x, u)
    return *jax.jacfwd(f, (0, 1))(x, u), *jax.grad(cost, (0, 1))(x, u), lxx, lux, luu


def boxed_newton(H, g, low, high):
    """argmin ½ kᵀ H k + gᵀ k with low ≤ k ≤ high, where low ≤ 0 ≤ high, by projected Newton steps
    (exact for one control); and which components are free: inside, or drawn inside."""

    def free(k):
        gradient = H @ k + g
        return ~((k <= low) & (gradient > 0) | (k >= high) & (gradient < 0))

    k = jnp.zeros_like(g)
    for _ in range(2 * len(g) - 1):
        k = jnp.clip(k - solve_free(H, (H @ k + g)[:, None], free(k))[:, 0], low, high)
    return k, free(k)


def solve_free(H, right, free) -> jax.Array:
    """H⁻¹ right with the free rows and columns of H alone, and 0 in the other rows."""
    H = jnp.where(free[:, None] & free, H, jnp.eye(len(H)))
    return solve(H, jnp.where(free[:, None], right, 0))


def backward(expansions, controls, mu, low, high):
    """k [T, m] and K [T, m, n], from the last step, after which nothing is worth anything."""

    def step(value, inputs):
        Vx, Vxx = value
        (fx, fu, lx, lu, lxx, lux, luu), u = inputs
        Qx, Qu = lx + fx.T @ Vx, lu + fu.T @ Vx
        Qxx, Qux, Quu = lxx + fx.T @ Vxx @ fx, lux + fu.T @ Vxx @ fx, luu + fu.T @ Vxx @ fu
        regular = Quu + mu * fu.T @ fu
        k, free = boxed_newton(regular, Qu, low - u, high - u)
        K = -solve_free(regular, Qux + mu * fu.T @ fx, free)
        Vx = Qx + K.T @ Quu @ k + K.T @ Qu + Qux.T @ k
        Vxx = Qxx + K.T @ Quu @ K + K.T @ Qux + Qux.T @ K
        return (Vx, (Vxx + Vxx.T) / 2), (k, K)

    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape[1:]), (expansions[2], expansions[4]))
    return jax.lax.scan(step, nothing, (expansions, controls), reverse=True)[1]


def forward(dynamics: Dynamics, plan: Plan, k, gains, alpha, low, high) -> Plan:
    """The plan along û = u + α k + K (x̂ - x), within the bounds."""

    def policy(x, given):
        old, control, k, K = given
        return jnp.clip(control + alpha * k + K @ (x - old), low, high)

    _, total, x, controls = simulate(dynamics, plan.x[0], policy, (*plan[:2], k, gains))
    return Plan(x, controls, gains, total)


def make(config: Config) -> Algorithm:
    env = make_env(config.env_id, config.num_starts, actions="continuous")
    dynamics = make_dynamics(config.env_id)
    # At its very bounds, where the environment clips it, a control has derivative 0.
    middle, reach = (env.action_high + env.action_low) / 2, (env.action_high - env.action_low) / 2
    low, high = middle - 0.9999 * reach, middle + 0.9999 * reach

    def guess(key, start) -> Plan:
        """Random shooting, block by block: of sequences of held controls, the first block of the
        best is played. They are the last best, shifted, with few or many blocks drawn anew."""
        shape = config.num_samples, config.lookahead, *env.action_shape
        share = jnp.linspace(0, 1, config.num_samples)[:, None, None]
        held = lambda blocks: jnp.repeat(blocks, config.hold, axis=0)
        play = lambda x, controls: simulate(dynamics, x, lambda x, u: u, controls)

        def block(carry, _):
            x, last, key = carry
            key, key_change, key_control = jax.random.split(key, 3)
            fresh = middle + 2 * reach * jax.random.uniform(key_control, shape, minval=-1.0)
            changed = jax.random.uniform(key_change, shape) < share
            shifted = jnp.concatenate([last[1:], jnp.zeros_like(last[:1])])
            sequences = jnp.clip(jnp.where(changed, fresh, shifted), low, high)
            totals = jax.vmap(lambda blocks: play(x, held(blocks))[1])(sequences)
            best = sequences[jnp.argmax(totals)]
            return (play(x, held(best[:1]))[0], best, key), held(best[:1])

        first, num_blocks = (start, jnp.zeros(shape[1:]), key), -(-env.max_steps // config.hold)
        _, controls = jax.lax.scan(block, first, length=num_blocks)
        _, total, x, controls = play(start, jnp.concatenate(controls)[: env.max_steps])
        return Plan(x, controls, jnp.zeros((*controls.shape, x.shape[-1])), total)

    def improve(plan: Plan, mu):
        """One iteration: the plan and its μ."""
        expansions = jax.vmap(lambda x, u: expand(dynamics, x, u))(plan.x, plan.controls)
        k, gains = backward(expansions, plan.controls, mu, low, high)
        along = lambda alpha: forward(dynamics, plan, k, gains, alpha, low, high)
        step_sizes = 0.5 ** jnp.arange(config.num_step_sizes)
        totals = jax.vmap(lambda alpha: along(alpha).total)(step_sizes)
        new = along(step_sizes[jnp.argmax(jnp.where(jnp.isnan(totals), -jnp.inf, totals))])
        better = new.total > plan.total + 1e-6 * jnp.abs(plan.total)
        plan = jax.tree.map(lambda x, old: jnp.where(better, x, old), new, plan)
        mu = jnp.where(better, mu / config.regularization_factor, mu * config.regularization_factor)
        return plan, jnp.where(better & (mu < 1e-6), 0, jnp.clip(mu, 1e-6, 1e6))

    def play(plans: Plan, starts: EnvState, key):
        """The best plan of each start, with its feedback, in the environment: promised and paid
        return [N]; x, controls and gains of the plan, and x and controls there, [T, N, ...]."""
        choice = jnp.argmax(plans.total, axis=1)
        best = jax.tree.map(lambda x: jax.vmap(lambda row, i: row[i])(x, choice), plans)
        planned = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), best[:3])

        def step(carry, inputs):
            (state, returns), ((x, control, K), key) = carry, inputs
            now = jax.vmap(dynamics.numbers)(state.inner)
            control = jnp.clip(control + jnp.einsum("nij,nj->ni", K, now - x), low, high)
            state, _ = env.step(state, control, key)
            returns = jnp.where(jnp.isnan(returns), state.episode_return, returns)  # the first ones
            return (state, returns), (now, control)

        keys = jax.random.split(key, env.max_steps)
        first = starts, jnp.full(config.num_starts, jnp.nan)
        (_, paid), way = jax.lax.scan(step, first, (planned, keys))
        return best.total, paid, planned, way

    def init(key):
        key, key_env, key_guess = jax.random.split(key, 3)
        starts = env.reset(key_env)
        keys = jax.random.split(key_guess, (config.num_starts, config.num_guesses))
        x = jax.vmap(dynamics.numbers)(starts.inner)
        plans = jax.vmap(jax.vmap(guess, (0, None)))(keys, x)
        return State(key, plans, jnp.zeros(keys.shape), starts)

    def update(state, step):
        plans, mu = jax.vmap(jax.vmap(improve))(state.params, state.mu)
        promised, paid, *_ = play(plans, state.starts, jax.random.fold_in(state.key, step))
        metrics = {
            "episode_return": jnp.mean(paid),
            "value": jnp.mean(promised),
            "improved": jnp.mean(plans.total > state.params.total, dtype=promised.dtype),
        }
        return State(state.key, plans, mu, state.starts), metrics

    def picture(state, figure):
        """Of the start with the least return: the state and the controls, planned and realised."""
        key = jax.random.fold_in(state.key, config.num_iterations)
        _, paid, (x, controls, _), way = play(state.params, state.starts, key)
        worst = jnp.argmin(paid)
        rows = (jnp.concatenate(y, -1)[:, worst].T for y in ((x, controls), way))
        names = [f"x[{i}]" for i in range(x.shape[-1])] + [f"u[{i}]" for i in range(len(low))]
        axes = figure.subplots(len(names), sharex=True)
        for axis, name, planned, realised in zip(axes, names, *rows, strict=True):
            axis.plot(realised, color="tab:orange", linewidth=4, alpha=0.5, label="realised")
            axis.plot(planned, color="black", linewidth=1, label="planned")
            axis.set_ylabel(name)
        axes[0].legend()
        axes[-1].set_xlabel(f"step of {config.env_id}, return {paid[worst]:.4g}")

    return Algorithm(init, update, None, config.num_iterations, 1, picture=picture)


if __name__ == "__main__":
    main(Config, make)
