"""lqr.py: Riccati's equation against SciPy, the exact costs against simulation, identification."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from helpers import histories, trained

from algorithms.lqr import (
    Config,
    Params,
    expected_cost,
    explore,
    gain,
    least_squares,
    make,
    riccati,
    step_back,
)
from common.environments.linear import LINEAR, System, make_system
from common.envs import make_env
from common.runner.evaluation import evaluate

ONE = System(*(jnp.full((1, 1), x) for x in (2.0, 3.0, 5.0, 7.0)), jnp.array([0.0]), jnp.ones(1))


def test_one_riccati_step_by_hand():
    """K = .5·3·4·2 / (7 + .5·9·4) = .48; P = 5 + .5·2·4 (2 - 3·.48)."""
    K = gain(ONE, jnp.array([[4.0]]), 0.5)
    np.testing.assert_allclose(K, [[0.48]], rtol=1e-6)
    np.testing.assert_allclose(riccati(ONE, jnp.array([[4.0]]), K, 0.5), [[7.24]], rtol=1e-6)


def test_the_gains_of_a_finite_horizon_are_filled_from_the_end():
    params = Params(jnp.array([[4.0]]), jnp.array(3.0), jnp.zeros((3, 1, 1)))
    noisy = ONE._replace(noise=jnp.array([0.5]))
    params = step_back(noisy, params, 1, 0.5)
    np.testing.assert_allclose(params.gains[:, 0, 0], [0, 0.48, 0], rtol=1e-6)
    np.testing.assert_allclose(params.c, 0.5 * (3 + 4 * 0.25), rtol=1e-6)  # γ (c + P Var w)


def test_the_cost_of_two_steps_by_hand():
    """Var x₀ = 9/3; x₁ = (2 - 3·.5) x₀ + w, Var w = .25; costs x² (5 + 7 K²), K = .5, 0."""
    system = ONE._replace(noise=jnp.array([0.5]), start=jnp.array([3.0]))
    gains = jnp.array([0.5, 0.0]).reshape(2, 1, 1)
    expected = 3 * (5 + 7 * 0.25) + 0.8 * (0.25 * 3 + 0.25) * 5
    np.testing.assert_allclose(expected_cost(system, gains, 0.8), expected, rtol=1e-6)


def solved(**fields):
    """State and metrics of seeds 0 and 1 at the end, in float64."""
    with jax.enable_x64(True):
        algorithm = make(Config(**fields))
        progress = trained(algorithm, [0, 1], algorithm.num_updates)
        last = trained(algorithm, [0, 1], algorithm.num_updates - 1)
        step = jax.jit(jax.vmap(algorithm.update, (0, None)))
        _, metrics = step(last.state, algorithm.num_updates - 1)
        return jax.tree.map(np.asarray, (progress.state, metrics))


def test_the_double_integrator_has_its_known_solution():
    """SciPy and python-control agree on these."""
    state, metrics = solved()
    P = [[2.947122967, 2.369205407], [2.369205407, 4.613134261]]
    np.testing.assert_allclose(state.params.P[0], P, rtol=0, atol=1e-8)
    K = [[0.422082440, 1.243928854]]
    np.testing.assert_allclose(state.params.gains[0, 0], K, rtol=0, atol=1e-8)
    assert 1 < metrics["cost_ratio"][0] < 1.02  # the last steps would better do nothing
    assert (metrics["riccati_residual"] < 1e-12).all() and (metrics["model_error"] == 0).all()


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_it_agrees_with_scipy_on_100_random_stabilisable_systems(gamma):
    """A random system can be steered with probability 1. A discount scales A and B by √γ."""
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=(100, 4, 4)) / 2, rng.normal(size=(100, 4, 2)) / 2
    Q, R = rng.normal(size=(100, 4, 4)), rng.normal(size=(100, 2, 2))
    Q, R = Q @ Q.swapaxes(1, 2), R @ R.swapaxes(1, 2) + 0.1 * np.eye(2)
    assert (np.abs(np.linalg.eigvals(A)).max(1) > 1).sum() > 20  # some are unstable

    def limit(system):
        params = Params(jnp.zeros((4, 4)), jnp.zeros(()), jnp.zeros((1, 2, 4)))
        step = lambda i, params: step_back(system, params, i, gamma)
        return jax.lax.fori_loop(0, 2_000, step, params)

    with jax.enable_x64(True):
        systems = System(*map(jnp.asarray, (A, B, Q, R)), jnp.zeros((100, 4)), jnp.ones((100, 4)))
        P, _, gains = jax.tree.map(np.asarray, jax.jit(jax.vmap(limit))(systems))
    for i in range(100):
        a, b = np.sqrt(gamma) * A[i], np.sqrt(gamma) * B[i]
        exact = scipy.linalg.solve_discrete_are(a, b, Q[i], R[i])
        K = np.linalg.solve(R[i] + b.T @ exact @ b, b.T @ exact @ a)
        np.testing.assert_allclose(P[i], exact, rtol=1e-7, atol=1e-7 * np.abs(exact).max())
        np.testing.assert_allclose(gains[i, 0], K, rtol=1e-7, atol=1e-7 * np.abs(K).max())


def test_a_finite_horizon_has_the_best_gains_of_each_step():
    """Against least squares over all actions of five steps at once."""
    state, metrics = solved(horizon="finite", num_riccati_steps=5, gamma=0.9)
    system = make_system("DoubleIntegrator-linear")
    A, B = np.asarray(system.A, float), np.asarray(system.B, float)
    x0, T = np.array([1.0, -2.0]), 5
    # x_t = Aᵗ x₀ + Σ_k A^(t-1-k) B u_k; the weighted residuals are √γᵗ (x_t, u_t).
    power, rows, right = np.linalg.matrix_power, [], []
    for t in range(T):
        to_x = [power(A, t - 1 - k) @ B if k < t else 0 * B for k in range(T)]
        rows += [0.9 ** (t / 2) * np.hstack(to_x), 0.9 ** (t / 2) * np.eye(T)[t : t + 1]]
        right += [-(0.9 ** (t / 2)) * power(A, t) @ x0, np.zeros(1)]
    actions = np.linalg.lstsq(np.vstack(rows), np.concatenate(right))[0]
    cost = np.square(np.vstack(rows) @ actions - np.concatenate(right)).sum()
    np.testing.assert_allclose(x0 @ state.params.P[0] @ x0, cost, rtol=1e-9)
    x = x0
    for t in range(T):
        u = -state.params.gains[0, t] @ x
        np.testing.assert_allclose(u, actions[t], rtol=1e-7)
        x = A @ x + B @ u
    np.testing.assert_allclose(metrics["cost_ratio"], 1, rtol=1e-12)
    np.testing.assert_allclose(metrics["value"], -state.best_cost, rtol=1e-12)
    assert make(Config(horizon="finite")).act is None  # which cannot know the time


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_the_value_of_a_finite_horizon_is_the_cost_of_its_gains_with_the_noise(gamma):
    """Two independent computations: backwards by Riccati, forwards by the covariance of x."""
    state, metrics = solved(horizon="finite", num_riccati_steps=20, gamma=gamma)
    system = make_system("DoubleIntegrator-linear")
    cost = expected_cost(system, state.params.gains[0], gamma)
    np.testing.assert_allclose(metrics["value"][0], -cost, rtol=1e-5)
    assert cost > 1.2 * np.trace(state.params.P[0]) / 3  # the rest is noise


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("env_id", ["DoubleIntegrator-linear", "Random-linear"])
def test_no_stationary_gain_costs_less_than_the_optimum_of_an_episode(env_id, gamma):
    """For 64 seeds and after every update; divided by the cost of the stationary gain itself, 29
    of 64 had a ratio below 1."""
    algorithm = make(Config(env_id=env_id, gamma=gamma))
    _, ratios = histories(algorithm, "cost_ratio", 64)
    assert (ratios > 1 - 1e-5).all() and np.median(ratios[:, -1]) < 1.05, ratios[:, -1]


def test_the_expected_return_is_what_episodes_give():
    """40,000 episodes of the environment: within 4 standard errors."""
    algorithm = make(Config())
    progress = trained(algorithm, [0], algorithm.num_updates)
    params = jax.tree.map(lambda x: x[0], progress.state.params)
    _, metrics = algorithm.update(jax.tree.map(lambda x: x[0], progress.state), 49)
    env = make_env("DoubleIntegrator-linear", 40_000)
    play = jax.jit(lambda key: evaluate(env, algorithm.act, params, key))
    returns, lengths = play(jax.random.key(1))
    assert (lengths == LINEAR["DoubleIntegrator-linear"].max_steps).all()
    error = 4 * returns.std() / 200
    assert abs(returns.mean() - metrics["episode_return"]) < error < 0.1


def test_least_squares_finds_a_system_without_noise():
    with jax.enable_x64(True):
        system = make_system("Random-linear", jax.random.key(3))
        quiet = system._replace(noise=jnp.zeros(4))
        x, u, next_x = explore(quiet, jax.random.key(0), 30, 10, 1.0)
        model = least_squares(system._replace(A=0 * system.A, B=0 * system.B), x, u, next_x)
    np.testing.assert_allclose(model.A, system.A, atol=1e-9)
    np.testing.assert_allclose(model.B, system.B, atol=1e-9)


def test_exploration_follows_the_system_and_begins_again():
    system = make_system("DoubleIntegrator-linear")
    x, u, next_x = map(np.asarray, explore(system, jax.random.key(0), 2_000, 4, 3.0))
    begins = np.arange(2_000) % 4 == 0
    np.testing.assert_array_equal(x[1:][~begins[1:]], next_x[:-1][~begins[1:]])
    assert np.abs(x[begins]).max() <= 1 < np.abs(x[~begins]).max()
    assert 2.9 < np.abs(u).max() <= 3 and np.abs(u.mean()) < 0.15
    noise = next_x - x @ system.A.T - u @ system.B.T
    np.testing.assert_allclose(noise.std(0), 0.1, rtol=0.06)


def infinite_cost(system, K):
    """E[Σ xᵀQx + uᵀRu] from a first state, noise aside, by SciPy."""
    closed = system.A - system.B @ K
    assert np.abs(np.linalg.eigvals(closed)).max() < 1
    P = scipy.linalg.solve_discrete_lyapunov(closed.T, system.Q + K.T @ system.R @ K)
    return np.trace(P)


@pytest.mark.parametrize("env_id", ["DoubleIntegrator-linear", "Random-linear"])
def test_the_cost_after_identification_is_within_1_percent_of_the_best(env_id):
    """From 200 noisy transitions, for 16 seeds, in float32; the best is SciPy's."""
    algorithm = make(Config(env_id=env_id, fit_model=True))
    state = trained(algorithm, range(16), algorithm.num_updates).state
    _, metrics = jax.vmap(algorithm.update, (0, None))(state, algorithm.num_updates - 1)
    exact = make(Config(env_id=env_id))
    progress = trained(exact, range(16), exact.num_updates)
    _, lowest = jax.vmap(exact.update, (0, None))(progress.state, exact.num_updates - 1)
    assert (metrics["cost_ratio"] < 1.01 * lowest["cost_ratio"]).all()
    assert (metrics["model_error"] > 1e-4).all() and (metrics["model_error"] < 0.1).all()
    state = jax.tree.map(lambda x: np.asarray(x, float), state)
    for seed in range(16):
        system = System(*(x[seed] for x in state.system))
        P = scipy.linalg.solve_discrete_are(system.A, system.B, system.Q, system.R)
        best = np.linalg.solve(system.R + system.B.T @ P @ system.B, system.B.T @ P @ system.A)
        ratio = infinite_cost(system, state.params.gains[seed, 0]) / infinite_cost(system, best)
        assert 1 - 1e-6 < ratio < 1.01


def test_a_seed_has_its_own_random_system_and_no_environment():
    state, _ = solved(env_id="Random-linear")
    assert not np.array_equal(state.system.A[0], state.system.A[1])
    assert make(Config(env_id="Random-linear")).act is None


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="did you mean 'DoubleIntegrator-linear'"):
        make(Config(env_id="DoubleIntegrator-v1"))
    with pytest.raises(ValueError, match="--num-transitions 2: .* 3 unknowns"):
        make(Config(fit_model=True, num_transitions=2))
