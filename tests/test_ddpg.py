"""ddpg.py: its equations by hand, and what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import trained
from probes import CONTINUOUS, CONTINUOUS_VALUES, GAMMA

from algorithms.ddpg import Config, make, ornstein_uhlenbeck, policy_loss, td_error
from common.buffers import unpack
from common.envs import Transition, make_env, scale_action, with_unit_actions
from common.networks import critic_for


def q(params, obs, action):
    """c0 obs - (a - c1 obs)², for numbers."""
    return params[0] * obs - (action - params[1] * obs) ** 2


def policy(params, obs):
    return params * obs


def transition(terminated, truncated):
    return Transition(jnp.float32(2), jnp.float32(1), 3.0, jnp.float32(5), terminated, truncated)


CRITIC, TARGET_CRITIC, TARGET = jnp.array([1.0, 0.25]), jnp.array([2.0, 0.4]), jnp.float32(0.6)
VALUE = 1 * 2 - (1 - 0.25 * 2) ** 2  # Q(s, a; φ)
NEXT_VALUE = 2 * 5 - (0.6 * 5 - 0.4 * 5) ** 2  # Q(s', μ(s'; θ⁻); φ⁻)


@pytest.mark.parametrize(
    "terminated, truncated, expected",
    [
        (False, False, 3 + 0.5 * NEXT_VALUE - VALUE),
        (True, False, 3 - VALUE),  # the MDP ended: no bootstrap
        (False, True, 3 + 0.5 * NEXT_VALUE - VALUE),  # only the clock ran out: bootstrap
        (True, True, 3 - VALUE),
    ],
)
def test_td_error_bootstraps_unless_terminated(terminated, truncated, expected):
    t = transition(jnp.array(terminated), jnp.array(truncated))
    with jax.numpy_rank_promotion("raise"):
        error = td_error(CRITIC, (TARGET, TARGET_CRITIC), t, q, policy, 0.5)
    np.testing.assert_allclose(error, expected, rtol=1e-6)


def test_gradient_is_semi_gradient():
    """Only Q(s, a; φ) is differentiated, not the target."""
    t = transition(jnp.array(False), jnp.array(False))
    gradient, target_gradient = jax.grad(td_error, argnums=(0, 1))(
        CRITIC, (TARGET, TARGET_CRITIC), t, q, policy, 0.5
    )
    np.testing.assert_allclose(gradient, [-2, -2 * (1 - 0.25 * 2) * 2], rtol=1e-6)
    assert not any(x.any() for x in target_gradient)


def test_policy_gradient_is_that_of_the_value_by_the_action_times_that_of_the_action():
    """∂Q/∂a = -2 (a - c1 s) and ∂μ/∂θ = s: at s = 2, θ = 0.6, a = 1.2."""
    gradient = jax.grad(policy_loss)(jnp.float32(0.6), CRITIC, jnp.float32(2), q, policy)
    np.testing.assert_allclose(gradient, 2 * (1.2 - 0.25 * 2) * 2, rtol=1e-6)


def test_ornstein_uhlenbeck_noise_has_its_stationary_variance_and_memory():
    def step(x, key):
        x = ornstein_uhlenbeck(key, x, 0.2, 0.3)
        return x, x

    keys = jax.random.split(jax.random.key(0), 400)
    x = np.asarray(jax.lax.scan(step, jnp.zeros((2_000, 1)), keys)[1])[50:, :, 0]
    assert abs(x.mean()) < 0.005
    np.testing.assert_allclose(x.var(), 0.3**2 / (1 - 0.8**2), rtol=0.02)
    np.testing.assert_allclose((x[1:] * x[:-1]).mean() / x.var(), 0.8, atol=0.01)


def test_noise_with_theta_1_is_independent_and_gaussian():
    before = jnp.full((3, 2), 100.0)
    noise = ornstein_uhlenbeck(jax.random.key(0), before, 1.0, 0.5)
    np.testing.assert_allclose(noise, 0.5 * jax.random.normal(jax.random.key(0), (3, 2)))


def test_actions_are_scaled_to_the_bounds_and_kept_as_they_were():
    raw = make_env("Continuous-probe", 3)
    np.testing.assert_allclose(scale_action(raw, jnp.array([-1.0, 0, 1])), [-1, 1, 3])
    env = with_unit_actions(raw)
    action = jnp.array([[-1.0], [0.25], [1.0]])
    state = env.reset(jax.random.key(0))
    _, kept = env.step(state, action, jax.random.key(1))
    _, given = raw.step(state, jnp.array([[-1.0], [1.5], [3.0]]), jax.random.key(1))
    np.testing.assert_array_equal(kept.action, action)
    np.testing.assert_array_equal(kept.reward, given.reward)


def small(**fields):
    defaults = {
        "env_id": "Continuous-probe",
        "total_timesteps": 3_000,
        "learning_starts": 2_000,
        "buffer_size": 3_000,
        "batch_size": 16,
        "hidden_sizes": (16,),
        "num_envs": 5,
    }
    return Config(**defaults | fields)


@pytest.fixture(scope="module")
def states():
    """Six updates; the probe's episodes end after 1, 2 or 8 steps."""
    algorithm = make(small(tau=0.25, noise_theta=0.1, exploration_noise=0.3))
    update = jax.jit(algorithm.update)
    states = [jax.jit(algorithm.init)(jax.random.key(0))]
    for step in range(6):
        states.append(update(states[-1], jnp.int32(step))[0])
    return states


def test_targets_start_equal_and_move_by_tau(states):
    learned = [jax.tree.leaves((state.params, state.critic_params)) for state in states]
    targets = [jax.tree.leaves(state.target_params) for state in states]
    for x, target in zip(learned[0], targets[0], strict=True):
        np.testing.assert_array_equal(x, target)
    for step in range(6):
        for x, old, new in zip(learned[step + 1], targets[step], targets[step + 1], strict=True):
            np.testing.assert_allclose(new, 0.25 * x + 0.75 * old, rtol=1e-5, atol=1e-7)


def test_noise_goes_on_within_an_episode_and_begins_anew_with_one(states):
    for step, (before, after) in enumerate(zip(states[:-1], states[1:], strict=True)):
        rows = slice(2_000 + step * 5, 2_000 + step * 5 + 5)
        recent = jax.tree.map(lambda x, rows=rows: np.asarray(x)[rows], unpack(after.buffer))
        ended = recent.terminated | recent.truncated
        assert (np.asarray(after.noise)[ended] == 0).all()
        moved = after.noise[~ended] - 0.9 * before.noise[~ended]
        assert (np.abs(moved) > 1e-6).all() and (np.abs(moved) < 0.3 * 5).all()
        greedy = np.tanh(forward(before.params, recent.obs))
        expected = np.clip(greedy + np.asarray(after.noise), -1, 1)
        np.testing.assert_allclose(recent.action[~ended], expected[~ended], rtol=1e-5, atol=1e-6)
    assert (np.asarray(states[0].noise) == 0).all()


def forward(params, x):
    for w, b in params[:-1]:
        x = np.maximum(x @ w + b, 0)
    return x @ params[-1][0] + params[-1][1]


def test_the_first_actions_are_uniform_over_the_range(states):
    actions = unpack(states[0].buffer).action[:2_000]
    counts = np.histogram(actions, bins=10, range=(-1, 1))[0]
    np.testing.assert_allclose(counts, 200, atol=4 * np.sqrt(200))


def test_act_is_the_mean_action_within_the_bounds(states):
    algorithm = make(small())
    obs = jnp.eye(8)[4]
    action = algorithm.act(states[-1].params, obs, jax.random.key(0))
    expected = 1 + 2 * np.tanh(forward(states[-1].params, np.asarray(obs)))
    np.testing.assert_allclose(action, expected, rtol=1e-5)


def test_the_budget_counts_every_environment_step():
    algorithm = make(small(learning_starts=2_001))
    assert algorithm.initial_steps == 2_005  # rounded up to whole updates
    assert algorithm.initial_steps + algorithm.num_updates * algorithm.steps_per_update == 3_000


def test_it_learns_the_values_of_the_probes():
    config = Config(
        env_id="Continuous-probe",
        total_timesteps=12_000,
        num_envs=4,
        gamma=GAMMA,
        learning_starts=400,
        buffer_size=2_000,
        batch_size=64,
        learning_rate=3e-3,
        tau=0.05,
        exploration_noise=0.2,
        hidden_sizes=(32,),
    )
    algorithm = make(config)
    state = trained(algorithm, [0, 1], algorithm.num_updates).state
    env = make_env(config.env_id, 1)
    critic = critic_for(env, config.hidden_sizes)
    obs = jnp.eye(8)[:7]
    for seed in range(2):
        params, critic_params = jax.tree.map(
            lambda x, seed=seed: x[seed], (state.params, state.critic_params)
        )
        actions = algorithm.act(params, obs, jax.random.key(0))
        values = critic.apply(critic_params, obs, (actions - 1) / 2)
        np.testing.assert_allclose(values, CONTINUOUS_VALUES, atol=0.1)
        for s in (4, 5):
            np.testing.assert_allclose(actions[s, 0], CONTINUOUS["best"][s], atol=0.1)
