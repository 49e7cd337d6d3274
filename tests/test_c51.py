"""c51.py: its equations by hand, and what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import check_loss, check_q_probe, first_update, relu_mlp, states_of

from algorithms import c51
from algorithms.c51 import Config, cross_entropy, expected_return, make, project
from common.envs import make_env
from common.networks import make_network


def algorithm_1(support, reward, discount, probabilities):
    """The projection of the paper's Algorithm 1, atom by atom, in float64. Where b_j is an integer,
    the paper's l = u leaves no mass to either; it all belongs there."""
    support = np.asarray(support, np.float64)
    v_min, v_max, last = support[0], support[-1], len(support) - 1
    m = np.zeros(len(support))
    for z, p in zip(support, np.asarray(probabilities, np.float64), strict=True):
        b = (min(max(reward + discount * z, v_min), v_max) - v_min) / (v_max - v_min) * last
        lower, upper = int(np.floor(b)), min(int(np.ceil(b)), last)
        if lower == upper:
            m[lower] += p
        else:
            m[lower] += p * (upper - b)
            m[upper] += p * (b - lower)
    return m


def distributions(key, num, num_atoms):
    return jax.nn.softmax(3 * jax.random.normal(key, (num, num_atoms)))


@pytest.mark.parametrize(
    "v_min, v_max, num_atoms",
    [(0, 100, 51), (-10, 10, 51), (-100, 0, 101), (-1500, 0, 51), (-0.3, 0.7, 2), (3, 4, 7)],
)
def test_projection_is_that_of_algorithm_1(v_min, v_max, num_atoms):
    support = jnp.linspace(v_min, v_max, num_atoms)
    probabilities = distributions(jax.random.key(0), 200, num_atoms)
    rng = np.random.default_rng(0)
    rewards = rng.uniform(-1, 1, 200) * (v_max - v_min)  # half of the targets are out of range
    rewards[:50] = np.round(rewards[:50] / (v_max - v_min) * (num_atoms - 1))  # whole numbers
    rewards[:50] *= (v_max - v_min) / (num_atoms - 1)  # of atoms
    discounts = rng.choice([0, 0.5, 0.99, 1], 200)
    with jax.numpy_rank_promotion("allow"):
        projected = jax.vmap(project, (None, 0, 0, 0))(
            support, jnp.float32(rewards), jnp.float32(discounts), probabilities
        )
    for got, *args in zip(projected, rewards, discounts, probabilities, strict=True):
        np.testing.assert_allclose(got, algorithm_1(support, *args), atol=2e-5)
    np.testing.assert_allclose(projected.sum(-1), 1, atol=2e-6)


ATOMS = jnp.array([0.0, 1.0, 2.0])


@pytest.mark.parametrize(
    "reward, discount, probabilities, expected",
    [
        (1.0, 0.0, [0.2, 0.3, 0.5], [0, 1, 0]),  # on an atom: l = u
        (0.5, 0.0, [0.2, 0.3, 0.5], [0.5, 0.5, 0]),
        (1.25, 0.0, [0.2, 0.3, 0.5], [0, 0.75, 0.25]),
        (0.0, 1.0, [0.2, 0.3, 0.5], [0.2, 0.3, 0.5]),  # every atom stays: l = u thrice
        (1.0, 1.0, [0.2, 0.3, 0.5], [0, 0.2, 0.8]),  # 3 is taken for 2
        (-1.0, 1.0, [0.2, 0.3, 0.5], [0.5, 0.5, 0]),  # -1 for 0
        (7.0, 0.5, [0.2, 0.3, 0.5], [0, 0, 1]),  # all above
        (-7.0, 0.5, [0.2, 0.3, 0.5], [1, 0, 0]),  # all below
        (0.5, 0.5, [0.2, 0.3, 0.5], [0.1, 0.65, 0.25]),  # 0.5, 1 and 1.5
    ],
)
def test_projection_by_hand(reward, discount, probabilities, expected):
    projected = project(ATOMS, reward, discount, jnp.array(probabilities))
    np.testing.assert_allclose(projected, expected, atol=1e-6)


def test_projection_keeps_the_mean_where_nothing_is_clipped():
    support = jnp.linspace(-2, 6, 41)
    p = distributions(jax.random.key(1), 50, 41)
    rewards = jnp.linspace(-0.6, 1.8, 50)  # with 0.7 z the targets are within [-2, 6]
    projected = jax.vmap(project, (None, 0, None, 0))(support, rewards, 0.7, p)
    np.testing.assert_allclose(projected @ support, rewards + 0.7 * p @ support, atol=1e-5)


def test_expected_return_by_hand():
    p = jnp.array([[[0.5, 0.5, 0], [0, 0.25, 0.75]]])
    np.testing.assert_allclose(expected_return(p, ATOMS), [[0.5, 1.75]])


LOGITS = jnp.log(jnp.array([0.1, 0.3, 0.6]))  # of the action taken
# The first action has the likeliest single return, 2, the second the greater mean, 1.3.
NEXT = jnp.array([[0.5, 0.0, 0.5], [0.0, 0.7, 0.3]])


def loss(logits, next_probabilities, terminated):
    """Of a step with reward 0.5 and γ = 0.5."""
    next_action = jnp.argmax(expected_return(next_probabilities, ATOMS))
    target = project(ATOMS, 0.5, 0.5 * (1 - terminated), next_probabilities[next_action])
    return cross_entropy(target, logits)


@pytest.mark.parametrize("terminated", [False, True])
def test_loss_is_the_cross_entropy_with_the_projected_target(terminated):
    """The next action has returns 1 and 2, and 0.5 + 0.5 z is then 1 and 1.5; without bootstrap it
    is 0.5. The action taken has probabilities 0.1, 0.3, 0.6."""
    target = [0.5, 0.5, 0] if terminated else [0, 0.7 + 0.15, 0.15]
    got = loss(LOGITS, NEXT, jnp.array(terminated))
    np.testing.assert_allclose(got, -np.sum(target * np.log([0.1, 0.3, 0.6])), rtol=1e-5)


def test_gradient_is_that_of_the_prediction_alone():
    """∂L/∂logits(s, a) = p - m; the target is not differentiated."""
    gradient, target_gradient = jax.grad(loss, argnums=(0, 1))(LOGITS, NEXT, jnp.array(False))
    np.testing.assert_allclose(gradient, np.array([0.1, 0.3, 0.6]) - [0, 0.85, 0.15], atol=1e-6)
    np.testing.assert_array_equal(target_gradient, np.zeros((2, 3)))


def test_an_update_descends_the_cross_entropy_of_its_batch():
    """θ⁻ chooses the next action and gives its distribution, projected by the paper's loop."""
    update = first_update(c51, num_atoms=11, v_min=-1.0, v_max=3.0)
    batch, support = update.batch, np.linspace(-1, 3, 11)
    assert len(set(zip(batch.terminated.tolist(), batch.truncated.tolist(), strict=True))) == 4
    logits = lambda params, obs: relu_mlp(params, obs).reshape(64, 2, 11)
    p = np.asarray(jax.nn.softmax(logits(update.state.target_params, batch.next_obs)))
    p = p[np.arange(64), (p @ support).argmax(-1)]
    discounts = update.config.gamma * ~np.asarray(batch.terminated)
    m = jnp.array([algorithm_1(support, *x) for x in zip(batch.reward, discounts, p, strict=True)])

    def expected_loss(params):
        log_p = jax.nn.log_softmax(logits(params, batch.obs))[jnp.arange(64), batch.action]
        return -jnp.mean(jnp.sum(m * log_p, axis=-1))

    check_loss(update, expected_loss)


def small(**fields):
    defaults = {
        "total_timesteps": 1_000,
        "learning_starts": 100,
        "buffer_size": 500,
        "batch_size": 16,
        "hidden_sizes": (16,),
        "num_atoms": 11,
        "v_min": -1.0,
        "v_max": 3.0,
    }
    return Config(**defaults | fields)


def expected_values(params, obs):
    """Q [..., A] of two actions, from the definition."""
    x = np.asarray(relu_mlp(params, obs), np.float64)
    x = np.exp(x.reshape(*x.shape[:-1], 2, 11))
    return (x * np.linspace(-1, 3, 11)).sum(-1) / x.sum(-1)


def test_it_acts_on_the_expected_return():
    algorithm = make(small())
    params = jax.jit(algorithm.init)(jax.random.key(0)).params
    params = jax.tree.map(lambda x: 3 * x, params)  # far from uniform
    obs = jax.random.normal(jax.random.key(1), (100, 4))
    actions = jax.vmap(algorithm.act, (None, 0, None))(params, obs, jax.random.key(0))
    np.testing.assert_array_equal(actions, expected_values(params, obs).argmax(-1))
    by_logit = relu_mlp(params, obs).reshape(100, 2, 11).max(-1).argmax(-1)
    assert (by_logit != actions).any()


def test_value_is_the_expected_return_of_the_action_taken():
    algorithm = make(small(num_envs=1))
    before, after = states_of(algorithm, 1)
    _, metrics = jax.jit(algorithm.update)(before, jnp.int32(0))
    values = expected_values(before.params, before.env.obs[0])
    action = after.buffer.action[100]  # the first after those of `init`
    assert np.ptp(values) > 1e-3
    np.testing.assert_allclose(metrics["value"], values[action], rtol=1e-5)


@pytest.mark.parametrize(
    "fields", [{"num_atoms": 1}, {"v_min": 5.0, "v_max": 5.0}, {"v_min": 101.0}]
)
def test_a_support_that_is_none_is_refused(fields):
    with pytest.raises(ValueError, match="--num-atoms|--v-min"):
        Config(**fields)


def test_minatar_has_a_distribution_for_each_action():
    algorithm = make(small(env_id="Breakout-MinAtar"))
    _, after = states_of(algorithm, 1)
    assert after.params[-1][0].shape == (16, 3 * 11)
    assert np.isfinite(after.params[0][0]).all()


def values_of(config, state, obs):
    network = make_network(make_env(config.env_id, 1), config.hidden_sizes, 2 * config.num_atoms)
    x = network.apply(state.params, obs).reshape(len(obs), 2, config.num_atoms)
    support = np.linspace(config.v_min, config.v_max, config.num_atoms)
    return np.sum(jax.nn.softmax(x) * support, axis=-1).max(-1)


@pytest.mark.parametrize(
    "name, support",
    [
        pytest.param(
            *("Together-probe", {"v_min": -2.0, "v_max": 6.0, "num_atoms": 41}),
            marks=pytest.mark.slow,
        ),
        ("ResetTrapVector-probe", {"v_min": -2.0, "v_max": 60.0, "num_atoms": 125}),
    ],
)
def test_it_learns_the_values_and_best_actions_of_the_probes(name, support):
    """The support spans the values of the probe: -1 to 5, and 5 to 54."""
    check_q_probe(c51, name, values_of, **support)
