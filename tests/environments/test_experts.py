"""experts.py: what the experts reach, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.environments.experts import linear_controller, make_expert, tabular_controller
from common.environments.linear import make_system
from common.environments.mdp import policy_values
from common.environments.tabular import make_mdp
from common.envs import bound_action, make_env, map_actions
from common.runner.evaluation import evaluate

# Mean returns over 400 episodes must be at least these, and actions in [-1, 1].
REACHED = {
    "CartPole-v1": 500,
    "MountainCar-v0": -125,  # solved: -110 over 100 episodes; sign of the velocity alone: -130
    "MountainCarContinuous-v0": 97,  # solved: 90
    "Pendulum-v1": -160,  # SAC's row: -150
}


@pytest.mark.parametrize("env_id", list(REACHED))
def test_controllers_reach_what_good_policies_reach(env_id):
    env = map_actions(make_env(env_id, 400), bound_action)
    expert = make_expert(env_id, env)

    def act(params, obs, key):
        return expert(obs[None], key)[0]

    returns, _ = jax.jit(lambda key: evaluate(env, act, None, key))(jax.random.key(0))
    assert returns.mean() >= REACHED[env_id]
    if env.num_actions is None:
        obs = 10 * jax.random.normal(jax.random.key(0), (400, *env.obs_shape))
        assert np.abs(expert(obs, jax.random.key(1))).max() <= 1


def test_the_fast_one_accelerates():
    env = map_actions(make_env("Fast-brax", 3), bound_action)
    np.testing.assert_array_equal(make_expert("Fast-brax", env)(jnp.ones((3, 2)), None), 1)


@pytest.mark.parametrize("env_id, value", [("CliffWalking-tabular", -13), ("Taxi-tabular", 7.93)])
def test_dynamic_programming_is_optimal(env_id, value):
    """The values of the optimal policies: 13 steps along the cliff; 7.93 of the taxi's 9 is the
    mean over its starts."""
    mdp = make_mdp(env_id)
    control = tabular_controller(env_id)
    actions = np.asarray(jax.vmap(control)(jnp.arange(len(mdp.start))))
    values = policy_values(mdp, np.eye(mdp.P.shape[1])[actions], 1 - 1e-6)
    assert mdp.start @ values == pytest.approx(value, abs=0.01)


def test_the_linear_controller_is_the_limit_of_riccati_steps():
    A, B, Q, R, *_ = (np.asarray(x, float) for x in make_system("DoubleIntegrator-linear"))
    P = Q
    for _ in range(100):
        gain = np.linalg.solve(R + B.T @ P @ B, B.T @ P @ A)
        P = Q + A.T @ P @ (A - B @ gain)
    control = linear_controller("DoubleIntegrator-linear")
    np.testing.assert_allclose(jax.vmap(control)(jnp.eye(2)), -gain.T, rtol=1e-5)


def test_an_environment_without_expert_is_refused_in_one_line(tmp_path):
    env = make_env("Acrobot-v1", 2)
    with pytest.raises(ValueError, match="--env-id Acrobot-v1 needs --expert or --dataset"):
        make_expert("Acrobot-v1", env)
    with pytest.raises(ValueError, match="no trained policies there"):
        make_expert("Acrobot-v1", env, str(tmp_path))
