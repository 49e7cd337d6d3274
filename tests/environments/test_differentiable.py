"""Environments through whose steps gradients pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import float64

from common.environments.differentiable import has_gradient, make_differentiable_env
from common.environments.dynamics import make_dynamics


@pytest.mark.parametrize(
    "env_id, reward, next_obs",
    [
        ("Pendulum-v1", True, True),
        ("Pendulum-v1-positions", True, True),
        ("Reacher-misc", True, True),
        ("DoubleIntegrator-linear", True, True),
        ("MountainCarContinuous-v0", False, True),  # only the goal rewards what an action led to
        ("PointRobot-misc", False, True),  # as here
        ("Fast-brax", False, False),  # accelerates by `action > 0`
    ],
)
def test_what_has_gradients(env_id, reward, next_obs):
    assert has_gradient(env_id, "reward", jnp.result_type(float)) == reward
    assert has_gradient(env_id, "next_obs", jnp.result_type(float)) == next_obs


def test_a_step_has_the_derivatives_of_the_dynamics():
    """Those of Pendulum's angle and velocity with respect to the torque, in float64."""
    with float64():
        env = make_differentiable_env("Pendulum-v1", 4, "reward")
        dynamics = make_dynamics("Pendulum-v1")
        state = env.reset(jax.random.key(0))
        action = jnp.array([[-1.0], [0.3], [0.0], [1.9]])

        def numbers(action):
            after, transition = env.step(state, action, jax.random.key(1))
            return jnp.append(jax.vmap(dynamics.numbers)(after.inner).T, transition.reward[None], 0)

        def expected(inner, action):
            next_x, reward, _ = dynamics.step(dynamics.numbers(inner), action)
            return jnp.append(next_x, reward)

        _, found = jax.jvp(numbers, (action,), (jnp.ones((4, 1)),))
        exact = jax.vmap(jax.jacfwd(expected, 1))(state.inner, action)[..., 0].T
    np.testing.assert_allclose(found, exact, rtol=1e-9)
    assert (np.abs(exact[:2]) > 1e-3).all()


def test_no_gradient_passes_a_reset():
    """At the time limit the next state is a fresh one, and `next_obs` is that before it."""
    env = make_differentiable_env("Pendulum-v1", 1, "reward")
    state = env.reset(jax.random.key(0))
    state = state._replace(inner=state.inner.replace(time=jnp.array([199])))

    def observed(action):
        after, transition = env.step(state, action, jax.random.key(1))
        return after.obs, transition.next_obs

    _, (after, before) = jax.jvp(observed, (jnp.zeros((1, 1)),), (jnp.ones((1, 1)),))
    np.testing.assert_array_equal(after, 0)
    assert (before != 0).all()
