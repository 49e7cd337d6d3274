"""policy.png: a policy on the map of a grid world."""

import jax
import numpy as np

from common.environments.gridworlds import Grid, cells
from common.environments.mdp import policy_values, reachable
from common.environments.tabular import TABULAR, make_mdp
from common.runner.report import tidy, write_picture

NUM_SAMPLES = 32  # actions drawn in each state: a policy may be random


def has_map(env_id: str) -> bool:
    """Whether an environment is a grid world that can be drawn."""
    return env_id in TABULAR and TABULAR[env_id].grid is not None


def draw_policy(path, env_id: str, act, gamma: float, num_steps: int, title: str) -> None:
    """Draws `act(obs, key) -> action` at all states of a grid world, and what it is worth.

    `num_steps` are those that the environment has lived through; it is drawn as it then is.
    """
    env = TABULAR[env_id]
    if env.change_to and num_steps >= env.change_after:
        env_id = env.change_to
    mdp, grid = make_mdp(env_id), TABULAR[env_id].grid
    states = np.arange(len(mdp.terminal))
    keys = jax.random.split(jax.random.key(0), NUM_SAMPLES)
    actions = jax.jit(jax.vmap(jax.vmap(act, (0, None)), (None, 0)))(states, keys)
    policy = np.mean(np.asarray(actions)[..., None] == np.arange(mdp.P.shape[1]), axis=0)
    plot_policy(path, grid, mdp, policy, gamma, title)


def known_values(mdp, policy, gamma) -> np.ndarray:
    """V [S] of a policy [S, A]; NaN where γ = 1 and it may never end."""
    P = np.einsum("ij,ijk->ik", policy, mdp.P)
    ends = mdp.terminal if gamma == 1 else np.ones(len(P), bool)
    trapped = ~reachable(P.T, ends)  # where no path leads to an end
    value = policy_values(mdp._replace(terminal=mdp.terminal | trapped), policy, gamma)
    return np.where(reachable(P.T, trapped), np.nan, value)


def plot_policy(path, grid: Grid, mdp, policy, gamma, title: str) -> None:
    """Colours for the policy's values, arrows for its actions, letters for what there is.

    Walls are dark, cells in which nobody can ever be are grey, and so are the ends; where the
    policy has no value, the cell is white.
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
    y, x = np.nonzero(live)
    for (dy, dx), share in zip(grid.directions, policy.T, strict=True):
        length = 0.8 * share.reshape(shape)[y, x]
        some = length > 0
        dx, dy = dx * length[some], dy * length[some]
        style = {"angles": "xy", "scale_units": "xy", "scale": 1, "units": "xy", "width": 0.07}
        tail = x[some] - dx / 2, y[some] - dy / 2
        axes.quiver(*tail, dx, dy, color=ink[y, x][some], headwidth=4.5, headlength=4, **style)
    for i, j in np.argwhere(~live & ~walls):
        letter = grid.layout[i][j].strip(".")
        axes.text(j, i, letter, ha="center", va="center", size=11, weight="bold", color="0.25")
    if np.count_nonzero(mdp.start) == 1:
        i, j = np.argwhere(mdp.start.reshape(shape))[0]
        axes.text(j - 0.45, i - 0.45, "S", va="top", size=8, weight="bold", color=ink[i, j])
    for edge, sides in ((axes.set_xticks, width), (axes.set_yticks, height)):
        edge(np.arange(sides + 1) - 0.5, minor=True)
        edge([])
    axes.grid(which="minor", color="0.7", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    write_picture(path, figure)
