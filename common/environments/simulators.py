"""What planners share: simulators of games and environments, and pictures of their searches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from common.environments.games import Game
from common.envs import Env


class Simulator(NamedTuple):
    """What a search needs to know of a game or an environment, for one state."""

    step: Callable  # state, action, key -> state, reward, discount of what comes after
    legal: Callable  # state -> bool [A]
    num_actions: int
    max_steps: int  # until the end


def of_game(game: Game) -> Simulator:
    """What is good for the one who moves is as bad for the other: the discount is -1."""

    def step(state, action, key):
        state, reward, terminated = game.step(state, action)
        return state, reward, jnp.where(terminated, 0.0, -1.0)

    return Simulator(step, game.legal, game.num_actions, game.max_steps)


def of_env(env: Env, gamma) -> Simulator:
    """Of an Env of one environment; its State comes and goes without that axis."""

    def step(state, action, key):
        state = jax.tree.map(lambda x: x[None], state)
        state, transition = env.step(state, action[None], key)
        ended = (transition.terminated | transition.truncated)[0]
        state = jax.tree.map(lambda x: x[0], state)
        return state, transition.reward[0], gamma * (1 - ended)

    def legal(state):
        return jnp.ones(env.num_actions, bool)

    return Simulator(step, legal, env.num_actions, env.max_steps)


class Searches(NamedTuple):
    """The last K searches of the first environment, for a picture."""

    board: Any  # [K, C] of a game; () of an environment
    visits: jax.Array  # [K, A] at the root; 0 before there were any


def no_searches(board, num_actions: int, length: int) -> Searches:
    """None yet, of as many as the picture shows."""
    boards = jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), board)
    return Searches(boards, jnp.zeros((length, num_actions)))


def remember(searches: Searches, board, visits) -> Searches:
    """With one more, and without the oldest."""
    latest = Searches(board, visits)
    return jax.tree.map(lambda x, y: jnp.concatenate([x[1:], y[None]]), searches, latest)


def draw_searches(figure, game: Game | None, searches: Searches) -> None:
    """How the visits at the root were spread: on the boards of a game, else over time."""
    boards, visits = jax.tree.map(np.asarray, searches)
    of = f"the last {len(visits)} searches of the first {'game' if game else 'environment'}"
    figure.suptitle(f"Visits of each action at the root: {of}", x=0.02, ha="left", size=10)
    if game is None:
        draw_shares(figure.subplots(), visits)
        return
    for axes, board, counts in zip(figure.subplots(2, 3).flat, boards, visits, strict=True):
        axes.axis("off")
        if counts.any():
            draw_board(axes, game, board, counts / counts.sum())


def draw_shares(axes, visits) -> None:
    """The part of the visits [K, A] that each action got, over time."""
    shares = visits / np.maximum(visits.sum(axis=-1, keepdims=True), 1)
    steps = np.arange(1 - len(shares), 1)
    names = [f"action {a}" for a in range(shares.shape[1])]
    axes.stackplot(steps, shares.T, labels=names, step="mid")
    axes.set(xlim=(steps[0], 0), ylim=(0, 1), ylabel="part of the visits")
    axes.set_xlabel("environment steps, the last one at 0")
    axes.legend(loc="upper left", ncols=6)


def draw_board(axes, game: Game, cells, share) -> None:
    """The pieces of a board [C], X those of who began; in the cells that a move would fill, the
    part of the visits [A] that the move got."""
    begins = np.sum(cells != 0) % 2 == 0
    state = jnp.asarray(cells if begins else -cells)
    after = jax.vmap(game.step, (None, 0))(state, jnp.arange(game.num_actions))[0]
    filled = np.asarray((-after != state) & game.legal(state)[:, None])  # [A, C]
    heat, cells = (share @ filled).reshape(game.shape), cells.reshape(game.shape)
    axes.imshow(heat, cmap="Blues", vmin=0, vmax=1)
    rows, columns = game.shape
    size = 45 / rows
    for i in range(rows):
        for j in range(columns):
            if cells[i, j]:
                letter, color = ("X", "#D55E00") if cells[i, j] == 1 else ("O", "black")
                axes.text(j, i, letter, ha="center", va="center", size=1.3 * size, color=color)
            elif filled[:, i * columns + j].any():
                color = "white" if heat[i, j] > 0.6 else "0.25"
                text = f"{100 * heat[i, j]:.0f}"
                axes.text(j, i, text, ha="center", va="center", size=0.8 * size, color=color)
    axes.set_title(f"{'X' if begins else 'O'} to move, visits in %", size=8, loc="left")
    axes.hlines(np.arange(rows + 1) - 0.5, -0.5, columns - 0.5, color="0.8", linewidth=0.6)
    axes.vlines(np.arange(columns + 1) - 0.5, -0.5, rows - 0.5, color="0.8", linewidth=0.6)
