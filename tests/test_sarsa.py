"""sarsa.py: its equation by hand, which action is next, the probes, and the cliff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import check_table_probe, check_table_steps, episode_returns, online_return, trained

from algorithms import sarsa
from algorithms.sarsa import Config, make, td_error


@pytest.mark.parametrize("terminated", [False, True])
def test_td_error_bootstraps_unless_terminated(terminated):
    error = td_error(3.0, 2.0, 4.0, jnp.array(terminated), 0.5)
    assert error == 2 + 0.5 * 4 * (not terminated) - 3


def test_a_step_moves_q_to_the_value_of_a_next_action(monkeypatch):
    check_table_steps(sarsa, monkeypatch, lambda q, entry, obs: q[obs])


def test_the_action_that_the_target_uses_is_the_one_taken_next():
    """One entry changes at a time, that of the action chosen a step before, by α times
    r + Q(s', a') - Q(s, a) with the a' that is in State afterwards."""
    algorithm = make(Config(steps_per_update=1, total_timesteps=1, learning_rate=0.25, epsilon=0.5))
    state = jax.jit(algorithm.init)(jax.random.key(0))
    q = jax.random.normal(jax.random.key(1), state.params.shape).at[47].set(0)
    state = state._replace(params=10 * q)
    update = jax.jit(algorithm.update)
    for step in range(60):
        before, (state, _) = state, update(state, jnp.int32(step))
        q, s, a = before.params, int(before.env.obs[0]), int(before.action)
        next_s, next_a = int(state.env.obs[0]), int(state.action)
        into_the_cliff = (a == 2 and 25 <= s <= 34) or (a == 1 and s == 36)
        reward = -100 if into_the_cliff else -1
        expected = q.at[s, a].add(0.25 * (reward + q[next_s, next_a] - q[s, a]))
        np.testing.assert_allclose(state.params, expected, rtol=1e-5)


def test_the_first_action_of_an_episode_is_chosen_where_it_starts():
    """Every step ends an episode; with ε = 0 the best action is that of the new start state."""
    algorithm = make(
        Config(env_id="ByBoth-probe", steps_per_update=1, total_timesteps=1, epsilon=0.0)
    )
    state = jax.jit(algorithm.init)(jax.random.key(0))
    state = state._replace(params=jnp.array([[9.0, 0.0], [0.0, 9.0], [0.0, 0.0]]))
    update, starts = jax.jit(algorithm.update), set()
    for step in range(20):
        state, _ = update(state, jnp.int32(step))
        assert state.action == state.env.obs[0]
        starts.add(int(state.action))
    assert starts == {0, 1}


@pytest.mark.parametrize("name", ["Together-probe", "ResetTrap-probe"])
def test_it_learns_the_values_and_best_actions_of_the_probes(name):
    check_table_probe(sarsa, name)


def test_cliff_walking_as_in_figure_6_4():
    """Sutton & Barto 2018, Figure 6.4: ε = .1, α = .5, γ = 1, 500 episodes. The online return of
    the last 100 lies in [-30, -23] over 64 seeds (an independent simulation of 100 runs gave
    -26.8); Q-learning, which walks along the edge, has about -50."""
    algorithm = make(Config(steps_per_update=1, total_timesteps=20_000))
    online = online_return(episode_returns(algorithm, 64))
    assert -30 <= online <= -23, online


def test_windy_grid_world_as_in_example_6_5():
    """Sutton & Barto 2018, Example 6.5: ε = .1, α = .5, γ = 1, 8,000 steps. In the last 1,000 an
    episode takes 24.3 ± .4 steps in an independent simulation of 40 runs. (The book's 17 steps are
    those of the best ε-soft policy, 17.05; the shortest way has 15.)"""
    config = Config(env_id="WindyGridWorld-tabular", steps_per_update=1_000, total_timesteps=8_000)
    algorithm = make(config)
    progress = trained(algorithm, range(64), 7)
    progress = progress._replace(count=jax.tree.map(jnp.zeros_like, progress.count))
    last = trained(algorithm, range(64), 8, 7, progress).mean["episode_return"]
    assert -26 <= np.mean(last) <= -21.5, np.mean(last)
