"""Two-player zero-sum games as pure functions of arrays, players, and matches between them."""

from collections.abc import Callable
from difflib import get_close_matches
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from common.environments.batching import first_episode, next_episode
from common.envs import Env, EnvState, Transition


class Game(NamedTuple):
    """A board game whose two players move in turn.

    A state is the board as the player to move sees it, int8 [C]: 1 is one of this player's pieces,
    -1 one of the opponent's, 0 an empty cell.
    """

    init: Callable  # () -> state [C], the empty board
    step: Callable  # state, action -> state, reward of the player who moved, terminated
    legal: Callable  # state -> bool [A]; `step` is defined for these actions only
    shape: tuple[int, int]  # rows and columns; cells are numbered row by row from the top left
    num_actions: int
    max_steps: int  # moves of the longest game
    # Cells [K, C] and actions [K, A]: state[cells[k]] is the same board seen from another side, on
    # which action i is actions[k, i] of the state.
    symmetries: tuple[np.ndarray, np.ndarray] | None = None


def make_game(env_id: str) -> Game:
    """Return the game of that id, or raise ValueError with the nearest id."""
    games = {"TicTacToe-game": tic_tac_toe, "ConnectFour-game": connect_four}
    if env_id not in games:
        close = get_close_matches(env_id, games, n=1, cutoff=0)
        raise ValueError(f"there is no {env_id!r}; did you mean {close[0]}?")
    return games[env_id]()


def tic_tac_toe() -> Game:
    """Return tic-tac-toe: action a puts a piece into cell a of 3 x 3; three in a row win."""

    def cell(state, action):
        return action

    def legal(state):
        return state == 0

    cells = np.arange(9).reshape(3, 3)
    turns = [np.rot90(cells, k) for k in range(4)]
    boards = np.array([x.ravel() for turn in turns for x in (turn, turn.T)])
    return _in_a_row((3, 3), 3, 9, cell, legal)._replace(symmetries=(boards, boards))


def connect_four() -> Game:
    """Return connect four: action a drops a piece into column a of 6 x 7; four in a row win."""

    def cell(state, action):
        height = jnp.sum(state.reshape(6, 7)[:, action] != 0)
        return 7 * (5 - height) + action

    def legal(state):
        return state[:7] == 0

    cells, columns = np.arange(42).reshape(6, 7), np.arange(7)
    boards = np.array([cells.ravel(), cells[:, ::-1].ravel()])
    symmetries = boards, np.array([columns, columns[::-1]])
    return _in_a_row((6, 7), 4, 7, cell, legal)._replace(symmetries=symmetries)


def _in_a_row(
    shape: tuple[int, int], length: int, num_actions: int, cell: Callable, legal: Callable
) -> Game:
    """Return the game that the first player with `length` pieces in a line wins.

    `cell(state, action)` is the cell that an action fills. A full board without a line is a draw.
    """
    num_cells = shape[0] * shape[1]

    def init():
        return jnp.zeros(num_cells, jnp.int8)

    def step(state, action):
        state = jnp.where(jnp.arange(num_cells) == cell(state, action), jnp.int8(1), state)
        won = has_line((state == 1).reshape(shape), length)
        return -state, won.astype(float), won | jnp.all(state != 0)

    return Game(init, step, legal, shape, num_actions, num_cells)


def has_line(pieces: jax.Array, length: int) -> jax.Array:
    """Return whether `length` of the pieces, bool [rows, columns], are in a row, a column or a
    diagonal. (ANDs of shifted boards are faster than a table of lines.)"""
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
    """Return the game in which only winning moves are legal where there are any."""

    def legal(state):
        legal = game.legal(state)
        wins = jax.vmap(lambda action: game.step(state, action)[1])(jnp.arange(game.num_actions))
        wins = legal & (wins > 0)
        return jnp.where(jnp.any(wins), wins, legal)

    return game._replace(legal=legal)


def board(state: jax.Array) -> jax.Array:
    """Return the cells [C] independently of whose move it is: 1 is a piece of the player who moved
    first, -1 one of the other player's."""
    first_to_move = jnp.sum(state != 0) % 2 == 0
    return jnp.where(first_to_move, state, -state)


# Players: state, key -> action, for one board.


def any_of(u: jax.Array, mask: jax.Array) -> jax.Array:
    """Return an action of the mask, bool [A]: uniformly distributed if u is uniform in [0, 1)."""
    rank = jnp.floor(u * jnp.sum(mask))
    passed = [mask[0].astype(jnp.int32)]
    for allowed in mask[1:]:
        passed.append(passed[-1] + allowed)
    return jnp.sum(jnp.stack(passed) <= rank, dtype=jnp.int32)


def random_player(game: Game) -> Callable:
    """Return the player who takes each legal action with the same probability."""

    def act(state, key):
        return any_of(jax.random.uniform(key), game.legal(state))

    return act


def perfect_player(game: Game) -> Callable:
    """Return the player who takes each minimax-optimal action with the same probability.

    ValueError for games other than tic-tac-toe: only its boards are few enough for a table.
    """
    if game.shape != (3, 3):
        raise ValueError("--opponent perfect: there is one for TicTacToe-game only")
    q = tic_tac_toe_values()
    best = q == q.max(axis=-1, keepdims=True)

    def act(state, key):
        return any_of(jax.random.uniform(key), jnp.asarray(best)[tic_tac_toe_code(state)])

    return act


PLAYERS = {"random": random_player, "perfect": perfect_player}  # Game -> player


def tic_tac_toe_code(state: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
    """Σ_i (state_i + 1) 3ⁱ, the index [...] of boards [..., 9], below 3⁹."""
    return (state + 1) @ 3 ** np.arange(9)


def tic_tac_toe_values() -> np.ndarray:
    """q(s, a) = -v(s'), v(s) = max_a q(s, a) for the player to move; [3⁹, 9] by board code.

    Illegal actions have -inf. Nine sweeps are exact, because a game has at most nine moves.
    """
    power = 3 ** np.arange(9)
    cells = np.arange(3**9)[:, None] // power % 3 - 1
    rows = np.arange(9).reshape(3, 3)
    lines = np.array([*rows, *rows.T, rows.diagonal(), rows[::-1].diagonal()])
    lost = (cells[:, lines] == -1).all(-1).any(-1)
    ended = lost | (cells != 0).all(-1)
    # Seen by the opponent, the filled cell changes from empty (digit 1) to -1 (digit 0).
    next_state = tic_tac_toe_code(-cells)[:, None] - power
    v = np.where(lost, -1.0, 0.0)
    for _ in range(9):
        q = np.where(cells == 0, -v[next_state], -np.inf)
        v = np.where(ended, v, q.max(axis=-1))
    return q


# Matches


def match_env(game: Game, opponent: Callable, num_envs: int) -> Env:
    """Return N games against the same opponent, in which it is the agent's move.

    A step makes the agent's move and the opponent's reply; if one of them ends the game, a new game
    follows. The opponent moves first in every other game. The reward is 1 for a win and -1 for a
    loss, also by an illegal move; an observation is the board, and EnvState.inner whether the agent
    moved first, bool [N].
    """
    move = jax.vmap(game.step)

    def openings(key, began):
        """Return new games [N], with the opponent's first move where the agent does not begin."""
        empty = jnp.broadcast_to(game.init(), (num_envs, game.init().size))
        reply = jax.vmap(opponent)(empty, jax.random.split(key, num_envs))
        return jnp.where(began[:, None], empty, move(empty, reply)[0])

    def reset(key):
        began = jnp.arange(num_envs) % 2 == 0
        return EnvState(began, openings(key, began), first_episode(num_envs))

    def step(state, action, key):
        key_reply, key_opening = jax.random.split(key)
        is_legal = jax.vmap(lambda board, a: game.legal(board)[a])(state.obs, action)
        board, reward, terminated = move(state.obs, action)
        reply = jax.vmap(opponent)(board, jax.random.split(key_reply, num_envs))
        next_obs, reply_reward, reply_terminated = move(board, reply)
        outcome = jnp.where(terminated, reward, -reply_reward)
        done = terminated | reply_terminated | ~is_legal
        reward = jnp.where(done, jnp.where(is_legal, outcome, -1), 0)
        began = state.inner ^ done
        obs = jnp.where(done[:, None], openings(key_opening, began), next_obs)
        episode = next_episode(state.episode, reward, done)
        transition = Transition(state.obs, action, reward, next_obs, done, jnp.zeros_like(done))
        return EnvState(began, obs, episode), transition

    return Env(
        reset,
        step,
        num_envs,
        obs_shape=game.init().shape,
        num_actions=game.num_actions,
        max_steps=game.max_steps,
    )


def make_game_env(env_id: str, num_envs: int) -> Env:
    """Return N games against the player who moves at random."""
    game = make_game(env_id)
    return match_env(game, random_player(game), num_envs)
