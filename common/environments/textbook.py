"""MDPs of textbooks and papers that are not grids.

The fixed ones are NumPy arrays in float64; the random one is made with jax.random, so that it
traces under jit and vmap over its key.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from common.environments.mdp import MDP, tabulate


def taxi() -> MDP:
    """Fetch a passenger: Dietterich 2000, <https://arxiv.org/abs/cs/9905014>, as in Taxi-v4.

    State ((row * 5 + column) * 5 + passenger) * 4 + destination: the taxi's cell on a 5x5 grid, the
    passenger's place (stand 0 to 3 = R, G, Y, B; 4 = in the taxi) and the stand to go to. Actions:
    south, north, east, west, pick up, put down. Reward -1 a step, 20 for delivery, -10 for a
    pick-up where there is no passenger, and for a put-down without one or outside the four stands
    (at a wrong stand it is allowed). Terminal: the passenger is at the destination. Start: uniform
    over the states with the passenger at another stand; in the paper the passenger may start at the
    destination, and must still be picked up and put down.
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


def gamblers_problem(p_heads: float = 0.4) -> MDP:
    """Bet on a coin to reach 100: Sutton & Barto 2018, Example 4.3.

    State: the capital; 0 and 100 are terminal. Action a stakes min(a + 1, capital, 100 - capital);
    the book's stake of 0, which changes nothing, is left out. Heads, with probability p_heads, win
    the stake. Reward 1 for reaching 100, else 0. Start: uniform over 1 to 99.
    """
    capital = np.arange(101)
    terminal = (capital == 0) | (capital == 100)

    def outcomes(state, action):
        stake = min(action + 1, state, 100 - state)
        heads, tails = state + stake, state - stake
        return [(p_heads, heads, float(heads == 100)), (1 - p_heads, tails, 0.0)]

    return tabulate(~terminal, terminal, 50, outcomes)


def jacks_car_rental() -> MDP:
    """Rent out cars at two places: Sutton & Barto 2018, Example 4.2. γ = .9.

    State 21 i + j: i cars at the first place and j at the second, in the evening. Action a moves up
    to a - 5 cars overnight from the first place to the second (5 - a back if a < 5), for 2 each. By
    day customers rent cars, for 10 each while there are any, and return cars, which can be rented
    the next day. Requests and returns are Poisson: with means 3 and 3 at the first place, 4 and 2
    at the second. Cars beyond 20 at a place are taken away. No state is terminal. Start: 10 cars at
    each. r(s,a,s') is the mean over the days that end in s'.
    """

    def poisson(mean, limit):
        """Return the probabilities of 0, 1, ..., limit - 1, and of `limit` or more."""
        p = [math.exp(-mean) * mean**n / math.factorial(n) for n in range(100)]
        return np.array([*p[:limit], sum(p[limit:])])

    def day(mean_requests, mean_returns):
        """Return, for each number of cars in the morning and in the evening [21, 21], the
        probability, and the probability times the mean number of cars rented."""
        P, rented = np.zeros((2, 21, 21))
        p_returned = poisson(mean_returns, 20)
        for morning in range(21):
            for num_rented, p in enumerate(poisson(mean_requests, morning)):
                for num_returned, q in enumerate(p_returned):
                    evening = min(morning - num_rented + num_returned, 20)
                    P[morning, evening] += p * q
                    rented[morning, evening] += p * q * num_rented
        return P, rented

    (P1, rented1), (P2, rented2) = day(3, 3), day(4, 2)
    first, second, action = np.indices((21, 21, 11))
    moved = np.clip(action - 5, -second, first)
    first, second = np.minimum(first - moved, 20), np.minimum(second + moved, 20)

    def product(x, y):
        """x(evening at the first place) y(evening at the second), [21, 21] each -> [S, A, S']."""
        return (x[first][..., :, None] * y[second][..., None, :]).reshape(441, 11, 441)

    P = product(P1, P2)
    cost = 2.0 * np.abs(moved).reshape(441, 11, 1)
    R = 10.0 * (product(rented1, P2) + product(P1, rented2)) / P - cost
    start = (np.arange(441) == 21 * 10 + 10).astype(float)
    return MDP(P, R, start, np.zeros(441, bool))


def blackjack() -> MDP:
    """Draw cards up to 21: Sutton & Barto 2018, Example 5.1; Blackjack-v1 with sab=True.

    State 100 * usable + 10 * (total - 12) + (card - 1): whether the player has an ace that counts
    11, the sum of the player's cards, 12 to 21, and the dealer's card, 1 (an ace) to 10. States 200
    + card - 1 are the naturals, an ace and a ten at once. 210, 211 and 212 are terminal: lost with
    reward -1, drawn with 0, won with 1. Actions: stick, hit. Cards come from an infinite deck.

    Sums below 12 are no states: no card can hurt there, so the player hits without a choice. A
    natural wins unless the dealer has one too, whatever the action. The dealer hits below 17.
    <https://gymnasium.farama.org/environments/toy_text/blackjack/>
    """
    cards = [(card, (4 if card == 10 else 1) / 13) for card in range(1, 11)]
    lost, drawn, won = 210, 211, 212

    def add(total, usable, card):
        """Return the hand with one more card; an ace counts 11 unless the sum would exceed 21."""
        if card == 1 and total + 11 <= 21:
            return total + 11, True
        if total + card > 21 and usable:
            return total + card - 10, False
        return total + card, usable

    @functools.cache
    def dealt(total, usable):
        """Return the probabilities of the dealer's final total, [22]; 0 means more than 21."""
        if total >= 17:
            return np.eye(22)[total if total <= 21 else 0]
        return sum((p * dealt(*add(total, usable, card)) for card, p in cards), np.zeros(22))

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
        """Add to `start` all the hands that this one can become before the first choice."""
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
    """Choose between the end and noisy rewards: Sutton & Barto 2018, Example 6.7.

    States A = 0 (the start), B = 1; 2 is terminal. In A even actions lead left, to B, and odd ones
    right, to the end, with reward 0. In B every action ends the episode, with a reward from
    N(-.1, 1).

    The book has two actions in A and "many" in B. Here all states have the same ten actions, and
    half of those in A lead left.
    """
    P = np.zeros((3, 10, 3))
    P[0, 0::2, 1] = P[0, 1::2, 2] = P[1, :, 2] = P[2, :, 2] = 1.0
    R = np.zeros((3, 10, 3))
    R[1, :, 2] = -0.1
    noise = np.zeros((3, 10))
    noise[1] = 1.0
    return MDP(P, R, np.array([1.0, 0.0, 0.0]), np.array([False, False, True]), noise)


def ledge(slip: float) -> MDP:
    """Walk along a ledge: after Ross & Bagnell 2010, https://proceedings.mlr.press/v9/ross10a.html.

    States: 0 on the ledge (the start), 1 below it. Actions: walk, climb. To walk on the ledge and
    to climb from below lead onto the ledge, but for a slip; all else ends below. Reward -1 for a
    step that ends below. So who can do both loses `slip` a step, and who cannot climb
    Σ_t (1 - (1 - slip)^t), almost T² slip / 2 over few steps T. No state is terminal.
    """
    P = np.zeros((2, 2, 2))
    P[:, :, 1] = 1
    P[0, 0] = P[1, 1] = 1 - slip, slip
    R = np.broadcast_to([0.0, -1.0], (2, 2, 2))
    return MDP(P, R, np.array([1.0, 0.0]), np.zeros(2, bool))


def random_walk(num_states: int, left_reward: float) -> MDP:
    """Walk along a line: Sutton & Barto 2018, Examples 6.2 (5 states, left reward 0) and 7.1 (19
    states, left reward -1).

    States are 1 to num_states from left to right, and the terminal ends 0 and num_states + 1.
    Actions: left, right; the book's walk is the uniform policy. Reward 1 for reaching the right
    end, `left_reward` for the left one, else 0. Start: the middle.
    """
    states = np.arange(num_states + 2)

    def outcomes(state, action):
        next_state = state + [-1, 1][action]
        return [(1.0, next_state, {0: left_reward, num_states + 1: 1.0}.get(next_state, 0.0))]

    terminal = (states == 0) | (states == num_states + 1)
    return tabulate(states == (num_states + 1) // 2, terminal, 2, outcomes)


def garnet(key: jax.Array, num_states: int = 30, num_actions: int = 4, branching: int = 5) -> MDP:
    """Draw an MDP: Archibald, McKinnon & Thomas 1995, <https://doi.org/10.1057/jors.1995.50>.

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

    zeros = jnp.zeros((*pairs, num_states))
    successors = shuffled[..., :branching]
    return MDP(
        P=jnp.put_along_axis(zeros, successors, probabilities, axis=-1, inplace=False),
        R=jnp.broadcast_to(rewards, zeros.shape),
        start=jnp.ones(num_states) / num_states,
        terminal=jnp.zeros(num_states, bool),
    )
