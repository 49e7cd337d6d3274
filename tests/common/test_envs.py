"""common/envs.py: ends of episodes, dtypes, rollouts and evaluation, on every environment."""

import gymnasium
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import ALL_PROBES, GAMMA, TOGETHER_ACTIONS, TOGETHER_VALUES, best_actions

from common.environments import brax_envs
from common.environments.linear import LINEAR
from common.environments.tabular import TABULAR, make_mdp
from common.envs import make_env, map_actions, rollout, scale_action
from common.exploration import random_policy
from common.runner.evaluation import evaluate

OFFLINE = [name for name in gymnax.registered_envs if "MNIST" not in name and "probe" not in name]


def random_rollout(env, state, key, num_steps):
    """A rollout of random actions within the environment's bounds."""
    if env.num_actions is None:
        env = map_actions(env, scale_action)
    return rollout(env, random_policy(env), state, key, num_steps)


@pytest.mark.parametrize(
    "env_id", ["Pendulum-v1", "Acrobot-v1", "MountainCar-v0", "Asterix-MinAtar"]
)
def test_observations_stay_within_their_bounds(env_id):
    """Of gymnax's own bounds some are wrong, as MemoryChain's."""
    env = make_env(env_id, 4)
    low, high = env.obs_low, env.obs_high
    roll = jax.jit(lambda key: random_rollout(env, env.reset(key), key, 50)[1])
    obs = np.asarray(roll(jax.random.key(0)).next_obs, np.float32)
    assert np.all(low < high) and np.all(low <= obs) and np.all(obs <= high)


def test_obs_bounds_are_the_environments_or_none():
    env = make_env("MountainCar-v0", 1)
    np.testing.assert_allclose(env.obs_low, [-1.2, -0.07])
    np.testing.assert_allclose(env.obs_high, [0.6, 0.07])
    for env_id in ("CartPole-v1", "SimpleBandit-bsuite", "FrozenLake-misc", "CliffWalking-tabular"):
        env = make_env(env_id, 1)
        assert env.obs_low is None and env.obs_high is None


@pytest.mark.parametrize("env_id", [*OFFLINE, *TABULAR, *LINEAR])
def test_every_environment_steps_with_stable_strong_types(env_id):
    env = make_env(env_id, 3)
    state = jax.eval_shape(env.reset, jax.random.key(0))
    roll = lambda state, key: random_rollout(env, state, key, 2)
    with jax.debug_key_reuse(True):
        jax.make_jaxpr(roll)(state, jax.random.key(1))
    after, transitions, episodes = jax.eval_shape(roll, state, jax.random.key(1))
    described = lambda tree: [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(tree)]
    assert described(state) == described(after)
    assert not any(weak for _, _, weak in described(after))
    assert transitions.obs.shape == transitions.next_obs.shape == (2, 3, *env.obs_shape)
    assert transitions.obs.dtype == transitions.next_obs.dtype
    assert transitions.reward.shape == (2, 3) and transitions.reward.dtype == jnp.float32
    assert transitions.terminated.dtype == transitions.truncated.dtype == bool
    assert all(x.shape == () for x in episodes.values())


def rolled(env_id, num_steps, num_envs=4, seed=0):
    env = make_env(env_id, num_envs)
    roll = jax.jit(lambda state, key: random_rollout(env, state, key, num_steps))
    return env, *roll(env.reset(jax.random.key(seed)), jax.random.key(seed + 1))


def test_next_obs_is_before_the_reset_and_obs_after_it():
    _, _, t, _ = rolled("CartPole-v1", 200)
    done = np.asarray(t.terminated | t.truncated)
    assert done.sum() > 10
    going_on = np.isclose(t.next_obs[:-1], t.obs[1:]).all(-1)
    np.testing.assert_array_equal(going_on, ~done[:-1])
    assert (np.abs(np.asarray(t.obs)[1:][done[:-1]]) <= 0.05).all()  # fresh starts
    fallen = np.abs(np.asarray(t.next_obs)[np.asarray(t.terminated)])
    assert ((fallen[:, 2] > 12 * np.pi / 180) | (fallen[:, 0] > 2.4)).all()


def test_two_episodes_and_two_environments_start_differently():
    env, _, t, _ = rolled("CartPole-v1", 200)
    starts = np.asarray(jax.jit(env.reset)(jax.random.key(0)).obs)
    later = np.asarray(t.obs)[1:][np.asarray(t.terminated)[:-1]]
    assert len(np.unique(np.concatenate([starts, later]), axis=0)) == len(starts) + len(later)


def test_a_time_limit_truncates_and_does_not_terminate():
    _, _, t, _ = rolled("AlwaysTruncated-probe", 24)
    assert not t.terminated.any()
    np.testing.assert_array_equal(np.flatnonzero(t.truncated[:, 0]), [7, 15, 23])


def test_both_flags_can_be_true_on_one_step():
    gymnax_id = "BothFlags-probe"
    if gymnax_id not in gymnax.registered_envs:
        from probes import Probe

        tables = ([[min(s + 1, 8)] * 2 for s in range(9)], [[1, 1]] * 9, [False] * 8 + [True], [0])
        gymnax.register(gymnax_id, lambda: Probe(*tables))
    _, _, t, episodes = rolled(gymnax_id, 8)
    np.testing.assert_array_equal(t.terminated, t.truncated)
    assert t.terminated[-1].all() and not t.terminated[:-1].any()
    assert episodes == {"episode_return": 8, "episode_length": 8, "episodes": 4}


def test_the_mean_return_of_a_rollout_counts_the_episodes_that_ended_in_it():
    """Against a plain loop over the transitions, with episodes that span two rollouts."""
    env = make_env("CartPole-v1", 3)
    roll = jax.jit(lambda state, key: random_rollout(env, state, key, 25))
    state, running, length = jax.jit(env.reset)(jax.random.key(0)), np.zeros(3), np.zeros(3)
    for i in range(6):
        state, t, episodes = roll(state, jax.random.key(10 + i))
        ended, lengths = [], []
        for reward, over in zip(t.reward, np.asarray(t.terminated | t.truncated), strict=True):
            running += np.asarray(reward)
            length += 1
            ended, lengths = ended + list(running[over]), lengths + list(length[over])
            running[over] = length[over] = 0
        expected = (np.mean(ended), np.mean(lengths)) if ended else (np.nan, np.nan)
        seen = episodes["episode_return"], episodes["episode_length"]
        np.testing.assert_allclose(seen, expected, rtol=1e-6)
        assert episodes["episodes"] == len(ended)
        going_on = np.where(state.episode.done, 0, state.episode.total)
        np.testing.assert_allclose(going_on, running)


def test_a_rollout_in_which_no_episode_ends_reports_nothing():
    assert np.isnan(rolled("AlwaysTruncated-probe", 7)[3]["episode_return"])


def test_evaluation_counts_exactly_one_whole_episode_in_each_environment():
    env = make_env("TwoStep-probe", 5)
    act = lambda params, obs, key: jnp.int32(0)
    returns, lengths = jax.jit(lambda key: evaluate(env, act, None, key))(jax.random.key(0))
    np.testing.assert_array_equal(returns, 1)
    np.testing.assert_array_equal(lengths, 2)
    env = make_env("AlwaysTruncated-probe", 5)
    returns, lengths = jax.jit(lambda key: evaluate(env, act, None, key))(jax.random.key(0))
    np.testing.assert_array_equal(returns, 8)
    np.testing.assert_array_equal(lengths, 8)


def test_evaluation_of_a_random_policy_agrees_with_the_rollout():
    """23.0 is the random policy's mean return on CartPole-v1 (standard deviation 12.9)."""
    env = make_env("CartPole-v1", 2_000)
    act = lambda params, obs, key: jax.random.randint(key, (), 0, 2)
    returns, lengths = jax.jit(lambda key: evaluate(env, act, None, key))(jax.random.key(0))
    np.testing.assert_array_equal(returns, lengths)
    assert abs(returns.mean() - 23.0) < 4 * 12.9 / np.sqrt(2_000)


def test_minatar_observations_are_bool():
    _, state, t, _ = rolled("Breakout-MinAtar", 1)
    assert t.obs.dtype == t.next_obs.dtype == state.obs.dtype == bool
    assert t.obs.any()


def test_integers_of_a_box_are_scaled_and_those_of_a_discrete_space_stay():
    env, _, t, _ = rolled("FourRooms-misc", 50)
    assert t.obs.dtype == jnp.float32 and t.obs.min() >= 0 and t.obs.max() <= 1
    assert env.num_states is None
    env, _, t, _ = rolled("FrozenLake-misc", 50)
    assert t.obs.dtype == jnp.int32 and env.num_states == 16 and t.obs.shape == (50, 4)


@pytest.mark.parametrize("env_id", ["FrozenLake-tabular", "FrozenLake8x8-tabular", "Taxi-tabular"])
def test_sampling_a_tabular_mdp_follows_its_arrays(env_id):
    """Frequencies of successors and their rewards against gymnasium's table."""
    gym_id = {"FrozenLake": "FrozenLake-v1", "FrozenLake8x8": "FrozenLake-v1", "Taxi": "Taxi-v4"}
    options = {"map_name": "8x8"} if "8x8" in env_id else {}
    table = gymnasium.make(gym_id[env_id.removesuffix("-tabular")], **options).unwrapped.P
    _, _, t, _ = rolled(env_id, 400, num_envs=100)
    counts = {}
    for s, a, r, n, d in zip(
        *(np.ravel(x) for x in (t.obs, t.action, t.reward, t.next_obs, t.terminated)), strict=True
    ):
        possible = {(n, float(r), d) for _, n, r, d in table[s][a]}
        assert (n, float(r), d) in possible
        counts.setdefault((s, a), []).append(n)
    (s, a), seen = max(counts.items(), key=lambda item: len(item[1]))
    expected = {}
    for p, n, _, _ in table[s][a]:
        expected[n] = expected.get(n, 0) + p
    for n, p in expected.items():
        error = abs(np.mean(np.array(seen) == n) - p)
        assert error <= 4 * np.sqrt(p * (1 - p) / len(seen)) + 1e-9


def test_tabular_starts_follow_the_start_distribution():
    env = make_env("Taxi-tabular", 30_000)
    starts = np.bincount(np.asarray(jax.jit(env.reset)(jax.random.key(0)).obs), minlength=500)
    assert (starts > 0).sum() == 300 and starts[starts > 0].min() > 50


@pytest.mark.parametrize(
    "env_id",
    ["CartPole-v1", "CartPole-v1+gravity=8:12", "Pendulum-v1-positions", "CartPole-v1-history2"]
    + ["Garnet-tabular", "Random-linear", "PointRobot-obstacles", "TicTacToe-game"]
    + ["InvertedPendulum-brax", "InvertedPendulum-brax+gravity=8:12"],
)
def test_an_environment_is_made_while_it_is_traced(env_id):
    """As in a sweep; and nothing of the first trace is kept for the second."""
    brax_envs.load.cache_clear()
    shapes = [
        jax.eval_shape(lambda: make_env(env_id, 2).reset(jax.random.key(0)).obs) for _ in range(2)
    ]
    assert shapes[0] == shapes[1]


def test_unsuitable_environments_are_refused_in_one_line():
    with pytest.raises(ValueError, match="did you mean CartPole-v1"):
        make_env("CartPol-v1", 1)
    with pytest.raises(ValueError, match="Pendulum-v1 has continuous actions"):
        make_env("Pendulum-v1", 1, actions="discrete")
    with pytest.raises(ValueError, match="CartPole-v1 has discrete actions"):
        make_env("CartPole-v1", 1, actions="continuous")
    with pytest.raises(ValueError, match="numbered states"):
        make_env("CartPole-v1", 1, observations="integer")
    with pytest.raises(ValueError, match="downloads"):
        make_env("MNISTBandit-bsuite", 1)
    with pytest.raises(ValueError, match="no tabular MDP"):
        make_env("Clif-tabular", 1)


@pytest.mark.parametrize("env_id", ["CartPol-v1", "SpaceInvader-MinAtar", "x", "Hopper-brx"])
def test_an_unknown_id_is_told_the_nearest_one_and_the_families(env_id):
    with pytest.raises(ValueError) as error:
        make_env(env_id, 1)
    message = str(error.value)
    assert len(message) < 200 and "\n" not in message and repr(env_id) in message
    families = "-tabular", "-brax", "-linear", "-game", "-obstacles", "-history<k>", "-positions"
    for family in families:
        assert family in message


def test_probes_are_what_they_say():
    """The values and best actions that the learning tests expect, from each probe's own tables."""
    for name, (tables, values) in ALL_PROBES.items():
        next_state, reward, terminal, _ = map(np.array, tables)
        v = np.zeros(len(terminal))
        for _ in range(300):
            q = reward + GAMMA * ~terminal[next_state] * v[next_state]
            v = q.max(-1)
        for state, value in values.items():
            assert abs(v[state] - value) < 1e-6, name
        matters = np.flatnonzero((np.ptp(q, axis=-1) > 1e-6) & ~terminal)
        assert best_actions(tables) == {s: q[s].argmax() for s in matters}, name


def test_probes_together_have_all_their_states():
    """Starting with Constant's, whose end is state 1; AlwaysTruncated has the last, 13."""
    expected = {0: 1, 2: -1, 3: 1, 5: GAMMA, 6: 1, 8: 1, 10: 1, 11: 1, 13: 1 / (1 - GAMMA)}
    assert pytest.approx(expected) == TOGETHER_VALUES
    assert TOGETHER_ACTIONS == {8: 1, 10: 0, 11: 1}


@pytest.mark.parametrize("env_id", ["BlockingMaze-tabular", "ShortcutMaze-tabular"])
def test_a_maze_changes_once_in_the_life_of_an_environment(env_id):
    """For so many steps, over all episodes, they follow one MDP, and from then on the other."""
    change_after, phases = TABULAR[env_id].change_after, TABULAR[env_id].phases
    _, _, t, _ = rolled(env_id, change_after + 1_500, num_envs=20)
    s, a, n = (np.asarray(x) for x in (t.obs, t.action, t.next_obs))
    before, after = (make_mdp(x).P[s, a, n] == 1 for x in phases)  # [T, N]
    assert before[:change_after].all() and not after[:change_after].all()
    assert after[change_after:].all() and not before[change_after:].all()
    assert t.terminated[:change_after].any() and not t.truncated.any()


def test_a_maze_changes_to_the_step():
    """The blocking maze's opening, from below, before and after step 1000."""
    env, up = make_env("BlockingMaze-tabular", 6), jnp.zeros(6, int)
    below, ages = jnp.full(6, 44), jnp.arange(997, 1_003)
    state = jax.jit(env.reset)(jax.random.key(0))
    state = state._replace(obs=below, inner=(below, jnp.zeros(6, int), ages))
    state, transition = env.step(state, up, jax.random.key(1))
    np.testing.assert_array_equal(transition.next_obs, [35, 35, 35, 44, 44, 44])
    np.testing.assert_array_equal(state.inner[-1], ages + 1)


def test_rewards_are_noisy_where_the_mdp_says_so():
    """From N(-.1, 1) in B of the maximisation bias, and nowhere else."""
    _, _, t, _ = rolled("MaximizationBias-tabular", 400, num_envs=100)
    in_b, reward = np.asarray(t.obs) == 1, np.asarray(t.reward)
    assert (reward[~in_b] == 0).all() and in_b.sum() > 10_000
    assert reward[in_b].mean() == pytest.approx(-0.1, abs=4 / np.sqrt(in_b.sum()))
    assert reward[in_b].std() == pytest.approx(1.0, abs=4 / np.sqrt(2 * in_b.sum()))
    assert len(np.unique(reward[in_b])) > 0.99 * in_b.sum()


def test_an_environment_of_64_bits_leaves_nothing_in_one_of_32():
    def dtypes():
        env = make_env("Together-probe", 3)
        state = jax.eval_shape(env.reset, jax.random.key(0))
        action, key = jax.ShapeDtypeStruct((3,), jnp.int32), jax.random.key(0)
        after, _ = jax.eval_shape(env.step, state, action, key)
        assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, state)
        return {str(x.dtype) for x in jax.tree.leaves(state.inner)}

    with jax.enable_x64(True):
        assert dtypes() == {"int64"}
    assert dtypes() == {"int32"}
