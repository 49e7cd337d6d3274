"""acer.py: its equations by hand and against exact gradients, a whole update against a loop over
rollouts, and what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import check_actor_critic_probe, check_budget, every_end, pairs, tanh_mlp
from probes import TOGETHER
from scipy.optimize import minimize

from algorithms import acer
from algorithms.acer import (
    Config,
    make,
    policy_gradient,
    policy_loss,
    state_value,
    td_error,
    trust_region,
    value_loss,
)
from common.buffers import uniform_buffer
from common.envs import make_env
from common.networks import make_network
from common.returns import retrace


@every_end
def test_td_error_by_hand(terminated, truncated, bootstraps):
    next_value = state_value(jnp.log(jnp.array([0.25, 0.75])), jnp.array([20.0, 4.0]))
    error = td_error(1.0, 3.0, next_value, jnp.array(terminated), 0.5)
    np.testing.assert_allclose(error, 3 + 0.5 * 8 * bootstraps - 1, rtol=1e-6)


def test_losses_by_hand():
    logits, direction = jnp.array([1.0, 2.0]), jnp.array([3.0, -4.0])
    assert policy_loss(logits, direction) == 5
    gradients = jax.grad(policy_loss, argnums=(0, 1))(logits, direction)
    np.testing.assert_array_equal(gradients, [[-3, 4], [0, 0]])
    assert value_loss(1.0, 4.0) == 4.5
    assert jax.grad(value_loss, argnums=(0, 1))(1.0, 4.0) == (-3, 0)


# The gradient by the logits.

LOGITS, BEHAVIOUR = np.array([0.5, -1.0, 2.0, 0.0]), np.array([1.0, 2.0, -2.0, 0.5])
REWARD = np.array([1.0, -2.0, 0.5, 3.0])


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


@pytest.mark.parametrize("clip", [1e-3, 0.3, 1.0, 10.0, np.inf])
def test_the_expected_gradient_is_exact_for_any_truncation(clip):
    """On a bandit whose rewards Q knows, over the actions of μ: π (r - E_π[r])."""
    with jax.enable_x64(True):
        gradients = jax.vmap(policy_gradient, (None, None, 0, None, 0, None))(
            LOGITS, BEHAVIOUR, jnp.arange(4), REWARD, REWARD, clip
        )
    pi = softmax(LOGITS)
    exact = pi * (REWARD - pi @ REWARD)
    assert (pi / softmax(BEHAVIOUR)).max() > 10
    np.testing.assert_allclose(softmax(BEHAVIOUR) @ np.asarray(gradients), exact, rtol=1e-12)


def test_without_truncation_only_the_action_taken_counts():
    """ρ ∇ ln π(a) (Qʳᵉᵗ - V): another Q of the other actions moves nothing but V."""
    pi, mu = softmax(LOGITS), softmax(BEHAVIOUR)
    gradient = policy_gradient(LOGITS, BEHAVIOUR, 1, REWARD, 5.0, np.inf)
    expected = pi[1] / mu[1] * (np.eye(4)[1] - pi) * (5.0 - pi @ REWARD)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


def test_the_correction_is_over_all_actions_with_a_ratio_above_c():
    """c = 1: ρ = (.37, .02, 29, .47) leaves the third action alone."""
    pi, mu = softmax(LOGITS), softmax(BEHAVIOUR)
    ratio, value = pi / mu, pi @ REWARD
    slope = np.eye(4) - pi
    expected = ratio[0] * slope[0] * (5 - value)
    expected += (1 - 1 / ratio[2]) * pi[2] * slope[2] * (REWARD[2] - value)
    gradient = policy_gradient(LOGITS, BEHAVIOUR, 0, REWARD, 5.0, 1.0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


def test_an_action_that_the_behaviour_hardly_takes_is_no_error():
    """ρ = e²⁰⁰ is infinite."""
    gradient = policy_gradient(
        jnp.array([0.0, 0.0]), jnp.array([200.0, 0.0]), 0, jnp.array([1.0, 3.0]), 1.0, 10.0
    )
    np.testing.assert_allclose(gradient, [-0.5, 0.5], atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_trust_region_is_the_nearest_point_within_the_half_space(seed):
    g, k, delta = np.array([1, 2, -0.5]), np.array([0.5, 1, 0.2]), 0.3
    if seed:
        generator = np.random.default_rng(seed)
        g, k, delta = generator.normal(size=3), generator.normal(size=3), generator.random()
    found = minimize(
        lambda z: 0.5 * np.sum((z - g) ** 2),
        np.zeros(3),
        jac=lambda z: z - g,
        method="SLSQP",
        constraints={"type": "ineq", "fun": lambda z: delta - k @ z, "jac": lambda z: -k},
        options={"ftol": 1e-14},
    )
    z = trust_region(jnp.asarray(g), jnp.asarray(k), delta)
    np.testing.assert_allclose(z, found.x, atol=2e-6)
    if not seed:
        np.testing.assert_allclose(z, [0.186047, 0.372093, -0.825581], atol=1e-6)


def test_trust_region_leaves_alone_what_is_within_it():
    g = jnp.array([1.0, 2.0])
    np.testing.assert_array_equal(trust_region(g, jnp.array([0.3, 0.1]), 0.6), g)
    np.testing.assert_array_equal(trust_region(g, jnp.zeros(2), 0.6), g)


def test_on_policy_the_target_is_the_n_step_return():
    """Cut at an end in the middle, whose value is that of what came before the reset."""
    generator = np.random.default_rng(0)
    q, reward, next_value = jnp.asarray(generator.normal(size=(3, 6)))
    terminated = jnp.arange(6) == 1
    done = terminated | (jnp.arange(6) == 3)  # a time limit
    r, v = np.asarray(reward), np.asarray(next_value)
    # After Q(s, a) comes the value of π, not Q of the next action, which on average is the same.
    q = q.at[1:].set(jnp.where(done[:-1], q[1:], next_value[:-1]))
    error = td_error(q, reward, next_value, terminated, 0.5)
    got = retrace(q, error, done, jnp.ones(6), 0.5)
    expected = [r[0] + 0.5 * r[1], r[1], r[2] + 0.5 * (r[3] + 0.5 * v[3]), r[3] + 0.5 * v[3]]
    expected += [r[4] + 0.5 * (r[5] + 0.5 * v[5]), r[5] + 0.5 * v[5]]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


# Whole updates.

NUM_STATES = len(TOGETHER[2])


def small(**fields):
    """Four updates' steps in `init`, and a replay of five."""
    defaults = {
        "env_id": "Together-probe",
        "total_timesteps": 1_000,
        "learning_starts": 200,
        "buffer_size": 250,
        "num_envs": 5,
        "num_steps": 10,
        "gamma": 0.8,
        "hidden_sizes": (16,),
        "max_grad_norm": 1e9,
    }
    return Config(**defaults | fields)


def targets(config, params, average_params, critic_params, rows):
    """z and Qʳᵉᵗ of every step, by the paper's equations in a loop."""
    steps, behaviour_logits = jax.tree.map(np.asarray, rows)
    outputs = lambda params, obs: np.asarray(tanh_mlp(params, np.eye(NUM_STATES)[obs]))
    logits, average_logits = outputs(params, steps.obs), outputs(average_params, steps.obs)
    pi, mu, average = map(softmax, (logits, behaviour_logits, average_logits))
    q = outputs(critic_params, steps.obs)
    value = (pi * q).sum(-1)
    next_value = softmax(outputs(params, steps.next_obs)) * outputs(critic_params, steps.next_obs)
    next_value = next_value.sum(-1)
    z, q_return, ratio = np.zeros_like(q), np.zeros_like(value), pi / mu
    bound, num_steps = 0, value.shape[1]
    for n in range(len(value)):
        for t in reversed(range(num_steps)):
            total = (1 - steps.terminated[n, t]) * next_value[n, t]
            if not (steps.terminated[n, t] or steps.truncated[n, t] or t == num_steps - 1):
                a = steps.action[n, t + 1]
                rest = q_return[n, t + 1] - q[n, t + 1, a]
                total += min(1, ratio[n, t + 1, a]) * rest
            q_return[n, t] = steps.reward[n, t] + config.gamma * total

            weight, a = np.zeros(2), steps.action[n, t]
            weight[a] = min(config.importance_clip, ratio[n, t, a])
            weight[a] *= q_return[n, t] - value[n, t]
            for b in range(2):
                rest = max(0, 1 - config.importance_clip / ratio[n, t, b])
                weight[b] += rest * pi[n, t, b] * (q[n, t, b] - value[n, t])
            g = weight @ (np.eye(2) - pi[n, t])
            log_pi = np.log(pi[n, t])
            g -= config.ent_coef * pi[n, t] * (log_pi - pi[n, t] @ log_pi)
            k = pi[n, t] - average[n, t]
            excess = k @ g - config.trust_region_delta
            bound += excess > 0
            z[n, t] = g - max(0, excess) / (k @ k) * k
    assert 0 < bound < z.size
    return z, q_return


def gradients(network_params, z, q_return, steps):
    def loss(network_params):
        actor, critic = network_params
        obs = jax.nn.one_hot(steps.obs, NUM_STATES)
        q_value = jnp.take_along_axis(tanh_mlp(critic, obs), steps.action[..., None], axis=-1)
        of_critic = 0.5 * jnp.mean((q_return - q_value[..., 0]) ** 2)
        return 0.5 * of_critic - jnp.mean(jnp.sum(z * tanh_mlp(actor, obs), axis=-1))

    return jax.grad(loss)(network_params)


def check_new_rows(rows, state):
    """Whole rollouts of five environments, each with the logits of the policy that acted."""
    steps, logits = rows
    obs = jax.nn.one_hot(steps.obs, NUM_STATES)
    np.testing.assert_allclose(logits, tanh_mlp(state.params, obs), rtol=1e-9)
    np.testing.assert_array_equal(steps.obs[:, 0], state.env.obs)
    goes_on = ~(steps.terminated | steps.truncated)[:, :-1]
    np.testing.assert_array_equal(steps.obs[:, 1:][goes_on], steps.next_obs[:, :-1][goes_on])


def test_an_update_follows_the_newest_rollouts_and_then_replayed_ones():
    """With a step size of almost 0, so that Adam's first moment is .09 g₁ + .1 g₂. The replayed
    ones have random ends and come from random policies."""
    with jax.enable_x64(True):
        config = small(
            replay_ratio=1,
            learning_rate=1e-30,
            importance_clip=1.2,
            trust_region_delta=0.02,
            average_decay=0.75,
        )
        algorithm = make(config)
        state = jax.jit(algorithm.init)(jax.random.key(0))
        generator = np.random.default_rng(0)
        draw = lambda x: jnp.asarray(generator.normal(size=x.shape))
        params, average_params, critic_params = (
            jax.tree.map(draw, x) for x in (state.params, state.average_params, state.critic_params)
        )
        steps, logits = state.buffer
        ends = jnp.asarray(generator.random((2, *steps.terminated.shape)) < 0.3)
        steps = steps._replace(terminated=ends[0], truncated=ends[1])
        state = state._replace(
            params=params,
            average_params=average_params,
            critic_params=critic_params,
            buffer=acer.Rollouts(steps, draw(logits)),
        )
        after, metrics = jax.jit(algorithm.update)(state, jnp.int32(0))
        newest = jax.tree.map(lambda x: x[20:25], after.buffer)
        key_sample = jax.random.split(jax.random.fold_in(state.key, 0))[1]
        replayed = uniform_buffer(25, 5, 5).sample(after.buffer, key_sample, 5)
        check_new_rows(newest, state)
        assert len({tuple(x) for x in np.stack(ends, -1).reshape(-1, 2).tolist()}) == 4
        second_average = jax.tree.map(lambda x, y: 0.75 * x + 0.25 * y, average_params, params)
        expected, losses = [], []
        for average, batch in ((average_params, newest), (second_average, replayed)):
            z, q_return = targets(config, params, average, critic_params, batch)
            network_params = params, critic_params
            expected.append(gradients(network_params, z, q_return, batch.transitions))
            q = np.asarray(tanh_mlp(critic_params, np.eye(NUM_STATES)[batch.transitions.obs]))
            q = np.take_along_axis(q, np.asarray(batch.transitions.action)[..., None], -1)[..., 0]
            losses.append(0.5 * np.mean((q_return - q) ** 2))
            if batch is newest:
                np.testing.assert_allclose(metrics["value"], q.mean(), rtol=1e-9)
        np.testing.assert_allclose(metrics["value_loss"], np.mean(losses), rtol=1e-9)
        mean = optax.tree_utils.tree_get(after.opt_state, "mu")
        expected = jax.tree.map(lambda x, y: 0.09 * x + 0.1 * y, *expected)
        for got, want in pairs(mean, expected):
            assert np.any(want)
            np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-10)


def test_the_budget_counts_every_environment_step():
    check_budget(make(small(learning_starts=201)), 250, 1_000)


@pytest.mark.parametrize(
    "fields",
    [{"replay_ratio": -1}, {"trust_region_delta": 0.0}, {"average_decay": 1.0}],
)
def test_nonsense_is_refused(fields):
    with pytest.raises(ValueError, match="--" + next(iter(fields)).replace("_", "-")):
        Config(**fields)


def values_of(config, state, obs):
    """Q(s, a) of the action that the policy prefers."""
    network = make_network(make_env(config.env_id, 1), config.hidden_sizes, 2, jnp.tanh)
    actions = jnp.argmax(network.apply(state.params, obs), axis=-1)
    q_values = network.apply(state.critic_params, obs)
    return jnp.take_along_axis(q_values, actions[:, None], axis=-1)[:, 0]


@pytest.mark.parametrize(
    "name", ["Together-probe", pytest.param("ResetTrap-probe", marks=pytest.mark.slow)]
)
def test_it_learns_the_values_and_best_actions_of_the_probes(name):
    fields = {"total_timesteps": 30_000, "learning_rate": 1e-2, "max_grad_norm": 100.0}
    check_actor_critic_probe(acer, name, values_of, **fields)
