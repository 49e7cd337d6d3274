"""maximum_entropy_irl.py: closed forms, finite differences, and the numbers of irl-maxent."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from algorithms.maximum_entropy_irl import (
    Config,
    action_values,
    gradient,
    log_likelihood,
    make,
    soft_policy,
    soft_values,
    state_visits,
)
from common.environments.gridworlds import ICY_GRID, move
from common.environments.mdp import MDP, sparse, tabulate
from common.environments.tabular import TABULAR, Tabular, make_mdp
from common.runner.pictures import draw_picture

LAKE = make_mdp("FrozenLake-tabular")
with jax.enable_x64(True):
    GARNET = jax.tree.map(np.asarray, make_mdp("Garnet-tabular", jax.random.key(5)))


def choice(reward: float) -> MDP:
    """One step to either of two terminal states; `reward` for the first."""
    ends = [(1.0, 1, reward)], [(1.0, 2, 0.0)]
    return tabulate(np.array([1, 0, 0]), np.array([False, True, True]), 2, lambda s, a: ends[a])


def test_one_choice_by_hand():
    """V = τ ln(e^(r/τ) + 1), and the better end with probability 1 / (1 + e^(-r/τ))."""
    mdp, reward = sparse(choice(0.0)), jnp.array([[0.5], [2.0], [0.0]])
    v = soft_values(mdp, reward, jnp.zeros(3), 0.5, 0.25, 2)
    q = 0.5 + 0.5 * np.array([2.0, 0.0])
    np.testing.assert_allclose(v, [0.25 * np.log(np.exp(q / 0.25).sum()), 2, 0], rtol=1e-6)
    policy = soft_policy(action_values(mdp, reward, v, 0.5), 0.25)
    np.testing.assert_allclose(policy[0], [1 / (1 + np.exp(-4)), 1 / (1 + np.exp(4))], rtol=1e-5)
    np.testing.assert_allclose(gradient(jnp.array([3.0]), jnp.array([1.0]), 0.5), [4.0])


def whole_run(config):
    """The last State, and metrics [T], of seed 0 in float64."""
    with jax.enable_x64(True):
        algorithm = make(config)
        steps = jnp.arange(algorithm.num_updates)
        run = jax.jit(lambda key: jax.lax.scan(algorithm.update, algorithm.init(key), steps))
        return jax.tree.map(np.asarray, run(jax.random.key(0)))


def test_an_expert_that_chooses_one_end_in_80_percent_has_ln_4_for_it(monkeypatch):
    entry = Tabular(lambda key: choice(np.log(4)), 10, gamma=1.0)
    monkeypatch.setitem(TABULAR, "Choice-tabular", entry)
    sizes = dict(num_iterations=200, num_sweeps=2, num_steps=3)
    state, metrics = whole_run(Config("Choice-tabular", **sizes, learning_rate=1, temperature=1))
    np.testing.assert_allclose(state.expert_visits, [1, 0.8, 0.2], rtol=1e-6)
    np.testing.assert_allclose(state.theta[1] - state.theta[2], 1.386294, atol=1e-6)
    np.testing.assert_allclose(state.params[0], [0.8, 0.2], rtol=1e-6)
    entropy = -0.8 * np.log(0.8) - 0.2 * np.log(0.2)
    np.testing.assert_allclose(metrics["log_likelihood"][-1], -entropy, rtol=1e-6)
    np.testing.assert_allclose(metrics["value"][-1], 0.8 * np.log(4), rtol=1e-6)


def soft_solution(mdp, reward, gamma, temperature):
    """V [S], π [S, A] and D [S] of a reward [S], by numpy and a linear solve."""
    P, terminal = np.asarray(mdp.P, float), np.asarray(mdp.terminal)
    v = np.zeros(len(P))
    for _ in range(1_000):
        q = (reward[:, None] + gamma * P @ v) / temperature
        top = q.max(axis=1)
        v = temperature * (top + np.log(np.exp(q - top[:, None]).sum(axis=1)))
        v = np.where(terminal, reward, v)
    policy = np.exp(q - top[:, None])
    policy /= policy.sum(axis=1, keepdims=True)
    flow = np.einsum("sa,sat->st", policy, P) * ~terminal[:, None]
    return v, policy, np.linalg.solve(np.eye(len(P)) - gamma * flow.T, np.asarray(mdp.start))


@functools.cache
def solve_in_jax():
    @functools.partial(jax.jit, static_argnums=4)
    def solve(mdp, reward, gamma, temperature, num_sweeps):
        zeros = jnp.zeros_like(mdp.start)
        v = soft_values(mdp, reward[:, None], zeros, gamma, temperature, num_sweeps)
        policy = soft_policy(action_values(mdp, reward[:, None], v, gamma), temperature)
        return v, policy, state_visits(mdp, policy, zeros, gamma, num_sweeps)

    return solve


@pytest.mark.parametrize("mdp", [GARNET, LAKE])
def test_values_policy_and_visits_solve_their_equations(mdp):
    """Terminal states have the reward of one arrival, and keep their mass."""
    reward = np.random.default_rng(0).normal(size=len(mdp.start))
    with jax.enable_x64(True):
        found = solve_in_jax()(sparse(mdp), reward, 0.9, 0.3, 400)
    for ours, exact in zip(found, soft_solution(mdp, reward, 0.9, 0.3), strict=True):
        ends = np.asarray(mdp.terminal) if exact.ndim == 2 else np.zeros(len(exact), bool)
        np.testing.assert_allclose(ours[~ends], exact[~ends], atol=1e-8)
    if mdp is GARNET:  # D sums to the horizon, not to 1
        np.testing.assert_allclose(np.asarray(found[2]).sum(), 10, atol=1e-8)


def test_as_the_temperature_falls_the_policy_becomes_optimal_without_overflow():
    reward = 1e3 * np.random.default_rng(0).normal(size=30)
    v = np.zeros(30)
    for _ in range(400):
        q = reward[:, None] + 0.9 * GARNET.P @ v
        v = q.max(axis=1)
    shares = []
    for temperature in (1e3, 1e1, 1e-3):
        soft, policy, _ = solve_in_jax()(sparse(GARNET), jnp.array(reward), 0.9, temperature, 400)
        assert np.isfinite(soft).all() and np.isfinite(policy).all()
        shares.append(np.asarray(policy)[np.arange(30), q.argmax(axis=1)].mean())
    assert shares[0] < 0.6 < shares[1] and shares[2] > 1 - 1e-6
    np.testing.assert_allclose(soft, v, rtol=1e-4)


def likelihood(mdp, features, theta, expert, temperature):
    """Σ_t γ^t ln π(a_t|s_t) of an expert with visits [S, A]."""
    _, policy, _ = soft_solution(mdp, features @ theta, 0.8, temperature)
    live = ~np.asarray(mdp.terminal)
    return np.sum((expert * np.log(policy))[live])


@pytest.mark.parametrize("mdp", [GARNET, LAKE])
def test_the_gradient_is_the_finite_difference_of_the_likelihood(mdp):
    rng, temperature = np.random.default_rng(1), 0.5
    features = rng.normal(size=(len(mdp.start), 3))
    _, chosen, visits = soft_solution(mdp, rng.normal(size=len(mdp.start)), 0.8, temperature)
    expert, theta = visits[:, None] * chosen, rng.normal(size=3)
    exact = likelihood(mdp, features, theta, expert, temperature)
    differences = [
        likelihood(mdp, features, theta + d, expert, temperature)
        - likelihood(mdp, features, theta - d, expert, temperature)
        for d in 1e-5 * np.eye(3)
    ]
    with jax.enable_x64(True):
        v, _, learner = solve_in_jax()(sparse(mdp), features @ theta, 0.8, temperature, 400)
        expert_features = visits @ features
        ascent = gradient(expert_features, learner @ features, temperature)
        found = log_likelihood(theta, expert_features, mdp.start, v, temperature)
    np.testing.assert_allclose(ascent, np.array(differences) / 2e-5, atol=1e-6)
    np.testing.assert_allclose(found, exact, atol=1e-8)


@functools.lru_cache(maxsize=1)
def garnet_run():
    fields = {"learning_rate": 1.0, "temperature": 0.5, "num_sweeps": 60, "gamma": 0.8}
    config = Config("Garnet-tabular", num_iterations=800, **fields)
    return config, whole_run(config)


def test_an_update_is_one_step_along_the_gradient():
    config, _ = garnet_run()
    with jax.enable_x64(True):
        algorithm = make(config)
        state = jax.jit(algorithm.init)(jax.random.key(0))
        after, metrics = jax.jit(algorithm.update)(state, 0)
        state, after = jax.tree.map(np.asarray, (state, after))
        mdp = make_mdp("Garnet-tabular", jax.random.split(jax.random.key(0))[0])
    mdp = jax.tree.map(np.asarray, mdp)
    reward = np.einsum("sat,sat->sa", mdp.P, mdp.R)
    v, uniform, visits = soft_solution(mdp, np.zeros(30), 0.8, 0.5)
    np.testing.assert_allclose(uniform, 0.25)
    np.testing.assert_allclose(after.params, uniform, atol=1e-6)
    np.testing.assert_allclose(after.theta, 1 / 0.5 * (state.expert_visits - visits), atol=1e-5)
    np.testing.assert_allclose(metrics["value"], visits @ reward.mean(axis=1), atol=1e-4)
    np.testing.assert_allclose(metrics["log_likelihood"], -mdp.start @ v / 0.5, rtol=1e-5)


def test_the_likelihood_rises_until_the_features_match():
    """With one feature for each state; sweeps that go on from the last update solve for θ."""
    _, (state, metrics) = garnet_run()
    assert (np.diff(metrics["log_likelihood"][5:]) >= -1e-9).all()
    assert metrics["feature_gap"][-1] < 1e-4 * metrics["feature_gap"][0]
    mdp = state.mdp
    P = np.zeros((30, 4, 30))
    np.add.at(P, (np.arange(30)[:, None], slice(None), mdp.successor), np.moveaxis(mdp.P, 1, 2))
    v, policy, visits = soft_solution(MDP(P, P, mdp.start, mdp.terminal), state.theta, 0.8, 0.5)
    np.testing.assert_allclose(state.v, v, atol=1e-4)
    np.testing.assert_allclose(state.params, policy, atol=1e-4)
    np.testing.assert_allclose(visits, state.expert_visits, atol=1e-4)


# irl-maxent 0.1.0 on its own example, run once with numpy 2: 200 trajectories of its generator with
# np.random.seed(0), 419 updates of `irl_causal` with eps_svf = 1e-10 and eps_lap = 1e-12.
VISITED = """277 153 122 210 42 106 149 256 480 170 10 22 45 197 187 4 9 23 77 200 2 7 20 67 200"""
REWARDS = """
0.003102 0.012854 0.029463 0.081904 0.047571 0.010375 0.028011 0.087455 0.44217 0.104323
0.019461 0.029261 0.047141 0.147476 0.184775 0.037099 0.048324 0.073809 0.140598 0.437869
0.050212 0.06419 0.100977 0.248527 1.0"""
UNIT_REWARD_VISITS = """
8.54463905 6.5446411 5.36282707 4.63556034 4.27192941 6.5446411 5.72646318 4.90829058
4.27194268 3.90832359 5.36282707 4.90829058 4.27195122 3.63563673 3.18115773 4.63556034
4.27194268 3.63563673 2.81759285 1.99963833 4.27192941 3.90832359 3.18115773 1.99963833 1.0"""
FINAL_VISITS = """
5.65877056 3.83850856 2.96087089 2.60394984 2.13498476 3.78852366 3.17384013 2.80715651
2.73253291 2.20016062 2.75403308 2.46285356 2.17878212 2.08649793 1.86785331 2.18259825
1.98701408 1.72556707 1.55437131 1.44443515 1.91963964 1.75016528 1.49227171 1.17616764 1.0"""


def numbers(text):
    return np.array(text.split(), float)


def icy_grid():
    """irl-maxent's grid for planning, and for counting visits.

    In its last cell the package's plans choose between an end, which is worth 0, and going on; here
    a fifth action leads from there to the state 25, and from elsewhere to 26, which is ruinous.
    """
    P = np.zeros((27, 5, 27))
    for state, action, direction in np.ndindex(25, 4, 4):
        step = move(ICY_GRID.layout, state, ICY_GRID.directions[direction])
        P[state, action, step] += 0.05 + 0.8 * (direction == action)
    P[:25, 4, 26] = 1
    P[24, 4] = np.eye(27)[25]
    P[25:, :, 25:] = np.eye(2)[:, None]
    start, ends = np.eye(27)[0], np.arange(27) >= 25
    plan = sparse(MDP(P, np.zeros_like(P), start, ends))
    return plan, plan._replace(terminal=jnp.arange(27) >= 24)


def icy_reward(theta):
    """So that stopping in the last cell is worth 0: r(24) + γ r(25) = 0."""
    return jnp.concatenate([theta, -theta[24:] / 0.7, jnp.array([-1e9])])


def test_visits_and_rewards_are_those_of_irl_maxent():
    with jax.enable_x64(True):
        plan, count = icy_grid()

        def visits_of(theta, v, visits, num_sweeps):
            reward = icy_reward(theta)[:, None]
            v = soft_values(plan, reward, v, 0.7, 1.0, num_sweeps)
            policy = soft_policy(action_values(plan, reward, v, 0.7), 1.0)
            return v, state_visits(count, policy, visits, 1.0, num_sweeps)

        def update(carry, step):
            theta, v, visits = carry
            v, visits = visits_of(theta, v, visits, 600)
            ascent = gradient(numbers(VISITED) / 200, visits[:25], 1.0)
            return (theta * jnp.exp(0.2 / (1 + step) * ascent), v, visits), None

        @jax.jit
        def learn(theta, zeros):
            first = visits_of(theta, zeros, zeros, 1_500)
            theta = jax.lax.scan(update, (theta, *first), jnp.arange(419))[0][0]
            last = visits_of(numbers(REWARDS), zeros, zeros, 1_500)
            return first[1], theta, last[1]

        first, theta, last = learn(jnp.ones(25), jnp.zeros(27))
    np.testing.assert_allclose(first[:25], numbers(UNIT_REWARD_VISITS), atol=1e-6)
    np.testing.assert_allclose(theta, numbers(REWARDS), atol=1e-3)
    np.testing.assert_allclose(last[:25], numbers(FINAL_VISITS), atol=2e-5)  # of rounded rewards


def test_the_picture_has_the_true_reward_and_the_one_that_was_found():
    state, _ = whole_run(Config("IcyGridWorld-tabular", num_iterations=3, num_steps=50))
    algorithm = make(Config("IcyGridWorld-tabular"))
    picture = algorithm.picture(state)
    true, found = map(np.asarray, picture["maps"])
    np.testing.assert_allclose(true.reshape(5, 5)[3:, 4], [0.25, 0])  # above the goal, and in it
    np.testing.assert_array_equal(found, state.theta)
    figure = Figure(layout="constrained")
    draw_picture(figure, "IcyGridWorld-tabular", picture)
    assert [axes.get_ylabel() for axes in figure.axes[2:]] == ["true reward", "reward found"]


def test_act_draws_from_the_policy_where_an_environment_can_be_played():
    assert make(Config()).act is None
    act = make(Config("IcyGridWorld-tabular")).act
    params = jnp.array([[0.0, 0.75, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0]])
    draws = jax.jit(jax.vmap(lambda key: act(params, 0, key)))
    actions = np.asarray(draws(jax.random.split(jax.random.key(0), 4_000)))
    shares = np.bincount(actions, minlength=4) / 4_000
    np.testing.assert_allclose(shares, [0, 0.75, 0.25, 0], atol=0.03)
