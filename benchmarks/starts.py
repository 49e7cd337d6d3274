"""What a fresh start after each episode costs in Brax: `python -m benchmarks.starts`.

    bare      Brax's own step alone: an episode that ends goes on
    ahead     common/brax_envs.py, which draws starts ahead, many at once
    reset     the plain way: all environments are reset in every step, and those that ended begin so

Microseconds of one step of all environments of all seeds, with random actions: medians over rounds
in which every contestant runs once, on one device. The lines go to results/starts.csv.
"""

import argparse

import jax
import jax.numpy as jnp

from benchmarks.learning import RESULTS, table
from benchmarks.replay import race
from benchmarks.speed import existing_folder, origin, positive, rows_to_show, write
from common import brax_envs
from common.threefry import unroll_threefry

ENV_IDS = ("Hopper-brax", "InvertedPendulum-brax", "HalfCheetah-brax")
SIZES = ((8, 16), (4, 64))  # seeds, environments of each


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.starts", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--env-ids", nargs="+", default=ENV_IDS, metavar="ID")
    parser.add_argument("--rounds", type=positive, default=9)
    parser.add_argument("--out", type=existing_folder, default=RESULTS, help="folder for the CSV")
    arguments = parser.parse_args()
    for env_id in arguments.env_ids:
        try:
            brax_envs.load(env_id)
        except ValueError as error:
            parser.error(f"--env-ids: {error}")
    unroll_threefry()
    lines = []
    for env_id in arguments.env_ids:
        for seeds, num_envs in SIZES:
            times = race(contestants(env_id, num_envs), seeds, arguments.rounds)
            for name, microseconds in times.items():
                line = {"env_id": env_id, "seeds": seeds, "num_envs": num_envs, "contestant": name}
                line |= {"microseconds": microseconds, "ratio": microseconds / times["bare"]}
                lines.append(line | origin([{"versions": {"jax": jax.__version__}}]))
            print(", ".join(f"{name} {x:.0f} us" for name, x in times.items()), flush=True)
    print(table(rows_to_show(lines)))
    write(arguments.out / "starts.csv", lines)


def contestants(env_id: str, num_envs: int) -> dict:
    """For `race`: each has its state, and a step of state and action to state, reward and ends."""
    env, _ = brax_envs.load(env_id)
    reset_ahead, step_ahead = brax_envs.batched(env_id, num_envs)

    def reset(key):
        return jax.vmap(env.reset)(jax.random.split(key, num_envs))

    def bare(state, action, key):
        state = jax.vmap(env.step)(state, action)
        return state, state.reward, state.done

    def ahead(state, action, key):
        _, state, reward, terminated, truncated, _ = step_ahead(key, state, action)
        return state, reward, terminated | truncated

    def with_reset(state, action, key):
        after = jax.vmap(env.step)(state, action)
        choose = jax.vmap(lambda done, new, old: jnp.where(done, new, old))
        state = jax.tree.map(lambda new, old: choose(after.done > 0, new, old), reset(key), after)
        return state, after.reward, after.done

    def contestant(init, step):
        def start(keys):
            return jax.vmap(init)(keys), keys, jnp.zeros((2, len(keys)))

        def run(carry, first, last):
            def body(i, carry):
                state, keys, total = carry

                def one(state, key):
                    key_action, key_reset = jax.random.split(jax.random.fold_in(key, i))
                    shape = num_envs, env.action_size
                    action = jax.random.uniform(key_action, shape, minval=-1, maxval=1)
                    state, reward, done = step(state, action, key_reset)
                    return state, jnp.stack([reward.sum(), done.sum()])

                state, sums = jax.vmap(one)(state, keys)
                return state, keys, total + sums.T

            return jax.lax.fori_loop(first, last, body, carry)

        return start, run

    return {
        "bare": contestant(reset, bare),
        "ahead": contestant(lambda key: reset_ahead(key)[1], ahead),
        "reset": contestant(reset, with_reset),
    }


if __name__ == "__main__":
    main()
