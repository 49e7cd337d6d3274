"""Simulators of games and environments for tree search."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from common.environments.games import Game
from common.envs import Env


class Simulator(NamedTuple):
    """A game or an environment as a search steps it, from one state without a batch axis."""

    step: Callable  # state, action, key -> state, reward, discount of the next state's value
    legal: Callable  # state -> bool [A]
    num_actions: int
    max_steps: int  # of the longest episode


def simulator_of_game(game: Game) -> Simulator:
    """Return the simulator of a game.

    Zero-sum with alternating moves: the value changes sign, so the discount is -1; 0 at the end.
    """

    def step(state, action, key):
        state, reward, terminated = game.step(state, action)
        return state, reward, jnp.where(terminated, 0.0, -1.0)

    return Simulator(step, game.legal, game.num_actions, game.max_steps)


def simulator_of_env(env: Env, gamma: float | jax.Array) -> Simulator:
    """Return the simulator of an Env of one environment; its state has no axis of environments.

    The discount is γ, and 0 where the episode ends, because the environment has then been reset.
    """

    def step(state, action, key):
        state = jax.tree.map(lambda x: x[None], state)
        state, transition = env.step(state, action[None], key)
        done = (transition.terminated | transition.truncated)[0]
        state = jax.tree.map(lambda x: x[0], state)
        return state, transition.reward[0], gamma * (1 - done)

    assert env.num_actions is not None  # not copied

    def legal(state):
        return jnp.ones(env.num_actions, bool)

    return Simulator(step, legal, env.num_actions, env.max_steps)
