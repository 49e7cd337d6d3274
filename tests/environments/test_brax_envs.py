"""common/environments/brax_envs.py: batches that reset themselves, with starts of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax_probe import CountdownEnv
from helpers import keys

from benchmarks.kernels import parsed
from common.environments import brax_envs
from common.environments.brax_envs import BROKEN, NAMES, load
from common.envs import make_env, rollout
from common.runner.evaluation import evaluate

SMALL = ["Fast", "InvertedPendulum", "Hopper"]  # the others take long to compile


@pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=[] if x in SMALL else pytest.mark.slow) for x in NAMES],
)
def test_every_environment_that_works_steps(name):
    env, _ = load(f"{name}-brax")

    @jax.jit
    def first_step(key):
        key_reset, key_action = jax.random.split(key)
        action = jax.random.uniform(key_action, (env.action_size,), minval=-1)
        return env.step(env.reset(key_reset), action)

    state = first_step(jax.random.key(0))
    assert state.obs.ndim == 1 and state.done.shape == state.reward.shape == ()
    assert np.isfinite(state.obs).all() and np.isfinite(state.reward) and state.done in (0, 1)


def test_nothing_is_printed_and_no_log_is_left(tmp_path, monkeypatch, capfd):
    """MuJoCo complains of HalfCheetah's model in a file, Brax of missing packages on stdout."""
    monkeypatch.chdir(tmp_path)
    load.__wrapped__("HalfCheetah-brax")
    assert list(tmp_path.iterdir()) == [] and capfd.readouterr() == ("", "")


def test_a_broken_environment_is_refused_with_the_reason():
    from brax import envs

    with pytest.raises(Exception):  # noqa: B017 - if this fails Brax has mended it: take it in
        envs.get_environment("swimmer", backend="spring")
    assert set(envs._envs) == {*NAMES.values(), *(name.lower() for name in BROKEN)}


@pytest.mark.parametrize(
    "env_id, words",
    [
        ("Swimmer-brax", "choose another"),
        ("Hoper-brax", "did you mean Hopper-brax?"),
        ("Zzz-brax", "for example Ant-brax"),
        ("Hopper-brax-mujoco", "spring, generalized, positional, mjx, not 'mujoco'"),
    ],
)
def test_what_there_is_not_is_one_line(env_id, words):
    with pytest.raises(ValueError, match=words) as error:
        make_env(env_id, 1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("num_envs", [1, 3, 32, 100])
def test_each_episode_has_a_start_of_its_own_and_keeps_its_last_observation(num_envs, monkeypatch):
    monkeypatch.setattr(brax_envs, "load", lambda env_id: (CountdownEnv(), 35))
    env = make_env("Countdown-brax", num_envs)
    action = jnp.zeros((num_envs, 1))

    def after(state, key):
        state, transition = env.step(state, action, key)
        return state, (state.obs, transition)

    def run(key):
        return jax.lax.scan(after, env.reset(key), jax.random.split(jax.random.key(1), 3_000))[1]

    seeds = keys(0, 1)
    alone = jax.tree.map(np.asarray, jax.jit(run)(seeds[1]))
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(x[1], y), jax.jit(jax.vmap(run))(seeds), alone
    )
    obs, transitions = alone
    before, next_obs = transitions.obs, transitions.next_obs
    terminated, truncated = transitions.terminated, transitions.truncated
    done = terminated | truncated
    assert terminated.sum() > 50 * num_envs and truncated.sum() > 10 * num_envs
    starts = np.concatenate([before[0], obs[done]])
    assert (starts[:, 1] == 0).all()
    assert len(np.unique(starts[:, 0])) >= 0.998 * len(starts)  # random floats do collide
    np.testing.assert_array_equal(next_obs, before + [0, 1])
    np.testing.assert_array_equal(next_obs[~done], obs[~done])
    np.testing.assert_array_equal(before[1:], obs[:-1])
    np.testing.assert_array_equal(terminated, next_obs[..., 1] >= next_obs[..., 0])
    np.testing.assert_array_equal(truncated, next_obs[..., 1] >= 35)
    assert (transitions.reward == 1).all()


def test_no_step_copies_the_starts_drawn_ahead(monkeypatch):
    """XLA copied all of them in each step when they were read before they were replaced."""
    monkeypatch.setattr(brax_envs, "load", lambda env_id: (CountdownEnv(), 35))
    env = make_env("Countdown-brax", 100)

    def after(state, key):
        state, _ = env.step(state, jnp.zeros((100, 1)), key)
        return state, state.obs

    def run(key):
        return jax.lax.scan(after, env.reset(key), jax.random.split(key, 50))

    computations = parsed(jax.jit(jax.vmap(run)).lower(keys(0, 1)).compile().as_text())
    (loop,) = (c for c in computations.values() if any(op == "conditional" for _, op, _ in c))
    assert any("[2,200,2]" in shape for shape, *_ in loop)  # they are there
    assert not any("[2,200" in shape for shape, op, _ in loop if op == "copy")


def test_an_action_that_is_no_number_earns_no_number():
    """In InvertedPendulum, which pays 1 for every step that does not end."""
    env = make_env("InvertedPendulum-brax", 2)
    act = lambda params, obs, key: params * jnp.ones(1)
    play = jax.jit(lambda params: evaluate(env, act, params, jax.random.key(0)))
    assert np.isnan(play(jnp.nan)[0]).all()
    returns, lengths = play(0.0)
    np.testing.assert_array_equal(returns, lengths)
    assert (lengths > 3).all() and (lengths < 200).all() and lengths[0] != lengths[1]


def test_starts_are_drawn_for_all_seeds_at_once_under_a_condition():
    """Which would else become a select, and a reset a part of every step."""
    env = make_env("Fast-brax", 2)
    states = jax.eval_shape(jax.vmap(jax.vmap(env.reset)), keys(*range(6)).reshape(2, 3))
    step = jax.vmap(jax.vmap(env.step))
    jaxpr = jax.make_jaxpr(step)(states, jnp.zeros((2, 3, 2, 1)), keys(*range(6)).reshape(2, 3))
    assert str(jaxpr).count(" cond[") == 1


def test_no_key_is_used_twice():
    env = make_env("Fast-brax", 2)
    with jax.debug_key_reuse(True):
        state = jax.eval_shape(env.reset, jax.random.key(0))
        jax.make_jaxpr(env.step)(state, jnp.zeros((2, 1)), jax.random.key(1))


def test_policies_may_be_rolled_out_for_seeds_at_once():
    env = make_env("Fast-brax", 2)

    def episode_return(key):
        key_reset, key_rollout = jax.random.split(key)
        idle = lambda obs, key: jnp.zeros((2, 1))
        _, _, episodes = rollout(env, idle, env.reset(key_reset), key_rollout, env.max_steps)
        return episodes["episode_return"]

    returns = jax.jit(jax.vmap(episode_return))(keys(0, 1, 2))
    assert returns.shape == (3,) and np.isfinite(returns).all()  # the time limit ends them
