"""Tabular Markov decision processes as arrays, for dynamic programming and for sampling alike.

    q(s,a) = Σ_s' P(s'|s,a) [r(s,a,s') + γ v(s')]

P(s'|s,a) and r(s,a,s') are equations 3.4 and 3.6 of Sutton & Barto 2018, Reinforcement Learning,
<http://incompleteideas.net/book/the-book-2nd.html>. The reward keeps its s' because sampling (of
FrozenLake, say) needs the reward of the outcome, and gymnasium's tables are checked entry by entry.

The fixed MDPs are NumPy arrays in float64; the random one is made with jax.random, so that it
traces under jit and vmap over its key. Grids are numbered row by row from the top left:
s = row * width + column.
"""

from collections.abc import Callable
from difflib import get_close_matches
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class MDP(NamedTuple):
    """A finite MDP. Terminal states are absorbing with reward 0, so their value is 0."""

    P: np.ndarray | jax.Array  # [S, A, S'] transition probabilities
    R: np.ndarray | jax.Array  # [S, A, S'] reward of each transition
    start: np.ndarray | jax.Array  # [S] start distribution
    terminal: np.ndarray | jax.Array  # [S] bool


def tabulate(start, terminal, num_actions, outcomes) -> MDP:
    """P(s'|s,a) = Σ p and r(s,a,s') = Σ p r / Σ p, over the outcomes of (s,a) that lead to s'.

    `outcomes(state, action)` is a list of (probability, next state, reward); the ends of episodes
    are added here. `start`: [S] weights, made to sum to 1. `terminal`: [S] bool.
    """
    num_states = len(terminal)
    P = np.zeros((num_states, num_actions, num_states))
    R = np.zeros((num_states, num_actions, num_states))
    for state in range(num_states):
        for action in range(num_actions):
            if terminal[state]:
                P[state, action, state] = 1.0
                continue
            for probability, next_state, reward in outcomes(state, action):
                P[state, action, next_state] += probability
                R[state, action, next_state] += probability * reward
    np.divide(R, P, out=R, where=P > 0)
    return MDP(P, R, start / np.sum(start), terminal)


UP, RIGHT, DOWN, LEFT = (-1, 0), (0, 1), (1, 0), (0, -1)  # (row, column)


def cells(layout, letters) -> np.ndarray:
    """[S] bool: the cells of a layout (a list of rows) that bear one of `letters`."""
    return np.array([letter in letters for letter in "".join(layout)])


def move(layout, state, direction) -> int:
    """The neighbouring cell in that direction; at the edge of the grid, the same cell."""
    height, width = len(layout), len(layout[0])
    row, column = divmod(state, width)
    row = min(max(row + direction[0], 0), height - 1)
    column = min(max(column + direction[1], 0), width - 1)
    return row * width + column


def cliff_walking() -> MDP:
    """Walk along a cliff: Sutton & Barto 2018, Example 6.6; numbered as CliffWalking-v1.

    Start S = 36, goal G = 47 (terminal). Actions: up, right, down, left. Reward -1 a step; a step
    into the cliff C costs -100 and leads back to S.
    """
    layout = ["............", "............", "............", "SCCCCCCCCCCG"]
    cliff = cells(layout, "C")
    start_state = "".join(layout).index("S")

    def outcomes(state, action):
        next_state = move(layout, state, [UP, RIGHT, DOWN, LEFT][action])
        return [(1.0, start_state, -100.0) if cliff[next_state] else (1.0, next_state, -1.0)]

    return tabulate(cells(layout, "S"), cells(layout, "G"), 4, outcomes)


FROZEN_LAKES = {
    "4x4": ["SFFF", "FHFH", "FFFH", "HFFG"],
    "8x8": [
        "SFFFFFFF",
        "FFFFFFFF",
        "FFFHFFFF",
        "FFFFFHFF",
        "FFFHFFFF",
        "FHHFFFHF",
        "FHFFHFHF",
        "FFFHFFFG",
    ],
}


def frozen_lake(map_name="4x4", is_slippery=True) -> MDP:
    """Cross a frozen lake: gymnasium's FrozenLake-v1.

    Start S, frozen F, holes H and goal G (both terminal). Actions: left, down, right, up; on
    slippery ice the step goes in that direction or to either side of it, with probability 1/3
    each. Reward 1 for reaching G, else 0.
    <https://gymnasium.farama.org/environments/toy_text/frozen_lake/>
    """
    layout = FROZEN_LAKES[map_name]
    goal = cells(layout, "G")
    directions = [LEFT, DOWN, RIGHT, UP]  # in a circle: the neighbours in the list are the sides

    def outcomes(state, action):
        slips = [-1, 0, 1] if is_slippery else [0]
        steps = [move(layout, state, directions[(action + slip) % 4]) for slip in slips]
        return [(1.0 / len(steps), step, float(goal[step])) for step in steps]

    return tabulate(cells(layout, "S"), cells(layout, "HG"), 4, outcomes)


def taxi() -> MDP:
    """Fetch a passenger: Dietterich 2000, <https://arxiv.org/abs/cs/9905014>, as in Taxi-v4.

    State ((row * 5 + column) * 5 + passenger) * 4 + destination: the taxi's cell on a 5x5 grid, the
    passenger's place (stand 0 to 3 = R, G, Y, B; 4 = in the taxi) and the stand to go to. Actions:
    south, north, east, west, pick up, put down. Reward -1 a step, 20 for delivery, -10 for picking
    up nobody and for putting down nobody or away from a stand (at a wrong stand it is allowed).
    Terminal: the passenger is at the destination. Start: uniform over the states with the passenger
    at another stand, where the paper's may be at the destination and still wants a ride.
    """
    # `|` is a wall, `:` is open; the cell (row, column) is the character 2 * column + 1 of the row.
    layout = ["|R: | : :G|", "| : | : : |", "| : : : : |", "| | : | : |", "|Y| : |B: |"]
    stands = [(0, 0), (0, 4), (4, 0), (4, 3)]
    shape = (5, 5, 5, 4)
    in_taxi = 4

    def outcomes(state, action):
        row, column, passenger, destination = np.unravel_index(state, shape)
        stand = stands.index((row, column)) if (row, column) in stands else None
        reward = -1.0
        if action == 0:
            row = min(row + 1, 4)
        elif action == 1:
            row = max(row - 1, 0)
        elif action == 2:
            column += layout[row][2 * column + 2] == ":"
        elif action == 3:
            column -= layout[row][2 * column] == ":"
        elif action == 4 and passenger == stand:
            passenger = in_taxi
        elif action == 5 and passenger == in_taxi and stand is not None:
            passenger = stand
            reward = 20.0 if stand == destination else -1.0
        else:
            reward = -10.0
        return [(1.0, np.ravel_multi_index((row, column, passenger, destination), shape), reward)]

    _, _, passenger, destination = np.unravel_index(np.arange(500), shape)
    terminal = passenger == destination
    return tabulate(~terminal & (passenger != in_taxi), terminal, 6, outcomes)


def grid_world() -> MDP:
    """The 4x4 grid of policy evaluation: Sutton & Barto 2018, Example 4.1.

    Terminal corners T. Actions: up, down, right, left. Reward -1 a step. Start: uniform over the
    states that are not terminal.
    """
    layout = ["T...", "....", "....", "...T"]
    terminal = cells(layout, "T")

    def outcomes(state, action):
        return [(1.0, move(layout, state, [UP, DOWN, RIGHT, LEFT][action]), -1.0)]

    return tabulate(~terminal, terminal, 4, outcomes)


def grid_world_5x5() -> MDP:
    """The continuing 5x5 grid: Sutton & Barto 2018, Example 3.5 (values in Figures 3.2 and 3.5).

    Every action in A leads to a with reward 10, in B to b with reward 5. Actions: north, south,
    east, west. A step off the grid leaves the state as it is, with reward -1; other rewards are 0.
    No state is terminal. Start: uniform.
    """
    layout = [".A.B.", ".....", "...b.", ".....", ".a..."]
    A, B, a, b = ("".join(layout).index(letter) for letter in "ABab")
    jumps = {A: (1.0, a, 10.0), B: (1.0, b, 5.0)}

    def outcomes(state, action):
        next_state = move(layout, state, [UP, DOWN, RIGHT, LEFT][action])
        step = (1.0, next_state, -1.0 if next_state == state else 0.0)
        return [jumps.get(state, step)]

    return tabulate(np.ones(25), np.zeros(25, bool), 4, outcomes)


def garnet(key, num_states=30, num_actions=4, branching=5) -> MDP:
    """A random MDP: Archibald, McKinnon & Thomas 1995, <https://doi.org/10.1057/jors.1995.50>.

    Each (s,a) has `branching` distinct successors, all sets equally likely; their probabilities are
    the gaps between branching - 1 sorted uniform cut points of [0, 1]. Rewards r(s,a) ~ N(0, 1),
    the same for every s'. No state is terminal. Start: uniform.
    """
    key_successors, key_cuts, key_rewards = jax.random.split(key, 3)
    pairs = (num_states, num_actions)

    states = jnp.broadcast_to(jnp.arange(num_states), (*pairs, num_states))
    shuffled = jax.random.permutation(key_successors, states, axis=-1, independent=True)
    cuts = jnp.sort(jax.random.uniform(key_cuts, (*pairs, branching - 1)), axis=-1)
    probabilities = jnp.diff(cuts, prepend=0.0, append=1.0)
    rewards = jax.random.normal(key_rewards, (*pairs, 1))

    nowhere = jnp.zeros((*pairs, num_states))
    successors = shuffled[..., :branching]
    return MDP(
        P=jnp.put_along_axis(nowhere, successors, probabilities, axis=-1, inplace=False),
        R=jnp.broadcast_to(rewards, nowhere.shape),
        start=jnp.ones(num_states) / num_states,
        terminal=jnp.zeros(num_states, bool),
    )


class Tabular(NamedTuple):
    """What an id stands for."""

    make: Callable[[jax.Array], MDP]  # of a key, which the fixed MDPs ignore
    max_steps: int  # steps, the time limit when it is sampled as an environment
    random: bool  # does the MDP depend on the key?


TABULAR = {
    "CliffWalking-tabular": Tabular(lambda key: cliff_walking(), 10_000, random=False),
    "FrozenLake-tabular": Tabular(lambda key: frozen_lake("4x4"), 100, random=False),
    "FrozenLake8x8-tabular": Tabular(lambda key: frozen_lake("8x8"), 200, random=False),
    "Taxi-tabular": Tabular(lambda key: taxi(), 200, random=False),
    "GridWorld-tabular": Tabular(lambda key: grid_world(), 1_000, random=False),
    "GridWorld5x5-tabular": Tabular(lambda key: grid_world_5x5(), 100, random=False),
    "Garnet-tabular": Tabular(garnet, 100, random=True),
}


def make_mdp(env_id, key=None) -> MDP:
    """The MDP of that id; a random one is drawn with `key`, or with jax.random.key(0)."""
    if env_id not in TABULAR:
        closest = get_close_matches(env_id, TABULAR, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"there is no tabular MDP {env_id!r}; did you mean {closest!r}? "
            f"Choose with --env-id, one of: {', '.join(TABULAR)}"
        )
    return TABULAR[env_id].make(jax.random.key(0) if key is None else key)
