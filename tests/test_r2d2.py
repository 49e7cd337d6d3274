"""r2d2.py: its equations by hand, whole updates against loops over steps, and what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import check_budget, check_q_probe, every_end, pairs, states_of
from recurrence import first_update, next_hidden, q_by_loop, values_met

from algorithms import n_step_dqn, r2d2
from algorithms.r2d2 import (
    Config,
    Memory,
    dueling,
    exploration,
    inverse_rescale,
    make,
    n_step_return,
    priority,
    rescale,
    rescaled_error,
)
from common.envs import make_env


def small(**fields):
    """Episodes of 1, 2 and 8 steps, terminated and truncated, in sequences of 2 + 4 + 2 steps."""
    defaults = {
        "env_id": "TogetherVector-probe",
        "total_timesteps": 1_000,
        "learning_starts": 100,
        "buffer_size": 500,
        "batch_size": 16,
        "num_envs": 5,
        "num_steps": 4,
        "burn_in": 2,
        "n_step": 3,
        "gradient_steps": 1,
        "gamma": 0.75,
        "hidden_sizes": (8,),
        "memory_size": 6,
    }
    return Config(**defaults | fields)


# Equations.


def test_rescale_by_hand():
    got = rescale(jnp.array([1.0, 10.0, -100.0, 0.0, 8.0]), 1e-3)
    np.testing.assert_allclose(got, [0.415214, 2.326625, -9.149876, 0, 2.008], atol=1e-6)


@pytest.mark.parametrize("eps", [1e-3, 1e-2, 0.5])
def test_rescaling_and_its_inverse_are_the_paper_s(eps):
    x = np.concatenate([-np.logspace(5, -6, 60), [0.0], np.logspace(-6, 5, 60)])
    h = np.sign(x) * (np.sqrt(np.abs(x) + 1) - 1) + eps * x
    root = np.sqrt(1 + 4 * eps * (np.abs(x) + 1 + eps))
    inverse = np.sign(x) * (((root - 1) / (2 * eps)) ** 2 - 1)
    with jax.enable_x64(True):
        np.testing.assert_allclose(rescale(jnp.array(x), eps), h, rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(inverse_rescale(jnp.array(x), eps), inverse, 1e-6, 1e-9)
        np.testing.assert_allclose(inverse_rescale(rescale(jnp.array(x), eps), eps), x, 1e-12)
    both = inverse_rescale(rescale(jnp.array(x, jnp.float32), eps), eps)
    np.testing.assert_allclose(both, x, rtol=2e-6)  # of every size, in float32


def test_the_slope_of_rescaling_at_0_is_a_half_and_epsilon():
    assert jax.grad(rescale)(0.0, 1e-3) == pytest.approx(0.501, rel=1e-6)
    assert jax.grad(inverse_rescale)(0.0, 1e-3) == pytest.approx(1 / 0.501, rel=1e-6)


def returns_by_loop(reward, next_value, terminated, done, gamma, n):
    result = []
    for t in range(len(reward) - n + 1):
        total, discount = 0.0, 1.0
        for i in range(t, t + n):
            total += discount * reward[i]
            discount *= gamma
            if done[i]:
                break
        result.append(total + discount * (not terminated[i]) * next_value[i])
    return np.array(result)


@every_end
def test_n_step_return_by_hand(terminated, truncated, bootstraps):
    """The episode may end after the second of four steps."""
    end = jnp.arange(4) == 1
    done = end & (terminated or truncated)
    reward, next_value = jnp.array([1.0, 2.0, 4.0, 8.0]), jnp.array([10.0, 20.0, 30.0, 40.0])
    with jax.numpy_rank_promotion("raise"):
        got = n_step_return(reward, next_value, end & terminated, done, 0.5, 3)
    if terminated or truncated:
        first, second = 1 + 2 / 2 + bootstraps * 20 / 4, 2 + bootstraps * 20 / 2
    else:
        first, second = 1 + 2 / 2 + 4 / 4 + 30 / 8, 2 + 4 / 2 + 8 / 4 + 40 / 8
    np.testing.assert_array_equal(got, [first, second])


@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_n_step_return_is_the_sum_step_by_step(n):
    rng = np.random.default_rng(n)
    reward, next_value = rng.normal(size=(2, 20))
    terminated, truncated = rng.random((2, 20)) < 0.15
    inputs = reward, next_value, terminated, terminated | truncated
    got = n_step_return(*map(jnp.array, inputs), 0.9, n)
    np.testing.assert_allclose(got, returns_by_loop(*inputs, 0.9, n), rtol=1e-5, atol=1e-6)


def test_nothing_behind_an_end_matters():
    reward, next_value = jnp.array([1.0, jnp.nan, jnp.inf]), jnp.array([6.0, jnp.nan, jnp.nan])
    first = jnp.arange(3) == 0
    assert n_step_return(reward, next_value, first & False, first, 0.5, 3) == 1 + 0.5 * 6


@every_end
def test_td_error_of_rescaled_values(terminated, truncated, bootstraps):
    """h(3) = 1.003; what follows is worth 3, so R = 2 + 0.5 · 3, unless it ended."""
    flags = jnp.array([terminated]), jnp.array([terminated or truncated])
    next_value = inverse_rescale(jnp.array([1.003]), 1e-3)
    returns = n_step_return(jnp.array([2.0]), next_value, *flags, 0.5, 1)
    r = 2 + 1.5 * bootstraps
    expected = np.sqrt(r + 1) - 1 + 1e-3 * r - 0.25
    np.testing.assert_allclose(
        rescaled_error(jnp.array([0.25]), returns, 1e-3), [expected], rtol=1e-5
    )


def test_gradient_is_semi_gradient():
    gradient = jax.grad(rescaled_error, argnums=(0, 1))(1.0, 5.0, 1e-3)
    np.testing.assert_array_equal(gradient, (-1, 0))


def test_priority_by_hand():
    errors = jnp.array([1.0, -3.0, 2.0, 0.0])  # signs do not matter: largest 3, mean 1.5
    assert priority(errors, 0.9, 1.0, 0.0) == pytest.approx(0.9 * 3 + 0.1 * 1.5)
    assert priority(errors, 1.0, 1.0, 0.0) == 3
    assert priority(errors, 0.0, 1.0, 0.0) == 1.5
    assert priority(errors, 1.0, 0.5, 1.0) == 2
    assert priority(errors, 0.3, 0.0, 1.0) == 1


def test_exploration_by_hand():
    np.testing.assert_allclose(exploration(0.4, 7.0, 1), [0.4], rtol=1e-6)
    np.testing.assert_allclose(exploration(0.4, 7.0, 2), [0.4, 0.4**8], rtol=1e-5)
    np.testing.assert_allclose(exploration(0.5, 2.0, 3), [0.5, 0.25, 0.125], rtol=1e-6)


def test_dueling_by_hand():
    got = dueling(jnp.array([[10.0], [0.0]]), jnp.array([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]]))
    np.testing.assert_array_equal(got, [[8, 9, 13], [0, 0, 0]])


# An update, against steps one by one.


def q_step(params, hidden, obs, action):
    """Q [B, A] and memories after one observation; `action` is the one before, -1 for none."""
    *_, [(w_head, b_head)] = params
    hidden = next_hidden(params, hidden, obs, action)
    y = hidden @ w_head + b_head
    return y[:, :1] + y[:, 1:] - y[:, 1:].mean(-1, keepdims=True), hidden


def errors_by_loop(params, target_params, batch, config):
    """δ [B, num_steps] of the steps that are learned from, with the equations above."""
    memory, steps = batch
    q, next_q = q_by_loop(q_step, params, memory, steps, config.burn_in)
    _, target_next_q = q_by_loop(q_step, target_params, memory, steps, config.burn_in)
    steps = jax.tree.map(lambda x: x[:, config.burn_in :].T, batch.transitions._asdict())
    t, b = np.indices(steps["reward"].shape)
    next_value = target_next_q[t, b, jnp.argmax(next_q, axis=-1)]
    next_value = np.asarray(jax.lax.stop_gradient(inverse_rescale(next_value, config.rescale_eps)))
    done = steps["terminated"] | steps["truncated"]
    inputs = steps["reward"], next_value, steps["terminated"], done
    returns = [
        returns_by_loop(*(x[:, i] for x in inputs), config.gamma, config.n_step)
        for i in range(config.batch_size)
    ]
    q_value = q[t, b, steps["action"]][: config.num_steps].T
    return rescale(jnp.array(returns, jnp.float32), config.rescale_eps) - q_value


def of_two_networks(state, other):
    """The State with the params of another seed as θ⁻."""
    return state._replace(target_params=other)


def test_an_update_descends_the_squared_td_errors_of_its_sequences():
    config = small()
    before, after, metrics, priorities, index, batch = first_update(
        make(config), config, of_two_networks
    )
    done = batch.transitions.terminated | batch.transitions.truncated
    assert done.any(axis=0).all() and not done.all(axis=0).any()  # at every place
    assert set(batch.memory.action.tolist()) == {-1, 0, 1}

    def loss(params):
        errors = errors_by_loop(params, before.target_params, batch, config)
        return jnp.mean(errors**2), errors

    gradient, errors = jax.grad(loss, has_aux=True)(before.params)
    np.testing.assert_allclose(metrics["loss"], np.mean(np.square(errors)), rtol=1e-4)
    for mean, expected in pairs(after.opt_state[0].mu, gradient):  # of Adam
        np.testing.assert_allclose(10 * mean, expected, rtol=1e-3, atol=1e-6)

    leaves = np.array(priorities.sum_tree[0])
    assert leaves.sum() == 30
    errors = np.abs(np.asarray(errors))
    leaves[index] = (0.9 * errors.max(1) + 0.1 * errors.mean(1) + 1e-6) ** 0.9
    np.testing.assert_allclose(after.priorities.sum_tree[0], leaves, rtol=1e-3)
    largest = max(1, leaves[index].max())
    np.testing.assert_allclose(after.priorities.largest, largest, rtol=1e-3)


def memoryless(params, num_actions=2):
    """Params of a network whose Q is that of the last observation alone: z = 0, U = 0, and no
    weights for the previous action."""
    encoder, (w, b, u), head = params
    size = len(u)
    b = b.at[size : 2 * size].set(-1e9)
    return encoder, (w.at[-num_actions:].set(0), b, jnp.zeros_like(u)), head


def feed_forward(params, obs):
    [(w, b)], (w_gru, b_gru, u), [(w_head, b_head)] = params
    size = len(u)
    new = slice(2 * size, None)
    x = jnp.tanh(jnp.maximum(obs @ w + b, 0) @ w_gru[: w.shape[1], new] + b_gru[new])
    y = x @ w_head + b_head
    return y[:, :1] + y[:, 1:] - y[:, 1:].mean(-1, keepdims=True)


def test_without_memory_one_step_is_double_n_step_dqn(monkeypatch):
    """No burn-in, sequences of one step that is learned from, memories of zeros, h(x) = x."""
    monkeypatch.setattr(r2d2, "rescale", lambda x, eps: x)
    monkeypatch.setattr(r2d2, "inverse_rescale", lambda x, eps: x)
    config = small(burn_in=0, num_steps=1, batch_size=64)
    forget = lambda state, other: state._replace(
        params=memoryless(state.params),
        target_params=memoryless(other),
        buffer=state.buffer._replace(memory=jax.tree.map(jnp.zeros_like, state.buffer.memory)),
    )
    before, _, metrics, *_, batch = first_update(make(config), config, forget)
    t = jax.vmap(n_step_dqn.n_step, (0, None))(batch.transitions, config.gamma)
    assert len(np.unique(t.discount)) == 3
    every = np.arange(64)
    next_action = feed_forward(before.params, t.next_obs).argmax(-1)
    next_value = feed_forward(before.target_params, t.next_obs)[every, next_action]
    q_value = feed_forward(before.params, t.obs)[every, t.action]
    errors = n_step_dqn.td_error(q_value, t.reward, next_value, t.terminated, t.discount)
    np.testing.assert_allclose(metrics["loss"], np.mean(errors**2), rtol=1e-5)


# What is stored.


def test_act_step_by_step_has_the_memories_that_are_stored():
    """`init` fills the replay by one set of params; its 5 sequences of each environment are one
    stream, along which `act` goes with the actions that were taken."""
    config = small(env_id="CartPole-v1-positions", num_steps=20, learning_starts=500)
    algorithm = make(config)
    state = jax.jit(algorithm.init)(jax.random.key(0))
    act = jax.jit(jax.vmap(algorithm.act, (None, 0, 0, None)))
    memory = jax.tree.map(lambda x: x[:5], state.buffer.memory)
    assert (memory.action == -1).all() and not memory.hidden.any()
    for block in range(5):
        stored = jax.tree.map(lambda x, i=5 * block: x[i : i + 5], state.buffer)
        np.testing.assert_array_equal(stored.memory.action, memory.action)
        np.testing.assert_allclose(stored.memory.hidden, memory.hidden, atol=1e-6)
        for t in range(20):
            steps = jax.tree.map(lambda x, t=t: x[:, t], stored.transitions)
            _, memory = act(state.params, memory, steps.obs, jax.random.key(0))
            goes_on = ~(steps.terminated | steps.truncated)
            action = jnp.where(goes_on, steps.action, -1)
            memory = Memory(memory.hidden * goes_on[:, None], action)
    assert (state.buffer.transitions.terminated.sum() > 10) and goes_on.any()


@pytest.mark.parametrize("num_envs, burn_in, n", [(1, 11, 4), (3, 0, 1)])
def test_a_row_is_steps_in_a_row_of_one_environment(num_envs, burn_in, n):
    """12 updates into a ring of 5 blocks, which wraps twice, against the stream of all steps."""
    fields = {"learning_starts": 8 * num_envs, "buffer_size": 20 * num_envs}
    config = small(num_envs=num_envs, burn_in=burn_in, n_step=n, **fields)
    overlap, length = burn_in + n - 1, burn_in + n + 3
    states = states_of(make(config), 12)

    def block_of(state, number):
        """The sequences [N, L, ...] in that block of the ring."""
        first = number % 5 * num_envs
        return jax.tree.map(lambda x: np.asarray(x)[first : first + num_envs], state.buffer)

    written = [block_of(states[0], number) for number in range(2)]
    assert not block_of(states[0], 2).transitions.obs.any()
    for number, after in enumerate(states[1:], start=2):
        written.append(block_of(after, number))
        for earlier in range(max(0, number - 4), number):  # these are as they were
            for x, y in pairs(block_of(after, earlier), written[earlier]):
                np.testing.assert_array_equal(x, y)
    for before, block in zip(states, written[2:], strict=False):
        is_first = before.pending.memories.hidden[0] if overlap else before.memory.hidden
        np.testing.assert_array_equal(block.memory.hidden, is_first)
    new = [jax.tree.map(lambda x: x[:, overlap:], x.transitions) for x in written]
    stream = jax.tree.map(
        lambda *x: np.concatenate(x, axis=1), start_of(written[0].transitions, overlap), *new
    )
    goes_on = ~(stream.terminated | stream.truncated)[:, :-1]
    assert 0 < goes_on.mean() < 1
    np.testing.assert_array_equal(stream.obs[:, 1:][goes_on], stream.next_obs[:, :-1][goes_on])
    for number, block in enumerate(written):
        for got, steps in pairs(block.transitions, stream):
            assert got.shape[:2] == (num_envs, length)
            np.testing.assert_array_equal(got, steps[:, 4 * number : 4 * number + length])


def start_of(transitions, num):
    return jax.tree.map(lambda x: x[:, :num], transitions)


def test_an_update_takes_gradient_steps_one_after_the_other():
    """At α = 0 every row that is written has priority 1. θ⁻ is a copy at every sixth step."""
    fields = {"gradient_steps": 3, "target_network_frequency": 6}
    states = states_of(make(small(prioritized_replay_alpha=0.0, **fields)), 12)
    for update, state in enumerate(states):
        leaves = np.asarray(state.priorities.sum_tree[0])
        np.testing.assert_array_equal(leaves, np.arange(len(leaves)) < 25 + 5 * update)
        assert state.opt_state[0].count == 3 * update
        for target, params in pairs(state.target_params, states[update // 2 * 2].params):
            np.testing.assert_array_equal(target, params)


def test_each_environment_explores_by_its_own_epsilon():
    """ε = 1 in the first, 0 (.5^1000) in the last: one is random, the other is greedy."""
    fields = {"env_id": "CartPole-v1-positions", "num_steps": 50, "learning_starts": 1_000}
    fields |= {"total_timesteps": 5_000, "buffer_size": 2_000, "num_envs": 2}
    algorithm = make(small(epsilon=0.5, epsilon_power=1_000.0, **fields))
    state = jax.jit(algorithm.init)(jax.random.key(0))
    act = jax.jit(jax.vmap(jax.vmap(algorithm.act, (None, 0, 0, None)), (None, 0, 0, None)))
    memories, steps = state.pending
    greedy, _ = act(state.params, memories, steps.obs, jax.random.key(0))
    np.testing.assert_array_equal(greedy[:, 1], steps.action[:, 1])


# The whole.


def test_the_budget_counts_every_environment_step():
    check_budget(make(small(learning_starts=101)), 120 + 4 * 5, 1_000)


def visited_values(config, state, obs):
    """max Q of the greedy policy at the states it meets, by observation, averaged."""
    network = r2d2.make_recurrent_q_network(
        make_env(config.env_id, 1), config.hidden_sizes, config.memory_size, config.memory_steps
    )

    def value_of(hidden, inputs):
        q, _ = network.apply(state.params, hidden, inputs)
        return inverse_rescale(q.max(-1), config.rescale_eps)

    return values_met(make(config), config, state.params, value_of, len(obs))


def test_it_learns_the_values_and_best_actions_of_the_probes():
    fields = {"num_envs": 4, "num_steps": 8, "burn_in": 2, "n_step": 3, "gradient_steps": 6}
    fields |= {"total_timesteps": 10_000, "target_network_frequency": 20, "epsilon_power": 1.0}
    check_q_probe(r2d2, "TogetherVector-probe", visited_values, **fields)


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("burn_in", -1, "--burn-in"),
        ("prioritized_replay_eta", 1.5, "--prioritized-replay-eta"),
        ("rescale_eps", -1e-3, "--rescale-eps"),
        ("hidden_sizes", (), "--hidden-sizes"),
        ("total_timesteps", 1_200, "--total-timesteps"),
        ("epsilon_power", -1.0, "--epsilon-power"),
    ],
)
def test_nonsense_is_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        Config(**{field: value})
