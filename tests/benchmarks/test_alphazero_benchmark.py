"""The exact positions agree with our rules, measures with what is known, and the race is fair."""

import argparse
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algorithms.alphazero import Config, make
from benchmarks.alphazero import (
    exact_moves,
    main,
    matches,
    measures,
    reachable,
    solved_positions,
    uct_player,
)
from benchmarks.gumbel import race
from common.environments.games import make_game, perfect_player, tic_tac_toe_code

TIC_TAC_TOE, CONNECT_FOUR = (make_game(f"{name}-game") for name in ("TicTacToe", "ConnectFour"))


def test_the_solver_knows_our_rules_of_connect_four():
    """Whose move it is, which columns are full, and which moves win at once: in its scores these
    are half of the cells that are empty, rounded up."""
    states, scores = solved_positions(CONNECT_FOUR)
    assert states.shape == (360, 42)
    num_pieces = np.sum(states != 0, axis=-1)
    assert num_pieces.min() == 8 and num_pieces.max() == 30
    np.testing.assert_array_equal(states.sum(axis=-1), -(num_pieces % 2))  # who has moved last
    legal = np.asarray(jax.vmap(CONNECT_FOUR.legal)(states))
    np.testing.assert_array_equal(legal, scores != -1000)
    step = jax.vmap(jax.vmap(CONNECT_FOUR.step, (None, 0)), (0, None))
    after, reward, _ = map(np.asarray, jax.jit(step)(states, np.arange(7)))
    wins = legal & (reward == 1)
    assert 40 < wins.any(axis=-1).sum() < 300
    np.testing.assert_array_equal(wins, scores == (43 - num_pieces[:, None]) // 2)


def test_a_uniform_mover_keeps_the_value_as_often_as_the_references_say():
    """.641 of 200 positions with 12 to 17 pieces, .572 of 300 with 18 to 30; these are a part."""
    states, q = exact_moves(CONNECT_FOUR)
    share = np.mean(q == q.max(-1, keepdims=True), axis=-1, where=np.isfinite(q))
    num_pieces = np.sum(states != 0, axis=-1)
    assert abs(share[(num_pieces >= 12) & (num_pieces < 18)].mean() - 0.641) < 0.03
    assert abs(share[num_pieces >= 18].mean() - 0.572) < 0.03


def test_tic_tac_toe_goes_on_from_4520_boards():
    boards = reachable(TIC_TAC_TOE)
    assert len(np.unique(tic_tac_toe_code(boards.astype(int)))) == len(boards) == 4520


@pytest.mark.slow
def test_a_perfect_agent_loses_no_match():
    """It draws against itself, and wins games against UCT with few simulations."""
    perfect = perfect_player(TIC_TAC_TOE)
    act = lambda params, obs, key: perfect(obs, key)
    params = jnp.zeros(2)
    assert (matches(TIC_TAC_TOE, act, perfect, params, 20) == 0).all()
    outcomes = matches(TIC_TAC_TOE, act, uct_player(TIC_TAC_TOE, 5), params, 40)
    assert outcomes.shape == (2, 40) and outcomes.min() >= 0 and outcomes.mean() > 0.3


@pytest.mark.slow
def test_everything_is_measured_of_every_seed():
    config = Config(num_simulations=8, hidden_sizes=(16,))
    params = jax.vmap(lambda key: make(config).init(key).params)(
        jax.random.split(jax.random.key(0), 2)
    )
    arguments = argparse.Namespace(games=10, uct=[2])
    found = dict(measures(config, params, arguments))
    assert all(x.shape == (2,) and (x >= 0).all() and (x <= 1.5).all() for x in found.values())
    uniform = found["moves that keep the value, uniform"][0]
    assert 0.5 < uniform < found["moves that keep the value, search"].min()
    assert "games lost to perfect" in found and "score against mcts, 2 simulations" in found


def test_a_run_of_another_algorithm_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["", str(tmp_path)])
    try:
        main()
    except SystemExit as error:
        assert error.code == 2
    assert "policy.npz" in capsys.readouterr().err


def test_the_race_is_between_equal_searches():
    for leaf in ("nothing", "network"):
        line = race("TicTacToe-game", leaf, num_roots=8, rounds=1)
        assert line["same_moves"] == 1
        assert 0 < line["ours"] < math.inf and 0 < line["mctx"] < math.inf and line["ratio"] > 0
