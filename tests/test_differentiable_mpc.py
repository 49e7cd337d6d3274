"""differentiable_mpc.py: its derivatives by hand, against central differences, unrolled autodiff
and a dense KKT system; plans within bounds against SciPy; what is learned from an expert."""

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from helpers import float64

from algorithms import lqr as riccati
from algorithms.differentiable_mpc import (
    Config,
    Model,
    Problem,
    imitation_loss,
    lqr,
    make,
    make_problem,
    matrices,
    model_distance,
    multipliers,
    next_active,
    plan,
    search,
    trajectory,
)
from common.environments.linear import System, make_system
from common.envs import make_env
from common.runner.evaluation import evaluate

T, N, M = 5, 3, 2


def random_problems(num, seed=0):
    """Problems [num, ...] whose C, c, F and f differ from step to step."""
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(num, T, N + M, N + M))
    A = np.eye(N) + 0.2 * rng.normal(size=(num, T, N, N))
    return Problem(
        C=jnp.asarray(factor @ factor.swapaxes(2, 3) / (N + M) + 0.1 * np.eye(N + M)),
        c=jnp.asarray(rng.normal(size=(num, T, N + M))),
        F=jnp.asarray(np.concatenate([A, rng.normal(size=(num, T, N, M))], axis=3)),
        f=jnp.asarray(0.3 * rng.normal(size=(num, T, N))),
        x=jnp.asarray(rng.normal(size=(num, N))),
    )


def first(problems):
    return jax.tree.map(lambda x: x[0], problems)


def cost(problem, u):
    """Σ ½ τᵀ C τ + cᵀ τ of controls [T, m], by NumPy."""
    C, c, F, f, x = (np.asarray(y) for y in problem)
    total = 0.0
    for t in range(T):
        tau = np.concatenate([x, u[t]])
        total += tau @ C[t] @ tau / 2 + c[t] @ tau
        x = F[t] @ tau + f[t]
    return total


def test_two_steps_by_hand():
    """x' = x + u, C = 1, x_0 = 1: u_1 = 0, and x_0² + u_0² + (1 + u_0)² is least at u_0 = -½.
    λ_1 = x_1 = ½, λ_0 = 1 + ½. For a slope of 1 on u_0: d_u,0 = -1/2, d_x,1 = -½."""
    one = jnp.ones((2, 1, 1))
    C, F = jnp.stack([jnp.eye(2)] * 2), jnp.concatenate([one, one], axis=2)
    problem = Problem(C, jnp.zeros((2, 2)), F, jnp.zeros((2, 1)), jnp.ones(1))
    tau, found = plan(problem, 9.0, 5)
    np.testing.assert_allclose(tau, [[1, -0.5], [0.5, 0]], atol=1e-7)
    assert found
    np.testing.assert_allclose(multipliers(F, tau)[:, 0], [1.5, 0.5, 0], atol=1e-7)
    free = jnp.ones((2, 1), bool)
    slope = jnp.array([[0.0, 1.0], [0.0, 0.0]])
    np.testing.assert_allclose(lqr(C, F, slope, free), [[0, -0.5], [-0.5, 0]], atol=1e-7)
    held = lqr(C, F, slope, free.at[0].set(False))
    np.testing.assert_array_equal(held, jnp.zeros((2, 2)))
    # u_0 of ∂L/∂u_0 = 1: ∂L/∂C = ½ (d τᵀ + τ dᵀ), ∂L/∂x_0 = δ_0 = δ_1 = d_x,1
    grads = jax.grad(lambda problem: plan(problem, 9.0, 5)[0][0, 1])(problem)
    np.testing.assert_allclose(grads.C[0], [[0, -0.25], [-0.25, 0.25]], atol=1e-7)
    np.testing.assert_allclose(grads.C[1], [[-0.25, 0], [0, 0]], atol=1e-7)
    np.testing.assert_allclose(grads.c, [[0, -0.5], [-0.5, 0]], atol=1e-7)
    np.testing.assert_allclose(grads.f[:, 0], [-0.5, 0], atol=1e-7)
    np.testing.assert_allclose(grads.x, [-0.5], atol=1e-7)
    # δ_1 τ_0ᵀ + λ_1 d_0ᵀ = -½ (1, -½) + ½ (0, -½)
    np.testing.assert_allclose(grads.F[0, 0], [-0.5, 0], atol=1e-7)


def test_the_gain_of_the_scalar_system_and_its_derivatives():
    """a = b = q = r = 1: p = (1 + √5) / 2, k = .618034, dk/dq = .1708204 = -dk/dr; a long plan
    from x = 1 begins with -k. k depends on q / r alone."""

    def k(q, r):
        C = jnp.broadcast_to(jnp.diag(jnp.stack([q, r])), (40, 2, 2))
        F, f, c = jnp.ones((40, 1, 2)), jnp.zeros((40, 1)), jnp.zeros((40, 2))
        return -plan(Problem(C, c, F, f, jnp.ones(1)), 9.0, 5)[0][0, 1]

    with float64():
        one, two = jnp.float64(1.0), jnp.float64(2.0)
        np.testing.assert_allclose(k(one, one), 0.6180339887, atol=1e-10)
        dk = jax.jit(jax.grad(k, (0, 1)))
        dq, dr = dk(one, one)
        np.testing.assert_allclose([dq, dr], [0.1708203932, -0.1708203932], atol=1e-10)
        dq, dr = dk(two, one)
        np.testing.assert_allclose(2 * dq + dr, 0, atol=1e-10)
        p = 1 + np.sqrt(3)  # (q + √(q² + 4 q r)) / 2
        np.testing.assert_allclose(k(two, one), p / (1 + p), atol=1e-10)


@pytest.mark.parametrize("bound", [0.2, 0.6, 2.0, 50.0])
def test_plans_within_bounds_are_those_of_scipy(bound):
    """Of 200 problems all are solved: no gradient at free controls, and outwards at others; and
    three have the controls that L-BFGS-B finds."""
    with float64():
        problems = random_problems(200)
        tau, active, found = jax.jit(jax.vmap(lambda p: search(p, bound, 20)))(problems)

        def gradient(problem, u):
            def total(u):
                tau = trajectory(problem, u)
                return jnp.einsum("ti,tij,tj", tau, problem.C, tau) / 2 + jnp.sum(problem.c * tau)

            return jax.grad(total)(u)

        u = tau[..., N:]
        slope = np.asarray(jax.jit(jax.vmap(gradient))(problems, u))
        rolled = jax.vmap(trajectory)(problems, u)
        start = first(problems)
    assert found.all()
    np.testing.assert_allclose(rolled, tau, atol=1e-9)
    active, u = np.asarray(active), np.asarray(u)
    assert np.abs(u).max() <= bound + 1e-12
    assert (slope[active == 0] ** 2 < 1e-18).all() and (active * slope <= 0).all()
    np.testing.assert_array_equal(u[active != 0], (active * bound)[active != 0])
    share = (active != 0).mean()
    assert share == 0 if bound == 50 else 0.02 < share < 0.9
    least = scipy.optimize.minimize(
        lambda u: cost(start, u.reshape(T, M)),
        np.zeros(T * M),
        bounds=[(-bound, bound)] * (T * M),
        options={"ftol": 1e-14, "gtol": 1e-8},
    )
    np.testing.assert_allclose(u[0].ravel(), least.x, atol=1e-4)


def test_which_controls_are_at_their_bounds_next():
    u = jnp.array([0.5, 2.0, -2.0, 1.0, 1.0, -1.0, -1.0])
    gradient = jnp.array([9.0, 0.0, 0.0, -1.0, 1.0, -1.0, 1.0])
    active = jnp.array([0.0, 0.0, 0.0, 1.0, 1.0, -1.0, -1.0])
    found = next_active(u, gradient, active, 1.0)
    np.testing.assert_array_equal(found, [0, 1, -1, 1, 0, 0, -1])


def weights(seed=5):
    return np.random.default_rng(seed).normal(size=(T, N + M))


def value(problem, bound):
    """A loss whose derivative ∂L/∂τ depends on τ."""
    tau, _ = plan(problem, bound, 20)
    return jnp.sum(weights() * tau + jnp.sin(tau))


def test_gradients_are_central_differences():
    """By every number of C (symmetrically), c, F, f and x_0, to 1e-6; without active bounds and
    with some."""
    with float64():
        problem = first(random_problems(1, seed=1))
        x, unravel = jax.flatten_util.ravel_pytree(problem)

        def of_numbers(x, bound):
            problem = unravel(x)
            C = (problem.C + jnp.swapaxes(problem.C, 1, 2)) / 2
            return value(problem._replace(C=C), bound)

        grad = jax.jit(jax.grad(of_numbers))
        values = jax.jit(jax.vmap(of_numbers, (0, None)))
        nudges = 1e-5 * jnp.concatenate([jnp.eye(len(x)), -jnp.eye(len(x))])
        for bound in (50.0, 0.6):
            active = search(problem, bound, 20)[1]
            assert ((active != 0).mean() > 0.1) == (bound == 0.6)
            ahead, behind = jnp.split(values(x + nudges, bound), 2)
            slope = (ahead - behind) / 2e-5
            np.testing.assert_allclose(grad(x, bound), slope, rtol=1e-6, atol=1e-6)
            assert (np.abs(slope) > 1e-3).mean() > 0.5


def test_gradients_are_those_of_autodiff_through_the_riccati_recursion():
    """Unrolled, without bounds, to 1e-8; the same plan from 0."""
    with float64():
        problem = first(random_problems(1, seed=2))
        free = jnp.ones((T, M), bool)

        def unrolled(problem):
            C, c, F, _, _ = problem
            tau = trajectory(problem, jnp.zeros((T, M)))
            tau += lqr(C, F, jnp.einsum("tij,tj->ti", C, tau) + c, free)
            return jnp.sum(weights() * tau + jnp.sin(tau))

        by_autodiff = jax.jit(jax.grad(unrolled))(problem)
        ours = jax.jit(jax.grad(value))(problem, 50.0)
        np.testing.assert_allclose(value(problem, 50.0), unrolled(problem), atol=1e-12)
        C = by_autodiff.C
        symmetric = by_autodiff._replace(C=(C + jnp.swapaxes(C, 1, 2)) / 2)
        for grad, expected in zip(ours, symmetric, strict=True):
            np.testing.assert_allclose(grad, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("bound", [50.0, 0.6])
def test_gradients_are_those_of_a_dense_kkt_system(bound):
    """K [τ; λ] = -[c; ...] with rows of the controls at a bound removed, by NumPy: the derivative
    by c is -K⁻¹ ∂L/∂τ, and by x_0 the multiplier of the first constraint."""
    with float64():
        problem = first(random_problems(1, seed=3))
        tau, active, _ = search(problem, bound, 20)
        grads = jax.grad(lambda p: jnp.sum(weights() * plan(p, bound, 20)[0]))(problem)
    C, c, F, f, x = (np.asarray(y) for y in problem)
    p, held = N + M, np.flatnonzero(np.asarray(active))
    size = T * p
    H, G, right = np.zeros((size, size)), np.zeros((T * N, size)), np.zeros(T * N)
    for t in range(T):
        H[t * p : (t + 1) * p, t * p : (t + 1) * p] = C[t]
        G[t * N : (t + 1) * N, t * p : t * p + N] = -np.eye(N)
        if t:
            G[t * N : (t + 1) * N, (t - 1) * p : t * p] = F[t - 1]
        right[t * N : (t + 1) * N] = -(f[t - 1] if t else x)
    holds = np.zeros((len(held), size))
    at = [i // M * p + N + i % M for i in held]
    holds[np.arange(len(held)), at] = 1
    G = np.concatenate([G, holds])
    right = np.concatenate([right, np.asarray(active).ravel()[held] * bound])
    K = np.block([[H, G.T], [G, np.zeros((len(G), len(G)))]])
    exact = np.linalg.solve(K, np.concatenate([-c.ravel(), right]))[:size].reshape(T, p)
    np.testing.assert_allclose(tau, exact, atol=1e-9)
    d = -np.linalg.solve(K, np.concatenate([weights().ravel(), np.zeros(len(G))]))
    np.testing.assert_allclose(grads.c, d[:size].reshape(T, p), atol=1e-9)
    np.testing.assert_allclose(grads.x, d[size : size + N], atol=1e-9)
    np.testing.assert_allclose(grads.f[: T - 1].ravel(), d[size + N : size + T * N], atol=1e-9)
    assert len(held) > 0 or bound == 50


def test_a_control_at_its_bound_has_no_derivative_and_neither_has_a_plan_that_was_not_found():
    with float64():
        problem = first(random_problems(1, seed=1))
        tau, active, _ = search(problem, 0.3, 20)
        jacobian = jax.jacrev(lambda c: plan(problem._replace(c=c), 0.3, 20)[0])(problem.c)
        changes = np.abs(jacobian).max((2, 3))[:, N:]
        np.testing.assert_array_equal(changes == 0, np.asarray(active) != 0)
        tau, found = plan(problem, 0.3, 1)
        assert not found
        for grad in jax.grad(lambda p: jnp.sum(plan(p, 0.3, 1)[0]))(problem):
            np.testing.assert_array_equal(grad, 0 * grad)


def test_a_learned_cost_is_positive_definite_and_a_known_one_that_of_the_system():
    """½ τᵀ C τ = 2 x² + 3 u² with Q = 2, R = 3; G = (e⁰, 0; .5, e¹), C = G Gᵀ."""
    one = jnp.ones((1, 1))
    system = System(5 * one, 7 * one, 2 * one, 3 * one, jnp.zeros(1), jnp.ones(1))
    C, c, F = matrices(Model(), system)
    np.testing.assert_array_equal(C, [[4, 0], [0, 6]])
    np.testing.assert_array_equal(c, [0, 0])
    np.testing.assert_array_equal(F, [[5, 7]])
    cost = jnp.array([[0.0, 99.0], [0.5, 1.0]]), jnp.array([0.1, 0.2])
    C, c, F = matrices(Model((one, -one), cost), system)
    np.testing.assert_allclose(C, [[1, 0.5], [0.5, 0.25 + np.e**2]], rtol=1e-6)
    np.testing.assert_array_equal(F, [[1, -1]])
    # Distances: (1 - 5)², (-1 - 7)², and of C / tr C and c / tr C.
    trace = 1.25 + np.e**2
    error = np.mean(np.square(np.asarray(C) / trace - np.diag([0.4, 0.6]))) + 0.025 / trace**2
    found = model_distance(Model((one, -one), cost), system)
    np.testing.assert_allclose(found, 16 + 64 + error, rtol=1e-6)
    twice = cost[0] + jnp.log(2.0) * jnp.eye(2) + jnp.array([[0, 0], [0.5, 0]]), 4 * cost[1]
    scaled = model_distance(Model((5 * one, 7 * one), twice), system)
    np.testing.assert_allclose(scaled, error, rtol=1e-5)  # a factor of 4 does not matter


def test_the_loss_by_hand():
    tau, expert = jnp.array([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0]]), jnp.zeros((2, 3))
    np.testing.assert_allclose(imitation_loss(tau, expert, 2, 0.5), 5 + 0.5 * 5 / 4)


def problem_of(model, system, x):
    return make_problem(*matrices(model, system), x, 5)


def small(**fields):
    settings = {"num_iterations": 2, "gradient_steps": 3, "batch_size": 16} | fields
    return make(Config(**settings))


@functools.cache
def one_step():
    """`init` and `update` of one gradient step on one demonstration; traced in float64."""
    algorithm = small(gradient_steps=1, num_demonstrations=1)
    return jax.jit(algorithm.init), jax.jit(algorithm.update)


def test_an_update_descends_the_imitation_loss_of_demonstrations():
    """One step of Adam on one demonstration, whose loss is written out here."""
    with float64():
        init, update = one_step()
        state = init(jax.random.key(1))
        after, metrics = update(state, jnp.int32(0))
        x, system = state.demonstrations[0], state.system
        expert, _ = plan(problem_of(Model(), system, x), 10.0, 20)

        def loss(params):
            tau, _ = plan(problem_of(params, system, x), 10.0, 20)
            return jnp.mean((tau - expert)[:, 3:] ** 2) + jnp.mean((tau - expert)[:, :3] ** 2)

        grads = jax.grad(loss)(state.params)
        step = jax.tree.map(lambda g: 0.01 * g / (jnp.abs(g) + 1e-8), grads)  # Adam's first
        expected = jax.tree.map(lambda x, dx: x - dx, state.params, step)
        for new, right in zip(
            jax.tree.leaves(after.params), jax.tree.leaves(expected), strict=True
        ):
            np.testing.assert_allclose(new, right, atol=1e-8)
        np.testing.assert_allclose(metrics["loss"], loss(state.params), rtol=1e-9)
        error = model_distance(after.params, system) / model_distance(state.params, system)
        np.testing.assert_allclose(metrics["model_error"], error, rtol=1e-9)
    assert metrics["found"] == 1


def test_the_expert_itself_costs_what_riccati_says():
    """A system that is its own first model: loss 0 and a cost ratio of 1; the plan from x costs
    xᵀ P x of lqr.py."""
    with float64():
        system = make_system("NearIdentity-linear", jax.random.key(3))
        params = riccati.Params(jnp.zeros((3, 3)), jnp.zeros(()), jnp.zeros((5, 3, 3)))
        for step in range(5):
            params = riccati.step_back(system, params, step, 1.0)
        init, update = one_step()
        state = init(jax.random.key(0))
        exact = Model((system.A, system.B), ())
        state = state._replace(system=system, params=exact)
        after, metrics = update(state, jnp.int32(0))
        x = jnp.array([0.3, -0.5, 1.0])
        tau, _ = plan(problem_of(Model(), system, x), 10.0, 20)
        np.testing.assert_allclose(tau[0, 3:], -params.gains[0] @ x, atol=1e-12)
        cost = jnp.sum(jnp.square(tau))  # Q = R = I
        np.testing.assert_allclose(cost, x @ params.P @ x, rtol=1e-12)
    assert metrics["loss"] == 0 and metrics["cost_ratio"] == 1 and metrics["model_error"] == 0
    np.testing.assert_array_equal(after.params.dynamics[0], system.A)
    # Plans from uniform first states cost tr P / 3 on average, as long as an episode is.
    assert abs(metrics["value"] + np.trace(params.P) / 3) < 0.5 * np.trace(params.P) / 3
    assert metrics["episode_return"] <= metrics["value"] + 1e-9


@pytest.mark.parametrize("learn", ["dynamics", "cost", "both"])
def test_what_is_not_learned_is_known(learn):
    params = jax.eval_shape(small(learn=learn).init, jax.random.key(0)).params
    parts = {"dynamics": [(3, 3), (3, 3)], "cost": [(6, 6), (6,)]}
    expected = parts.get(learn) or parts["dynamics"] + parts["cost"]
    assert [x.shape for x in jax.tree.leaves(params)] == expected


def test_a_controller_of_a_fixed_system_is_evaluated_there():
    """With a tight bound, which its controls reach; by the true model it does better than by the
    first one, with which controls have little effect."""
    algorithm = small(env_id="DoubleIntegrator-linear", max_action=0.3, horizon=8)
    assert small().act is None
    system = make_system("DoubleIntegrator-linear")
    env = make_env("DoubleIntegrator-linear", 200)
    obs = env.reset(jax.random.key(0)).obs
    act = jax.jit(jax.vmap(algorithm.act, (None, 0, None)))
    actions = act(Model((system.A, system.B)), obs, jax.random.key(0))
    assert np.abs(actions).max() == np.float32(0.3) and (np.abs(actions) < 0.29).any()
    play = jax.jit(lambda params: evaluate(env, algorithm.act, params, jax.random.key(1))[0])
    first_params = jax.jit(algorithm.init)(jax.random.key(0)).params
    assert play(Model((system.A, system.B))).mean() > play(first_params).mean() + 1


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="did you mean 'DoubleIntegrator-linear'"):
        make(Config(env_id="DoubleIntegrator-v1"))
    with pytest.raises(ValueError, match="--learn all: must be one of dynamics, cost, both"):
        Config(learn="all")
    with pytest.raises(ValueError, match="--max-action 0.0: must satisfy"):
        Config(max_action=0.0)
