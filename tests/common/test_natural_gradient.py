"""common/natural_gradient.py against dense matrices, and matrices that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import float64
from jax.flatten_util import ravel_pytree

from common.distributions import Normal, log_probability
from common.natural_gradient import conjugate_gradient, fisher_vector_product
from common.networks import mlp

P, REWARD = np.array([0.5, 0.3, 0.2]), np.array([1.0, 0.0, 2.0])  # a bandit


def spd(size):
    """A symmetric positive definite matrix, and a vector."""
    rng = np.random.default_rng(0)
    half = rng.normal(size=(size, size))
    return half @ half.T + 0.1 * np.eye(size), rng.normal(size=size)


def test_conjugate_gradient_solves_as_a_dense_solver():
    with float64():
        matrix, b = spd(12)
        x, image = conjugate_gradient(lambda v: matrix @ v, jnp.array(b), 24)
        np.testing.assert_allclose(x, np.linalg.solve(matrix, b), rtol=1e-8)
        np.testing.assert_allclose(image, matrix @ x, rtol=1e-10)


def test_iterations_minimize_over_krylov_spaces():
    """The k-th x minimizes xᵀ A x / 2 - bᵀ x over the span of b, A b, ..., A^(k-1) b."""
    with float64():
        matrix, b = spd(8)
        for k in (1, 2, 3):
            basis = np.stack([np.linalg.matrix_power(matrix, i) @ b for i in range(k)], axis=1)
            best = basis @ np.linalg.solve(basis.T @ matrix @ basis, basis.T @ b)
            x, image = conjugate_gradient(lambda v: matrix @ v, jnp.array(b), k)
            np.testing.assert_allclose(x, best, rtol=1e-7)
            np.testing.assert_allclose(image, matrix @ x, rtol=1e-10)
            assert not np.allclose(image, b, rtol=1e-3)  # as it would be if x solved A x = b


@pytest.mark.parametrize("b", [[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [1e-18, 0.0, 1e-18], [1, -2, 1]])
def test_it_stays_where_the_residual_is_gone(b):
    """In float32, after a few of many iterations; the last b is in the range of a singular A."""
    matrix = np.diag([2.0, 1.0, 2.0]) if b != [1, -2, 1] else np.diag(P) - np.outer(P, P)
    b = np.array(b, np.float32)
    x, _ = conjugate_gradient(lambda v: jnp.array(matrix, "f4") @ v, jnp.array(b), 100)
    expected = np.linalg.pinv(matrix) @ b
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


def test_a_softmax_and_a_normal_have_known_fisher_matrices():
    with float64():
        softmax = fisher_vector_product(lambda logits: logits[None], jnp.log(P), 0.0)
        np.testing.assert_allclose(
            jax.vmap(softmax)(jnp.eye(3)), np.diag(P) - np.outer(P, P), atol=1e-12
        )
        normal = fisher_vector_product(
            lambda x: Normal(x[None, :1], x[1:]), jnp.array([0.7, np.log(0.5)]), 0.0
        )
        np.testing.assert_allclose(jax.vmap(normal)(jnp.eye(2)), np.diag([4, 2]), atol=1e-12)


def test_the_natural_gradient_of_a_bandit_is_its_reward_up_to_a_constant():
    with float64():
        gradient = jax.grad(lambda logits: jax.nn.softmax(logits) @ REWARD)(jnp.log(P))
        np.testing.assert_allclose(gradient, [0.05, -0.27, 0.22], atol=1e-12)
        product = fisher_vector_product(lambda logits: logits[None], jnp.log(P), 0.0)
        natural, _ = conjugate_gradient(product, gradient, 10)
        np.testing.assert_allclose(natural, [0, -1, 1], atol=1e-10)
        np.testing.assert_allclose(natural, REWARD - REWARD.mean(), atol=1e-10)


def dense_fisher(policy, params, actions, weights):
    """Σ_a w(a) ∇ln π(a) ∇ln π(a)ᵀ, a mean over observations: actions [K, ...], weights [K, B]."""

    def scores(action):
        def log_probs(params):
            distribution = policy(params)
            leading = jax.tree.leaves(distribution)[0].shape[0]
            return log_probability(distribution, jnp.broadcast_to(action, (leading, *action.shape)))

        return jax.jacobian(log_probs)(params)  # [B, P]

    each = jax.vmap(scores)(actions)
    return jnp.einsum("kb,kbp,kbq->pq", weights, each, each) / weights.shape[1]


@pytest.mark.parametrize("kind", ["discrete", "normal"])
def test_products_are_those_with_the_dense_fisher_matrix(kind):
    """Over all actions, or by Gauss-Hermite quadrature, exact for polynomials: not by way of KL."""
    with float64():
        network = mlp([3, 4, 3 if kind == "discrete" else 2], jnp.tanh)
        obs = jax.random.normal(jax.random.key(0), (7, 3))
        params = network.init(jax.random.key(1))
        if kind == "discrete":
            theta, to_params = ravel_pytree(params)
            policy = lambda theta: network.apply(to_params(theta), obs)
            actions, weights = jnp.arange(3), jax.nn.softmax(policy(theta)).T
            dense = dense_fisher(policy, theta, actions, weights)
        else:
            theta, to_params = ravel_pytree((params, jnp.array([-0.3, 0.4])))
            policy = lambda theta: normal(network, to_params(theta), obs)
            nodes, weights = np.polynomial.hermite_e.hermegauss(6)
            z = jnp.array([(x, y) for x in nodes for y in nodes])
            weights = jnp.array([x * y for x in weights for y in weights]) / (2 * np.pi)
            dense = 0.0  # each observation has nodes of its own
            for one in obs:
                policy_of_one = lambda theta, one=one: normal(network, to_params(theta), one[None])
                mean, log_std = policy_of_one(theta)
                actions = mean + jnp.exp(log_std) * z
                dense += dense_fisher(policy_of_one, theta, actions, weights[:, None]) / len(obs)
        for damping in (0.0, 0.1):
            product = fisher_vector_product(policy, theta, damping)
            got = jax.vmap(product)(jnp.eye(len(theta)))
            expected = dense + damping * np.eye(len(theta))
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def normal(network, params, obs):
    return Normal(network.apply(params[0], obs), params[1])


def test_the_step_of_a_policy_does_not_depend_on_its_parameters():
    """With θ = M φ the natural gradient moves the logits alike, and the gradient does not."""
    with float64():
        rng = np.random.default_rng(1)
        obs, advantage = rng.normal(size=(9, 3)), rng.normal(size=(9, 3))
        m, phi = jnp.array(rng.normal(size=(6, 6))), jnp.array(rng.normal(size=6))

        def logits(theta):  # the last is 0, or F would be singular
            return jnp.pad(obs @ theta.reshape(3, 2), ((0, 0), (0, 1)))

        natural, plain = [], []
        for policy, x in ((logits, m @ phi), (lambda phi: logits(m @ phi), phi)):
            objective = lambda x, policy=policy: jnp.sum(jax.nn.softmax(policy(x)) * advantage)
            gradient = jax.grad(objective)(x)
            product = fisher_vector_product(policy, x, 0.0)
            step, _ = conjugate_gradient(product, gradient, 30)
            natural.append(jax.jvp(policy, (x,), (step,))[1])
            plain.append(jax.jvp(policy, (x,), (gradient,))[1])
        np.testing.assert_allclose(*natural, rtol=1e-6)
        assert np.abs(plain[0] - plain[1]).max() > 0.1 * np.abs(plain[0]).max()
