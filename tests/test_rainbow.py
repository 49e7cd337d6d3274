"""rainbow.py: its equations by hand, what it shares with the six, and what it learns."""

import ast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ROOT, check_budget, check_q_probe, every_end, small_config, states_of

from algorithms import noisy_dqn, rainbow
from algorithms.rainbow import (
    Config,
    cross_entropy,
    dueling,
    expected_return,
    make,
    n_step,
    perturb,
    project,
)
from common.envs import Transition, make_env
from common.networks import mlp
from common.prioritized import sample_rows, set_priorities

SIX = ["double_dqn", "dueling_dqn", "n_step_dqn", "prioritized_dqn", "noisy_dqn", "c51"]


def definitions(name):
    """The text of the functions and classes of a file, by name."""
    source = (ROOT / "algorithms" / f"{name}.py").read_text()
    nodes = [node for node in ast.parse(source).body if hasattr(node, "name")]
    return {node.name: ast.get_source_segment(source, node) for node in nodes}


def test_what_the_six_define_it_has_letter_by_letter():
    """But for those in which several of them meet."""
    known = {text for name in SIX for text in definitions(name).values()}
    own = {name for name, text in definitions("rainbow").items() if text not in known}
    meet = {"Config", "State", "dueling", "make_dueling_network", "make"}
    assert own == meet


def test_every_field_is_that_of_one_of_the_six():
    lines = {line for name in SIX for line in definitions(name)["Config"].splitlines()}
    own = [x for x in definitions("rainbow")["Config"].splitlines() if x not in lines]
    assert own == []


def test_dueling_by_hand():
    """Two actions, three atoms: A less its mean over the actions, atom by atom."""
    value = jnp.array([[1.0, 2.0, 3.0]])
    advantage = jnp.array([[4.0, 0.0, -2.0], [0.0, 6.0, 2.0]])
    with jax.numpy_rank_promotion("raise"):
        np.testing.assert_array_equal(dueling(value, advantage), [[3, -1, 1], [-1, 5, 5]])


ATOMS = jnp.array([0.0, 1.0, 2.0])
# At s' = 1 θ prefers the second action (mean 1.5 to 1), θ⁻ the first (2 to 1.3).
PARAMS = jnp.log(
    jnp.array([[[0.6, 0.2, 0.2], [0.1, 0.3, 0.6]], [[0.3, 0.4, 0.3], [0.2, 0.1, 0.7]]])
)
TARGET_PARAMS = jnp.log(
    jnp.array([[[0.4, 0.3, 0.3], [0.4, 0.3, 0.3]], [[0.0, 0.0, 1.0], [0.0, 0.7, 0.3]]]) + 1e-9
)


def loss(params, target_params, t):
    """Of an n-step transition, from tables of logits."""
    next_action = jnp.argmax(expected_return(jax.nn.softmax(params[t.next_obs]), ATOMS))
    next_probabilities = jax.nn.softmax(target_params[t.next_obs, next_action])
    target = project(ATOMS, t.reward, t.discount * (1 - t.terminated), next_probabilities)
    return cross_entropy(target, params[t.obs, t.action])


@every_end
def test_loss_is_double_distributional_and_of_n_steps(terminated, truncated, bootstraps):
    """An episode of two steps, rewards 0.5 and 0.5: R = 0.75 with γ = 0.5, and γ² z is 0.25 and 0.5
    above it, with the probabilities 0.7 and 0.3 of the action that θ chooses. If it goes on, the
    third reward is 1, so that R = 1, and γ³ z is 0.125 and 0.25 above it."""
    steps = Transition(
        obs=jnp.array([0, 0, 0]),
        action=jnp.array([1, 0, 0]),
        reward=jnp.array([0.5, 0.5, 1.0]),
        next_obs=jnp.array([0, 1 if terminated or truncated else 0, 1]),
        terminated=jnp.array([False, terminated, False]),
        truncated=jnp.array([False, truncated, False]),
    )
    if not (terminated or truncated):
        target = [0, 0.7 * 0.875 + 0.3 * 0.75, 0.7 * 0.125 + 0.3 * 0.25]
    elif bootstraps:
        target = [0, 0.7 + 0.3 * 0.75, 0.3 * 0.25]
    else:
        target = [0.25, 0.75, 0]
    got = loss(PARAMS, TARGET_PARAMS, n_step(steps, 0.5))
    np.testing.assert_allclose(got, -np.sum(target * np.log([0.1, 0.3, 0.6])), rtol=1e-5)


def test_gradient_is_that_of_the_prediction_alone():
    t = rainbow.NStep(jnp.int32(0), jnp.int32(1), 0.5, jnp.int32(1), jnp.array(False), 0.5)
    gradient, target_gradient = jax.grad(loss, argnums=(0, 1))(PARAMS, TARGET_PARAMS, t)
    expected = np.zeros((2, 2, 3))
    expected[0, 1] = np.array([0.1, 0.3, 0.6]) - [0, 0.85, 0.15]
    np.testing.assert_allclose(gradient, expected, atol=1e-6)
    np.testing.assert_array_equal(target_gradient, np.zeros((2, 2, 3)))


def small(**fields):
    defaults = {
        "total_timesteps": 1_000,
        "learning_starts": 100,
        "buffer_size": 150,
        "batch_size": 16,
        "hidden_sizes": (16, 8),
        "num_envs": 5,
        "num_atoms": 11,
        "prioritized_replay_beta": 0.4,
        "prioritized_replay_eps": 0.01,
    }
    return Config(**defaults | fields)


def log_probabilities(layers, obs, num_actions=2):
    """log p [..., A, K] of two hidden layers, the second split between the streams."""
    (w0, b0), (w1, b1), (wv, bv), (wa, ba) = jax.tree.map(lambda x: np.asarray(x, float), layers)
    x = np.maximum(np.maximum(np.asarray(obs, float) @ w0 + b0, 0) @ w1 + b1, 0)
    value, advantage = x[..., :8] @ wv + bv, x[..., 8:] @ wa + ba
    advantage = advantage.reshape(*advantage.shape[:-1], num_actions, -1)
    x = value[..., None, :] + advantage - advantage.mean(-2, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_an_update_weights_the_loss_and_renews_the_priorities():
    """Update 25 of 176, in a ring that has wrapped, against the equations in float64."""
    config, step = small(), 25
    algorithm = make(config)
    before = states_of(algorithm, step)[-1]
    after, metrics = jax.jit(algorithm.update)(before, jnp.int32(step))
    new_rows = (20 + step) * 5 % 150 + jnp.arange(5)
    priorities = set_priorities(before.priorities, new_rows, before.priorities.largest)
    _, key_sample, key_noise = jax.random.split(jax.random.fold_in(before.key, step), 3)
    index, _ = sample_rows(priorities, key_sample, 16)
    t = jax.tree.map(lambda x: x[index], after.buffer)
    all_params = before.params, before.target_params, before.params
    keys = jax.random.split(key_noise, 3)
    online, target, selection = map(perturb, all_params, keys)

    z = np.linspace(0, 100, 11)
    best = (np.exp(log_probabilities(selection, t.next_obs)) @ z).argmax(-1)
    assert (best != (np.exp(log_probabilities(online, t.next_obs)) @ z).argmax(-1)).any()
    next_p = np.exp(log_probabilities(target, t.next_obs))[np.arange(16), best]
    log_p = log_probabilities(online, t.obs)[np.arange(16), t.action]
    discount = np.asarray(t.discount * ~t.terminated, float)
    position = np.clip(np.asarray(t.reward)[:, None] + discount[:, None] * z, 0, 100) / 10
    m = np.zeros((16, 11))
    for i, j in np.ndindex(16, 11):
        low = min(int(position[i, j]), 9)
        m[i, low] += next_p[i, j] * (low + 1 - position[i, j])
        m[i, low + 1] += next_p[i, j] * (position[i, j] - low)
    errors = -(m * log_p).sum(-1)

    leaves = np.asarray(priorities.sum_tree[0], np.float64)
    beta = config.prioritized_replay_beta
    beta += (1 - beta) * step / algorithm.num_updates
    weights = (150 * leaves[index] / leaves.sum()) ** -beta
    np.testing.assert_allclose(
        metrics["loss"], np.mean(weights / weights.max() * errors), rtol=1e-4
    )
    leaves[index] = (errors + 0.01) ** config.prioritized_replay_alpha
    np.testing.assert_allclose(after.priorities.sum_tree[0], leaves, rtol=1e-4)


def test_every_layer_is_noisy_and_the_final_policy_is_not():
    algorithm = make(small())
    params = jax.jit(algorithm.init)(jax.random.key(0)).params
    assert len(params.mu) == len(params.sigma) == 4
    obs = jnp.array([0.3, -0.2, 0.1, 0.4])
    values = np.exp(log_probabilities(params.mu, obs)) @ np.linspace(0, 100, 11)
    actions = {int(algorithm.act(params, obs, jax.random.key(k))) for k in range(5)}
    assert actions == {int(values.argmax())}


def test_the_budget_counts_every_environment_step():
    check_budget(make(small(learning_starts=101, n_step=3)), 105 + 2 * 5, 1_000)


def test_minatar_has_a_distribution_for_each_action():
    algorithm = make(small(env_id="Breakout-MinAtar"))
    _, after = states_of(algorithm, 1)
    assert len(after.params.sigma) == len(after.params.mu) - 1  # the convolution has no noise
    assert after.params.mu[-1][0].shape == (8, 3 * 11)
    assert np.isfinite(after.params.mu[0][0]).all()


@pytest.mark.parametrize("module", [rainbow, noisy_dqn])
def test_scaled_observations_show_the_network_the_bounds_as_minus_one_and_one(module):
    low, high = np.float32([-1.2, -0.07]), np.float32([0.6, 0.07])
    network = mlp([2, 8, 3])
    params = network.init(jax.random.key(0))
    obs = np.stack([low, high, (low + high) / 2, [0.6, -0.07]])
    expected = network.apply(params, np.float32([[-1, -1], [1, 1], [0, 0], [1, -1]]))
    scaled = module.with_scaled_obs(make_env("MountainCar-v0", 1), network)
    np.testing.assert_allclose(scaled.apply(params, obs), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(scaled.init(jax.random.key(0))[0][0], params[0][0])
    with pytest.raises(ValueError, match="finite bounds"):
        module.with_scaled_obs(make_env("CartPole-v1", 1), network)


@pytest.mark.parametrize("module", [rainbow, noisy_dqn])
def test_scaled_observations_are_what_the_network_sees(module):
    """`make` runs while it is traced, as in a sweep."""
    fields = {"env_id": "MountainCar-v0", "v_min": -100.0, "v_max": 0.0}
    config = small_config(module, scale_obs=True, **fields)
    plain = module.make(small_config(module, **fields))
    params = jax.jit(lambda key: module.make(config).init(key).params)(jax.random.key(0))
    unit = jax.random.uniform(jax.random.key(1), (500, 2), minval=-1, maxval=1)
    low, high = np.float32([-1.2, -0.07]), np.float32([0.6, 0.07])
    obs = low + (unit + 1) / 2 * (high - low)
    act = jax.jit(lambda params, obs: module.make(config).act(params, obs, None))
    actions = [act(params, x) for x in obs[:5]] + list(jax.vmap(act, (None, 0))(params, obs[5:]))
    seen, raw = (jax.vmap(plain.act, (None, 0, None))(params, x, None) for x in (unit, obs))
    assert np.mean(np.array(actions) == seen) > 0.99  # rounding may turn a tie
    assert np.mean(np.array(actions) == raw) < 0.9


def values_of(config, state, obs):
    env = make_env(config.env_id, 1)
    network = rainbow.make_dueling_network(env, config.hidden_sizes, config.num_atoms)
    support = np.linspace(config.v_min, config.v_max, config.num_atoms)
    p = jax.nn.softmax(network.apply(state.params.mu, obs))
    return np.sum(p * support, axis=-1).max(-1)


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
    check_q_probe(rainbow, name, values_of, **support)
