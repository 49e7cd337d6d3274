"""fitted_q_iteration.py: tables against value iteration in the MDP of the data; networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    check_budget,
    check_q_probe,
    keys,
    pairs,
    relu_mlp,
    states_of,
    trained,
)

from algorithms import fitted_q_iteration
from algorithms.fitted_q_iteration import Config, make, mean_errors, td_error
from common.environments.tabular import make_mdp

PARAMS = jnp.array([[7.0, 3.0], [1.0, 5.0]])  # Q(s, a; θ): the action taken is worth 3
TARGET_PARAMS = jnp.array([[0.0, 0.0], [40.0, 20.0]])  # max_a' Q_k(s', a') = 40


def error(params, target_params, terminated=False):
    """The TD error from state 0 to 1 by action 1, with reward 2 and γ = 0.5."""
    return td_error(params[0, 1], 2.0, jnp.max(target_params[1]), terminated, 0.5)


@pytest.mark.parametrize("terminated", [False, True])
def test_td_error_bootstraps_unless_terminated(terminated):
    with jax.numpy_rank_promotion("raise"):
        got = error(PARAMS, TARGET_PARAMS, jnp.array(terminated))
    assert got == 2 + 0.5 * 40 * (not terminated) - 3


def test_gradient_is_that_of_a_regression():
    """Only Q(s, a; θ) is differentiated: neither the target nor any other entry of θ."""
    gradient, target_gradient = jax.grad(error, argnums=(0, 1))(PARAMS, TARGET_PARAMS)
    np.testing.assert_array_equal(gradient, [[0, -1], [0, 0]])
    np.testing.assert_array_equal(target_gradient, np.zeros((2, 2)))
    same = jax.grad(lambda params: error(params, params))(PARAMS)
    np.testing.assert_array_equal(same, [[0, -1], [0, 0]])


def test_mean_errors_by_hand():
    errors, obs = jnp.array([1.0, 2.0, 6.0, -4.0]), jnp.array([0, 1, 1, 0])
    mean = mean_errors(errors, obs, jnp.array([1, 0, 0, 0]), jnp.ones((3, 2)))
    np.testing.assert_array_equal(mean, [[-4, 1], [4, 0], [0, 0]])


def empirical_sweeps(transitions, shape, gamma, num_sweeps):
    """Value iteration in the maximum-likelihood model of the data: N(s,a,s'), and a last column
    for terminations; pairs without data keep 0."""
    counts, rewards = np.zeros((*shape, shape[0] + 1)), np.zeros(shape)
    t = jax.tree.map(np.asarray, transitions)
    for s, a, next_s, reward in zip(
        t.obs, t.action, np.where(t.terminated, shape[0], t.next_obs), t.reward, strict=True
    ):
        counts[s, a, next_s] += 1
        rewards[s, a] += reward
    visits = counts.sum(-1)
    P, R = (
        x / np.maximum(visits, 1).reshape(*shape, *[1] * (x.ndim - 2)) for x in (counts, rewards)
    )
    table = np.zeros(shape)
    for _ in range(num_sweeps):
        table = R + gamma * P @ np.append(table.max(-1), 0)
    return table, visits


@pytest.mark.parametrize(
    "env_id, total_timesteps",
    [("Together-probe", 600), ("FrozenLake-tabular", 2_000), ("Taxi-tabular", 5_000)],
)
def test_a_table_is_value_iteration_in_the_mdp_of_the_data(env_id, total_timesteps):
    """Episodes end by termination and by time limits; not every pair is visited."""
    config = Config(env_id, total_timesteps, num_envs=5, gamma=0.9, epsilon=0.1)
    with jax.enable_x64(True):
        states = states_of(make(config), 12)
        transitions = states[0].dataset
        for num_sweeps, state in enumerate(states):
            expected, visits = empirical_sweeps(
                transitions, state.params.q_params.shape, 0.9, num_sweeps
            )
            np.testing.assert_allclose(state.params.q_params, expected, atol=1e-9)
    assert (visits == 0).any()
    if env_id == "Together-probe":
        assert transitions.terminated.any() and transitions.truncated.any()


def test_enough_data_give_the_optimal_values():
    data = {"num_envs": 400, "epsilon": 0.1}
    config = Config(env_id="FrozenLake-tabular", gamma=0.9, num_iterations=150, **data)
    table = trained(make(config), [0], 150).state.params.q_params[0]
    mdp = make_mdp("FrozenLake-tabular")
    true = np.zeros(table.shape)
    for _ in range(500):
        true = np.sum(mdp.P * (mdp.R + 0.9 * true.max(-1)), axis=-1)
    visited = ~mdp.terminal
    assert np.abs(table - true)[visited].max() < 0.05
    assert abs(table[0].max() - 0.068891) < 0.01


def small(**fields):
    defaults = {"total_timesteps": 1_001, "num_envs": 5, "hidden_sizes": (16,), "batch_size": 32}
    return Config(**defaults | {"num_iterations": 20, "gradient_steps": 30} | fields)


def test_the_data_are_collected_once_and_at_random():
    config = small(num_envs=50, total_timesteps=5_000)
    states = states_of(make(config), 2)
    data = states[0].dataset
    assert len(data.reward) == 5_000
    assert abs(data.action.mean() - 0.5) < 0.15  # each of the 50 explorers has a taste of its own
    np.testing.assert_array_equal(
        data.obs[50:],
        np.where(
            (data.terminated | data.truncated)[:-50, None], data.obs[50:], data.next_obs[:-50]
        ),
    )
    for x, y in pairs(states[0].dataset, states[2].dataset):
        np.testing.assert_array_equal(x, y)
    check_budget(make(config), 5_000, 5_000 + 20)


def test_a_regression_fits_targets_that_stand_still():
    """After one long regression Q is the mean target, given the Q it began with."""
    config = small(
        env_id="TogetherVector-probe",
        total_timesteps=2_000,
        gamma=0.8,
        gradient_steps=4_000,
        learning_rate=3e-3,
        batch_size=256,
        hidden_sizes=(64,),
    )
    before, after = states_of(make(config), 1)
    data = before.dataset
    mean, std = np.mean(data.obs, 0), np.sqrt(np.var(data.obs, 0) + 1e-8)
    seen = lambda obs: np.clip((obs - mean) / std, -10, 10)
    next_values = relu_mlp(before.params.q_params, seen(data.next_obs)).max(-1)
    targets = np.asarray(data.reward + 0.8 * ~data.terminated * next_values)
    pair = np.asarray(data.obs).argmax(-1) * 2 + np.asarray(data.action)
    values = np.asarray(relu_mlp(after.params.q_params, seen(np.eye(data.obs.shape[1])))).ravel()
    for number in np.unique(pair):
        assert abs(values[number] - targets[pair == number].mean()) < 0.02


def test_the_network_sees_observations_at_unit_scale_over_the_data():
    algorithm = make(small())
    before, after = states_of(algorithm, 1)
    data = before.dataset
    for state in (before, after):
        np.testing.assert_allclose(state.params.statistics.mean, data.obs.mean(0), atol=1e-6)
        np.testing.assert_allclose(state.params.statistics.var, data.obs.var(0), rtol=1e-4)
    std = np.sqrt(data.obs.var(0) + 1e-8)
    seen = np.random.default_rng(0).normal(size=(200, 4))
    values = relu_mlp(after.params.q_params, seen)
    sure = jnp.abs(values[:, 0] - values[:, 1]) > 1e-3
    obs = data.obs.mean(0) + seen * std
    actions = jax.vmap(algorithm.act, (None, 0, None))(after.params, obs, jax.random.key(0))
    np.testing.assert_array_equal(actions[sure], values.argmax(-1)[sure])
    assert (
        actions != relu_mlp(after.params.q_params, obs).argmax(-1)
    ).any()  # as they are, they mislead


def test_every_seed_has_data_of_its_own():
    states = jax.jit(jax.vmap(make(small()).init))(keys(0, 1))
    assert not np.array_equal(states.dataset.obs[0], states.dataset.obs[1])


@pytest.mark.parametrize(
    "name", ["Together-probe", "TogetherVector-probe", "ResetTrapVector-probe"]
)
def test_it_learns_the_values_and_best_actions_of_the_probes(name):

    def values_of(config, state, obs):
        if "Vector" not in name:
            return state.params.q_params.max(-1)
        mean, var = state.params.statistics.mean, state.params.statistics.var
        return relu_mlp(state.params.q_params, (obs - mean) / jnp.sqrt(var + 1e-8)).max(-1)

    check_q_probe(
        fitted_q_iteration,
        name,
        values_of,
        num_iterations=50,
        gradient_steps=200,
        total_timesteps=4_000,
        epsilon=0.1,
        learning_rate=1e-3,  # at 3e-3 the last fit may be off by the tolerance: rounding decides
    )
