"""Race the search of alphazero.py against mctx: `python -m benchmarks.gumbel`.

Both are Gumbel searches of 32 simulations, up to 16 actions at the root, with the same network, the
same boards and the same rules of the games, and find the same visits (tests/test_alphazero.py);
many roots at once, on one device. The network is that of a file's defaults for tic-tac-toe, and two
residual blocks of 64 channels for connect four; `nothing` is no network, equal logits and value 0,
which leaves the tree alone to be measured. Medians over rounds in which both run once; `ratio` is
the median over rounds of mctx's time over ours. `same_moves` is the part of the roots at which both
choose the same action. The lines go to results/gumbel.csv.
"""

import argparse
import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from algorithms.alphazero import ILLEGAL, Config, board_network, gumbel_rule, halving, search
from benchmarks.learning import RESULTS, table
from benchmarks.mcts import boards, versions_of_race
from benchmarks.speed import existing_folder, origin, positive, rows_to_show, write
from common.environments.games import Game, make_game
from common.environments.simulators import simulator_of_game
from common.runner.threefry import unroll_threefry

BLOCKS = {"TicTacToe-game": 0, "ConnectFour-game": 2}
ROOTS = {"TicTacToe-game": (64, 512, 4096), "ConnectFour-game": (64, 256, 1024)}
NUM_SIMULATIONS, NUM_CONSIDERED, VALUE_SCALE = 32, 16, 0.1


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.gumbel", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--roots", type=positive, nargs="+", help="default: by game")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--games", nargs="+", choices=BLOCKS, default=list(BLOCKS))
    parser.add_argument("--out", type=existing_folder, default=RESULTS, help="folder for the CSV")
    arguments = parser.parse_args()
    versions = versions_of_race(parser)
    unroll_threefry()
    lines = []
    for env_id in arguments.games:
        for leaf in ("nothing", "network"):
            for num_roots in arguments.roots or ROOTS[env_id]:
                line = {"game": env_id, "leaf": leaf, "roots": num_roots}
                line |= {"simulations": NUM_SIMULATIONS, "rounds": arguments.rounds}
                line |= race(env_id, leaf, num_roots, arguments.rounds)
                lines.append(line | origin([{"versions": versions}]))
                text = "{ours:,.0f} simulations/s, mctx {mctx:,.0f}, ratio {ratio:.2f}"
                print(f"{env_id} {leaf} {num_roots} roots: {text.format(**line)}", flush=True)
    print(table(rows_to_show(lines)))
    write(arguments.out / "gumbel.csv", lines)


def race(env_id: str, leaf: str, num_roots: int, rounds: int) -> dict:
    """Return simulations per second of both, the ratio, and whether they choose the same moves."""
    game, roots = make_game(env_id), boards(env_id, num_roots)
    evaluate = evaluation(game, leaf, BLOCKS[env_id])
    programs = {
        name: jax.jit(jax.vmap(program) if name == "ours" else program)
        for name, program in (("ours", ours(game, evaluate)), ("mctx", theirs(game, evaluate)))
    }
    keys = {
        "ours": jax.random.split(jax.random.key(0), num_roots),
        "mctx": jax.random.key(0),
    }
    programs = {
        name: program.lower(roots, keys[name]).compile() for name, program in programs.items()
    }
    times, actions = {name: [] for name in programs}, {}
    for number in range(rounds + 1):  # the first one warms up
        for name, program in programs.items():
            clock = time.perf_counter()
            actions[name] = jax.block_until_ready(program(roots, keys[name]))
            times[name] += [time.perf_counter() - clock] * (number > 0)
    seconds = {name: statistics.median(x) for name, x in times.items()}
    ratios = [mctx / own for own, mctx in zip(times["ours"], times["mctx"], strict=True)]
    return {
        **{name: num_roots * NUM_SIMULATIONS / x for name, x in seconds.items()},
        "ratio": statistics.median(ratios),
        "same_moves": float(np.mean(actions["ours"] == actions["mctx"])),
    }


def evaluation(game: Game, leaf: str, num_blocks: int):
    """Return `board, legal -> logits, v`."""
    hidden_sizes = Config.hidden_sizes if num_blocks == 0 else (64,)
    network = board_network(game.shape, num_blocks, 64, hidden_sizes, game.num_actions + 1)
    params = network.init(jax.random.key(1))

    def evaluate(board, legal):
        y = network.apply(params, board) if leaf == "network" else jnp.zeros(game.num_actions + 1)
        return jnp.where(legal, y[:-1], ILLEGAL), jnp.tanh(y[-1])

    return evaluate


def ours(game: Game, evaluate):
    """Return the search of one root, `board, key -> action`, without noise."""
    num_tried = [min(max(n, 1), NUM_CONSIDERED) for n in range(game.num_actions + 1)]
    tried = jnp.array([halving(n, NUM_SIMULATIONS) for n in num_tried])

    def act(board, key):
        rule = gumbel_rule(jnp.zeros(game.num_actions), tried, VALUE_SCALE)
        node = search(simulator_of_game(game), evaluate, rule, board, key, NUM_SIMULATIONS)
        return rule.decide(node)[0]

    return act


def theirs(game: Game, evaluate):
    """Return mctx's search of all roots, `boards, key -> actions`, without noise."""
    import mctx

    simulator = simulator_of_game(game)
    evaluate_all, legal = jax.vmap(evaluate), jax.vmap(game.legal)

    def expand(params, key, action, state):
        outcome = jax.vmap(simulator.step, (0, 0, None))(state, action, None)
        logits, value = evaluate_all(outcome.obs, legal(outcome.obs))
        output = mctx.RecurrentFnOutput(
            reward=outcome.reward, discount=outcome.discount, prior_logits=logits, value=value
        )
        return output, outcome.obs

    def act(boards, key):
        logits, value = evaluate_all(boards, legal(boards))
        return mctx.gumbel_muzero_policy(
            None,
            key,
            mctx.RootFnOutput(prior_logits=logits, value=value, embedding=boards),
            expand,
            NUM_SIMULATIONS,
            invalid_actions=~legal(boards),
            max_num_considered_actions=NUM_CONSIDERED,
            gumbel_scale=0.0,
            qtransform=functools.partial(
                mctx.qtransform_completed_by_mix_value,
                value_scale=VALUE_SCALE,
                rescale_values=False,
            ),
        ).action

    return act


if __name__ == "__main__":
    main()
