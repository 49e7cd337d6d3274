"""policy.png: a policy on the map of a grid world.

Shapes: S states, A actions.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from common.environments.gridworlds import Grid, cells
from common.environments.mdp import MDP, policy_values, reachable
from common.environments.tabular import TABULAR, make_mdp
from common.runner.plots import tidy, write_picture

NUM_SAMPLES = 32  # actions sampled in each state: a policy may be random


def has_map(env_id: str) -> bool:
    """Return whether an environment is a grid world that can be drawn."""
    return env_id in TABULAR and TABULAR[env_id].grid is not None


def draw_policy(
    path: Path, env_id: str, act: Callable, gamma: float | None, num_steps: int, title: str
) -> None:
    """Draw `act(obs, key) -> action` in every state of a grid world, and its values.

    `num_steps` are the environment steps so far: they select which version of a changing maze is
    drawn. OSError if the disk refuses.
    """
    env = TABULAR[env_id]
    if env.change_to and num_steps >= env.change_after:
        env_id = env.change_to
    mdp, grid = make_mdp(env_id), TABULAR[env_id].grid
    gamma = TABULAR[env_id].gamma if gamma is None else gamma
    states = np.arange(len(mdp.terminal))
    keys = jax.random.split(jax.random.key(0), NUM_SAMPLES)
    actions = jax.jit(jax.vmap(jax.vmap(act, (0, None)), (None, 0)))(states, keys)
    policy = np.mean(np.asarray(actions)[..., None] == np.arange(mdp.P.shape[1]), axis=0)
    plot_policy(path, grid, mdp, policy, gamma, title)


def known_values(mdp: MDP, policy: np.ndarray, gamma: float) -> np.ndarray:
    """Return V [S] of a policy [S, A]; NaN where γ = 1 and the episode may never end."""
    P = np.einsum("ij,ijk->ik", policy, mdp.P)
    ends = mdp.terminal if gamma == 1 else np.ones(len(P), bool)
    trapped = ~reachable(P.T, ends)  # states from which no path leads to an end
    value = policy_values(mdp._replace(terminal=mdp.terminal | trapped), policy, gamma)
    return np.where(reachable(P.T, trapped), np.nan, value)


def plot_policy(
    path: Path, grid: Grid, mdp: MDP, policy: np.ndarray, gamma: float, title: str
) -> None:
    """Draw a policy [S, A]: its values as colours, its actions as arrows, special cells as letters.

    Walls are dark; terminal states, and cells that no policy can reach, are grey; a cell without a
    value is white. OSError if the disk refuses.
    """
    from matplotlib.figure import Figure

    shape = height, width = len(grid.layout), len(grid.layout[0])
    visited = reachable(mdp.P.sum(1), mdp.start > 0).reshape(shape)
    walls = cells(grid.layout, "#x").reshape(shape)
    live = visited & ~mdp.terminal.reshape(shape)
    value = np.where(live, known_values(mdp, policy, gamma).reshape(shape), np.nan)

    figure = Figure(
        figsize=(max(5, 1.6 + 0.55 * width), 1.1 + 0.55 * height),
        layout="constrained",
        facecolor="white",
    )
    axes = figure.add_subplot()
    tidy(axes, title)
    axes.grid(False)
    background = np.where(walls, 0.25, np.where(live, 1.0, 0.85))
    axes.imshow(background, cmap="gray", vmin=0, vmax=1)
    image = axes.imshow(value, cmap="viridis")
    figure.colorbar(image, ax=axes, label=f"value, γ = {gamma:g}")
    if np.isnan(value[live]).any():
        axes.set_xlabel("white: from here the policy may never end", loc="left")
    ink = np.where(value < np.mean(image.get_clim()), "white", "black")
    draw_arrows(axes, grid, policy, live, ink)
    for i, j in np.argwhere(~live & ~walls):
        letter = grid.layout[i][j].strip(".")
        axes.text(j, i, letter, ha="center", va="center", size=11, weight="bold", color="0.25")
    if np.count_nonzero(mdp.start) == 1:
        i, j = np.argwhere(mdp.start.reshape(shape))[0]
        axes.text(j - 0.45, i - 0.45, "S", va="top", size=8, weight="bold", color=ink[i, j])
    for set_ticks, length in ((axes.set_xticks, width), (axes.set_yticks, height)):
        set_ticks(np.arange(length + 1) - 0.5, minor=True)
        set_ticks([])
    axes.grid(which="minor", color="0.7", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    write_picture(path, figure)


def draw_arrows(
    axes: Any, grid: Grid, policy: np.ndarray, live: np.ndarray, ink: np.ndarray
) -> None:
    """Draw an arrow for every action in every live cell, as long as its probability.

    `live` (bool) and `ink` (colours) have the shape of the map, the policy [S, A].
    """
    y, x = np.nonzero(live)
    style = {"angles": "xy", "scale_units": "xy", "scale": 1, "units": "xy", "width": 0.07}
    for (dy, dx), probability in zip(grid.directions, policy.T, strict=True):
        length = 0.8 * probability.reshape(live.shape)[y, x]
        seen = length > 0
        dx, dy = dx * length[seen], dy * length[seen]
        tail = x[seen] - dx / 2, y[seen] - dy / 2
        axes.quiver(*tail, dx, dy, color=ink[y, x][seen], headwidth=4.5, headlength=4, **style)
