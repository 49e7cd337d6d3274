"""values.py: Q and V of a state from the params of every algorithm, and from those of a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ALGORITHMS, load, run_here, small_config

from common.envs import make_env
from common.networks import make_network
from common.runner import checkpoint
from common.runner.results import load_agent
from common.runner.values import make_values

LEARN_Q = ["sarsa", "expected_sarsa", "q_learning", "double_q_learning", "dyna_q", "dqn"]
LEARN_Q += ["double_dqn", "dueling_dqn", "n_step_dqn", "noisy_dqn", "c51", "rainbow"]
LEARN_Q += ["prioritized_dqn", "online_q", "cql", "fitted_q_iteration", "value_iteration"]
KNOWN = dict.fromkeys(LEARN_Q, "qv") | dict.fromkeys(
    ["policy_iteration", "td_lambda", "monte_carlo"], "v"
)
SMALL = "--total-timesteps 1000 --learning-starts 200 --buffer-size 500 --batch-size 8 --quiet"
SMALL = [*SMALL.split(), "--hidden-sizes", "8", "--num-seeds", "2", "--eval-episodes", "2"]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_values_are_given_where_an_algorithm_acts_by_them_and_nowhere_else(name):
    """In the shape of the params, which is all that is looked at."""
    config = small_config(load(name))
    algorithm = load(name).make(config)
    if algorithm.act is None:
        pytest.skip("no policy")
    env, found = make_env(config.env_id, 1), ""
    params = jax.eval_shape(lambda key: algorithm.init(key).params, jax.random.key(0))
    obs = jax.eval_shape(lambda key: env.reset(key).obs[0], jax.random.key(0))
    for what, shape in ("q", (env.num_actions,)), ("v", ()):

        def values(params, obs, what=what):
            return make_values(algorithm, params, env, what)(obs)

        try:
            assert jax.eval_shape(values, params, obs).shape == shape
            found += what
        except ValueError as error:
            assert f"{name} acts without {what.upper()}" in str(error)
    assert found == KNOWN.get(name, "")


def test_monte_carlo_control_has_q():
    module = load("monte_carlo")
    config = module.Config(control=True)
    algorithm, env = module.make(config), make_env(config.env_id, 1)
    table = jax.random.normal(jax.random.key(0), (env.num_states, env.num_actions))
    np.testing.assert_array_equal(make_values(algorithm, table, env, "q")(7), table[7])
    assert make_values(algorithm, table, env, "v")(7) == table[7].max()


def test_double_q_learning_has_the_mean_of_both_tables():
    module = load("double_q_learning")
    algorithm, env = module.make(module.Config()), make_env(module.Config().env_id, 1)
    tables = jax.random.normal(jax.random.key(0), (2, env.num_states, env.num_actions))
    values = make_values(algorithm, tables, env, "q")(3)
    np.testing.assert_allclose(values, (tables[0, 3] + tables[1, 3]) / 2, rtol=1e-6)


def test_an_agent_of_a_run_has_the_values_of_its_seed(tmp_path):
    run_here("algorithms.dqn", *SMALL, "--out", tmp_path / "a")
    env = make_env("CartPole-v1", 5)
    obs = env.reset(jax.random.key(1)).obs
    network = make_network(env, (8,), 2)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    for seed in (0, 1):
        rows = checkpoint.load_rows(tmp_path / "a" / "policy.npz", "0/", seed)
        expected = network.apply(checkpoint.restore(shapes, rows, "0/"), obs)
        q, v = (load_agent(tmp_path / "a", seed=seed, what=what) for what in ("q", "v"))
        np.testing.assert_allclose(jax.vmap(q)(obs), expected, rtol=1e-5)
        np.testing.assert_allclose(v(obs[0]), expected[0].max(), rtol=1e-5)
        act = jax.vmap(load_agent(tmp_path / "a", seed=seed), (0, None))
        actions = act(obs, jax.random.key(0))
        np.testing.assert_array_equal(actions, jnp.argmax(jax.vmap(q)(obs), -1))
    with pytest.raises(ValueError, match='must be "action", "q" or "v"'):
        load_agent(tmp_path / "a", what="Q")
