"""common/environments/history.py: windows of past observations and actions."""

from collections import deque

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments import environment, spaces
from helpers import run_here, small_config, trained
from probes import Probe

from algorithms import dqn
from common.envs import make_env, rollout
from common.exploration import random_policy
from common.runner.evaluation import evaluate


class Cue(Probe):
    """State 0 or 1 is shown, then a hall that looks the same after both, where the action that the
    cue named is worth 1 and the other -1."""

    def __init__(self):
        next_state = [[2, 2], [3, 3], [4, 4], [4, 4], [4, 4]]
        reward = [[0, 0], [0, 0], [1, -1], [-1, 1], [0, 0]]
        super().__init__(next_state, reward, [False] * 4 + [True], [0, 1], vector=True)

    def observe(self, key, state, action, params):
        return super().observe(key, state.replace(s=jnp.array([0, 1, 2, 2, 2])[state.s]), 0, params)


gymnax.register("Cue-probe", Cue)


def expected(env, rolled, length):
    """The windows [T, N, ...] before and after each step, kept one by one."""
    obs, action, _, next_obs, terminated, truncated = map(np.asarray, rolled)
    if env.num_actions is not None:
        action = np.eye(env.num_actions)[action]
    num_steps, num_envs = terminated.shape
    before = [[None] * num_envs for _ in range(num_steps)]
    after = [[None] * num_envs for _ in range(num_steps)]
    for n in range(num_envs):
        window = None
        for t in range(num_steps):
            if window is None:
                still = np.concatenate([obs[t, n].ravel(), np.zeros(action[t, n].size)])
                window = deque([*[still] * (length - 1), obs[t, n].ravel()])
            before[t][n] = np.concatenate(window)
            newest = window.pop()
            window.append(np.concatenate([newest, action[t, n].ravel()]))
            window.append(next_obs[t, n].ravel())
            window.popleft()
            after[t][n] = np.concatenate(window)
            if terminated[t, n] or truncated[t, n]:
                window = None
    return np.array(before), np.array(after)


@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "Catch-bsuite", "Fast-brax"])
def test_windows_are_those_kept_by_hand(env_id, length):
    """Over ends of episodes, terminated or truncated; nothing but the observations changes."""
    num_steps = 210 if env_id == "Pendulum-v1" else 140
    env, seen = make_env(env_id, 3), make_env(f"{env_id}-history{length}", 3)

    def roll(env):
        policy = random_policy(env)
        roll = lambda key: rollout(env, policy, env.reset(key), key, num_steps)
        return jax.jit(roll)(jax.random.key(0))

    state, plain, episodes = roll(env)
    seen_state, windows, seen_episodes = roll(seen)
    assert (np.asarray(plain.terminated) | np.asarray(plain.truncated)).any()
    before, after = expected(env, plain, length)
    np.testing.assert_allclose(windows.obs, before, rtol=1e-6)
    np.testing.assert_allclose(windows.next_obs, after, rtol=1e-6)
    assert windows.obs.shape[2:] == seen.obs_shape
    assert windows.obs.dtype == plain.obs.dtype and seen.max_steps == env.max_steps
    for name in ("action", "reward", "terminated", "truncated"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(windows, name))
    jax.tree.map(np.testing.assert_array_equal, episodes, seen_episodes)
    jax.tree.map(np.testing.assert_array_equal, state.episode, seen_state.episode)


def test_bounds_are_those_of_what_is_in_the_window():
    env = make_env("Pendulum-v1-history2", 1)
    np.testing.assert_array_equal(env.obs_low, [-1, -1, -8, -2, -1, -1, -8])
    np.testing.assert_array_equal(env.obs_high, [1, 1, 8, 2, 1, 1, 8])
    env = make_env("MountainCar-v0-history2", 1)
    np.testing.assert_allclose(env.obs_low, [-1.2, -0.07, 0, 0, 0, -1.2, -0.07])
    np.testing.assert_allclose(env.obs_high, [0.6, 0.07, 1, 1, 1, 0.6, 0.07])
    env = make_env("Catch-bsuite-history3", 1)  # whose bounds are one number for all
    assert env.obs_low.shape == env.obs_high.shape == env.obs_shape
    env = make_env("CartPole-v1-history2", 1)  # which has none
    assert env.obs_low is None and env.obs_high is None


class Signs(environment.Environment):
    """Shows the sign of a number, and takes real actions."""

    default_params = environment.EnvParams(max_steps_in_episode=5)

    def reset_env(self, key, params):
        return jax.random.normal(key, (2,)) > 0, environment.EnvState(time=jnp.int32(0))

    def step_env(self, key, state, action, params):
        obs, _ = self.reset_env(key, params)
        return obs, state.replace(time=state.time + 1), action[0], jnp.bool_(False), {}

    def action_space(self, params):
        return spaces.Box(-1.0, 1.0, (1,))

    def observation_space(self, params):
        return spaces.Box(0, 1, (2,), jnp.bool_)


def test_real_actions_stay_real_beside_bools():
    gymnax.register("Signs-probe", Signs)
    env = make_env("Signs-probe-history2", 3)
    roll = jax.jit(lambda start, key: rollout(env, random_policy(env), env.reset(start), key, 4)[1])
    steps = roll(*jax.random.split(jax.random.key(0)))
    np.testing.assert_array_equal(steps.next_obs[..., 2], steps.action[..., 0])


@pytest.mark.parametrize(
    "env_id, says",
    [
        ("Breakout-MinAtar-history4", "observations that are vectors, not images"),
        ("FrozenLake-misc-history4", "observations that are vectors, not numbered states"),
        ("CartPol-v1-history4", "did you mean CartPole-v1?"),
        ("CartPole-v1-history0", "did you mean CartPole-v1?"),
        ("CartPole-v1-history", "did you mean CartPole-v1?"),
        ("Hopper-brax-history", "not 'history'"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(env_id, says):
    done = run_here("algorithms.dqn", "--env-id", env_id, check=2)
    assert says in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "env_id, least, most", [("Cue-probe", -1, 0.5), ("Cue-probe-history2", 1, 1)]
)
def test_what_was_seen_before_can_be_learned_from(env_id, least, most):
    config = small_config(
        dqn, env_id=env_id, total_timesteps=4_000, learning_rate=3e-3, hidden_sizes=(32,)
    )
    algorithm = dqn.make(config)
    run_state = trained(algorithm, [0], algorithm.num_updates)
    env = make_env(env_id, 100)
    params = jax.tree.map(lambda x: x[0], run_state.state.params)
    returns, _ = jax.jit(lambda key: evaluate(env, algorithm.act, params, key))(jax.random.key(1))
    assert least <= returns.mean() <= most
