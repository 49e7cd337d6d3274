"""apg.py: its gradient against central differences, what it loses, and the gain that it finds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import float64, keys, small_config
from scipy.optimize import minimize

from algorithms import apg
from algorithms.apg import discounts, window_return
from common.environments.linear import double_integrator
from common.envs import make_env, scale_action
from common.normalization import normalize


@pytest.mark.parametrize("terminated, truncated", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_the_return_of_a_window_by_hand(terminated, truncated):
    """The second of four steps ends an episode, or not: what follows is discounted anew."""
    reward, ends = jnp.array([2.0, 3.0, 5.0, 7.0]), jnp.array([False, True, False, False])
    found = window_return(reward, ends & bool(terminated), ends & bool(truncated), 0.5)
    later = 5 + 0.5 * 7
    expected = 2 + 0.5 * 3 + (later if terminated or truncated else 0.25 * later)
    np.testing.assert_allclose(found, expected / 4)


def test_discounts_begin_again_behind_an_end():
    done = jnp.array([False, False, True, True, False])
    np.testing.assert_allclose(discounts(done, 0.9), [1, 0.9, 0.81, 1, 1])


SMALL = {"total_timesteps": 1_200, "num_envs": 3, "num_steps": 30, "hidden_sizes": (4,)}


def before_an_end(state, steps_left):
    """The State, with so many steps left to the time limit of each Pendulum."""
    inner = state.env.inner
    inner = inner.replace(time=jnp.asarray(200 - np.asarray(steps_left), inner.time.dtype))
    return state._replace(env=state.env._replace(inner=inner))


def window(config, params, env_state, key):
    """What update 0 sees: Transitions [T, N], and the last EnvState."""
    env = make_env(config.env_id, config.num_envs)
    actor = apg_actor(config, env)
    key_noise, key_env = jax.random.split(key, 2)
    noise = jax.random.normal(key_noise, (config.num_steps, config.num_envs, 1))

    def step(env_state, inputs):
        noise, key = inputs
        action = scale_action(env, actor(params, env_state.obs, noise))
        return env.step(env_state, action, key)

    inputs = noise, jax.random.split(key_env, config.num_steps)
    env_state, transitions = jax.lax.scan(step, env_state, inputs)
    return transitions, env_state


def apg_actor(config, env):
    def act(params, obs, noise):
        layers, log_std = params.actor
        x = normalize(params.statistics, obs)
        for w, b in layers[:-1]:
            x = jax.nn.elu(x @ w + b)
        x = x @ layers[-1][0] + layers[-1][1] + jnp.exp(log_std) * noise
        return jnp.tanh(x) if config.squash else jnp.clip(x, -1, 1)

    return act


def central_differences(loss, tree, h=1e-6):
    """The gradient of a loss at a tree of float64 arrays, number by number."""
    flat, unflatten = jax.flatten_util.ravel_pytree(tree)
    steps = h * jnp.eye(len(flat))
    both = jax.jit(lambda x: jax.lax.map(lambda x: loss(unflatten(x)), x, batch_size=32))
    return (both(flat + steps) - both(flat - steps)) / (2 * h)


def check_first_gradient(module, loss_of, **fields):
    """Adam's first moment after update 0 is the gradient of `loss_of(config, state, actor_params)`
    by central differences; episodes are cut after 5, 17 and 30 steps of a window of 30."""
    with float64():
        config = small_config(module, **SMALL | {"max_grad_norm": 1e9, **fields})
        algorithm = module.make(config)
        state = jax.jit(algorithm.init)(jax.random.key(3))
        spread = jax.tree.map(
            lambda x: x + 0.3 * jnp.cos(jnp.arange(x.size).reshape(x.shape)), state.params.actor
        )
        state = before_an_end(state, [5, 17, 30])
        state = state._replace(params=state.params._replace(actor=spread))
        after, metrics = jax.jit(algorithm.update)(state, jnp.int32(0))
        expected = central_differences(lambda actor: loss_of(config, state, actor), spread)
        moment = optax.tree_utils.tree_get(after.opt_state, "mu")
        found = jax.flatten_util.ravel_pytree(moment)[0] / (1 - 0.7)
    assert np.abs(expected).min() > 1e-4
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(expected), rtol=1e-6)
    return state, after, metrics


def numbered(reward, done, gamma):
    """Σ γ^k r / T of one window, by a loop."""
    total, discount = 0.0, 1.0
    for t in range(len(reward)):
        total += discount * reward[t]
        discount = jnp.where(done[t], 1.0, gamma * discount)
    return total / len(reward)


def test_the_gradient_is_that_of_central_differences_over_ends_of_episodes():
    def loss(config, state, actor):
        params, key = state.params._replace(actor=actor), jax.random.fold_in(state.key, 0)
        transitions, _ = window(config, params, state.env, key)
        done = transitions.truncated
        returns = [numbered(transitions.reward[:, n], done[:, n], config.gamma) for n in range(3)]
        return -sum(returns) / 3

    state, after, metrics = check_first_gradient(apg, loss, learning_rate=0.01)
    with float64():
        np.testing.assert_allclose(-metrics["value"] * 0, 0)
    # The first step of Adam is as long as the learning rate, against the gradient's sign.
    moment = optax.tree_utils.tree_get(after.opt_state, "mu")
    for new, old, g in zip(
        *map(jax.tree.leaves, (after.params.actor, state.params.actor, moment)), strict=True
    ):
        np.testing.assert_allclose(new - old, -0.01 * np.sign(g), rtol=1e-3)


def test_the_next_window_begins_where_the_last_one_ended():
    with float64():
        config = small_config(apg, **SMALL)
        algorithm = apg.make(config)
        state = before_an_end(jax.jit(algorithm.init)(jax.random.key(3)), [5, 17, 30])
        after, metrics = jax.jit(algorithm.update)(state, jnp.int32(0))
        key = jax.random.fold_in(state.key, 0)
        play = jax.jit(lambda: window(config, state.params, state.env, key))
        transitions, env_state = play()
    np.testing.assert_allclose(after.env.obs, env_state.obs, rtol=1e-9)
    np.testing.assert_array_equal(after.env.inner.time, [25, 13, 0])
    assert metrics["episodes"] == 3 == transitions.truncated.sum()


@pytest.mark.parametrize("squash", [False, True])
def test_a_clip_at_the_bounds_loses_the_gradient_and_is_reported(squash):
    """Of actions of the double integrator with σ = 1 in units of the bound, a third is clipped."""
    fields = {"env_id": "DoubleIntegrator-linear", "squash": squash, "init_std": 1.0}
    algorithm = apg.make(small_config(apg, num_envs=500, total_timesteps=10_000, **fields))
    state = jax.jit(algorithm.init)(jax.random.key(0))
    _, metrics = jax.jit(algorithm.update)(state, jnp.int32(0))
    np.testing.assert_allclose(metrics["lost"], 0 if squash else 0.3173, atol=0.02)


@pytest.mark.parametrize(
    "env_id", ["Fast-brax", "PointRobot-misc", "MountainCarContinuous-v0", "CartPole-v1"]
)
def test_environments_without_gradients_are_refused(env_id):
    """Fast-brax accelerates where an action is above 0, PointRobot rewards where the goal is near:
    no derivative of either is ever but 0."""
    with pytest.raises(ValueError, match=f"^{env_id}.* this algorithm needs "):
        apg.make(small_config(apg, env_id=env_id))


def expected_cost(gain, horizon):
    """Of u = -gain x, over the first `horizon` steps of the double integrator, by moments."""
    system, K = double_integrator(), np.array([gain])
    closed, weight = system.A - system.B @ K, system.Q + K.T @ system.R @ K
    moment, total = np.diag(system.start**2 / 3), 0.0
    for _ in range(horizon):
        total += np.trace(weight @ moment)
        moment = closed @ moment @ closed.T + np.diag(system.noise**2)
    return total


def test_the_gain_of_a_linear_policy_is_the_best_one(monkeypatch):
    """Of the double integrator, within 1 %, from its optimum over the 20 steps of an episode, which
    is within 1.6 % of Riccati's gain."""
    best = minimize(expected_cost, [0.4, 1.2], 20, method="Nelder-Mead", options={"xatol": 1e-6}).x
    config = apg.Config(
        env_id="DoubleIntegrator-linear",
        total_timesteps=512_000,
        num_envs=64,
        num_steps=20,
        gamma=1.0,
        norm_obs=False,
        squash=False,
        init_std=0.1,
        hidden_sizes=(),
    )
    algorithm = apg.make(config)
    train = jax.vmap(
        lambda key: jax.lax.scan(
            algorithm.update, algorithm.init(key), jnp.arange(algorithm.num_updates)
        )[0]
    )
    ((weights, bias),), _ = jax.jit(train)(keys(0, 1)).params.actor
    gains = -3 * weights[..., 0]
    print(gains, best, bias)
    np.testing.assert_allclose(gains, np.broadcast_to(best, (2, 2)), rtol=0.01)
    np.testing.assert_allclose(best, [0.422082, 1.243929], rtol=0.016)
