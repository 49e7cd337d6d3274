"""Steps per second of other suites' environments: `python -m benchmarks.suites [ID ...]`.

Ours is `rollout` of `make_env`, which also counts the time and the return, and keeps each last
observation; the suite's own is its vmapped step with the resets that it offers. Both act at random,
in as many environments for as many steps, in turns, and keep all observations and rewards, with
the random bits that the harness uses. Prints a Markdown table: the best of several turns of each,
and their ratio.
"""

import argparse
import time
from collections.abc import Callable
from importlib import import_module

import jax

from benchmarks.learning import table
from common.envs import make_env, rollout
from common.exploration import random_policy
from common.runner.threefry import unroll_threefry

NUM_STEPS, TURNS = 200, 5


def navix(name: str) -> tuple[Callable, Callable]:
    env = import_module("navix").make(name)

    def step(key, timestep, action):
        timestep = env.step(timestep, action)
        return timestep, timestep.observation, timestep.reward

    return env.reset, step


def jumanji(name: str) -> tuple[Callable, Callable]:
    wrappers = import_module("jumanji.wrappers")
    env = wrappers.AutoResetWrapper(import_module("jumanji").make(name))

    def step(key, state, action):
        state, timestep = env.step(state[0], action)
        return (state, timestep), timestep.observation, timestep.reward

    return env.reset, step


def craftax(name: str) -> tuple[Callable, Callable]:
    make = import_module("craftax.craftax_env").make_craftax_env_from_name
    env = make(name, auto_reset=True)
    params = env.default_params

    def step(key, state, action):
        obs, state, reward, _, _ = env.step(key, state, action, params)
        return state, obs, reward

    return lambda key: env.reset(key, params)[1], step


def pgx(name: str) -> tuple[Callable, Callable]:
    env = import_module("pgx").make(name)
    step_and_reset = import_module("pgx.experimental").auto_reset(env.step, env.init)

    def step(key, state, action):
        state = step_and_reset(state, action, key)
        return state, state.observation, state.rewards

    return env.init, step


def xminigrid(name: str) -> tuple[Callable, Callable]:
    env, params = import_module("xminigrid").make(name)
    env = import_module("xminigrid.wrappers").GymAutoResetWrapper(env)

    def step(key, timestep, action):
        timestep = env.step(params, timestep, action)
        return timestep, timestep.observation, timestep.reward

    return lambda key: env.reset(params, key), step


def playground(name: str) -> tuple[Callable, Callable]:
    package = import_module("mujoco_playground")
    env = package.registry.load(name, config_overrides={"impl": "jax"})
    env = package.wrapper.wrap_for_brax_training(env)  # which adds an axis of environments

    def step(key, state, action):
        state = env.step(state, action[None])
        return state, state.obs[0], state.reward[0]

    return lambda key: env.reset(key[None]), step


OWN = {make.__name__: make for make in (navix, jumanji, craftax, pgx, xminigrid, playground)}
IDS = {
    "Navix-Empty-5x5-v0-navix": 64,
    "Navix-DoorKey-5x5-v0-navix": 64,
    "Snake-v1-jumanji": 64,
    "Game2048-v1-jumanji": 64,
    "Craftax-Classic-Symbolic-v1-craftax": 16,
    "minatar-breakout-pgx": 64,
    "MiniGrid-Empty-5x5-xminigrid": 64,
    "CartpoleSwingup-playground": 64,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suites", description=__doc__)
    parser.add_argument("ids", nargs="*", default=list(IDS), metavar="ID", help="default: all")
    unroll_threefry()
    rows = [["id", "environments", "ours, steps/s", "the suite's own, steps/s", "ratio"]]
    for env_id in parser.parse_args().ids:
        num_envs = IDS[env_id]
        ours, own = race(ours_of(env_id, num_envs), own_of(env_id, num_envs))
        per_second = [num_envs * NUM_STEPS / seconds for seconds in (ours, own)]
        speeds = [f"{x:,.0f}" for x in per_second]
        rows.append([f"`{env_id}`", num_envs, *speeds, f"{own / ours:.2f}"])
        print(rows[-1], flush=True)
    print(table(rows))


def race(*programs: Callable) -> list[float]:
    """Return the shortest time in seconds of each of the programs of a key, which take turns."""
    times = [[] for _ in programs]
    for turn in range(TURNS + 1):  # the first one compiles
        for program, seconds in zip(programs, times, strict=True):
            begun = time.perf_counter()
            jax.block_until_ready(program(jax.random.key(turn)))
            seconds.append(time.perf_counter() - begun)
    return [min(seconds[1:]) for seconds in times]


def ours_of(env_id: str, num_envs: int) -> Callable:
    env = make_env(env_id, num_envs)
    policy = random_policy(env._replace(legal=None))  # as the suite's own

    def play(key):
        state, steps, metrics = rollout(env, policy, env.reset(key), key, NUM_STEPS)
        return state, steps.obs, steps.reward, metrics

    return jax.jit(play)


def own_of(env_id: str, num_envs: int) -> Callable:
    name, _, suite = env_id.rpartition("-")
    reset, step = OWN[suite](name)
    random_actions = random_policy(make_env(env_id, num_envs)._replace(legal=None))

    def play(key):
        def step_all(states, key):
            key_action, key_step = jax.random.split(key)
            action = random_actions(None, key_action)
            keys = jax.random.split(key_step, num_envs)
            states, *seen = jax.vmap(step)(jax.vmap(jax.random.key_data)(keys), states, action)
            return states, seen

        keys = jax.vmap(jax.random.key_data)(jax.random.split(key, num_envs))
        states = jax.vmap(reset)(keys)
        shapes = jax.eval_shape(step_all, states, key)[0]
        states = jax.tree.map(lambda x, y: x.astype(y.dtype), states, shapes)  # no weak types
        return jax.lax.scan(step_all, states, jax.random.split(key, NUM_STEPS))

    return jax.jit(play)


if __name__ == "__main__":
    main()
