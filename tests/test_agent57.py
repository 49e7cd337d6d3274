"""agent57.py: its bandit against brute force and UCB1, whole updates against steps one by one, and
what it learns."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import check_q_probe, config_of, pairs, states_of
from recurrence import first_update, q_by_loop, retrace_by_double_sum, values_met
from test_ngu import q_step, value_of_policy_0

from algorithms import agent57
from algorithms.agent57 import (
    Bandit,
    Config,
    choose_arm,
    combine,
    inverse_rescale,
    make,
    mean_returns,
    plays_and_returns,
    record,
    rescale,
)


def small(**fields):
    defaults = {
        "env_id": "TogetherVector-probe",
        "total_timesteps": 2_000,
        "num_envs": 5,
        "num_steps": 6,
        "burn_in": 3,
        "gradient_steps": 1,
        "learning_starts": 200,
        "buffer_size": 600,
        "batch_size": 8,
        "num_policies": 3,
        "window_size": 7,
        "num_neighbors": 2,
        "episodic_memory_size": 4,
        "embedding_size": 5,
        "hidden_sizes": (8,),
        "memory_size": 8,
    }
    return config_of(agent57, defaults, **fields)


# Values.


def test_combine_by_hand():
    """h(3) = 1 + 0.003, h(8) = 2 + 0.008: 3 + 0.5 · 8 is worth h(7)."""
    got = combine(jnp.array([1.003]), jnp.array([2.008]), 0.5, 1e-3)
    np.testing.assert_allclose(got, [np.sqrt(8) - 1 + 0.007], rtol=1e-5)


def test_rescaling_and_its_inverse():
    x = jnp.array([-1e4, -3.0, -1e-3, 0.0, 1e-6, 0.5, 77.0, 1e5])
    np.testing.assert_allclose(rescale(inverse_rescale(x, 1e-3), 1e-3), x, rtol=2e-5)
    np.testing.assert_allclose(combine(x, 7 * x, 0.0, 1e-3), x, rtol=2e-5)


# The bandit.


def no_episodes(window):
    return Bandit(jnp.full(window, -1), jnp.zeros(window), jnp.zeros((), int))


def play(num_steps, reward, window, num_arms, coef, epsilon=0.0):
    """The arms and the rewards `reward(t, arm)` of a bandit, as lists."""
    bandit, arms, rewards = no_episodes(window), [], []
    choose, add = jax.jit(choose_arm, static_argnums=2), jax.jit(record)
    for t in range(num_steps):
        arms.append(int(choose(jax.random.key(t), bandit, num_arms, coef, epsilon)))
        rewards.append(float(np.float32(reward(t, arms[-1]))))
        bandit = add(bandit, arms[-1], rewards[-1])
    return arms, rewards, bandit


def test_the_window_forgets():
    """After 4 plays of arm 0 and 4 of arm 1 a window of 4 holds none of arm 0."""
    bandit = no_episodes(4)
    for arm in [0, 0, 0, 0, 1, 1, 1, 1]:
        bandit = record(bandit, arm, 1.0 - arm)
    plays, returns = plays_and_returns(bandit, 2)
    np.testing.assert_array_equal(plays, [0, 4])
    np.testing.assert_array_equal(returns, [0, 0])


@pytest.mark.parametrize("window, num_arms, coef", [(5, 3, 1.0), (12, 4, 0.3), (100, 2, 1.0)])
def test_the_bandit_is_brute_force_over_the_window(window, num_arms, coef):
    rng = np.random.default_rng(window)
    noise = rng.normal(size=(60, num_arms)) + np.arange(num_arms)
    arms, rewards, _ = play(60, lambda t, arm: noise[t, arm], window, num_arms, coef)
    assert arms[:num_arms] == list(range(num_arms))
    for t in range(num_arms, 60):
        bounds = []
        for arm in range(num_arms):
            pairs_seen = zip(arms[:t][-window:], rewards[:t][-window:], strict=True)
            seen = [r for a, r in pairs_seen if a == arm]
            bounds.append(np.mean(seen) + coef / np.sqrt(len(seen)) if seen else np.inf)
        assert bounds[arms[t]] >= max(bounds) - 1e-5
    assert len(set(arms)) == num_arms


def test_epsilon_is_the_part_of_arms_at_random():
    """Arm 1 is the best by far; of 600 choices at ε = 0.5 a quarter are each of the other two's."""
    bandit = no_episodes(9)
    for arm in [0, 1, 2] * 3:
        bandit = record(bandit, arm, 10.0 * (arm == 1))
    keys = jax.random.split(jax.random.key(0), 600)
    arms = jax.vmap(choose_arm, (0, None, None, None, None))(keys, bandit, 3, 1.0, 0.5)
    share = np.bincount(np.asarray(arms), minlength=3) / 600
    np.testing.assert_allclose(share, [1 / 6, 4 / 6, 1 / 6], atol=0.06)
    greedy = jax.vmap(choose_arm, (0, None, None, None, None))(keys, bandit, 3, 1.0, 0.0)
    assert (greedy == 1).all()


def test_regret_after_a_switch_is_below_that_of_ucb1():
    """Of two Bernoulli arms the better one, .9 against .5, pays .1 after 500 of 1,000 steps: in the
    mean of all its plays that takes as long again to be seen."""
    pays = lambda t: np.array([0.9 if t < 500 else 0.1, 0.5])
    of = lambda arms: sum(pays(t).max() - pays(t)[arm] for t, arm in enumerate(arms))
    regret, regret_of_ucb1 = [], []
    for seed in range(4):
        coins = np.random.default_rng(seed).random((1_000, 2))
        arms, *_ = play(1_000, lambda t, arm, x=coins: x[t, arm] < pays(t)[arm], 90, 2, 1.0)
        regret.append(of(arms))
        total, plays, chosen = np.zeros(2), np.zeros(2), []
        for t in range(1_000):
            bounds = total / np.maximum(plays, 1) + np.sqrt(2 * np.log(t + 1) / (plays + 1e-12))
            chosen.append(int(np.argmax(bounds)))
            total[chosen[-1]] += coins[t, chosen[-1]] < pays(t)[chosen[-1]]
            plays[chosen[-1]] += 1
        regret_of_ucb1.append(of(chosen))
    assert max(regret) < min(regret_of_ucb1) / 2, (regret, regret_of_ucb1)


def test_mean_returns_are_those_of_all_bandits():
    """An arm that no window holds counts as the worst; before any episode all count as 0."""
    bandits = Bandit(
        arms=jnp.array([[0, 0, 2], [2, -1, -1]]),
        returns=jnp.array([[-4.0, -2.0, 1.0], [6.0, 0.0, 0.0]]),
        num=jnp.array([3, 1]),
    )
    np.testing.assert_array_equal(mean_returns(bandits, 4), [-3, -3, 3.5, -3])
    np.testing.assert_array_equal(mean_returns(no_episodes(5), 3), [0, 0, 0])


def test_the_bandits_hold_the_episodes_that_ended_and_the_arms_that_played_them():
    """Against the steps of each update, which are those that are pending after it."""
    config = small(burn_in=6, window_size=1_000, bandit_epsilon=0.3)
    states = states_of(make(config), 10)
    total = np.where(states[0].env.episode.done, 0, states[0].env.episode.total)
    expected = [[] for _ in range(config.num_envs)]
    for update, (before, after) in enumerate(pairwise(states)):
        key_arms = jax.random.split(jax.random.fold_in(before.key, update), 3)[0]
        new_arms = jax.vmap(choose_arm, (0, 0, None, None, None))(
            jax.random.split(key_arms, config.num_envs), before.bandits, 3, 1.0, 0.3
        )
        policy, (steps, _) = np.asarray(after.pending.memories.policy), after.pending.steps
        for t, n in np.ndindex(policy.shape):
            total[n] += steps.reward[t, n]
            if steps.terminated[t, n] or steps.truncated[t, n]:
                arm = policy[t, n] if policy[t, n] >= 0 else new_arms[n]
                expected[n].append((int(arm), float(total[n])))
                total[n] = 0
    bandits = states[-1].bandits
    for n, episodes in enumerate(expected):
        assert bandits.num[n] == len(episodes) > 5
        arms, returns = zip(*episodes, strict=True)
        np.testing.assert_array_equal(bandits.arms[n, : len(arms)], arms)
        np.testing.assert_allclose(bandits.returns[n, : len(arms)], returns, rtol=1e-5)
        assert set(arms) == {0, 1, 2} and (bandits.arms[n, len(arms) :] == -1).all()
    np.testing.assert_array_equal(states[-1].params.returns, mean_returns(bandits, 3))


# An update, against steps one by one.


def targets_by_loop(params, target_params, batch, config):
    """y^e and y^i of the steps that are learned from, [2, num_steps, B, J]."""
    steps, intrinsic_reward = batch.transitions
    eps = config.rescale_eps
    betas = jnp.array([0, config.intrinsic_coef / (1 + np.exp(-10)), config.intrinsic_coef])

    def of_both(params):
        both = [
            q_by_loop(
                q_step,
                jax.tree.map(lambda x, i=i: x[i], params),
                batch.memory._replace(hidden=batch.memory.hidden[:, i]),
                steps,
                config.burn_in,
            )
            for i in (0, 1)
        ]
        return zip(*both, strict=True)  # Q of both networks, and next Q of both

    greedy, next_greedy = (
        np.asarray(combine(extrinsic, intrinsic, betas[:, None], eps)).argmax(-1)
        for extrinsic, intrinsic in of_both(params)
    )
    value, next_value = (
        np.asarray(inverse_rescale(jnp.stack(q), eps)) for q in of_both(target_params)
    )
    middle = 1 - np.sqrt((1 - config.gamma) * (1 - config.gamma_last))
    t, targets = np.arange(config.num_steps), np.zeros((2, *greedy.shape))
    for i, b, j in np.ndindex(2, config.batch_size, 3):
        s = jax.tree.map(lambda x, b=b: x[b, config.burn_in :], steps)
        reward = [s.reward, intrinsic_reward[b, config.burn_in :]][i]
        gamma = [config.gamma, middle, config.gamma_last][j]
        q, next_q = value[i, t, b, j, s.action], next_value[i, t, b, j, next_greedy[t, b, j]]
        error = reward + gamma * ~s.terminated * next_q - q
        trace = config.retrace_lambda * (s.action == greedy[t, b, j])
        done = s.terminated | s.truncated
        targets[i, :, b, j] = retrace_by_double_sum(q, error, done, trace, gamma)
    return np.sign(targets) * (np.sqrt(abs(targets) + 1) - 1) + eps * targets


def test_an_update_descends_the_squared_errors_of_both_networks():
    """Each by its own reward and target network, for the policies that are greedy in the sum."""
    config = small(gamma=0.75, gamma_last=0.5, intrinsic_coef=2.0)
    before, after, metrics, priorities, index, batch = first_update(
        make(config),
        config,
        lambda state, other: state._replace(target_params=other.networks),
        num_keys=3,
    )
    steps = batch.transitions.transition
    networks = before.params.networks
    targets = targets_by_loop(networks, before.target_params, batch, config)
    t, b = np.indices((config.num_steps, config.batch_size))

    def loss(networks):
        errors = []
        for i in (0, 1):
            params = jax.tree.map(lambda x, i=i: x[i], networks)
            memory = batch.memory._replace(hidden=batch.memory.hidden[:, i])
            q, _ = q_by_loop(q_step, params, memory, steps, config.burn_in)
            errors.append(targets[i] - q[t, b, :, steps.action.T[config.burn_in :]])
        return jnp.mean(errors[0] ** 2) + jnp.mean(errors[1] ** 2), jnp.stack(errors)

    (expected, errors), gradient = jax.value_and_grad(loss, has_aux=True)(networks)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-3)
    for mean, slope in pairs(after.opt_state[0].mu, gradient):  # of Adam
        np.testing.assert_allclose(10 * mean, slope, rtol=1e-2, atol=1e-5)
    leaves, errors = np.array(priorities.sum_tree[0]), np.abs(np.asarray(errors)).mean((0, 3))
    leaves[index] = (0.9 * errors.max(0) + 0.1 * errors.mean(0) + 1e-6) ** 0.9
    np.testing.assert_allclose(after.priorities.sum_tree[0], leaves, rtol=1e-2)


def test_act_follows_the_arm_of_the_largest_return():
    config = small()
    algorithm = make(config)
    params = jax.jit(algorithm.init)(jax.random.key(0)).params
    betas = jnp.array([0, config.intrinsic_coef / (1 + np.exp(-10)), config.intrinsic_coef])
    obs, before = jnp.eye(params.networks[0][0][0].shape[1])[2], np.array([-1])
    memory = algorithm.init_memory()
    both = [
        q_step(
            jax.tree.map(lambda x, i=i: x[i], params.networks), jnp.zeros((1, 8)), obs[None], before
        )
        for i in (0, 1)
    ]
    q = combine(both[0][0], both[1][0], betas[:, None], config.rescale_eps)[0]
    for arm in range(3):
        chosen = params._replace(returns=1.0 * (jnp.arange(3) == arm))
        action, after = algorithm.act(chosen, memory, obs, jax.random.key(0))
        assert action == q[arm].argmax() == after.action
        for i in (0, 1):
            np.testing.assert_allclose(after.hidden[i], both[i][1][0], rtol=1e-5, atol=1e-6)


# The whole.


def visited_values(config, state, obs):
    """max Q^e_0 of the greedy policy at the states it meets, by observation, averaged."""
    extrinsic = jax.tree.map(lambda x: x[0], state.params.networks)
    of_network = value_of_policy_0(agent57, config, extrinsic)
    value_of = lambda hidden, inputs: of_network(hidden[..., 0, :], inputs)
    return values_met(make(config), config, state.params, value_of, len(obs))


@pytest.mark.slow
def test_it_learns_the_values_and_best_actions_of_the_probes():
    fields = {"num_envs": 4, "num_steps": 8, "burn_in": 2, "gradient_steps": 6, "num_policies": 2}
    fields |= {"total_timesteps": 10_000, "target_network_frequency": 20, "epsilon_power": 1.0}
    fields |= {"gamma_last": 0.8, "memory_size": 16}
    check_q_probe(agent57, "TogetherVector-probe", visited_values, **fields)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"bandit_epsilon": 1.5}, "--bandit-epsilon"),
        ({"bandit_coef": -1.0}, "--bandit-coef"),
        ({"window_size": 0}, "--window-size"),
        ({"gamma": 1.0}, "--gamma 1.0"),
    ],
)
def test_nonsense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Config(**fields)
