"""d4pg.py: its equations against those of DDPG, C51 and n-step DQN, and what it learns."""

import inspect
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    LONG,
    check_budget,
    check_continuous_probe,
    check_gradient,
    every_end,
    history,
    parabola,
    relu_mlp,
    small_continuous,
)

from algorithms import c51, d4pg, ddpg, n_step_dqn
from algorithms.d4pg import Config, expected_return, make, n_step, project
from common.buffers import uniform_buffer
from common.envs import Transition

SUPPORT = np.linspace(-10, 6, 65)
PROBE = {"num_atoms": 65, "v_min": -10.0, "v_max": 6.0}


@pytest.mark.parametrize(
    "name, parent",
    [
        *[(name, c51) for name in ("expected_return", "project", "cross_entropy")],
        *[(name, n_step_dqn) for name in ("NStep", "n_step")],
        *[(name, ddpg) for name in ("policy_loss", "ornstein_uhlenbeck")],
    ],
)
def test_an_equation_is_that_of_its_own_file_to_the_letter(name, parent):
    """Whose tests are in that file's."""
    assert inspect.getsource(getattr(d4pg, name)) == inspect.getsource(getattr(parent, name))


@every_end
def test_mean_of_one_step_on_a_wide_support_is_the_target_of_ddpg(
    terminated, truncated, bootstraps
):
    """The projection keeps the mean of what it does not clip."""
    support = jnp.linspace(-1_000.0, 1_000.0, 101)
    probabilities = jax.nn.softmax(-jnp.square(support - 120) / 1e4)
    ends = {"terminated": jnp.array([terminated]), "truncated": jnp.array([truncated])}
    zero = jnp.zeros(1)
    steps = Transition(obs=zero, action=zero, reward=jnp.array([3.0]), next_obs=zero, **ends)
    step = n_step(steps, 0.9)
    discount = step.discount * (1 - step.terminated)
    target = expected_return(project(support, step.reward, discount, probabilities), support)
    next_value = expected_return(probabilities, support)
    assert abs(next_value) > 100
    np.testing.assert_allclose(target, 3 + 0.9 * next_value * bootstraps, rtol=1e-4)
    error = ddpg.td_error(0.0, 3.0, next_value, terminated, 0.9)
    np.testing.assert_allclose(target, error, rtol=1e-4)


@pytest.mark.parametrize("bound", [20.0, 2_000.0])
def test_the_actor_follows_the_gradient_of_ddpg(bound):
    """Two atoms -M and M with logits 0 and ln((M + Q) / (M - Q)) have the mean Q, for any M."""
    critic, support = jnp.array([1.0, 0.25]), jnp.array([-bound, bound])

    def loss_of_ddpg(theta):
        return ddpg.policy_loss(parabola(critic, 2.0, theta * 2.0))

    def loss(theta):
        q = parabola(critic, 2.0, theta * 2.0)
        logits = jnp.array([0.0, jnp.log((bound + q) / (bound - q))])
        return d4pg.policy_loss(expected_return(jax.nn.softmax(logits), support))

    for theta in (-0.5, 0.6):
        gradient = jax.grad(loss)(theta)
        np.testing.assert_allclose(gradient, jax.grad(loss_of_ddpg)(theta), rtol=1e-3)


# Some updates on the probe, whose episodes have 1, 2 or 8 steps.


def small(**fields):
    return small_continuous(d4pg, **PROBE | {"batch_size": 64, "tau": 0.25, "gamma": 0.8} | fields)


@pytest.fixture(scope="module")
def states():
    """Seven in a row; the first one has target networks of its own."""
    algorithm = make(small())
    init, update = jax.jit(algorithm.init), jax.jit(algorithm.update)
    states = [init(jax.random.key(0))]
    other = init(jax.random.key(1))
    assert jax.tree.all(jax.tree.map(np.array_equal, other.target_params, learned(other)))
    states[0] = states[0]._replace(target_params=other.target_params)
    losses = []
    for step in range(6):
        state, metrics = update(states[-1], jnp.int32(step))
        states.append(state)
        losses.append(metrics["loss"])
    return states, losses


def learned(state):
    return state.params, state.critic_params


def critic_of(params, obs, action):
    return jax.nn.softmax(relu_mlp(params, jnp.concatenate([obs, action], axis=-1)))


@pytest.fixture(scope="module")
def batch(states):
    """Of the first update."""
    before, after = states[0][:2]
    key = jax.random.split(jax.random.fold_in(before.key, 0), 3)[2]
    batch = uniform_buffer(3_000, 5, 64).sample(after.buffer, key, 401)
    assert len(np.unique(batch.discount)) == 3 and len(np.unique(batch.terminated)) == 2
    return batch


def test_the_critic_descends_the_cross_entropy_to_the_projected_target(states, batch):
    """Of s_{t+n} and the target actor's action there, atom by atom, in float64."""
    (before, after, *_), losses = states
    target_actor, target_critic = before.target_params
    next_action = jnp.tanh(relu_mlp(target_actor, batch.next_obs))
    p = np.asarray(critic_of(target_critic, batch.next_obs, next_action), np.float64)
    m, last = np.zeros((64, 65)), 64
    discount = batch.discount * ~batch.terminated
    for i, (reward, gamma_n) in enumerate(zip(batch.reward, discount, strict=True)):
        for z, mass in zip(SUPPORT, p[i], strict=True):
            b = (np.clip(reward + gamma_n * z, -10, 6) + 10) / 16 * last
            lower = min(int(b), last - 1)
            m[i, lower] += mass * (lower + 1 - b)
            m[i, lower + 1] += mass * (b - lower)

    def loss(params):
        log_p = jnp.log(critic_of(params, batch.obs, batch.action))
        return -jnp.mean(jnp.sum(m * log_p, axis=-1))

    np.testing.assert_allclose(losses[0], loss(before.critic_params), rtol=1e-5)
    check_gradient(after.critic_opt_state, loss, before.critic_params)


def test_the_actor_ascends_the_expected_return_of_its_action(states, batch):
    """Of the critic after its step, in the same batch."""
    before, after = states[0][:2]

    def loss(params):
        action = jnp.tanh(relu_mlp(params, batch.obs))
        return -jnp.mean(critic_of(after.critic_params, batch.obs, action) @ SUPPORT)

    check_gradient(after.opt_state, loss, before.params)


def test_targets_move_by_tau(states):
    for before, after in pairwise(states[0]):
        for target, new, old in zip(
            *map(jax.tree.leaves, (after.target_params, learned(after), before.target_params)),
            strict=True,
        ):
            np.testing.assert_allclose(target, 0.25 * new + 0.75 * old, rtol=1e-5, atol=1e-7)


def test_replay_holds_the_n_step_transitions_of_the_stream(states):
    """Each step of five environments enters two updates later, with up to three rewards."""
    states = states[0]
    stream = jax.tree.map(
        lambda *x: np.concatenate(x),
        states[0].pending,
        *[jax.tree.map(lambda x: x[-1:], state.pending) for state in states[1:]],
    )
    for t in range(6):
        rows = jax.tree.map(lambda x, t=t: np.asarray(x)[2_000 + 5 * t :][:5], states[-1].buffer)
        for e in range(5):
            total, discount = 0.0, 1.0
            for i in range(t, t + 3):
                total += discount * stream.reward[i, e]
                discount *= 0.8
                if stream.terminated[i, e] or stream.truncated[i, e]:
                    break
            np.testing.assert_array_equal(rows.obs[e], stream.obs[t, e])
            np.testing.assert_array_equal(rows.next_obs[e], stream.next_obs[i, e])
            np.testing.assert_allclose(rows.reward[e], total, rtol=1e-6)
            np.testing.assert_allclose(rows.discount[e], discount, rtol=1e-6)
            assert rows.terminated[e] == stream.terminated[i, e]


def test_act_is_the_mean_action_within_the_bounds(states):
    params, obs = states[0][-1].params, jnp.eye(8)[4]
    action = make(small()).act(params, obs, jax.random.key(0))
    np.testing.assert_allclose(action, 1 + 2 * np.tanh(relu_mlp(params, obs)), rtol=1e-5)


def test_the_budget_counts_every_environment_step():
    check_budget(make(small(learning_starts=2_001)), 2_005 + 2 * 5, 3_000)


@pytest.mark.parametrize("fields", [{"num_atoms": 1}, {"v_min": 5.0, "v_max": 5.0}, {"v_min": 1.0}])
def test_a_support_that_is_none_is_refused(fields):
    with pytest.raises(ValueError, match="--num-atoms|--v-min"):
        Config(**fields)


def values_of(config, state, obs, action):
    return critic_of(state.critic_params, obs, action) @ SUPPORT


def test_it_learns_the_values_and_best_actions_of_the_probes():
    check_continuous_probe(d4pg, values_of, **PROBE)


def test_a_critic_whose_support_is_too_small_has_its_mass_on_the_lowest_atom_and_fails():
    """A mass on a line, whose best return is -6 on average, with returns down to -50 and to -1."""
    fields = {"env_id": "Mass-linear", "total_timesteps": 5_000, "learning_starts": 400}
    fields |= {"buffer_size": 5_000, "batch_size": 64, "hidden_sizes": (32,), "gamma": 0.95}
    fields |= {"num_envs": 4, "tau": 0.05, "exploration_noise": 0.2, "learning_rate": 3e-3}

    def train(v_min):
        algorithm = make(Config(**fields, v_min=v_min))
        state, returns = history(algorithm, "episode_return", jax.random.key(0))
        p = critic_of(state.critic_params, state.buffer.obs, state.buffer.action)
        return p[:, 0].mean(), jnp.nanmean(returns[-300:])

    mass, returns = jax.jit(jax.vmap(train), compiler_options=LONG)(jnp.array([-50.0, -1.0]))
    assert mass[0] < 0.2 and mass[1] > 0.7, mass
    assert returns[0] > -10 and returns[1] < -20, returns


def test_the_default_support_holds_the_returns_of_pendulum():
    """Whose reward is at least -(π² + 0.1 8² + 0.001 2²)."""
    config = Config()
    lowest = -(np.pi**2 + 0.1 * 8**2 + 0.001 * 2**2)
    assert config.env_id == "Pendulum-v1"
    assert config.v_min <= lowest / (1 - config.gamma) and config.v_max >= 0
