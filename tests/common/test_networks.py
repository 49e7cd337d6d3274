"""common/networks.py against NumPy and lax.conv."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.distributions import orthonormalize, with_orthogonal_init
from common.envs import Env, make_env
from common.networks import conv, dense, ensemble, make_network, make_q_network, mlp


def test_mlp_is_matrices_and_relus():
    network = mlp([3, 5, 4, 2])
    params = jax.jit(network.init)(jax.random.key(0))
    x = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    (w0, b0), (w1, b1), (w2, b2) = jax.tree.map(np.asarray, params)
    hidden = np.maximum(np.maximum(x @ w0 + b0, 0) @ w1 + b1, 0)
    np.testing.assert_allclose(network.apply(params, x), hidden @ w2 + b2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(network.apply(params, x[0]), (hidden @ w2 + b2)[0], rtol=1e-5)


@pytest.mark.parametrize("num_outputs, is_behind_a_barrier", [(16, True), (17, False)])
def test_a_barrier_before_few_outputs_changes_no_derivative(num_outputs, is_behind_a_barrier):
    network = mlp([64, num_outputs])
    params = network.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (5, 64))
    plain = lambda params, x: x @ params[0][0] + params[0][1]
    for derivative in (
        lambda f: jax.jvp(f, (params, x), (params, 2 * x)),
        lambda f: jax.grad(lambda params: jnp.sum(jnp.square(f(params, x))))(params),
        lambda f: jax.vmap(jax.grad(lambda p, x: jnp.sum(f(p, x) ** 3)), (None, 0))(params, x),
    ):
        both = map(jax.tree.leaves, map(derivative, (network.apply, plain)))
        for got, expected in zip(*both, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    program = str(jax.make_jaxpr(network.apply)(params, x))
    assert ("optimization_barrier" in program) == is_behind_a_barrier


def test_dense_has_unit_gain_and_no_bias():
    w, b = dense(jax.random.key(0), 400, 300)
    np.testing.assert_allclose(np.std(w), 1 / 20, rtol=0.02)
    assert not b.any()


def test_conv_is_a_3x3_convolution_then_an_mlp():
    network = conv((10, 10, 4), [32], 5)
    params = jax.jit(network.init)(jax.random.key(0))
    params[0] = (params[0][0], params[0][1] + 0.1)
    x = jax.random.bernoulli(jax.random.key(1), 0.3, (6, 10, 10, 4))
    kernel = params[0][0].reshape(3, 3, 4, 16)
    y = jax.lax.conv_general_dilated(
        x.astype(float), kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    expected = mlp([8 * 8 * 16, 32, 5]).apply(
        params[1:], jax.nn.relu(y + params[0][1]).reshape(6, -1)
    )
    np.testing.assert_allclose(network.apply(params, x), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(network.apply(params, x[0]), expected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize(
    "env_id", ["CartPole-v1", "FrozenLake-misc", "Catch-bsuite", "Breakout-MinAtar"]
)
def test_make_network_fits_vectors_integers_matrices_and_images(env_id, batch):
    env = make_env(env_id, 1)
    network = make_network(env, [8], 3)
    params = jax.jit(network.init)(jax.random.key(0))
    obs = jax.jit(env.reset)(jax.random.key(1)).obs[0]
    out = network.apply(params, jnp.broadcast_to(obs, (*batch, *obs.shape)))
    assert out.shape == (*batch, 3) and out.dtype == jnp.float32
    np.testing.assert_allclose(out.reshape(-1, 3)[0], network.apply(params, obs), rtol=1e-5)


def test_a_board_as_small_as_the_filters_is_a_vector():
    """Filters of 3 x 3 fit a board of 3 x 3 in one place: it would come down to 16 numbers."""
    env = Env(None, None, 1, obs_shape=(3, 3, 2), num_actions=9)
    network = make_network(env, (64,), 9)
    params = network.init(jax.random.key(0))
    assert [w.shape for w, _ in params] == [(18, 64), (64, 9)]
    obs = jax.random.bernoulli(jax.random.key(1), shape=(5, 3, 3, 2))
    expected = mlp([18, 64, 9]).apply(params, obs.reshape(5, 18).astype(float))
    np.testing.assert_array_equal(network.apply(params, obs), expected)
    larger = make_network(env._replace(obs_shape=(4, 4, 2)), (64,), 9)
    assert larger.init(jax.random.key(0))[1][0].shape == (4 * 16, 64)


def test_integers_are_one_hot():
    network = make_network(make_env("FrozenLake-misc", 1), [], 4)
    params = jax.jit(network.init)(jax.random.key(0))
    np.testing.assert_allclose(network.apply(params, jnp.arange(16)), params[0][0], rtol=1e-6)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Breakout-MinAtar"])
def test_orthogonal_weights_have_their_gains_and_another_apply_is_not_made(env_id):
    plain = make_network(make_env(env_id, 1), [8, 16], 3)
    network = with_orthogonal_init(plain, 0.01)
    assert network.apply is plain.apply
    params = jax.jit(network.init)(jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, plain.init(jax.random.key(0)))
    for (w, b), gain in zip(params, [2**0.5] * (len(params) - 1) + [0.01], strict=True):
        np.testing.assert_allclose(np.linalg.svd(w, compute_uv=False), gain, rtol=1e-4)
        assert not b.any()


@pytest.mark.parametrize("shape", [(64, 64), (4, 64), (256, 3), (1, 1)])
def test_orthonormalized_weights_are_those_of_a_qr_decomposition(shape):
    """JAX's initializer takes the Q whose R has a positive diagonal, which is unique."""
    key = jax.random.key(3)
    w = jax.vmap(orthonormalize)(jax.random.normal(key, (1, *shape)))[0]
    small = w.T @ w if shape[0] > shape[1] else w @ w.T
    np.testing.assert_allclose(small, np.eye(min(shape)), atol=2e-6)
    if shape[0] >= shape[1]:  # it draws wide matrices as tall ones
        expected = jax.nn.initializers.orthogonal()(key, shape)
        np.testing.assert_allclose(w, expected, atol=2e-4)


def test_the_activation_of_the_hidden_layers_can_be_chosen():
    network = make_network(make_env("CartPole-v1", 1), [8], 2, jnp.tanh)
    (w0, b0), (w1, b1) = params = network.init(jax.random.key(0))
    x = jnp.array([1.0, -2.0, 0.5, 3.0])
    np.testing.assert_allclose(
        network.apply(params, x), np.tanh(x @ w0 + b0) @ w1 + b1, rtol=1e-5, atol=1e-6
    )


def test_make_q_network_is_an_mlp_over_observation_and_action():
    env = make_env("Pendulum-v1", 1)
    network = make_q_network(env, [8])
    params = jax.jit(network.init)(jax.random.key(0))
    obs, action = np.ones((5, 2, 3), np.float32), np.full((5, 2, 1), 0.5, np.float32)
    expected = mlp([4, 8, 1]).apply(params, np.concatenate([obs, action], -1))[..., 0]
    np.testing.assert_allclose(network.apply(params, obs, action), expected, rtol=1e-6)
    assert not np.allclose(network.apply(params, obs, action), network.apply(params, obs, -action))


def test_ensemble_has_members_of_their_own_on_a_first_axis():
    network = make_q_network(make_env("Pendulum-v1", 1), [8])
    both = ensemble(network, 2)
    params = both.init(jax.random.key(0))
    obs, action = jnp.ones((5, 3)), jnp.ones((5, 1))
    values = both.apply(params, obs, action)
    assert values.shape == (2, 5)
    for number in range(2):
        one = jax.tree.map(lambda x, number=number: x[number], params)
        np.testing.assert_allclose(values[number], network.apply(one, obs, action), rtol=1e-5)
    assert not np.isclose(values[0], values[1]).any()
