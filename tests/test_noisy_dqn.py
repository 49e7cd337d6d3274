"""noisy_dqn.py: its equations by hand, and what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from helpers import check_q_probe, check_td_loss, first_update, relu_mlp, states_of

from algorithms import noisy_dqn
from algorithms.noisy_dqn import (
    Config,
    NoisyParams,
    factorised_noise,
    make,
    perturb,
    td_error,
    with_noise,
)
from common.envs import make_env
from common.networks import make_network

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
    """With one draw of the noise for θ, another for θ⁻."""
    update = first_update(noisy_dqn)
    key_noise = jax.random.split(jax.random.fold_in(update.state.key, 0), 3)[2]
    key_online, key_target = jax.random.split(key_noise)
    q = lambda params, obs: relu_mlp(perturb(params, key_online), obs)
    next_q = relu_mlp(perturb(update.state.target_params, key_target), update.batch.next_obs)
    check_td_loss(update, q, next_q.max(-1))


def noise_of_inputs_and_outputs(num_draws, num_inputs, num_outputs):
    """f(εᵢ) [draws, p] and f(εⱼ) [draws, q], told from εʷ and εᵇ."""
    keys = jax.random.split(jax.random.key(0), num_draws)
    x = jax.vmap(lambda key: jax.random.normal(key, (num_inputs + num_outputs,)))(keys)
    draws = jax.vmap(factorised_noise, (0, None))(x, num_inputs)
    weights, bias = map(np.asarray, draws)
    assert weights.shape == (num_draws, num_inputs, num_outputs)
    return weights, weights[:, :, 0] / bias[:, :1], bias


def test_noise_of_the_weights_is_the_product_of_that_of_inputs_and_outputs():
    weights, inputs, outputs = noise_of_inputs_and_outputs(20, 5, 3)
    np.testing.assert_allclose(weights, inputs[:, :, None] * outputs[:, None, :], rtol=1e-4)
    for matrix in weights:
        singular_values = np.linalg.svd(matrix, compute_uv=False)
        assert singular_values[1] < 1e-5 * singular_values[0]


def test_noise_is_the_signed_root_of_a_normal_number():
    """f(x) = sgn(x) √|x|, so f |f| = x is N(0, 1); inputs and outputs draw independently."""
    _, inputs, outputs = noise_of_inputs_and_outputs(4_000, 2, 3)
    x = np.concatenate([inputs * np.abs(inputs), outputs * np.abs(outputs)], axis=1)
    assert scipy.stats.kstest(x.ravel(), scipy.stats.norm.cdf).pvalue > 0.01
    np.testing.assert_allclose(np.corrcoef(x, rowvar=False), np.eye(5), atol=0.06)


LAYERS = [
    (jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), jnp.array([0.5, 0.25, -1.0])),
    (jnp.array([[1.0, -2.0], [0.0, 4.0], [2.0, 2.0]]), jnp.array([1.0, 3.0])),
]


def test_perturbed_layers_are_mu_plus_sigma_times_the_noise():
    """(9) written out: y = (μʷ + σʷ ⊙ εʷ) x + μᵇ + σᵇ ⊙ εᵇ, with the noise of unit σ."""
    x = jax.random.normal(jax.random.key(5), (10,))
    noise = [factorised_noise(x[:5], 2), factorised_noise(x[5:], 3)]
    sigma = jax.tree.map(lambda x: jnp.arange(1.0, x.size + 1).reshape(x.shape), LAYERS)
    layers = perturb(NoisyParams(LAYERS, sigma), jax.random.key(5))
    x = jnp.array([3.0, -1.0])
    for (w, b), (mu_w, mu_b), (sigma_w, sigma_b), (e_w, e_b) in zip(
        layers, LAYERS, sigma, noise, strict=True
    ):
        y = (mu_w + sigma_w * e_w).T @ x + mu_b + sigma_b * e_b
        np.testing.assert_allclose(x @ w + b, y, rtol=1e-5)
        x = y


def test_without_sigma_there_is_no_noise():
    zero = jax.tree.map(jnp.zeros_like, LAYERS)
    for got, mu in zip(perturb(NoisyParams(LAYERS, zero), jax.random.key(0)), LAYERS, strict=True):
        np.testing.assert_array_equal(got[0], mu[0])
        np.testing.assert_array_equal(got[1], mu[1])


def test_layers_draw_independently_and_those_without_sigma_stay_as_they_are():
    mu = [(jnp.zeros((4, 4)), jnp.zeros(4))] * 3
    one = (jnp.ones((4, 4)), jnp.ones(4))
    plain, first, second = perturb(NoisyParams(mu, [one, one]), jax.random.key(0))
    assert not plain[0].any() and not plain[1].any()
    assert (np.abs(first[0] - second[0]) > 1e-3).all()
    assert (np.abs(first[1] - second[1]) > 1e-3).all()


def test_the_mean_over_the_noise_is_mu():
    params = NoisyParams(LAYERS, jax.tree.map(jnp.ones_like, LAYERS))
    drawn = jax.vmap(perturb, (None, 0))(params, jax.random.split(jax.random.key(0), 40_000))
    for got, mu in zip(jax.tree.leaves(drawn), jax.tree.leaves(LAYERS), strict=True):
        np.testing.assert_allclose(got.mean(0), mu, atol=0.02)
        # E f(x)² = E |x| = √(2/π)
        variance = 2 / np.pi if mu.ndim == 2 else np.sqrt(2 / np.pi)
        np.testing.assert_allclose(got.var(0), variance, atol=0.03)


@pytest.mark.parametrize("env_id, num_plain", [("CartPole-v1", 0), ("Breakout-MinAtar", 1)])
def test_initial_parameters_are_the_papers(env_id, num_plain):
    """μ ~ U[-1/√p, 1/√p] and σ = σ₀ / √p, weights and bias; a convolution has no noise."""
    plain = make_network(make_env(env_id, 1), (400, 300), 20)
    params = with_noise(plain, 3, 0.5).init(jax.random.key(0))
    mu, sigma = params.mu, params.sigma
    assert len(mu) == num_plain + 3 and len(sigma) == 3
    for (w, b), (sigma_w, sigma_b) in zip(mu[num_plain:], sigma, strict=True):
        bound = 1 / np.sqrt(len(w))
        for x in (w, b):
            x = (np.ravel(x) + bound) / (2 * bound)
            assert x.min() >= 0 and x.max() <= 1
            assert scipy.stats.kstest(x, scipy.stats.uniform.cdf).pvalue > 0.01
        np.testing.assert_allclose(sigma_w, np.full(w.shape, 0.5 * bound), rtol=1e-6)
        np.testing.assert_allclose(sigma_b, np.full(b.shape, 0.5 * bound), rtol=1e-6)


def small(**fields):
    defaults = {
        "env_id": "AlwaysTruncated-probe",
        "total_timesteps": 20_000,
        "learning_starts": 0,
        "learning_rate": 1e-9,
        "buffer_size": 2_000,
        "batch_size": 16,
        "hidden_sizes": (16,),
    }
    return Config(**defaults | fields)


def actions_taken(**fields):
    """[T, N] in the one state of the probe, by one update."""
    config = small(num_envs=50, train_frequency=40, **fields)
    _, after = states_of(make(config), 1)
    return np.asarray(after.buffer.action).reshape(40, 50)


def test_every_environment_draws_at_every_step():
    """With σ far above μ, the two actions are equally likely and those of one step, or of one
    environment, have nothing in common. Noise for all environments or all steps would show."""
    actions = actions_taken(sigma_init=100.0)
    assert abs(actions.mean() - 0.5) < 0.05
    assert abs(actions.mean(0) - 0.5).max() < 0.35 and abs(actions.mean(1) - 0.5).max() < 0.35
    for x in (actions, actions.T):
        correlations = np.corrcoef(x)[np.triu_indices(len(x), 1)]
        assert abs(correlations.mean()) < 0.02


def test_without_noise_it_explores_nothing():
    assert len(np.unique(actions_taken(sigma_init=0.0))) == 1


def test_a_gradient_step_draws_once_for_each_network(monkeypatch):
    """One draw for the whole batch, outside its vmap, and a key for each network. (The third call
    is that of the policy, once for each environment.)"""
    calls = []

    def spy(params, key):
        calls.append(key)
        return perturb(params, key)

    monkeypatch.setattr(noisy_dqn, "perturb", spy)
    algorithm = make(small())
    state = jax.jit(algorithm.init)(jax.random.key(0))
    algorithm.update(state, jnp.int32(0))
    drawn = [jax.random.key_data(key) for key in calls if not isinstance(key, jax.core.Tracer)]
    assert len(calls) == 3 and len(drawn) == 2 and not np.array_equal(*drawn)


def test_the_two_draws_of_a_gradient_step_are_independent():
    """Gradients move nothing here and γ = 1: an error is 1 + max_a' Q(s, a', ε') - Q(s, a, ε). With
    ε' = ε it would never be below 1."""
    algorithm = make(small(gamma=1.0))
    update = jax.jit(algorithm.update)
    state = jax.jit(algorithm.init)(jax.random.key(0))
    losses = []
    for step in range(100):
        state, metrics = update(state, jnp.int32(step))
        losses.append(metrics["loss"])
    assert min(losses) < 0.5


def test_sigma_learns():
    """σ of every layer moves with the first gradient step: its gradient is the weight's own times
    the noise."""
    config = small(env_id="CartPole-v1", learning_rate=1e-3, hidden_sizes=(64, 64))
    before, after = states_of(make(config), 1)
    for old, new in zip(
        jax.tree.leaves(before.params.sigma), jax.tree.leaves(after.params.sigma), strict=True
    ):
        # What leads from or to a unit that ReLU shuts does not learn: three quarters in the middle.
        assert (np.asarray(old) != np.asarray(new)).mean() > 0.15

    sigma = jax.tree.map(jnp.ones_like, LAYERS)
    x = jnp.array([3.0, -1.0])
    key = jax.random.key(0)
    out = lambda params: relu_mlp(perturb(params, key), x)[1]
    of_mu, of_sigma = jax.jit(jax.grad(out))(NoisyParams(LAYERS, sigma))
    zero = jax.tree.map(jnp.zeros_like, LAYERS)
    noise = perturb(NoisyParams(zero, sigma), key)
    for d_mu, d_sigma, e in zip(*map(jax.tree.leaves, (of_mu, of_sigma, noise)), strict=True):
        np.testing.assert_allclose(d_sigma, d_mu * e, rtol=1e-5, atol=1e-6)
    assert any(x.any() for x in jax.tree.leaves(of_sigma))


def test_the_final_policy_has_no_noise():
    algorithm = make(small(env_id="CartPole-v1", sigma_init=100.0))
    params = jax.jit(algorithm.init)(jax.random.key(3)).params
    obs = jax.random.normal(jax.random.key(4), (40, 4))
    expected = relu_mlp(params.mu, obs).argmax(-1)
    keys = jax.random.split(jax.random.key(5), 40)
    actions = jax.vmap(algorithm.act, (None, 0, 0))(params, obs, keys)
    np.testing.assert_array_equal(actions, expected)
    assert len(np.unique(expected)) == 2


def test_minatar_has_noise_behind_its_convolution():
    algorithm = make(small(env_id="Breakout-MinAtar", learning_starts=100, learning_rate=1e-3))
    before, after = states_of(algorithm, 1)
    assert [w.shape for w, _ in after.params.sigma] == [(1024, 16), (16, 3)]
    for old, new in zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True):
        assert np.isfinite(new).all() and not np.array_equal(old, new)


def values_of(config, state, obs):
    network = make_network(make_env(config.env_id, 1), config.hidden_sizes, 2)
    return network.apply(state.params.mu, obs).max(-1)


@pytest.mark.parametrize("name", ["Together-probe", "ResetTrapVector-probe"])
def test_it_learns_the_values_and_best_actions_of_the_probes(name):
    check_q_probe(noisy_dqn, name, values_of)
