"""v_mpo.py: its equations by hand, one update against them, and what it learns."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    check_actor_critic_probe,
    check_always_cut,
    gae_by_double_sum,
    pairs,
    small_config,
    states_of,
    tanh_mlp,
    with_all_ends,
)
from scipy.optimize import minimize_scalar

from algorithms import mpo, v_mpo
from algorithms.v_mpo import better_half, dual, make, td_error, value_loss, weights
from common.envs import rollout


@pytest.mark.parametrize("terminated", [False, True])
def test_td_error_by_hand(terminated):
    error = td_error(1.0, 3.0, 8.0, jnp.array(terminated), 0.5)
    np.testing.assert_allclose(error, 3 + 0.5 * 8 * (not terminated) - 1)


def test_value_loss_by_hand():
    assert value_loss(1.0, 4.0) == 4.5
    assert jax.grad(value_loss)(1.0, 4.0) == -3.0


@pytest.mark.parametrize("name", ["weights", "dual", "multiplier_loss", "decoupled"])
def test_equations_are_those_of_mpo_to_the_letter(name):
    """tests/test_mpo.py checks them against exact solutions."""
    assert inspect.getsource(getattr(v_mpo, name)) == inspect.getsource(getattr(mpo, name))


@pytest.mark.parametrize(
    "advantage, half",
    [
        ([3.0, -1.0, 2.0, 0.0], [0, 2]),
        ([-5.0, -7.0, -6.0, -9.0, -8.0], [0, 2]),  # of five the best two, whatever their sign
        ([1.0, 1.0, 1.0, 1.0], [0, 1]),  # half of equal ones, not all
    ],
)
def test_the_better_half_has_the_largest_advantages(advantage, half):
    expected = np.full(len(advantage), -np.inf)
    expected[half] = np.log(0.5)
    np.testing.assert_allclose(better_half(jnp.array(advantage)), expected, rtol=1e-6)


def test_temperature_and_weights_of_a_batch():
    """Of A = (0, 1, -5, -7) the better half is MPO's exact case of two actions."""
    with jax.enable_x64(True):
        advantage = jnp.array([-5.0, 0.0, -7.0, 1.0])
        log_prior = better_half(advantage)
        objective = lambda x: float(dual(x, advantage, log_prior, 0.1))
        best = minimize_scalar(objective, bounds=(0.1, 10), method="bounded").x
        np.testing.assert_allclose(best, 1.0599473, rtol=1e-4)
        psi = weights(1.0599473, advantage, log_prior)
        np.testing.assert_allclose(psi, [0, 0.280205, 0, 0.719795], atol=1e-6)


# One update, against its losses and their gradients worked out with other formulas.


def log_density(params, obs, action):
    """ln π(a) [B], of logits or of a normal distribution of one component."""
    if isinstance(params, tuple):
        mean, log_std = tanh_mlp(params[0], obs), params[1]
        each = -(((action - mean) / jnp.exp(log_std)) ** 2) / 2 - log_std - jnp.log(2 * jnp.pi) / 2
        return each[:, 0]
    return jnp.log(jax.nn.softmax(tanh_mlp(params, obs)))[np.arange(len(obs)), action]


def divergences(old, params, obs):
    """The means of KL(π_old ‖ π) over the batch: one of logits, two of a normal distribution."""
    if isinstance(params, tuple):
        change, std, new_std = (
            tanh_mlp(params[0], obs) - tanh_mlp(old[0], obs),
            *map(jnp.exp, (old[1], params[1])),
        )
        of_means = jnp.mean((change / std) ** 2 / 2)
        of_deviations = jnp.mean(jnp.log(new_std / std) + (std / new_std) ** 2 / 2 - 0.5)
        return jnp.stack([of_means, of_deviations])
    p, q = (jax.nn.softmax(tanh_mlp(x, obs)) for x in (old, params))
    return jnp.stack([jnp.mean(jnp.sum(p * jnp.log(p / q), axis=1))])


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_an_update_descends_its_losses(monkeypatch, env_id):
    """With an old policy that is another one, steps that end in all four ways, and gradients that
    are not clipped: Adam's first moments are a tenth of the gradients."""
    seen = with_all_ends(monkeypatch, v_mpo, 8, 5)
    fields = {"num_envs": 5, "num_steps": 8, "max_grad_norm": 1e9, "gae_lambda": 0.9}
    fields |= {"init_alpha": 40.0, "epsilon_std": 0.002, "env_id": env_id}
    config = small_config(v_mpo, **fields)
    algorithm = make(config)
    init = jax.jit(algorithm.init)
    before, other = init(jax.random.key(0)), init(jax.random.key(1)).params.actor
    other = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(jax.random.key(2), x.shape), other)
    before = before._replace(target_params=other)
    after, metrics = jax.jit(algorithm.update)(before, jnp.int32(0))
    jax.effects_barrier()
    (steps,) = seen
    value = lambda params, obs: tanh_mlp(params, obs)[..., 0]
    values, next_values = (
        np.asarray(value(before.critic_params, x)) for x in (steps.obs, steps.next_obs)
    )
    errors = steps.reward + config.gamma * ~steps.terminated * next_values - values
    A = gae_by_double_sum(errors, steps.terminated | steps.truncated, config.gamma * 0.9)
    A, targets = A.ravel(), (A + values).ravel()
    obs, action = (x.reshape(40, *x.shape[2:]) for x in (steps.obs, steps.action))
    best = np.sort(np.argsort(A)[20:])
    psi = np.exp(A[best]) / np.exp(A[best]).sum()  # η = 1

    def loss(params):
        actor, critic = params
        fit = psi @ log_density(actor, obs[best], action[best])
        squares = jnp.mean((value(critic, obs) - targets) ** 2)
        return 40 * divergences(other, actor, obs).sum() - fit + config.vf_coef * squares / 2

    kl = divergences(other, before.params.actor, obs)
    epsilons = {1: [config.epsilon_policy], 2: [config.epsilon_mean, 0.002]}[len(kl)]
    assert kl[0] > 1e-4

    def dual_loss(duals):
        eta = jnp.exp(duals[0])
        log_mean = jnp.log(jnp.mean(jnp.exp(A[best] / eta)))
        return eta * (config.epsilon + log_mean) + jnp.exp(duals[1]) @ (jnp.array(epsilons) - kl)

    check_moments(after.opt_state, loss, (before.params.actor, before.critic_params))
    check_moments(after.duals_opt_state, dual_loss, tuple(before.duals))
    fit = psi @ log_density(before.params.actor, obs[best], action[best])
    np.testing.assert_allclose(metrics["policy_loss"], -fit, rtol=1e-4)


def check_moments(opt_state, loss, params):
    moments = optax.tree_utils.tree_get(opt_state, "mu")
    for got, expected in pairs(moments, jax.jit(jax.grad(loss))(params)):
        np.testing.assert_allclose(10 * got, expected, rtol=2e-3, atol=1e-5)


def test_the_old_policy_acts_and_is_a_copy_of_the_third_and_sixth_update(monkeypatch):
    """What acts is told from the policy by logits that leave no doubt."""
    played = []

    def spy(*args):
        env_state, steps, episodes = rollout(*args)
        jax.debug.callback(lambda x: played.append(np.asarray(x)), steps.action)
        return env_state, steps, episodes

    monkeypatch.setattr(v_mpo, "rollout", spy)
    algorithm = make(small_config(v_mpo, target_network_frequency=3))
    states = states_of(algorithm, 6)
    for state, source in zip(states, [0, 0, 0, 3, 3, 3, 6], strict=True):
        for x, target in pairs(states[source].params.actor, state.target_params):
            np.testing.assert_array_equal(x, target)
    assert not np.array_equal(states[2].params.actor[0][0], states[0].params.actor[0][0])

    *layers, (w, _) = states[0].target_params
    certain = [*layers, (jnp.zeros_like(w), jnp.array([-100.0, 100.0]))]
    jax.jit(algorithm.update)(states[0]._replace(target_params=certain), jnp.int32(0))
    jax.effects_barrier()
    assert 0.2 < np.mean(played[:-1]) < 0.8 and (played[-1] == 1).all()


def test_a_time_limit_after_every_step_is_no_end():
    check_always_cut(v_mpo, total_timesteps=30_000, num_steps=16, learning_rate=1e-2)


@pytest.mark.parametrize("name", ["Together-probe", "ResetTrap-probe"])
def test_it_learns_the_values_and_best_actions_of_the_probes(name):
    fields = {
        "total_timesteps": 60_000,
        "num_steps": 16,
        "learning_rate": 1e-2,
        "max_grad_norm": 10.0,
    }
    check_actor_critic_probe(v_mpo, name, **fields)
