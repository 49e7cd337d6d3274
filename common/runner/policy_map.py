"""policy.png: a policy and its values, drawn on the states of a tabular MDP.

A grid world is a map with arrows. Blackjack, Jack's car rental and the gambler's problem are drawn
as in Figures 5.2, 4.2 and 4.3 of Sutton & Barto 2018. Shapes: S states, A actions.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from common.environments.gridworlds import Grid, cells
from common.environments.mdp import MDP, reachable
from common.environments.tabular import TABULAR, id_after, make_mdp
from common.runner.plots import COLORS, tidy, write_picture

NUM_SAMPLES = 32  # actions sampled in each state: a policy may be random


def has_map(env_id: str) -> bool:
    """Return whether the states of an environment can be drawn."""
    return env_id in BOOK or (env_id in TABULAR and TABULAR[env_id].grid is not None)


def draw_policy(
    path: Path, env_id: str, act: Callable, gamma: float | None, num_steps: int, title: str
) -> None:
    """Draw `act(obs, key) -> action` in every state, and its exact values.

    `gamma` None is the MDP's own. `num_steps` are the environment steps so far: a maze that changes
    is drawn as it then is. OSError if the disk refuses.
    """
    from matplotlib.figure import Figure

    env_id = id_after(env_id, num_steps)
    mdp, gamma = make_mdp(env_id), TABULAR[env_id].gamma if gamma is None else gamma
    states = np.arange(len(mdp.terminal))
    keys = jax.random.split(jax.random.key(0), NUM_SAMPLES)
    actions = jax.jit(jax.vmap(jax.vmap(act, (0, None)), (None, 0)))(states, keys)
    policy = np.mean(np.asarray(actions)[..., None] == np.arange(mdp.P.shape[1]), axis=0)
    value = known_values(mdp, policy, gamma)
    figure = Figure(layout="constrained", facecolor="white")
    plot_states(figure, env_id, policy, value, f"value of this policy, γ = {gamma:g}", title)
    write_picture(path, figure)


def known_values(mdp: MDP, policy: np.ndarray, gamma: float) -> np.ndarray:
    """Return V [S] of a policy [S, A], exactly; NaN where γ = 1 and the episode may never end."""
    P = np.einsum("ij,ijk->ik", policy, mdp.P)
    reward = np.einsum("ij,ijk,ijk->i", policy, mdp.P, mdp.R)
    ends = mdp.terminal if gamma == 1 else np.ones(len(P), bool)
    trapped = ~reachable(P.T, ends)  # states from which no path leads to an end
    value = np.linalg.solve(np.eye(len(P)) - gamma * P * ~(mdp.terminal | trapped), reward)
    return np.where(reachable(P.T, trapped), np.nan, value)


def plot_states(
    figure: Any, env_id: str, policy: np.ndarray, value: np.ndarray, label: str, title: str
) -> None:
    """Draw a policy [S, A] and values [S] of an environment that `has_map`, on an empty figure.

    `label` says what the values are.
    """
    if env_id in BOOK:
        figure.suptitle(title, size=10)
        BOOK[env_id](figure, policy, value, label)
    else:
        grid = TABULAR[env_id].grid
        assert grid is not None
        plot_grid(figure, grid, make_mdp(env_id), policy, value, label, title)


def plot_grid(
    figure: Any,
    grid: Grid,
    mdp: MDP,
    policy: np.ndarray,
    value: np.ndarray,
    label: str,
    title: str,
) -> None:
    """Draw values as colours, actions as arrows, and special cells as letters.

    Walls are dark; terminal states, and cells that no policy can reach, are grey; a cell without a
    value is white.
    """
    figure.set_size_inches(max(5, 1.6 + 0.55 * len(grid.layout[0])), 1.1 + 0.55 * len(grid.layout))
    axes = figure.add_subplot()
    tidy(axes, title)
    live = live_cells(grid, mdp)
    draw_cells(axes, grid, live)
    value = np.where(live, value.reshape(live.shape), np.nan)
    image = plot_heat(axes, value, label)
    if np.isnan(value[live]).any():
        axes.set_xlabel("white: from here the policy may never end", loc="left")
    ink = np.where(value < np.mean(image.get_clim()), "white", "black")
    draw_arrows(axes, grid, policy, live, ink)
    if np.count_nonzero(mdp.start) == 1:
        i, j = np.argwhere(mdp.start.reshape(live.shape))[0]
        axes.text(j - 0.45, i - 0.45, "S", va="top", size=8, weight="bold", color=ink[i, j])


def live_cells(grid: Grid, mdp: MDP) -> np.ndarray:
    """Return which cells can be reached and do not end the episode, bool [rows, columns]."""
    visited = reachable(mdp.P.sum(1), mdp.start > 0)
    return np.asarray(visited & ~mdp.terminal).reshape(len(grid.layout), -1)


def draw_cells(axes: Any, grid: Grid, live: np.ndarray) -> None:
    """Draw the map of a grid world: walls are dark; other cells that are not `live` are grey and
    have their letters."""
    height, width = live.shape
    walls = cells(grid.layout, "#x").reshape(live.shape)
    axes.grid(False)
    background = np.where(walls, 0.25, np.where(live, 1.0, 0.85))
    axes.imshow(background, cmap="gray", vmin=0, vmax=1)
    for i, j in np.argwhere(~live & ~walls):
        letter = grid.layout[i][j].strip(".")
        axes.text(j, i, letter, ha="center", va="center", size=11, weight="bold", color="0.25")
    for set_ticks, length in ((axes.set_xticks, width), (axes.set_yticks, height)):
        set_ticks(np.arange(length + 1) - 0.5, minor=True)
        set_ticks([])
    axes.grid(which="minor", color="0.7", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)


def plot_heat(axes: Any, value: np.ndarray, label: str, **fields: Any) -> Any:
    """Draw values as colours with a colour bar, and return the image; `fields` are imshow's.

    Values that differ by no more than rounding have one colour, and the colour bar says so.
    """
    known = value[np.isfinite(value)]
    low, high = (known.min(), known.max()) if known.size else (0.0, 0.0)
    is_flat = high - low <= 1e-5 * max(1, abs(high))
    if is_flat:
        value = np.where(np.isfinite(value), high, np.nan)
        fields |= {"vmin": high - 1, "vmax": high + 1}
    image = axes.imshow(value, cmap="viridis", **fields)
    label += f"\nall are {high:.4g}: no differences to show" if is_flat and known.size else ""
    bar = axes.figure.colorbar(image, ax=axes, label=label)
    if is_flat:
        bar.set_ticks([high])
    return image


def draw_arrows(
    axes: Any, grid: Grid, policy: np.ndarray, live: np.ndarray, ink: np.ndarray
) -> None:
    """Draw an arrow in every live cell where one action is certain; elsewhere an arrow for each
    action, from the middle outwards, as long as its share of the largest probability.

    `live` (bool) and `ink` (colours) have the shape of the map, the policy [S, A].
    """
    y, x = np.nonzero(live)
    style = {"angles": "xy", "scale_units": "xy", "scale": 1, "units": "xy", "headlength": 4}
    share = policy / policy.max(axis=-1, keepdims=True)
    for action, (dy, dx) in enumerate(grid.directions):
        p, part = (z[:, action].reshape(live.shape)[y, x] for z in (policy, share))
        for chosen, length, start, width in (
            (p == 1, 0.8, -0.4, 0.07),
            ((p > 0) & (p < 1), 0.42 * part, 0.04, 0.03),
        ):
            arrow = np.stack([dx * length + 0 * p, dy * length + 0 * p])[:, chosen]
            tail = x[chosen] + dx * start, y[chosen] + dy * start
            axes.quiver(*tail, *arrow, color=ink[y, x][chosen], width=width, headwidth=4.5, **style)


def plot_blackjack(figure: Any, policy: np.ndarray, value: np.ndarray, label: str) -> None:
    """Draw Figure 5.2: how likely the policy hits, above its values, with and without a usable
    ace, over the dealer's card and the player's sum."""
    figure.set_size_inches(8, 6.5)
    panels = figure.subplots(2, 2)
    hit, value = (x[:200].reshape(2, 10, 10) for x in (policy[:, 1], value))
    for usable, name in ((1, "usable ace"), (0, "no usable ace")):
        top, bottom = panels[:, 1 - usable]
        for axes, title in ((top, f"policy, {name}"), (bottom, f"values, {name}")):
            tidy(axes, "")
            axes.grid(False)
            axes.set_title(title, size=9, pad=16, loc="left")
            axes.set_xticks(range(10), ["A", *range(2, 11)])
            axes.set_yticks(range(10), range(12, 22))
            axes.set_xlabel("dealer's card")
            axes.set_ylabel("player's sum", size=8, color="0.25")
        image = top.imshow(hit[usable], cmap="Blues", vmin=0, vmax=1.4, origin="lower")
        bar = figure.colorbar(image, ax=top, boundaries=np.linspace(0, 1), label="probability")
        bar.set_ticks([0, 0.5, 1], labels=["0: stick", "0.5", "1: hit"])
        plot_heat(bottom, value[usable], label, origin="lower")


def plot_jacks_cars(figure: Any, policy: np.ndarray, value: np.ndarray, label: str) -> None:
    """Draw Figure 4.2: the mean number of cars moved from the first place to the second, and the
    values, over the cars at both places."""
    figure.set_size_inches(12, 5.2)
    first, second, action = np.indices((21, 21, 11))
    moved = np.clip(action - 5, -second, first)  # no more than there are
    moved = np.sum(policy.reshape(21, 21, 11) * moved, axis=-1)
    left, right = figure.subplots(1, 2)
    for axes, title in ((left, "policy: cars moved from the first place"), (right, "values")):
        tidy(axes, "")
        axes.grid(False)
        axes.set_title(title, size=9, pad=16, loc="left")
        axes.set_xlabel("cars at the second place in the evening")
        axes.set_ylabel("cars at the first place", size=8, color="0.25")
        axes.set_xticks(range(0, 21, 5))
        axes.set_yticks(range(0, 21, 5))
    image = left.imshow(moved, cmap="RdBu_r", vmin=-6, vmax=6, origin="lower")
    figure.colorbar(image, ax=left, label="cars", boundaries=np.linspace(-5, 5), ticks=range(-5, 6))
    for i, j in np.ndindex(21, 21):
        color = "white" if abs(moved[i, j]) > 3.5 else "0.2"
        left.text(j, i, f"{moved[i, j]:.0f}", ha="center", va="center", size=6, color=color)
    plot_heat(right, value.reshape(21, 21), label, origin="lower")


def plot_gambler(figure: Any, policy: np.ndarray, value: np.ndarray, label: str) -> None:
    """Draw Figure 4.3: the values, and the mean stake, over the capital."""
    figure.set_size_inches(8, 4)
    capital, action = np.indices((101, 50))
    stake = np.minimum(action + 1, np.minimum(capital, 100 - capital))
    numbers = {label: value, "stake": np.sum(policy * stake, axis=-1)}
    for axes, (name, y) in zip(figure.subplots(1, 2), numbers.items(), strict=True):
        tidy(axes, "")
        axes.plot(range(1, 100), y[1:100], ".-", color=COLORS[0], linewidth=0.8, markersize=3)
        axes.set_xlabel("capital")
        axes.set_ylabel(name, size=8, color="0.25")


BOOK = {
    "Blackjack-tabular": plot_blackjack,
    "JacksCarRental-tabular": plot_jacks_cars,
    "Gambler-tabular": plot_gambler,
}
