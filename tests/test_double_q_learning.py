"""double_q_learning.py: its equations by hand, the coin, the probes, and the book's figures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import check_table_probe, check_table_steps, episode_returns, keys, load, online_return

from algorithms import double_q_learning
from algorithms.double_q_learning import Config, make, td_error


@pytest.mark.parametrize("terminated", [False, True])
def test_td_error_bootstraps_unless_terminated(terminated):
    error = td_error(3.0, 2.0, 6.0, jnp.array(terminated), 0.5)
    assert error == 2 + 0.5 * 6 * (not terminated) - 3


def test_a_step_moves_one_table_to_the_other_ones_value_of_its_best_action(monkeypatch):
    def next_value(q, entry, obs):
        return q[1 - entry[0], obs, q[entry[0], obs].argmax()]

    check_table_steps(double_q_learning, monkeypatch, next_value)


def test_a_coin_chooses_the_table_that_learns_and_the_other_one_values():
    """One never-ending state, reward 1: Qi ← Qi + α (1 + γ Qj - Qi), one table at a time."""
    config = Config(
        env_id="AlwaysTruncated-probe", steps_per_update=1, total_timesteps=1, gamma=0.5
    )
    algorithm = make(config)
    state = jax.jit(algorithm.init)(jax.random.key(0))
    tables = jnp.array([[[8.0, 8.0]], [[-4.0, -4.0]]])
    update, counts = jax.jit(algorithm.update), [0, 0]
    for step in range(200):
        after, _ = update(state._replace(params=tables), jnp.int32(step))
        ((table, _, action),) = np.argwhere(np.asarray(after.params != tables))
        new = [8 + 0.5 * (1 - 0.5 * 4 - 8), -4 + 0.5 * (1 + 0.5 * 8 + 4)][table]
        assert after.params[table, 0, action] == new
        assert after.visits[table, 0, action] == 1 and after.visits.sum() == 1
        counts[table] += 1
    assert 70 <= counts[0] <= 130  # four standard deviations


def test_it_acts_on_the_sum_of_the_tables():
    algorithm = make(Config())
    params = jnp.array([[[0.0, 3.0, 2.0, 0.0]], [[4.0, 0.0, 3.0, 0.0]]])
    assert algorithm.act(params, 0, jax.random.key(0)) == 2


@pytest.mark.parametrize("name", ["Together-probe", "ResetTrap-probe"])
def test_it_learns_the_values_and_best_actions_of_the_probes(name):
    check_table_probe(double_q_learning, name, table=lambda params: params.mean(0))


def test_cliff_walking_beside_figure_6_4():
    """The setting of Sutton & Barto 2018, Figure 6.4: ε = .1, α = .5, γ = 1, 500 episodes. The
    online return of the last 100: an independent simulation of 100 runs gave -25.0, with a standard
    deviation of 5.5 a run; the band is three standard errors of 64 seeds and 100 runs together."""
    algorithm = make(Config(steps_per_update=1, total_timesteps=25_000))
    online = online_return(episode_returns(algorithm, 64))
    assert -27.7 <= online <= -22.3, online


def test_maximization_bias_as_in_figure_6_5():
    """The setting of Sutton & Barto 2018, Figure 6.5: ε = .1, α = .1, γ = 1, 300 episodes of one or
    two steps. In A, left is worth -.1, and looks better at first because B's best noisy reward is
    positive. Here five of the ten actions in A, which all states share, go left. Measured over
    1,000 seeds: Q-learning goes left in up to 95 % of the episodes, double Q-learning in 61 %; at
    episode 100, in 64 % and 10 %."""
    left = {}
    for name in ("q_learning", "double_q_learning"):
        module = load(name)
        config = module.Config(
            env_id="MaximizationBias-tabular",
            total_timesteps=450,
            steps_per_update=1,
            learning_rate=0.1,
        )
        algorithm = module.make(config)

        def train(key, algorithm=algorithm):
            def update(state, step):
                before = state.env.obs[0]
                state, _ = algorithm.update(state, step)
                return state, jnp.stack([before == 0, (before == 0) & (state.env.obs[0] == 1)])

            return jax.lax.scan(update, algorithm.init(key), jnp.arange(450))[1]

        starts, lefts = np.asarray(jax.jit(jax.vmap(train))(keys(*range(1_000)))).transpose(2, 0, 1)
        episode = np.cumsum(starts, 1)
        left[name] = [lefts[starts & (episode == n)].mean() for n in range(1, 250)]
    peak = {name: max(x) for name, x in left.items()}
    assert peak["q_learning"] >= 0.88 and peak["double_q_learning"] <= 0.68, peak
    late = {name: np.mean(x[95:105]) for name, x in left.items()}
    assert late["q_learning"] >= 0.5 and late["double_q_learning"] <= 0.2, late
