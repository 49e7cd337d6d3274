"""Play against a trained policy in the terminal.

    python -m common.play runs/... [--seed K] [--second]

The run is one of a game, such as `python -m algorithms.alphazero`. A move is the number of a cell,
or of a column. X begins. Exit code 2 if the run cannot be used.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from common.environments.games import Game, board, make_game
from common.runner.checkpoint import CheckpointError
from common.runner.cli import fail, tool_parser
from common.runner.results import env_id_of, load_agent, load_member


def main() -> None:
    """Play one game."""
    parser = tool_parser("play", __doc__)
    parser.add_argument("run", help="the folder of a run")
    parser.add_argument("--seed", type=int, help="the policy of this seed; else the best")
    parser.add_argument("--second", action="store_true", help="the policy begins")
    parser.add_argument("--key", type=int, default=0, help="of its random numbers (0)")
    args = parser.parse_args()
    try:
        path = Path(args.run) / "policy.npz"
        env_id = env_id_of(path, load_member(path, args.seed, {})[2])
        if not env_id.endswith("-game"):
            raise ValueError(f"{args.run} was trained in {env_id}; only games can be played")
        game, agent = make_game(env_id), load_agent(args.run, args.seed)
    except (CheckpointError, ValueError) as error:
        fail(2, str(error))
    try:
        print(play(game, agent, not args.second, jax.random.key(args.key)))
    except (EOFError, KeyboardInterrupt):
        print("\nthe game was not finished")


def play(game: Game, agent: Callable, is_persons_move: bool, key: jax.Array) -> str:
    """Play a game in the terminal; return who won. `agent` is `state, key -> action`."""
    state, step = game.init(), jax.jit(game.step)
    while True:
        legal = np.flatnonzero(game.legal(state))
        if is_persons_move:
            print(drawing(game, np.asarray(board(state))))
            action = ask(legal)
        else:
            key, key_move = jax.random.split(key)
            action = int(agent(state, key_move))
            print(f"it plays {action + 1}")
            if action not in legal:
                return "that is an illegal move: you win"
        state, reward, terminated = step(state, action)
        if terminated:
            # `state` is seen by the player who did not make the last move.
            print(drawing(game, np.asarray(board(state))))
            winner = "you win" if is_persons_move else "it wins"
            return winner if reward > 0 else "a draw"
        is_persons_move = not is_persons_move


def ask(legal: np.ndarray) -> int:
    """Return the legal action that the person types, as its number from 1 on."""
    while True:
        text = input("your move: ").strip()
        if text.isdecimal() and int(text) - 1 in legal:
            return int(text) - 1
        print(f"{text!r} is no move; there are {' '.join(str(a + 1) for a in legal)}")


def drawing(game: Game, cells: np.ndarray) -> str:
    """Return a board as text, with the numbers of the moves. X is 1 and O is -1."""
    is_by_cell = game.num_actions == len(cells)
    signs = [
        "X" if x > 0 else "O" if x < 0 else str(i + 1) if is_by_cell else "."
        for i, x in enumerate(cells)
    ]
    rows = [" ".join(row) for row in np.reshape(signs, game.shape)]
    numbers = [] if is_by_cell else [" ".join(str(a + 1) for a in range(game.num_actions))]
    return "\n".join(["", *rows, *numbers])


if __name__ == "__main__":
    main()
