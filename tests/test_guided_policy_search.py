"""guided_policy_search.py: its regressions on systems that are known, its C-step against the joint
distribution of a whole trajectory and against Riccati, and that dynamics are only sampled."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import float64, trained
from probes import MASS

from algorithms import guided_policy_search as gps
from algorithms import lqr
from algorithms.guided_policy_search import (
    Config,
    Controller,
    Cost,
    Model,
    Samples,
    adapt,
    backward,
    constrained,
    expand,
    expect,
    fit_model,
    linearize,
    make,
    pivots,
    regress,
    weighted_error,
)
from common.environments.linear import double_integrator, make_system

T, N, M = 4, 3, 2  # steps, state and control of the random problems below


def definite(rng, *shape):
    H = rng.normal(size=(*shape, shape[-1]))
    return H @ H.swapaxes(-1, -2) + 0.3 * np.eye(shape[-1])


@pytest.fixture(scope="module")
def problem():
    """A random model, cost and prior; and a controller of them, in float64."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: 0.5 * rng.normal(size=(T, *shape))
    zz = definite(rng, T, N + M)
    model = Model(normal(N), normal(N, N), normal(N, M), definite(rng, T, N))
    cost = Cost(normal(N), normal(M), zz[:, :N, :N], zz[:, N:, :N], zz[:, N:, N:])
    x = normal(N)
    prior = Controller(x, normal(M), normal(M, N), definite(rng, T, M))
    other = Controller(x, normal(M), normal(M, N), definite(rng, T, M))
    with float64():
        return jax.tree.map(jnp.asarray, (model, cost, prior, other))


def test_ridge_regression_is_least_squares_with_more_rows():
    """Rows √(ridge N) I with the outputs √(ridge N) prior, and an intercept without a penalty."""
    rng = np.random.default_rng(0)
    z, y, prior = rng.normal(size=(9, 3)) + 2, rng.normal(size=(9, 2)) - 1, rng.normal(size=(2, 3))
    pad = np.sqrt(0.4 * 9)
    rows = np.block([[z, np.ones((9, 1))], [pad * np.eye(3), np.zeros((3, 1))]])
    expected = np.linalg.lstsq(rows, np.concatenate([y, pad * prior.T]), rcond=None)[0]
    with float64():
        fit = jax.jit(regress)
        W, covariance = fit(z, y, prior, 0.4)
    np.testing.assert_allclose(W, expected[:3].T, atol=1e-12)
    residual = y - z @ expected[:3] - expected[3]
    np.testing.assert_allclose(covariance, residual.T @ residual / 9, atol=1e-12)
    with float64():
        unseen, _ = fit(np.ones((9, 3)), y, prior, 1e-6)
    np.testing.assert_allclose(unseen, prior)  # where nothing varies, the prior


def sampled(system, num, num_steps, max_action=1.0, seed=0):
    """Samples [N, T, ...] of a linear system from one start under random controls, in float64."""
    rng = np.random.default_rng(seed)
    u = rng.normal(size=(num, num_steps, system.B.shape[1]))
    x = np.zeros((num, num_steps, len(system.A))) + 0.7
    for t in range(num_steps - 1):
        noise = system.noise * rng.normal(size=(num, len(system.A)))
        x[:, t + 1] = x[:, t] @ system.A.T + max_action * u[:, t] @ system.B.T + noise
    ones = np.ones((num, num_steps))
    return Samples(*map(jnp.asarray, (x, x, 0.3 * u, u, ones, ones)))


def test_the_fit_recovers_a_linear_system():
    """A and B to 1e-8 without noise; the mean next state at any u is f_c + f_u (û - mean u)."""
    with float64():
        samples = sampled(MASS, 10, 6)
        u = jnp.full((6, 1), 0.8)
        model = jax.jit(fit_model)(samples, u, 1e-13)
    np.testing.assert_allclose(model.fx[2:-1], np.broadcast_to(MASS.A, (3, 2, 2)), atol=1e-8)
    np.testing.assert_allclose(model.fu[:-1], np.broadcast_to(MASS.B, (5, 2, 1)), atol=1e-8)
    np.testing.assert_allclose(model.F, 0, atol=1e-12)
    x = np.asarray(samples.x.mean(0))
    mean_next = x[1:] + model.fc[:-1]
    np.testing.assert_allclose(mean_next, x[:-1] @ MASS.A.T + 0.8 * MASS.B[:, 0], atol=1e-8)


def test_the_fit_finds_the_noise_and_the_policys_slope():
    system = double_integrator()._replace(noise=np.array([0.1, 0.3]))
    with float64():
        samples = sampled(system, 4_000, 4)
        u = samples.u.mean(0)
        model = jax.jit(fit_model)(samples, u, 1e-6)
        policy = samples._replace(mean=samples.x @ jnp.array([[2.0], [-1.0]]) + 0.5)
        prior = jax.jit(linearize)(policy, jnp.array([0.5]), 1e-9)
    np.testing.assert_allclose(model.fx[2], system.A, atol=0.02)
    np.testing.assert_allclose(model.F[2], np.diag([0.01, 0.09]), atol=0.005)
    np.testing.assert_allclose(prior.K[1:, 0], [[2, -1]] * 3, atol=1e-6)
    np.testing.assert_allclose(prior.u, np.asarray(policy.mean).mean(0))
    np.testing.assert_allclose(prior.C, np.full((4, 1, 1), 0.25), atol=1e-9)


def test_derivatives_of_the_cost_by_hand():
    """l = x² u + x + 3 u² at x = 2, u = 5: 2xu + 1, x² + 6u, 2u, 2x, 6."""
    cost = lambda x, u: (x**2 * u + x + 3 * u**2)[0]
    found = expand(cost, jnp.array([2.0]), jnp.array([5.0]))
    np.testing.assert_allclose([np.ravel(y)[0] for y in found], [21, 34, 10, 4, 6])


def test_pivots_multiply_to_the_determinant_and_show_what_is_indefinite():
    rng = np.random.default_rng(0)
    H = rng.normal(size=(50, 3, 3))
    H = H + H.swapaxes(1, 2) + 3 * np.eye(3)
    found = np.asarray(jax.vmap(pivots)(H))
    np.testing.assert_allclose(found.prod(1), np.linalg.det(H), rtol=1e-3)
    is_definite = np.linalg.eigvalsh(H).min(1) > 0
    np.testing.assert_array_equal((found > 0).all(1), is_definite)
    assert 0.1 < is_definite.mean() < 0.9


class Joint(NamedTuple):
    """All x - x̄ and u - û of a trajectory, one after the other: a Gaussian [T (N + M)]."""

    mean: np.ndarray
    covariance: np.ndarray


def joint(model, prior, p) -> Joint:
    """Each x and u is a linear function of earlier ones and of new noise, and so of all noise."""
    rows = []  # of x and u, as offset and coefficients of the noise
    size = T * (N + M)
    offset, coefficients = np.zeros(N), np.zeros((N, size))  # the start is known
    for t in range(T):
        new = np.zeros((M, size))
        new[:, t * (N + M) : t * (N + M) + M] = np.linalg.cholesky(p.C[t])
        u = p.u[t] - prior.u[t] + p.K[t] @ offset, p.K[t] @ coefficients + new
        rows += [(offset, coefficients), u]
        new = np.zeros((N, size))
        new[:, t * (N + M) + M : (t + 1) * (N + M)] = np.linalg.cholesky(model.F[t])
        offset = model.fc[t] + model.fx[t] @ offset + model.fu[t] @ u[0]
        coefficients = model.fx[t] @ coefficients + model.fu[t] @ u[1] + new
    mean, coefficients = (np.concatenate(part) for part in zip(*rows, strict=True))
    return Joint(mean, coefficients @ coefficients.T)


def test_expected_cost_and_kl_are_those_of_the_joint_distribution(problem):
    """KL of the joint Gaussians of all of a trajectory but the first x, which has no variance."""
    model, cost, prior, p = (jax.tree.map(np.asarray, part) for part in problem)
    ours, theirs = joint(model, prior, p), joint(model, prior, prior)
    expected = 0
    for t in range(T):
        part = slice(t * (N + M), (t + 1) * (N + M))
        mean, covariance = ours.mean[part], ours.covariance[part, part]
        H = np.block([[cost.lxx[t], cost.lux[t].T], [cost.lux[t], cost.luu[t]]])
        expected += np.concatenate([cost.lx[t], cost.lu[t]]) @ mean
        expected += np.sum(H * (covariance + np.outer(mean, mean))) / 2
    a, b = (Joint(x.mean[N:], x.covariance[N:, N:]) for x in (ours, theirs))
    inverse, difference = np.linalg.inv(b.covariance), a.mean - b.mean
    kl = np.trace(inverse @ a.covariance) - len(difference) + difference @ inverse @ difference
    kl += np.linalg.slogdet(b.covariance)[1] - np.linalg.slogdet(a.covariance)[1]
    with float64():
        found_cost, found_kl = jax.jit(expect)(*problem)
        nothing = jax.jit(expect)(*problem[:3], problem[2])[1]
    np.testing.assert_allclose(found_cost, expected, rtol=1e-9)
    np.testing.assert_allclose(found_kl, kl / 2, rtol=1e-9)
    np.testing.assert_allclose(nothing, 0, atol=1e-12)


def test_the_backward_pass_finds_the_minimum_of_cost_and_kl(problem):
    """No derivative of E[l] / η + KL(p ‖ p̂) is left, with respect to means, gains, covariances."""
    model, cost, prior, other = problem

    def objective(p):
        expected_cost, kl = expect(model, cost, prior, p)
        return expected_cost / 0.7 + kl

    with float64():
        best, is_definite = jax.jit(backward)(model, cost, prior, 0.7)
        value_and_slope = jax.jit(jax.value_and_grad(objective))
        (value, slopes), (other_value, before) = value_and_slope(best), value_and_slope(other)
        assert value < min(other_value, value_and_slope(prior)[0])
    assert is_definite
    for name in ("u", "K", "C"):
        left, there = (np.asarray(getattr(x, name)) for x in (slopes, before))
        if name == "C":  # symmetric, and only such changes count
            left = left + left.swapaxes(1, 2)
        np.testing.assert_allclose(left, 0, atol=1e-10)
        assert np.abs(there).max() > 0.1


def test_one_step_back_by_hand():
    """Twice l = x² + u² + 3 u at η = 2, with x' = x + u + .5 and p̂ = N(.1 x, 1/4)."""
    one, two = jnp.ones((2, 1, 1)), jnp.ones((2, 1))
    cost = Cost(0 * two, 3 * two, 2 * one, 0 * one, 2 * one)
    prior = Controller(0 * two, 0 * two, 0.1 * one, one / 4)
    p, _ = jax.jit(backward)(Model(0.5 * two, one, one, 0 * one), cost, prior, 2.0)
    Quu, Qux, Qu = 1 + 4, -0.4, 1.5
    np.testing.assert_allclose([p.u[1, 0], p.K[1, 0, 0]], [-Qu / Quu, -Qux / Quu], rtol=1e-6)
    np.testing.assert_allclose(p.C[1, 0, 0], 1 / Quu, rtol=1e-6)
    Vx, Vxx = Qux * -Qu / Quu, 1 + 0.04 - Qux**2 / Quu
    Vx += 0.5 * Vxx
    np.testing.assert_allclose(p.C[0, 0, 0], 1 / (5 + Vxx), rtol=1e-6)
    np.testing.assert_allclose(p.u[0, 0], -(1.5 + Vx) / (5 + Vxx), rtol=1e-6)
    np.testing.assert_allclose(p.K[0, 0, 0], -(Vxx - 0.4) / (5 + Vxx), rtol=1e-6)


@pytest.fixture(scope="module")
def c_step():
    return jax.jit(constrained, static_argnums=4)


@pytest.mark.parametrize("epsilon", [0.01, 1.0, 5.0])
def test_at_the_best_eta_the_kl_divergence_is_epsilon(problem, c_step, epsilon):
    model, cost, prior, _ = problem
    with float64():
        p, gain, eta, kl = c_step(model, cost, prior, epsilon, 60)
        after, measured = jax.jit(expect)(model, cost, prior, p)
        before, _ = jax.jit(expect)(model, cost, prior, prior)
    np.testing.assert_allclose([kl, measured], epsilon, rtol=1e-9)
    np.testing.assert_allclose(gain, before - after, rtol=1e-9)
    assert gain > 0 and 1e-6 < eta < 1e9


def test_a_smaller_step_is_taken_where_the_cost_has_no_minimum(problem, c_step):
    """With l_uu < 0 a small η has no Q_uu > 0, whatever ε; where l is not a number, p̂ stays."""
    model, cost, prior, _ = problem
    with float64():
        hill = cost._replace(luu=-5 * jnp.broadcast_to(jnp.eye(M), (T, M, M)))
        p, _, eta, kl = c_step(model, hill, prior, jnp.inf, 60)
        is_definite = [jax.jit(backward)(model, hill, prior, x)[1] for x in (eta, eta / 1.01)]
        no_cost = cost._replace(lx=cost.lx * jnp.nan)
        kept, gain, _, no_kl = c_step(model, no_cost, prior, 1.0, 60)
    assert is_definite == [True, False]
    assert 0 < kl < jnp.inf and np.isfinite(p.u).all()
    np.testing.assert_array_equal(kept.u, prior.u)
    assert gain == no_kl == 0


def test_on_a_linear_system_an_infinite_step_gives_the_riccati_gains(c_step):
    """From a fit to 10 samples without noise."""
    env_id, num_steps = "DoubleIntegrator-linear", 20
    system = double_integrator()._replace(noise=np.zeros(2))
    with float64():
        samples = sampled(system, 10, num_steps)
        prior = jax.jit(linearize)(samples, jnp.ones(1), 1e-9)
        model = jax.jit(fit_model)(samples, prior.u, 1e-13)
        expand_all = jax.vmap(lambda x, u: expand(lambda x, u: x @ x + u @ u, x, u))
        cost = jax.jit(expand_all)(prior.x, prior.u)
        p, _, eta, _ = c_step(model, cost, prior, jnp.inf, 60)
        riccati = lqr.make(lqr.Config(env_id, num_riccati_steps=num_steps, horizon="finite"))
        exact = trained(riccati, [0], num_steps).state.params
    np.testing.assert_allclose(eta, 1e-6, rtol=1e-6)
    # At the first step all samples have the same x, of which no gain can be known.
    gains, exact_gains = np.asarray(p.K), np.asarray(exact.gains[0])
    np.testing.assert_allclose(gains[2:-1], -exact_gains[2:-1], atol=1e-5)
    control = np.einsum("tij,tj->ti", -exact_gains, prior.x)  # to the same controls at x̄
    np.testing.assert_allclose(p.u[2:-1], control[2:-1], atol=1e-5)


def test_the_step_size_follows_expected_and_actual_improvement():
    """ε Δp / (2 (Δp - Δa)): as predicted 5 times, a half of it once, worse by as much a quarter."""
    found = [adapt(2.0, 4.0, actual) for actual in (4.0, 5.0, 2.0, 0.0, -4.0, -1e3)]
    np.testing.assert_allclose(found, [10, 10, 2, 1, 0.5, 0.2], rtol=1e-6)


def test_imitation_is_weighted_by_the_precision():
    precision = jnp.array([[2.0, 1.0], [1.0, 3.0]])
    found = weighted_error(jnp.array([1.0, 2.0]), jnp.array([0.0, 3.0]), precision)
    np.testing.assert_allclose(found, (2 - 1 - 1 + 3) / 2)


SMALL = {
    "num_starts": 2,
    "num_samples": 6,
    "gradient_steps": 20,
    "batch_size": 16,
    "hidden_sizes": (8,),
    "min_kl_step": 0.01,
    "min_std": 0.05,
}


def two_updates(env_id="Mass-linear", **fields):
    """The States before and after two updates, and the metrics of both."""
    algorithm = make(Config(env_id, **SMALL | fields))

    def update(state, step):
        after, metrics = algorithm.update(state, step)
        return after, (after, metrics)

    def run(key):
        state = algorithm.init(key)
        return state, *jax.lax.scan(update, state, jnp.arange(2))[1]

    before, after, metrics = jax.jit(run)(jax.random.key(0))
    nth = lambda tree, i: jax.tree.map(lambda x: x[i], tree)
    states = before, nth(after, 0), nth(after, 1)
    return algorithm, states, (nth(metrics, 0), nth(metrics, 1))


@pytest.fixture(scope="module")
def mass():
    return two_updates()


def test_an_update_adapts_the_step_and_keeps_to_it(mass):
    _, (before, first, second), metrics = mass
    np.testing.assert_allclose(before.epsilon, 0.3 * 20)
    np.testing.assert_array_equal(first.epsilon, before.epsilon)
    adapted = jax.vmap(adapt)(first.epsilon, first.predicted, first.cost - second.cost)
    np.testing.assert_allclose(second.epsilon, jnp.clip(adapted, 0.01 * 20, 10 * 20), rtol=1e-6)
    for state, values in zip((first, second), metrics, strict=True):
        np.testing.assert_allclose(values["kl"], state.epsilon.mean() / 20, rtol=1e-3)
        np.testing.assert_allclose(values["episode_return"], -state.cost.mean(), rtol=1e-6)
        np.testing.assert_allclose(
            values["value"], (state.predicted - state.cost).mean(), rtol=1e-5, atol=1e-5
        )


def test_the_noise_of_the_policy_is_the_mean_precision(mass):
    _, states, _ = mass
    for state in states[1:]:
        mean_precision = (1 / state.controllers.C).mean()
        np.testing.assert_allclose(state.params.std, max(mean_precision**-0.5, 0.05), rtol=1e-5)


def test_what_is_measured_is_what_was_learned_before(mass):
    """By a loop over the true system, which has no noise: the return of μ_θ and of the controllers
    that it imitates, within the bounds."""
    algorithm, (_, state, _), metrics = mass

    def episode(policy):
        x, total = np.asarray(state.starts.obs, float), 0
        for t in range(20):
            u = np.clip(policy(t, x), -5, 5)
            total = total - np.einsum("ni,ij,nj->n", x, MASS.Q, x) - 0.1 * u[:, 0] ** 2
            x = x @ MASS.A.T + u @ MASS.B.T
        return total.mean()

    c = jax.tree.map(np.asarray, state.controllers)
    local = lambda t, x: 5 * (c.u[t] + np.einsum("nij,nj->ni", c.K[t], x - c.x[t]))
    network = lambda t, x: np.asarray(
        jax.vmap(algorithm.act, (None, 0, None))(state.params, x.astype(np.float32), None)
    )
    values = metrics[1]
    np.testing.assert_allclose(values["controller_return"], episode(local), rtol=1e-4)
    np.testing.assert_allclose(values["network_return"], episode(network), rtol=1e-4)
    share = episode(local) / episode(network)
    np.testing.assert_allclose(values["policy_share"], share, rtol=1e-4)


def test_the_picture_shows_the_network_and_the_controller_that_it_imitates(mass):
    algorithm, states, _ = mass
    picture = algorithm.picture(states[-1])
    assert picture["names"] == ["x[0]", "x[1]", "u[0]"]
    realised, planned = map(np.asarray, (picture["realised"], picture["planned"]))
    assert realised.shape == (20, 3) and planned.shape == (1, 20, 3)
    np.testing.assert_array_equal(realised[0, :2], planned[0, 0, :2])
    assert (realised[1:] != planned[0, 1:]).any() and np.abs(realised[:, 2]).max() <= 1


def differs(one, other):
    return any((x != y).any() for x, y in zip(*map(jax.tree.leaves, (one, other)), strict=True))


def test_the_dynamics_are_sampled_and_never_differentiated(mass, monkeypatch):
    """The environment's step refuses to be differentiated; of `make_dynamics` only states and
    rewards matter, so that wrong next states change no bit."""
    make_env, make_dynamics = gps.make_env, gps.make_dynamics

    def sampled_env(*args, **kwargs):
        env = make_env(*args, **kwargs)
        step = jax.custom_jvp(env.step)
        step.defjvp(lambda *_: pytest.fail("the environment was differentiated"))
        return env._replace(step=step)

    def wrong_dynamics(env_id):
        dynamics = make_dynamics(env_id)

        def step(x, action):
            next_x, reward, terminated = dynamics.step(x, action)
            return 1e3 + 0 * next_x, reward, terminated

        return dynamics._replace(step=step)

    monkeypatch.setattr(gps, "make_env", sampled_env)
    monkeypatch.setattr(gps, "make_dynamics", wrong_dynamics)
    _, states, _ = two_updates()
    assert not differs(states[-1].params, mass[1][-1].params)


@pytest.fixture(scope="module")
def ending_after_5():
    """A function of whether the fifth step of every episode terminates and truncates it, and of
    what is then added to states, observations and costs: the params after two updates."""
    make_env = gps.make_env

    def run(terminated, truncated, garbage):
        def ending_env(*args, **kwargs):
            env = make_env(*args, **kwargs)

            def step(state, action, key):
                added = garbage * (state.episode.length >= 5)
                state = state._replace(obs=state.obs + added[:, None])
                next_state, transition = env.step(state, action, key)
                is_fifth = next_state.episode.length == 5
                x, time = next_state.inner
                inner = x + garbage * is_fifth[:, None], time
                return next_state._replace(inner=inner), transition._replace(
                    reward=transition.reward - added,
                    terminated=transition.terminated | is_fifth & terminated,
                    truncated=transition.truncated | is_fifth & truncated,
                )

            return env._replace(step=step)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gps, "make_env", ending_env)
            algorithm = make(Config("Mass-linear", **SMALL))
        step = lambda state, i: (algorithm.update(state, i)[0], None)
        return jax.lax.scan(step, algorithm.init(jax.random.key(0)), jnp.arange(2))[0].params

    return jax.jit(run)


@pytest.mark.parametrize("terminated", [True, False])
@pytest.mark.parametrize("truncated", [True, False])
def test_nothing_depends_on_what_comes_after_an_end(ending_after_5, terminated, truncated):
    params = [ending_after_5(terminated, truncated, garbage) for garbage in (0.0, 10.0)]
    assert differs(*params) == (not terminated and not truncated)


def test_a_linear_policy_learns_to_cost_what_the_riccati_gain_does():
    """Without hidden layers, from samples with noise: within 5 % of the exact cost of the gain of
    the infinite horizon, of which each seed began at more than twice; actions are in units of 3."""
    fields = SMALL | {"num_starts": 4, "num_samples": 10, "gradient_steps": 300, "batch_size": 64}
    fields["hidden_sizes"] = ()
    algorithm = make(Config("DoubleIntegrator-linear", **fields))
    system = make_system("DoubleIntegrator-linear")

    def cost(K):
        return lqr.expected_cost(system, jnp.broadcast_to(K, (20, 1, 2)), 1.0)

    def costs(run):
        ((weights, _),) = run.state.params.network
        return np.array([cost(-3 * w.T) for w in weights])

    best = cost(jnp.array([[0.422082, 1.243929]]))
    early = trained(algorithm, [0, 1], 1)
    assert (costs(early) > 2 * best).all()
    assert (costs(trained(algorithm, [0, 1], 20)) < 1.05 * best).all()


def test_environments_whose_cost_is_not_known_are_refused():
    with pytest.raises(ValueError, match="discrete actions"):
        make(Config(env_id="CartPole-v1"))
    with pytest.raises(ValueError, match="num_samples >= 2"):
        Config(num_samples=1)
