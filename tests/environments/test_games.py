"""The rules of the games against brute force, minimax against a recursion, and matches by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.environments.games import (
    any_of,
    board,
    decisive,
    has_line,
    make_game,
    match_env,
    perfect_player,
    random_player,
    tic_tac_toe_code,
    tic_tac_toe_values,
)
from common.envs import make_env, rollout

POWER = 3 ** np.arange(9)
BOARDS = np.arange(3**9)[:, None] // POWER % 3 - 1  # every filling of nine cells, by its code


@pytest.fixture(scope="module")
def tic_tac_toe():
    """All moves on all boards: the codes that follow, rewards, ends and legality, [3⁹, 9]."""
    game = make_game("TicTacToe-game")
    moves = jax.jit(jax.vmap(jax.vmap(game.step, (None, 0)), (0, None)))
    after, reward, terminated = moves(jnp.asarray(BOARDS, jnp.int8), jnp.arange(9))
    legal = jax.vmap(game.legal)(jnp.asarray(BOARDS, jnp.int8))
    after = np.asarray(after, int)
    return tic_tac_toe_code(after), np.asarray(reward), np.asarray(terminated), np.asarray(legal)


def test_tic_tac_toe_has_so_many_positions_ends_and_games(tic_tac_toe):
    """5,478 positions, 958 of them final, and 255,168 games (131,184 won by who begins, 77,904 by
    the other, 46,080 drawn), as is well known."""
    after, reward, terminated, legal = tic_tac_toe
    games = {int(tic_tac_toe_code(np.zeros(9, int))): 1}  # ways to reach each position
    seen, final, results = set(games), set(), {}
    for ply in range(9):
        ways = {}
        for code, number in games.items():
            for action in np.flatnonzero(legal[code]):
                to = after[code, action]
                seen.add(to)
                if terminated[code, action]:
                    final.add(to)
                    who = reward[code, action] * (1 if ply % 2 == 0 else -1)
                    results[who] = results.get(who, 0) + number
                else:
                    ways[to] = ways.get(to, 0) + number
        games = ways
    assert (len(seen), len(final), len(games)) == (5478, 958, 0)
    assert results == {1: 131184, -1: 77904, 0: 46080}


def test_connect_four_has_so_many_positions_and_games():
    """Positions after n moves (https://oeis.org/A212693), and move sequences of that length from
    the empty board, which end with a game: the first wins come with the seventh move."""
    game = make_game("ConnectFour-game")
    size = 2**13

    @jax.jit
    def expand(states):
        moves = jax.vmap(jax.vmap(game.step, (None, 0)), (0, None))
        after, _, terminated = moves(states, jnp.arange(7))
        return after, terminated, jax.vmap(game.legal)(states)

    states, ways = np.zeros((1, 42), np.int8), np.ones(1, int)
    positions, sequences = [], []
    for _ in range(8):
        parts = []
        for start in range(0, len(states), size):
            part = states[start : start + size]
            padded = np.concatenate([part, np.zeros((size - len(part), 42), np.int8)])
            parts.append([np.asarray(x)[: len(part)] for x in expand(padded)])
        after, terminated, legal = (np.concatenate(x) for x in zip(*parts, strict=True))
        sequences.append(int((legal * ways[:, None]).sum()))
        found = after[legal].view("V42").ravel()
        _, index, inverse = np.unique(found, return_index=True, return_inverse=True)
        positions.append(len(index))
        ways = np.bincount(inverse, np.repeat(ways, 7).reshape(-1, 7)[legal]).astype(int)
        goes_on = ~terminated[legal][index]
        states, ways = after[legal][index][goes_on], ways[goes_on]
    assert positions[:7] == [7, 49, 238, 1120, 4263, 16422, 54859]
    assert sequences == [7, 49, 343, 2401, 16807, 117649, 823536, 5673234]


def test_where_a_move_wins_no_other_is_decisive(tic_tac_toe):
    _, reward, _, legal = tic_tac_toe
    wins = legal & (reward > 0)
    expected = np.where(wins.any(-1, keepdims=True), wins, legal)
    found = jax.vmap(decisive(make_game("TicTacToe-game")).legal)(jnp.asarray(BOARDS, jnp.int8))
    np.testing.assert_array_equal(found, expected)
    assert (found != legal).any()


def test_a_full_column_wins_nothing():
    """Connect four: column 0 has three of ours below two of the other's, column 6 three of ours."""
    game = make_game("ConnectFour-game")
    cells = np.zeros((6, 7), np.int8)
    cells[:, 0] = [1, -1, -1, 1, 1, 1]
    cells[3:, 6] = 1
    legal = lambda cells: np.flatnonzero(decisive(game).legal(jnp.asarray(cells.ravel())))
    np.testing.assert_array_equal(legal(cells), [6])
    cells[2, 6] = -1
    np.testing.assert_array_equal(legal(cells), [1, 2, 3, 4, 5, 6])


def test_lines_are_found_wherever_they_are_and_only_there():
    """Against a walk from every cell, on random pieces."""
    rng = np.random.default_rng(0)
    for shape, length in (((3, 3), 3), ((6, 7), 4)):
        pieces = rng.random((300, *shape)) < rng.uniform(0.1, 0.9, (300, 1, 1))
        found = jax.jit(jax.vmap(lambda x, n=length: has_line(x, n)))(pieces)
        for x, answer in zip(pieces, np.asarray(found), strict=True):
            assert answer == walk(x, length)
        assert 50 < np.sum(found) < 250


def walk(pieces, length):
    for i, j in np.argwhere(pieces):
        for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
            cells = [(i + k * down, j + k * right) for k in range(length)]
            inside = all(r < pieces.shape[0] and 0 <= c < pieces.shape[1] for r, c in cells)
            if inside and all(pieces[cell] for cell in cells):
                return True
    return False


def test_a_piece_drops_on_those_below_until_the_column_is_full():
    game = make_game("ConnectFour-game")
    state, step = game.init(), jax.jit(game.step)
    for height in range(6):
        assert game.legal(state).all()
        state, reward, terminated = step(state, 3)
        assert (reward, terminated) == (0, False)
        column = np.asarray(board(state)).reshape(6, 7)[:, 3]
        np.testing.assert_array_equal(column[5 - height :], [1, -1, 1, -1, 1, -1][height::-1])
    assert np.flatnonzero(~game.legal(state)).tolist() == [3]


def test_a_state_is_seen_by_the_player_to_move_and_a_board_by_the_one_who_began():
    game = make_game("TicTacToe-game")
    state, *_ = game.step(game.init(), 2)
    np.testing.assert_array_equal(state, [0, 0, -1, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(board(state), [0, 0, 1, 0, 0, 0, 0, 0, 0])
    state, *_ = game.step(state, 6)
    np.testing.assert_array_equal(state, [0, 0, 1, 0, 0, 0, -1, 0, 0])
    np.testing.assert_array_equal(board(state), [0, 0, 1, 0, 0, 0, -1, 0, 0])
    state, *_ = game.step(state, 4)
    np.testing.assert_array_equal(board(state), [0, 0, 1, 0, 1, 0, -1, 0, 0])


def test_a_game_that_does_not_exist_is_refused_with_a_hint():
    with pytest.raises(ValueError, match="did you mean ConnectFour-game"):
        make_game("Connect4-game")


@functools.cache
def negamax(cells):
    """What the one to move gets: an independent minimax over tuples of 1, -1 and 0."""
    lines = [(0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6)]
    if any(all(cells[i] == -1 for i in line) for line in lines):
        return -1
    empty = [i for i in range(9) if not cells[i]]
    return max((action_value(cells, i) for i in empty), default=0)


def action_value(cells, action):
    return -negamax(tuple(-x if i != action else -1 for i, x in enumerate(cells)))


def test_the_table_of_values_is_that_of_minimax_on_all_reachable_boards():
    assert negamax((0,) * 9) == 0
    q = tic_tac_toe_values()
    negamax.cache_clear()
    seen, new = set(), [(0,) * 9]
    while new:
        cells = new.pop()
        seen.add(cells)
        row = q[tic_tac_toe_code(np.array(cells))]
        for action in range(9):
            if cells[action]:
                assert row[action] == -np.inf
                continue
            assert row[action] == action_value(cells, action)
            after = tuple(-x if i != action else -1 for i, x in enumerate(cells))
            if after not in seen and negamax(after) != -1 and 0 in after:
                new.append(after)
    assert len(seen) > 2_000


def test_an_action_of_a_mask_is_drawn_with_the_same_probability():
    mask = jnp.array([False, True, True, False, True, False, False, True])
    u = (jnp.arange(4000) + 0.5) / 4000
    actions = jax.jit(jax.vmap(any_of, (0, None)))(u, mask)
    np.testing.assert_array_equal(np.bincount(actions, minlength=8), np.asarray(mask) * 1000)
    last = any_of(jnp.float32(1 - 2**-24), jnp.ones(9, bool))
    assert last == 8 and last.dtype == jnp.int32


def test_players_make_legal_moves_and_the_perfect_one_every_best_move():
    game = make_game("TicTacToe-game")
    q = tic_tac_toe_values()
    rng = np.random.default_rng(1)
    open_boards = np.flatnonzero(np.isfinite(q).any(1))
    states = jnp.asarray(BOARDS[rng.choice(open_boards, 40)], jnp.int8)
    keys = jax.random.split(jax.random.key(0), (40, 300))
    for player, allowed in (
        (random_player, np.isfinite(q)),
        (perfect_player, q == q.max(-1)[:, None]),
    ):
        act = jax.jit(jax.vmap(jax.vmap(player(game), (None, 0))))
        for state, actions in zip(states, np.asarray(act(states, keys)), strict=True):
            expected = np.flatnonzero(allowed[tic_tac_toe_code(np.asarray(state, int))])
            assert np.unique(actions).tolist() == expected.tolist()
    with pytest.raises(ValueError, match="--opponent perfect"):
        perfect_player(make_game("ConnectFour-game"))


def test_a_match_replies_starts_new_games_and_alternates_who_begins():
    """The opponent always fills the first free cell. We begin game 0, and win it with 2, 5 and 8;
    the opponent begins game 1, and wins it with 0, 1 and 2."""
    game = make_game("TicTacToe-game")
    first_free = lambda state, key: jnp.argmax(state == 0)
    env = match_env(game, first_free, 2)
    match, step = jax.jit(env.reset)(jax.random.key(0)), jax.jit(env.step)
    assert match.inner.tolist() == [True, False] and not match.episode.done.any()
    assert match.obs.tolist() == [[0] * 9, [-1] + [0] * 8]

    outcomes, rewards = [], []
    for actions in ([2, 8], [5, 7], [8, 6]):
        match, transition = step(match, jnp.array(actions), jax.random.key(1))
        outcomes.append(np.where(match.episode.done, match.episode.total, np.nan).tolist())
        rewards.append(transition.reward.tolist())
        np.testing.assert_array_equal(transition.terminated, match.episode.done)
        assert not transition.truncated.any()
    np.testing.assert_array_equal(outcomes, [[np.nan, np.nan], [np.nan, -1], [1, np.nan]])
    assert rewards == [[0, 0], [0, -1], [1, 0]]
    assert match.inner.tolist() == [False, True]
    assert match.obs.tolist()[0] == [-1] + [0] * 8  # the opponent has begun
    assert match.obs.tolist()[1] == [-1, 0, 0, 0, 0, 0, 1, 0, 0]  # we have, with 6, and it replied


def test_an_illegal_move_loses():
    """Also one that would complete a line of three, and in a full column of connect four."""
    game = make_game("TicTacToe-game")
    env = match_env(game, lambda state, key: jnp.int32(8), 1)
    match = env.reset(jax.random.key(0))._replace(obs=jnp.int8([[1, 1, -1, 0, -1, 0, 0, 0, 0]]))
    for action, reward, done in ((2, -1, True), (4, -1, True), (5, 0, False)):
        after, transition = env.step(match, jnp.array([action]), jax.random.key(0))
        assert (transition.reward[0], transition.terminated[0]) == (reward, done)
        assert after.episode.total[0] == reward
    game = make_game("ConnectFour-game")
    env = match_env(game, lambda state, key: jnp.int32(6), 1)
    column = jnp.zeros((6, 7), jnp.int8).at[:, 3].set(jnp.int8([1, -1, 1, -1, 1, -1]))
    match = env.reset(jax.random.key(0))._replace(obs=column.reshape(1, 42))
    _, transition = env.step(match, jnp.array([3]), jax.random.key(0))
    assert transition.reward[0] == -1 and transition.terminated[0]


@pytest.mark.parametrize("env_id, number", [("TicTacToe-game", 8), ("ConnectFour-game", 2)])
def test_a_symmetry_turns_the_board_and_its_actions_alike(env_id, number):
    """A move on the turned board leads to the turned board, over random games."""
    game = make_game(env_id)
    boards, actions = game.symmetries
    assert len(np.unique(boards, axis=0)) == number
    rng, step = np.random.default_rng(0), jax.jit(game.step)
    for _ in range(5):
        state, terminated = game.init(), False
        while not terminated:
            i = rng.choice(np.flatnonzero(game.legal(state)))
            after, reward, terminated = step(state, i)
            for cells, action in zip(boards, actions, strict=True):
                turned = np.flatnonzero(action == i)[0]
                assert game.legal(state[cells])[turned]
                found, found_reward, _ = step(state[cells], turned)
                np.testing.assert_array_equal(found, after[cells])
                assert found_reward == reward
            state = after


def test_a_game_is_an_environment_against_a_player_who_moves_at_random():
    """Filling the first free cell wins more often than it loses."""
    env = make_env("TicTacToe-game", 50)
    policy = lambda obs, key: jnp.argmax(obs == 0, axis=-1)
    state = env.reset(jax.random.key(0))
    _, _, metrics = jax.jit(lambda s, k: rollout(env, policy, s, k, 100))(state, jax.random.key(1))
    assert metrics["episodes"] > 500 and 0.1 < metrics["episode_return"] < 0.6


@pytest.mark.parametrize(
    "env_id,name", [("TicTacToe", "tic_tac_toe"), ("ConnectFour", "connect_four")]
)
def test_the_rules_are_those_of_pgx(env_id, name):
    """500 games of random moves: legal moves, ends and rewards agree in each, until it is over."""
    game, own = make_game(f"{env_id}-game"), pytest.importorskip("pgx").make(name)

    def move(carry, key):
        state, other, goes_on = carry
        legal = game.legal(state)
        action = jnp.argmax(jnp.where(legal, jax.random.uniform(key, legal.shape), -1))
        after, reward, terminated = game.step(state, action)
        follows = own.step(other, action)
        theirs = follows.rewards[other.current_player], follows.terminated
        is_same = jnp.all(legal == other.legal_action_mask)
        is_same &= (reward == theirs[0]) & (terminated == theirs[1])
        ended = goes_on & terminated
        return (after, follows, goes_on & ~terminated), (is_same | ~goes_on, ended, reward * ended)

    @jax.jit
    @jax.vmap
    def play(key):
        start = game.init(), own.init(jax.random.key_data(key)), True
        return jax.lax.scan(move, start, jax.random.split(key, game.max_steps))[1]

    is_same, ended, reward = map(np.asarray, play(jax.random.split(jax.random.key(0), 500)))
    assert is_same.all()
    np.testing.assert_array_equal(ended.sum(axis=1), 1)
    won_by = reward.sum(axis=0)
    assert won_by[::2].sum() > 50 < won_by[1::2].sum()  # games that either player won
