"""ngu.py: its equations by hand and against NumPy, its rewards against a loop over the steps, and
what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    check_budget,
    check_q_probe,
    config_of,
    every_end,
    pairs,
    relu_mlp,
)
from recurrence import first_update, next_hidden, q_by_loop, retrace_by_double_sum, values_met

from algorithms import ngu
from algorithms.ngu import (
    Config,
    discounts,
    episodic_reward,
    intrinsic_weights,
    inverse_rescale,
    make,
    modulator,
    nearest_distances,
    rescale,
    td_error,
)
from common.envs import make_env


def small(**fields):
    defaults = {
        "env_id": "TogetherVector-probe",
        "total_timesteps": 2_000,
        "num_envs": 5,
        "num_steps": 6,
        "burn_in": 3,
        "gradient_steps": 2,
        "learning_starts": 200,
        "buffer_size": 600,
        "batch_size": 8,
        "num_policies": 3,
        "num_neighbors": 2,
        "episodic_memory_size": 4,
        "embedding_size": 5,
        "hidden_sizes": (8,),
        "memory_size": 8,
    }
    return config_of(ngu, defaults, **fields)


# Novelty within an episode.


@pytest.mark.parametrize(
    "distances, kernel_eps, expected",
    [
        ([0.0] * 10, 1e-3, 0.3161278),  # 1 / (√10 + 0.001)
        ([0.0] * 10, 1e-4, 0.3161278),
        ([2.5] * 10, 1e-3, 9.8666),  # all at the mean distance
        ([2.5] * 10, 1e-4, 30.5358),
        ([0.02] * 10, 1e-3, 0.3161278),  # 0.02 / 2.5 is within ξ of the same place
        ([0.0] * 64, 1e-3, 0.0),  # √64 + 0.001 > 8
        ([0.0] * 63, 1e-3, 0.1259723),
        ([0.0] * 9 + [np.inf], 1e-3, 0.0),  # fewer than k
        ([np.inf] * 10, 1e-3, 0.0),
    ],
)
def test_episodic_reward_by_hand(distances, kernel_eps, expected):
    got = episodic_reward(jnp.array(distances), 2.5, kernel_eps)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_episodic_reward_is_finite_before_any_distance_is_known():
    assert episodic_reward(jnp.array([jnp.inf, jnp.inf]), 0.0, 1e-3) == 0
    assert np.isfinite(episodic_reward(jnp.zeros(2), 0.0, 1e-3))


@pytest.mark.parametrize("num", [0, 2, 3, 7, 12])
def test_nearest_distances_are_those_of_a_sort(num):
    """Of a ring of 7, all of it once 7 or more were written."""
    rng = np.random.default_rng(num)
    embeddings, query = rng.normal(size=(7, 4)), rng.normal(size=4)
    got = nearest_distances(jnp.array(embeddings), num, jnp.array(query), 3)
    sorted_distances = np.sort(((embeddings[:num] - query) ** 2).sum(-1))
    expected = np.append(sorted_distances, [np.inf] * 3)[:3]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "error, expected", [(1.0, 1.0), (4.0, 2.5), (6.0, 3.5), (9.0, 5.0), (100.0, 5.0), (0.0, 1.0)]
)
def test_modulator_by_hand(error, expected):
    """1 + (error - 1) / 2, but at least 1 and at most 5."""
    assert modulator(error, 1.0, 2.0, 5.0) == expected


# The family of policies.


def test_weights_by_hand():
    """0, then a sigmoid from 10 (2 - 30) / 30 on, as in the paper with 32 policies, and 0.3."""
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    paper = [0, *(0.3 * sigmoid(10 * (2 * j - 30) / 30) for j in range(1, 31)), 0.3]
    np.testing.assert_allclose(intrinsic_weights(0.3, 32), paper, rtol=1e-5)
    np.testing.assert_allclose(intrinsic_weights(0.3, 3), [0, 0.3 * sigmoid(0 + 10), 0.3])
    np.testing.assert_allclose(intrinsic_weights(0.3, 2), [0, 0.3])
    np.testing.assert_array_equal(intrinsic_weights(0.3, 1), [0])


def test_discounts_by_hand():
    """1 - γ_j rises geometrically from 0.003 to 0.01."""
    np.testing.assert_allclose(
        discounts(0.997, 0.99, 3), [0.997, 1 - np.sqrt(0.003 * 0.01), 0.99], rtol=1e-6
    )
    np.testing.assert_allclose(discounts(0.997, 0.99, 1), [0.997], rtol=1e-6)


# The target.


def test_rescale_by_hand_and_its_inverse():
    x = jnp.array([0.0, 1.0, 10.0, -100.0])
    np.testing.assert_allclose(
        rescale(x, 1e-3), [0, 0.415214, 2.326625, -9.149876], rtol=1e-6, atol=1e-7
    )
    many = jnp.array([-1e4, -3.0, -1e-3, 0.0, 1e-6, 0.5, 77.0, 1e5])
    np.testing.assert_allclose(inverse_rescale(rescale(many, 1e-3), 1e-3), many, rtol=2e-5)


@every_end
def test_td_error_by_hand(terminated, truncated, bootstraps):
    assert td_error(3.0, 2.0, 40.0, terminated, 0.5) == 2 + bootstraps * 0.5 * 40 - 3


# Rewards for novelty, against a loop over the steps.


def rewards_by_loop(state, steps, config):
    """r^episodic and ‖ĝ - g‖² of steps [T, N, ...] from the start of episodes on, from lists."""
    f = lambda obs: np.asarray(relu_mlp(state.novelty_params.embedding, obs))
    guess = relu_mlp(state.novelty_params.predictor, steps.next_obs)
    errors = np.sum((guess - relu_mlp(state.random_params, steps.next_obs)) ** 2, axis=-1)
    k, size = config.num_neighbors, config.episodic_memory_size
    nearest = np.full((*steps.reward.shape, k), np.inf)
    for n in range(steps.reward.shape[1]):
        seen = []
        for t in range(len(steps.reward)):
            seen = [*seen, f(steps.obs[t, n])][-size:]  # without the state that is asked about
            distances = [np.sum((f(steps.next_obs[t, n]) - x) ** 2) for x in seen]
            nearest[t, n, : len(seen)] = np.sort(distances)[:k]
            if steps.terminated[t, n] or steps.truncated[t, n]:
                seen = []
    return nearest, errors


def test_rewards_are_those_of_a_loop_over_the_steps():
    """Those of the warm-up, which are in the replay and pending, all by the first networks."""
    config = small(episodic_memory_size=3)
    state = jax.jit(make(config).init)(jax.random.key(0))
    stored = jax.tree.map(  # 45 steps, cut into 7 sequences of 3 + 6 steps
        lambda x: np.asarray(x)[:35].reshape(7, 5, *x.shape[1:]), state.buffer.transitions
    )
    first = jax.tree.map(lambda x: x[0, :, :3].swapaxes(0, 1), stored)
    rest = jax.tree.map(
        lambda x: np.moveaxis(x[:, :, 3:], 2, 1).reshape(42, 5, *x.shape[3:]), stored
    )
    steps, rewards = jax.tree.map(lambda *x: np.concatenate(x), first, rest)
    assert rewards.shape == (45, 5)
    assert steps.terminated.any() and steps.truncated.any()
    nearest, errors = rewards_by_loop(state, steps, config)
    known = np.isfinite(nearest)
    assert 0 < known.mean() < 1
    np.testing.assert_allclose(state.novelty.distances.num, known.sum())
    mean = nearest[known].mean()
    np.testing.assert_allclose(
        state.novelty.distances.total / state.novelty.distances.num, mean, rtol=1e-4
    )
    kernel = config.kernel_eps / (np.maximum(nearest / mean - 0.008, 0) + config.kernel_eps)
    similarity = np.sqrt(kernel.sum(-1)) + 0.001
    episodic = np.where(known.all(-1) & (similarity <= 8), 1 / similarity, 0)
    factor = np.clip(1 + (errors - errors.mean()) / errors.std(), 1, 5)
    np.testing.assert_allclose(rewards, episodic * factor, rtol=2e-3, atol=1e-5)
    assert (episodic > 0).any() and (factor > 1).any()


# An update, against steps one by one.


def q_step(params, hidden, obs, action):
    """Q [B, J, A] and memories after one observation; `action` is the one before, -1 for none."""
    *_, [(w_head, b_head), (w_out, b_out)] = params
    hidden, size, q = next_hidden(params, hidden, obs, action), hidden.shape[-1], []
    for policy in w_head[size:]:  # that policy's row of the weights for j, which is one-hot
        y = jnp.maximum(hidden @ w_head[:size] + policy + b_head, 0) @ w_out + b_out
        q.append(y[:, :1] + y[:, 1:] - y[:, 1:].mean(-1, keepdims=True))
    return jnp.stack(q, axis=1), hidden


def targets_by_loop(params, target_params, batch, config):
    """y of the steps that are learned from, [num_steps, B, J]."""
    steps, intrinsic_reward = batch.transitions
    greedy, next_greedy = (
        np.asarray(q).argmax(-1)
        for q in q_by_loop(q_step, params, batch.memory, steps, config.burn_in)
    )
    target_q = q_by_loop(q_step, target_params, batch.memory, steps, config.burn_in)
    value, next_value = (np.asarray(inverse_rescale(q, config.rescale_eps)) for q in target_q)
    middle = 1 - np.sqrt((1 - config.gamma) * (1 - config.gamma_last))
    gammas, t = [config.gamma, middle, config.gamma_last], np.arange(config.num_steps)
    betas = [0, config.intrinsic_coef / (1 + np.exp(-10)), config.intrinsic_coef]
    targets = np.zeros(greedy.shape)
    for b in range(config.batch_size):
        s = jax.tree.map(lambda x, b=b: x[b, config.burn_in :], steps)
        bonus = intrinsic_reward[b, config.burn_in :]
        for j, (beta, gamma) in enumerate(zip(betas, gammas, strict=True)):
            q, next_q = value[t, b, j, s.action], next_value[t, b, j, next_greedy[t, b, j]]
            error = s.reward + beta * bonus + gamma * ~s.terminated * next_q - q
            trace = config.retrace_lambda * (s.action == greedy[t, b, j])
            done = s.terminated | s.truncated
            targets[:, b, j] = retrace_by_double_sum(q, error, done, trace, gamma)
    return np.sign(targets) * (np.sqrt(abs(targets) + 1) - 1) + config.rescale_eps * targets


def test_an_update_descends_the_squared_errors_of_its_sequences():
    """Of a State whose networks differ, for all three policies."""
    config = small(gradient_steps=1, gamma=0.75, gamma_last=0.5)
    before, after, metrics, priorities, index, batch = first_update(
        make(config), config, lambda state, other: state._replace(target_params=other)
    )
    steps = batch.transitions.transition
    assert steps.terminated.any() and steps.truncated.any()

    targets = targets_by_loop(before.params, before.target_params, batch, config)
    t, b = np.indices((config.num_steps, config.batch_size))

    def loss(params):
        q, _ = q_by_loop(q_step, params, batch.memory, steps, config.burn_in)
        errors = targets - q[t, b, :, steps.action.T[config.burn_in :]]
        return jnp.mean(errors**2), errors

    gradient, errors = jax.grad(loss, has_aux=True)(before.params)
    np.testing.assert_allclose(metrics["loss"], np.mean(np.square(errors)), rtol=1e-3)
    for mean, expected in pairs(after.opt_state[0].mu, gradient):  # of Adam
        np.testing.assert_allclose(10 * mean, expected, rtol=1e-2, atol=1e-5)
    leaves, errors = np.array(priorities.sum_tree[0]), np.abs(np.asarray(errors)).mean(-1)
    leaves[index] = (0.9 * errors.max(0) + 0.1 * errors.mean(0) + 1e-6) ** 0.9
    np.testing.assert_allclose(after.priorities.sum_tree[0], leaves, rtol=1e-2)


def test_an_update_teaches_the_embedding_and_the_predictor_by_its_steps():
    """And the 225 steps of the warm-up weigh no more than 60 beside its 30, in μ and σ."""
    config = small(error_steps=60)
    algorithm = make(config)
    before = jax.jit(algorithm.init)(jax.random.key(0))
    after, metrics = jax.jit(algorithm.update)(before, jnp.int32(0))
    new = jax.tree.map(lambda x: x[35:40, config.burn_in :], after.buffer.transitions)
    steps = new.transition

    def loss(params):
        pairs = [relu_mlp(params.embedding, x) for x in (steps.obs, steps.next_obs)]
        logits = relu_mlp(params.classifier, jnp.concatenate(pairs, axis=-1))
        log_probs = logits - jax.scipy.special.logsumexp(logits, axis=-1, keepdims=True)
        action_loss = -jnp.mean(jnp.take_along_axis(log_probs, steps.action[..., None], axis=-1))
        guess = relu_mlp(params.predictor, steps.next_obs)
        errors = jnp.sum((guess - relu_mlp(before.random_params, steps.next_obs)) ** 2, axis=-1)
        return action_loss + jnp.mean(errors), (action_loss, jnp.mean(errors))

    gradient, (action_loss, novelty) = jax.grad(loss, has_aux=True)(before.novelty_params)
    np.testing.assert_allclose(metrics["action_loss"], action_loss, rtol=1e-4)
    np.testing.assert_allclose(metrics["novelty"], novelty, rtol=1e-4)
    np.testing.assert_allclose(metrics["intrinsic_reward"], new.intrinsic_reward.mean(), rtol=1e-4)
    for mean, expected in pairs(after.novelty_opt_state[0].mu, gradient):
        np.testing.assert_allclose(10 * mean, expected, rtol=1e-3, atol=1e-6)
    assert (before.novelty.error.count, after.novelty.error.count) == (225, 90)
    for x, y in pairs(before.random_params, after.random_params):
        np.testing.assert_array_equal(x, y)


# The policies.


def test_a_policy_is_drawn_at_the_start_of_an_episode_and_kept_to_its_end():
    """With ε = 0 every action is greedy in the Q of the policy that was drawn."""
    config = small(epsilon=0.0, burn_in=40, num_envs=8, env_id="CartPole-v1-positions")
    init, disagree = jax.jit(make(config).init), False
    env = make_env(config.env_id, 1)
    network = ngu.make_recurrent_q_network(env, config.hidden_sizes, 8, 20, 3)
    for seed in range(8):
        state = init(jax.random.key(seed))
        memories, (steps, _) = state.pending  # all by the first params
        q, _ = network.apply(state.params, memories.hidden, (steps.obs, memories.action))
        policy, greedy = np.asarray(memories.policy), np.asarray(q).argmax(-1)
        goes_on = ~np.asarray(steps.terminated | steps.truncated)
        known = policy >= 0
        np.testing.assert_array_equal(known[1:], goes_on[:-1])  # not yet drawn at the start
        kept = known[:-1] & goes_on[:-1]
        np.testing.assert_array_equal(policy[1:][kept], policy[:-1][kept])
        of_policy = np.take_along_axis(greedy, policy[..., None], axis=-1).squeeze(-1)
        np.testing.assert_array_equal(of_policy[known], np.asarray(steps.action)[known])
        assert (~goes_on).any() and set(policy[known]) <= {0, 1, 2}
        disagree |= (np.ptp(greedy, axis=-1) > 0)[known].any()
    assert disagree  # or the actions would tell nothing


def test_act_follows_policy_0():
    config = small()
    algorithm = make(config)
    params = jax.jit(algorithm.init)(jax.random.key(0)).params
    memory = algorithm.init_memory()
    for obs, before in zip(jnp.eye(len(params[0][0][0]))[:6], [-1, 0, 1, 0, 1, 1], strict=True):
        memory = memory._replace(action=jnp.array(before))
        q, hidden = q_step(params, memory.hidden[None], obs[None], np.array([before]))
        action, memory = algorithm.act(params, memory, obs, jax.random.key(0))
        assert action == q[0, 0].argmax() == memory.action
        np.testing.assert_allclose(memory.hidden, hidden[0], rtol=1e-5, atol=1e-6)


# The whole.


def test_the_budget_counts_every_environment_step():
    check_budget(make(small(learning_starts=101)), 120 + 3 * 5, 1_995)


def visited_values(config, state, obs):
    """max Q_0 of the greedy policy at the states it meets, by observation, averaged."""
    value_of = value_of_policy_0(ngu, config, state.params)
    return values_met(make(config), config, state.params, value_of, len(obs))


def value_of_policy_0(module, config, params):
    """`hidden, inputs -> max Q_0` of a network of `module`."""
    env, sizes = make_env(config.env_id, 1), config.hidden_sizes
    network = module.make_recurrent_q_network(
        env, sizes, config.memory_size, config.memory_steps, config.num_policies
    )

    def value_of(hidden, inputs):
        q, _ = network.apply(params, hidden, inputs)
        return inverse_rescale(q[..., 0, :].max(-1), config.rescale_eps)

    return value_of


@pytest.mark.slow
def test_it_learns_the_values_and_best_actions_of_the_probes():
    """Whatever novelty the other policy is after. Values to 8 %, not 3: as the learning rate does
    not fall, those of the last updates move by 6 % around what they are."""
    fields = {"num_envs": 4, "num_steps": 8, "burn_in": 2, "gradient_steps": 6, "num_policies": 2}
    fields |= {"total_timesteps": 10_000, "target_network_frequency": 20, "epsilon_power": 1.0}
    fields |= {"memory_size": 16}
    check_q_probe(ngu, "TogetherVector-probe", visited_values, tolerance=0.08, **fields)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"gamma": 1.0}, "--gamma 1.0"),
        ({"gamma_last": 1.0}, "--gamma-last"),
        ({"kernel_eps": 0.0}, "--kernel-eps"),
        ({"modulator_max": 0.5}, "--modulator-max"),
        ({"num_neighbors": 200}, "--num-neighbors"),
        ({"num_policies": 0}, "--num-policies"),
        ({"total_timesteps": 1_100}, "--total-timesteps"),
    ],
)
def test_nonsense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Config(**fields)
