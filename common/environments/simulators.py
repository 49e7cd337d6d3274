"""Simulators of games and environments for tree search."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from common.environments.games import Game
from common.envs import Env


class Outcome(NamedTuple):
    """What an action leads to."""

    state: Any  # the next one, or the first of a new episode
    obs: jax.Array  # of the next state, before any reset
    reward: jax.Array  # of the player who acted
    discount: jax.Array  # of the value of `obs`: γ, or -1 in a game, and 0 if terminated
    done: jax.Array  # bool: the episode ended, terminated or truncated


class Simulator(NamedTuple):
    """A game or an environment as a search steps it, from one state without a batch axis."""

    reset: Callable  # key -> state
    step: Callable  # state, action, key -> Outcome
    observe: Callable  # state -> obs
    legal: Callable  # state -> bool [A]
    num_actions: int
    max_steps: int  # of the longest episode


def simulator_of_game(game: Game) -> Simulator:
    """Return the simulator of a game; an observation is the board, which is the state.

    Zero-sum with alternating moves: the value changes sign, so the discount is -1.
    """

    def reset(key):
        return game.init()

    def step(state, action, key):
        board, reward, terminated = game.step(state, action)
        discount = jnp.where(terminated, 0.0, -1.0)
        return Outcome(
            jnp.where(terminated, game.init(), board), board, reward, discount, terminated
        )

    def observe(state):
        return state

    return Simulator(reset, step, observe, game.legal, game.num_actions, game.max_steps)


def simulator_of_env(env: Env, gamma: float | jax.Array) -> Simulator:
    """Return the simulator of an Env of one environment; its state has no axis of environments."""

    def one(tree):
        return jax.tree.map(lambda x: x[0], tree)

    def reset(key):
        return one(env.reset(key))

    def step(state, action, key):
        state = jax.tree.map(lambda x: x[None], state)
        state, t = env.step(state, action[None], key)
        outcome = Outcome(
            state, t.next_obs, t.reward, gamma * (1 - t.terminated), t.terminated | t.truncated
        )
        return one(outcome)

    def observe(state):
        return state.obs

    assert env.num_actions is not None  # not copied

    def legal(state):
        return jnp.ones(env.num_actions, bool)

    return Simulator(reset, step, observe, legal, env.num_actions, env.max_steps)
