"""option_critic.py: its equations by hand and by linear solves, its updates step by step, what it
is with one option or with options of one step, durations, the evaluation policy, the probes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import check_table_probe

from algorithms import option_critic
from algorithms.option_critic import (
    Config,
    Params,
    make,
    mean_value,
    option_value,
    policy_gradient,
    td_error,
    termination_gradient,
    value_on_arrival,
)
from common.environments.mdp import policy_values
from common.environments.tabular import TABULAR, make_mdp

GAMMA = 0.9
TINY = 1e-30  # a learning rate that changes nothing


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_equations_by_hand():
    assert option_value(jnp.array([2.0, 4.0]), jnp.array([0.25, 0.75])) == 3.5
    assert mean_value(jnp.array([1.0, 2.0, 6.0]), 0.5) == 0.5 * 6 + 0.5 * 3
    assert value_on_arrival(0.25, 2.0, 6.0) == 3.0
    assert termination_gradient(0.5, 2.0, 1.0) == -0.75
    gradient = policy_gradient(jnp.array([0.25, 0.75]), 1, 2.0, 0.5)
    np.testing.assert_array_equal(gradient, [-1.0, 1.0])


@pytest.mark.parametrize("terminated", [False, True])
def test_td_error_bootstraps_unless_terminated(terminated):
    error = td_error(3.0, 2.0, 4.0, jnp.array(terminated), 0.5)
    assert error == 2 + 0.5 * 4 * (not terminated) - 3


# Options that are fixed: exact values, and the gradients of the value of the start.

NUM_OPTIONS = 3


def solve(mdp, theta, vartheta, policy_over_options, temperature):
    """Q_Ω [S, Ω] and Q_U [S, Ω, A] by one linear system over pairs of a state and an option; the
    chain of these pairs [S Ω, S Ω] without its discount, and π, β."""
    pi, beta = softmax(theta / temperature), sigmoid(vartheta)
    P = mdp.P * ~mdp.terminal  # what follows the end is worth nothing
    num_states, num = vartheta.shape
    stays = np.eye(num)[None] * (1 - beta)[:, :, None]  # [S', Ω, Ω']
    arrival = stays + beta[:, :, None] * policy_over_options[:, None]
    pairs = num_states * num
    chain = np.einsum("swa,sat,twv->swtv", pi, P, arrival).reshape(pairs, pairs)
    reward = np.einsum("sat,sat->sa", mdp.P, mdp.R)
    q_omega = np.linalg.solve(
        np.eye(pairs) - GAMMA * chain, np.einsum("swa,sa->sw", pi, reward).ravel()
    ).reshape(num_states, num)
    u = np.einsum("twv,tv->tw", arrival, q_omega)
    q_u = reward[:, None] + GAMMA * np.einsum("sat,tw->swa", P, u)
    return q_omega, q_u, chain, pi, beta


def start_value(mdp, theta, vartheta, policy_over_options, temperature):
    q_omega = solve(mdp, theta, vartheta, policy_over_options, temperature)[0]
    return mdp.start @ (policy_over_options * q_omega).sum(-1)


def small_mdp(rng, num_states=4, num_actions=2):
    """A random MDP whose last state is terminal."""
    mdp = make_mdp("GridWorld-tabular")
    P = rng.dirichlet(np.ones(num_states), (num_states, num_actions))
    terminal = np.arange(num_states) == num_states - 1
    P[-1] = np.eye(num_states)[-1]
    R = rng.normal(size=P.shape) * ~terminal[:, None, None]
    return mdp._replace(P=P, R=R, start=~terminal / (num_states - 1), terminal=terminal)


@pytest.fixture(scope="module")
def fixed():
    """A small MDP and fixed options in it: MDP, θ, ϑ, π_Ω and T."""
    rng = np.random.default_rng(0)
    mdp = small_mdp(rng)
    theta = rng.normal(size=(4, NUM_OPTIONS, 2))
    policy_over_options = rng.dirichlet(np.ones(NUM_OPTIONS), 4)
    return mdp, theta, rng.normal(size=(4, NUM_OPTIONS)), policy_over_options, 0.7


def test_exact_values_solve_equations_1_to_3(fixed):
    mdp, _, _, policy_over_options, _ = fixed
    q_omega, q_u, _, pi, beta = solve(*fixed)
    with jax.enable_x64(True):
        np.testing.assert_allclose(option_value(q_u, pi), q_omega, rtol=1e-12)
        value = (policy_over_options * q_omega).sum(-1)
        u = np.asarray(value_on_arrival(beta, q_omega, value[:, None]))  # [S', Ω]
        errors = td_error(
            q_u[:, :, :, None], mdp.R[:, None], u.T[None, :, None], 1.0 * mdp.terminal, GAMMA
        )
        np.testing.assert_allclose(np.einsum("sat,swat->swa", mdp.P, errors), 0, atol=1e-12)


def occupancy(mdp, chain, policy_over_options):
    """μ_Ω: the discounted visits to pairs of a state and an option, [S, Ω]."""
    first = (mdp.start[:, None] * policy_over_options).ravel()
    return np.linalg.solve(np.eye(len(chain)) - GAMMA * chain.T, first).reshape(-1, NUM_OPTIONS)


def numerical_gradient(value, x, size=1e-5):
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = size
        gradient[i] = (value(x + step) - value(x - step)) / (2 * size)
    return gradient


def test_the_mean_policy_gradient_is_that_of_the_start_value(fixed):
    """Theorem 1, with the baseline, which must not change the mean."""
    mdp, theta, vartheta, policy_over_options, temperature = fixed
    q_omega, q_u, chain, pi, _ = solve(*fixed)
    visits = occupancy(mdp, chain, policy_over_options)
    expected = numerical_gradient(lambda x: start_value(mdp, x, *fixed[2:]), theta)
    advantage = q_u - q_omega[..., None]
    gradient = np.zeros_like(theta)
    with jax.enable_x64(True):
        for s, w, a in np.ndindex(theta.shape):
            change = policy_gradient(pi[s, w], a, advantage[s, w, a], temperature)
            gradient[s, w] += visits[s, w] * pi[s, w, a] * np.asarray(change)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-9)
    assert np.abs(gradient).max() > 0.05


def test_the_mean_termination_gradient_is_that_of_the_start_value(fixed):
    """Theorem 2: over the states in which options arrive, without terminal ones."""
    mdp, theta, vartheta, policy_over_options, temperature = fixed
    q_omega, _, chain, pi, beta = solve(*fixed)
    visits = occupancy(mdp, chain, policy_over_options)
    arrivals = GAMMA * np.einsum("sw,swa,sat->tw", visits, pi, mdp.P * ~mdp.terminal)
    value = lambda x: start_value(mdp, theta, x, policy_over_options, temperature)
    advantage = q_omega - (policy_over_options * q_omega).sum(-1, keepdims=True)
    with jax.enable_x64(True):
        gradient = arrivals * np.asarray(termination_gradient(beta, advantage, 0.0))
    np.testing.assert_allclose(gradient, numerical_gradient(value, vartheta), rtol=1e-6, atol=1e-9)
    assert np.abs(gradient).max() > 0.01


def test_options_of_one_step_are_worth_what_their_mixture_is(fixed):
    """With β = 1 the policy is Σ_ω π_Ω π_ω, without memory."""
    mdp, theta, vartheta, policy_over_options, temperature = fixed
    q_omega, _, _, pi, _ = solve(mdp, theta, 0 * vartheta + 40, policy_over_options, temperature)
    mixture = np.einsum("sw,swa->sa", policy_over_options, pi)
    with jax.enable_x64(True):
        expected = np.asarray(policy_values(mdp, mixture, GAMMA))
    np.testing.assert_allclose((policy_over_options * q_omega).sum(-1), expected, atol=1e-12)


def test_the_critic_learns_the_values_of_fixed_options():
    """In a deterministic grid world, whose target has no noise: by linear solves, with the policy
    over options that is greedy in their solution."""
    config = Config(
        env_id="GridWorld-tabular",
        total_timesteps=30_000,
        steps_per_update=30_000,
        num_options=NUM_OPTIONS,
        learning_rate=0.9,
        policy_learning_rate=TINY,
        termination_learning_rate=TINY,
        temperature=1.0,
        gamma=GAMMA,
        epsilon=1.0,
    )
    rng = np.random.default_rng(1)
    theta, vartheta = rng.normal(size=(16, NUM_OPTIONS, 4)), rng.normal(size=(16, NUM_OPTIONS))
    algorithm, mdp = make(config), make_mdp("GridWorld-tabular")
    state = algorithm.init(jax.random.key(0))
    params = state.params._replace(preferences=jnp.array(theta), terminations=jnp.array(vartheta))
    state, _ = jax.jit(algorithm.update)(state._replace(params=params), jnp.int32(0))

    greedy = np.zeros(16, int)
    for _ in range(20):
        q_omega, q_u, *_ = solve(mdp, theta, vartheta, np.eye(NUM_OPTIONS)[greedy], 1.0)
        greedy = q_omega.argmax(-1)
    live = ~mdp.terminal
    np.testing.assert_allclose(state.params.q[live], q_u[live], atol=1e-4)
    assert np.ptp(q_omega[live], axis=-1).min() > 1e-3  # else the options would not matter


# Updates of one step each.


RATES = {"learning_rate": 0.4, "policy_learning_rate": 0.3, "termination_learning_rate": 2.0}
GRID, EPSILON, COST, TEMPERATURE = make_mdp("GridWorld-tabular"), 0.3, 0.05, 0.7


@functools.cache
def one_step_algorithm(num_options):
    """`init` and `update` of one step, in a grid world with a limit of five steps; a step against
    its edge leads nowhere."""
    fields = {"gamma": GAMMA, "temperature": TEMPERATURE, "epsilon": EPSILON}
    fields |= RATES | {"deliberation_cost": COST, "num_options": num_options}
    with pytest.MonkeyPatch.context() as patch:
        cut = TABULAR["GridWorld-tabular"]._replace(max_steps=5)
        patch.setitem(TABULAR, "Cut-tabular", cut)
        algorithm = make(
            Config(env_id="Cut-tabular", total_timesteps=1, steps_per_update=1, **fields)
        )
    return jax.jit(algorithm.init), jax.jit(algorithm.update)


def one_step_updates(num_options, vartheta=None):
    """The States before and after each of 120 updates, and what happened: s, ω, a, s', r and the
    flags of the end; with ϑ as given, or at random."""
    init, update = one_step_algorithm(num_options)
    state, time, steps = init(jax.random.key(0)), 0, []
    leaves = [
        0.4 * jax.random.normal(key, x.shape)
        for key, x in zip(jax.random.split(jax.random.key(1), 3), state.params, strict=True)
    ]
    params = Params(*leaves)
    if vartheta is not None:
        params = params._replace(terminations=jnp.full(params.terminations.shape, vartheta))
    state = state._replace(params=params)
    for step in range(120):
        before, (state, _) = state, update(state, jnp.int32(step))
        (taken,) = np.argwhere(np.asarray(before.params.q != state.params.q))
        s, option, action = map(int, taken)
        assert (s, option) == (before.env.obs[0], before.option)
        next_s = int(GRID.P[s, action].argmax())
        flags = bool(GRID.terminal[next_s]), time == 4
        time = 0 if any(flags) else time + 1
        steps.append((before, state, (s, option, action, next_s, GRID.R[s, action, next_s], flags)))
    assert len({what[-1] for *_, what in steps}) == 4  # every kind of end
    assert any(s == next_s for *_, (s, _, _, next_s, *_) in steps)
    return steps


def float64(params):
    return [np.array(x, float) for x in params]


def algorithm_1(params, what):
    """One step of algorithm 1 of the paper, in place, by loops over options and actions."""
    (q, theta, vartheta), (s, w, a, t, reward, (terminated, _)) = params, what
    num_options, num_actions = q.shape[1:]
    rate, policy_rate, termination_rate = RATES.values()

    def values(state):
        pi = [softmax(theta[state, v] / TEMPERATURE) for v in range(num_options)]
        return [sum(pi[v][b] * q[state, v, b] for b in range(num_actions)) for v in range(len(pi))]

    beta, target = sigmoid(vartheta[t, w]), reward
    if not terminated:
        target += GAMMA * ((1 - beta) * values(t)[w] + beta * max(values(t)))
    q[s, w, a] += rate * (target - q[s, w, a])
    arrived, baseline, pi = values(t), values(s)[w], softmax(theta[s, w] / TEMPERATURE)
    for b in range(num_actions):
        score = ((b == a) - pi[b]) / TEMPERATURE
        theta[s, w, b] += policy_rate * score * (q[s, w, a] - baseline)
    if not terminated:
        mean = (1 - EPSILON) * max(arrived) + EPSILON * sum(arrived) / num_options
        slope = beta * (1 - beta)
        vartheta[t, w] -= termination_rate * slope * (arrived[w] - mean + COST)


def test_every_update_is_that_of_algorithm_1():
    options = []
    for before, after, what in one_step_updates(3):
        expected = float64(before.params)
        algorithm_1(expected, what)
        for got, wanted in zip(after.params, expected, strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-6)
        went_on = after.duration > 0
        if any(what[-1]):
            assert not went_on
        if went_on:
            assert after.option == before.option and after.duration == before.duration + 1
        options.append((bool(went_on), int(after.option)))
    assert len(set(options)) == 6  # every option went on, and every one was chosen


def actor_critic(q, theta, what):
    """A tabular actor-critic with the critic of Expected SARSA, in place; q and θ are [S, A]."""
    s, a, t, reward, (terminated, _) = what
    rate, policy_rate, _ = RATES.values()
    next_value = softmax(theta[t] / TEMPERATURE) @ q[t]
    q[s, a] += rate * (reward + GAMMA * (not terminated) * next_value - q[s, a])
    pi = softmax(theta[s] / TEMPERATURE)
    score = (np.eye(len(pi))[a] - pi) / TEMPERATURE
    theta[s] += policy_rate * score * (q[s, a] - pi @ q[s])


def test_one_option_is_an_actor_critic():
    """Whether it stops does not matter, to the bit."""
    endings = {}
    for vartheta in (-40.0, 40.0):
        for before, after, what in one_step_updates(1, vartheta):
            q, theta = (x[:, 0] for x in float64(before.params)[:2])
            actor_critic(q, theta, (what[0], *what[2:]))
            np.testing.assert_allclose(after.params.q[:, 0], q, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(after.params.preferences[:, 0], theta, rtol=1e-4, atol=1e-6)
        endings[vartheta] = after
    first, second = endings.values()
    np.testing.assert_array_equal(first.params.q, second.params.q)
    np.testing.assert_array_equal(first.params.preferences, second.params.preferences)
    np.testing.assert_array_equal(first.env.obs, second.env.obs)


def test_options_of_one_step_are_an_actor_critic_over_what_they_do():
    """With β = 1, its actions are pairs of an option and an action: the greedy policy over options
    times the option's own is that of the target, and θ moves within the option that was taken."""
    options = set()
    for before, after, what in one_step_updates(3, 40.0):
        q, theta, _ = float64(before.params)
        s, w, a, t, reward, (terminated, _) = what
        pi = softmax(theta / TEMPERATURE)
        best = (pi[t] * q[t]).sum(-1).argmax()
        pairs = (np.eye(3)[best][:, None] * pi[t]).ravel()  # π(ω, a | s')
        target = reward + GAMMA * (not terminated) * pairs @ q[t].ravel()
        q[s, w, a] += RATES["learning_rate"] * (target - q[s, w, a])
        score = (np.eye(4)[a] - pi[s, w]) / TEMPERATURE
        theta[s, w] += RATES["policy_learning_rate"] * score * (q[s, w, a] - pi[s, w] @ q[s, w])
        np.testing.assert_allclose(after.params.q, q, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(after.params.preferences, theta, rtol=1e-4, atol=1e-6)
        assert after.duration == 0
        options.add(w)
    assert options == {0, 1, 2}


# Durations, and the policy that is evaluated.


def test_durations_of_options_follow_the_geometric_law(monkeypatch):
    """P(n steps) = (1 - β)ⁿ⁻¹ β where no episode ends, whatever the options do."""
    endless = TABULAR["GridWorld5x5-tabular"]._replace(max_steps=10**6)
    monkeypatch.setitem(TABULAR, "Endless-tabular", endless)
    fields = {"policy_learning_rate": TINY, "termination_learning_rate": TINY, "epsilon": 1.0}
    algorithm = make(
        Config(env_id="Endless-tabular", total_timesteps=1, steps_per_update=1, **fields)
    )
    beta, num_steps = 0.3, 20_000
    state = algorithm.init(jax.random.key(0))
    terminations = jnp.full(state.params.terminations.shape, np.log(beta / (1 - beta)))
    state = state._replace(params=state.params._replace(terminations=terminations))

    def step(state, i):
        state, metrics = algorithm.update(state, i)
        return state, (metrics["option_duration"], state.option)

    _, (durations, options) = jax.jit(
        lambda state: jax.lax.scan(step, state, jnp.arange(num_steps))
    )(state)
    durations = np.asarray(durations)
    ended = ~np.isnan(durations)
    assert durations[ended].sum() == np.flatnonzero(ended)[-1] + 1  # every step counts once
    num = ended.sum()
    assert abs(durations[ended].mean() - 1 / beta) < 4 * np.sqrt(1 - beta) / beta / np.sqrt(num)
    for n in range(1, 6):
        law = (1 - beta) ** (n - 1) * beta
        share = np.mean(durations[ended] == n)
        assert abs(share - law) < 4 * np.sqrt(law * (1 - law) / num), n
    changed = np.asarray(options)[1:] != np.asarray(options)[:-1]
    assert not changed[~ended[1:]].any()
    assert abs(changed[ended[1:]].mean() - 3 / 4) < 0.03  # with ε = 1 one of four options


def test_options_that_never_stop_last_as_long_as_episodes():
    """The metrics of such an update, and the share of an option that is always the best."""
    fields = {"total_timesteps": 400, "steps_per_update": 400, "num_options": 3, "epsilon": 0.0}
    algorithm = make(Config(env_id="RandomWalk5-tabular", **fields))
    state, update = algorithm.init(jax.random.key(3)), jax.jit(algorithm.update)
    never = state.params._replace(terminations=jnp.full((7, 3), -40.0))
    _, metrics = update(state._replace(params=never), jnp.int32(0))
    assert metrics["episodes"] > 10
    assert metrics["option_duration"] == metrics["episode_length"]
    best = never._replace(q=jnp.zeros((7, 3, 2)).at[:, 2].set(50.0))
    _, metrics = update(state._replace(params=best, option=jnp.int32(2)), jnp.int32(0))
    assert metrics["largest_share"] == 1


def test_the_evaluated_policy_keeps_its_option_until_it_stops():
    algorithm = make(Config(env_id="RandomWalk5-tabular", num_options=2))
    shape = (7, 2, 2)
    q = jnp.zeros(shape).at[:, 0].set(1.0).at[3, 1].set(2.0)  # option 1 is better in state 3 alone
    preferences = jnp.zeros(shape).at[:, 0, 0].set(1.0).at[:, 1, 1].set(1.0)
    act = jax.jit(jax.vmap(algorithm.act, (None, None, None, 0)))
    keys = jax.random.split(jax.random.key(0), 2_000)

    def chosen(beta, memory, obs):
        """The options and the actions of many keys."""
        terminations = jnp.full((7, 2), np.log(beta / (1 - beta)))
        params = Params(q, preferences, terminations)
        action, option = act(params, jnp.array(memory), jnp.int32(obs), keys)
        np.testing.assert_array_equal(action, option)  # option i takes action i
        return np.asarray(option)

    start = int(algorithm.init_memory())
    assert (chosen(1e-9, start, 2) == 0).all() and (chosen(1e-9, start, 3) == 1).all()
    assert (chosen(1e-9, 0, 3) == 0).all() and (chosen(1e-9, 1, 2) == 1).all()
    assert (chosen(1 - 1e-7, 0, 3) == 1).all()
    assert abs(chosen(0.3, 0, 3).mean() - 0.3) < 0.05  # it stops with probability β


@pytest.mark.parametrize("name", ["Together-probe", "ResetTrap-probe"])
def test_it_learns_the_values_and_best_actions_of_the_probes(name):
    temperature = Config().temperature
    check_table_probe(
        option_critic,
        name,
        lambda params: np.sum(softmax(np.asarray(params.preferences) / temperature) * params.q, -1),
        policy_learning_rate=0.25,
    )
