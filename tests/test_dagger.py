"""dagger.py: who acts, who labels, what is kept; the laws of the ledge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import load, trained

from algorithms import dagger
from algorithms.dagger import Config, make
from common.environments.tabular import make_mdp
from common.environments.textbook import ledge

SMALL = {"num_envs": 3, "num_steps": 20, "gradient_steps": 50, "hidden_sizes": (8,)}


def test_its_equations_are_those_of_behaviour_cloning():
    """Letter by letter: the loss, and what counts as the same action."""
    import inspect

    cloning = load("behaviour_cloning")
    for name in ("imitation_loss", "is_same_action"):
        same = inspect.getsource(getattr(cloning, name))
        assert inspect.getsource(getattr(dagger, name)) == same


def cost(mdp, actions, num_steps):
    """Expected cost of a policy of the ledge over so many steps, by its distribution of states."""
    distribution, total = mdp.start, 0.0
    for _ in range(num_steps):
        distribution = distribution @ mdp.P[np.arange(2), actions]
        total += distribution[1]
    return total


@pytest.mark.parametrize(
    "num_steps, cloned", [(10, 0.5338), (20, 1.9728), (50, 10.8956), (100, 37.2372)]
)
def test_the_ledge_costs_t_squared_who_cannot_climb_and_t_who_can(num_steps, cloned):
    """Ross & Bagnell 2010: Σ_t (1 - .99^t) against .01 T."""
    mdp = ledge(0.01)
    assert cost(mdp, [0, 0], num_steps) == pytest.approx(cloned, abs=5e-5)
    assert cost(mdp, [0, 1], num_steps) == pytest.approx(0.01 * num_steps, rel=1e-9)
    t = 1 + np.arange(num_steps)
    assert np.sum(1 - 0.99**t) == pytest.approx(cloned, abs=5e-5)
    np.testing.assert_array_equal(make_mdp("Ledge-tabular").P, mdp.P)


@pytest.fixture(scope="module")
def on_the_ledge():
    """Five seeds, 1,200 steps each: some dozen slips."""
    algorithm = make(Config(env_id="Ledge-tabular", total_timesteps=1_200, **SMALL))
    return algorithm, trained(algorithm, range(5), algorithm.num_updates).state


def test_it_learns_the_way_back_from_its_own_slips(on_the_ledge):
    algorithm, states = on_the_ledge
    act = jax.vmap(jax.vmap(algorithm.act, (None, 0, None)), (0, None, None))
    actions = act(states.params, jnp.arange(2), None)
    np.testing.assert_array_equal(actions, [[0, 1]] * 5)


def test_all_labels_are_the_experts_and_all_rounds_are_kept(on_the_ledge):
    """Walk on the ledge, climb below it, whatever the policy did; and no row is left empty."""
    algorithm, states = on_the_ledge
    obs, labels = np.asarray(states.dataset.obs), np.asarray(states.dataset.action)
    np.testing.assert_array_equal(labels, obs)
    assert labels.shape == (5, 1_200)
    assert algorithm.initial_steps + algorithm.num_updates * algorithm.steps_per_update == 1_200
    below = labels.sum(1)
    assert (below >= 3).all() and (below <= 300).all()


@pytest.mark.parametrize("beta, share", [(0.0, 1), (1.0, 0), (0.5, 0.5)])
def test_who_acts_is_drawn_step_by_step_and_the_expert_labels(monkeypatch, beta, share):
    """The expert says 0 everywhere, the policy 1: on the steady ledge a step moves between the two
    places if and only if the policy acted. β^i is of round i = 1, the first after `init`."""
    monkeypatch.setattr(dagger, "make_expert", lambda *_: lambda obs, key: jnp.zeros_like(obs))
    fields = {"num_envs": 3, "num_steps": 90, "gradient_steps": 1, "hidden_sizes": ()}
    algorithm = make(Config(env_id="SteadyLedge-tabular", total_timesteps=810, beta=beta, **fields))
    state = jax.jit(algorithm.init)(jax.random.key(0))
    assert (state.dataset.obs == 0).all()  # the expert played the first round
    weights, bias = state.params[0]
    prefers_1 = [(jnp.zeros_like(weights), bias.at[:].set(jnp.array([-1.0, 1.0])))]
    after, metrics = jax.jit(algorithm.update)(state._replace(params=prefers_1), jnp.int32(0))
    places = np.asarray(after.dataset.obs)[270:540].reshape(90, 3)
    moved = places[1:] != places[:-1]
    assert moved.mean() == pytest.approx(share, abs=0.12)
    assert (moved.mean(0) == share).all() or beta == 0.5
    np.testing.assert_array_equal(after.dataset.action[270:540], 0)
    assert metrics["agreement"] == 0
