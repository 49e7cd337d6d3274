"""Tabular Markov decision processes as arrays, for dynamic programming and for sampling alike.

    q(s,a) = Σ_s' P(s'|s,a) [r(s,a,s') + γ v(s')]

P(s'|s,a) and r(s,a,s') are equations 3.4 and 3.6 of Sutton & Barto 2018, Reinforcement Learning,
<http://incompleteideas.net/book/the-book-2nd.html>. The reward keeps its s' because sampling (of
FrozenLake, say) needs the reward of the outcome, and gymnasium's tables are checked entry by entry.

The fixed MDPs are NumPy arrays in float64; the random one is made with jax.random, so that it
traces under jit and vmap over its key. Grids are numbered row by row from the top left:
s = row * width + column. Walls have numbers too; nothing leads into them, and they are terminal.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from common.algorithm import lookup


class MDP(NamedTuple):
    """A finite MDP. Terminal states are absorbing with reward 0, so their value is 0."""

    P: np.ndarray | jax.Array  # [S, A, S'] transition probabilities
    R: np.ndarray | jax.Array  # [S, A, S'] reward of each transition
    start: np.ndarray | jax.Array  # [S] start distribution
    terminal: np.ndarray | jax.Array  # [S] bool
    noise: np.ndarray | None = None  # [S, A] standard deviation of a normal reward around R


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


class Grid(NamedTuple):
    """A grid world's cells, and where its actions lead."""

    layout: list[str]  # rows of letters: # and x are walls, what others mean is the MDP's affair
    directions: list[tuple[int, int]]  # (row, column) of each action


def cells(layout, letters) -> np.ndarray:
    """[S] bool: the cells of a layout (a list of rows) that bear one of `letters`."""
    return np.array([letter in letters for letter in "".join(layout)])


def move(layout, state, direction) -> int:
    """The cell in that direction; at the edge of the grid it stops, and a wall keeps it away."""
    height, width = len(layout), len(layout[0])
    row, column = divmod(state, width)
    row = min(max(row + direction[0], 0), height - 1)
    column = min(max(column + direction[1], 0), width - 1)
    return state if layout[row][column] in "#x" else row * width + column


CLIFF = Grid(
    ["............", "............", "............", "SCCCCCCCCCCG"], [UP, RIGHT, DOWN, LEFT]
)


def cliff_walking() -> MDP:
    """Walk along a cliff: Sutton & Barto 2018, Example 6.6; numbered as CliffWalking-v1.

    Start S = 36, goal G = 47 (terminal). Actions: up, right, down, left. Reward -1 a step; a step
    into the cliff C costs -100 and leads back to S.
    """
    layout, directions = CLIFF
    cliff = cells(layout, "C")
    start_state = "".join(layout).index("S")

    def outcomes(state, action):
        next_state = move(layout, state, directions[action])
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


def frozen_lake(grid=LAKE_4X4, is_slippery=True) -> MDP:
    """Cross a frozen lake: gymnasium's FrozenLake-v1.

    Start S, frozen F, holes H and goal G (both terminal). Actions: left, down, right, up; on
    slippery ice the step goes in that direction or to either side of it, with probability 1/3
    each. Reward 1 for reaching G, else 0.
    <https://gymnasium.farama.org/environments/toy_text/frozen_lake/>
    """
    layout, directions = grid  # in a circle: the neighbours in the list are the sides
    goal = cells(layout, "G")

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


GRID_4X4 = Grid(["T...", "....", "....", "...T"], [UP, DOWN, RIGHT, LEFT])


def grid_world() -> MDP:
    """The 4x4 grid of policy evaluation: Sutton & Barto 2018, Example 4.1.

    Terminal corners T. Actions: up, down, right, left. Reward -1 a step. Start: uniform over the
    states that are not terminal.
    """
    layout, directions = GRID_4X4
    terminal = cells(layout, "T")

    def outcomes(state, action):
        return [(1.0, move(layout, state, directions[action]), -1.0)]

    return tabulate(~terminal, terminal, 4, outcomes)


GRID_5X5 = Grid([".A.B.", ".....", "...b.", ".....", ".a..."], [UP, DOWN, RIGHT, LEFT])


def grid_world_5x5() -> MDP:
    """The continuing 5x5 grid: Sutton & Barto 2018, Example 3.5 (values in Figures 3.2 and 3.5).

    Every action in A leads to a with reward 10, in B to b with reward 5. Actions: north, south,
    east, west. A step off the grid leaves the state as it is, with reward -1; other rewards are 0.
    No state is terminal. Start: uniform.
    """
    layout, directions = GRID_5X5
    A, B, a, b = ("".join(layout).index(letter) for letter in "ABab")
    jumps = {A: (1.0, a, 10.0), B: (1.0, b, 5.0)}

    def outcomes(state, action):
        next_state = move(layout, state, directions[action])
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

    Start S, goal G (terminal). Actions: up, right, down, left. Where the step leads, the wind of
    the column that was left then blows so many cells up. Reward -1 a step.
    """
    layout, directions = WINDY
    wind = [0, 0, 0, 1, 1, 1, 2, 2, 1, 0]

    def outcomes(state, action):
        next_state = move(layout, state, directions[action])
        for _ in range(wind[state % len(wind)]):
            next_state = move(layout, next_state, UP)
        return [(1.0, next_state, -1.0)]

    return tabulate(cells(layout, "S"), cells(layout, "G"), 4, outcomes)


# x: a wall that is not there at another time, so that who stands in it may step out.
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


def maze(grid, slip=0.0) -> MDP:
    """Find the way from S to the goal G (terminal): reward 1 for reaching G, else 0.

    Actions: those of the grid; with probability `slip` the step goes in one of the other
    directions, each equally likely. A step into a wall or off the grid leaves the state as it is.
    Start: uniform over the S. Sutton & Barto 2018: DYNA_MAZE of Example 8.1; OPEN_RIGHT, which
    changes to OPEN_LEFT, of Example 8.2; OPEN_LEFT, which changes to OPEN_BOTH, of Example 8.3.
    """
    layout, directions = grid
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


def four_rooms() -> MDP:
    """Walk between four rooms: Sutton, Precup & Singh 1999, <https://doi.org/10.1016/S0004-3702(99)00052-1>.

    A maze whose steps go astray with probability 1/3, in each other direction with 1/9. Actions:
    up, down, left, right. G is the paper's G1, the hallway in the east. Start: uniform.
    """
    return maze(FOUR_ROOMS, slip=1 / 3)


def gamblers_problem(p_heads=0.4) -> MDP:
    """Bet on a coin to reach 100: Sutton & Barto 2018, Example 4.3.

    State: the capital; 0 and 100 are terminal. Action a stakes a + 1, but no more than there is and
    no more than 100 needs; the book's stake of 0, which changes nothing, is left out. Heads, with
    probability p_heads, win the stake. Reward 1 for reaching 100, else 0. Start: uniform over 1 to
    99.
    """
    capital = np.arange(101)
    terminal = (capital == 0) | (capital == 100)

    def outcomes(state, action):
        stake = min(action + 1, state, 100 - state)
        heads, tails = state + stake, state - stake
        return [(p_heads, heads, float(heads == 100)), (1 - p_heads, tails, 0.0)]

    return tabulate(~terminal, terminal, 50, outcomes)


def jacks_car_rental() -> MDP:
    """Two places to rent a car at: Sutton & Barto 2018, Example 4.2. The discount is .9.

    State 21 i + j: i cars at the first place and j at the second, in the evening. Action a moves
    a - 5 cars overnight from the first to the second (below 0: the other way), but no more than
    there are, for 2 each. By day customers rent cars, for 10 each while there are any, and bring
    cars back, to be rented the day after. Requests and returns are Poisson: with means 3 and 3 at
    the first place, 4 and 2 at the second. No more than 20 cars stay at a place. No state is
    terminal. Start: 10 cars at each. r(s,a,s') is the mean over the days that end in s'.
    """

    def poisson(mean, most):
        """Probabilities of 0, 1, ..., most - 1, and of `most` or more."""
        p = [math.exp(-mean) * mean**n / math.factorial(n) for n in range(100)]
        return np.array([*p[:most], sum(p[most:])])

    def day(mean_requests, mean_returns):
        """From every number of cars in the morning to that in the evening, [21, 21]: the
        probability, and the probability times the mean number of cars rented."""
        P, rented = np.zeros((2, 21, 21))
        returns = poisson(mean_returns, 20)
        for morning in range(21):
            for rent, p in enumerate(poisson(mean_requests, morning)):
                for back, q in enumerate(returns):
                    evening = min(morning - rent + back, 20)
                    P[morning, evening] += p * q
                    rented[morning, evening] += p * q * rent
        return P, rented

    (P1, rented1), (P2, rented2) = day(3, 3), day(4, 2)
    first, second, action = np.indices((21, 21, 11))
    moved = np.clip(action - 5, -second, first)
    first, second = np.minimum(first - moved, 20), np.minimum(second + moved, 20)

    both = lambda x, y: (x[first][..., :, None] * y[second][..., None, :]).reshape(441, 11, 441)
    P = both(P1, P2)
    cost = 2.0 * np.abs(moved).reshape(441, 11, 1)
    R = 10.0 * (both(rented1, P2) + both(P1, rented2)) / P - cost
    start = (np.arange(441) == 21 * 10 + 10).astype(float)
    return MDP(P, R, start, np.zeros(441, bool))


def blackjack() -> MDP:
    """Draw cards up to 21: Sutton & Barto 2018, Example 5.1; Blackjack-v1 with sab=True.

    State 100 * usable + 10 * (total - 12) + (card - 1): whether the player has an ace that counts
    11, the player's cards, 12 to 21, and the dealer's card, 1 (an ace) to 10. States 200 + card - 1
    are the naturals, an ace and a ten at once. 210, 211 and 212 are terminal: lost with reward -1,
    drawn with 0, won with 1. Actions: stick, hit. Cards come from an infinite deck.

    Below 12 no card can hurt, so it is taken before the player is asked: no state. A natural wins
    unless the dealer has one too; either action shows. The dealer hits below 17.
    <https://gymnasium.farama.org/environments/toy_text/blackjack/>
    """
    cards = [(card, (4 if card == 10 else 1) / 13) for card in range(1, 11)]
    lost, drawn, won = 210, 211, 212

    def add(total, usable, card):
        """A hand with one more card; an ace counts 11 where that does not go over 21."""
        if card == 1 and total + 11 <= 21:
            return total + 11, True
        if total + card > 21 and usable:
            return total + card - 10, False
        return total + card, usable

    @functools.cache
    def dealt(total, usable):
        """[22] probabilities of the dealer's final total; 0 stands for more than 21."""
        if total >= 17:
            return np.eye(22)[total if total <= 21 else 0]
        return sum(p * dealt(*add(total, usable, card)) for card, p in cards)

    def number(total, usable, dealers_card):
        return 100 * usable + 10 * (total - 12) + dealers_card - 1 if total <= 21 else lost

    def outcomes(state, action):
        dealers_card = state % 10 + 1
        if state >= 200:
            p = {1: 4 / 13, 10: 1 / 13}.get(dealers_card, 0.0)  # of the dealer's natural
            return [(p, drawn, 0.0), (1 - p, won, 1.0)]
        total, usable = state % 100 // 10 + 12, state >= 100
        if action == 0:
            p = dealt(*add(0, False, dealers_card))
            higher = p[total + 1 :].sum()
            return [(higher, lost, -1.0), (p[total], drawn, 0.0), (1 - higher - p[total], won, 1.0)]
        hands = [(p, number(*add(total, usable, card), dealers_card)) for card, p in cards]
        return [(p, hand, -1.0 if hand == lost else 0.0) for p, hand in hands]

    start = np.zeros(213)

    def deal(total, usable, num_cards, probability):
        """Adds to `start` all the hands that this one can become before the player is asked."""
        for card, p in cards:
            hand = add(total, usable, card)
            if num_cards == 0 or hand[0] < 12:
                deal(*hand, num_cards + 1, probability * p)
                continue
            for dealers_card, q in cards:
                natural = num_cards == 1 and hand[0] == 21
                state = 199 + dealers_card if natural else number(*hand, dealers_card)
                start[state] += probability * p * q

    deal(0, False, 0, 1.0)
    return tabulate(start, np.arange(213) >= lost, 2, outcomes)


def maximization_bias() -> MDP:
    """A choice that looks good by chance: Sutton & Barto 2018, Example 6.7.

    States A = 0 (the start), B = 1; 2 is terminal. In A even actions lead left, to B, and odd ones
    right, to the end, with reward 0. In B every action ends with a reward from N(-.1, 1).

    In the book there are two actions in A and "many" in B; here there are ten in each, because all
    states share one set of actions, and half of those in A lead left.
    """
    P = np.zeros((3, 10, 3))
    P[0, 0::2, 1] = P[0, 1::2, 2] = P[1, :, 2] = P[2, :, 2] = 1.0
    R = np.zeros((3, 10, 3))
    R[1, :, 2] = -0.1
    noise = np.zeros((3, 10))
    noise[1] = 1.0
    return MDP(P, R, np.array([1.0, 0.0, 0.0]), np.array([False, False, True]), noise)


def random_walk(num_states, left_reward) -> MDP:
    """Walk along a line: Sutton & Barto 2018, Examples 6.2 (5 states, left reward 0) and 7.1 (19
    states, left reward -1).

    States 1 to num_states from left to right, and at either end a terminal state, 0 and
    num_states + 1. Actions: left, right; the policy that takes each with probability 1/2 is the
    book's walk. Reward 1 for reaching the right end, `left_reward` for the left one, else 0. Start:
    the middle.
    """
    states = np.arange(num_states + 2)

    def outcomes(state, action):
        next_state = state + [-1, 1][action]
        return [(1.0, next_state, {0: left_reward, num_states + 1: 1.0}.get(next_state, 0.0))]

    terminal = (states == 0) | (states == num_states + 1)
    return tabulate(states == (num_states + 1) // 2, terminal, 2, outcomes)


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


def policy_values(mdp: MDP, policy, gamma) -> jax.Array:
    """v = (I - γ P_π)⁻¹ r_π (eq. 4.4 as a linear system) of a policy [S, A], [S]; 0 in terminal
    states. γ may be traced."""
    P = np.einsum("sa,sat->st", policy, mdp.P) * ~mdp.terminal
    r = np.einsum("sa,sat,sat->s", policy, mdp.P, mdp.R)
    return jnp.linalg.solve(jnp.eye(len(r)) - gamma * P, jnp.asarray(r, float))


def reachable(P, states) -> np.ndarray:
    """[S] bool: `states`, and all that paths from them along P[s,s'] > 0 lead to."""
    found = states | (P[states] > 0).any(0)
    return found if np.array_equal(found, states) else reachable(P, found)


def given_policy(policy: str, num_states: int, num_actions: int) -> np.ndarray:
    """π(a|s) [S, A]: uniform, or as in a .npy file; ValueError if it holds something else."""
    if policy == "uniform":
        return np.full((num_states, num_actions), 1 / num_actions)
    try:
        table = np.asarray(np.load(policy), float)
    except (OSError, EOFError, TypeError, ValueError) as error:
        raise ValueError(f"--policy {policy}: no file of numbers written by numpy.save") from error
    if table.shape != (num_states, num_actions):
        wanted = f"[{num_states}, {num_actions}]"
        raise ValueError(f"--policy {policy}: must have shape {wanted}, not {list(table.shape)}")
    if not (np.all(table >= 0) and np.allclose(table.sum(-1), 1)):
        raise ValueError(f"--policy {policy}: each row must hold probabilities that sum to 1")
    return table


class Tabular(NamedTuple):
    """What an id stands for."""

    make: Callable[[jax.Array], MDP]  # of a key, which the fixed MDPs ignore
    max_steps: int  # steps, the time limit when it is sampled as an environment
    random: bool = False  # does the MDP depend on the key?
    grid: Grid | None = None  # to draw it
    change_after: int | None = None  # steps of an environment's life, all its episodes together,
    change_to: str | None = None  # after which it turns into that one


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


def make_mdp(env_id, key=None) -> MDP:
    """The MDP of that id; a random one is drawn with `key`, or with jax.random.key(0)."""
    return lookup(TABULAR, env_id, "tabular MDP").make(jax.random.key(0) if key is None else key)
