"""Guided policy search (GPS), as mirror descent (MDGPS).

Levine & Abbeel 2014, Learning neural network policies with guided policy search under unknown
dynamics, https://proceedings.neurips.cc/paper/2014/hash/6766aa2750c19aad2fa1b32f36ed4aee-Abstract.html
Montgomery & Levine 2016, Guided policy search via approximate mirror descent, Algorithm 2,
https://arxiv.org/abs/1607.04614

Each start state has a local controller, p(u|x) = N(û + k + K (x - x̄), C) at each time step. In an
update, the policy π(u|o) = N(μ_θ(o), σ²), a network, plays several episodes from every start; then

    p(x'|x,u) = N(f_x x + f_u u + f_c, F), and p̂(u|x) = N(û + K̂ (x - x̄), Ĉ), π made linear in x,
    are fitted to the samples of each time step by regression; Ĉ is σ² and what K̂ leaves
    C-step: p ← argmin E_p[Σ l] with KL(p ‖ p̂) ≤ ε. It minimizes E_p[Σ l/η - ln p̂] - H(p), by LQR:
        Q_x = l_x/η + f_xᵀ V'_x,   Q_xx = l_xx/η + K̂ᵀ Ĉ⁻¹ K̂ + f_xᵀ V'_xx f_x
        Q_u = l_u/η + f_uᵀ V'_x,   Q_ux = l_ux/η - Ĉ⁻¹ K̂ + f_uᵀ V'_xx f_x
        Q_uu = l_uu/η + Ĉ⁻¹ + f_uᵀ V'_xx f_u
        k = -Q_uu⁻¹ Q_u,   K = -Q_uu⁻¹ Q_ux,   C = Q_uu⁻¹,   and η by bisection
    S-step: θ ← argmin Σ ½ (μ_θ(o) - μ_p(x))ᵀ C⁻¹ (μ_θ(o) - μ_p(x)) over the samples,
        μ_p(x) = û + k + K (x - x̄), and σ⁻² ← mean C⁻¹
    ε ← ε Δ_predicted / (2 (Δ_predicted - Δ_actual)), for the decrease of the cost Σ l

around the samples' mean state x̄ and π's mean control û, with l = -reward. The dynamics are a black
box, of which only samples are seen; the cost is known, and differentiated twice. With the true
derivatives of the dynamics this would be ilqr.py and imitation of its plans.

Departs from the papers: the prior of the regressions is a ridge, of f_x to the identity and of all
else to 0, where the papers have a mixture of Gaussians; l is expanded at x̄ and û alone; σ is not
below a floor, and ε between bounds; controls of p beyond the bounds of the environment, which clips
them, are clipped where they are imitated; the S-step is a fixed number of steps of Adam; an episode
that ends before the time limit stays where it ended, at no cost, and π's mean is 0 there. Samples
are π's (the paper's on-policy variant), so that the controllers play only to be measured.

Metrics: `episode_return`, mean return of the samples, with π's noise; `network_return`, mean return
of μ_θ, without it, from the same starts; `controller_return`, that of the means of the local
controllers which μ_θ has learned to imitate in the update before (u = 0 in the first);
`policy_share`, cost of these controllers over that of μ_θ, for costs above 0; `value`, return that
the new controllers have in the fitted model; `loss`, mean of the sum in the S-step, for C⁻¹ divided
by its mean; `eta`, geometric mean of η (cost per nat); `kl`, mean KL(p ‖ p̂) of a time step (nat);
`std`, mean σ after the update (actions are in [-1, 1]).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.environments.dynamics import make_dynamics
from common.environments.linear import solve
from common.envs import EnvState, bound_action, make_env, map_actions
from common.networks import make_network
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "Pendulum-v1"  # one with transition gradients in gymnax, or any <name>-linear
    num_iterations: int = 24  # updates
    num_starts: int = 32  # start states, each with a local controller
    num_samples: int = 10  # episodes of the policy from each start, in each update
    init_std: float = 0.3  # σ at first; actions are in [-1, 1]
    min_std: float = 0.02  # the least σ
    ridge: float = 1e-8  # penalty on squared coefficients in the regressions
    kl_step: float = 0.3  # ε of the first update, for each step of an episode (nat)
    min_kl_step: float = 0.001  # the least that ε may become, likewise
    max_kl_step: float = 10.0  # the most
    num_bisections: int = 20  # in the search for η
    learning_rate: float = 1e-3  # of Adam
    gradient_steps: int = 500  # in each update
    batch_size: int = 256  # samples in each of them
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of each hidden layer

    def __post_init__(self):
        require(
            self,
            "num_samples >= 2",
            "ridge > 0",
            "0 < min_kl_step <= kl_step <= max_kl_step",
        )


class Params(NamedTuple):
    network: Any  # θ
    std: jax.Array  # [m] σ


class Samples(NamedTuple):
    """Episodes [T, ...]."""

    x: jax.Array  # [n] state
    obs: jax.Array
    mean: jax.Array  # [m] of the policy's control
    u: jax.Array  # [m] control
    cost: jax.Array  # of this step
    active: jax.Array  # 1., or 0. after the end of the episode


class Model(NamedTuple):
    """p(x'|x, u) = N(x̄' + f_c + f_x (x - x̄) + f_u (u - û), F)."""

    fc: jax.Array  # [n]
    fx: jax.Array  # [n, n]
    fu: jax.Array  # [n, m]
    F: jax.Array  # [n, n]


class Cost(NamedTuple):
    """Derivatives of the cost l at x̄ and û."""

    lx: jax.Array  # [n]
    lu: jax.Array  # [m]
    lxx: jax.Array  # [n, n]
    lux: jax.Array  # [m, n]
    luu: jax.Array  # [m, m]


class Controller(NamedTuple):
    """p(u|x) = N(u + K (x - x̄), C)."""

    x: jax.Array  # [n] x̄
    u: jax.Array  # [m]
    K: jax.Array  # [m, n]
    C: jax.Array  # [m, m]


class State(NamedTuple):
    key: jax.Array
    params: Params
    opt_state: optax.OptState
    starts: EnvState  # [M]
    controllers: Controller  # [T, M, ...]
    epsilon: jax.Array  # [M] of a whole episode (nat)
    cost: jax.Array  # [M] of the last samples
    predicted: jax.Array  # [M] decrease of it by the last C-step, in its model


def regress(z, y, prior, ridge):
    """argmin_{W,c} Σ_i |W z_i + c - y_i|² / N + ridge |W - prior|², for z [N, p] and y [N, q].

    Returns W [q, p] and the covariance of the residuals [q, q].
    """
    z, y = z - z.mean(0), y - y.mean(0)
    regularized = z.T @ z / len(z) + ridge * jnp.eye(z.shape[1])
    W = prior + solve(regularized, z.T @ (y - z @ prior.T) / len(z)).T
    residual = y - z @ W.T
    return W, residual.T @ residual / len(z)


def linearize(samples: Samples, std, ridge) -> Controller:
    """p̂ [T, ...]: the policy, of noise `std` [m], at samples [N, T, ...], linear in x."""
    n, m = samples.x.shape[-1], len(std)
    fit = jax.vmap(regress, (1, 1, None, None))
    K, residual = fit(samples.x, samples.mean, jnp.zeros((m, n)), ridge)
    C = residual + jnp.diag(std**2)
    return Controller(samples.x.mean(0), samples.mean.mean(0), K, C)


def fit_model(samples: Samples, u, ridge) -> Model:
    """f_c, f_x, f_u and F [T, ...] from samples [N, T, ...], around their mean x and u [T, m]."""
    n, m = samples.x.shape[-1], u.shape[-1]
    xu = jnp.concatenate([samples.x, samples.u], axis=-1)
    next_x = jnp.concatenate([samples.x[:, 1:], samples.x[:, -1:]], axis=1)  # the last: not used
    fit = jax.vmap(regress, (1, 1, None, None))
    W, F = fit(xu, next_x, jnp.eye(n, n + m), ridge)
    fx, fu = jnp.split(W, [n], axis=-1)
    fc = jnp.einsum("tij,tj->ti", fu, u - samples.u.mean(0))
    return Model(fc, fx, fu, F)


def expand(cost: Callable, x, u) -> Cost:
    """l_x, l_u, l_xx, l_ux, l_uu of cost(x, u) at x [n] and u [m]."""
    lx, lu = jax.grad(cost, (0, 1))(x, u)
    (lxx, _), (lux, luu) = jax.hessian(cost, (0, 1))(x, u)
    return Cost(lx, lu, lxx, lux, luu)


def pivots(H) -> jax.Array:
    """The pivots of Gaussian elimination of a symmetric H [m, m], [m].

    Their product is the determinant; H is positive definite if and only if all are above 0.
    """
    found = []
    for i in range(len(H)):
        found.append(H[i, i])
        H = H - jnp.outer(H[:, i], H[i]) / H[i, i]
    return jnp.array(found)


def invert(H) -> jax.Array:
    """H⁻¹, of a positive definite H [m, m]."""
    return solve(H, jnp.eye(len(H)))


def backward(model: Model, cost: Cost, prior: Controller, eta):
    """argmin_p E_p[Σ l/η - ln p̂] - H(p), with p̂: prior; all [T, ...].

    Also returns whether every Q_uu is positive definite: else there is no minimum.
    """

    def step(value, inputs):
        Vx, Vxx = value
        f, d, p = inputs
        Vx += Vxx @ f.fc
        P = invert(p.C)
        Qx, Qu = d.lx / eta + f.fx.T @ Vx, d.lu / eta + f.fu.T @ Vx
        Qxx = d.lxx / eta + p.K.T @ P @ p.K + f.fx.T @ Vxx @ f.fx
        Qux = d.lux / eta - P @ p.K + f.fu.T @ Vxx @ f.fx
        Quu = d.luu / eta + P + f.fu.T @ Vxx @ f.fu
        Quu = (Quu + Quu.T) / 2
        k, K = -solve(Quu, Qu[:, None])[:, 0], -solve(Quu, Qux)
        Vx, Vxx = Qx + Qux.T @ k, Qxx + Qux.T @ K
        is_definite = jnp.all(pivots(Quu) > 0)
        return (Vx, (Vxx + Vxx.T) / 2), (Controller(p.x, p.u + k, K, invert(Quu)), is_definite)

    end_value = jnp.zeros(cost.lx.shape[1:]), jnp.zeros(cost.lxx.shape[1:])
    inputs = model, cost, prior
    controller, is_definite = jax.lax.scan(step, end_value, inputs, reverse=True)[1]
    return controller, jnp.all(is_definite)


def expect(model: Model, cost: Cost, prior: Controller, controller: Controller):
    """E_p[Σ l], less l at x̄ and û, and KL(p ‖ p̂) = Σ E_p[KL(p(u|x) ‖ p̂(u|x))]; all [T, ...]."""

    def step(state, inputs):
        x, xx = state  # E[x - x̄] and E[(x - x̄) (x - x̄)ᵀ]
        f, d, prior, p = inputs
        k = p.u - prior.u
        u = k + p.K @ x  # E[u - û], and so on
        ux = jnp.outer(k, x) + p.K @ xx
        uu = jnp.outer(u, k) + ux @ p.K.T + p.C
        step_cost = d.lx @ x + d.lu @ u + jnp.sum(d.lux * ux)
        step_cost += (jnp.sum(d.lxx * xx) + jnp.sum(d.luu * uu)) / 2

        dK = p.K - prior.K
        kx = jnp.outer(k, dK @ x)
        spread = p.C + jnp.outer(k, k) + kx + kx.T + dK @ xx @ dK.T
        log_ratio = jnp.sum(jnp.log(pivots(prior.C)) - jnp.log(pivots(p.C)))
        kl = (jnp.sum(invert(prior.C) * spread) - len(k) + log_ratio) / 2

        shift = f.fx @ x + f.fu @ u
        cross = f.fx @ ux.T @ f.fu.T + jnp.outer(f.fc, shift)
        next_xx = f.fx @ xx @ f.fx.T + f.fu @ uu @ f.fu.T + cross + cross.T
        next_xx += jnp.outer(f.fc, f.fc) + f.F
        return (f.fc + shift, next_xx), (step_cost, kl)

    start = jnp.zeros(cost.lx.shape[1:]), jnp.zeros(cost.lxx.shape[1:])
    _, (costs, kls) = jax.lax.scan(step, start, (model, cost, prior, controller))
    return costs.sum(), kls.sum()


def constrained(model: Model, cost: Cost, prior: Controller, epsilon, num_bisections):
    """argmin_p E_p[Σ l] with KL(p ‖ p̂) ≤ ε, by bisection of ln η between 1e-6 and 1e9.

    KL falls as η grows; where some Q_uu is not positive definite, η is too small. Returns the
    controller, by how much it lowers E[Σ l], η and KL; p̂ itself where no η is large enough.
    """
    before, _ = expect(model, cost, prior, prior)

    def halve(_, carry):
        low, high, best = carry
        middle = (low + high) / 2
        eta = jnp.exp(middle)
        controller, is_definite = backward(model, cost, prior, eta)
        after, kl = expect(model, cost, prior, controller)
        is_allowed = is_definite & (kl <= epsilon)
        found = controller, before - after, eta, kl
        best = jax.tree.map(lambda new, old: jnp.where(is_allowed, new, old), found, best)
        return jnp.where(is_allowed, low, middle), jnp.where(is_allowed, middle, high), best

    zero = jnp.zeros(())
    low, high = zero + math.log(1e-6), zero + math.log(1e9)
    start = low, high, (prior, zero, jnp.exp(high), zero)
    return jax.lax.fori_loop(0, num_bisections, halve, start)[-1]


def adapt(epsilon, predicted, actual) -> jax.Array:
    """ε Δ_predicted / (2 (Δ_predicted - Δ_actual)), changed by a factor between .1 and 5.

    It is the best ε if the cost falls by Δ_predicted, linear in ε, less a part quadratic in ε.
    """
    factor = predicted / (2 * jnp.maximum(predicted - actual, 1e-6))
    return epsilon * jnp.clip(factor, 0.1, 5)


def weighted_error(mean, target, precision) -> jax.Array:
    """½ (μ_θ - μ_p)ᵀ Q_uu (μ_θ - μ_p), for one sample."""
    return (mean - target) @ precision @ (mean - target) / 2


def make(config: Config) -> Algorithm:
    env = make_env(config.env_id, config.num_starts, actions="continuous")
    env = map_actions(env, bound_action)
    dynamics = make_dynamics(config.env_id)  # its states and rewards; the next state is not used
    (action_size,) = env.action_shape
    network = make_network(env, config.hidden_sizes, action_size, jnp.tanh)
    optimizer = optax.adam(config.learning_rate)

    def cost_of(x, u):
        _, reward, _ = dynamics.step(x, bound_action(env, u))
        return -reward

    def target(x, controller: Controller):
        """Return μ_p(x) within the bounds."""
        return jnp.clip(controller.u + controller.K @ (x - controller.x), -1, 1)

    def play(state: State, key) -> Samples:
        """Return episodes from every start, [N + 2, T, M, ...]: N of the policy, one of it without
        noise, and one of the local controllers without noise."""
        num_runs = config.num_samples + 2
        key_noise, key_env = jax.random.split(key)
        shape = num_runs, env.max_steps, config.num_starts, action_size
        noise = jax.random.normal(key_noise, shape).at[-2:].set(0)
        is_local = jnp.arange(num_runs) == num_runs - 1

        def episodes(noise, is_local, key):
            def step(carry, inputs):
                env_state, last_x, active = carry
                controller, noise, t = inputs
                x = jax.vmap(dynamics.numbers)(env_state.inner)
                x = jnp.where(active[:, None] > 0, x, last_x)
                mean = active[:, None] * network.apply(state.params.network, env_state.obs)
                u = mean + state.params.std * noise
                u = jnp.where(is_local, jax.vmap(target)(x, controller), u)
                next_state, transition = env.step(env_state, u, jax.random.fold_in(key, t))
                cost = -active * transition.reward
                samples = Samples(x, env_state.obs, mean, u, cost, active)
                ended = transition.terminated | transition.truncated
                return (next_state, x, jnp.where(ended, 0, active)), samples

            first_x = jax.vmap(dynamics.numbers)(state.starts.inner)
            carry = state.starts, first_x, jnp.ones(config.num_starts)
            inputs = state.controllers, noise, jnp.arange(env.max_steps)
            return jax.lax.scan(step, carry, inputs)[1]

        return jax.vmap(episodes)(noise, is_local, jax.random.split(key_env, num_runs))

    def control(samples: Samples, std, epsilon):
        """Return what `constrained` does, for samples [N, T, ...] from one start."""
        prior = linearize(samples, std, config.ridge)
        model = fit_model(samples, prior.u, config.ridge)
        cost = jax.vmap(expand, (None, 0, 0))(cost_of, prior.x, prior.u)
        cost = jax.tree.map(jax.vmap(jnp.multiply), Cost(*[samples.active.mean(0)] * 5), cost)
        return constrained(model, cost, prior, epsilon, config.num_bisections)

    def imitate(state: State, data, key):
        """Return θ and Adam's state after the S-step, and the mean loss."""

        def loss(layers, batch):
            obs, targets, weights = batch
            return jax.vmap(weighted_error)(network.apply(layers, obs), targets, weights).mean()

        def gradient_step(carry, key):
            layers, opt_state = carry
            rows = jax.random.randint(key, (config.batch_size,), 0, len(data[0]))
            batch = jax.tree.map(lambda x: x[rows], data)
            value, grads = jax.value_and_grad(loss)(layers, batch)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(layers, updates), opt_state), value

        start = state.params.network, state.opt_state
        keys = jax.random.split(key, config.gradient_steps)
        (layers, opt_state), losses = jax.lax.scan(gradient_step, start, keys)
        return layers, opt_state, losses.mean()

    def init(key):
        key, key_params, key_env = jax.random.split(key, 3)
        layers = network.init(key_params)
        layers[-1] = jax.tree.map(lambda w: 0.01 * w, layers[-1])  # μ_θ is nearly 0
        params = Params(layers, jnp.zeros(action_size) + config.init_std)
        starts, zeros = env.reset(key_env), jnp.zeros(config.num_starts)
        size = jax.vmap(dynamics.numbers)(starts.inner).shape[1]
        num = env.max_steps, config.num_starts
        controllers = Controller(
            x=jnp.zeros((*num, size)),
            u=jnp.zeros((*num, action_size)),
            K=jnp.zeros((*num, action_size, size)),
            C=jnp.zeros((*num, action_size, action_size)),
        )
        epsilon = zeros + config.kl_step * env.max_steps
        opt_state = optimizer.init(layers)
        return State(key, params, opt_state, starts, controllers, epsilon, zeros, zeros)

    def update(state, step):
        key_play, key_batch = jax.random.split(jax.random.fold_in(state.key, step))
        episodes = play(state, key_play)
        samples = jax.tree.map(lambda x: x[:-2], episodes)
        network_cost, controller_cost = episodes.cost[-2:].sum(1).mean(1)

        cost = samples.cost.sum(1).mean(0)
        epsilon = adapt(state.epsilon, state.predicted, state.cost - cost)
        low, high = config.min_kl_step * env.max_steps, config.max_kl_step * env.max_steps
        epsilon = jnp.where(step == 0, state.epsilon, jnp.clip(epsilon, low, high))
        control_all = jax.vmap(control, (2, None, 0), (1, 0, 0, 0))
        controllers, predicted, eta, kl = control_all(samples, state.params.std, epsilon)

        targets = jax.vmap(jax.vmap(jax.vmap(target)), (0, None))(samples.x, controllers)
        precision = jax.vmap(jax.vmap(invert))(controllers.C)
        mean_precision = jnp.diag(precision.mean((0, 1)))
        scaled_precision = precision / mean_precision.mean()
        weights = samples.active[..., None, None] * scaled_precision
        data = samples.obs, targets, weights
        data = jax.tree.map(lambda x: x.reshape(-1, *x.shape[3:]), data)
        layers, opt_state, loss = imitate(state, data, key_batch)
        std = jnp.maximum(mean_precision**-0.5, config.min_std)

        metrics = {
            "episode_return": -cost.mean(),
            "network_return": -network_cost,
            "controller_return": -controller_cost,
            "policy_share": controller_cost / network_cost,
            "value": (predicted - cost).mean(),
            "loss": loss,
            "eta": jnp.exp(jnp.log(eta).mean()),
            "kl": kl.mean() / env.max_steps,
            "std": std.mean(),
        }
        params = Params(layers, std)
        rest = state.starts, controllers, epsilon, cost, predicted
        return State(state.key, params, opt_state, *rest), metrics

    def act(params, obs, key):
        return bound_action(env, network.apply(params.network, obs))

    def picture(state):
        """Return an episode of μ_θ and one of its local controller, from the start where μ_θ has
        the highest cost."""
        episodes = play(state, jax.random.fold_in(state.key, config.num_iterations))
        worst = jnp.argmax(episodes.cost[-2].sum(0))
        xu = jnp.concatenate([episodes.x, jnp.clip(episodes.u, -1, 1)], axis=-1)[-2:, :, worst]
        names = [f"x[{i}]" for i in range(episodes.x.shape[-1])]
        return {
            "names": names + [f"u[{i}]" for i in range(action_size)],
            "realised": xu[0],
            "planned": xu[1:],
            "start": jnp.zeros(1, int),
            "title": "the network, and the local controller it imitates (planned), worst start",
        }

    steps_per_update = (config.num_samples + 2) * config.num_starts * env.max_steps
    return Algorithm(init, update, act, config.num_iterations, steps_per_update, picture=picture)


if __name__ == "__main__":
    main(Config, make)
