"""Two-player zero-sum games as pure functions of arrays, and matches against a player."""

from collections.abc import Callable
from difflib import get_close_matches
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Game(NamedTuple):
    """Two players move in turn. A state is the board as the player to move sees it, an int8 for
    each cell: 1 is an own piece, -1 one of the other player's, 0 nothing."""

    init: Callable  # () -> state [C], the empty board
    step: Callable  # state, action -> state, reward of the one who moved, terminated
    legal: Callable  # state -> bool [A]; `step` is defined for these actions
    observe: Callable  # state -> planes [rows, columns, 2]: own pieces, the other player's
    shape: tuple[int, int]  # rows and columns; cells go row by row from the top left
    num_actions: int
    max_steps: int  # moves of the longest game


def make_game(env_id: str) -> Game:
    """The game of that id: TicTacToe-game or ConnectFour-game."""
    games = {"TicTacToe-game": tic_tac_toe, "ConnectFour-game": connect_four}
    if env_id not in games:
        close = get_close_matches(env_id, games, n=1, cutoff=0)
        raise ValueError(f"there is no {env_id!r}; did you mean {close[0]}?")
    return games[env_id]()


def tic_tac_toe() -> Game:
    """Action a puts a piece into cell a of 3 x 3; three in a row win."""
    return _in_a_row((3, 3), 3, 9, lambda state, action: action, lambda state: state == 0)


def connect_four() -> Game:
    """Action a drops a piece into column a of 6 x 7; four in a row win."""

    def cell(state, action):
        height = jnp.sum(state.reshape(6, 7)[:, action] != 0)
        return 7 * (5 - height) + action

    return _in_a_row((6, 7), 4, 7, cell, lambda state: state[:7] == 0)


def _in_a_row(shape, length, num_actions, cell, legal) -> Game:
    """Who first has `length` pieces in a line wins; a full board without one is a draw."""
    num_cells = shape[0] * shape[1]

    def init():
        return jnp.zeros(num_cells, jnp.int8)

    def step(state, action):
        state = jnp.where(jnp.arange(num_cells) == cell(state, action), jnp.int8(1), state)
        won = has_line((state == 1).reshape(shape), length)
        return -state, won.astype(float), won | jnp.all(state != 0)

    def observe(state):
        return jnp.stack([state == 1, state == -1], axis=-1).reshape(*shape, 2)

    return Game(init, step, legal, observe, shape, num_actions, num_cells)


def has_line(pieces, length) -> jax.Array:
    """Whether `length` of the pieces (bool [rows, columns]) are in a line, across, down or along a
    diagonal: shifted copies of the board, which are faster than a table of lines."""
    rows, columns = pieces.shape
    found = []
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        height, width = rows - down * (length - 1), columns - abs(right) * (length - 1)
        line = jnp.ones((height, width), bool)
        for k in range(length):
            i, j = k * down, k if right == 1 else (length - 1 - k) * -right
            line &= pieces[i : i + height, j : j + width]
        found.append(jnp.any(line))
    return jnp.any(jnp.array(found))


def decisive(game: Game) -> Game:
    """The same game, where no other move is legal if one wins at once."""

    def legal(state):
        legal = game.legal(state)
        wins = jax.vmap(lambda action: game.step(state, action)[1])(jnp.arange(game.num_actions))
        wins = legal & (wins > 0)
        return jnp.where(jnp.any(wins), wins, legal)

    return game._replace(legal=legal)


def board(state) -> jax.Array:
    """The cells as an onlooker sees them: 1 is a piece of who began, -1 one of the other's."""
    begins = jnp.sum(state != 0) % 2 == 0  # who moves now
    return jnp.where(begins, state, -state)


# Players: state, key -> action, for one board.


def any_of(u, mask) -> jax.Array:
    """One of the actions in the mask, bool [A]; all have the same share of the u in [0, 1)."""
    rank = jnp.floor(u * jnp.sum(mask))
    passed = [mask[0].astype(jnp.int32)]
    for allowed in mask[1:]:
        passed.append(passed[-1] + allowed)
    return jnp.sum(jnp.stack(passed) <= rank, dtype=jnp.int32)


def random_player(game: Game) -> Callable:
    """Any legal action."""
    return lambda state, key: any_of(jax.random.uniform(key), game.legal(state))


def perfect_player(game: Game) -> Callable:
    """Any of the actions that are best by minimax; of tic-tac-toe, which has few enough boards."""
    if game.shape != (3, 3):
        raise ValueError("--opponent perfect: there is one for TicTacToe-game only")
    q = tic_tac_toe_values()
    best = q == q.max(axis=-1, keepdims=True)

    def act(state, key):
        return any_of(jax.random.uniform(key), jnp.asarray(best)[tic_tac_toe_code(state)])

    return act


PLAYERS = {"random": random_player, "perfect": perfect_player}  # Game -> player


def tic_tac_toe_code(state):
    """The number of a board [..., 9], below 3⁹."""
    return (state + 1) @ 3 ** np.arange(9)


def tic_tac_toe_values() -> np.ndarray:
    """q(s, a) = -v(s'), v(s) = max_a q(s, a) for who moves, of all boards s by their code, [3⁹, 9];
    -inf where an action is not legal. Nine sweeps are exact, as a game has nine moves at most."""
    power = 3 ** np.arange(9)
    cells = np.arange(3**9)[:, None] // power % 3 - 1
    rows = np.arange(9).reshape(3, 3)
    lines = np.array([*rows, *rows.T, rows.diagonal(), rows[::-1].diagonal()])
    lost = (cells[:, lines] == -1).all(-1).any(-1)
    ended = lost | (cells != 0).all(-1)
    after = tic_tac_toe_code(-cells)[:, None] - power  # an empty cell, 1, becomes the other's, 0
    v = np.where(lost, -1.0, 0.0)
    for _ in range(9):
        q = np.where(cells == 0, -v[after], -np.inf)
        v = np.where(ended, v, q.max(axis=-1))
    return q


# Matches: many games side by side against the same player, as an environment that starts anew.


class Match(NamedTuple):
    """Games in which it is our move."""

    state: jax.Array  # [N, C]
    began: jax.Array  # [N] whether we did; in turn
    episode_return: jax.Array  # [N] 1, 0 or -1 where the last step ended a game, else NaN


def make_match(game: Game, opponent: Callable, num_envs: int):
    """`reset(key) -> Match`, where every other game is begun by the opponent; and `step(Match,
    action [N], key) -> Match`: our move, the reply, and a new game where that ended one."""
    move = jax.vmap(game.step)

    def openings(key, began):
        """New games [N], with the opponent's first move where we do not begin."""
        empty = jnp.broadcast_to(game.init(), (num_envs, game.init().size))
        reply = jax.vmap(opponent)(empty, jax.random.split(key, num_envs))
        return jnp.where(began[:, None], empty, move(empty, reply)[0])

    def reset(key):
        began = jnp.arange(num_envs) % 2 == 0
        return Match(openings(key, began), began, jnp.zeros(num_envs) + jnp.nan)

    def step(match, action, key):
        key_reply, key_opening = jax.random.split(key)
        state, reward, won = move(match.state, action)
        reply = jax.vmap(opponent)(state, jax.random.split(key_reply, num_envs))
        state, loss, over = move(state, reply)
        over |= won
        began = match.began ^ over
        return Match(
            state=jnp.where(over[:, None], openings(key_opening, began), state),
            began=began,
            episode_return=jnp.where(over, jnp.where(won, reward, -loss), jnp.nan),
        )

    return reset, step
