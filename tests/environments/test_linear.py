"""linear.py and dynamics.py: the small solver, and linear systems to step and to differentiate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.environments.dynamics import make_dynamics
from common.environments.linear import LINEAR, make_system, solve
from common.envs import make_env


@pytest.mark.parametrize("size", [1, 2, 6])
def test_solve_agrees_with_numpy(size):
    """On positive definite and on upper triangular matrices, many at once."""
    rng = np.random.default_rng(size)
    matrices = rng.normal(size=(50, size, size))
    right = rng.normal(size=(50, size, 3))
    definite = matrices @ matrices.swapaxes(1, 2) + 0.1 * np.eye(size)
    triangular = np.triu(matrices) + 3 * np.eye(size) * np.sign(matrices)
    with jax.enable_x64(True):
        for some in (definite, triangular):
            found = jax.jit(jax.vmap(solve))(some, right)
            np.testing.assert_allclose(found, np.linalg.solve(some, right), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("env_id", list(LINEAR))
def test_the_environment_follows_the_arrays_and_ends_at_the_time_limit(env_id):
    system = make_system(env_id)
    max_steps, max_action = LINEAR[env_id].max_steps, LINEAR[env_id].max_action
    env = make_env(env_id, 500, actions="continuous")
    step, key = jax.jit(env.step), jax.random.key(0)
    state = env.reset(key)
    assert np.abs(state.obs).max() <= 1 and np.abs(state.obs).mean() > 0.45
    noise = []
    for t in range(2 * max_steps):
        key, key_action, key_step = jax.random.split(key, 3)
        action = 2 * max_action * jax.random.uniform(key_action, (500, len(system.R)), minval=-1.0)
        before, (state, transition) = state, step(state, action, key_step)
        x, u = np.asarray(transition.obs), np.clip(action, -max_action, max_action)
        np.testing.assert_array_equal(x, before.obs)
        noise.append(transition.next_obs - x @ system.A.T - u @ system.B.T)
        cost = np.einsum("ni,ij,nj->n", x, system.Q, x) + np.einsum("ni,ij,nj->n", u, system.R, u)
        np.testing.assert_allclose(transition.reward, -cost, rtol=1e-4)
        assert not transition.terminated.any()
        assert (transition.truncated == ((t + 1) % max_steps == 0)).all()
        kept = (np.asarray(state.obs) == np.asarray(transition.next_obs)).all(1)
        assert (kept == ~np.asarray(transition.truncated)).all()
    if env_id == "DoubleIntegrator-linear":  # the random one runs away, and rounding with it
        np.testing.assert_allclose(np.std(noise, (0, 1)), system.noise, rtol=0.03)
        np.testing.assert_allclose(np.mean(noise, (0, 1)), 0, atol=0.005)


def test_a_random_system_is_drawn_by_its_key():
    draw = jax.jit(lambda seed: make_system("Random-linear", jax.random.key(seed)))
    systems = jax.vmap(draw)(jnp.arange(200))
    radius = np.abs(np.linalg.eigvals(np.asarray(systems.A))).max(1)
    assert 0.8 < np.median(radius) < 1.2 and (radius > 1).any() and (radius < 1).any()
    np.testing.assert_array_equal(systems.A[7], draw(7).A)


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "MountainCarContinuous-v0", *LINEAR])
def test_the_dynamics_step_as_the_environment_does(env_id):
    """A linear system does so on average over its noise."""
    env, dynamics = make_env(env_id, 2_000), make_dynamics(env_id)
    state = jax.tree.map(lambda x: jnp.repeat(x[:1], 2_000, axis=0), env.reset(jax.random.key(0)))
    action = jnp.full((2_000, *env.action_shape), 0.3)
    after, transition = jax.jit(env.step)(state, action, jax.random.key(1))
    numbers = jax.vmap(dynamics.numbers)
    x, reward, terminated = jax.vmap(dynamics.step)(numbers(state.inner), action)
    atol = 0.012 if env_id in LINEAR else 1e-6
    np.testing.assert_allclose(x.mean(0), numbers(after.inner).mean(0), atol=atol)
    np.testing.assert_allclose(reward, transition.reward, rtol=1e-5)
    assert not terminated.any()
    slope = jax.jacfwd(lambda u: dynamics.step(x[0], u)[0])(action[0])
    assert np.abs(slope).max() > 0


def test_an_environment_without_derivatives_is_refused():
    with pytest.raises(ValueError, match="CartPole-v1 has no transition gradients"):
        make_dynamics("CartPole-v1")
