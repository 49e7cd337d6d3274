"""pets.py: its equations by hand, what is learned of a linear system, and plans made with it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import check_budget
from probes import MASS, best_mass_return
from scipy.stats import norm

from algorithms.pets import (
    Config,
    Member,
    Model,
    Scale,
    cross_entropy_method,
    gaussian,
    make,
    mean_and_std,
    negative_log_likelihood,
    trajectory_sampling,
)
from common.envs import make_env
from common.networks import mlp
from common.runner.evaluation import evaluate


def test_negative_log_likelihood_by_hand_and_by_scipy():
    mean, log_var, y = jnp.array([1.0, 2.0]), jnp.log(jnp.array([1.0, 4.0])), jnp.array([0.0, 5.0])
    value = negative_log_likelihood(mean, log_var, y)
    np.testing.assert_allclose(value, 1 + 9 / 4 + np.log(4), rtol=1e-6)
    densities = norm.logpdf(y, mean, jnp.exp(log_var / 2))
    np.testing.assert_allclose(value, -2 * densities.sum() - 2 * np.log(2 * np.pi), rtol=1e-6)


def test_the_variance_stays_between_its_bounds():
    """One linear layer: its first half is the mean, its second the raw log σ²."""
    network = mlp([1, 2])
    member = lambda raw: Member(
        layers=[(jnp.zeros((1, 2)), jnp.array([7.0, raw]))],
        min_log_var=jnp.full(1, -10),
        max_log_var=jnp.ones(1),
    )
    values = [gaussian(network, member(raw), jnp.zeros(1)) for raw in (-1e3, -4.0, 1e3)]
    assert all(mean == 7 for mean, _ in values)
    np.testing.assert_allclose([x[0] for _, x in values], [-10, -4, 1], atol=0.01)


def test_scales_are_of_the_rows_that_are_filled():
    x = np.random.default_rng(0).normal(3, 2, (50, 3)).astype(np.float32)
    x[:, 1] = 4
    mean, std = mean_and_std(jnp.asarray(x), 20)
    np.testing.assert_allclose(mean, x[:20].mean(0), rtol=1e-5)
    np.testing.assert_allclose(std, [x[:20, 0].std(), 1, x[:20, 2].std()], rtol=1e-5)


UNIT = Scale(jnp.zeros(1), jnp.ones(1))


def sampled(predict, members, num_particles=1, plan=((0.0,),), x=UNIT, y=UNIT, seed=0):
    """From s = 2, observed as a vector of one number."""
    model = Model(Member(None, jnp.asarray(members), None), x, y)
    predict_one = lambda member, x: predict(member.min_log_var, x)
    key = jax.random.key(seed)
    return trajectory_sampling(
        predict_one, key, model, jnp.full(1, 2.0), jnp.array(plan), num_particles
    )


def test_particles_follow_the_plan_and_the_scales():
    """One network without noise, y = (3 a', s') with s' = (s - 1) / 2 and a' = (a - 0.5) / 4, and
    outcomes of mean (10, 100) and standard deviation (2, 3)."""

    def predict(_, x):
        mean = jnp.stack([3 * x[:, 1], x[:, 0]], axis=-1)
        return mean, jnp.full_like(mean, -jnp.inf)

    scales = {
        "x": Scale(jnp.array([1, 0.5]), jnp.array([2.0, 4])),
        "y": Scale(jnp.array([10.0, 100]), jnp.array([2.0, 3])),
    }
    value, particles = sampled(predict, [0.0], 2, [[0.5], [4.5], [8.5]], **scales)
    places = [2, 2 + 10, 12 + 16, 28 + 22]
    np.testing.assert_allclose(particles[..., 0], np.repeat(places[1:], 2).reshape(3, 2))
    np.testing.assert_allclose(value, sum(100 + 3 * (s - 1) / 2 for s in places[:3]), rtol=1e-6)


def test_at_each_step_a_particle_meets_any_network():
    """Networks that add 1, 10 and 100: each moves as many particles, and over two steps all nine
    sequences of them occur equally often. One that stays with its network would meet three."""

    def predict(member, x):
        mean = jnp.stack([jnp.full(len(x), member), jnp.full(len(x), member)], axis=-1)
        return mean, jnp.full_like(mean, -jnp.inf)

    value, particles = sampled(predict, [1.0, 10.0, 100.0], 900, [[0.0], [0.0]])
    np.testing.assert_allclose(value, 2 * 37, rtol=1e-5)
    sums, counts = np.unique(np.round(particles[..., 0] - 2), return_counts=True)
    first, second = (np.unique(np.round(x[:, 0] - 2), return_counts=True) for x in particles)
    assert list(first[0]) == [1, 10, 100] and list(first[1]) == [900] * 3
    assert list(second[0]) == [2, 11, 20, 101, 110, 200]
    np.testing.assert_allclose(second[1], [300, 600, 300, 600, 600, 300], rtol=0.15)


def test_particles_spread_as_the_networks_say():
    """σ = 0.5 at each of 4 steps, for the place and the reward."""

    def predict(_, x):
        mean = jnp.zeros((len(x), 2))
        return mean, jnp.full_like(mean, np.log(0.25))

    value, particles = sampled(predict, [0.0, 1.0], 5_000, np.zeros((4, 1)))
    spread = np.asarray(particles)[..., 0].std(1)
    np.testing.assert_allclose(spread, 0.5 * np.sqrt([1, 2, 3, 4]), rtol=0.03)
    assert abs(value) < 5 * 0.5 * np.sqrt(4 / 10_000)


def test_the_search_agrees_with_a_grid():
    best = jnp.array([[0.3], [-0.7], [2.0]])  # the last one beyond the bounds
    value = lambda plan, key: -jnp.sum(jnp.square(plan - best)) + plan[0, 0] * plan[1, 0]
    grid = jnp.stack(jnp.meshgrid(*[jnp.linspace(-1, 1, 41)] * 3), axis=-1).reshape(-1, 3, 1)
    expected = grid[jax.vmap(value, (0, None))(grid, None).argmax()]
    start = jnp.zeros((3, 1)), jnp.full((3, 1), 0.5)
    found = cross_entropy_method(jax.random.key(0), value, start, 200, 10, 10)
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_a_round_of_the_search_is_the_mean_of_the_elites():
    """Among the plans is the one it began with; and the noise of a round is common to them."""
    asked = []

    def value(plan, key):
        asked.append(key)
        return -jnp.abs(plan[0, 0] - 0.25)

    mean, std = jnp.full((2, 1), 0.25), jnp.full((2, 1), 0.5)
    found = cross_entropy_method(jax.random.key(0), value, (mean, std), 8, 1, 3)
    np.testing.assert_array_equal(found, mean)
    assert asked[0].shape == ()


LINEAR = {
    "env_id": "Mass-linear",
    "total_timesteps": 200,
    "steps_per_fit": 20,
    "hidden_sizes": (32,),
    "gradient_steps": 300,
    "horizon": 10,
    "num_samples": 64,
    "num_elites": 6,
    "num_cem_rounds": 4,
    "init_std": 0.2,
}


@pytest.fixture(scope="module")
def linear():
    """States and metrics of seed 0 over 9 rounds after the random one."""
    algorithm = make(Config(**LINEAR))
    update = jax.jit(algorithm.update)
    states, metrics = [jax.jit(algorithm.init)(jax.random.key(0))], []
    for step in range(algorithm.num_updates):
        state, now = update(states[-1], jnp.int32(step))
        states.append(state)
        metrics.append(now)
    return algorithm, states, {name: np.array([m[name] for m in metrics]) for name in metrics[0]}


def test_data_are_the_transitions_before_any_reset(linear):
    """s' - s and r of every row are those of the system, also on the last steps of episodes."""
    for number, state in enumerate(linear[1], start=1):
        x, y = (np.asarray(rows, np.float64) for rows in state.data)
        assert (x[: 20 * number] != 0).any(1).all() and not x[20 * number :].any()
        x, y = x[: 20 * number], y[: 20 * number]
        action = 5 * x[:, 2:]  # the data's are in [-1, 1]
        change = x[:, :2] @ MASS.A.T + action @ MASS.B.T - x[:, :2]
        np.testing.assert_allclose(y[:, :2], change, atol=1e-5)
        cost = np.square(x[:, 0]) + 0.1 * np.square(x[:, 1]) + 0.1 * np.square(action[:, 0])
        np.testing.assert_allclose(y[:, 2], -cost, atol=1e-4)
    assert np.abs(x[:20, 2]).mean() > 0.35  # at random: 0.5


def test_networks_differ_and_scales_are_those_of_the_data(linear):
    _, states, _ = linear
    for state, num_rows in [(states[0], 20), (states[4], 100)]:
        for weights, _ in state.params.members.layers:
            for i in range(5):
                for j in range(i):
                    assert np.abs(weights[i] - weights[j]).max() > 0.01
        scales = (state.params.x, state.data.x), (state.params.y, state.data.y)
        for scale, rows in scales:
            np.testing.assert_allclose(scale.mean, rows[:num_rows].mean(0), atol=1e-5)
            np.testing.assert_allclose(scale.std, rows[:num_rows].std(0), rtol=1e-3)


def test_the_models_error_is_of_transitions_that_it_was_not_fitted_to(linear):
    algorithm, states, metrics = linear
    network = mlp([3, 32, 6], jax.nn.swish)
    for number in (0, 5):
        before, after = states[number : number + 2]
        x, y = (rows[20 * (number + 1) : 20 * (number + 2)] for rows in after.data)
        model = before.params
        one = jax.vmap(partial(gaussian, network), (0, None))
        mean = one(model.members, (x - model.x.mean) / model.x.std)[0].mean(0)
        error = np.sqrt(np.mean(np.square(mean - (y - model.y.mean) / model.y.std)))
        np.testing.assert_allclose(metrics["model_error"][number], error, rtol=1e-3)
    assert metrics["model_error"][-3:].max() < 0.1


def test_it_learns_to_plan_on_a_linear_system(linear):
    """The last episodes cost little more than LQR's, and the plans promise what their first 10
    steps then bring."""
    algorithm, states, metrics = linear
    best = best_mass_return([state.env.obs[0] for state in states[:-1]])
    lost = best - metrics["episode_return"]
    assert (lost > -1e-3).all()
    assert lost[-4:].mean() < 0.25 * np.abs(best).mean()
    act = jax.jit(algorithm.act)
    action = act(states[-1].params, jnp.array([1.0, 0.0]), jax.random.key(0))
    assert -5 <= action[0] < -0.5
    env = make_env("Mass-linear", 16)
    returns, _ = jax.jit(partial(evaluate, env, algorithm.act))(
        states[-1].params, jax.random.key(1)
    )
    starts = jax.jit(env.reset)(jax.random.split(jax.random.key(1))[0]).obs
    best = best_mass_return(starts)
    assert returns.mean() > 1.4 * best.mean()


def test_a_plan_ends_with_its_episode(linear):
    """Rounds are as long as episodes here."""
    assert not any(state.plan.any() for state in linear[1])


def test_the_budget_counts_every_environment_step():
    check_budget(make(Config(**LINEAR)), 20, 200)


def test_what_it_cannot_plan_for_is_refused():
    with pytest.raises(ValueError, match="CartPole-v1 has discrete actions"):
        make(Config("CartPole-v1"))


def test_the_picture_has_the_spread_beside_what_came(linear):
    algorithm, states, _ = linear
    picture = algorithm.picture(states[-1])
    assert picture["names"] == ["obs[0]", "obs[1]"]
    realised, low, high = picture["realised"], picture["low"], picture["high"]
    assert realised.shape == low.shape == high.shape == (20, 2)
    assert (low < high).all()
    room = 0.3 * np.ptp(realised, axis=0)
    inside = (low - room < realised) & (realised < high + room)
    assert (inside.mean(0) > 0.9).all()
