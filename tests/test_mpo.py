"""mpo.py: its equations by hand and against exact solutions, and what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    check_budget,
    check_continuous_probe,
    check_gradient,
    check_q_probe,
    first_continuous_update,
    pairs,
    q_network_values,
    relu_mlp,
    relu_q,
    replayed,
    small_config,
    small_continuous,
    states_of,
)
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from algorithms import mpo
from algorithms.mpo import decoupled, dual, make, multiplier_loss, td_error, weights
from common.buffers import uniform_buffer
from common.distributions import Normal, kl_divergence
from common.envs import make_env
from common.networks import make_q_network


@pytest.mark.parametrize("terminated", [False, True])
def test_td_error_by_hand_and_its_semi_gradient(terminated):
    arguments = jnp.array([1.0, 3.0, 8.0])  # Q(s, a), r, V(s')
    error = lambda x: td_error(x[0], x[1], x[2], jnp.array(terminated), 0.5)
    np.testing.assert_allclose(error(arguments), 3 + 0.5 * 8 * (not terminated) - 1)
    np.testing.assert_array_equal(jax.grad(error)(arguments), [-1, 0, 0])


# The E-step: η minimizes the dual.


def best_temperature(q_values, log_prior, epsilon):
    """argmin g(η), in float64."""
    objective = lambda x: float(dual(np.exp(x), q_values, log_prior, epsilon))
    x = minimize_scalar(objective, bounds=(-5, 8), method="bounded", options={"xatol": 1e-10}).x
    return np.exp(x)


def divergence(q, prior):
    return np.sum(q * np.log(q / prior))


@pytest.mark.parametrize("epsilon, expected", [(0.1, 1.0599473), (0.01, 3.5177918)])
def test_temperature_of_two_actions(epsilon, expected):
    """Q = (0, 1) and a uniform policy: KL(q ‖ π) = ε has this η."""
    with jax.enable_x64(True):
        q_values, log_prior = jnp.array([0.0, 1.0]), jnp.log(jnp.array([0.5, 0.5]))
        temperature = best_temperature(q_values, log_prior, epsilon)
        np.testing.assert_allclose(temperature, expected, rtol=1e-6)
        q = np.asarray(weights(temperature, q_values, log_prior))
        np.testing.assert_allclose(divergence(q, 0.5), epsilon, rtol=1e-5)
    if epsilon == 0.1:
        np.testing.assert_allclose(q, [0.280205, 0.719795], atol=1e-6)


def test_temperature_and_weights_of_a_normal_policy_and_a_linear_value():
    """η = √(g Σ g / 2 ε), and q = N(μ + Σ g / η, Σ): actions and their ln π are the nodes of a
    Gauss-Hermite quadrature."""
    mean, std, slope, epsilon = 0.3, 0.5, 2.0, 0.1
    with jax.enable_x64(True):
        nodes, masses = np.polynomial.hermite_e.hermegauss(40)
        actions = mean + std * nodes
        log_prior = jnp.log(masses / masses.sum())
        temperature = best_temperature(slope * actions, log_prior, epsilon)
        np.testing.assert_allclose(temperature, 2.2360680, rtol=1e-6)
        q = np.asarray(weights(temperature, slope * actions, log_prior))
    np.testing.assert_allclose(q.sum(), 1, rtol=1e-12)
    moved = mean + std**2 * slope / temperature
    np.testing.assert_allclose(q @ actions, moved, rtol=1e-6)
    np.testing.assert_allclose(q @ (actions - moved) ** 2, std**2, rtol=1e-6)


def test_slope_of_the_dual_is_the_bound_less_the_divergence():
    generator = np.random.default_rng(0)
    with jax.enable_x64(True):
        for epsilon in (0.02, 0.3):
            q_values, prior = generator.normal(size=5), generator.dirichlet(np.ones(5))
            q = np.exp(q_values / 0.7) * prior
            q /= q.sum()
            np.testing.assert_allclose(weights(0.7, q_values, np.log(prior)), q, rtol=1e-10)
            slope = jax.grad(dual)(0.7, q_values, jnp.log(prior), epsilon)
            np.testing.assert_allclose(slope, epsilon - divergence(q, prior), rtol=1e-8)


def test_an_action_without_probability_has_no_weight_and_no_gradient():
    log_prior = jnp.array([jnp.log(0.5), -jnp.inf, jnp.log(0.5)])
    q_values = jnp.array([1.0, 100.0, 2.0])
    q = weights(1.0, q_values, log_prior)
    np.testing.assert_allclose(q, np.array([1, 0, np.e]) / (1 + np.e), rtol=1e-6)
    slope = jax.grad(dual)(1.0, q_values, log_prior, 0.1)
    np.testing.assert_allclose(slope, 0.1 - divergence(q[jnp.array([0, 2])], 0.5), rtol=1e-4)


# The M-step: parts of the divergence and their multipliers.


def test_parts_of_a_normal_policy_change_the_mean_and_the_deviation_alone():
    """Both divergences against their integrals, for two components."""
    old = Normal(jnp.array([0.2, -1.0]), jnp.log(jnp.array([0.5, 0.8])))
    new = Normal(jnp.array([0.5, -0.7]), jnp.log(jnp.array([0.4, 1.1])))
    x = np.linspace(-8, 8, 20_001)

    def integral(mean, std):
        total = 0
        for i in range(2):
            p = norm.logpdf(x, old.mean[i], np.exp(old.log_std[i]))
            total += np.sum(np.exp(p) * (p - norm.logpdf(x, mean[i], std[i]))) * (x[1] - x[0])
        return total

    of_means, of_deviations = decoupled(old, new)
    got = [kl_divergence(old, of_means), kl_divergence(old, of_deviations)]
    expected = [integral(new.mean, np.exp(old.log_std)), integral(old.mean, np.exp(new.log_std))]
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    np.testing.assert_allclose(got[0], np.sum((0.3 / np.array([0.5, 0.8])) ** 2) / 2, rtol=1e-5)
    logits = jnp.array([1.0, 2.0])
    assert decoupled(jnp.zeros(2), logits) == [logits]


def test_a_multiplier_grows_exactly_while_its_divergence_is_above_its_bound():
    log_alpha = jnp.log(jnp.array([2.0, 2.0, 2.0]))
    kl, epsilon = jnp.array([0.3, 0.1, 0.01]), jnp.array([0.1, 0.1, 0.1])
    loss = lambda log_alpha, kl: multiplier_loss(log_alpha, kl, epsilon).sum()
    ascent = -jax.grad(loss)(log_alpha, kl)
    np.testing.assert_allclose(ascent, [0.4, 0, -0.18], atol=1e-7)
    np.testing.assert_array_equal(jax.grad(loss, 1)(log_alpha, kl), 0)


# One update, against its losses and their gradients worked out with other formulas.

FIELDS = {"num_samples": 6, "init_std": 1.5, "init_alpha": 40.0, "target_network_frequency": 3}


@pytest.fixture(scope="module")
def first_update():
    return first_continuous_update(mpo, num_keys=3, which_samples=1, **FIELDS)


def normal(params, obs):
    mean, log_std = jnp.split(relu_mlp(params, obs), 2, axis=-1)
    return jnp.tanh(mean), 1.5 * jnp.exp(log_std)


def sampled(update, which, obs):
    """Actions [K, B, 1] of the target policy, and their values [K, B] by the target critic."""
    actor, critic = update.before.target_params
    keys = jax.random.split(update.keys[2], (2, len(obs)))[which]
    noise = jax.vmap(lambda key: jax.random.normal(key, (6, 1)), out_axes=1)(keys)
    mean, std = normal(actor, obs)
    actions = mean + std * noise
    assert np.mean(np.abs(actions) > 1) > 0.2  # Q is that of the bound
    values = [relu_q(critic, obs, jnp.clip(action, -1, 1)) for action in actions]
    return actions, jnp.stack(values)


def test_the_critic_learns_the_mean_value_of_the_target_policy(first_update):
    """With the squared errors of their batch, for all kinds of ends."""
    config, before, after, metrics, batch, _ = first_update
    _, values = sampled(first_update, 0, batch.next_obs)
    targets = batch.reward + config.gamma * ~batch.terminated * values.mean(0)

    def loss(params):
        taken = jnp.clip(batch.action, -1, 1)
        return jnp.mean((targets - relu_q(params, batch.obs, taken)) ** 2)

    np.testing.assert_allclose(metrics["loss"], loss(before.critic_params), rtol=1e-5)
    check_gradient(after.critic_opt_state, loss, before.critic_params)


def test_the_policy_and_its_multipliers_descend_the_lagrangian(first_update):
    config, before, after, metrics, batch, _ = first_update
    actions, values = sampled(first_update, 1, batch.obs)
    mean, std = normal(before.target_params[0], batch.obs)
    temperature = float(np.exp(before.duals.log_temperature))
    w = np.exp(values / temperature)
    w /= w.sum(0)
    log_density = lambda x, mean, std: (-(((x - mean) / std) ** 2) / 2 - jnp.log(std))[..., 0]

    def divergences(params):
        new_mean, new_std = normal(params, batch.obs)
        of_means = ((new_mean - mean) / std) ** 2 / 2
        of_deviations = jnp.log(new_std / std) + (std / new_std) ** 2 / 2 - 0.5
        return jnp.stack([of_means.mean(), of_deviations.mean()])

    def loss(params):
        new_mean, new_std = normal(params, batch.obs)
        fit = log_density(actions, new_mean, std) + log_density(actions, mean, new_std)
        return -jnp.mean(jnp.sum(w * fit, axis=0)) + 40 * divergences(params).sum()

    check_gradient(after.opt_state, loss, before.params)
    kl = divergences(before.params)
    bounds = jnp.array([config.epsilon_mean, config.epsilon_std])

    def dual_loss(duals):
        log_temperature, log_alpha = duals
        eta = jnp.exp(log_temperature)
        log_means = jnp.log(jnp.mean(jnp.exp(values / eta), axis=0))
        return eta * (config.epsilon + log_means.mean()) + jnp.exp(log_alpha) @ (bounds - kl)

    check_gradient(after.duals_opt_state, dual_loss, tuple(before.duals))
    np.testing.assert_allclose(metrics["temperature"], temperature)


@pytest.fixture(scope="module")
def states():
    return states_of(make(small_continuous(mpo, **FIELDS)), 6)


def test_targets_are_copies_of_the_third_and_sixth_update(states):
    copied = [0, 0, 0, 3, 3, 3, 6]
    for state, source in zip(states, copied, strict=True):
        learned = states[source].params, states[source].critic_params
        for x, target in pairs(learned, state.target_params):
            np.testing.assert_array_equal(x, target)


def test_behaviour_is_a_sample_of_the_policy(states):
    """5 steps an update, after 2,000 at random: the noise is that of N(0, 1)."""
    noise = []
    for step in range(6):
        transitions = replayed(states[step + 1], 2_000 + 5 * step, 2_005 + 5 * step)
        mean, std = normal(states[step].params, transitions.obs)
        noise.append((transitions.action - mean) / std)
    assert len(np.unique(noise)) == 30
    np.testing.assert_allclose(np.std(noise), 1, rtol=0.35)
    np.testing.assert_allclose(np.mean(noise), 0, atol=0.5)


def test_act_is_the_mean_action_within_the_bounds(states):
    obs = jnp.eye(8)[4]
    action = make(small_continuous(mpo)).act(states[-1].params, obs, jax.random.key(0))
    np.testing.assert_allclose(action, 1 + 2 * normal(states[-1].params, obs)[0], rtol=1e-5)


def test_the_budget_counts_every_environment_step():
    check_budget(make(small_continuous(mpo, learning_starts=2_001)), 2_005, 3_000)


def test_discrete_actions_are_summed_over():
    """An update on CartPole: the target, the policy's loss and the duals'."""
    config = small_config(
        mpo, env_id="CartPole-v1", num_envs=5, init_alpha=40.0, epsilon_policy=0.02
    )
    algorithm = make(config)
    init = jax.jit(algorithm.init)
    before, other = init(jax.random.key(0)), init(jax.random.key(1))
    ends = jnp.arange(len(before.buffer.reward)) % 3 == 0
    buffer = before.buffer._replace(terminated=ends, truncated=~ends)
    actor, critic = other.target_params
    actor = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(jax.random.key(2), x.shape), actor)
    before = before._replace(target_params=(actor, critic), buffer=buffer)
    after, metrics = jax.jit(algorithm.update)(before, jnp.int32(0))
    key_sample = jax.random.split(jax.random.fold_in(before.key, 0), 3)[1]
    buffer = uniform_buffer(config.buffer_size, config.num_envs, config.batch_size)
    batch = buffer.sample(after.buffer, key_sample, 200 // 5 + 1)
    assert batch.terminated.any() and batch.truncated.any()
    policy = lambda params, obs: jax.nn.softmax(relu_mlp(params, obs))
    next_value = jnp.sum(policy(actor, batch.next_obs) * relu_mlp(critic, batch.next_obs), axis=1)
    targets = batch.reward + config.gamma * ~batch.terminated * next_value
    rows = np.arange(config.batch_size)

    def critic_loss(params):
        return jnp.mean((targets - relu_mlp(params, batch.obs)[rows, batch.action]) ** 2)

    np.testing.assert_allclose(metrics["loss"], critic_loss(before.critic_params), rtol=1e-5)
    check_gradient(after.critic_opt_state, critic_loss, before.critic_params)

    old, values = policy(actor, batch.obs), relu_mlp(critic, batch.obs)
    w = np.array(old * jnp.exp(values))  # η = 1
    w /= w.sum(1, keepdims=True)
    divergence = lambda params: jnp.sum(
        old * jnp.log(old / policy(params, batch.obs)), axis=1
    ).mean()

    def loss(params):
        fit = jnp.sum(w * jnp.log(policy(params, batch.obs)), axis=1).mean()
        return 40 * divergence(params) - fit

    check_gradient(after.opt_state, loss, before.params)
    kl = divergence(before.params)
    np.testing.assert_allclose(metrics["kl"], kl, rtol=1e-4)

    def dual_loss(duals):
        log_temperature, log_alpha = duals
        eta = jnp.exp(log_temperature)
        log_means = jnp.log(jnp.sum(old * jnp.exp(values / eta), axis=1))
        return eta * (config.epsilon + log_means.mean()) + jnp.exp(log_alpha[0]) * (0.02 - kl)

    check_gradient(after.duals_opt_state, dual_loss, tuple(before.duals))


def critic_values(config, state, obs, action):
    critic = make_q_network(make_env(config.env_id, 1), config.hidden_sizes)
    return critic.apply(state.critic_params, obs, action)


def test_it_learns_the_values_and_best_actions_of_the_continuous_probe():
    fields = {"num_samples": 10, "target_network_frequency": 20, "epsilon_mean": 0.1}
    check_continuous_probe(mpo, critic_values, total_timesteps=8_000, **fields)


def test_it_learns_the_values_and_best_actions_of_the_discrete_probes():
    values_of = lambda config, state, obs: q_network_values(
        config, state._replace(params=state.critic_params), obs
    )
    check_q_probe(mpo, "Together-probe", values_of, total_timesteps=8_000)
