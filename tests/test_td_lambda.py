"""td_lambda.py: its equations by hand, the book's loops, the probes, and the random walk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import check_picture_of_values, episodes_of, trained, values_of_the_walk
from probes import ALL_PROBES, GAMMA

from algorithms import td_lambda
from algorithms.td_lambda import (
    Config,
    accumulating_trace,
    make,
    n_step_return,
)
from benchmarks.figures import first_episodes, rms_error, train
from common.environments.mdp import load_policy, policy_values, visited_states
from common.environments.tabular import TABULAR, make_mdp
from common.envs import Transition, make_env, rollout

V = jnp.array([10.0, 20.0, 30.0, 40.0])


def window(terminated, truncated):
    """Three steps 0 → 1 → 2 → 3 with rewards 1, 2, 4."""
    states = jnp.arange(4)
    flags = jnp.array(terminated, bool), jnp.array(truncated, bool)
    return Transition(states[:-1], states[:-1], jnp.array([1.0, 2.0, 4.0]), states[1:], *flags)


def return_of(steps, gamma):
    """The n-step return with the values V."""
    next_value = V[steps.next_obs]
    return n_step_return(steps.reward, next_value, steps.terminated, steps.truncated, gamma)


@pytest.mark.parametrize(
    "terminated, truncated, expected",
    [
        ([0, 0, 0], [0, 0, 0], 1 + 2 / 2 + 4 / 4 + 40 / 8),
        ([0, 0, 1], [0, 0, 0], 1 + 2 / 2 + 4 / 4),  # the MDP ended: no bootstrap
        ([0, 0, 0], [0, 0, 1], 1 + 2 / 2 + 4 / 4 + 40 / 8),  # the clock ran out: bootstrap
        ([0, 0, 1], [0, 0, 1], 1 + 2 / 2 + 4 / 4),
        ([0, 1, 0], [0, 0, 0], 1 + 2 / 2),  # what follows is another episode
        ([0, 0, 0], [0, 1, 0], 1 + 2 / 2 + 30 / 4),
        ([0, 1, 1], [0, 1, 0], 1 + 2 / 2),
        ([1, 0, 0], [0, 1, 0], 1),
        ([0, 0, 0], [1, 0, 0], 1 + 20 / 2),
    ],
)
def test_n_step_return_is_cut_where_the_episode_ends(terminated, truncated, expected):
    assert return_of(window(terminated, truncated), 0.5) == expected


def test_return_of_one_step_is_the_target_of_td_0():
    one = jax.tree.map(lambda x: x[:1], window([0, 0, 0], [0, 0, 0]))
    assert return_of(one, 0.5) == 1 + 20 / 2
    assert return_of(one, 0.0) == 1


def test_trace_decays_by_gamma_lambda_and_adds_one_where_it_is():
    trace = accumulating_trace(jnp.array([1.0, 2.0, 0.0]), 1, 0.5, 0.5)
    np.testing.assert_array_equal(trace, [0.25, 1.5, 0.0])


def test_exact_values_of_the_walk_and_of_the_small_grid():
    """v(s) = s / 6 (Example 6.2), -.9 to .9 (Example 7.1), and the values of Figure 4.1."""
    half = np.full((21, 2), 0.5)
    five = policy_values(make_mdp("RandomWalk5-tabular"), half[:7], 1.0)
    np.testing.assert_allclose(five[1:-1], np.arange(1, 6) / 6, atol=1e-6)
    walk = make_mdp("RandomWalk19-tabular")
    np.testing.assert_allclose(
        policy_values(walk, half, 1.0)[1:-1], np.arange(-9, 10) / 10, atol=1e-6
    )
    grid = policy_values(make_mdp("GridWorld-tabular"), np.full((16, 4), 0.25), 1.0)
    expected = [[0, -14, -20, -22], [-14, -18, -20, -20], [-20, -20, -18, -14], [-22, -20, -14, 0]]
    np.testing.assert_allclose(grid.reshape(4, 4), expected, rtol=1e-4)


def test_states_that_the_policy_never_reaches_are_not_scored():
    walk = make_mdp("RandomWalk5-tabular")
    right = np.eye(2)[np.ones(7, int)]
    np.testing.assert_array_equal(np.flatnonzero(visited_states(walk, right)), [3, 4, 5])
    both = visited_states(walk, right / 2 + 0.25)
    np.testing.assert_array_equal(np.flatnonzero(both), range(1, 6))


def book_td_lambda(episodes, v, alpha, gamma, decay):
    """Sutton & Barto 2018, section 12.2: V after each update."""
    after = []
    for episode in episodes:
        trace = np.zeros_like(v)
        for s, r, s2, terminated in episode:
            trace *= gamma * decay
            trace[s] += 1
            v = v + alpha * (r + gamma * v[s2] * (not terminated) - v[s]) * trace
            after.append(v)
    return after


def book_n_step(episodes, v, alpha, gamma, n):
    """Sutton & Barto 2018, section 7.1: V after each update; an episode's last n - 1 at its end."""
    after, v = [], v.copy()
    for episode in episodes:
        end = len(episode)
        for tau in range(end):
            rewards = [r for _, r, _, _ in episode[tau : tau + n]]
            target = sum(gamma**i * r for i, r in enumerate(rewards))
            *_, s2, terminated = episode[min(tau + n, end) - 1]
            target += gamma ** len(rewards) * v[s2] * (not terminated)
            v[episode[tau][0]] += alpha * (target - v[episode[tau][0]])
            after.append(v.copy())
    return after


def played(algorithm, config, seed):
    """V and `rms_error` after each update, and all transitions, those taken in `init` first."""
    env = make_env(config.env_id, 1)
    choose = lambda obs, key: algorithm.act(None, obs, key)

    def update(state, step):
        key = jax.random.fold_in(state.key, step)
        steps = rollout(env, choose, state.env, key, config.steps_per_update)[1]
        state, metrics = algorithm.update(state, step)
        return state, (state.params, metrics["rms_error"], jax.tree.map(lambda x: x[:, 0], steps))

    def run(key):
        state = algorithm.init(key)
        return state.pending, jax.lax.scan(update, state, jnp.arange(algorithm.num_updates))[1]

    pending, (v, rms_error, steps) = jax.jit(run)(jax.random.key(seed))
    steps = jax.tree.map(lambda x, y: np.append(x, y.reshape(-1)), pending, steps)
    return np.asarray(v), np.asarray(rms_error), steps


@pytest.mark.parametrize(
    "steps_per_update, method",
    [
        (1, {"n_step": 1, "td_lambda": 0.0}),
        (1, {"n_step": 4}),
        (40, {"n_step": 25}),
        (1, {"td_lambda": 0.7}),
        (40, {"td_lambda": 1.0}),
    ],
)
@pytest.mark.parametrize("env_id", ["RandomWalk5-tabular", "Cut-tabular"])
def test_it_makes_the_updates_of_the_book(env_id, steps_per_update, method, monkeypatch):
    """Episodes that terminate, and some of the same walk that a limit of 6 steps cuts."""
    monkeypatch.setitem(
        TABULAR, "Cut-tabular", TABULAR["RandomWalk5-tabular"]._replace(max_steps=6)
    )
    settings = {"learning_rate": 0.2, "gamma": 0.9, "initial_value": 0.5}
    with jax.enable_x64(True):
        config = Config(
            env_id, steps_per_update=steps_per_update, total_timesteps=400, **settings, **method
        )
        v, rms_error, steps = played(make(config), config, seed=3)

    done = steps.terminated | steps.truncated
    assert steps.truncated.any() == (env_id == "Cut-tabular") and steps.terminated.any()
    ends = np.flatnonzero(done)
    rows = list(zip(steps.obs, steps.reward, steps.next_obs, steps.terminated, strict=True))
    episodes = episodes_of(rows, ends)
    start = np.full(7, 0.5)
    if config.n_step > 1:
        expected = book_n_step(episodes, start, 0.2, 0.9, config.n_step)
    else:
        expected = book_td_lambda(episodes, start, 0.2, 0.9, config.td_lambda)
    # Until the last episode that ended.
    known = expected[steps_per_update - 1 :: steps_per_update][: len(v)]
    assert len(known) >= 0.7 * len(v)
    np.testing.assert_allclose(v[: len(known)], known, rtol=1e-12)
    errors = (v - values_of_the_walk(0.9))[:, 1:-1]
    np.testing.assert_allclose(rms_error, np.sqrt(np.mean(errors**2, axis=-1)), rtol=1e-12)


@pytest.mark.parametrize(
    "name, method",
    [
        ("Together-probe", {"td_lambda": 0.6}),
        ("ResetTrap-probe", {"td_lambda": 0.6}),
        ("Together-probe", {"n_step": 3}),
    ],
)
def test_it_learns_the_values_of_the_probes(name, method, tmp_path):
    """Of the policy that is optimal there, given as a file."""
    (_, rewards, *_), values = ALL_PROBES[name]
    np.save(tmp_path / "policy.npy", np.eye(2)[np.argmax(rewards, axis=-1)])
    config = Config(
        env_id=name,
        policy=str(tmp_path / "policy.npy"),
        total_timesteps=2_002,
        learning_rate=0.1,
        gamma=GAMMA,
        **method,
    )
    algorithm = make(config)
    progress = trained(algorithm, [0, 1], algorithm.num_updates)
    for state, value in values.items():
        np.testing.assert_allclose(progress.state.params[:, state], value, rtol=0.01)
    assert np.isnan(progress.mean["rms_error"]).all() or not progress.count["rms_error"].any()


def test_the_given_policy_is_played(tmp_path):
    policy = np.tile([[0.25, 0.75]], (7, 1))
    np.save(tmp_path / "policy.npy", policy)
    algorithm = make(Config("RandomWalk5-tabular", policy=str(tmp_path / "policy.npy")))
    many = jax.random.split(jax.random.key(0), 10_000)
    actions = jax.vmap(algorithm.act, (None, None, 0))(None, 3, many)
    np.testing.assert_allclose(np.mean(actions), 0.75, atol=0.02)


@pytest.mark.parametrize(
    "table, complaint",
    [
        (np.full((3, 2), 0.5), "shape"),
        (np.full((7, 2), 0.4), "sum to 1"),
        (np.tile([[1.5, -0.5]], (7, 1)), "sum to 1"),
        (np.full((7, 2), np.nan), "sum to 1"),
        (np.array(["a"]), "numpy.save"),
        (None, "numpy.save"),
    ],
)
def test_a_policy_that_is_none_is_refused_in_one_line(table, complaint, tmp_path):
    path = tmp_path / "policy.npy"
    if table is not None:
        np.save(path, table)
    with pytest.raises(ValueError, match=complaint) as error:
        make(Config("RandomWalk5-tabular", policy=str(path)))
    assert "\n" not in str(error.value) and str(error.value).startswith(f"--policy {path}: ")


def test_n_steps_and_traces_are_not_mixed():
    with pytest.raises(ValueError, match="--n-step 2 --td-lambda 0.5"):
        Config(n_step=2, td_lambda=0.5)
    assert load_policy("uniform", 2, 4).tolist() == [[0.25] * 4] * 2


def first_ten(config, settings, num_seeds=128):
    """RMS error over the states, averaged over the first 10 episodes and the seeds, [G]; the
    values [G] of each float in `settings` are vmapped."""

    errors = train(td_lambda, config, num_seeds, rms_error, **settings)
    return first_episodes(errors, 10).mean((1, 2))


@pytest.mark.slow
def test_n_step_td_as_in_figure_7_2():
    """Sutton & Barto 2018, Figure 7.2, near the best step size of each n. An independent simulation
    gave the numbers; its error and that of our mean over 128 seeds are about .004 each."""
    expected = {2: (0.6, 0.282), 4: (0.4, 0.262), 8: (0.3, 0.280), 16: (0.1, 0.323)}
    errors = {}
    for n, (learning_rate, error) in expected.items():
        config = Config(steps_per_update=1, total_timesteps=2_600, n_step=n)
        errors[n] = first_ten(config, {"learning_rate": [learning_rate]})[0]
        assert abs(errors[n] - error) < 0.018, errors
    assert min(errors, key=errors.get) == 4


def test_td_lambda_as_in_figure_12_6():
    """The same walk with accumulating traces; λ = 0 is n = 1 (.346). The numbers are from the same
    simulation."""
    settings = {"td_lambda": [0.0, 0.4, 0.8, 0.9], "learning_rate": [0.8, 0.7, 0.3, 0.2]}
    errors = first_ten(Config(steps_per_update=1, total_timesteps=2_600), settings)
    np.testing.assert_allclose(errors, [0.348, 0.269, 0.272, 0.291], atol=0.018)


def test_the_picture_shows_what_was_learned():
    algorithm = make(Config("RandomWalk5-tabular", total_timesteps=1_000))
    check_picture_of_values(algorithm, values_of_the_walk(1.0), np.full((7, 2), 0.5))
