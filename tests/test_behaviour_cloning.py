"""behaviour_cloning.py: maximum likelihood against counts, regression and a linear expert."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import trained

from algorithms.behaviour_cloning import Config, imitation_loss, is_same_action, make
from common.environments.experts import linear_controller
from common.environments.linear import make_system


def test_the_loss_is_the_negative_log_likelihood_of_a_softmax():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    for action, probability in enumerate([0.5, 0.3, 0.2]):
        got = imitation_loss(logits + 7, jnp.int32(action))
        assert got == pytest.approx(-np.log(probability), rel=1e-5)


def test_the_loss_is_the_squared_distance_of_continuous_actions():
    got = imitation_loss(jnp.array([0.5, -1.0]), jnp.array([1.0, 1.0]))
    assert got == pytest.approx(0.25 + 4)


def test_at_the_minimum_the_policy_is_the_frequency_of_actions():
    """Three of four labels are action 1: the logits' gradient vanishes at ln 3, and the loss is the
    entropy of the labels."""
    labels = jnp.array([1, 1, 0, 1])
    mean_loss = lambda logits: jnp.mean(jax.vmap(imitation_loss, (None, 0))(logits, labels))
    logits = jnp.array([0.0, np.log(3.0)])
    np.testing.assert_allclose(jax.grad(mean_loss)(logits), 0, atol=1e-6)
    assert mean_loss(logits) == pytest.approx(-0.75 * np.log(0.75) - 0.25 * np.log(0.25), rel=1e-5)


@pytest.mark.parametrize(
    "output, action, same",
    [
        (jnp.array([1.0, 3.0]), jnp.int32(1), True),
        (jnp.array([1.0, 3.0]), jnp.int32(0), False),
        (jnp.array([0.5, 0.05]), jnp.array([0.45, 0.0]), True),
        (jnp.array([0.5, 0.2]), jnp.array([0.45, 0.0]), False),
        (jnp.array([3.0]), jnp.array([0.95]), True),  # the environment clips to 1
    ],
)
def test_when_two_actions_count_as_the_same(output, action, same):
    assert bool(is_same_action(output, action)) == same


def test_a_linear_policy_becomes_the_gain_of_the_linear_expert():
    """u = -K x of the double integrator: least squares without hidden layers finds K, and no
    bias."""
    fields = {"env_id": "DoubleIntegrator-linear", "hidden_sizes": (), "num_episodes": 20}
    algorithm = make(Config(**fields, num_iterations=15, gradient_steps=100, learning_rate=0.01))
    states = trained(algorithm, [0, 1], algorithm.num_updates).state
    (weights, bias), *_ = states.params
    gain = 3 * np.asarray(weights)[..., 0]  # actions of 1 are forces of 3
    control = linear_controller("DoubleIntegrator-linear")
    wanted = jax.vmap(control)(jnp.eye(len(make_system("DoubleIntegrator-linear").A)))[:, 0]
    np.testing.assert_allclose(gain, np.broadcast_to(wanted, gain.shape), atol=0.01)
    np.testing.assert_allclose(bias, 0, atol=0.01)


def test_a_cloned_policy_never_learns_the_way_back():
    """The steady expert stays on the ledge, so the state below is not in the data: the policy walks
    there, as it does above, though the way back is to climb."""
    fields = {"env_id": "SteadyLedge-tabular", "num_episodes": 2, "hidden_sizes": (8,)}
    algorithm = make(Config(**fields, num_iterations=5, gradient_steps=20, batch_size=32))
    states = trained(algorithm, [0, 1, 2], algorithm.num_updates).state
    data = states.dataset
    assert (np.asarray(data.transitions.obs) == 0).all()
    assert (np.asarray(data.transitions.action) == 0).all()
    outputs = jax.vmap(lambda params: algorithm.act(params, jnp.int32(0), None))(states.params)
    np.testing.assert_array_equal(outputs, 0)


def test_the_number_of_episodes_is_that_of_the_flag():
    algorithm = make(Config(num_episodes=3))
    data = jax.jit(algorithm.init)(jax.random.key(0)).dataset
    assert int(data.size) == 1_500 and data.transitions.truncated.sum() == 3
