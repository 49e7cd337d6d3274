"""a3c.py: its equations by hand, stale gradients against their theory, rounds against workers that
take their turns one at a time, and what it learns."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    check_actor_critic_probe,
    check_always_cut,
    every_end,
    float64,
    pairs,
    random_rollout,
    small_config,
    tanh_mlp,
)

from algorithms import a3c
from algorithms.a3c import policy_loss, take_turns, td_error, value_loss
from common.envs import make_env


@every_end
def test_td_error_by_hand(terminated, truncated, bootstraps):
    error = td_error(1.0, 3.0, 8.0, jnp.array(terminated), 0.5)
    np.testing.assert_allclose(error, 3 + 0.5 * 8 * bootstraps - 1)


def test_losses_by_hand():
    assert policy_loss(-1.5, 2.0) == 3.0
    assert jax.grad(policy_loss)(-1.5, 2.0) == -2.0
    assert value_loss(1.0, 4.0) == 4.5
    assert jax.grad(value_loss)(1.0, 4.0) == -3.0


def test_workers_share_one_rmsprop():
    """g ← .99 g + .01 ∇², x ← x - η ∇ / √(g + ε), of one worker after the other."""
    optimizer = optax.rmsprop(0.5, 0.99, 0.1)
    grads = jnp.array([3.0, -1.0, 2.0])
    x, opt_state, copies = take_turns(optimizer, 1.0, optimizer.init(1.0), grads)
    expected, g = [1.0], 0.0
    for grad in (3.0, -1.0, 2.0):
        g = 0.99 * g + 0.01 * grad**2
        expected.append(expected[-1] - 0.5 * grad / math.sqrt(g + 0.1))
    np.testing.assert_allclose(copies, expected[1:], rtol=1e-6)
    np.testing.assert_allclose(x, expected[-1], rtol=1e-6)
    np.testing.assert_allclose(opt_state[0].nu, g, rtol=1e-6)


@pytest.mark.parametrize("lag", [0, 1, 2, 4, 8, 16])
def test_a_stale_gradient_is_stable_up_to_its_limit(lag):
    """x ← x - a x_old on ½ x² shrinks if and only if a < 2 sin(π / (2 (2 lag + 1))), where the
    roots of z^(lag + 1) = z^lag - a reach the unit circle; with lag + 1 workers that is the lag."""
    limit = 2 * math.sin(math.pi / (2 * (2 * lag + 1)))
    assert size_after_rounds(0.97 * limit, lag + 1) < 1e-2
    assert size_after_rounds(1.03 * limit, lag + 1) > 1e2


@jax.jit(static_argnums=1)
def size_after_rounds(rate, num_workers, num_turns=8_000):
    """|x| after that many turns of SGD; each worker's gradient of ½ x² is its own copy of x."""
    optimizer = optax.sgd(rate)

    def one_round(carry, _):
        x, copies = carry
        x, _, copies = take_turns(optimizer, x, optimizer.init(x), copies)
        return (jnp.clip(x, -1e6, 1e6), jnp.clip(copies, -1e6, 1e6)), None

    start = jnp.float32(1), jnp.ones(num_workers)
    (_, copies), _ = jax.lax.scan(one_round, start, length=num_turns // num_workers)
    return jnp.abs(copies).max()


@pytest.mark.parametrize("num_workers", [1, 3])
def test_a_round_is_every_workers_turn_one_at_a_time(monkeypatch, num_workers):
    """Three rounds; one worker is A2C."""
    monkeypatch.setattr(a3c, "rollout", random_rollout)
    with float64():
        fields = {"num_workers": num_workers, "num_steps": 7, "learning_rate": 0.05}
        fields |= {"total_timesteps": 42 * num_workers, "hidden_sizes": (8,), "max_grad_norm": 5.0}
        config = small_config(a3c, **fields)
        algorithm = a3c.make(config)
        update, state = jax.jit(algorithm.update), jax.jit(algorithm.init)(jax.random.key(0))
        shared, g, norms = (state.params.actor, state.critic_params), 0.0, []
        copies = [shared] * num_workers
        for step in range(3):
            key = jax.random.fold_in(state.key, step)
            transitions = stale_rollout(copies, config, key)
            rate = config.learning_rate * (1 - step / 6)
            for worker in range(num_workers):
                own = jax.tree.map(lambda x, w=worker: x[:, w], transitions)
                grads = gradient(copies[worker], own, config)
                norm = optax.tree_utils.tree_norm(grads)
                norms.append(norm)
                grads = jax.tree.map(lambda x, n=norm: x * jnp.minimum(1, 5 / n), grads)
                g = jax.tree.map(lambda x, g: 0.99 * g + 0.01 * x**2, grads, g or zeros(grads))
                shared = jax.tree.map(
                    lambda x, grad, g, rate=rate: x - rate * grad / jnp.sqrt(g + 0.1),
                    *(shared, grads, g),
                )
                copies[worker] = shared
            state, _ = update(state, jnp.int32(step))
            for got, want in pairs((state.params.actor, state.critic_params), shared):
                np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
            for got, *want in zip(*map(jax.tree.leaves, (state.copies, *copies)), strict=True):
                np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    assert max(norms) > 5  # some were clipped


def zeros(tree):
    return jax.tree.map(jnp.zeros_like, tree)


def stale_rollout(copies, config, key):
    """The random transitions whose actions come from each worker's own copy."""

    def policy(obs, key):
        logits = [tanh_mlp(actor, x) for (actor, _), x in zip(copies, obs, strict=True)]
        return jax.random.categorical(key, jnp.stack(logits))

    env = make_env(config.env_id, config.num_workers)
    env_state = env.reset(jax.random.key(0))  # of which only its shapes matter
    return random_rollout(env, policy, env_state, key, config.num_steps)[1]


def gradient(copy, transitions, config):
    """∇ Σ_t -ln π (R - V) + c₁ ½ (V - R)² - c₂ H at a worker's copy; R up to the next end."""
    _, critic_params = copy
    value = np.asarray(tanh_mlp(critic_params, transitions.obs))[:, 0]
    next_value = np.asarray(tanh_mlp(critic_params, transitions.next_obs))[:, 0]
    returns = np.zeros_like(value)
    ends = set()
    for t in reversed(range(len(value))):
        terminated, truncated = bool(transitions.terminated[t]), bool(transitions.truncated[t])
        ends.add((terminated, truncated))
        after = next_value[t] if truncated or t + 1 == len(value) else returns[t + 1]
        returns[t] = transitions.reward[t] + config.gamma * (not terminated) * after

    def loss(copy):
        actor, critic = copy
        log_probs = jax.nn.log_softmax(tanh_mlp(actor, transitions.obs))
        log_prob = jnp.take_along_axis(log_probs, transitions.action[:, None], axis=1)[:, 0]
        errors = tanh_mlp(critic, transitions.obs)[:, 0] - returns
        entropy = -jnp.sum(jnp.exp(log_probs) * log_probs)
        total = jnp.sum(-log_prob * (returns - value)) + config.vf_coef * jnp.sum(errors**2) / 2
        return total - config.ent_coef * entropy

    return jax.grad(loss)(copy)


FAST = {"num_workers": 4, "num_steps": 16, "learning_rate": 3e-3, "total_timesteps": 60_000}


def test_a_time_limit_after_every_step_is_no_end():
    check_always_cut(a3c, **FAST)


@pytest.mark.parametrize("name", ["Together-probe", "ResetTrap-probe"])
def test_it_learns_the_values_and_best_actions_of_the_probes(name):
    check_actor_critic_probe(a3c, name, **FAST)
