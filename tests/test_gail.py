"""gail.py: its equations by hand, the closed forms of its discriminator, and what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    check_gradient,
    histories,
    pairs,
    random_rollout,
    small_config,
    tanh_mlp,
    to_bits,
)

from algorithms import gail, ppo
from algorithms.gail import accuracy, discriminator_loss, gradient_penalty, imitation_reward, make
from common.datasets import play_dataset
from common.envs import make_env

LN4 = 1.386294


def test_the_discriminator_by_hand():
    """D = 3/4 for the policy's pair and 1/4 for the expert's: both right, at -2 ln(3/4)."""
    logit = float(np.log(3))
    np.testing.assert_allclose(discriminator_loss(logit, -logit), -2 * np.log(0.75), rtol=1e-6)
    np.testing.assert_allclose(discriminator_loss(-logit, logit), -2 * np.log(0.25), rtol=1e-6)
    np.testing.assert_allclose(discriminator_loss(0.0, 0.0), LN4, rtol=1e-6)
    right = [accuracy(*x) for x in ((1.0, -1.0), (-1.0, -1.0), (1.0, 1.0), (-1.0, 1.0))]
    np.testing.assert_array_equal(right, [1, 0.5, 0.5, 0])


def test_what_looks_like_the_expert_is_rewarded_more():
    """The loss lowers D of the expert's pairs and raises that of the policy's; the reward, which is
    always positive, falls with D."""
    slopes = jax.grad(discriminator_loss, (0, 1))(0.0, 0.0)
    np.testing.assert_allclose(slopes, [-0.5, 0.5])
    rewards = imitation_reward(jnp.log(jnp.array([1 / 9, 1.0, 3.0])))  # D = 1/10, 1/2, 3/4
    np.testing.assert_allclose(rewards, -np.log([0.1, 0.5, 0.75]), rtol=1e-5)


# Pairs (s, a) of a finite MDP, where the best discriminator is known.


def mean_loss(logits, policy, expert):
    """The mean of the loss over the policy's pairs and the expert's, whose occupancies are [I]."""
    losses = discriminator_loss(logits[:, None], logits)
    return jnp.einsum("i,j,ij", policy, expert, losses)


def divergence(p, q):
    """KL(p ‖ q)."""
    return np.sum(p * np.log(p / q))


@pytest.mark.parametrize("is_matched", [False, True])
def test_the_best_discriminator_is_the_ratio_of_occupancies(is_matched):
    """D* = ρ_π / (ρ_π + ρ_E) is where the gradient vanishes, and there the objective, the negative
    loss, is -ln 4 + 2 JS(ρ_π, ρ_E): -1.386294 if they match."""
    policy, expert = np.random.default_rng(0).dirichlet(np.ones(6), 2)
    expert = policy if is_matched else expert
    mean = (policy + expert) / 2
    js = (divergence(policy, mean) + divergence(expert, mean)) / 2
    best = policy / (policy + expert)
    loss, slope = jax.value_and_grad(mean_loss)(np.log(best / (1 - best)), policy, expert)
    np.testing.assert_allclose(slope, 0, atol=1e-6)
    np.testing.assert_allclose(-loss, -LN4 + 2 * js, rtol=1e-5)
    assert js == 0 if is_matched else js > 0.1


@pytest.mark.parametrize("w", [[3.0, -4.0], [0.0, 0.0]])
def test_gradient_penalty_of_a_linear_discriminator(w):
    """logit = w · x + b has the slope |w| everywhere."""
    slope = jax.grad(lambda x: jnp.array(w) @ x + 2.0)(jnp.ones(2))
    np.testing.assert_allclose(gradient_penalty(slope), np.sum(np.square(w)))


# One update, from a rollout of random numbers with all kinds of ends.


FIELDS = {"num_steps": 8, "num_envs": 4, "batch_size": 8, "discriminator_steps": 1}


@pytest.fixture(scope="module")
def updated():
    """The State before an update, and a function of a number, by which the environment's rewards
    are multiplied: the State after it, its metrics, and the transitions that PPO learns from."""
    seen, scale_rewards = {}, gail.scale_rewards

    def record(scale, transitions, gamma):
        seen["transitions"] = transitions
        return scale_rewards(scale, transitions, gamma)

    def multiplied(*inputs):
        state, transitions, episodes = random_rollout(*inputs)
        return state, transitions._replace(reward=seen["factor"] * transitions.reward), episodes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gail, "rollout", multiplied)
        patch.setattr(gail, "scale_rewards", record)
        algorithm = make(small_config(gail, **FIELDS))
        before = jax.jit(algorithm.init)(jax.random.key(0))

        @jax.jit
        def update(factor):
            seen["factor"] = factor
            demonstrated = before.dataset.transitions
            demonstrated = demonstrated._replace(reward=factor * demonstrated.reward)
            dataset = before.dataset._replace(transitions=demonstrated)
            after, metrics = algorithm.update(before._replace(dataset=dataset), jnp.int32(0))
            return after._replace(dataset=()), metrics, seen["transitions"]

        update(1.0)
        return before, update


def test_the_reward_of_the_environment_changes_nothing(updated):
    """Bit for bit, in the rollout and in the demonstrations, if it is NaN."""
    before, update = updated
    assert to_bits(update(1.0)) == to_bits(update(jnp.nan))
    assert to_bits(update(1.0)[0]) != to_bits(before._replace(dataset=()))


def test_ppo_is_as_in_its_file(updated, monkeypatch):
    """The same rollout with these rewards, and the same keys: all networks end alike."""
    before, update = updated
    after, metrics, transitions = update(1.0)
    given = lambda *inputs: (*random_rollout(*inputs)[:1], transitions, {})
    monkeypatch.setattr(ppo, "rollout", given)
    same = {f: getattr(small_config(gail, **FIELDS), f) for f in ppo.Config.__dataclass_fields__}
    algorithm = ppo.make(ppo.Config(**same))
    names = [name for name in ppo.State._fields]
    state = ppo.State(**{name: getattr(before, name) for name in names})
    expected, ppo_metrics = jax.jit(algorithm.update)(state, jnp.int32(0))
    for name in set(names) - {"key", "env"}:
        for x, y in pairs(getattr(after, name), getattr(expected, name)):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    for name, x in ppo_metrics.items():
        np.testing.assert_allclose(metrics[name], x, rtol=1e-4, atol=1e-6)


def test_the_discriminator_descends_its_loss(updated):
    """Adam's first moment is a tenth of the gradient, on pairs of the rollout and of the expert
    that are drawn, scaled and mixed as the docstring says; rewards are of the D that results."""
    before, update = updated
    after, metrics, transitions = update(1.0)
    config = small_config(gail, **FIELDS)
    *_, key_expert, key_pairs = jax.random.split(jax.random.fold_in(before.key, 0), 4)
    key_rows, key_mix = jax.random.split(key_pairs)
    env = make_env(config.env_id, config.num_episodes)
    sampled = play_dataset(env, None).sample(before.dataset, key_expert, 8)
    x = np.concatenate([transitions.obs, np.clip(transitions.action, -1, 1)], -1).reshape(32, 4)
    policy_x = x[jax.random.randint(key_rows, (1, 8), 0, 32)[0]]
    expert_x = np.concatenate([sampled.obs, sampled.action], -1)
    both = np.concatenate([policy_x, expert_x])
    mean, std = both.mean(0), both.std(0)
    x, policy_x, expert_x = ((y - mean) / std for y in (x, policy_x, expert_x))
    mix = jax.random.uniform(key_mix, (1, 8, 1))[0]
    mixed_x = mix * policy_x + (1 - mix) * expert_x

    def loss(params):
        logit = lambda x: tanh_mlp(params, x)[..., 0]
        slopes = jax.vmap(jax.grad(logit))(mixed_x)
        error = jnp.log1p(jnp.exp(-logit(policy_x))) + jnp.log1p(jnp.exp(logit(expert_x)))
        return error.mean() + config.penalty_coef * jnp.sum(slopes**2, -1).mean()

    check_gradient(after.discriminator.opt_state, loss, before.discriminator.params)
    np.testing.assert_allclose(
        metrics["discriminator_loss"] + config.penalty_coef * metrics["gradient_penalty"],
        loss(before.discriminator.params),
        rtol=1e-4,
    )
    logit = tanh_mlp(after.discriminator.params, x)[:, 0]
    reward = np.log1p(np.exp(-logit))
    np.testing.assert_allclose(transitions.reward.ravel(), reward, rtol=1e-4)
    np.testing.assert_allclose(metrics["imitation_reward"], reward.mean(), rtol=1e-4)


def test_it_does_as_the_expert_not_as_the_reward_asks(monkeypatch):
    """In the ByBoth-probe the observation names the action that pays; the expert takes the other.
    Then it cannot be told from the expert: the loss is ln 4."""

    def worse(obs, key):
        return 1 - jnp.argmax(obs, axis=-1)

    monkeypatch.setattr(gail, "make_expert", lambda env_id, env, run: worse)
    fields = {"env_id": "ByBothVector-probe", "total_timesteps": 12_000, "num_episodes": 16}
    fields |= {"num_envs": 4, "num_steps": 32, "learning_rate": 5e-3, "batch_size": 64}
    algorithm = make(small_config(gail, **fields, discriminator_learning_rate=5e-3))
    states, losses = histories(algorithm, "discriminator_loss", 2)
    act = jax.vmap(jax.vmap(algorithm.act, (None, 0, None)), (0, None, None))
    actions = act(states.params, jnp.eye(3)[:2], jax.random.key(0))
    np.testing.assert_array_equal(actions, [[1, 0]] * 2)
    np.testing.assert_allclose(losses[:, -10:].mean(1), [LN4] * 2, atol=0.05)
