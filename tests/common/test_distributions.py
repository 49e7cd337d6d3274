"""common/distributions.py against scipy and sampling."""

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import spaces
from helpers import config_of, each, load, trained
from probes import Probe
from scipy import stats

from common.distributions import (
    Normal,
    entropy,
    kl_divergence,
    log_probability,
    make_policy,
    mode,
    sample,
)
from common.envs import bound_action, make_env, map_actions
from common.networks import mlp

OUTPUTS = np.array([[0.5, -1.0, 2.0], [0.0, 0.0, 0.0]], np.float32)
LOG_STD = np.array([-0.5, 0.0, 0.7], np.float32)


def test_logits_are_those_of_a_softmax():
    probs = np.exp(OUTPUTS) / np.exp(OUTPUTS).sum(-1, keepdims=True)
    for action in range(3):
        got = log_probability(OUTPUTS, jnp.full(2, action))
        np.testing.assert_allclose(got, np.log(probs[:, action]), rtol=1e-5)
    np.testing.assert_allclose(entropy(OUTPUTS), [stats.entropy(p) for p in probs], rtol=1e-5)
    assert mode(OUTPUTS)[0] == 2
    keys = jax.random.split(jax.random.key(0), 20_000)
    actions = jax.vmap(sample, (0, None))(keys, OUTPUTS)
    for row in range(2):
        np.testing.assert_allclose(np.bincount(actions[:, row]) / 20_000, probs[row], atol=0.015)


def test_kl_divergence_is_that_of_scipy_and_of_quadrature():
    probs = np.exp(OUTPUTS) / np.exp(OUTPUTS).sum(-1, keepdims=True)
    expected = stats.entropy(probs[0], probs[1])
    np.testing.assert_allclose(kl_divergence(OUTPUTS[0], OUTPUTS[1]), expected, rtol=1e-5)
    np.testing.assert_allclose(kl_divergence(OUTPUTS, OUTPUTS), 0, atol=1e-6)
    old, new = Normal(OUTPUTS[0], LOG_STD), Normal(OUTPUTS[0] - 0.3, LOG_STD + [0.2, -0.1, 0.4])
    x = np.linspace(-30, 30, 200_001)
    expected = 0.0
    for i in range(3):
        p = stats.norm(float(old.mean[i]), np.exp(old.log_std[i]))
        q = stats.norm(float(new.mean[i]), np.exp(new.log_std[i]))
        expected += np.trapezoid(p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), x)
    np.testing.assert_allclose(kl_divergence(old, new), expected, rtol=1e-4)


def test_a_normal_has_independent_components():
    normal = Normal(OUTPUTS, LOG_STD)
    action = np.array([[1.0, 2.0, -3.0], [0.1, 0.2, 0.3]], np.float32)
    expected = stats.norm.logpdf(action, OUTPUTS, np.exp(LOG_STD)).sum(-1)
    np.testing.assert_allclose(log_probability(normal, action), expected, rtol=1e-5)
    expected = stats.norm.entropy(0, np.exp(LOG_STD)).sum()
    np.testing.assert_allclose(entropy(normal), [expected, expected], rtol=1e-5)
    np.testing.assert_array_equal(mode(normal), OUTPUTS)
    keys = jax.random.split(jax.random.key(0), 20_000)
    actions = jax.vmap(sample, (0, None))(keys, normal)
    np.testing.assert_allclose(actions.mean(0), OUTPUTS, atol=0.05)
    np.testing.assert_allclose(actions.std(0), np.tile(np.exp(LOG_STD), (2, 1)), rtol=0.03)


def test_a_normal_learns_one_std_for_all_observations():
    env = make_env("Pendulum-v1", 1)._replace(action_shape=(2,))
    network = make_policy(env, mlp([4, 8, 2]), 0.5)
    params = jax.jit(network.init)(jax.random.key(0))
    obs = jax.random.normal(jax.random.key(1), (7, 4))
    action = jnp.ones((7, 2))
    mean, log_std = network.apply(params, obs)
    assert mean.shape == (7, 2)
    np.testing.assert_allclose(np.exp(log_std), [0.5, 0.5], rtol=1e-6)
    loss = lambda params: log_probability(network.apply(params, obs), action).sum()
    _, slope = jax.grad(loss)(params)
    z = (1 - np.asarray(mean)) / 0.5
    np.testing.assert_allclose(slope, (np.square(z) - 1).sum(0), rtol=1e-4)


@pytest.mark.parametrize("env_id, num_outputs", [("Acrobot-v1", 3), ("Pendulum-v1", 1)])
def test_the_environment_decides(env_id, num_outputs):
    env = make_env(env_id, 2)
    network = make_policy(env, mlp([4, num_outputs]), 1.0)
    distribution = network.apply(network.init(jax.random.key(0)), jnp.zeros((2, 4)))
    assert isinstance(distribution, Normal) == (env.num_actions is None)
    action = sample(jax.random.key(1), distribution)
    assert action.shape == mode(distribution).shape == (2, *env.action_shape)
    assert log_probability(distribution, action).shape == entropy(distribution).shape == (2,)
    assert jnp.issubdtype(action.dtype, jnp.integer) == (env.num_actions is not None)


def test_actions_are_rescaled_and_clipped_where_they_enter_the_step_and_kept_as_drawn():
    env = make_env("Pendulum-v1", 2)
    state = jax.jit(env.reset)(jax.random.key(0))
    far, bound = jnp.array([[5.0], [-0.5]]), jnp.array([[2.0], [-1.0]])
    expected, _ = env.step(state, bound, jax.random.key(1))
    got, transition = map_actions(env, bound_action).step(state, far, jax.random.key(1))
    np.testing.assert_array_equal(got.obs, expected.obs)
    np.testing.assert_array_equal(transition.action, far)
    np.testing.assert_array_equal(bound_action(make_env("CartPole-v1", 2), 3), 3)


def test_only_finite_bounds_rescale():
    low, high = np.float32([-1, -1000, 10, -np.inf, 0]), np.float32([1, 1000, 20, np.inf, np.inf])
    env = make_env("Pendulum-v1", 1)._replace(action_low=low, action_high=high)
    for action, expected in (
        (0.5, [0.5, 500, 17.5, 0.5, 0.5]),
        (-3.0, [-1, -1000, 10, -3, 0]),
    ):
        np.testing.assert_array_equal(bound_action(env, jnp.full(5, action)), expected)


LOW = np.float32([-1, -1000, 10, -0.001, -np.inf])
HIGH = np.float32([1, 1000, 20, 0.001, np.inf])
CENTER, RADIUS = np.float32([0, 0, 15, 0, 0]), np.float32([1, 1000, 5, 0.001, 1])
BEST = np.float32([[0.5, -0.5, 0.5, -0.5, 0.5], [-0.5, 0.5, 0.5, 0.5, -0.5]])


class Units(Probe):
    """One step from one of two states. The reward falls with the squares of the distances of the
    components from the best ones, in their own units."""

    def step_env(self, key, state, action, params):
        obs, after, _, ended, info = super().step_env(key, state, 0, params)
        distance = (action - CENTER) / RADIUS - jnp.asarray(BEST)[state.s]
        return obs, after, -jnp.sum(distance**2), ended, info

    def action_space(self, params=None):
        return spaces.Box(jnp.asarray(LOW), jnp.asarray(HIGH), (5,), jnp.float32)


gymnax.register(
    "Units-probe", lambda: Units([[2]] * 3, [[0]] * 3, [False, False, True], [0, 1], vector=True)
)


@pytest.mark.parametrize(
    "name, fields",
    [
        ("a2c", {"total_timesteps": 60_000, "learning_rate": 1e-2}),
        ("ppo", {"total_timesteps": 60_000, "num_steps": 32, "learning_rate": 5e-3}),
        ("reinforce", {"total_timesteps": 60_000, "num_steps": 8, "learning_rate": 1e-2}),
        ("q_actor_critic", {"total_timesteps": 60_000, "learning_rate": 3e-3}),
    ],
)
def test_policies_learn_in_the_units_of_the_bounds(name, fields):
    module = load(name)
    defaults = {"env_id": "Units-probe", "num_envs": 16, "hidden_sizes": (32,), "ent_coef": 0.0}
    defaults |= {"init_std": 0.3}  # with a large one the clipping moves the best mean outwards
    algorithm = module.make(config_of(module, defaults, **fields))
    (state,) = each(trained(algorithm, [0], algorithm.num_updates).state, 1)
    for s in range(2):
        action = algorithm.act(state.params, jnp.eye(3)[s], jax.random.key(0))
        np.testing.assert_allclose((action - CENTER) / RADIUS, BEST[s], atol=0.25)
