"""rnd.py: its equations by hand, one update against NumPy, and what it learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import (
    check_actor_critic_probe,
    check_always_cut,
    every_end,
    pairs,
    relu_mlp,
    small_config,
    states_of,
    tanh_mlp,
)

from algorithms import ppo, rnd
from algorithms.rnd import make, novelty, whiten
from common.envs import make_env, rollout
from common.networks import make_network
from common.normalization import Statistics

AT_ONCE = {"update_epochs": 1, "num_minibatches": 1, "norm_adv": False, "max_grad_norm": 1e9}


def test_novelty_by_hand():
    prediction, feature = jnp.array([1.0, 2.0]), jnp.array([0.0, 4.0])
    assert novelty(prediction, feature) == 5
    np.testing.assert_allclose(jax.grad(novelty)(prediction, feature), [2, -4])


def test_observations_are_whitened_and_clipped_to_5():
    statistics = Statistics(jnp.float32(9), jnp.array([1.0, 2.0, 0.0]), jnp.array([4.0, 1.0, 0.0]))
    seen = whiten(statistics, jnp.array([[3.0, 2.5, 0.0], [-99.0, 99.0, 1.0]]))
    np.testing.assert_allclose(seen, [[1, 0.5, 0], [-5, 5, 5]], rtol=1e-6)


def test_the_error_of_a_linear_predictor_decays_geometrically():
    """e² = e₀² (1 - α)²ⁿ after n visits of a state that is one-hot, with the step size α of the
    error's half square; a state that was never visited keeps its error."""
    keys = jax.random.split(jax.random.key(0))
    w, target = (jax.random.normal(key, (4, 6)) for key in keys)
    error = lambda w: jax.vmap(lambda s: novelty(jnp.eye(4)[s] @ w, target[s]))(jnp.arange(4))
    first, alpha, visits = error(w), 0.1, [0, 1, 5, 16]
    for state in np.repeat(np.arange(4), visits):
        w -= alpha / 2 * jax.grad(lambda w: error(w)[state])(w)  # noqa: B023
    np.testing.assert_allclose(error(w), first * (1 - alpha) ** (2 * np.array(visits)), rtol=1e-4)


def network_error(config, state, obs):
    """i of observations [S] that are numbered."""
    env = make_env(config.env_id, 1)
    x = np.clip((np.eye(env.num_states)[obs] - state.whitening.mean), -9, 9)
    x = np.clip(x / np.sqrt(state.whitening.var + 1e-8), -5, 5)
    error = relu_mlp(state.predictor_params, x) - relu_mlp(state.random_params, x)
    return np.sum(np.square(error), axis=-1)


@functools.cache
def on_the_cliff():
    """The Config, and 21 States of an agent that sees few of the 48 states."""
    fields = {"num_envs": 2, "num_steps": 8, "learning_starts": 2, "update_proportion": 1.0}
    config = small_config(rnd, env_id="CliffWalking-tabular", learning_rate=5e-3, **fields)
    return config, states_of(make(config), 20)


def errors_on_the_cliff():
    """i of each state by the predictor of each State, [21, 48], all with the last whitening, and
    the share of s' that each state is."""
    config, states = on_the_cliff()
    last = states[-1]
    predictors = [last._replace(predictor_params=state.predictor_params) for state in states]
    errors = [network_error(config, state, np.arange(48)) for state in predictors]
    return np.array(errors), np.asarray(last.whitening.mean)


def test_novelty_falls_where_the_agent_has_been_and_only_there():
    errors, share = errors_on_the_cliff()
    often, never = share > 0.05, share == 0
    assert often.any() and never.any()
    ratio = errors[-1] / errors[0]
    assert ratio[often].max() < 0.5 * ratio[never].min()


def test_novelty_of_what_is_always_seen_falls_monotonically():
    errors, share = errors_on_the_cliff()
    often = errors[::5, share > 0.05].mean(-1)
    assert (np.diff(often) < 0).all() and often[-1] < 0.1 * often[0]


def test_the_random_network_is_constant_and_no_part_of_what_is_trained():
    _, (first, *states) = on_the_cliff()
    for state in states:
        for now, before in pairs(state.random_params, first.random_params):
            np.testing.assert_array_equal(now, before)
        for now, before in pairs(state.predictor_params, first.predictor_params):
            assert not np.array_equal(now, before)
    trained = first.params.actor, first.critic_params, first.predictor_params
    moments = optax.tree_utils.tree_get(first.opt_state, "mu")
    assert jax.tree.structure(moments) == jax.tree.structure(trained)
    assert not np.allclose(first.predictor_params[0][0], first.random_params[0][0])


def made_up(env, key, num_steps, ends):
    """A rollout [T, N, ...] of random numbers, with those ends [2, T, N]."""
    keys = jax.random.split(key, 4)
    state, transitions, episodes = rollout(
        env, lambda obs, key: jnp.zeros(env.num_envs, int), env.reset(keys[0]), keys[1], num_steps
    )
    obs, next_obs = jax.random.normal(keys[2], (2, *transitions.obs.shape))
    terminated, truncated = jnp.asarray(ends)
    return (
        state._replace(obs=5 + state.obs),
        transitions._replace(
            obs=obs,
            next_obs=next_obs,
            reward=jax.random.normal(keys[3], terminated.shape),
            terminated=terminated,
            truncated=truncated,
        ),
        episodes,
    )


SHAPE = (6, 4)  # T and N
RNG = np.random.default_rng(0)
ENDS = RNG.random((2, *SHAPE)) < 0.4
GAMMAS = {"gamma": 0.9, "int_gamma": 0.7, "gae_lambda": 0.6}


def learned_from(ends, **fields):
    """An update from a rollout of random numbers with those ends: the State before and after it,
    the transitions, the EnvState after them, and the Batch [T, N, ...]."""
    fields = {"env_id": "CartPole-v1", "num_steps": SHAPE[0], "num_envs": SHAPE[1], **fields}
    config = small_config(rnd, **AT_ONCE | GAMMAS | fields)
    algorithm, seen = make(config), []
    before = jax.jit(algorithm.init)(jax.random.key(0))

    def same(env, policy, state, key, num_steps):
        seen.append(made_up(env, jax.random.key(7), num_steps, ends))
        return seen[0]

    def record(**fields):
        seen.append(batch(**fields))
        return seen[1]

    batch = rnd.Batch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rnd, "rollout", same)
        patch.setattr(rnd, "Batch", record)
        after, _ = algorithm.update(before, jnp.int32(0))
    (env_state, transitions, _), batch = seen
    return config, before, after, transitions, env_state, batch


@functools.cache
def update_with_all_ends():
    assert len(set(zip(ENDS[0].ravel(), ENDS[1].ravel(), strict=True))) == 4
    return learned_from(ENDS)


@functools.cache
def update_without_ends():
    return learned_from(np.zeros((2, *SHAPE), bool))


def backwards(error, decay):
    """A_t = δ_t + decay_t A_t+1, [T, N]."""
    advantage, after = np.zeros(error.shape), 0
    for t in reversed(range(len(error))):
        advantage[t] = after = error[t] + decay[t] * after
    return advantage


def scaled_bonus(state, transitions):
    """i of s', over the standard deviation of its discounted sums, along time for each
    environment."""
    mean, var = state.whitening.mean, state.whitening.var
    x = np.clip((transitions.next_obs - mean) / np.sqrt(var + 1e-8), -5, 5)
    error = relu_mlp(state.predictor_params, x) - relu_mlp(state.random_params, x)
    bonus = np.sum(np.square(error), axis=-1)
    sums, total = [], np.zeros(SHAPE[1])
    for now in bonus:
        total = GAMMAS["int_gamma"] * total + now
        sums.append(total)
    return bonus / np.std(sums)


def test_an_update_has_the_advantages_of_both_streams():
    """Rewards: no bootstrap where the MDP ended, and cut at each end. Bonuses: nothing ends, and
    V_I is of the observation after any reset."""
    config, before, after, t, env_state, batch = update_with_all_ends()
    value = tanh_mlp(before.critic_params, t.obs)
    following = np.concatenate([t.obs[1:], env_state.obs[None]])
    next_value = tanh_mlp(before.critic_params, t.next_obs)[..., 0]
    int_next_value = tanh_mlp(before.critic_params, following)[..., 1]
    gamma, int_gamma, decay = GAMMAS.values()
    error = t.reward + gamma * (1 - ENDS[0]) * next_value - value[..., 0]
    advantage = backwards(error, gamma * decay * (1 - (ENDS[0] | ENDS[1])))
    error = scaled_bonus(before, t) + int_gamma * int_next_value - value[..., 1]
    int_advantage = backwards(error, int_gamma * decay * np.ones(SHAPE))
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)
    close(batch.advantage, 2 * advantage + int_advantage)
    close(batch.target, np.stack([advantage, int_advantage], -1) + value)
    close(batch.feature, relu_mlp(before.random_params, batch.whitened))
    assert after.bonus_scale[1].count == 24


@functools.cache
def update_with_an_end_of_each_kind():
    """After step 3, in environment 2 d + c, if d means that the MDP ended and c the time limit."""
    ends = np.zeros((2, *SHAPE), bool)
    ends[:, 3] = [0, 0, 1, 1], [0, 1, 0, 1]
    return learned_from(ends)


@every_end
def test_only_rewards_obey_the_ends(terminated, truncated, bootstraps):
    """Targets of bonuses are those without ends; that of the last reward takes V_E of the step's
    s', or not, and nothing that came later."""
    *_, without = update_without_ends()
    _, before, _, t, _, batch = update_with_an_end_of_each_kind()
    n = 2 * terminated + truncated
    assert (t.terminated[3, n], t.truncated[3, n]) == (terminated, truncated)
    np.testing.assert_array_equal(batch.target[:, n, 1], without.target[:, n, 1])
    if not terminated and not truncated:
        np.testing.assert_array_equal(batch.target[:, n], without.target[:, n])
    else:
        next_value = tanh_mlp(before.critic_params, t.next_obs)[3, n, 0]
        target = t.reward[3, n] + GAMMAS["gamma"] * bootstraps * next_value
        np.testing.assert_allclose(batch.target[3, n, 0], target, rtol=1e-4, atol=1e-5)


def test_the_predictor_learns_from_its_part_of_a_minibatch_alone():
    """Adam's first moment, after its first step, is a tenth of the gradient of the mean of i over
    the first quarter of the permutation."""
    _, before, after, t, _, batch = update_with_all_ends()
    keys = jax.random.split(jax.random.split(jax.random.fold_in(before.key, 0))[1], 1)
    index = jax.random.permutation(keys[0], 24)[:6]
    x, feature = (y.reshape(24, -1)[index] for y in (batch.whitened, batch.feature))

    def mean_error(params):
        return jnp.mean(jnp.sum(jnp.square(relu_mlp(params, x) - feature), -1))

    expected = jax.grad(mean_error)(before.predictor_params)
    moments = optax.tree_utils.tree_get(after.opt_state, "mu")[2]
    for got, grad in pairs(moments, expected):
        assert np.any(grad)
        np.testing.assert_allclose(10 * got, grad, rtol=1e-4, atol=1e-5)


def test_statistics_begin_with_random_steps_and_grow_by_each_rollout():
    config = small_config(rnd, env_id="DeepSea8-bsuite", num_envs=3, learning_starts=200)
    algorithm = make(config)
    assert algorithm.initial_steps == 201
    before = jax.jit(algorithm.init)(jax.random.key(0))
    assert before.whitening.count == 201
    # Steps of uniform actions: from the start a half each to both columns, and so on.
    mean = np.asarray(before.whitening.mean).reshape(8, 8)
    np.testing.assert_allclose(mean.sum(1)[1:], np.full(7, 1 / 8), atol=0.01)
    assert mean[0].sum() == 0  # s', before any reset, is never the start
    assert 0.03 < mean[1, 0] < 0.1 and 0.03 < mean[1, 1] < 0.1
    config, before, after, t, *_ = update_with_all_ends()
    n, m = before.whitening.count, SHAPE[0] * SHAPE[1]
    total = n * before.whitening.mean + np.sum(t.next_obs, (0, 1))
    np.testing.assert_allclose(after.whitening.mean, total / (n + m), rtol=1e-5, atol=1e-6)


def test_without_bonuses_the_actor_learns_as_in_ppo(monkeypatch):
    """On the same rollout, with V_E as the critic."""
    fields = {"norm_adv": True, "ent_coef": 0.1}
    _, before, after, *_ = learned_from(ENDS, int_coef=0.0, ext_coef=1.0, **fields)
    fields |= {"env_id": "CartPole-v1", "num_steps": SHAPE[0], "num_envs": SHAPE[1]}
    algorithm = ppo.make(small_config(ppo, **AT_ONCE | GAMMAS | fields))
    *hidden, (w, b) = before.critic_params
    state = jax.jit(algorithm.init)(jax.random.key(0))._replace(
        key=before.key, params=before.params, critic_params=[*hidden, (w[:, :1], b[:1])]
    )
    same = lambda env, policy, state, key, steps: made_up(env, jax.random.key(7), steps, ENDS)
    monkeypatch.setattr(ppo, "rollout", same)
    expected, _ = algorithm.update(state, jnp.int32(0))
    for got, grad in pairs(
        *(optax.tree_utils.tree_get(x.opt_state, "mu")[0] for x in (after, expected))
    ):
        np.testing.assert_allclose(got, grad, rtol=1e-3, atol=1e-6)


def test_a_time_limit_after_every_step_is_no_end():
    fields = {"total_timesteps": 30_000, "num_steps": 32, "learning_rate": 5e-3}
    check_always_cut(rnd, clip_vloss=False, **fields)


def ext_values(config, state, obs):
    """V_E of `state.critic_params`, a network with tanh."""
    critic = make_network(make_env(config.env_id, 1), config.hidden_sizes, 2, jnp.tanh)
    return critic.apply(state.critic_params, obs)[:, 0]


@pytest.mark.parametrize(
    "name", [pytest.param("Together-probe", marks=pytest.mark.slow), "ResetTrap-probe"]
)
def test_it_learns_the_values_and_best_actions_of_the_probes(name):
    fields = {
        "total_timesteps": 30_000,
        "num_steps": 32,
        "learning_rate": 5e-3,
        "clip_vloss": False,
    }
    check_actor_critic_probe(rnd, name, ext_values, **fields)
