"""qt_opt.py: its equation by hand, its search, and what it learns."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    check_budget,
    check_continuous_probe,
    check_gradient,
    check_targets,
    first_continuous_update,
    parabola,
    relu_q,
    replayed,
    small_continuous,
    states_of,
    trained,
)

from algorithms import qt_opt
from algorithms.qt_opt import Config, cross_entropy_method, make, td_error
from common.buffers import uniform_buffer
from common.envs import make_env
from common.networks import make_q_network

PARAMS, TARGET_PARAMS = jnp.array([1.0, 0.25]), jnp.array([2.0, 0.4])
VALUE = 1 * 2 - (1 - 0.25 * 2) ** 2  # Q(s, a; φ)
NEXT_VALUE = 2 * 5 - (3 - 0.4 * 5) ** 2  # Q(s', a*; φ⁻), a* = 3


def error(params, target_params, terminated=False):
    """The TD error from s = 2 by a = 1 to s' = 5, with reward 3, γ = 0.5 and a* = 3."""
    next_value = parabola(target_params, 5.0, 3.0)
    return td_error(parabola(params, 2.0, 1.0), 3.0, next_value, terminated, 0.5)


@pytest.mark.parametrize("terminated", [False, True])
def test_td_error_bootstraps_unless_terminated(terminated):
    with jax.numpy_rank_promotion("raise"):
        got = error(PARAMS, TARGET_PARAMS, jnp.array(terminated))
    np.testing.assert_allclose(got, 3 + 0.5 * NEXT_VALUE * (not terminated) - VALUE, rtol=1e-6)


def test_gradient_is_semi_gradient():
    gradient, target_gradient = jax.grad(error, argnums=(0, 1))(PARAMS, TARGET_PARAMS)
    np.testing.assert_allclose(gradient, [-2, -2 * (1 - 0.25 * 2) * 2], rtol=1e-6)
    assert not target_gradient.any()


def test_an_update_descends_the_squared_td_error_of_its_batch():
    """With the search's actions, for all kinds of ends, and with the gradient of Q(s, a; φ)."""
    update = first_continuous_update(qt_opt, num_keys=3, which_samples=1)
    config, before, after, metrics, batch, keys = update

    def best_action(obs, key):
        value = lambda action: relu_q(before.target_params, obs[None], action[None])[0]
        fields = config.num_samples, config.num_elites, config.num_cem_rounds
        return cross_entropy_method(key, value, 1, *fields)

    next_action = jax.vmap(best_action)(batch.next_obs, jax.random.split(keys[2], 64))
    next_value = relu_q(before.target_params, batch.next_obs, next_action)
    targets = batch.reward + config.gamma * ~batch.terminated * next_value
    loss = lambda params: jnp.mean((targets - relu_q(params, batch.obs, batch.action)) ** 2)
    np.testing.assert_allclose(metrics["loss"], loss(before.params), rtol=1e-4)
    check_gradient(after.opt_state, loss, before.params)


BEST = np.array([0.3, -0.7])


def found(num_samples=64, num_elites=6, num_rounds=4, num_searches=1_000, best=BEST):
    """What so many searches for the top of a bowl find, [searches, 2]."""
    search = partial(
        cross_entropy_method,
        value=lambda action: -jnp.sum(jnp.square(action - best)),
        num_actions=2,
        num_samples=num_samples,
        num_elites=num_elites,
        num_rounds=num_rounds,
    )
    return np.asarray(jax.vmap(search)(jax.random.split(jax.random.key(0), num_searches)))


def test_each_round_of_the_search_comes_nearer():
    """The first one's error is that of the best of 64 normal actions."""
    errors = [np.square(found(num_rounds=n) - BEST).sum(-1).mean() for n in (1, 2, 4)]
    drawn = np.random.default_rng(0).normal(size=(4_000, 64, 2)).clip(-1, 1)
    nearest = np.square(drawn - BEST).sum(-1).min(-1).mean()
    np.testing.assert_allclose(errors[0], nearest, rtol=0.3)
    assert errors[1] < errors[0] / 5 and errors[2] < errors[1] / 2
    assert np.mean(np.abs(found() - BEST) < 0.15) > 0.98


def test_one_round_is_random_search():
    """Each of 4 normal actions lies beyond 0.5 of the best one, 0, with probability exp(-1/8)."""
    distance = np.sqrt(np.square(found(4, 1, 1, 4_000, np.zeros(2))).sum(-1))
    np.testing.assert_allclose(np.mean(distance > 0.5), np.exp(-4 / 8), atol=0.03)


def test_a_best_action_beyond_the_bounds_is_found_at_them():
    actions = found(best=np.array([5.0, -5.0]))
    assert (np.abs(actions) <= 1).all()
    assert np.mean(np.abs(actions - [1, -1]) > 0.05) < 0.02


FIELDS = {"tau": 0.25, "exploration_noise": 0.3}


@pytest.fixture(scope="module")
def states():
    return states_of(make(small_continuous(qt_opt, **FIELDS)), 6)


def test_targets_start_equal_and_move_by_tau(states):
    check_targets(states, lambda state: state.params, tau=0.25)


def test_behaviour_is_the_best_action_with_noise():
    """Where noise is not cut off at the bounds, on the side of the best action that has room, its
    mean size is σ √(2/π)."""
    quiet, noisy = (
        replayed(states_of(make(small_continuous(qt_opt, num_envs=200, **x)), 1)[1], 2_000, 2_200)
        for x in ({"exploration_noise": 0.0}, {"exploration_noise": 0.3})
    )
    np.testing.assert_array_equal(quiet.obs, noisy.obs)
    assert (np.abs(noisy.action) <= 1).all()
    noise = (noisy.action - quiet.action)[(noisy.action != quiet.action) & (abs(noisy.action) < 1)]
    assert len(noise) > 80
    np.testing.assert_allclose(np.abs(noise).mean(), 0.3 * np.sqrt(2 / np.pi), rtol=0.2)


def test_the_target_searches_in_the_target_network(states):
    """The loss of an update whose target network is -3 Q, with the best actions of a grid: those
    of the online network are the worst ones for it."""
    config = small_continuous(qt_opt, **FIELDS)
    algorithm = make(config)
    critic = make_q_network(make_env(config.env_id, 1), config.hidden_sizes)
    *hidden, (weights, bias) = states[0].params
    other = [*hidden, (-3 * weights, -3 * bias)]
    before = states[0]._replace(target_params=other)
    after, metrics = jax.jit(algorithm.update)(before, jnp.int32(0))
    key_sample = jax.random.split(jax.random.fold_in(before.key, 0), 3)[1]
    buffer = uniform_buffer(config.buffer_size, 5, config.batch_size)
    t = buffer.sample(after.buffer, key_sample, 400 + 1)
    grid = jnp.broadcast_to(jnp.linspace(-1, 1, 401)[:, None, None], (401, len(t.reward), 1))

    def loss(params):
        """With a* = argmax_a Q(s', a; params)."""
        q = lambda params: jax.vmap(critic.apply, (None, None, 0))(params, t.next_obs, grid)
        chosen = jnp.argmax(q(params), axis=0)
        next_value = jnp.take_along_axis(q(other), chosen[None], axis=0)[0]
        target = t.reward + config.gamma * ~t.terminated * next_value
        return jnp.mean(jnp.square(target - critic.apply(before.params, t.obs, t.action)))

    np.testing.assert_allclose(metrics["loss"], loss(other), rtol=0.01)
    assert abs(loss(before.params) - loss(other)) > 0.05 * loss(other)


def test_the_budget_counts_every_environment_step():
    check_budget(make(small_continuous(qt_opt, learning_starts=2_001)), 2_005, 3_000)


def values_of(config, state, obs, action):
    return make_q_network(make_env(config.env_id, 1), config.hidden_sizes).apply(
        state.params, obs, action
    )


def test_it_learns_the_values_and_best_actions_of_the_probes():
    check_continuous_probe(qt_opt, values_of)


@pytest.mark.slow
def test_the_search_agrees_with_a_grid_on_the_learned_q_of_pendulum():
    """Its action loses less than 1 % of the range of the value over all actions: at 200 states of
    the replay, but for 1 % of them, where there are two peaks."""
    config = Config(total_timesteps=3_000, learning_starts=1_000, buffer_size=3_000)
    algorithm = make(config)
    state = jax.tree.map(lambda x: x[0], trained(algorithm, [0], algorithm.num_updates).state)
    critic = make_q_network(make_env("Pendulum-v1", 1), config.hidden_sizes)
    obs = jnp.asarray(replayed(state, 2_800, 3_000).obs)
    grid = jnp.linspace(-1, 1, 2_001)[:, None]
    values = jax.vmap(
        lambda obs: jax.vmap(lambda action: critic.apply(state.params, obs, action))(grid)
    )(obs)
    actions = jax.vmap(algorithm.act, (None, 0, 0))(
        state.params, obs, jax.random.split(jax.random.key(0), 200)
    )
    got = jax.vmap(lambda obs, action: critic.apply(state.params, obs, action))(obs, actions / 2)
    lost = (values.max(1) - got) / (values.max(1) - values.min(1))
    assert np.quantile(lost, 0.99) < 0.01 and lost.mean() < 0.001 and lost.min() > -0.001
