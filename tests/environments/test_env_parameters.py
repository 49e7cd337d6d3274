"""Parameters of environments in an id, and ranges that are drawn per episode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.environments import brax_envs
from common.environments.brax_parameters import change_system, numbers_of
from common.environments.env_parameters import join_id, parameters_of, split_id, swept
from common.envs import make_env, rollout
from common.exploration import random_policy


def roll(env, num_steps, key=0):
    policy = random_policy(env)
    return jax.jit(lambda key: rollout(env, policy, env.reset(key), key, num_steps))(
        jax.random.key(key)
    )


def test_an_id_is_split_and_joined():
    env_id = "CartPole-v1-history4+tau=1e+3+x_threshold=-1.5:2"
    base, texts = split_id(env_id)
    assert (base, texts) == ("CartPole-v1-history4", {"tau": "1e+3", "x_threshold": "-1.5:2"})
    assert join_id(base, texts) == env_id == join_id(env_id, {})
    assert join_id("A+b=1+c=2", {"b": 3, "d": 0.5}) == "A+b=3+c=2+d=0.5"


def test_the_values_of_an_environment_change_no_bits():
    values = parameters_of("CartPole-v1")
    assert values["gravity"] == 9.8 and values["max_steps_in_episode"] == 500
    named = make_env(join_id("CartPole-v1", values), 3)
    both = roll(make_env("CartPole-v1", 3), 60), roll(named, 60)
    jax.tree.map(np.testing.assert_array_equal, *both)


def test_a_parameter_enters_the_dynamics_as_the_equation_says():
    """θ'' = 3g/2l sin θ + 3/(m l²) u, of gymnasium's Pendulum, whose m and l are 1."""
    env = make_env("Pendulum-v1+g=3+dt=0.1+max_torque=5+m=2", 4)
    assert env.action_low == -5 and env.action_high == 5
    state = env.reset(jax.random.key(0))
    action = jnp.array([[0.5], [-4.0], [5.0], [0.0]])
    _, transition = jax.jit(env.step)(state, action, jax.random.key(1))
    _, sine, speed = state.obs.T
    acceleration = 3 * 3 / 2 * sine + 3 / 2 * action[:, 0]
    np.testing.assert_allclose(
        transition.next_obs[:, 2], speed + 0.1 * acceleration, rtol=1e-5, atol=1e-6
    )


def test_what_gymnax_derives_from_a_parameter_follows_it():
    """Accelerations of Barto, Sutton & Anderson 1983 for a longer, heavier pole."""
    mass, length, force = 0.4, 1.5, 10.0
    env = make_env("CartPole-v1+masspole=0.4+length=1.5+masscart=2", 2)
    state = env.reset(jax.random.key(0))
    _, transition = jax.jit(env.step)(state, jnp.array([1, 1]), jax.random.key(1))
    theta, theta_dot = state.obs[:, 2], state.obs[:, 3]
    temp = (force + mass * length * theta_dot**2 * jnp.sin(theta)) / (2 + mass)
    angular = (9.8 * jnp.sin(theta) - jnp.cos(theta) * temp) / (
        length * (4 / 3 - mass * jnp.cos(theta) ** 2 / (2 + mass))
    )
    linear = temp - mass * length * angular * jnp.cos(theta) / (2 + mass)
    np.testing.assert_allclose(
        transition.next_obs[:, 3], theta_dot + 0.02 * angular, rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose(
        transition.next_obs[:, 1], state.obs[:, 1] + 0.02 * linear, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("suffix", ["", "-history3", "-positions"])
def test_a_time_limit_holds_in_every_kind_of_id(suffix):
    env = make_env(f"CartPole-v1{suffix}+max_steps_in_episode=7+theta_threshold_radians=9", 2)
    _, transitions, metrics = roll(env, 21)
    assert env.max_steps == 7 and not transitions.terminated.any()
    assert metrics["episode_length"] == 7 and metrics["episodes"] == 6
    assert transitions.truncated[6::7].all() and transitions.truncated.sum() == 6


def test_a_range_is_drawn_at_every_start_and_kept_until_the_end():
    """The pole cannot fall and the limit is drawn: an episode ends when its own limit says."""
    env = make_env(
        "CartPole-v1+max_steps_in_episode=2:4+gravity=8:12+theta_threshold_radians=99"
        "+x_threshold=1e6",
        64,
    )
    assert env.max_steps == 4
    policy = random_policy(env)

    def step(state, key):
        drawn = state.inner[1]
        after, transition = env.step(state, policy(state.obs, key), key)
        return after, (drawn, transition, after.episode.length)

    @jax.jit
    def play(key):
        return jax.lax.scan(step, env.reset(key), jax.random.split(key, 200))[1]

    drawn, transition, length = jax.tree.map(np.asarray, play(jax.random.key(3)))
    done, limit, gravity = transition.truncated, drawn["max_steps_in_episode"], drawn["gravity"]
    assert not transition.terminated.any()
    np.testing.assert_array_equal(done, length == limit)
    same = gravity[1:] == gravity[:-1]
    np.testing.assert_array_equal(same, ~done[:-1])  # drawn anew where, and only where, one ended
    starts = np.concatenate([gravity[:1].ravel(), gravity[1:][done[:-1]]])
    assert len(np.unique(starts)) > 0.99 * len(starts) > 3000
    assert 8 <= starts.min() < 8.01 and 11.99 < starts.max() < 12
    standard_error = 4 / np.sqrt(12 * len(starts))
    assert abs(starts.mean() - 10) < 4 * standard_error
    limits = np.concatenate([limit[:1].ravel(), limit[1:][done[:-1]]])
    share = np.bincount(limits, minlength=5)[2:] / len(limits)
    np.testing.assert_allclose(share, 1 / 3, atol=4 * np.sqrt(2 / 9 / len(limits)))


def test_the_drawn_value_is_that_of_the_dynamics():
    env = make_env("Pendulum-v1+g=1:20", 16)
    state = env.reset(jax.random.key(0))
    g = state.inner[1]["g"]
    _, transition = jax.jit(env.step)(state, jnp.zeros((16, 1)), jax.random.key(1))
    expected = state.obs[:, 2] + 0.05 * 3 * g / 2 * state.obs[:, 1]
    np.testing.assert_allclose(transition.next_obs[:, 2], expected, rtol=1e-4, atol=1e-5)


def test_bounds_of_observations_hold_for_a_whole_range():
    env = make_env("Pendulum-v1+max_speed=4:9", 1)
    np.testing.assert_array_equal(env.obs_high, [1, 1, 9])
    np.testing.assert_array_equal(env.obs_low, [-1, -1, -9])


def test_a_swept_value_replaces_the_one_in_the_id_and_is_traced_once():
    """Every row of the vmapped program has the reward of the Env of its own value."""
    traces = []

    def reward(g):
        traces.append(g)
        with swept({"g": g, "m": g}):  # m is not in the id
            env = make_env("Pendulum-v1+g=10", 2)
        state, _ = env.step(env.reset(jax.random.key(0)), jnp.ones((2, 1)), jax.random.key(1))
        return state.obs

    values = jnp.array([5.0, 10.0, 15.0])
    rows = jax.jit(jax.vmap(reward))(values)
    assert len(traces) == 1
    for row, value in zip(rows, values, strict=True):
        env = make_env(f"Pendulum-v1+g={value}", 2)
        state, _ = env.step(env.reset(jax.random.key(0)), jnp.ones((2, 1)), jax.random.key(1))
        np.testing.assert_allclose(row, state.obs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "env_id, says",
    [
        ("CartPole-v1+gravty=9", "gravty: CartPole-v1 has only max_steps_in_episode, gravity,"),
        ("CartPole-v1+total_mass=2", "total_mass: CartPole-v1 has only"),
        ("Seaquest-MinAtar+ramping=1", "ramping: Seaquest-MinAtar has only"),
        ("CartPole-v1+gravity=x", "gravity=x: must be a number"),
        ("CartPole-v1+gravity=inf", "gravity=inf: must be a number"),
        ("CartPole-v1+gravity=1:2:3", "must be a number"),
        ("CartPole-v1+gravity=3:2", "a range is low:high with low < high"),
        ("CartPole-v1+max_steps_in_episode=1.5", "must be a whole number"),
        ("CartPole-v1+max_steps_in_episode=0", "max_steps_in_episode is 0"),
        ("CartPole-v1+max_steps_in_episode=0:9", "max_steps_in_episode is 0"),
        ("Pendulum-v1+max_torque=1:2", "would change the bounds of actions"),
        ("CliffWalking-tabular+x=1", "CliffWalking-tabular has none that can be set"),
        ("Fast-brax+gravity=1", "Fast-brax has only max_steps_in_episode"),
        ("Nope+x=1", "no environment 'Nope'"),
    ],
)
def test_what_an_environment_cannot_take_is_refused_in_one_line(env_id, says):
    with pytest.raises(ValueError, match=says.replace("(", "\\(")) as error:
        make_env(env_id, 1)
    assert "\n" not in str(error.value)


def test_parameters_of_brax_enter_its_system():
    env, max_steps = brax_envs.load("InvertedPendulum-brax-generalized")
    known = numbers_of(env, max_steps)
    assert known == {
        "max_steps_in_episode": 1000,
        "gravity": 9.81,
        "friction_scale": 1.0,
        "mass_scale": 1.0,
    }
    values = {"gravity": 3.0, "friction_scale": 0.5, "mass_scale": 2.0}
    old, new = env.sys, change_system(env.sys, values)
    np.testing.assert_array_equal(new.gravity, [0, 0, -3])
    np.testing.assert_array_equal(new.opt.gravity, [0, 0, -3])
    np.testing.assert_array_equal(new.geom_friction, 0.5 * old.geom_friction)
    np.testing.assert_array_equal(new.link.inertia.mass, 2 * old.link.inertia.mass)
    np.testing.assert_array_equal(new.body_mass, 2 * old.body_mass)


def test_where_brax_ignores_masses_they_cannot_be_set():
    """spring_mass_scale = 1: the model takes every mass as mass^0."""
    env, max_steps = brax_envs.load("Hopper-brax")
    assert env.sys.spring_mass_scale == 1 and "mass_scale" not in numbers_of(env, max_steps)
