"""picture.png: plans and what was realised, or the visits of tree searches.

An algorithm's `picture(state)` returns a dict of arrays, one of

    plans     names [D], realised [T, D], planned [K, H, D], start [K] the first step of each plan
    ranges    names [D], realised [T, D], low and high [T, D], the predicted 5 % and 95 % quantiles
    searches  visits [K, A] at the roots of successive searches, and in a game boards [K, C]
    values    value [S] that was learned, exact [S] or NaN, and the policy [S, A] they are of
    maps      names [M], maps [M, S] of numbers of the states, side by side
    grid      order [S] in which a search expanded the cells, 0 for never; frontier, wall, goal and
              path bool [S]; parent [S] the cell before, on the path
    tree      names [2] of the axes, edges [E, K, 2], path bool [E], goal [2, 2] its low and high

Plans and ranges may have a title, too.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from common.environments.games import Game, make_game
from common.environments.obstacles import OBSTACLES
from common.environments.tabular import TABULAR, make_mdp
from common.runner.plots import COLORS, tidy
from common.runner.policy_map import has_map, plot_heat, plot_states

MAX_PANELS = 6  # more components of a plan than this would be too small to read

PENDULUM = {"obs": ["cos θ", "sin θ", "θ′"], "x": ["θ", "θ′", "last torque"], "u": ["torque"]}
NAMES = {  # of observations, of a dynamics' state and of controls, where "obs[0]" says too little
    "CartPole-v1": {"obs": ["position", "velocity", "angle", "angular velocity"]},
    "Pendulum-v1": PENDULUM,
    "MountainCar-v0": {"obs": ["position", "velocity"]},
    "MountainCarContinuous-v0": {"obs": ["position", "velocity"]},
    "Acrobot-v1": {"obs": ["cos θ₁", "sin θ₁", "cos θ₂", "sin θ₂", "θ₁′", "θ₂′"]},
    "PointRobot-obstacles": {"x": ["x", "y"]},
    "DoubleIntegrator-linear": {
        "obs": ["position", "velocity"],
        "x": ["position", "velocity"],
        "u": ["force"],
    },
}


def draw_picture(figure: Any, env_id: str, picture: dict[str, Any]) -> None:
    """Draw such a dict on an empty matplotlib figure, or raise ValueError for other keys."""
    texts = ("names", "title")
    arrays: dict[str, Any] = {k: x if k in texts else np.asarray(x) for k, x in picture.items()}
    keys = set(picture) - {"title"}
    if keys in ({"names", "realised", "planned", "start"}, {"names", "realised", "low", "high"}):
        plot_plans(figure, env_id, **arrays)
    elif keys in ({"visits"}, {"visits", "boards"}):
        plot_searches(figure, env_id, **arrays)
    elif keys == {"value", "exact", "policy"}:
        plot_values(figure, env_id, **arrays)
    elif keys == {"names", "maps"}:
        plot_maps(figure, env_id, **arrays)
    elif keys == {"order", "frontier", "wall", "goal", "path", "parent"}:
        plot_grid_search(figure, env_id, **arrays)
    elif keys == {"names", "edges", "path", "goal"}:
        plot_tree(figure, env_id, **arrays)
    else:
        raise ValueError(f"there is no picture of {sorted(keys)}; see common/runner/pictures.py")


def plot_plans(
    figure: Any,
    env_id: str,
    names: list[str],
    realised: np.ndarray,
    planned: np.ndarray | None = None,
    start: np.ndarray | None = None,
    low: np.ndarray | None = None,
    high: np.ndarray | None = None,
    title: str = "",
) -> None:
    """Plot each component over time: realised, and the plans or the predicted range."""
    panels = figure.subplots(min(len(names), MAX_PANELS), sharex=True, squeeze=False)[:, 0]
    steps = np.arange(len(realised))
    for i, axes in enumerate(panels):
        tidy(axes, "")
        axes.set_ylabel(full_name(env_id, names[i]), fontsize=8)
        if low is not None and high is not None:
            label = "predicted, 5 % to 95 %"
            axes.fill_between(
                steps, low[:, i], high[:, i], color=COLORS[1], alpha=0.4, linewidth=0, label=label
            )
        width = 2 if planned is None else 4  # seen on both sides of the plans
        axes.plot(steps, realised[:, i], color=COLORS[5], linewidth=width, label="realised")
        if planned is not None and start is not None:
            for k, plan in enumerate(planned):
                label, plan_steps = "planned" if k == 0 else None, start[k] + np.arange(len(plan))
                axes.plot(plan_steps, plan[:, i], color="black", linewidth=0.8, label=label)
    panels[-1].set_xlabel("step")
    figure.suptitle(": ".join(filter(None, (env_id, title))), x=0.02, ha="left", size=10)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower right", ncols=2, fontsize=8, frameon=False)


def full_name(env_id: str, name: str) -> str:
    """Return what a component is called in NAMES: "position" for "obs[0]"; else its name."""
    found = re.fullmatch(r"(\w+)(?:\[(\d+)\])?", name)
    kind, index = found.groups() if found else (name, None)
    known = NAMES.get(env_id, {}).get(kind, [])
    return known[int(index)] if known and index else name


def plot_values(
    figure: Any, env_id: str, value: np.ndarray, exact: np.ndarray, policy: np.ndarray
) -> None:
    """Plot learned values: on the map if there is one, else beside the exact ones."""
    if has_map(env_id):
        plot_states(figure, env_id, policy, value, "learned value", f"{env_id}: the policy given")
        return
    axes = figure.subplots()
    tidy(axes, f"{env_id}: the values of the policy given")
    live = np.ones(len(value), bool)
    if env_id in TABULAR:
        live = ~np.asarray(make_mdp(env_id).terminal)
    states = np.flatnonzero(live)
    axes.plot(states, value[live], "o-", color=COLORS[0], markersize=4, label="learned")
    if not np.isnan(exact[live]).any():
        axes.plot(states, exact[live], "--", color="0.35", label="exact")
    axes.set_xlabel("state")
    axes.set_ylabel("value", size=8, color="0.25")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize=8, frameon=False)


def plot_maps(figure: Any, env_id: str, names: list[str], maps: np.ndarray) -> None:
    """Plot numbers of the states as colours on the cells of a grid, else as lines; walls are white.

    Each map has its own scale.
    """
    grid = TABULAR[env_id].grid if env_id in TABULAR else None
    figure.set_size_inches(4 * len(maps), 3.8)
    figure.suptitle(env_id, x=0.02, ha="left", size=10)
    panels = figure.subplots(1, len(maps), squeeze=False)[0]
    for axes, name, values in zip(panels, names, maps, strict=True):
        tidy(axes, "")
        if grid is None:
            axes.plot(values, ".-", color=COLORS[0], linewidth=0.8)
            axes.set(xlabel="state", ylabel=name)
            continue
        axes.grid(False)
        axes.set(xticks=[], yticks=[])
        walls = [letter in "#x" for letter in "".join(grid.layout)]
        values = np.where(walls, np.nan, values)
        plot_heat(axes, values.reshape(len(grid.layout), -1), name)


def plot_grid_search(
    figure: Any,
    env_id: str,
    order: np.ndarray,
    frontier: np.ndarray,
    wall: np.ndarray,
    goal: np.ndarray,
    path: np.ndarray,
    parent: np.ndarray,
) -> None:
    """Plot a search on the cells of a grid: when each was expanded, the frontier, and the path."""
    grid = TABULAR[env_id].grid
    assert grid is not None
    height, width = len(grid.layout), len(grid.layout[0])
    figure.set_size_inches(1.6 + 0.3 * max(width, 14), 1.3 + 0.3 * height)
    axes = figure.add_subplot()
    tidy(axes, f"{env_id}: {order.max()} states expanded")
    axes.grid(False)
    axes.set(xticks=[], yticks=[])
    axes.imshow(np.where(wall, 0.25, 1.0).reshape(height, width), cmap="gray", vmin=0, vmax=1)
    plot_heat(axes, np.where(order > 0, order, np.nan).reshape(height, width), "expanded as number")
    y, x = np.divmod(np.arange(len(order)), width)
    axes.plot(x[frontier], y[frontier], "s", color=COLORS[1], markersize=6, label="frontier")
    ends = path & (order != 1)
    lines = np.stack([[x, x[parent]], [y, y[parent]]])[:, :, ends]
    axes.plot(*lines, color=COLORS[3], linewidth=2.5)
    axes.plot([], [], color=COLORS[3], linewidth=2.5, label="path")
    for letter, states in (("S", order == 1), ("G", goal)):
        for i in np.flatnonzero(states):
            axes.text(x[i], y[i], letter, ha="center", va="center", size=10, weight="bold")
    figure.legend(loc="outside lower right", ncols=2, fontsize=8, frameon=False)


def plot_tree(
    figure: Any,
    env_id: str,
    names: list[str],
    edges: np.ndarray,
    path: np.ndarray,
    goal: np.ndarray,
) -> None:
    """Plot the edges of a tree in two components of the state, the plan, goal and obstacles."""
    figure.set_size_inches(6.5, 5.5)
    axes = figure.add_subplot()
    tidy(axes, f"{env_id}: {np.isfinite(edges[:, 0, 0]).sum():,} edges")
    axes.set(xlabel=full_name(env_id, names[0]), ylabel=full_name(env_id, names[1]))
    for is_plan, color, width in ((False, COLORS[0], 0.5), (True, COLORS[1], 2.5)):
        lines = np.moveaxis(edges[path == is_plan], 0, -1)  # [K, 2, E]
        axes.plot(lines[:, 0], lines[:, 1], color=color, linewidth=width)
        label = "plan" if is_plan else "tree"
        axes.plot([], [], color=color, linewidth=max(width, 1), label=label)
    low, high = goal
    boxes = OBSTACLES[env_id].boxes if env_id in OBSTACLES else np.zeros((0, 4))
    for left, bottom, right, top in boxes:
        axes.fill_between([left, right], bottom, top, color="0.25", linewidth=0)
    axes.fill_between(
        [low[0], high[0]], low[1], high[1], color=COLORS[2], alpha=0.8, zorder=3, label="goal"
    )
    figure.legend(loc="outside lower right", ncols=3, fontsize=8, frameon=False)


def plot_searches(
    figure: Any, env_id: str, visits: np.ndarray, boards: np.ndarray | None = None
) -> None:
    """Plot how searches shared their visits among the actions: on the boards of a game, else over
    time."""
    unit = "share" if boards is None else "%"
    title = f"{env_id}: visits of each action at the root ({unit}), {len(visits)} searches in turn"
    figure.suptitle(title, x=0.02, ha="left", size=10)
    shares = visits / np.maximum(visits.sum(axis=-1, keepdims=True), 1)
    if boards is None:
        plot_shares(figure.subplots(), shares)
        return
    game = make_game(env_id)
    panels = figure.subplots(-(-len(boards) // 3), 3, squeeze=False).ravel()
    for axes in panels:
        axes.axis("off")
    for axes, cells, share in zip(panels, boards, shares, strict=False):
        draw_board(axes, game, cells, share)


def plot_shares(axes: Any, shares: np.ndarray) -> None:
    """Plot the share of the visits [K, A] that each action got, stacked, over the searches."""
    steps = np.arange(len(shares))
    tidy(axes, "")
    names = [f"action {a}" for a in range(shares.shape[1])]
    axes.stackplot(steps, shares.T, labels=names, step="mid", colors=COLORS)
    axes.set(xlim=(steps[0], steps[-1]), ylim=(0, 1), ylabel="share of the visits", xlabel="step")
    axes.legend(loc="upper left", ncols=6, fontsize=8)


def draw_board(axes: Any, game: Game, cells: np.ndarray, share: np.ndarray) -> None:
    """Draw a board [C] as `games.board` gives it, X for the player who moved first, and in each
    cell that a move would fill the share of the visits [A] that the move got, in %."""
    first_to_move = np.sum(cells != 0) % 2 == 0
    state = jnp.asarray(cells if first_to_move else -cells)
    next_states, _, _ = jax.vmap(game.step, (None, 0))(state, jnp.arange(game.num_actions))
    filled = np.asarray((-next_states != state) & game.legal(state)[:, None])  # [A, C]
    heat, cells = (share @ filled).reshape(game.shape), cells.reshape(game.shape)
    open_cells = np.any(filled, axis=0).reshape(game.shape)
    axes.imshow(heat, cmap="Blues", vmin=0, vmax=1)
    rows, columns = game.shape
    size = 45 / rows
    for i, j in np.ndindex(rows, columns):
        if cells[i, j]:
            text, color = ("X", COLORS[1]) if cells[i, j] == 1 else ("O", "black")
            axes.text(j, i, text, ha="center", va="center", size=1.3 * size, color=color)
        elif open_cells[i, j]:
            text, color = f"{100 * heat[i, j]:.0f}", "white" if heat[i, j] > 0.6 else "0.25"
            axes.text(j, i, text, ha="center", va="center", size=0.8 * size, color=color)
    axes.set_title(f"{'X' if first_to_move else 'O'} to move", size=8, loc="left")
    axes.hlines(np.arange(rows + 1) - 0.5, -0.5, columns - 0.5, color="0.8", linewidth=0.6)
    axes.vlines(np.arange(columns + 1) - 0.5, -0.5, rows - 0.5, color="0.8", linewidth=0.6)
