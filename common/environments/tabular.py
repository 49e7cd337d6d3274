"""Tabular MDPs by id, as arrays and as environments to sample from."""

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
    ICY_GRID,
    LAKE_4X4,
    LAKE_8X8,
    MACROCELLS,
    OPEN_BOTH,
    OPEN_LEFT,
    OPEN_RIGHT,
    RANDOM_MAZE,
    SECOND_GOAL,
    WINDY,
    Grid,
    cliff_walking,
    four_rooms,
    frozen_lake,
    grid_world,
    grid_world_5x5,
    icy_grid_world,
    macrocells,
    maze,
    random_maze,
    windy_grid_world,
)
from common.environments.mdp import MDP
from common.environments.textbook import (
    blackjack,
    gamblers_problem,
    garnet,
    jacks_car_rental,
    ledge,
    maximization_bias,
    random_walk,
    taxi,
)
from common.envs import Env


class Tabular(NamedTuple):
    """An MDP by its id, and how it is sampled and drawn."""

    make: Callable[[jax.Array], MDP]  # key -> MDP; fixed MDPs ignore the key
    max_steps: int  # time limit of an episode
    gamma: float  # discount factor of its source; 1 if the source has none and episodes end
    random: bool = False  # whether the MDP depends on the key  # copied for .random
    grid: Grid | None = None  # the cells, to draw a policy on
    change_after: int | None = None  # steps until it changes  # copied for Maze-tabular
    phases: tuple[str, ...] = ()  # ids of what it is before and after  # copied for Maze-tabular


TABULAR = {
    "CliffWalking-tabular": Tabular(lambda key: cliff_walking(), 10_000, gamma=1.0, grid=CLIFF),
    "FrozenLake-tabular": Tabular(
        lambda key: frozen_lake(LAKE_4X4), 100, gamma=0.99, grid=LAKE_4X4
    ),
    "FrozenLake8x8-tabular": Tabular(
        lambda key: frozen_lake(LAKE_8X8), 200, gamma=0.99, grid=LAKE_8X8
    ),
    "Taxi-tabular": Tabular(lambda key: taxi(), 200, gamma=1.0),
    "GridWorld-tabular": Tabular(lambda key: grid_world(), 1_000, gamma=1.0, grid=GRID_4X4),
    "GridWorld5x5-tabular": Tabular(lambda key: grid_world_5x5(), 100, gamma=0.9, grid=GRID_5X5),
    "WindyGridWorld-tabular": Tabular(
        lambda key: windy_grid_world(), 10_000, gamma=1.0, grid=WINDY
    ),
    "DynaMaze-tabular": Tabular(lambda key: maze(DYNA_MAZE), 10_000, gamma=0.95, grid=DYNA_MAZE),
    "BlockingMaze-tabular": Tabular(
        lambda key: maze(OPEN_RIGHT),
        10_000,
        gamma=0.95,
        grid=OPEN_RIGHT,
        change_after=1_000,
        phases=("OpenRightMaze-tabular", "OpenLeftMaze-tabular"),
    ),
    "ShortcutMaze-tabular": Tabular(
        lambda key: maze(OPEN_LEFT),
        10_000,
        gamma=0.95,
        grid=OPEN_LEFT,
        change_after=3_000,
        phases=("OpenLeftMaze-tabular", "OpenBothMaze-tabular"),
    ),
    "OpenRightMaze-tabular": Tabular(
        lambda key: maze(OPEN_RIGHT), 10_000, gamma=0.95, grid=OPEN_RIGHT
    ),
    "OpenLeftMaze-tabular": Tabular(
        lambda key: maze(OPEN_LEFT), 10_000, gamma=0.95, grid=OPEN_LEFT
    ),
    "OpenBothMaze-tabular": Tabular(
        lambda key: maze(OPEN_BOTH), 10_000, gamma=0.95, grid=OPEN_BOTH
    ),
    "FourRooms-tabular": Tabular(lambda key: four_rooms(), 1_000, gamma=0.9, grid=FOUR_ROOMS),
    "FourRoomsSecondGoal-tabular": Tabular(
        lambda key: four_rooms(SECOND_GOAL), 1_000, gamma=0.99, grid=SECOND_GOAL
    ),
    "MovingGoalMaze-tabular": Tabular(
        lambda key: four_rooms(),
        1_000,
        gamma=0.99,
        grid=FOUR_ROOMS,
        change_after=50_000,
        phases=("FourRooms-tabular", "FourRoomsSecondGoal-tabular"),
    ),
    "RandomWalk5-tabular": Tabular(lambda key: random_walk(5, 0.0), 10_000, gamma=1.0),
    "RandomWalk19-tabular": Tabular(lambda key: random_walk(19, -1.0), 10_000, gamma=1.0),
    "Gambler-tabular": Tabular(lambda key: gamblers_problem(), 10_000, gamma=1.0),
    "JacksCarRental-tabular": Tabular(lambda key: jacks_car_rental(), 100, gamma=0.9),
    "Blackjack-tabular": Tabular(lambda key: blackjack(), 100, gamma=1.0),
    "Ledge-tabular": Tabular(lambda key: ledge(0.01), 100, gamma=0.99),
    "SteadyLedge-tabular": Tabular(lambda key: ledge(0.0), 100, gamma=0.99),
    "MaximizationBias-tabular": Tabular(lambda key: maximization_bias(), 10, gamma=1.0),
    "Garnet-tabular": Tabular(garnet, 100, gamma=0.99, random=True),
    "IcyGridWorld-tabular": Tabular(lambda key: icy_grid_world(), 100, gamma=0.7, grid=ICY_GRID),
    "Macrocells-tabular": Tabular(macrocells, 1_000, gamma=0.99, random=True, grid=MACROCELLS),
    "RandomMaze-tabular": Tabular(random_maze, 1_000, gamma=1.0, random=True, grid=RANDOM_MAZE),
}


def make_mdp(env_id: str, key: jax.Array | None = None) -> MDP:
    """Return the MDP of an id, or raise ValueError; `key` (default: key 0) draws a random one."""
    return lookup(TABULAR, env_id, "tabular MDP").make(jax.random.key(0) if key is None else key)


def id_after(env_id: str, num_steps: int) -> str:
    """Return the id of what an environment is after so many of its steps, and then remains.

    That is `env_id` itself, unless it is the id of an MDP that changes, or of its history.
    """
    name, dash, history = env_id.partition("-history")
    entry = TABULAR.get(name)
    if entry is None or entry.change_after is None:
        return env_id
    return entry.phases[num_steps >= entry.change_after] + dash + history


def make_tabular_env(env_id: str, num_envs: int) -> Env:
    """Return `num_envs` copies of a tabular MDP, whose observations are numbers of states.

    ValueError if there is no such id. After `change_after` steps of an environment, over all its
    episodes, the MDP becomes that of the second of its `phases`.
    """
    entry = lookup(TABULAR, env_id, "tabular MDP")
    max_steps, change_after = entry.max_steps, entry.change_after
    with jax.ensure_compile_time_eval():  # a random MDP, too, is a constant
        mdp = jax.tree.map(np.asarray, make_mdp(env_id))
    num_states, num_actions, _ = mdp.P.shape
    P, R, start, terminal, noise, *_ = mdp
    start = np.cumsum(start)
    if change_after is not None:  # copied for Maze-tabular
        # The states of the changed MDP follow those of the first.
        changed = make_mdp(entry.phases[1])
        P, R = np.concatenate([P, changed.P]), np.concatenate([R, changed.R])
        start = np.stack([start, np.cumsum(changed.start)])
        terminal = np.concatenate([terminal, changed.terminal])

    # At most K states can follow (s, a); tables of these [S, A, K] make a step cost K, not S.
    num_successors = int((P > 0).sum(-1).max())
    successor = np.argsort(P <= 0, axis=-1, kind="stable")[..., :num_successors].astype(np.int32)
    cumulative = np.cumsum(np.take_along_axis(P, successor, -1), axis=-1)
    reward_table = np.take_along_axis(R, successor, -1)

    def draw(key, cumulative):
        """Return the index of the first cumulative probability above a uniform number."""
        u = jax.random.uniform(key) * cumulative[-1]
        return jnp.minimum(jnp.sum(u >= cumulative), cumulative.shape[0] - 1).astype(jnp.int32)

    def draw_start(key, age):
        now = start if change_after is None else jnp.asarray(start)[1 * (age >= change_after)]
        return draw(key, jnp.asarray(now, float))

    def reset(key):
        state = draw_start(key, 0)
        return state, (state, jnp.int32(0), jnp.int32(0))

    def step(key, inner, action):
        state, time, age = inner  # time: steps of this episode; age: steps of all episodes
        key_next, key_reset, *key_noise = jax.random.split(key, 2 if noise is None else 3)
        shift = 0 if change_after is None else num_states * (age >= change_after)
        row = state + shift
        k = draw(key_next, jnp.asarray(cumulative, float)[row, action])
        next_state = jnp.asarray(successor)[row, action, k]
        reward = jnp.asarray(reward_table, float)[row, action, k]
        if noise is not None:
            reward += jnp.asarray(noise, float)[row, action] * jax.random.normal(*key_noise)
        terminated = jnp.asarray(terminal)[next_state + shift]
        truncated = time + 1 >= max_steps
        done = terminated | truncated
        obs = jnp.where(done, draw_start(key_reset, age + 1), next_state)
        inner = (obs, jnp.where(done, 0, time + 1), age + 1)
        return obs, inner, reward, terminated, truncated, next_state

    fields = {"num_states": num_states, "num_actions": num_actions, "max_steps": max_steps}
    fields["gamma"] = entry.gamma  # copied for gamma: float | None
    return batch_env(reset, step, num_envs, **fields)
