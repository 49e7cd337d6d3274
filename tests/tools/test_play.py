"""play.py: a game against a trained policy, with a person whose moves are scripted."""

import jax
import numpy as np
import pytest
from helpers import run_here

from common.environments.games import make_game
from common.tools.play import drawing, play

TIC_TAC_TOE = make_game("TicTacToe-game")


@pytest.fixture
def types(monkeypatch):
    """Return a function that sets what the person types; then the input ends."""

    def set_lines(*lines):
        rest = iter(lines)

        def read(prompt):
            try:
                return next(rest)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", read)

    return set_lines


def scripted(*moves):
    """A policy that makes these moves, from 1 on, whatever the board."""
    rest = iter(moves)
    return lambda state, key: next(rest) - 1


def result(agent, is_persons_move=True, game=TIC_TAC_TOE):
    return play(game, agent, is_persons_move, jax.random.key(0))


@pytest.mark.parametrize(
    ("person", "policy", "begins", "outcome"),
    [
        (["1", "2", "3"], [4, 5], True, "you win"),
        (["4", "5", "9"], [1, 2, 3], False, "it wins"),
        (["1", "2", "6", "7", "8"], [3, 4, 5, 9], True, "a draw"),
        (["1", "2"], [3, 3], True, "that is an illegal move: you win"),
        (["1"], [1], True, "that is an illegal move: you win"),
    ],
)
def test_a_game_ends_with_who_won(types, person, policy, begins, outcome):
    types(*person)
    assert result(scripted(*policy), begins) == outcome


def test_what_is_no_move_is_asked_for_again(types, capsys):
    types("0", "ten", "", "3", "3", "5", "7")
    assert result(scripted(1, 2)) == "you win"
    out = capsys.readouterr().out
    assert "'0' is no move; there are 1 2 3 4 5 6 7 8 9" in out
    assert "'ten' is no move" in out and "'' is no move" in out
    assert "'3' is no move; there are 2 4 5 6 7 8 9" in out


def test_boards_show_the_numbers_of_the_moves():
    cells = np.array([1, 0, 0, 0, -1, 0, 0, 0, 0])
    assert drawing(TIC_TAC_TOE, cells) == "\nX 2 3\n4 O 6\n7 8 9"
    lines = drawing(make_game("ConnectFour-game"), np.eye(1, 42, 35)[0]).splitlines()
    assert lines[1:] == [*[". . . . . . ."] * 5, "X . . . . . .", "1 2 3 4 5 6 7"]


def test_a_column_is_filled_from_below(types, capsys):
    types("1", "1", "1", "1")
    assert result(scripted(2, 2, 2), game=make_game("ConnectFour-game")) == "you win"
    assert "X O . . . . .\nX O . . . . .\nX O . . . . .\n1 2" in capsys.readouterr().out


def test_a_run_of_a_game_can_be_played_and_others_cannot(tmp_path, types):
    flags = "--total-timesteps 2000 --learning-starts 200 --buffer-size 1000 --batch-size 8"
    flags += " --hidden-sizes 8 --eval-episodes 4 --quiet"
    for env_id in ("TicTacToe-game", "CartPole-v1"):
        out = ["--env-id", env_id, "--out", tmp_path / env_id]
        run_here("algorithms.dqn", *flags.split(), *out)
    types("1")
    done = run_here("common.play", tmp_path / "TicTacToe-game", "--second")
    assert "it plays " in done.stdout and "the game was not finished" in done.stdout
    done = run_here("common.play", tmp_path / "CartPole-v1", check=2)
    assert done.stderr.count("\n") == 1 and "only games can be played" in done.stderr
    done = run_here("common.play", tmp_path / "none", check=2)
    assert done.stderr.count("\n") == 1
