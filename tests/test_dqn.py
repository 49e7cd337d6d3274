"""dqn.py: its equations by hand, and what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import trained
from probes import GAMMA, PROBES

from algorithms.dqn import Config, epsilon_greedy, linear_decay, make, td_error
from common.buffers import unpack
from common.envs import Transition, make_env
from common.networks import network_for


def q(params, obs):
    return params[obs]


def transition(terminated, truncated):
    return Transition(jnp.int32(0), jnp.int32(1), 2.0, jnp.int32(1), terminated, truncated)


PARAMS = jnp.array([[7.0, 3.0], [1.0, 5.0]])  # Q(s, a; θ): the action taken is worth 3
TARGET_PARAMS = jnp.array([[0.0, 0.0], [40.0, 20.0]])  # max_a' Q(s', a'; θ⁻) = 40


@pytest.mark.parametrize(
    "terminated, truncated, expected",
    [
        (False, False, 2 + 0.5 * 40 - 3),
        (True, False, 2 - 3),  # the MDP ended: no bootstrap
        (False, True, 2 + 0.5 * 40 - 3),  # only the clock ran out: bootstrap
        (True, True, 2 - 3),
    ],
)
def test_td_error_bootstraps_unless_terminated(terminated, truncated, expected):
    t = transition(jnp.array(terminated), jnp.array(truncated))
    with jax.numpy_rank_promotion("raise"):
        assert td_error(PARAMS, TARGET_PARAMS, t, q, 0.5) == expected


def test_gradient_is_semi_gradient():
    """Only Q(s, a; θ) is differentiated: neither the target nor any other entry of θ."""
    t = transition(jnp.array(False), jnp.array(False))
    gradient, target_gradient = jax.grad(td_error, argnums=(0, 1))(PARAMS, TARGET_PARAMS, t, q, 0.5)
    np.testing.assert_array_equal(gradient, [[0, -1], [0, 0]])
    np.testing.assert_array_equal(target_gradient, np.zeros((2, 2)))
    same = jax.grad(lambda params: td_error(params, params, t, q, 0.5))(PARAMS)
    np.testing.assert_array_equal(same, [[0, -1], [0, 0]])


def test_epsilon_greedy_takes_the_best_action_with_probability_1_minus_epsilon_and_a_share():
    q_values = jnp.tile(jnp.array([0.0, 2.0, 1.0, -1.0]), (40_000, 1))
    actions = np.asarray(epsilon_greedy(jax.random.key(0), q_values, 0.4))
    np.testing.assert_allclose(np.bincount(actions) / 40_000, [0.1, 0.7, 0.1, 0.1], atol=0.01)
    assert (epsilon_greedy(jax.random.key(1), q_values, 0.0) == 1).all()


def test_epsilon_falls_linearly_and_then_stays():
    steps = jnp.array([0, 25, 50, 100, 101, 10**6])
    expected = [1.0, 0.775, 0.55, 0.1, 0.1, 0.1]
    np.testing.assert_allclose(linear_decay(steps, 1.0, 0.1, 100), expected, rtol=1e-6)


def small(**fields):
    defaults = {
        "total_timesteps": 1_000,
        "learning_starts": 100,
        "buffer_size": 500,
        "batch_size": 16,
        "hidden_sizes": (16,),
        "num_envs": 5,
    }
    return Config(**defaults | fields)


def states_of(config, num_updates):
    algorithm = make(config)
    update = jax.jit(algorithm.update)
    states = [jax.jit(algorithm.init)(jax.random.key(0))]
    for step in range(num_updates):
        states.append(update(states[-1], jnp.int32(step))[0])
    return states


def test_target_network_is_copied_at_its_period_and_only_then():
    states = states_of(small(target_network_frequency=3), 7)
    for before, after, number in zip(states[:-1], states[1:], range(1, 8), strict=True):
        expected = after.params if number % 3 == 0 else before.target_params
        for got, want in zip(
            jax.tree.leaves(after.target_params), jax.tree.leaves(expected), strict=True
        ):
            np.testing.assert_array_equal(got, want)
        assert not np.array_equal(before.params[0][0], after.params[0][0])


def test_target_network_moves_by_tau():
    before, after = states_of(small(target_network_frequency=1, tau=0.25), 1)
    mixed = optax.incremental_update(after.params, before.target_params, 0.25)
    np.testing.assert_allclose(after.target_params[0][0], mixed[0][0], rtol=1e-6)
    assert not np.array_equal(after.target_params[0][0], before.target_params[0][0])


def test_replay_holds_the_latest_transitions_in_order_of_writing():
    """7 updates of 10 transitions into a ring of 40 that began with 20."""
    config = small(buffer_size=40, learning_starts=20, num_envs=5, train_frequency=2)
    states = states_of(config, 7)
    for step, (before, after) in enumerate(zip(states[:-1], states[1:], strict=True)):
        start = (2 + step) % 4 * 10
        old, new = (np.asarray(unpack(state.buffer).obs) for state in (before, after))
        written = np.arange(start, start + 10)
        np.testing.assert_array_equal(np.delete(old, written, 0), np.delete(new, written, 0))
        np.testing.assert_array_equal(new[start : start + 5], np.asarray(before.env.obs))
        assert not np.array_equal(old[written], new[written])


def test_the_budget_counts_every_environment_step():
    algorithm = make(small(total_timesteps=1_000, learning_starts=101, num_envs=5))
    assert algorithm.initial_steps == 105  # rounded up to whole updates
    assert algorithm.initial_steps + algorithm.num_updates * algorithm.steps_per_update == 1_000


def test_minatar_is_replayed_as_bool_and_seen_by_a_convolution():
    algorithm = make(small(env_id="Breakout-MinAtar", buffer_size=100))
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    assert state.buffer.words.shape == (100, 2)  # action and reward
    assert state.buffer.bytes.shape == (100, 2 * 400 + 2)  # obs, next_obs, terminated, truncated
    assert state.params[0][0].shape == (9 * 4, 16)  # 16 filters of 3 x 3
    after, _ = jax.jit(algorithm.update)(jax.jit(algorithm.init)(jax.random.key(0)), jnp.int32(0))
    assert np.isfinite(after.params[0][0]).all()


@pytest.mark.parametrize("kind", ["", "Vector"])
@pytest.mark.parametrize("name", PROBES)
def test_it_learns_the_values_of_the_probe(name, kind):
    config = Config(
        env_id=name.replace("-", f"{kind}-"),
        total_timesteps=16_000,
        num_envs=4,
        gamma=GAMMA,
        learning_starts=400,
        buffer_size=2_000,
        batch_size=32,
        learning_rate=3e-3,
        target_network_frequency=20,
        hidden_sizes=(32,),
    )
    algorithm = make(config)
    progress = trained(algorithm, [0, 1], algorithm.num_updates)
    env_states = jnp.arange(len(PROBES[name][0][2]))
    obs = jax.nn.one_hot(env_states, len(env_states)) if kind else env_states
    network = network_for(make_env(config.env_id, 1), config.hidden_sizes, 2)
    for seed in range(2):
        params = jax.tree.map(lambda x, seed=seed: x[seed], progress.state.params)
        values = network.apply(params, obs).max(-1)
        for state, value in PROBES[name][1].items():
            assert abs(values[state] - value) <= 0.03 * max(abs(value), 2), (state, values[state])
    if name == "ByAction-probe":
        assert algorithm.act(params, obs[0], jax.random.key(0)) == 1
    if name == "ByBoth-probe":
        assert [int(algorithm.act(params, obs[s], jax.random.key(0))) for s in (0, 1)] == [0, 1]
