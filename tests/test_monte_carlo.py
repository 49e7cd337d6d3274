"""monte_carlo.py: its equations by hand, the book's loops, closed forms, and blackjack."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    check_picture_of_values,
    check_table_probe,
    episodes_of,
    trained,
    values_of_the_walk,
)
from probes import GAMMA

from algorithms import monte_carlo
from algorithms.monte_carlo import (
    Config,
    add_reward,
    add_visit,
    end_episode,
    make,
    start_episode,
)
from common.environments.tabular import TABULAR, make_mdp
from common.envs import make_env
from common.exploration import epsilon_greedy, linear_schedule


def test_end_of_an_episode_moves_what_was_visited_to_the_returns():
    """0 → 1 → 0 → end with rewards 1, 2, 4 and γ = 1/2: G is 3 and 4 from state 0, 4 from 1."""
    table = jnp.array([8.0, 8.0, 8.0])
    episode = start_episode(table)
    for state, reward in ((0, 1.0), (1, 2.0), (0, 4.0)):
        episode = add_reward(add_visit(episode, state, 0.5), reward, 0.5)
    expected = [((8 + 3) / 2 + 4) / 2, (8 + 4) / 2, 8]
    np.testing.assert_array_equal(end_episode(table, episode), expected)


def test_a_visit_counts_as_seen_whatever_its_step_size():
    """α n^-p can be so small that 1 - α is 1 in float32: the table then does not change."""
    episode = start_episode(jnp.zeros(3))
    assert not episode.seen.any()
    np.testing.assert_array_equal(add_visit(episode, 1, 1e-9).seen, [False, True, False])
    assert not start_episode(jnp.zeros(3)).seen.any()


def test_a_first_visit_with_a_tiny_step_is_still_the_only_one_that_counts():
    algorithm = make(Config("RandomWalk5-tabular", learning_rate=1e-9, total_timesteps=1_000))
    first = trained(algorithm, [0], algorithm.num_updates).state.visits.sum()
    algorithm = make(Config("RandomWalk5-tabular", total_timesteps=1_000))
    assert first == trained(algorithm, [0], algorithm.num_updates).state.visits.sum()


def test_end_of_an_episode_without_visits_changes_nothing():
    table = jnp.array([[1.0, 2.0]])
    np.testing.assert_array_equal(end_episode(table, start_episode(table)), table)


def test_epsilon_greedy_and_its_decay():
    keys = jax.random.split(jax.random.key(0), 40_000)
    q_values = jnp.array([1.0, 3.0, 3.0, 0.0])
    actions = jax.vmap(epsilon_greedy, (0, None, None))(keys, q_values, 0.2)
    np.testing.assert_allclose(np.bincount(actions) / 40_000, [0.05, 0.45, 0.45, 0.05], atol=0.01)
    steps = jnp.array([0, 5, 10, 20])
    np.testing.assert_allclose(linear_schedule(steps, 1.0, 0.5, 10), [1, 0.75, 0.5, 0.5])


def book(episodes, table, alpha, power, gamma, first_visit):
    """Sutton & Barto 2018, section 5.1: returns backwards from the end; the updates in the order
    of time. `episodes` are lists of (entry of the table, reward)."""
    table, visits, after = table.copy(), np.zeros(table.shape), []
    for episode in episodes:
        returns, g = [], 0.0
        for _, reward in reversed(episode):
            g = reward + gamma * g
            returns.insert(0, g)
        for t, ((entry, _), g) in enumerate(zip(episode, returns, strict=True)):
            if first_visit and entry in [other for other, _ in episode[:t]]:
                continue
            visits[entry] += 1
            table[entry] += alpha * visits[entry] ** -power * (g - table[entry])
        after.append(table.copy())
    return after


@pytest.mark.parametrize(
    "env_id, steps_per_update, fields",
    [
        ("RandomWalk5-tabular", 1, {"first_visit": True}),
        ("RandomWalk5-tabular", 40, {"first_visit": False}),
        ("Cut-tabular", 1, {"first_visit": False, "learning_rate_power": 0.0}),
        ("Cut-tabular", 40, {"first_visit": True, "learning_rate_power": 0.5}),
        ("Cut-tabular", 1, {"first_visit": False, "control": True, "epsilon_start": 1.0}),
    ],
)
def test_it_makes_the_updates_of_the_book(env_id, steps_per_update, fields, monkeypatch):
    """Episodes that terminate, and some that a limit of 6 steps cuts, whose returns count as they
    are; within an update and over many: V after each update, and its error. Control with ε = 1
    plays the uniform policy."""
    cut = TABULAR["RandomWalk5-tabular"]._replace(max_steps=6)
    monkeypatch.setitem(TABULAR, "Cut-tabular", cut)
    settings = {"learning_rate": 0.3, "gamma": 0.9, "initial_value": 0.5, "epsilon_end": 1.0}
    with jax.enable_x64(True):
        config = Config(
            env_id, steps_per_update=steps_per_update, total_timesteps=400, **settings | fields
        )
        tables, errors, rows, done = played(config, seed=3)
    ends = np.flatnonzero(done)
    episodes = episodes_of(rows, ends)
    alpha, power = config.learning_rate, config.learning_rate_power
    start = np.full(tables[0].shape, 0.5)
    after = np.array([start, *book(episodes, start, alpha, power, 0.9, config.first_visit)])

    exact = values_of_the_walk(0.9)
    for update, (table, error) in enumerate(zip(tables, errors, strict=True)):
        expected = after[np.sum(ends < (update + 1) * steps_per_update)]
        np.testing.assert_allclose(table, expected, rtol=1e-10)
        wrong = np.nan if config.control else (expected - exact)[1:-1]
        np.testing.assert_allclose(error, np.sqrt(np.mean(wrong**2)), rtol=1e-10)


def played(config, seed):
    """The table and `rms_error` after each update; (entry, reward) and the end of each step."""
    algorithm, env = make(config), make_env(config.env_id, 1)

    def update(state, step):
        before = state.env
        state, metrics = algorithm.update(state, step)
        keys = jax.random.split(jax.random.fold_in(state.key, step), config.steps_per_update)
        return state, (state.params, metrics["rms_error"], replay(before, state.params, keys))

    def replay(env_state, table, keys):
        def step(env_state, key):
            key_action, key_env = jax.random.split(key)
            if config.control:  # with ε = 1 the table does not matter
                action = epsilon_greedy(key_action, table[env_state.obs[0]], 1.0)
            else:
                action = algorithm.act(table, env_state.obs[0], key_action)
            return env.step(env_state, action[None], key_env)

        return jax.lax.scan(step, env_state, keys)[1]

    state = algorithm.init(jax.random.key(seed))
    _, (tables, errors, steps) = jax.jit(
        lambda state: jax.lax.scan(update, state, jnp.arange(algorithm.num_updates))
    )(state)
    steps = jax.tree.map(lambda x: np.asarray(x).reshape(-1), steps)
    entries = zip(steps.obs, steps.action, strict=True) if config.control else steps.obs
    rows = list(zip(entries, steps.reward, strict=True))
    return np.asarray(tables), np.asarray(errors), rows, steps.terminated | steps.truncated


def test_control_learns_the_values_and_best_actions_of_the_probes_that_end():
    fields = {"control": True, "total_timesteps": 16_000, "learning_rate_power": 0.0}
    check_table_probe(monte_carlo, "Ending-probe", **fields)


@pytest.mark.parametrize("first_visit", [True, False])
@pytest.mark.parametrize("name", ["AlwaysTruncated-probe", "ResetTrap-probe"])
def test_value_under_a_time_limit_is_a_closed_form(name, first_visit):
    """Reward 1 a step for ever, cut after 8 steps: the return of m steps is (1 - γ^m)/(1 - γ). What
    the next episode brings (50 in ResetTrap) is not part of it."""
    config = Config(name, first_visit=first_visit, gamma=GAMMA)
    v = trained(make(config), [0, 1], 20).state.params
    whole = np.array([(1 - GAMMA**m) / (1 - GAMMA) for m in range(1, 9)])
    if name == "ResetTrap-probe":
        np.testing.assert_allclose(v[:, 0], 50 + GAMMA * whole[6], rtol=1e-5)
        np.testing.assert_allclose(
            v[:, 1], whole[6] if first_visit else whole[:7].mean(), rtol=1e-5
        )
    else:
        np.testing.assert_allclose(v[:, 0], whole[7] if first_visit else whole.mean(), rtol=1e-5)


def value_of(mdp, policy):
    """The exact value [] of a policy [S, A] from the start."""
    P = np.einsum("sa,sat->st", policy, mdp.P) * ~mdp.terminal
    r = np.einsum("sa,sat,sat->s", policy, mdp.P, mdp.R)
    return mdp.start @ np.linalg.solve(np.eye(len(r)) - P, r)


def test_value_of_blackjack_where_the_player_sticks_on_20_and_21(tmp_path):
    """The policy of Sutton & Barto 2018, Example 5.1, and Figure 5.1."""
    mdp = make_mdp("Blackjack-tabular")
    total = np.arange(213) % 100 // 10 + 12
    policy = np.eye(2)[np.where((total >= 20) | (np.arange(213) >= 200), 0, 1)]
    np.save(tmp_path / "policy.npy", policy)
    algorithm = make(Config(policy=str(tmp_path / "policy.npy"), total_timesteps=20_000))
    progress = trained(algorithm, range(16), algorithm.num_updates)
    value = np.mean(progress.state.params @ mdp.start)
    assert abs(value - value_of(mdp, policy)) < 0.008, value
    v = np.asarray(progress.state.params).mean(0)
    assert v[90:99].min() > 0.5 and v[30:60].max() < -0.4  # high on 21, low on 15 to 17


@pytest.mark.slow
def test_control_of_blackjack_comes_near_the_optimum():
    """-.0431 by dynamic programming; the policies are valued exactly."""
    mdp = make_mdp("Blackjack-tabular")
    algorithm = make(Config(control=True, total_timesteps=60_000))
    progress = trained(algorithm, range(8), algorithm.num_updates)
    policies = np.eye(2)[np.asarray(progress.state.params).argmax(-1)]
    values = [value_of(mdp, policy) for policy in policies]
    assert -0.065 < np.median(values) <= -0.0431, values


def test_control_finds_the_shortest_ways_on_a_short_grid():
    """The grid of Example 4.1: greedy paths from all 14 cells take 2 steps on average, exactly."""
    constant = {"learning_rate": 0.1, "learning_rate_power": 0.0}
    algorithm = make(Config("GridWorld-tabular", control=True, total_timesteps=30_000, **constant))
    q = trained(algorithm, range(8), algorithm.num_updates).state.params
    policies = np.eye(4)[np.asarray(q).argmax(-1)]
    mdp = make_mdp("GridWorld-tabular")
    np.testing.assert_allclose([value_of(mdp, policy) for policy in policies], -2.0, rtol=1e-9)


def test_the_picture_shows_what_was_learned():
    algorithm = make(Config("RandomWalk5-tabular", total_timesteps=1_000))
    check_picture_of_values(algorithm, values_of_the_walk(1.0), np.full((7, 2), 0.5))
    assert make(Config(control=True)).picture is None  # policy.png shows that
