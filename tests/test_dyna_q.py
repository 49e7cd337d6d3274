"""dyna_q.py: its equations by hand, the model against plain Python, the probes, and the mazes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    check_table_probe,
    check_table_steps,
    error_on_the_cliff,
    histories,
    keys,
    trained,
)

from algorithms import dyna_q
from algorithms.dyna_q import Config, Model, make, sample_model, td_error, update_model
from common.envs import Transition, make_env
from common.runner.evaluation import evaluate


@pytest.mark.parametrize("terminated", [False, True])
def test_td_error_bootstraps_unless_terminated(terminated):
    error = td_error(3.0, 2.0, 5.0, jnp.array(terminated), 0.5)
    assert error == 2 + 0.5 * 5 * (not terminated) - 3


def test_a_step_moves_q_to_the_best_next_value(monkeypatch):
    best = lambda q, entry, obs: q[obs].max()
    check_table_steps(dyna_q, monkeypatch, best, num_planning_steps=0)


def empty_model(**fields) -> Model:
    return jax.jit(make(Config(env_id="FrozenLake-tabular", **fields)).init)(keys(0)[0]).model


@pytest.mark.parametrize("num_outcomes", [1, 3])
def test_model_remembers_the_last_outcomes_of_all_that_was_tried(num_outcomes):
    """Against lists and dicts, over random transitions of 16 states and 4 actions."""
    random = np.random.default_rng(0)
    model = empty_model(num_outcomes=num_outcomes)
    states, outcomes, last = [], {}, {}
    update = jax.jit(update_model)
    for time in range(200):
        s, a, next_s = random.integers([16, 4, 16])
        reward, terminated = random.normal(), random.random() < 0.3
        if s not in states:
            states.append(s)
        outcomes.setdefault((s, a), []).append((next_s, np.float32(reward), terminated))
        last[s, a] = time
        t = Transition(s, a, reward, next_s, terminated, random.random() < 0.3)
        model = update(model, jax.tree.map(jnp.asarray, t), time)

        assert model.num_states == len(states)
    assert model.states[: len(states)].tolist() == states
    for s, a in np.ndindex(16, 4):
        seen = outcomes.get((s, a), [(s, 0.0, False)])[-num_outcomes:]
        slots = [x[s, a, : len(seen)] for x in (model.next_obs, model.reward, model.terminated)]
        assert set(zip(*(x.tolist() for x in slots), strict=True)) == {
            (int(n), float(r), bool(d)) for n, r, d in seen
        }
        assert model.count[s, a] == len(outcomes.get((s, a), []))
        assert model.last_time[s, a] == last.get((s, a), 0)


# Three steps in state 5, one in 9, whose shares are those of Sutton & Barto 2018, section 8.2: a
# visited state, then an action tried in it. r + κ √τ with κ = .5 at time 6.
TRIED = [(5, 1, 1.0, 6), (5, 1, 2.0, 7), (9, 0, 3.0, 8), (5, 2, 4.0, 5)]
DRAWN = {
    (5, 1, 6, False): (1 / 8, 1 + 0.5 * 5**0.5),
    (5, 1, 7, False): (1 / 8, 2 + 0.5 * 5**0.5),
    (5, 2, 5, False): (1 / 4, 4 + 0.5 * 3**0.5),
    (9, 0, 8, True): (1 / 2, 3 + 0.5 * 2),
}
DRAWN_WITH_UNTRIED = {
    (5, 1, 6, False): (1 / 16, 1 + 0.5 * 5**0.5),
    (5, 1, 7, False): (1 / 16, 2 + 0.5 * 5**0.5),
    (5, 2, 5, False): (1 / 8, 4 + 0.5 * 3**0.5),
    (9, 0, 8, True): (1 / 8, 3 + 0.5 * 2),
    **{(5, a, 5, False): (1 / 8, 0.5 * 6**0.5) for a in (0, 3)},  # never tried, since time 0
    **{(9, a, 9, False): (1 / 8, 0.5 * 6**0.5) for a in (1, 2, 3)},
}


@pytest.mark.parametrize("plan_untried, expected", [(False, DRAWN), (True, DRAWN_WITH_UNTRIED)])
def test_sample_model_draws_a_state_then_an_action_then_an_outcome(plan_untried, expected):
    model = empty_model(num_outcomes=3)
    for time, (s, a, reward, next_s) in enumerate(TRIED):
        t = Transition(s, a, reward, next_s, next_s == 8, True)
        model = update_model(model, jax.tree.map(jnp.asarray, t), time)
    draw = jax.jit(jax.vmap(sample_model, (0, None, None, None, None)))
    t = draw(jax.random.split(jax.random.key(0), 30_000), model, 6, 0.5, plan_untried)
    assert not t.truncated.any()
    drawn = np.stack([t.obs, t.action, t.next_obs, t.terminated], axis=1)
    for what, (share, reward) in expected.items():
        these = (drawn == what).all(1)
        np.testing.assert_allclose(these.mean(), share, atol=0.015)
        np.testing.assert_allclose(t.reward[these], reward, rtol=1e-6)
    assert sum((drawn == what).all(1).sum() for what in expected) == 30_000


def test_a_real_step_is_followed_by_the_planned_ones():
    """Each makes one update; with α = 1 and γ = 1, planning makes the short way known at once."""
    config = Config(
        env_id="TwoStep-probe",
        steps_per_update=10,
        total_timesteps=10,
        num_planning_steps=30,
        learning_rate=1.0,
        gamma=1.0,
    )
    algorithm = make(config)
    state = trained(algorithm, [0, 1, 2], 1).state
    assert (state.visits.sum((1, 2)) == 10 * 31).all()
    assert (state.model.count.sum((1, 2)) == 10).all()
    np.testing.assert_array_equal(state.params.max(-1)[:, :2], 1)


@pytest.mark.parametrize("name", ["Together-probe", "ResetTrap-probe"])
def test_it_learns_the_values_and_best_actions_of_the_probes(name):
    check_table_probe(dyna_q, name)


def goals(**fields) -> np.ndarray:
    """Which steps reached the goal, for 30 seeds, [30, T]."""
    algorithm = make(Config(steps_per_update=1, gamma=0.95, **fields))
    return ~np.isnan(histories(algorithm, "episode_return", 30)[1])


@pytest.mark.parametrize(
    "num_planning_steps, steps, episode, low, high",
    [
        (0, 8_000, 9, 100, 300),  # an independent simulation of 30 runs: 109
        (5, 3_000, 5, 14, 35),
        (50, 1_500, 3, 14, 25),
    ],
)
def test_dyna_maze_as_in_figure_8_2(num_planning_steps, steps, episode, low, high):
    """Sutton & Barto 2018, Figure 8.2: α = .1, γ = .95, ε = .1; mean steps of an episode (the first
    has number 0), over 30 runs. The shortest way has 14."""
    reached = goals(
        env_id="DynaMaze-tabular",
        learning_rate=0.1,
        num_planning_steps=num_planning_steps,
        total_timesteps=steps,
    )
    lengths = [np.diff(np.flatnonzero(x), prepend=-1) for x in reached]
    lengths = [x[episode] for x in lengths if len(x) > episode]
    assert len(lengths) >= 15 and low <= np.mean(lengths) <= high, lengths


@pytest.mark.parametrize(
    "env_id, steps, change, kappa",
    [
        pytest.param(
            *("BlockingMaze-tabular", 3_000, 1_000, 1e-3), marks=pytest.mark.slow
        ),  # Figure 8.4
        ("ShortcutMaze-tabular", 6_000, 3_000, 1e-3),  # as in Figure 8.5
    ],
)
def test_the_bonus_finds_the_new_way_when_the_maze_changes(env_id, steps, change, kappa):
    """Sutton & Barto 2018, Examples 8.2 and 8.3: after the change Dyna-Q+ collects more reward than
    Dyna-Q, by more than three standard errors of 30 runs."""
    after = [
        goals(
            env_id=env_id,
            learning_rate=1.0,
            num_planning_steps=10,
            total_timesteps=steps,
            kappa=kappa,
            plan_untried=kappa > 0,
        )[:, change:].sum(1)
        for kappa in (0.0, kappa)
    ]
    difference = np.mean(after[1]) - np.mean(after[0])
    assert difference > 3 * np.sqrt(sum(np.var(x) for x in after) / 30), after


def test_with_decaying_steps_it_converges_to_the_optimal_values():
    """The largest error over all states and actions that can be reached is below .05 of the range
    of the true values, for every one of 64 seeds."""
    config = Config(total_timesteps=8_000, learning_rate=1.0, learning_rate_power=0.6, epsilon=0.5)
    error = error_on_the_cliff(make(config), 64)
    assert error.max() <= 0.05, error


def test_by_default_the_greedy_policy_finds_the_goal_of_the_maze():
    """With γ = 1 instead of the maze's own .95, all values tie, and not one of 16 seeds arrived."""
    algorithm = make(Config(env_id="DynaMaze-tabular"))
    params = trained(algorithm, range(16), algorithm.num_updates).state.params
    env = make_env("DynaMaze-tabular", 1)
    play = jax.jit(jax.vmap(lambda q: evaluate(env, algorithm.act, q, keys(0)[0])))
    returns, lengths = play(params)
    assert (returns == 1).all() and (lengths < 30).all()
