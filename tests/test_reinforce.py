"""reinforce.py: its estimators by hand and against the exact gradient, their variance, which
episodes count, and what it learns."""

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import check_actor_critic_probe, check_mean, keys, pairs, trained
from probes import Probe

from algorithms import reinforce
from algorithms.reinforce import (
    Config,
    episode_return,
    episode_start,
    make,
    policy_loss,
    reward_to_go,
    td_error,
    value_loss,
)
from common.envs import make_env, rollout
from common.returns import gae

# Episodes of 1 to 4 steps: in each state the actions lead to different states, and so does the
# chance where an episode starts. No clock runs out. Rewards are positive: with both signs a reward
# to go may vary more than a whole return.
FORK = {
    "next_state": [[1, 2], [2, 4], [3, 4], [4, 4], [4, 4]],
    "reward": [[3.0, 2.0], [2.5, 1.0], [2.0, 1.0], [1.5, 2.0], [0.0, 0.0]],
    "terminal": [False] * 4 + [True],
    "starts": [0, 1],
}
START = np.array([0.5, 0.5, 0, 0])
LIMIT = 8  # of the probes' episodes
ESTIMATORS = ("return", "reward_to_go", "baseline")
gymnax.register("Fork-probe", lambda: Probe(**FORK))


def settings(**fields):
    fields = {"env_id": "Fork-probe", "num_envs": 1, "num_steps": 1, "hidden_sizes": ()} | fields
    return Config(**fields | {"total_timesteps": 100_000})


def policy_gradients(config, actor, critic, num_seeds):
    """The gradient ascent direction of as many first updates, [S, ...], like `actor`. Adam's first
    moment is then a tenth of the loss's gradient, which is over all steps of the window."""
    algorithm = make(config)
    start = jax.eval_shape(algorithm.init, jax.random.key(0))
    opt_state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), start.opt_state)

    def one(key):
        state = start._replace(key=key, params=actor, critic_params=critic, opt_state=opt_state)
        state, _ = algorithm.update(state, jnp.int32(0))
        moment = optax.tree_utils.tree_get(state.opt_state.inner_states["actor"], "mu")[0]
        return jax.tree.map(lambda x: -10 * algorithm.steps_per_update * x, moment)

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(keys(*range(num_seeds))))


def a_policy():
    """Logits of FORK, as a layer without hidden ones, and a value of each state that is wrong."""
    generator = np.random.default_rng(0)
    actor = [(jnp.asarray(generator.normal(size=(5, 2))), jnp.asarray(generator.normal(size=2)))]
    critic = [(jnp.asarray(generator.normal(size=(5, 1))), jnp.ones(1))]
    return actor, critic


def model(actor):
    """π [S, A], and P_π [S, S] and r_π [S] of the states of FORK that do not end it."""
    ((w, b),) = actor
    pi = jax.nn.softmax(w[:4] + b)
    P = jnp.einsum("sa,sat->st", pi, jax.nn.one_hot(np.array(FORK["next_state"])[:4], 5))
    return pi, P[:, :4], jnp.sum(pi * np.array(FORK["reward"])[:4], axis=1)


def objective(actor, gamma):
    """J(θ) = ρᵀ (I - γ P_π)⁻¹ r_π."""
    _, P, r = model(actor)
    return START @ jnp.linalg.solve(jnp.eye(4) - gamma * P, r)


def exact_values(actor, gamma):
    _, P, r = model(actor)
    return jnp.linalg.solve(jnp.eye(4) - gamma * P, r)


def gradient_without_gamma_t(actor, gamma):
    """Σ_s η(s) Σ_a Q(s, a) ∇π(a | s), with η(s) the expected visits of an episode: the discounted
    gradient has discounted visits instead."""
    _, P, _ = model(actor)
    visits = jnp.linalg.solve(jnp.eye(4) - P.T, START)
    following = jnp.append(exact_values(actor, gamma), 0)[np.array(FORK["next_state"])[:4]]
    q = np.array(FORK["reward"])[:4] + gamma * following
    return jax.grad(lambda actor: jnp.sum(visits[:, None] * q * model(actor)[0]))(actor)


def expected_number(actor, num_steps):
    """How many episodes begin in the first `num_steps` steps of an environment, on average."""
    _, P, _ = map(np.asarray, model(actor))
    state, number = START, 1.0
    for _ in range(num_steps - 1):
        ended = np.sum(state @ (np.eye(4) - P))
        state = state @ P + ended * START
        number += ended
    return number


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_has_the_mean_of_the_exact_gradient(estimator):
    """At γ = 1, with any baseline, where several episodes of one environment count: of 20,000
    updates, so that the standard error is 1 to 3 % of the gradient."""
    with jax.enable_x64(True):
        actor, critic = a_policy()
        config = settings(estimator=estimator, num_envs=2, num_steps=6, gamma=1.0)
        samples = policy_gradients(config, actor, critic, 20_000)
        number = 2 * expected_number(actor, 6)
        gradient = jax.grad(objective)(actor, 1.0)
        check_mean(samples, jax.tree.map(lambda x: number * np.asarray(x), gradient))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_with_a_discount_the_whole_return_is_exact_and_the_others_leave_out_gamma_t(estimator):
    with jax.enable_x64(True):
        actor, critic = a_policy()
        samples = policy_gradients(settings(estimator=estimator, gamma=0.5), actor, critic, 20_000)
        exact = jax.grad(objective)(actor, 0.5)
        usual = gradient_without_gamma_t(actor, 0.5)
        check_mean(samples, exact if estimator == "return" else usual)
        with pytest.raises(AssertionError):  # the two can be told apart
            check_mean(samples, usual if estimator == "return" else exact)


def test_continuous_actions_have_the_exact_gradient_too():
    """J = 1 - Σ_s [(1 + 2 m_s - b_s)² + (2 σ)²] between the bounds -1 and 3, which are 5 σ away, so
    ∂J/∂m_s = -4 (1 + 2 m_s - b_s) and ∂J/∂ln σ = -8 n σ²."""
    with jax.enable_x64(True):
        actor = [(jnp.array([[-0.4], [-0.05], [0.0]]), jnp.zeros(1))], jnp.log(jnp.array([0.1]))
        critic = [(jnp.array([[0.7], [0.9], [0.0]]), jnp.zeros(1))]
        samples = policy_gradients(settings(env_id="Slope-probe", gamma=1.0), actor, critic, 20_000)
        slopes = np.array([[1.2], [2.4], [0.0]])
        check_mean(samples, ([(slopes, slopes.sum(0))], np.array([-8 * 2 * 0.1**2])))


def test_variance_falls_from_the_whole_return_to_the_reward_to_go_to_the_baseline():
    """E[|g - ∇J|²], g of one episode, the same ones for all three, with the exact V as baseline:
    each difference is 10 standard errors or more. The means are ∇J."""
    with jax.enable_x64(True):
        actor, _ = a_policy()
        values = jnp.append(exact_values(actor, 1.0), 0)[:, None]
        exact = jax.grad(objective)(actor, 1.0)
        square = {}
        for estimator in ESTIMATORS:
            config = settings(estimator=estimator, gamma=1.0)
            samples = policy_gradients(config, actor, [(values, jnp.zeros(1))], 20_000)
            check_mean(samples, exact)
            square[estimator] = sum(
                np.square(x - mean).reshape(len(x), -1).sum(1) for x, mean in pairs(samples, exact)
            )
    for more, less in (("return", "reward_to_go"), ("reward_to_go", "baseline")):
        difference = square[more] - square[less]
        error = difference.std() / np.sqrt(len(difference))
        assert difference.mean() > 10 * error, (more, less, difference.mean(), error)


REWARD = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0])
VALUE = np.arange(7) / 10
NEXT_VALUE = np.array([0.1, 101, 0.3, 103, 104, 0.6, 106])  # beyond an end that of no other step
TERMINATED = np.array([0, 1, 0, 0, 1, 0, 0], bool)  # episodes: 0-1, 2-3, 4 (both flags), 5-6
TRUNCATED = np.array([0, 0, 0, 1, 1, 0, 0], bool)
DONE = jnp.array(TERMINATED | TRUNCATED)


def estimate(estimator, reward):
    """Ψ [T] at γ = 1/2."""
    if estimator == "baseline":
        error = td_error(VALUE, reward, NEXT_VALUE, TERMINATED, 0.5)
        return gae(error, DONE, 0.5, 1.0)
    return {"return": episode_return, "reward_to_go": reward_to_go}[estimator](reward, DONE, 0.5)


def test_estimators_by_hand():
    """γ = 1/2; the episode of steps 5 and 6 has no end, so V of its last observation ends it where
    there is a V."""
    to_go = np.array([1 + 1, 2, 4 + 4, 8, 16, 32 + 32, 64])
    np.testing.assert_allclose(estimate("reward_to_go", jnp.array(REWARD)), to_go)
    np.testing.assert_allclose(estimate("return", jnp.array(REWARD)), to_go[[0, 0, 2, 2, 4, 5, 5]])
    later = np.array([0, 0, 103 / 4, 103 / 2, 0, 106 / 4, 106 / 2])  # steps 0, 1: d = 1; 4: both
    expected = to_go + later - VALUE
    np.testing.assert_allclose(estimate("baseline", jnp.array(REWARD)), expected, rtol=1e-6)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_nothing_crosses_the_end_of_an_episode(estimator):
    """∂Ψ_t/∂r_k is not 0 only within an episode, and for k < t only in the whole return."""
    depends = jax.jacobian(lambda reward: estimate(estimator, reward))(jnp.array(REWARD)) != 0
    episode = np.array([0, 0, 1, 1, 2, 3, 3])
    within = episode[:, None] == episode
    np.testing.assert_array_equal(depends, within if estimator == "return" else np.triu(within))


def test_the_start_of_each_episode():
    done = jnp.array([0, 1, 1, 0, 0, 1, 0], bool)
    np.testing.assert_array_equal(episode_start(done), [0, 0, 2, 3, 3, 3, 6])


def test_losses_by_hand():
    assert policy_loss(-1.5, 2.0) == 3.0
    assert jax.grad(policy_loss)(-1.5, 2.0) == -2.0
    assert value_loss(1.0, 4.0) == 4.5
    assert jax.grad(value_loss)(1.0, 4.0) == -3.0


@pytest.mark.parametrize("env_id, limit", [("AlwaysTruncated-probe", 8), ("CartPole-v1", 500)])
def test_episodes_that_count_end_in_the_window_even_at_the_time_limit(env_id, limit):
    """The window is `num_steps` - 1 steps and a time limit long, and one step less would cut the
    last episode that counts. All its steps are in the budget."""
    algorithm = make(settings(env_id=env_id, num_steps=limit + 1))
    assert algorithm.steps_per_update == 2 * limit
    assert algorithm.num_updates == 100_000 // (2 * limit)
    env = make_env(env_id, 1)
    # CartPole is kept up by a force against the pole's lean and fall.
    gains = jnp.array([0.1, 0.5, 1.0, 1.0])
    play = lambda obs, key: jnp.zeros(1, int) if obs.ndim == 1 else (obs @ gains > 0).astype(int)
    roll = jax.jit(lambda start, key: rollout(env, play, env.reset(start), key, 2 * limit)[1])
    transitions = roll(*keys(0, 1))
    (ends,) = np.nonzero(transitions.terminated[:, 0] | transitions.truncated[:, 0])
    np.testing.assert_array_equal(ends, [limit - 1, 2 * limit - 1])


def test_the_return_is_that_of_the_episodes_that_count():
    """Its mean is J, here over 50 environments in 200 updates."""
    with jax.enable_x64(True):
        actor, _ = a_policy()
        algorithm = make(settings(num_envs=50, num_steps=3))
        state = algorithm.init(jax.random.key(0))._replace(params=actor)
        one = lambda key: algorithm.update(state._replace(key=key), jnp.int32(0))[1]
        returns = jax.jit(jax.vmap(one))(keys(*range(200)))["episode_return"]
        error = returns.std() / np.sqrt(len(returns))
        assert abs(returns.mean() - objective(actor, 1.0)) < 4.5 * error + 0.01


def test_the_reported_means_weigh_every_step_that_counts_once():
    """And not every update, of which one has 2 such steps and another 8."""
    algorithm = make(settings(num_envs=2, num_steps=1, estimator="baseline"))
    state, reports = trained(algorithm, [0, 1], 0).state, []
    update = jax.jit(jax.vmap(algorithm.update, (0, None)))
    for step in range(12):
        state, metrics = update(state, jnp.int32(step))
        reports.append(metrics)
    steps = np.array([x["episodes"] * x["episode_length"] for x in reports])
    assert steps.min() < steps.max() / 2
    mean = trained(algorithm, [0, 1], len(reports)).mean
    for name in ("value", "policy_loss", "value_loss", "entropy"):
        x = np.array([report[name] for report in reports])
        np.testing.assert_allclose(mean[name], np.sum(steps * x, 0) / steps.sum(0), rtol=1e-4)


def test_too_few_steps_for_one_update_are_refused():
    with pytest.raises(ValueError, match="--total-timesteps 400.*at least 500"):
        make(Config(total_timesteps=400, num_envs=1, num_steps=1))
    with pytest.raises(ValueError, match="--estimator mean"):
        Config(estimator="mean")


@pytest.mark.parametrize(
    "name, estimator",
    [
        ("Together-probe", "baseline"),
        ("ResetTrap-probe", "baseline"),
        pytest.param("Together-probe", "reward_to_go", marks=pytest.mark.slow),
        pytest.param("Together-probe", "return", marks=pytest.mark.slow),
    ],
)
def test_it_learns_the_values_and_best_actions_of_the_probes(name, estimator):
    fields = {"total_timesteps": 200_000, "num_steps": 25, "learning_rate": 1e-2}
    check_actor_critic_probe(reinforce, name, estimator=estimator, **fields)
