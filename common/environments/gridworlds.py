"""Grid worlds as MDPs.

States are the cells, numbered row by row from the top left: s = row * width + column. Walls have
numbers too; no transition leads into them, and they are terminal.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from common.environments.mdp import MDP, tabulate

UP, RIGHT, DOWN, LEFT = (-1, 0), (0, 1), (1, 0), (0, -1)  # (row, column)


class Grid(NamedTuple):
    """A grid world's cells and the directions of its actions."""

    layout: list[str]  # rows of letters: # and x are walls; each MDP explains its other letters
    directions: list[tuple[int, int]]  # (row, column) of each action


def cells(layout: list[str], letters: str) -> np.ndarray:
    """Return which cells of a layout are marked with one of `letters`, [S] bool."""
    return np.array([letter in letters for letter in "".join(layout)])


def move(layout: list[str], state: int, direction: tuple[int, int]) -> int:
    """Return the neighbouring cell in a direction, or `state` where that is a wall or outside."""
    height, width = len(layout), len(layout[0])
    row, column = divmod(state, width)
    row = min(max(row + direction[0], 0), height - 1)
    column = min(max(column + direction[1], 0), width - 1)
    return state if layout[row][column] in "#x" else row * width + column


CLIFF = Grid(["............"] * 3 + ["SCCCCCCCCCCG"], [UP, RIGHT, DOWN, LEFT])


def cliff_walking() -> MDP:
    """Walk along a cliff: Sutton & Barto 2018, Example 6.6; numbered as CliffWalking-v1.

    Start S = 36, goal G = 47 (terminal). Actions: up, right, down, left. Reward -1 a step; a step
    into the cliff C costs -100 and leads back to S.
    """
    layout = CLIFF.layout
    cliff = cells(layout, "C")
    start_state = "".join(layout).index("S")

    def outcomes(state, action):
        next_state = move(layout, state, CLIFF.directions[action])
        return [(1.0, start_state, -100.0) if cliff[next_state] else (1.0, next_state, -1.0)]

    return tabulate(cells(layout, "S"), cells(layout, "G"), 4, outcomes)


LAKE_4X4 = Grid(["SFFF", "FHFH", "FFFH", "HFFG"], [LEFT, DOWN, RIGHT, UP])
LAKE_8X8 = Grid(
    [
        "SFFFFFFF",
        "FFFFFFFF",
        "FFFHFFFF",
        "FFFFFHFF",
        "FFFHFFFF",
        "FHHFFFHF",
        "FHFFHFHF",
        "FFFHFFFG",
    ],
    [LEFT, DOWN, RIGHT, UP],
)


def frozen_lake(grid: Grid = LAKE_4X4, is_slippery: bool = True) -> MDP:
    """Cross a frozen lake: gymnasium's FrozenLake-v1.

    Start S, frozen F, holes H and goal G (both terminal). Actions: left, down, right, up; on
    slippery ice the step goes in that direction or at a right angle to it, with probability 1/3
    each. Reward 1 for reaching G, else 0.
    <https://gymnasium.farama.org/environments/toy_text/frozen_lake/>
    """
    layout, directions = grid.layout, grid.directions
    goal = cells(layout, "G")

    def outcomes(state, action):
        slips = [-1, 0, 1] if is_slippery else [0]  # directions are sorted by angle
        steps = [move(layout, state, directions[(action + slip) % 4]) for slip in slips]
        return [(1.0 / len(steps), step, float(goal[step])) for step in steps]

    return tabulate(cells(layout, "S"), cells(layout, "HG"), 4, outcomes)


GRID_4X4 = Grid(["T...", "....", "....", "...T"], [UP, DOWN, RIGHT, LEFT])


def grid_world() -> MDP:
    """Walk to a corner of a 4x4 grid: Sutton & Barto 2018, Example 4.1.

    Terminal corners T. Actions: up, down, right, left. Reward -1 a step. Start: uniform over the
    states that are not terminal.
    """
    layout = GRID_4X4.layout
    terminal = cells(layout, "T")

    def outcomes(state, action):
        return [(1.0, move(layout, state, GRID_4X4.directions[action]), -1.0)]

    return tabulate(~terminal, terminal, 4, outcomes)


GRID_5X5 = Grid([".A.B.", ".....", "...b.", ".....", ".a..."], [UP, DOWN, RIGHT, LEFT])


def grid_world_5x5() -> MDP:
    """Jump on a 5x5 grid without end: Sutton & Barto 2018, Example 3.5, Figures 3.2 and 3.5.

    Every action in A leads to a with reward 10, in B to b with reward 5. Actions: north, south,
    east, west. A step off the grid does not move the agent, and has reward -1; other rewards are 0.
    No state is terminal. Start: uniform. γ = .9.
    """
    layout = GRID_5X5.layout
    A, B, a, b = ("".join(layout).index(letter) for letter in "ABab")
    jumps = {A: (1.0, a, 10.0), B: (1.0, b, 5.0)}

    def outcomes(state, action):
        next_state = move(layout, state, GRID_5X5.directions[action])
        step = (1.0, next_state, -1.0 if next_state == state else 0.0)
        return [jumps.get(state, step)]

    return tabulate(np.ones(25), np.zeros(25, bool), 4, outcomes)


WINDY = Grid(
    [
        "..........",
        "..........",
        "..........",
        "S......G..",
        "..........",
        "..........",
        "..........",
    ],
    [UP, RIGHT, DOWN, LEFT],
)


def windy_grid_world() -> MDP:
    """Walk through a crosswind: Sutton & Barto 2018, Example 6.5.

    Start S, goal G (terminal). Actions: up, right, down, left. After the step the wind moves the
    agent up, by a number of cells that depends on the column it came from. Reward -1 a step.
    """
    layout = WINDY.layout
    wind = [0, 0, 0, 1, 1, 1, 2, 2, 1, 0]

    def outcomes(state, action):
        next_state = move(layout, state, WINDY.directions[action])
        for _ in range(wind[state % len(wind)]):
            next_state = move(layout, next_state, UP)
        return [(1.0, next_state, -1.0)]

    return tabulate(cells(layout, "S"), cells(layout, "G"), 4, outcomes)


# x: a wall that appears or disappears when the maze changes; an agent inside may leave.
DYNA_MAZE = Grid(
    [
        ".......#G",
        "..#....#.",
        "S.#....#.",
        "..#......",
        ".....#...",
        ".........",
    ],
    [UP, DOWN, RIGHT, LEFT],
)
OPEN_RIGHT, OPEN_LEFT, OPEN_BOTH = (
    Grid(
        ["........G", ".........", ".........", wall, ".........", "...S....."],
        [UP, DOWN, RIGHT, LEFT],
    )
    for wall in ("x#######.", ".#######x", ".#######.")
)


def maze(grid: Grid, slip: float = 0.0) -> MDP:
    """Find the way from S to the goal G (terminal): reward 1 for reaching G, else 0.

    Actions: those of the grid; with probability `slip` the step goes in one of the other
    directions, each equally likely. A step into a wall or off the grid does not move the agent.
    Start: uniform over the S. Sutton & Barto 2018: Example 8.1 is DYNA_MAZE, with γ = .95; Example
    8.2 changes from OPEN_RIGHT to OPEN_LEFT, Example 8.3 from OPEN_LEFT to OPEN_BOTH.
    """
    layout, directions = grid.layout, grid.directions
    goal = cells(layout, "G")

    def outcomes(state, action):
        others = slip / (len(directions) - 1)
        probabilities = [1 - slip if i == action else others for i in range(len(directions))]
        steps = [move(layout, state, direction) for direction in directions]
        return [(p, s, float(goal[s])) for p, s in zip(probabilities, steps, strict=True) if p]

    return tabulate(cells(layout, "S"), cells(layout, "G#"), len(directions), outcomes)


FOUR_ROOMS = Grid(
    [
        "#############",
        "#SSSSS#SSSSS#",
        "#SSSSS#SSSSS#",
        "#SSSSSSSSSSS#",
        "#SSSSS#SSSSS#",
        "#SSSSS#SSSSS#",
        "##S####SSSSS#",
        "#SSSSS###G###",
        "#SSSSS#SSSSS#",
        "#SSSSS#SSSSS#",
        "#SSSSSSSSSSS#",
        "#SSSSS#SSSSS#",
        "#############",
    ],
    [UP, DOWN, LEFT, RIGHT],
)


SECOND_GOAL = Grid(
    [
        *(row.replace("G", "S") for row in FOUR_ROOMS.layout[:10]),
        "#SSSSSSSSSGS#",
        *FOUR_ROOMS.layout[11:],
    ],
    FOUR_ROOMS.directions,
)


def four_rooms(grid: Grid = FOUR_ROOMS) -> MDP:
    """Walk between four rooms: Sutton, Precup & Singh 1999.

    <https://doi.org/10.1016/S0004-3702(99)00052-1>. A maze whose steps slip with probability 1/3,
    in each other direction with 1/9. Actions: up, down, left, right. Start: uniform. G of
    FOUR_ROOMS is the paper's G1, the hallway in the east, γ = .9. In Bacon et al. 2017,
    <https://arxiv.org/abs/1609.05140>, the goal moves from there into the lower right room, γ =
    .99: SECOND_GOAL has it in one of that room's 20 cells.
    """
    return maze(grid, slip=1 / 3)


ICY_GRID = Grid(["S....", "...J.", ".....", ".....", "....G"], [UP, RIGHT, DOWN, LEFT])


def icy_grid_world() -> MDP:
    """Slide on a 5x5 grid: the example of irl-maxent, <https://github.com/qzed/irl-maxent>.

    Start S, goal G (terminal). Actions: up, right, down, left; with probability .2 the step goes in
    any direction, all equally likely. A step off the grid does not move the agent. Reward 1 for
    reaching G, .65 for each arrival at J, else 0. γ = .7.
    """
    layout, directions = ICY_GRID.layout, ICY_GRID.directions
    reward = cells(layout, "G") + 0.65 * cells(layout, "J")

    def outcomes(state, action):
        steps = [move(layout, state, direction) for direction in directions]
        probabilities = [0.05 + 0.8 * (i == action) for i in range(4)]
        return [(p, s, reward[s]) for p, s in zip(probabilities, steps, strict=True)]

    return tabulate(cells(layout, "S"), cells(layout, "G"), 4, outcomes)


MACROCELLS = Grid(["." * 32] * 32, [UP, RIGHT, DOWN, LEFT])


def macrocells(key: jax.Array) -> MDP:
    """Draw the reward of a grid: Abbeel & Ng 2004, <https://doi.org/10.1145/1015330.1015430>.

    32x32 cells (the paper has 128x128) make up 16 macrocells of 8x8 (64 of 16x16), whose indicators
    are the features. Weights of the features: 0 with probability .9, else uniform over [0, 1], at
    least two of them not 0, divided by their sum; the reward of every step from a state is the
    weight of its macrocell. Actions: up, right, down, left; with probability .3 the step goes in
    any direction, all equally likely. No state is terminal. Start: uniform. γ = .99.
    """
    layout, directions = MACROCELLS.layout, MACROCELLS.directions
    row, column = np.divmod(np.arange(32 * 32), 32)
    features = np.eye(16)[row // 8 * 4 + column // 8]

    def outcomes(state, action):
        probabilities = [0.075 + 0.7 * (i == action) for i in range(4)]
        steps = [move(layout, state, direction) for direction in directions]
        return [(p, s, 0.0) for p, s in zip(probabilities, steps, strict=True)]

    key_chosen, key_weights = jax.random.split(key)
    tries = jax.random.bernoulli(key_chosen, 0.1, (64, 16))  # about half of them have two or more
    chosen = tries[jnp.argmax(jnp.sum(tries, axis=1) >= 2)]
    weights = chosen * jax.random.uniform(key_weights, (16,))
    reward = features @ (weights / jnp.sum(weights))

    mdp = tabulate(np.ones(32 * 32), np.zeros(32 * 32, bool), 4, outcomes)
    return mdp._replace(R=jnp.broadcast_to(reward[:, None, None], mdp.P.shape), features=features)


RANDOM_MAZE = Grid(["." * 21] * 21, [UP, RIGHT, DOWN, LEFT])  # its walls depend on the key


@jax.jit  # compiled once, and faster than step by step
def random_maze(key: jax.Array) -> MDP:
    """Draw a maze: a minimum spanning tree of 10x10 rooms with random weights (Prim 1957,
    <https://doi.org/10.1002/j.1538-7305.1957.tb01515.x>), and each other door with probability .2.

    Rooms are the cells with odd row and column, doors are between two of them, all other cells are
    walls. Actions: up, right, down, left; a step into a wall does not move the agent. Reward -1 a
    step. Start and goal (terminal) are two rooms, drawn uniformly.
    """
    key_weights, key_doors, key_ends = jax.random.split(key, 3)
    layout, directions = RANDOM_MAZE.layout, RANDOM_MAZE.directions
    rooms = np.arange(100).reshape(10, 10)
    room_cells = (21 * (2 * (rooms // 10) + 1) + 2 * (rooms % 10) + 1).ravel()
    pairs = [rooms[1:], rooms[:-1]], [rooms[:, 1:], rooms[:, :-1]]
    doors = jnp.concatenate([jnp.reshape(jnp.array(pair), (2, -1)) for pair in pairs], axis=1)
    weights = jax.random.uniform(key_weights, doors.shape[1:])

    def join(_, carry):
        """Open the lightest of the doors that lead out of the tree."""
        in_tree, is_open = carry
        leads_out = in_tree[doors[0]] != in_tree[doors[1]]
        door = jnp.argmin(jnp.where(leads_out, weights, jnp.inf))
        return in_tree.at[doors[:, door]].set(True), is_open.at[door].set(True)

    start = jnp.arange(100) == 0, jax.random.bernoulli(key_doors, 0.2, weights.shape)
    _, is_open = jax.lax.fori_loop(0, 99, join, start)
    is_wall = jnp.ones(21 * 21, bool).at[room_cells].set(False)
    is_wall = is_wall.at[jnp.sum(jnp.array(room_cells)[doors], axis=0) // 2].set(~is_open)

    states = np.arange(21 * 21)
    ends = jax.random.choice(key_ends, room_cells, (2,), replace=False)
    is_start, is_goal = ends[:, None] == states
    terminal = is_wall | is_goal
    steps = np.array([[move(layout, state, x) for x in directions] for state in range(len(states))])
    stays = is_wall[steps] | terminal[:, None]
    P = jax.nn.one_hot(jnp.where(stays, states[:, None], steps), len(states), dtype=float)
    R = jnp.broadcast_to(jnp.where(terminal, 0, -1).astype(float)[:, None, None], P.shape)
    return MDP(P, R, is_start.astype(float), terminal)
