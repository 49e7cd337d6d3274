"""mbpo.py: SAC where nothing comes from the model, what the model learns, and its rollouts."""

import ast
import inspect
import textwrap
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    check_budget,
    float64,
    keys,
    pairs,
    relu_mlp,
    trained,
)

from algorithms import mbpo, pets, sac
from algorithms.mbpo import Config, branched_rollouts, make, mixed_batch, sample_of_one
from common.buffers import uniform_buffer
from common.environments.terminations import TERMINATIONS
from common.envs import Transition, make_env
from common.networks import mlp
from common.runner.evaluation import evaluate

PROBE_ENDS = lambda obs: obs[7] > 0.5  # of Continuous-probe


@pytest.fixture(autouse=True)
def known_ends(monkeypatch):
    monkeypatch.setitem(TERMINATIONS, "Continuous-probe", PROBE_ENDS)


@pytest.mark.parametrize(
    "parent, name",
    [
        *[(sac, x) for x in ("td_error", "policy_loss", "temperature_loss", "squashed_log_prob")],
        *[(pets, x) for x in ("gaussian", "negative_log_likelihood", "mean_and_std")],
        (pets, "standardize"),
    ],
)
def test_equations_of_the_parents_are_theirs(parent, name):
    """Statement by statement; their own tests have the numbers."""

    def statements(module):
        tree = ast.parse(textwrap.dedent(inspect.getsource(getattr(module, name))))
        body = [
            x for x in tree.body[0].body if not isinstance(getattr(x, "value", 0), ast.Constant)
        ]
        return ast.unparse(tree.body[0].args), *map(ast.unparse, body)

    assert statements(mbpo) == statements(parent)


# Gradient steps.


def test_with_real_transitions_alone_it_is_sac():
    """25 steps of one environment with the same keys, in float64; the replay is full, and its ring
    comes round."""
    shared = {
        "env_id": "Continuous-probe",
        "learning_starts": 90,
        "buffer_size": 100,
        "batch_size": 32,
    }
    shared |= {"hidden_sizes": (16,), "total_timesteps": 200}
    small = {"steps_per_fit": 25, "gradient_steps": 2, "num_rollouts": 2, "model_buffer_size": 9}
    with float64():
        algorithm = make(Config(**shared, **small, real_ratio=1.0, updates_per_step=1))
        parent = sac.make(sac.Config(**shared, num_envs=1))
        before = jax.jit(algorithm.init)(jax.random.key(0))
        after, metrics = jax.jit(algorithm.update)(before, jnp.int32(0))
        fields = {x: getattr(before, x) for x in sac.State._fields if x in before._fields}
        key_steps = jax.random.split(jax.random.fold_in(before.key, 0))[1]
        state = sac.State(**fields | {"key": key_steps}, noise=jnp.zeros((1, 1)))
        state, expected = jax.lax.scan(jax.jit(parent.update), state, jnp.arange(25))
    for name in fields.keys() - {"key"}:
        for x, y in pairs(getattr(after, name), getattr(state, name)):
            np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-12)
    for name in ("value", "loss", "temperature", "entropy", "episodes"):
        total = np.sum if name == "episodes" else np.mean
        np.testing.assert_allclose(metrics[name], total(expected[name]), rtol=1e-6)


def test_a_batch_begins_with_its_real_transitions():
    real, imagined = (
        Transition(x, x, *[x[:, 0]] * 4) for x in (jnp.zeros((8, 3)), jnp.ones((8, 3)))
    )
    mixed = mixed_batch(real, imagined, 0.25)
    assert mixed.reward.tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    np.testing.assert_array_equal(mixed.obs, np.repeat(mixed.reward, 3).reshape(8, 3))
    sums = [mixed_batch(real, imagined, ratio).reward.sum() for ratio in (0.0, 1.0, 0.3)]
    assert sums == [8, 0, 5]  # 2.4 of 8 rows: three


# The model.


LINEAR = Config(
    "Mass-linear",
    hidden_sizes=(),  # one linear layer
    learning_starts=50,
    total_timesteps=200,
    buffer_size=4_000,
    steps_per_fit=20,
    learning_rate=0.01,
    gradient_steps=1_000,
    batch_size=64,
    updates_per_step=1,
    num_networks=10,
)
ALL = 4_000 // 20  # the update by which all of the replay is filled
NOISE = np.array([0.3, 0.1, 0.5])


@pytest.fixture(scope="module")
def refit():
    """`transform, update's index, members -> ` the States before and after that update, and its
    metrics; the whole replay and the networks are transformed first."""
    algorithm = make(LINEAR)
    start, update = jax.jit(algorithm.init)(jax.random.key(0)), jax.jit(algorithm.update)

    def run(transform, step=0, members=lambda members: members):
        rng, rows = np.random.default_rng(5), (LINEAR.buffer_size, 2)
        buffer = start.buffer._replace(
            obs=jnp.float32(rng.normal(size=rows)),
            action=jnp.float32(rng.uniform(-1, 1, rows)[:, :1]),
        )
        model = start.model._replace(members=members(start.model.members))
        before = start._replace(buffer=transform(buffer), model=model)
        return before, *update(before, jnp.int32(step))

    return run


def noisy(buffer, std=NOISE):
    """Outcomes that are linear in (s, a), and Gaussian noise."""
    x = np.concatenate([buffer.obs, buffer.action], axis=1)
    noise = std * np.random.default_rng(0).normal(size=(len(x), 3))
    y = x @ TRUE.T + noise
    return buffer._replace(next_obs=jnp.float32(buffer.obs + y[:, :2]), reward=jnp.float32(y[:, 2]))


TRUE = np.array([[0.1, -0.2, 0.4], [0.0, 0.3, -1.0], [1.0, 0.5, -0.5]])


@pytest.fixture(scope="module")
def linear(refit):
    """One linear layer a network, fitted to linear-Gaussian data."""
    return refit(noisy, ALL)


def test_linear_gaussian_data_are_learned_to_their_entropy(linear):
    """μ = W x + b with W that of the system, and a loss of Σ (1 + ln σ²), which is
    2 (½ ln(2 π e σ²)) - ln(2 π), for data that are not fitted."""
    _, after, metrics = linear
    model = after.model
    (weights, _) = model.members.layers[0]
    weights = weights[..., :3].mean(0)  # of μ; the rest is log σ²
    np.testing.assert_allclose(weights.T * model.y.std[:, None] / model.x.std, TRUE, atol=0.04)
    entropy = np.sum(1 + 2 * np.log(NOISE / model.y.std))
    np.testing.assert_allclose(metrics["model_loss"], entropy, atol=0.15)


def test_elites_lose_least_on_rows_that_are_held_out(linear):
    """Rows 0, 5, 10, ..., before the steps of the update overwrite the first of them."""
    before, after, metrics = linear
    t, model = jax.tree.map(np.float64, before.buffer), after.model
    x = np.concatenate([t.obs, t.action], axis=1)[::5]
    y = np.concatenate([t.next_obs - t.obs, t.reward[:, None]], axis=1)[::5]
    x, y = (x - model.x.mean) / model.x.std, (y - model.y.mean) / model.y.std
    mean, log_var = jax.vmap(partial(mbpo.gaussian, mlp([3, 6])), (0, None))(model.members, x)
    losses = np.sum((mean - y) ** 2 / np.exp(log_var) + log_var, axis=-1).mean(-1)
    assert model.elites.tolist() == np.argsort(losses)[:3].tolist()
    np.testing.assert_allclose(metrics["model_loss"], np.sort(losses)[:3].mean(), rtol=1e-3)


def test_no_network_is_fitted_to_what_is_held_out(refit):
    """Outcomes exchanged among held-out rows, so that their scale stays."""

    def exchanged(buffer):
        buffer = noisy(buffer)
        order = jnp.arange(4_000).at[:50:5].set(jnp.arange(0, 50, 5)[::-1])
        return buffer._replace(reward=buffer.reward[order])

    results = [refit(transform) for transform in (noisy, exchanged)]
    members = [after.model.members for _, after, _ in results]
    for x, y in pairs(*members):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)
    losses = [metrics["model_loss"] for *_, metrics in results]
    assert losses[1] > losses[0] + 0.5


def test_each_network_has_a_bootstrap_sample_of_its_own(refit):
    """Networks that begin equal end as far apart as least squares of bootstrap samples are."""
    equal = lambda members: jax.tree.map(lambda x: jnp.repeat(x[:1], 10, axis=0), members)
    before, after, _ = refit(noisy, members=equal)
    t = jax.tree.map(lambda x: np.asarray(x[:50]), before.buffer)
    rows = np.array([i for i in range(50) if i % 5])
    x = np.concatenate([t.obs, t.action], axis=1)[rows]
    x = np.append(x, np.ones((40, 1)), axis=1)
    rng = np.random.default_rng(1)
    samples = [rng.integers(0, 40, 40) for _ in range(400)]
    fits = [np.linalg.lstsq(x[i], t.reward[rows][i], rcond=None)[0][:3] for i in samples]
    weights, model = np.asarray(after.model.members.layers[0][0][..., 2]), after.model
    got = (weights * model.y.std[2] / model.x.std).std(0)
    np.testing.assert_allclose(got, np.std(fits, axis=0), rtol=0.6)


def test_a_prediction_is_drawn_from_any_one_network():
    mean, log_var = jnp.array([[0.0, 10.0], [100.0, 20.0]]), jnp.log(jnp.array([[1.0, 4], [9, 16]]))
    samples = jax.vmap(sample_of_one, (0, None, None))(keys(*range(4_000)), mean, log_var)
    first = np.asarray(samples[:, 0] < 50)
    np.testing.assert_allclose(first.mean(), 0.5, atol=0.03)
    for which, means, stds in [(first, [0, 10], [1, 2]), (~first, [100, 20], [3, 4])]:
        np.testing.assert_allclose(samples[which].mean(0), means, atol=0.4)
        np.testing.assert_allclose(samples[which].std(0), stds, rtol=0.06)
        noise = (samples[which] - np.array(means)) / np.array(stds)
        assert abs(np.mean(noise[:, 0] * noise[:, 1])) < 0.1


# Rollouts.


def count(obs, key):
    """s' = s + 1, which ends the episode where it is a multiple of 10."""
    after = obs + 1
    terminated = after[:, 0] % 10 == 0
    return Transition(obs, obs, obs[:, 0], after, terminated, jnp.zeros_like(terminated))


@pytest.mark.parametrize(
    "length, visited, truncated",
    [
        (1, [[107, 201], [117, 211], [127, 221], [137, 231]], np.ones((4, 2))),
        (2, [[107, 201], [108, 202], [127, 221], [128, 222]], [[0, 0], [1, 1], [0, 0], [1, 1]]),
        (3, [[107, 201], [108, 202], [109, 203], [137, 231]], [[0, 0], [0, 0], [1, 1], [0, 0]]),
        (4, [[107, 201], [108, 202], [109, 203], [137, 204]], [[0, 0], [0, 0], [0, 0], [0, 1]]),
    ],
)
def test_rollouts_branch_off_and_end(length, visited, truncated):
    """After `length` steps, which is no end of the MDP, or where it terminates: 110 does, on the
    third step. What follows begins at the start of its step."""
    starts = jnp.array([[107, 201], [117, 211], [127, 221], [137, 231]])[..., None]
    t = jax.jit(partial(branched_rollouts, count))(jax.random.key(0), starts, length)
    np.testing.assert_array_equal(t.obs[..., 0], visited)
    np.testing.assert_array_equal(t.truncated, truncated)
    np.testing.assert_array_equal(t.terminated, np.array(visited) == 109)


SMALL = {"learning_starts": 60, "total_timesteps": 120, "steps_per_fit": 20, "gradient_steps": 5}
SMALL |= {"hidden_sizes": (8,), "batch_size": 16, "num_rollouts": 7, "updates_per_step": 1}


class Run(NamedTuple):
    config: Config
    states: list
    keys: jax.Array  # of environment step 0


@pytest.fixture(scope="module")
def run():
    """Three updates on Mass-linear with a rule by which it ends; rollouts of 1, 2 and 3 steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            TERMINATIONS, "Pendulum-v1|PointRobot-misc|Reacher-misc|Swimmer-misc|.+-linear", ENDS
        )
        config = Config("Mass-linear", **SMALL, final_rollout_length=3)
        algorithm = make(config)
        states, update = [jax.jit(algorithm.init)(jax.random.key(0))], jax.jit(algorithm.update)
        for step in range(3):
            states.append(update(states[-1], jnp.int32(step))[0])
    key_steps = jax.random.split(jax.random.fold_in(states[0].key, 0))[1]
    return Run(config, states, jax.random.split(jax.random.fold_in(key_steps, 0), 7))


ENDS = lambda obs: obs[0] > 0.5


def imagined(run, step):
    """The model's transitions of an update, [F, T, M]."""
    rows = slice(20 * step * 21, 20 * (step + 1) * 21)
    return jax.tree.map(
        lambda x: np.asarray(x[rows]).reshape(20, 3, 7, *x.shape[1:]), run.states[-1].model_buffer
    )


@pytest.mark.parametrize("step", [0, 1, 2])
def test_the_length_of_rollouts_grows_and_none_goes_past_its_end(run, step):
    t, replay = imagined(run, step), np.asarray(run.states[-1].buffer.obs)
    np.testing.assert_array_equal(t.terminated, t.next_obs[..., 0] > 0.5)
    assert 0 < t.terminated.mean() < 1
    for n in range(20):
        known = {tuple(x) for x in replay[: 60 + 20 * step + n + 1]}
        for m in range(7):
            age = 0
            for i in range(3):
                obs = tuple(t.obs[n, i, m])
                assert obs in known if age == 0 else obs == tuple(t.next_obs[n, i - 1, m])
                assert t.truncated[n, i, m] == (age == step)
                age = 0 if t.truncated[n, i, m] or t.terminated[n, i, m] else age + 1


def test_the_model_buffer_keeps_what_earlier_models_made(run):
    for step in (1, 2):
        for before, after in pairs(run.states[step].model_buffer, run.states[3].model_buffer):
            np.testing.assert_array_equal(before[: 420 * step], after[: 420 * step])


def test_rollouts_are_of_the_policys_actions_and_the_elites_outcomes(run):
    """The first row of the first step, from the keys; a = tanh(m + σ ε)."""
    before, after, *_ = run.states
    t, model = jax.tree.map(lambda x: x[0, 0], imagined(run, 0)), after.model
    starts = uniform_buffer(run.config.buffer_size, 1, 21)
    start = starts.sample(run.states[-1].buffer, run.keys[-2], jnp.int32(61)).obs[:7]
    np.testing.assert_array_equal(t.obs, start)
    key_policy, key_model = jax.random.split(jax.random.split(run.keys[-1], 3)[0])
    mean, log_std = jnp.split(relu_mlp(before.params, t.obs), 2, axis=-1)
    noise = jax.random.normal(key_policy, (7, 1))
    np.testing.assert_allclose(t.action, np.tanh(mean + np.exp(log_std) * noise), atol=1e-5)
    x = (np.concatenate([t.obs, t.action], axis=1) - model.x.mean) / model.x.std
    elites = jax.tree.map(lambda x: x[model.elites], model.members)
    one = partial(mbpo.gaussian, mlp([3, 8, 6], jax.nn.swish))
    mean, log_var = jax.vmap(one, (0, None))(elites, x)
    y = jax.vmap(sample_of_one, (0, 1, 1))(jax.random.split(key_model, 7), mean, log_var)
    y = model.y.mean + model.y.std * y
    np.testing.assert_allclose(t.next_obs - t.obs, y[:, :2], atol=1e-4)
    np.testing.assert_allclose(t.reward, y[:, 2], atol=1e-4)


# Whole runs.


def test_the_budget_counts_every_environment_step():
    check_budget(make(Config("Mass-linear", **SMALL)), 60, 120)


def test_what_has_no_known_end_is_refused():
    with pytest.raises(ValueError, match="Pendulum-v1-positions: it is not known when"):
        make(Config("Pendulum-v1-positions"))
    with pytest.raises(ValueError, match="CartPole-v1 has discrete actions"):
        make(Config("CartPole-v1"))
    with pytest.raises(ValueError, match="num-elites"):
        Config(num_elites=6)


@pytest.mark.slow
def test_with_the_true_model_for_the_ensemble_it_learns_from_nothing_else(monkeypatch):
    """On Pendulum, every transition of every batch imagined: with the environment's own equations
    as rollouts, and the ensemble fitted in vain, it ends as SAC does."""

    def true_rollouts(imagine, key, starts, length):
        def true_step(obs, key):
            t = imagine(obs, key)
            angle, speed, torque = jnp.arctan2(obs[:, 1], obs[:, 0]), obs[:, 2], 2 * t.action[:, 0]
            reward = -(angle**2 + 0.1 * speed**2 + 0.001 * torque**2)
            speed = jnp.clip(speed + 0.05 * (15 * jnp.sin(angle) + 3 * torque), -8, 8)
            angle += 0.05 * speed
            next_obs = jnp.stack([jnp.cos(angle), jnp.sin(angle), speed], axis=-1)
            return t._replace(next_obs=next_obs, reward=reward)

        return branched_rollouts(true_step, key, starts, length)

    monkeypatch.setattr(mbpo, "branched_rollouts", true_rollouts)
    algorithm = make(Config(total_timesteps=3_000, real_ratio=0.0, gradient_steps=1))
    end = trained(algorithm, [0, 1], algorithm.num_updates, long=True)
    env = make_env("Pendulum-v1", 50)
    play = jax.jit(jax.vmap(partial(evaluate, env, algorithm.act), (0, None)))
    returns, _ = play(end.state.params, jax.random.key(1))
    assert (returns.mean(1) > -200).all()
