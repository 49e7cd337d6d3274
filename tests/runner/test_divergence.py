"""A seed that diverges: flagged at its update, frozen, silent, and without effect on the others."""

import csv
import dataclasses
import json
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import keys, small_config, to_bits, trained

from algorithms import ddpg, q_learning
from common import envs
from common.algorithm import Algorithm
from common.run import main
from common.runner import checkpoint
from common.runner.program import all_finite, init_run, run_updates

PLACES = ["observation", "reward", "action", "gradient", "parameter", "replay"]
SEED, AT, STOP = 2, 17, 60
ADAM = optax.adam


class Poisoned(NamedTuple):
    """An algorithm's State, and the place where NaN enters it."""

    params: Any
    rest: Any
    place: jax.Array  # index into PLACES, or -1


def poisonous_env(*arguments, **kwargs):
    """Return make_env's environment with a second field of `inner`: where `step` returns NaN."""
    env = envs.make_env(*arguments, **kwargs)

    def reset(key):
        state = env.reset(key)
        return state._replace(inner=(state.inner, jnp.full(env.num_envs, -1)))

    def step(state, action, key):
        inner, place = state.inner
        here = lambda name, x: jnp.where(
            (place == PLACES.index(name)).reshape(-1, *[1] * (x.ndim - 1)), jnp.nan, x
        )
        action = here("action", action)
        state, transition = env.step(state._replace(inner=inner), action, key)
        state = state._replace(inner=(state.inner, place), obs=here("observation", state.obs))
        return state, transition._replace(reward=here("reward", transition.reward))

    return env._replace(reset=reset, step=step)


def poisonous_adam(learning_rate):
    """Return optax.adam with a State that says whether its gradients become NaN."""
    adam = ADAM(learning_rate)

    def update(grads, state, params=None):
        bad, inner = state
        grads = jax.tree.map(lambda x: jnp.where(bad, jnp.nan, x), grads)
        updates, inner = adam.update(grads, inner, params)
        return updates, (bad, inner)

    return optax.GradientTransformation(
        lambda params: (jnp.bool_(False), adam.init(params)), update
    )


def poison(state, place):
    """Return the State of DDPG with NaN at that place."""
    chosen = [place == i for i in range(len(PLACES))]
    inner, none = state.env.inner
    in_env = jnp.where(chosen[0] | chosen[1] | chosen[2], place, none)
    rewards = state.buffer.reward
    rewards = jnp.where(chosen[5], rewards.at[7].set(jnp.nan), rewards)
    params = jax.tree.map(
        lambda x: jnp.where(chosen[4], x.at[(0,) * x.ndim].set(jnp.nan), x), state.params
    )
    return state._replace(
        params=params,
        opt_state=(chosen[3], state.opt_state[1]),
        buffer=state.buffer._replace(reward=rewards),
        env=state.env._replace(inner=(inner, in_env)),
    )


@pytest.fixture(scope="module")
def program():
    """Return `init_run` and `run_updates` of four seeds and their places of NaN, and `update`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ddpg, "make_env", poisonous_env)
        patch.setattr(ddpg.optax, "adam", poisonous_adam)
        config = small_config(ddpg, num_envs=2, batch_size=64)
        algorithm = ddpg.make(config)

    def whole(x):
        return x.rest._replace(params=x.params)

    def wrapped(state, place):
        return Poisoned(state.params, state._replace(params=None), place)

    def init(member):
        key, place = member
        return wrapped(algorithm.init(key), place)

    def update(before, step):
        state = whole(before)
        place = jnp.where(step == AT, before.place, -1)
        state, metrics = algorithm.update(poison(state, place), step)
        return wrapped(state, before.place), metrics

    start = jax.jit(lambda places: init_run(init, update, (keys(0, 1, 2, 3), places)))
    return (
        start,
        jax.jit(lambda *args: run_updates(update, *args)),
        jax.jit(jax.vmap(update, (0, None))),
    )


def places(place):
    return jnp.full(4, -1).at[SEED].set(place)


def run_to(program, run_state, start, stop, reset_means=False):
    return program[1](run_state, jnp.int32(start), jnp.int32(stop), jnp.bool_(reset_means))


@pytest.fixture(scope="module")
def clean(program):
    return run_to(program, program[0](places(-1)), 0, STOP)


def rows_of(run_state, seeds):
    return to_bits(jax.tree.map(lambda x: x[np.array(seeds)], run_state))


@pytest.mark.parametrize("place", PLACES)
def test_nan_in_one_of_four_seeds(place, program, clean):
    """The three others keep every bit of a clean run; the seed is flagged at the first update
    after which its params are not finite, keeps the params before it, and reports nothing more."""
    run_state = program[0](places(PLACES.index(place)))
    ended = run_to(program, run_state, 0, STOP)
    diverged = np.asarray(ended.diverged)
    np.testing.assert_array_equal(diverged[[0, 1, 3]], -1 - STOP)
    flagged = diverged[SEED]
    assert AT <= flagged < STOP
    if place in ("gradient", "parameter"):
        assert flagged == AT

    others = [0, 1, 3]
    mine, theirs = rows_of(ended, others), rows_of(clean, others)
    differ = [name for name in mine if mine[name] != theirs[name]]
    assert [name for name in differ if name != "state/place"] == []

    before = run_to(program, run_state, 0, flagged)
    assert bool(all_finite(before.state.params))
    after, _ = program[2](before.state, jnp.int32(flagged))
    finite = np.asarray(jax.vmap(all_finite)(after.params))
    np.testing.assert_array_equal(finite, [True, True, False, True])
    assert to_bits(before.state.params[0]) != to_bits(ended.state.params[0])
    frozen = [to_bits(jax.tree.map(lambda x: x[SEED], x.state.params)) for x in (before, ended)]
    assert frozen[0] == frozen[1]

    for name, count in ended.count.items():
        assert count[SEED] == before.count[name][SEED], name
        assert ended.mean[name][SEED] == before.mean[name][SEED], name
    later = run_to(program, ended, STOP, STOP + 1, reset_means=True)
    assert all(x[SEED] == 0 and x[0] <= 1 for x in later.count.values())


def test_no_false_alarm_in_100_healthy_seeds():
    for module, num_updates in ((q_learning, 60), (ddpg, 50)):
        algorithm = module.make(small_config(module, total_timesteps=2_000))
        run_state = trained(algorithm, range(100), min(num_updates, algorithm.num_updates))
        assert (run_state.diverged < 0).all()


class State(NamedTuple):
    params: jax.Array


@dataclasses.dataclass(frozen=True)
class Config:
    env_id: str = "CartPole-v1"


def make_broken(config):
    """Make seed 0 sound, seed 1 with a policy of NaN, and seed 2 divide 0 by 0 when it acts."""
    env = envs.make_env(config.env_id, 1)

    def init(key):
        return State(jnp.array([1, jnp.nan, 0])[jax.random.key_data(key)[-1]][None])

    def update(state, step):
        return state, {"episode_return": jnp.float32(jnp.nan), "value": jnp.float32(0)}

    def act(params, obs, key):
        action = params / jnp.abs(params)
        return action if env.num_actions is None else jnp.argmax(action - jnp.array([1.0, 0.0]))

    return Algorithm(init, update, act, 3, 1)


@pytest.mark.parametrize(
    "env_id, scoreless",
    [
        ("CartPole-v1", {"1"}),  # where argmax of NaN, as of seed 2, is an action like any other
        ("Fast-brax", {"1", "2"}),  # whose reward for an action of NaN is NaN
    ],
)
def test_a_policy_of_nan_scores_nothing(env_id, scoreless, tmp_path, monkeypatch):
    flags = ["--env-id", env_id, "--num-seeds", "3", "--eval-episodes", "2", "--quiet"]
    monkeypatch.setattr(sys, "argv", ["test", *flags, "--out", str(tmp_path / "a")])
    main(Config, make_broken)
    with open(tmp_path / "a" / "evaluation.csv", newline="") as file:
        returns = {
            (row["seed"], row["episode"]): row["episode_return"] for row in csv.DictReader(file)
        }
    assert len(returns) == 6
    assert {seed for (seed, _), x in returns.items() if x == "nan"} == scoreless
    assert all((x == "nan") == (seed in scoreless) for (seed, _), x in returns.items())
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert [x["seed"] for x in summary["diverged_seeds"]] == [1]
    means = [
        np.mean([float(returns[seed, episode]) for episode in "01"])
        for seed in {"0", "1", "2"} - scoreless
    ]
    assert summary["evaluation"]["min"] == pytest.approx(min(means))
    assert summary["evaluation"]["max"] == pytest.approx(max(means))
    arrays = checkpoint.load(tmp_path / "a" / "policy.npz")[0]
    without = arrays["member/seed"][np.isnan(arrays["member/score"])]
    assert {str(seed) for seed in without} == scoreless
