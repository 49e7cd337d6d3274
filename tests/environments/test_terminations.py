"""Rules of termination, against the environments themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.environments.terminations import make_termination
from common.envs import make_env, rollout
from common.exploration import random_policy


def push(obs, key):
    """Full force in the direction of the velocity, which takes the car up the hill."""
    return jnp.sign(obs[:, 1:2])


def check(env_id, policy, num_steps, ends):
    """The rule, asked after every step of 8 environments, says what they say."""
    env = make_env(env_id, 8)
    roll = lambda key: rollout(env, policy or random_policy(env), env.reset(key), key, num_steps)[1]
    t = jax.jit(roll)(jax.random.key(0))
    terminates = jax.vmap(jax.vmap(make_termination(env_id)))(t.next_obs)
    assert terminates.dtype == bool
    np.testing.assert_array_equal(terminates, t.terminated)
    assert t.terminated.any() == ends


@pytest.mark.parametrize(
    "env_id, policy, num_steps, ends",
    [
        ("Pendulum-v1", None, 205, False),
        ("MountainCarContinuous-v0", push, 250, True),
        ("DoubleIntegrator-linear", None, 50, False),
    ],
)
def test_the_rule_is_that_of_the_environment(env_id, policy, num_steps, ends):
    check(env_id, policy, num_steps, ends)


@pytest.mark.slow
@pytest.mark.parametrize(
    "env_id, ends",
    [
        ("InvertedPendulum-brax", True),
        ("InvertedPendulum-brax-generalized", True),
        ("Fast-brax", False),
        ("Reacher-brax", False),
    ],
)
def test_the_rule_is_that_of_brax(env_id, ends):
    check(env_id, None, 100, ends)


@pytest.mark.parametrize("env_id", ["Hopper-brax", "Pendulum-v1-history4", "Pendulum-v1-positions"])
def test_what_no_rule_is_known_for_is_refused(env_id):
    with pytest.raises(ValueError, match=f"{env_id}: it is not known when"):
        make_termination(env_id)
