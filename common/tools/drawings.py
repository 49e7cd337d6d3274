"""Pictures of an environment's states, drawn from its observations.

`next_obs` of a Transition is the observation before any reset, so an episode's last state can be
drawn like the others. T states of an episode: the first, and the one after each step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from common.environments.env_parameters import split_id
from common.environments.games import make_game
from common.environments.linear import LINEAR
from common.environments.mdp import reachable
from common.environments.obstacles import OBSTACLES
from common.environments.positions import POSITIONS
from common.environments.tabular import TABULAR, make_mdp
from common.envs import make_env
from common.runner.pictures import full_name
from common.runner.plots import COLORS, tidy
from common.runner.policy_map import draw_cells, live_cells


class Drawing(NamedTuple):
    """How an episode is drawn."""

    draw: Callable  # empty axes, observations [T, ...], t -> None: draws the t-th
    aspect: float  # height of a panel over its width
    speed: float  # steps a second


def make_drawing(env_id: str) -> Drawing:
    """Return how an environment is drawn; ValueError, one line, if it cannot be."""
    env_id, _ = split_id(env_id)  # other parameters look alike
    base, is_history, _ = env_id.partition("-history")
    if is_history:
        shape = make_env(base, 1).obs_shape
        latest = lambda obs: obs[:, -int(np.prod(shape)) :].reshape(-1, *shape)
        return seen_through(latest, make_drawing(base))
    if env_id in POSITIONS:
        base, index = env_id.removesuffix("-positions"), POSITIONS[env_id]
        size = make_env(base, 1).obs_shape[0]
        spread = lambda obs: obs @ np.eye(size)[index]  # velocities are not drawn
        return seen_through(spread, make_drawing(base))
    if env_id in CLASSIC:
        return CLASSIC[env_id]
    if env_id in TABULAR and TABULAR[env_id].grid is not None:
        return grid_drawing(env_id)
    if env_id.endswith("-game"):
        return game_drawing(env_id)
    if env_id in LINEAR:
        draw = lambda axes, obs, t: draw_components(axes, env_id, obs, t)
        return Drawing(draw, 0.7, speed=5)
    if env_id in OBSTACLES:
        return Drawing(lambda axes, obs, t: draw_room(axes, env_id, obs, t), 1.0, speed=20)
    height, width, *channels = (*make_env(env_id, 1).obs_shape, 1, 1)[:3]
    if min(height, width) > 1 and len(channels) == 1:
        return Drawing(draw_image, height / width, speed=12)
    raise ValueError(f"{env_id} has no drawing; there is one of {DRAWN}")


def seen_through(function: Callable, drawing: Drawing) -> Drawing:
    """Return the drawing of `function(observations)`."""
    return drawing._replace(draw=lambda axes, obs, t: drawing.draw(axes, function(obs), t))


def frame(axes: Any, x: tuple[float, float], y: tuple[float, float]) -> None:
    """Show these ranges with equal units and without axes."""
    axes.set(xlim=x, ylim=y, aspect="equal", xticks=[], yticks=[])
    axes.axis("off")


# Classic control. Angles and lengths are gymnax's, which are gymnasium's.


def draw_cart_pole(axes: Any, obs: np.ndarray, t: int) -> None:
    """Draw the cart, and the pole of length 1; marks are where an episode ends, at ±2.4."""
    x, angle = obs[t, [0, 2]]
    frame(axes, (-2.75, 2.75), (-0.4, 1.35))
    axes.plot([-2.75, 2.75], [0, 0], color="0.6", linewidth=1)
    axes.plot([[-2.4, 2.4]] * 2, [[-0.12] * 2, [0.12] * 2], color="0.6", linewidth=1)
    axes.fill_between([x - 0.3, x + 0.3], -0.15, 0.15, color="0.25", linewidth=0, zorder=2)
    pole = [x, x + np.sin(angle)], [0.1, 0.1 + np.cos(angle)]
    axes.plot(*pole, color=COLORS[1], linewidth=4, solid_capstyle="round", zorder=3)


def draw_pendulum(axes: Any, obs: np.ndarray, t: int) -> None:
    """Draw the rod; θ = 0 is upright, and θ grows anticlockwise."""
    cos, sin = obs[t, :2]
    frame(axes, (-1.25, 1.25), (-1.25, 1.25))
    axes.plot([0, 0], [1.05, 1.2], color="0.6", linewidth=1)
    axes.plot([0, -sin], [0, cos], color=COLORS[1], linewidth=7, solid_capstyle="round")
    axes.plot(0, 0, "o", color="0.25", markersize=5)


def draw_acrobot(axes: Any, obs: np.ndarray, t: int) -> None:
    """Draw both links, of length 1, and the height that the tip must reach; θ₁ = 0 hangs down, and
    θ₂ is relative to the first link."""
    angle = np.arctan2(obs[t, [1, 3]], obs[t, [0, 2]])
    first, second = angle[0], angle[0] + angle[1]
    x, y = np.cumsum([[0, np.sin(first), np.sin(second)], [0, -np.cos(first), -np.cos(second)]], 1)
    frame(axes, (-2.2, 2.2), (-2.2, 2.2))
    axes.plot([-2.2, 2.2], [1, 1], color=COLORS[2], linewidth=1.2)
    axes.plot(x, y, "-o", color=COLORS[0], linewidth=5, markersize=6, markerfacecolor="0.25")


def draw_mountain_car(axes: Any, obs: np.ndarray, t: int, goal: float) -> None:
    """Draw the car on the hill, whose slope is that of sin 3x, and a flag at the goal."""
    height = lambda x: 0.45 * np.sin(3 * x) + 0.55
    x = np.linspace(-1.2, 0.6, 100)
    frame(axes, (-1.25, 0.65), (0, 1.3))
    axes.fill_between(x, 0, height(x), color="0.88", linewidth=0)
    axes.plot(x, height(x), color="0.6", linewidth=1.2)
    axes.plot([goal, goal], [height(goal), height(goal) + 0.2], color="0.25", linewidth=1.2)
    flag = [goal, goal + 0.09, goal], height(goal) + np.array([0.2, 0.165, 0.13])
    axes.fill(*flag, color=COLORS[2], linewidth=0)
    axes.plot(obs[t, 0], height(obs[t, 0]) + 0.045, "o", color=COLORS[1], markersize=8)


CLASSIC = {
    "CartPole-v1": Drawing(draw_cart_pole, 0.32, speed=50),
    "Pendulum-v1": Drawing(draw_pendulum, 1.0, speed=20),
    "Acrobot-v1": Drawing(draw_acrobot, 1.0, speed=15),
    "MountainCar-v0": Drawing(lambda *args: draw_mountain_car(*args, goal=0.5), 0.68, speed=30),
    "MountainCarContinuous-v0": Drawing(
        lambda *args: draw_mountain_car(*args, goal=0.45), 0.68, speed=30
    ),
}


# The other families.


def grid_drawing(env_id: str) -> Drawing:
    """Return the drawing of a grid world: its map, the agent, and dots where it has been."""
    grid, mdp = TABULAR[env_id].grid, jax.tree.map(np.asarray, make_mdp(env_id))
    assert grid is not None
    live = live_cells(grid, mdp)
    height, width = live.shape
    letters = "".join(grid.layout)
    is_goal = mdp.terminal & reachable(mdp.P.sum(1), mdp.start > 0)
    marks = {int(s): "G" for s in np.flatnonzero(is_goal) if letters[s] == "."}
    if np.count_nonzero(mdp.start) == 1:
        marks[int(np.argmax(mdp.start))] = "S"

    def draw(axes, obs, t):
        draw_cells(axes, grid, live)
        for state, letter in marks.items():
            y, x = divmod(state, width)
            axes.text(x, y, letter, ha="center", va="center", size=9, weight="bold", color="0.25")
        y, x = np.divmod(obs[: t + 1], width)
        axes.plot(x, y, ".", color=COLORS[5], markersize=4)
        axes.plot(x[-1], y[-1], "o", color=COLORS[1], markersize=min(12, 160 / max(height, width)))

    return Drawing(draw, height / width, speed=5)


def game_drawing(env_id: str) -> Drawing:
    """Return the drawing of a board, as `games.board` gives it: X for who moved first."""
    rows, columns = make_game(env_id).shape

    def draw(axes, boards, t):
        frame(axes, (-0.55, columns - 0.45), (rows - 0.45, -0.55))
        axes.hlines(np.arange(rows + 1) - 0.5, -0.5, columns - 0.5, color="0.8", linewidth=1)
        axes.vlines(np.arange(columns + 1) - 0.5, -0.5, rows - 0.5, color="0.8", linewidth=1)
        cells = boards[t].reshape(rows, columns)
        changed = cells != boards[max(t - 1, 0)].reshape(rows, columns)
        for i, j in np.argwhere(cells != 0):
            text, color = ("X", COLORS[1]) if cells[i, j] == 1 else ("O", "black")
            weight = "bold" if changed[i, j] else "normal"
            style = {"color": color, "weight": weight, "size": 84 / rows}
            axes.text(j, i, text, ha="center", va="center_baseline", **style)

    return Drawing(draw, rows / columns, speed=1)


def draw_components(axes: Any, env_id: str, obs: np.ndarray, t: int) -> None:
    """Plot each component of a linear system's state over time."""
    tidy(axes, "")
    for i, values in enumerate(obs[: t + 1].T):
        label = full_name(env_id, f"obs[{i}]")
        axes.plot(values, ".-", color=COLORS[i], linewidth=1.2, markersize=4, label=label)
    margin = 0.05 * (np.ptp(obs) + 1e-6)  # more above, for the legend
    axes.set(xlim=(-0.5, len(obs) - 0.5), ylim=(obs.min() - margin, obs.max() + 5 * margin))
    axes.legend(loc="upper right", fontsize=7, frameon=False, ncols=2)


def draw_room(axes: Any, env_id: str, obs: np.ndarray, t: int) -> None:
    """Draw the walls, the goal, and the way of the robot."""
    room = OBSTACLES[env_id]
    x, y = obs[: t + 1, :2].T
    frame(axes, (room.low[0] - 0.1, room.high[0] + 0.1), (room.low[1] - 0.1, room.high[1] + 0.1))
    for (left, bottom, right, top), color in (
        *((box, "0.25") for box in room.boxes),
        ((*room.goal_low[:2], *room.goal_high[:2]), COLORS[2]),
    ):
        axes.fill_between([left, right], bottom, top, color=color, linewidth=0)
    (left, bottom), (right, top) = room.low[:2], room.high[:2]
    axes.plot([left, right, right, left, left], [bottom, bottom, top, top, bottom], color="0.6")
    axes.plot(x, y, color=COLORS[5], linewidth=1.2)
    axes.plot(x[-1], y[-1], "o", color=COLORS[1], markersize=6)


def draw_image(axes: Any, obs: np.ndarray, t: int) -> None:
    """Draw an image [H, W] or [H, W, C] of 0 and 1, each channel in a colour of its own, and those
    that fill less over those that fill more. ValueError if it has other values."""
    from matplotlib.colors import to_rgb

    if not np.isin(obs, (0, 1)).all():
        raise ValueError(f"no drawing of these images; there is one of {DRAWN}")
    states = obs.reshape(*obs.shape[:3], -1) != 0
    image = np.full((*obs.shape[1:3], 3), to_rgb("0.1"))
    for channel in np.argsort(-states.sum((0, 1, 2)), kind="stable"):
        image[states[t, ..., channel]] = to_rgb(IMAGE_COLORS[channel % len(IMAGE_COLORS)])
    axes.imshow(image)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


IMAGE_COLORS = ["#56B4E9", "#F0E442", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#0072B2"]
IMAGE_COLORS += ["1.0", "0.7", "0.45"]
DRAWN = "classic control, MinAtar, images of 0 and 1, grid worlds, -game, -linear, -obstacles, Brax"
