"""Compare simulations per second of mcts.py and mctx: `python -m benchmarks.mcts`.

64 roots, 100 simulations each, from boards on which some moves were made at random; the rules of
the games are common/games.py for all. A new node is valued by one game played at random to its end
(`playout`), or by 0 (`zero`), which leaves the search alone to be measured. Contestants:

    manyseeds            the search of algorithms/mcts.py
    manyseeds, decisive  the same, and moves that win at once taken, as mcts.py plays games
    mctx, UCT            mctx.search, with the same rule of selection as the first
    mctx, PUCT           mctx.muzero_policy as it comes, its prior even among legal actions

Medians over rounds in which every contestant runs once, on one device; `ratio` is the median over
rounds of our speed over the contestant's. The other columns are what the searches found: the mean
`root_value`, and `best_move`, the part of the roots at which the move is one of minimax
(tic-tac-toe only). The lines go to results/mcts.csv.
"""

import argparse
import functools
import math
import statistics
import time
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np

from algorithms.mcts import choose, search
from benchmarks.learning import RESULTS, table
from benchmarks.speed import existing_folder, origin, positive, rows_to_show, write
from common.environments.games import (
    any_of,
    decisive,
    make_game,
    tic_tac_toe_code,
    tic_tac_toe_values,
)
from common.environments.simulators import simulator_of_game
from common.runner.threefry import unroll_threefry

GAMES = ("TicTacToe-game", "ConnectFour-game")
UCT_C = 1.4


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.mcts", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--roots", type=positive, default=64)
    parser.add_argument("--simulations", type=positive, default=100)
    parser.add_argument("--rounds", type=positive, default=15)
    parser.add_argument("--out", type=existing_folder, default=RESULTS, help="folder for the CSV")
    arguments = parser.parse_args()
    versions = versions_of_race(parser)
    unroll_threefry()
    lines = []
    for env_id in GAMES:
        for leaf in ("playout", "zero"):
            results = race(env_id, leaf, arguments.roots, arguments.simulations, arguments.rounds)
            for line in results:
                lines.append(line | origin([{"versions": versions}]))
                text = "{contestant}: {simulations_per_second:,.0f} simulations/s, {ratio:.2f}"
                print(f"{env_id} {leaf} {text.format(**line)}", flush=True)
    print(table(rows_to_show(lines)))
    write(arguments.out / "mcts.csv", lines)


def versions_of_race(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Return the versions of jax and mctx; exit with 2 if there is no mctx."""
    try:
        return {name: version(name) for name in ("jax", "mctx")}
    except ModuleNotFoundError:
        parser.error("mctx is not installed; pip install mctx")


def race(env_id: str, leaf: str, num_roots: int, num_simulations: int, rounds: int) -> list[dict]:
    """Return a line for each contestant."""
    roots = boards(env_id, num_roots)
    programs = {
        name: jax.jit(make(env_id, leaf, num_simulations)).lower(roots, jax.random.key(0)).compile()
        for name, make in CONTESTANTS.items()
    }
    times, results = {name: [] for name in programs}, {}
    for number in range(rounds + 1):  # the first one warms up
        for name, program in programs.items():
            clock = time.perf_counter()
            results[name] = jax.block_until_ready(program(roots, jax.random.key(number)))
            times[name] += [time.perf_counter() - clock] * (number > 0)
    lines = []
    for name, (value, action) in results.items():
        ours = next(iter(results))
        ratio = statistics.median(x / y for x, y in zip(times[name], times[ours], strict=True))
        line = {"game": env_id, "leaf": leaf, "contestant": name}
        line |= {"roots": num_roots, "simulations": num_simulations, "rounds": rounds}
        line["simulations_per_second"] = (
            num_roots * num_simulations / statistics.median(times[name])
        )
        line |= {"ratio": ratio, "root_value": float(jnp.mean(value))}
        lines.append(line | {"best_move": best_moves(env_id, roots, action)})
    return lines


def best_moves(env_id: str, roots, action) -> float:
    """Return the part of the actions that are best by minimax; NaN if the game has no table."""
    if env_id != "TicTacToe-game":
        return math.nan
    q = tic_tac_toe_values()[tic_tac_toe_code(np.asarray(roots))]
    return float(np.mean(q[np.arange(len(q)), action] == q.max(axis=-1)))


def boards(env_id: str, num_roots: int):
    """Return boards [B, C] after 0 to 3 random moves, none of which can end a game."""
    game = make_game(env_id)

    def played(key, num_moves):
        def move(i, state):
            action = any_of(jax.random.uniform(jax.random.fold_in(key, i)), game.legal(state))
            return game.step(state, action)[0]

        return jax.lax.fori_loop(0, num_moves, move, game.init())

    keys = jax.random.split(jax.random.key(0), num_roots)
    return jax.vmap(played)(keys, jnp.arange(num_roots) % 4)


# Each contestant maps roots [B, C] and a key to values and actions [B].


def manyseeds(env_id: str, leaf: str, num_simulations: int, played=lambda game: game):
    simulator = simulator_of_game(played(make_game(env_id)))
    rollout_length = simulator.max_steps if leaf == "playout" else 0

    def run(roots, key):
        def one(root, key):
            tree = search(simulator, root, key, num_simulations, UCT_C, rollout_length)
            return jnp.sum(tree.total[0]) / num_simulations, jnp.argmax(tree.visits[0])

        return jax.vmap(one)(roots, jax.random.split(key, len(roots)))

    return run


def mctx_uct(env_id: str, leaf: str, num_simulations: int):
    import mctx

    game = make_game(env_id)

    def select(key, tree, node, depth):
        state, visits = tree.embeddings[node], tree.children_visits[node]
        total = visits * tree.qvalues(node)
        legal = game.legal(state)
        u = jax.random.uniform(key)
        return choose(u, legal, visits, total, UCT_C).astype(jnp.int32)

    def run(roots, key):
        tree = mctx.search(
            None,
            key,
            root_action_selection_fn=lambda key, tree, node: select(key, tree, node, 0),
            interior_action_selection_fn=select,
            **searched(game, roots, leaf, num_simulations),
        )
        summary = tree.summary()
        return summary.value, jnp.argmax(summary.visit_counts, axis=-1)

    return run


def mctx_puct(env_id: str, leaf: str, num_simulations: int):
    import mctx

    game = make_game(env_id)

    def run(roots, key):
        output = mctx.muzero_policy(
            None,
            key,
            invalid_actions=~jax.vmap(game.legal)(roots),
            dirichlet_fraction=0.0,
            temperature=0.0,
            **searched(game, roots, leaf, num_simulations),
        )
        return output.search_tree.summary().value, output.action

    return run


def searched(game, roots, leaf: str, num_simulations: int) -> dict:
    """Return the arguments that both of mctx's searches take."""
    import mctx

    root = mctx.RootFnOutput(
        prior_logits=jax.vmap(lambda state: prior(game, state))(roots),
        value=jnp.zeros(len(roots)),
        embedding=roots,
    )
    recurrent = expansion(game, leaf)
    return {"root": root, "recurrent_fn": recurrent, "num_simulations": num_simulations}


def prior(game, state):
    """Return logits that are equal for the legal actions."""
    return jnp.where(game.legal(state), 0.0, -1e9)


def expansion(game, leaf: str):
    """Return mctx's recurrent function: it steps all roots and values their new nodes."""
    import mctx

    simulator = simulator_of_game(game)

    def recurrent(params, key, action, state):
        outcome = jax.vmap(simulator.step, (0, 0, None))(state, action, None)
        state, reward, discount = outcome.obs, outcome.reward, outcome.discount
        value = jnp.zeros(len(state))
        if leaf == "playout":
            keys = jax.random.split(key, len(state))
            value = jax.vmap(lambda *args: playout(game, *args))(state, discount != 0, keys)
        logits = jax.vmap(lambda state: prior(game, state))(state)
        output = mctx.RecurrentFnOutput(
            reward=reward, discount=discount, prior_logits=logits, value=value
        )
        return output, state

    return recurrent


def playout(game, state, running, key):
    """Return the reward of the player to move if both play at random from here."""
    noise = jax.random.uniform(key, (game.max_steps,))

    def step(carry):
        time, state, sign, value, _ = carry
        action = any_of(noise[time], game.legal(state))
        state, reward, terminated = game.step(state, action)
        return time + 1, state, -sign, value + sign * reward, ~terminated

    start = jnp.int32(0), state, jnp.float32(1), jnp.float32(0), running
    return jax.lax.while_loop(lambda carry: carry[-1], step, start)[3]


CONTESTANTS = {
    "manyseeds": manyseeds,
    "manyseeds, decisive": functools.partial(manyseeds, played=decisive),
    "mctx, UCT": mctx_uct,
    "mctx, PUCT": mctx_puct,
}


if __name__ == "__main__":
    main()
