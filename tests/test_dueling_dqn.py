"""dueling_dqn.py: its equations by hand, and what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import check_q_probe, check_td_loss, first_update, relu_mlp

from algorithms import dueling_dqn
from algorithms.dueling_dqn import Config, dueling, make, make_dueling_network, td_error
from common.envs import make_env

PARAMS = jnp.array([[7.0, 3.0], [1.0, 5.0]])  # Q(s, a; θ): the action taken is worth 3
TARGET_PARAMS = jnp.array([[0.0, 0.0], [40.0, 20.0]])  # max_a' Q(s', a'; θ⁻) = 40


def error(params, target_params, terminated=False):
    """The TD error from state 0 to 1 by action 1, with reward 2 and γ = 0.5."""
    return td_error(params[0, 1], 2.0, jnp.max(target_params[1]), terminated, 0.5)


@pytest.mark.parametrize("terminated", [False, True])
def test_td_error_bootstraps_unless_terminated(terminated):
    with jax.numpy_rank_promotion("raise"):
        got = error(PARAMS, TARGET_PARAMS, jnp.array(terminated))
    assert got == 2 + 0.5 * 40 * (not terminated) - 3


def test_gradient_is_semi_gradient():
    """Only Q(s, a; θ) is differentiated: neither the target nor any other entry of θ."""
    gradient, target_gradient = jax.grad(error, argnums=(0, 1))(PARAMS, TARGET_PARAMS)
    np.testing.assert_array_equal(gradient, [[0, -1], [0, 0]])
    np.testing.assert_array_equal(target_gradient, np.zeros((2, 2)))
    same = jax.grad(lambda params: error(params, params))(PARAMS)
    np.testing.assert_array_equal(same, [[0, -1], [0, 0]])


def test_an_update_descends_the_squared_td_error_of_its_batch():
    update = first_update(dueling_dqn)
    network = make_dueling_network(make_env(update.config.env_id, 1), update.config.hidden_sizes)
    next_q = network.apply(update.state.target_params, update.batch.next_obs)
    check_td_loss(update, network.apply, next_q.max(-1))


def test_dueling_by_hand():
    q_values = dueling(jnp.array([10.0]), jnp.array([1.0, 2.0, 6.0]))
    np.testing.assert_allclose(q_values, [8, 9, 13], rtol=1e-6)
    batch = dueling(jnp.array([[10.0], [-2.0]]), jnp.array([[1.0, 2.0, 6.0], [0.0, 3.0, 3.0]]))
    np.testing.assert_allclose(batch, [[8, 9, 13], [-4, -1, -1]], rtol=1e-6)


def test_value_and_advantages_are_identified():
    """A constant added to A changes nothing: V is the mean of Q, and A is what is left."""
    value = jnp.float32([3])
    advantage = jnp.float32([1, -4, 0.5, 2])
    q_values = dueling(value, advantage)
    np.testing.assert_allclose(dueling(value, advantage + 7), q_values, atol=1e-5)
    np.testing.assert_allclose(q_values.mean(), 3, rtol=1e-6)
    np.testing.assert_allclose(dueling(0 * value, advantage).mean(), 0, atol=1e-6)


def test_gradient_of_one_value_reaches_every_advantage():
    """∂Q(s, a)/∂V = 1, ∂Q(s, a)/∂A(s, a) = 1 - 1/|A|, and -1/|A| for the other actions."""
    of_action = lambda value, advantage: dueling(value, advantage)[1]
    gradients = jax.grad(of_action, argnums=(0, 1))(jnp.zeros(1), jnp.arange(4.0))
    np.testing.assert_allclose(gradients[0], [1])
    np.testing.assert_allclose(gradients[1], [-0.25, 0.75, -0.25, -0.25])


def convolved(layer, images):
    """The features [B, F] of a layer of 3x3 filters, by XLA's own convolution."""
    w, b = layer
    filters = w.reshape(3, 3, -1, w.shape[-1])
    dimensions = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(images, filters, (1, 1), "VALID", dimension_numbers=dimensions)
    return jnp.maximum(x + b, 0).reshape(len(images), -1)


def flat(layers, obs):
    return obs.reshape(len(obs), -1)


def one_hot(layers, obs):
    return jnp.eye(16)[obs]


KINDS = {  # environment, layers of its own before the fully connected ones, what these see
    "CartPole-v1": (0, flat),
    "Catch-bsuite": (0, flat),
    "FrozenLake-misc": (0, one_hot),
    "Breakout-MinAtar": (1, lambda layers, obs: convolved(layers[0], obs.astype(float))),
}


@pytest.mark.parametrize("hidden_sizes", [(6,), (7, 5, 6)])
@pytest.mark.parametrize("env_id", KINDS)
def test_network_is_two_streams_on_shared_layers(env_id, hidden_sizes):
    """The same numbers from V and A as networks of their own, which share all layers but the last
    hidden one."""
    env = make_env(env_id, 5)
    network = make_dueling_network(env, hidden_sizes)
    params = jax.jit(network.init)(jax.random.key(1))
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(2), x.shape), params)
    obs = jax.jit(env.reset)(jax.random.key(0)).obs

    num_own, features = KINDS[env_id]
    *shared, (w, b), value, advantage = params[num_own:]
    assert [w.shape[1] for w, _ in shared] == list(hidden_sizes[:-1])
    x = features(params, obs)
    size = hidden_sizes[-1]
    v = relu_mlp([*shared, (w[:, :size], b[:size]), value], x)
    a = relu_mlp([*shared, (w[:, size:], b[size:]), advantage], x)
    expected = v + a - a.mean(-1, keepdims=True)
    assert expected.shape == (5, env.num_actions)
    apply = jax.jit(network.apply)
    np.testing.assert_allclose(apply(params, obs), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(apply(params, obs[3]), expected[3], rtol=1e-4, atol=1e-5)


def test_every_layer_starts_with_the_scale_of_dense():
    """Weights of variance 1 / inputs, also in the layer that holds both streams."""
    network = make_dueling_network(make_env("CartPole-v1", 1), (100, 1_000))
    for w, b in jax.jit(network.init)(jax.random.key(0)):
        np.testing.assert_allclose(w.std() * np.sqrt(len(w)), 1, atol=0.1)
        assert not b.any()


def test_the_convolution_learns_from_both_streams():
    env = make_env("Breakout-MinAtar", 3)
    network = make_dueling_network(env, (8,))
    params = jax.jit(network.init)(jax.random.key(0))
    obs = jax.jit(env.reset)(jax.random.key(1)).obs
    of_mean = lambda params: network.apply(params, obs).mean()  # V alone
    of_gap = lambda params: jnp.ptp(network.apply(params, obs), axis=-1).sum()  # A alone
    for f in (of_mean, of_gap):
        assert np.abs(jax.grad(f)(params)[0][0]).max() > 1e-4
    *_, (value, _), (advantage, _) = jax.grad(of_mean)(params)
    assert np.abs(value).max() > 1e-4 and np.abs(advantage).max() < 1e-6
    *_, (value, _), (advantage, _) = jax.grad(of_gap)(params)
    assert np.abs(value).max() < 1e-6 and np.abs(advantage).max() > 1e-4


def test_streams_need_a_hidden_layer():
    with pytest.raises(ValueError, match="--hidden-sizes"):
        Config(hidden_sizes=())


def test_minatar_is_learned_through_the_convolution():
    config = Config(
        env_id="Breakout-MinAtar",
        total_timesteps=1_000,
        learning_starts=100,
        buffer_size=500,
        batch_size=16,
        hidden_sizes=(8,),
    )
    algorithm = make(config)
    state = jax.jit(algorithm.init)(jax.random.key(0))
    after, _ = jax.jit(algorithm.update)(state, jnp.int32(0))
    assert np.isfinite(after.params[0][0]).all()
    assert not np.array_equal(after.params[0][0], state.params[0][0])


def values_of(config, state, obs):
    network = make_dueling_network(make_env(config.env_id, 1), config.hidden_sizes)
    return network.apply(state.params, obs).max(-1)


@pytest.mark.parametrize("name", ["Together-probe", "ResetTrapVector-probe"])
def test_it_learns_the_values_and_best_actions_of_the_probes(name):
    check_q_probe(dueling_dqn, name, values_of)
