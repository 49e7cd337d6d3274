"""online_q.py: its equation by hand, and what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import check_budget, check_q_probe, pairs, relu_mlp, states_of

from algorithms import online_q
from algorithms.online_q import Config, make, td_error
from common.envs import make_env, rollout
from common.exploration import epsilon_greedy

PARAMS = jnp.array([[7.0, 3.0], [1.0, 5.0]])  # Q(s, a) = 3, max_a' Q(s', a') = 5


def error(params, terminated=False):
    """The TD error from state 0 to 1 by action 1, with reward 2 and γ = 0.5."""
    return td_error(params[0, 1], 2.0, jnp.max(params[1]), terminated, 0.5)


@pytest.mark.parametrize("terminated", [False, True])
def test_td_error_bootstraps_unless_terminated(terminated):
    with jax.numpy_rank_promotion("raise"):
        assert error(PARAMS, jnp.array(terminated)) == 2 + 0.5 * 5 * (not terminated) - 3


def test_gradient_is_semi_gradient():
    """Only Q(s, a) is differentiated, though Q(s', a') is of the same θ."""
    np.testing.assert_array_equal(jax.grad(error)(PARAMS), [[0, -1], [0, 0]])


def small(**fields):
    defaults = {"total_timesteps": 1_000, "hidden_sizes": (16,), "num_envs": 5}
    return Config(**defaults | fields)


def test_an_update_learns_from_its_own_steps_alone():
    """5 environments whose every step ends an episode: there is no bootstrap, and the gradient is
    worked out from what they observed."""
    env_id = "ByObservationVector-probe"
    before, after = states_of(make(small(env_id=env_id)), 1)
    obs = before.env.obs
    reward = obs @ jnp.array([-1.0, 1.0, 0.0])

    def loss(params, action):
        values = jnp.take_along_axis(relu_mlp(params, obs), action[:, None], axis=-1)[:, 0]
        return jnp.mean((reward - values) ** 2)

    optimizer, found = optax.adam(1e-3), []
    for number in range(2**5):  # whichever actions were taken
        action = (number >> jnp.arange(5)) % 2
        grads = jax.grad(loss)(before.params, action)
        updates, _ = optimizer.update(grads, optimizer.init(before.params))
        expected = optax.apply_updates(before.params, updates)
        found.append(all(np.allclose(x, y, atol=1e-7) for x, y in pairs(expected, after.params)))
    assert 0 < sum(found) < 2**5 / 2


def test_an_update_descends_the_squared_td_error_of_its_steps():
    """Nine steps of each environment, with terminations and time limits; the target, though of the
    same θ, is held constant."""
    fields = {"gamma": 0.8, "num_envs": 40, "train_frequency": 9}
    algorithm = make(small(env_id="TogetherVector-probe", **fields))
    state = jax.jit(algorithm.init)(jax.random.key(0))
    after, metrics = jax.jit(algorithm.update)(state, jnp.int32(0))
    _, t, _ = rollout(
        make_env("TogetherVector-probe", 40),
        lambda obs, key: epsilon_greedy(key, relu_mlp(state.params, obs), 1.0),
        state.env,
        jax.random.fold_in(state.key, 0),
        9,
    )
    assert t.terminated.any() and t.truncated.any()
    targets = t.reward + 0.8 * ~t.terminated * relu_mlp(state.params, t.next_obs).max(-1)

    def loss(params):
        values = jnp.take_along_axis(relu_mlp(params, t.obs), t.action[..., None], axis=-1)
        return jnp.mean((targets - values[..., 0]) ** 2)

    expected, gradient = jax.value_and_grad(loss)(state.params)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    for got, want in pairs(after.opt_state[0].mu, gradient):  # Adam's first mean is a tenth of it
        np.testing.assert_allclose(got / (1 - 0.9), want, rtol=1e-4, atol=1e-6)


def test_it_keeps_nothing_but_the_network():
    state = jax.eval_shape(make(small()).init, jax.random.key(0))
    assert set(state._fields) == {"key", "params", "opt_state", "env"}


def test_the_budget_counts_every_environment_step():
    check_budget(make(small(train_frequency=2)), 0, 1_000)


@pytest.mark.parametrize("name", ["Together-probe", "ResetTrapVector-probe"])
def test_it_learns_the_values_and_best_actions_of_the_probes(name):
    """With numbered states and no noise it is nearly a table, where online Q-learning is sound."""
    check_q_probe(online_q, name, num_envs=8, total_timesteps=80_000, learning_rate=1e-3)
