"""mpc.py: its equations by hand, candidates that end with the episode, and what the planners reach
where the best plan is known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import check_budget, states_of
from probes import best_mass_return

from algorithms.mpc import (
    Config,
    fit_elites,
    gaussian_plans,
    make,
    path_integral,
    shift,
    simulate,
    uniform_plans,
)
from common.envs import make_env, map_actions, scale_action

PLANNERS = ["cem", "random", "mppi"]
PLANS = jnp.array([[[1.0], [2.0]], [[3.0], [6.0]], [[5.0], [5.0]], [[9.0], [9.0]]])  # [K, H, A]
RETURNS = jnp.array([4.0, 2.0, 3.0, -1.0])


def test_elites_are_the_plans_with_the_highest_returns():
    mean, std = fit_elites(PLANS, RETURNS, 2)
    np.testing.assert_allclose(mean, [[3], [3.5]])
    np.testing.assert_allclose(std, [[2], [1.5]])


def test_path_integral_weighs_by_exponentials_of_the_return():
    weights = np.exp(np.array([4, 2, 3, -1]) / 2)
    expected = np.sum(weights[:, None, None] * np.asarray(PLANS), axis=0) / weights.sum()
    np.testing.assert_allclose(path_integral(PLANS, RETURNS, 2.0), expected, rtol=1e-6)
    np.testing.assert_allclose(path_integral(PLANS, RETURNS - 1e4, 0.01), PLANS[0], rtol=1e-6)
    np.testing.assert_allclose(path_integral(PLANS, RETURNS, 1e6), PLANS.mean(0), rtol=1e-4)


def test_a_plan_is_shifted_by_one_step():
    np.testing.assert_array_equal(
        shift(jnp.array([[1, 2], [3, 4], [5, 6]])), [[3, 4], [5, 6], [0] * 2]
    )


def test_plans_are_drawn_around_the_mean_which_is_one_of_them():
    mean, std = jnp.array([[0.5], [-0.9]]), jnp.array([[0.1], [1.0]])
    plans = np.asarray(gaussian_plans(jax.random.key(0), mean, std, 20_000))
    np.testing.assert_array_equal(plans[0], mean)
    np.testing.assert_allclose(plans[:, 0].mean(), 0.5, atol=0.01)
    np.testing.assert_allclose(plans[:, 0].std(), 0.1, atol=0.005)
    assert plans.min() == -1 and plans.max() == 1
    np.testing.assert_allclose(np.mean(plans[:, 1] == -1), 0.46, atol=0.02)  # P(z < -0.1)
    plans = np.asarray(uniform_plans(jax.random.key(0), mean, 20_000))
    np.testing.assert_array_equal(plans[0], mean)
    np.testing.assert_allclose(np.quantile(plans, [0.25, 0.5, 0.75]), [-0.5, 0, 0.5], atol=0.03)


def start_of(env_id, seed=0):
    """The environment for actions in [-1, 1], and the state of one copy of it, without its axis."""
    env = map_actions(make_env(env_id, 1), scale_action)
    return env, jax.tree.map(lambda x: x[0], env.reset(jax.random.key(seed)))


def test_the_return_of_a_plan_stops_where_the_mdp_ends():
    """Two steps from the start, whose rewards are -(a - 0.5)² and 1 - (a - 1.5)²; unit actions are
    scaled to [-1, 3]. What comes after belongs to the next episode."""
    env, state = start_of("Slope-probe")
    plan = jnp.array([0.0, -0.5, 0.3, 0.1])[:, None]  # a = 1, 0, ...
    total, obs = simulate(env, state, plan, jax.random.key(0), 0.9)
    np.testing.assert_allclose(total, -(0.5**2) + 0.9 * (1 - 1.5**2), rtol=1e-5)
    np.testing.assert_array_equal(obs[:2], np.eye(3)[[1, 2]])
    assert np.isnan(obs[2:]).all()
    short, _ = simulate(env, state, plan[:1], jax.random.key(0), 0.9)
    np.testing.assert_allclose(short, -(0.5**2), rtol=1e-6)


@pytest.mark.parametrize("played", [0, 5])
def test_the_return_of_a_plan_stops_at_the_time_limit(played):
    """In one of the starts each of 8 steps pays 1."""
    env = map_actions(make_env("Continuous-probe", 1), scale_action)
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    state = next(
        state
        for state in (reset(jax.random.key(seed)) for seed in range(50))
        if state.obs[0].argmax() == 6
    )
    for t in range(played):
        state, _ = step(state, jnp.zeros((1, 1)), jax.random.key(t))
    state = jax.tree.map(lambda x: x[0], state)
    total, obs = simulate(env, state, jnp.zeros((12, 1)), jax.random.key(0), 0.5)
    np.testing.assert_allclose(total, sum(0.5**i for i in range(8 - played)), rtol=1e-6)
    assert np.isnan(obs).any(1).sum() == 12 - (8 - played)


def slope(planner, **fields):
    config = {"total_timesteps": 80, "num_envs": 8, "horizon": 3, "temperature": 0.01}
    return make(Config("Slope-probe", planner=planner, **config | fields))


@pytest.mark.parametrize("planner, loss", [("cem", 0.001), ("random", 0.05), ("mppi", 0.02)])
def test_planners_agree_with_a_grid(planner, loss):
    """The best actions of the two steps, 0.5 and 1.5, are -0.25 and 0.25 of [-1, 1]. The first
    State after a step holds the rest of the plan; after an episode nothing is left of it."""
    env, state = start_of("Slope-probe")
    grid = jnp.linspace(-1, 1, 41)
    plans = jnp.stack(jnp.meshgrid(grid, grid, indexing="ij"), axis=-1).reshape(-1, 2, 1)
    simulated = partial(simulate, env, state, key=jax.random.key(0), gamma=1.0)
    returns = jax.vmap(lambda plan: simulated(plan=plan)[0])(plans)
    best = plans[returns.argmax()]
    np.testing.assert_allclose(best[:, 0], [-0.25, 0.25], atol=1e-6)

    algorithm = slope(planner)
    first, planned, over = states_of(algorithm, 2)
    assert not first.params.any()
    assert planned.params.shape == (8, 3, 1) and not planned.params[:, -1].any()
    assert (
        np.mean(4 * np.square(planned.params[:, 0, 0] - best[1, 0])) < loss
    )  # actions are twice it
    assert not over.params.any()
    assert (over.env.episode.total >= returns.max() - 5 * loss).all()
    assert over.env.episode.total.mean() >= returns.max() - 2 * loss
    _, metrics = algorithm.update(first, jnp.int32(0))
    assert returns.max() - 2 * loss <= metrics["value"] <= returns.max()
    assert jnp.isnan(metrics["episode_return"])


@pytest.fixture(scope="module")
def linear_quadratic():
    """The returns of 4 episodes that each planner plans to their ends, and the best returns."""

    def play(planner):
        fields = {"num_samples": 512, "num_elites": 32, "num_rounds": 10, "horizon": 20}
        algorithm = make(
            Config("Mass-linear", 80, 4, planner, init_std=0.2, temperature=0.02, **fields)
        )
        state = jax.jit(algorithm.init)(jax.random.key(0))
        steps = jnp.arange(algorithm.num_updates)
        after, _ = jax.lax.scan(algorithm.update, state, steps)
        return state.env.obs, after.env.episode.total

    played = {planner: jax.jit(partial(play, planner))() for planner in PLANNERS}
    best = best_mass_return(played["cem"][0])
    return {planner: np.asarray(returns) for planner, (_, returns) in played.items()}, best


def test_on_a_linear_system_with_quadratic_costs_plans_cost_what_lqr_does(linear_quadratic):
    """To 1 % with cem; the σ of mppi does not shrink, so that noise stays in its plans."""
    returns, best = linear_quadratic
    assert best.min() < -2 and (best > -20).all()
    for planner, part in [("cem", 0.01), ("mppi", 0.15)]:
        assert (returns[planner] <= best * (1 - 1e-4)).all()
        assert returns[planner].sum() >= best.sum() * (1 + part), planner


def test_random_shooting_is_behind_with_as_many_simulated_steps(linear_quadratic):
    returns, best = linear_quadratic
    assert 1.1 * best.sum() > returns["random"].sum() > 3 * best.sum()


def test_the_budget_counts_every_environment_step():
    check_budget(slope("cem"), 0, 80)


def test_discrete_actions_are_refused():
    with pytest.raises(ValueError, match="CartPole-v1 has discrete actions"):
        make(Config("CartPole-v1"))


def test_the_picture_has_what_was_planned_beside_what_came():
    algorithm = make(Config("Mass-linear", 40, 2, num_samples=16, horizon=6))
    state = states_of(algorithm, 1)[-1]
    picture = algorithm.picture(state)
    assert picture["names"] == ["obs[0]", "obs[1]"]
    realised, planned, start = picture["realised"], picture["planned"], picture["start"]
    assert realised.shape == (20, 2) and planned.shape == (4, 7, 2)
    np.testing.assert_array_equal(realised[0], state.env.obs[0])
    assert start.tolist() == [0, 5, 10, 15]
    for t, plan in zip(start, planned, strict=True):  # begins where the state was
        np.testing.assert_array_equal(plan[0], realised[t])
