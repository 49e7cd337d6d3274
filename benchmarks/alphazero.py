"""Measure how well AlphaZero's trained networks play: `python -m benchmarks.alphazero RUN`.

Every seed of the run plays matches, without noise and half of them as the second player, against a
player who moves at random, against `mcts.py` (UCT with random rollouts, moves that win at once
taken) and, in tic-tac-toe, against the perfect player. The score counts a win 1 and a draw 1/2.
Values and moves are compared with exact ones: of minimax on all 4,520 positions of tic-tac-toe, of
a solver on the 360 positions of connect_four_positions.csv, whose columns are the moves so far and
the solver's score of each column (-1000: full). A move keeps the value if it does not turn a win
into a draw or a loss, or a draw into a loss; `network` is the action with the largest p, `search`
what `act` plays, `uniform` a random legal move. Lines go to results/alphazero.csv, where those of
another environment or number of simulations stay.
"""

import argparse
import csv
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from algorithms import alphazero, mcts
from benchmarks.learning import RESULTS, commit, table
from benchmarks.speed import others, write
from common.environments.games import (
    Game,
    decisive,
    make_game,
    match_env,
    perfect_player,
    random_player,
    tic_tac_toe_code,
    tic_tac_toe_values,
)
from common.environments.simulators import simulator_of_game
from common.runner import checkpoint
from common.runner.results import from_json, load_member
from common.runner.statistics import summarize

POSITIONS = Path(__file__).with_name("connect_four_positions.csv")
ILLEGAL = -1000  # the solver's score of a full column


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.alphazero")
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", type=Path, help="folder of a run of alphazero")
    parser.add_argument("--games", type=int, default=1000, help="against each opponent, of a seed")
    parser.add_argument("--uct", type=int, nargs="*", default=[100], help="simulations of mcts.py")
    parser.add_argument("--simulations", type=int, help="of its searches; default: as it trained")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the CSV goes")
    arguments = parser.parse_args()
    path = arguments.run / "policy.npz"
    if not path.exists() or not arguments.out.is_dir():
        parser.error(f"{path} must be a run's policies, and --out a folder")
    header, members = checkpoint.load_header(path, "member/")
    if header["algorithm"] != "alphazero" or not header["config"]["env_id"].endswith("-game"):
        parser.error(f"{path} must be of a game that alphazero plays")
    config = from_json(alphazero.Config, header["config"])
    config = replace(config, num_simulations=arguments.simulations or config.num_simulations)
    params = [load_member(path, int(seed), {})[1] for seed in members["member/seed"]]
    params = jax.tree.map(lambda *x: jnp.stack(x), *params)
    same = {"environment": config.env_id, "simulations": config.num_simulations}
    lines = []
    for what, values in measures(config, params, arguments):
        row = same | {"measure": what}
        row |= {key: "" if x is None else f"{x:.4g}" for key, x in summarize(values).items()}
        lines.append(row | {"seeds": len(values), "commit": commit()})
        print(*(str(x) for x in lines[-1].values()), flush=True)
    print(table([list(lines[0]), *(list(line.values()) for line in lines)]))
    path = arguments.out / "alphazero.csv"
    write(path, others(path, lines, *same) + lines)


def measures(config, params, arguments):
    """Yield what is measured and its value for each seed [S]."""
    game, act = make_game(config.env_id), alphazero.make(config).act
    opponents = {"random": random_player(game)}
    if game.shape == (3, 3):
        opponents["perfect"] = perfect_player(game)
    opponents |= {f"mcts, {n} simulations": uct_player(game, n) for n in arguments.uct}
    for name, opponent in opponents.items():
        outcomes = matches(game, act, opponent, params, arguments.games)  # [S, games]
        yield f"score against {name}", np.mean((outcomes + 1) / 2, axis=-1)
        yield f"games lost to {name}", np.mean(outcomes == -1, axis=-1)

    states, q = exact_moves(game)
    legal, value = np.isfinite(q), q.max(axis=-1)
    keeps = q == value[:, None]
    own_value, policy, searched = think(config, params, states, legal)
    yield "mean error of v", np.mean(np.abs(own_value - value), axis=-1)
    rows = np.arange(len(states))
    num_pieces = np.sum(states != 0, axis=-1)
    spans = {"": (0, game.max_steps)}
    if game.shape != (3, 3):
        spans |= {f", {low} to {high} pieces": (low, high) for low, high in ((8, 17), (18, 30))}
    for name, (low, high) in spans.items():
        some = (num_pieces >= low) & (num_pieces <= high)
        uniform = np.mean((keeps.sum(-1) / legal.sum(-1))[some])
        yield f"moves that keep the value, uniform{name}", np.full(len(policy), uniform)
        for mover, moves in (("network", policy), ("search", searched)):
            kept = np.mean(keeps[rows, moves][:, some], axis=-1)
            yield f"moves that keep the value, {mover}{name}", kept


def exact_moves(game: Game) -> tuple[np.ndarray, np.ndarray]:
    """Return boards [B, C] and the exact value of each action, 1, 0 or -1, or -inf if it is
    illegal, [B, A]."""
    if game.shape == (3, 3):
        q = tic_tac_toe_values()
        states = reachable(game)
        return states, q[tic_tac_toe_code(states.astype(int))]
    states, scores = solved_positions(game)
    return states, np.where(scores == ILLEGAL, -np.inf, np.sign(scores))


def reachable(game: Game) -> np.ndarray:
    """Return the boards of tic-tac-toe on which the game goes on, [4520, 9]."""
    step = jax.jit(jax.vmap(jax.vmap(game.step, (None, 0)), (0, None)))
    found = [np.asarray(game.init())[None]]
    for _ in range(game.max_steps - 1):
        after, _, terminated = map(np.asarray, step(found[-1], np.arange(9)))
        goes_on = (found[-1] == 0) & ~terminated
        found.append(np.unique(after[goes_on], axis=0))
    return np.concatenate(found)


def solved_positions(game: Game) -> tuple[np.ndarray, np.ndarray]:
    """Return the boards [B, 42] of connect_four_positions.csv and the solver's scores [B, 7]."""
    with POSITIONS.open() as file:
        rows = list(csv.DictReader(file))
    step, states = jax.jit(game.step), []
    for row in rows:
        state = game.init()
        for column in row["moves"]:
            state, _, _ = step(state, int(column) - 1)
        states.append(np.asarray(state))
    scores = np.array([[int(row[f"c{i}"]) for i in range(1, 8)] for row in rows])
    return np.stack(states), scores


def think(config, params, states, legal):
    """Return of each seed, for boards [B, C], v, the action of the network and that of `act`, each
    [S, B]."""
    game = make_game(config.env_id)
    network = alphazero.board_network(
        game.shape,
        config.num_blocks,
        config.num_channels,
        config.hidden_sizes,
        game.num_actions + 1,
    )
    act = alphazero.make(config).act
    states, legal = jnp.asarray(states), jnp.asarray(legal)

    @jax.jit
    @jax.vmap
    def all_boards(params):
        y = network.apply(params, states)
        moves = jnp.argmax(jnp.where(legal, y[..., :-1], -jnp.inf), axis=-1)
        keys = jax.random.split(jax.random.key(0), len(states))
        return jnp.tanh(y[..., -1]), moves, jax.vmap(act, (None, 0, 0))(params, states, keys)

    return map(np.asarray, all_boards(params))


def uct_player(game: Game, num_simulations: int):
    """Return mcts.py as a player."""
    simulator = simulator_of_game(decisive(game))

    def act(state, key):
        tree = mcts.search(
            simulator, state, key, num_simulations, mcts.Config().uct_c, game.max_steps
        )
        return jnp.argmax(tree.visits[0])

    return act


def matches(game: Game, act, opponent, params, num_games: int) -> np.ndarray:
    """Return the outcomes [S, num_games] of one game in each of `num_games` environments."""
    env = match_env(game, opponent, num_games)

    @jax.jit
    @jax.vmap
    def play(params, key):
        key_reset, key_steps = jax.random.split(key)

        def step(carry):
            t, state, outcome = carry
            key_act, key_env = jax.random.split(jax.random.fold_in(key_steps, t))
            keys = jax.random.split(key_act, num_games)
            action = jax.vmap(act, (None, 0, 0))(params, state.obs, keys)
            state, _ = env.step(state, action, key_env)
            ended = state.episode.done & jnp.isnan(outcome)
            return t + 1, state, jnp.where(ended, state.episode.total, outcome)

        start = jnp.int32(0), env.reset(key_reset), jnp.full(num_games, jnp.nan)
        return jax.lax.while_loop(lambda carry: jnp.any(jnp.isnan(carry[2])), step, start)[2]

    num_seeds = len(jax.tree.leaves(params)[0])
    return np.asarray(play(params, jax.vmap(jax.random.key)(1_000 + jnp.arange(num_seeds))))


if __name__ == "__main__":
    main()
