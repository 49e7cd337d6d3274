"""Tabular MDPs by id, as arrays and as environments to sample from."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from common.environments.batching import batch_env, lookup
from common.environments.gridworlds import (
    CLIFF,
    DYNA_MAZE,
    FOUR_ROOMS,
    GRID_4X4,
    GRID_5X5,
    LAKE_4X4,
    LAKE_8X8,
    OPEN_BOTH,
    OPEN_LEFT,
    OPEN_RIGHT,
    WINDY,
    Grid,
    cliff_walking,
    four_rooms,
    frozen_lake,
    grid_world,
    grid_world_5x5,
    maze,
    windy_grid_world,
)
from common.environments.mdp import MDP
from common.environments.textbook import (
    blackjack,
    gamblers_problem,
    garnet,
    jacks_car_rental,
    maximization_bias,
    random_walk,
    taxi,
)
from common.envs import Env


class Tabular(NamedTuple):
    """What an id means."""

    make: Callable[[jax.Array], MDP]  # of a key, which the fixed MDPs ignore
    max_steps: int  # steps, the time limit when it is sampled as an environment
    random: bool = False  # does the MDP depend on the key?
    grid: Grid | None = None  # to draw it
    change_after: int | None = None  # steps of an environment, over all its episodes,
    change_to: str | None = None  # after which it becomes the MDP of this id


TABULAR = {
    "CliffWalking-tabular": Tabular(lambda key: cliff_walking(), 10_000, grid=CLIFF),
    "FrozenLake-tabular": Tabular(lambda key: frozen_lake(LAKE_4X4), 100, grid=LAKE_4X4),
    "FrozenLake8x8-tabular": Tabular(lambda key: frozen_lake(LAKE_8X8), 200, grid=LAKE_8X8),
    "Taxi-tabular": Tabular(lambda key: taxi(), 200),
    "GridWorld-tabular": Tabular(lambda key: grid_world(), 1_000, grid=GRID_4X4),
    "GridWorld5x5-tabular": Tabular(lambda key: grid_world_5x5(), 100, grid=GRID_5X5),
    "WindyGridWorld-tabular": Tabular(lambda key: windy_grid_world(), 10_000, grid=WINDY),
    "DynaMaze-tabular": Tabular(lambda key: maze(DYNA_MAZE), 10_000, grid=DYNA_MAZE),
    "BlockingMaze-tabular": Tabular(
        lambda key: maze(OPEN_RIGHT),
        10_000,
        grid=OPEN_RIGHT,
        change_after=1_000,
        change_to="BlockingMazeChanged-tabular",
    ),
    "BlockingMazeChanged-tabular": Tabular(lambda key: maze(OPEN_LEFT), 10_000, grid=OPEN_LEFT),
    "ShortcutMaze-tabular": Tabular(
        lambda key: maze(OPEN_LEFT),
        10_000,
        grid=OPEN_LEFT,
        change_after=3_000,
        change_to="ShortcutMazeChanged-tabular",
    ),
    "ShortcutMazeChanged-tabular": Tabular(lambda key: maze(OPEN_BOTH), 10_000, grid=OPEN_BOTH),
    "FourRooms-tabular": Tabular(lambda key: four_rooms(), 1_000, grid=FOUR_ROOMS),
    "RandomWalk5-tabular": Tabular(lambda key: random_walk(5, 0.0), 10_000),
    "RandomWalk19-tabular": Tabular(lambda key: random_walk(19, -1.0), 10_000),
    "Gambler-tabular": Tabular(lambda key: gamblers_problem(), 10_000),
    "JacksCarRental-tabular": Tabular(lambda key: jacks_car_rental(), 100),
    "Blackjack-tabular": Tabular(lambda key: blackjack(), 100),
    "MaximizationBias-tabular": Tabular(lambda key: maximization_bias(), 10),
    "Garnet-tabular": Tabular(garnet, 100, random=True),
}


def make_mdp(env_id: str, key: jax.Array | None = None) -> MDP:
    """Return the MDP of that id; a random one is drawn with `key`, or with jax.random.key(0)."""
    return lookup(TABULAR, env_id, "tabular MDP").make(jax.random.key(0) if key is None else key)


@functools.cache
def load(env_id: str):
    """Return the MDP of an id, its entry in TABULAR, and its `successors`."""
    known, mdps = TABULAR[env_id], [make_mdp(env_id)]
    if known.change_to:
        mdps.append(make_mdp(known.change_to))
    return mdps[0], known, successors(mdps)


def make_tabular_env(env_id: str, num_envs: int) -> Env:
    """Return `num_envs` copies of a tabular MDP, or raise ValueError.

    An observation is the number of a state. After `change_after` steps of an environment, over all
    its episodes, the MDP becomes that of `change_to`.
    """
    lookup(TABULAR, env_id, "tabular MDP")
    mdp, known, (successor, cumulative, reward_table, noise) = load(env_id)
    num_states, num_actions, _ = mdp.P.shape
    max_steps, change_after = known.max_steps, known.change_after
    terminal = np.asarray(mdp.terminal)
    start = np.cumsum(mdp.start)

    def draw(key, cumulative):
        """Return the index of the first cumulative probability above a uniform number."""
        u = jax.random.uniform(key) * cumulative[-1]
        return jnp.minimum(jnp.sum(u >= cumulative), cumulative.shape[0] - 1).astype(jnp.int32)

    def reset(key):
        s = draw(key, jnp.asarray(start, float))
        return s, (s, jnp.int32(0), jnp.int32(0))

    def step(key, inner, action):
        s, time, age = inner
        key_next, key_reset, *key_noise = jax.random.split(key, 2 if noise is None else 3)
        row = s if change_after is None else s + num_states * (age >= change_after)
        k = draw(key_next, jnp.asarray(cumulative, float)[row, action])
        next_s = jnp.asarray(successor)[row, action, k]
        reward = jnp.asarray(reward_table, float)[row, action, k]
        if noise is not None:
            reward += jnp.asarray(noise, float)[row, action] * jax.random.normal(*key_noise)
        terminated = jnp.asarray(terminal)[next_s]
        truncated = time + 1 >= max_steps
        done = terminated | truncated
        obs = jnp.where(done, draw(key_reset, jnp.asarray(start, float)), next_s)
        inner = (obs, jnp.where(done, 0, time + 1), age + 1)
        return obs, inner, reward, terminated, truncated, next_s

    return batch_env(
        reset,
        step,
        num_envs,
        obs_shape=(),
        num_states=num_states,
        num_actions=num_actions,
        action_shape=(),
        action_low=None,
        action_high=None,
        max_steps=max_steps,
    )


def successors(mdps: list[MDP]):
    """Return the K states that can follow each (s, a), their cumulative probabilities and their
    rewards, each [S, A, K], and the noise [S, A].

    K is the largest number of successors, so that a step costs K, not S. The tables of several
    MDPs are concatenated along the axis of states.
    """
    P, R = (np.concatenate([np.asarray(getattr(mdp, name)) for mdp in mdps]) for name in "PR")
    num_successors = int((P > 0).sum(-1).max())
    successor = np.argsort(P <= 0, axis=-1, kind="stable")[..., :num_successors]
    cumulative = np.cumsum(np.take_along_axis(P, successor, -1), axis=-1)
    rewards = np.take_along_axis(R, successor, -1)
    return successor.astype(np.int32), cumulative, rewards, mdps[0].noise
