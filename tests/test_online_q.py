"""online_q.py: its equation by hand, and what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import check_budget, check_q_probe, every_end, pairs, relu_mlp, states_of

from algorithms import online_q
from algorithms.online_q import Config, make, td_error
from common.envs import Transition


def q(params, obs):
    return params[obs]


def transition(terminated, truncated):
    return Transition(jnp.int32(0), jnp.int32(1), 2.0, jnp.int32(1), terminated, truncated)


PARAMS = jnp.array([[7.0, 3.0], [1.0, 5.0]])  # Q(s, a) = 3, max_a' Q(s', a') = 5


@every_end
def test_td_error_bootstraps_unless_terminated(terminated, truncated, bootstraps):
    t = transition(jnp.array(terminated), jnp.array(truncated))
    with jax.numpy_rank_promotion("raise"):
        assert td_error(PARAMS, t, q, 0.5) == 2 + bootstraps * 0.5 * 5 - 3


def test_gradient_is_semi_gradient():
    """Only Q(s, a) is differentiated, though Q(s', a') is of the same θ."""
    gradient = jax.grad(td_error)(PARAMS, transition(jnp.array(False), jnp.array(False)), q, 0.5)
    np.testing.assert_array_equal(gradient, [[0, -1], [0, 0]])


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


def test_it_keeps_nothing_but_the_network():
    state = jax.eval_shape(make(small()).init, jax.random.key(0))
    assert set(state._fields) == {"key", "params", "opt_state", "env"}


def test_the_budget_counts_every_environment_step():
    check_budget(make(small(train_frequency=2)), 0, 1_000)


@pytest.mark.parametrize("name", ["Together-probe", "ResetTrapVector-probe"])
def test_it_learns_the_values_and_best_actions_of_the_probes(name):
    """With numbered states and no noise it is nearly a table, where online Q-learning is sound."""
    check_q_probe(online_q, name, num_envs=8, total_timesteps=80_000, learning_rate=1e-3)
