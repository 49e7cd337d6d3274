"""Pictures of a run folder: curves along training, and the ranking of a sweep.

Shapes: G configurations of a sweep, S seeds, L points along training.
"""

import os
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from common.runner.statistics import MIN_SEEDS, bands, final_scores, finite, iqm, sweep_table

# Okabe and Ito's colour-blind safe palette, its yellow (unreadable on white) replaced by grey.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999"]
MAX_SETTINGS = len(COLORS)  # more curves than this in one panel cannot be told apart
MAX_SEED_LINES = 64  # single seeds drawn behind the curves


def wants_log_axis(curves: np.ndarray, line: np.ndarray) -> bool:
    """Return whether a metric is never negative and its IQM curves span over three decades."""
    positive = line[line > 0]  # an exact 0, where a residual may end, leaves the picture
    return positive.size > 0 and positive.max() / positive.min() > 1e3 and not (curves < 0).any()


def best_first(returns: ArrayLike) -> tuple[np.ndarray, str]:
    """Return the indices of at most MAX_SETTINGS configurations of a sweep, by final return
    [G, S, L], and a heading that says which they are."""
    scores = np.array([iqm(x) for x in final_scores(returns)])
    order = np.argsort(np.where(np.isnan(scores), np.inf, -scores), kind="stable")[:MAX_SETTINGS]
    is_ranked, count = np.isfinite(scores).any(), f"{len(scores)} settings"
    if len(scores) > MAX_SETTINGS:
        count = f"{'best' if is_ranked else 'first'} {MAX_SETTINGS} of {count}"
    rule = ", best first: IQM of the return over the last 10 % of training" if is_ranked else ""
    return order, count + rule


def plot_curves(
    path: str | Path,
    steps: ArrayLike,
    metrics: Mapping[str, ArrayLike],
    labels: list[str] | None = None,
    title: str = "",
    unit: str = "environment steps",
) -> None:
    """Draw every metric against steps [L]: IQM over seeds, its interval, single seeds behind.

    A metric is [S, L]; with the labels of a sweep's configurations it is [G, S, L], and steps may
    be [G, L], NaN where a configuration has fewer points. OSError if the disk refuses.
    """
    from matplotlib.ticker import EngFormatter, MaxNLocator

    curves = {name: np.asarray(x if labels else [x]) for name, x in metrics.items()}
    num_settings, num_seeds, num_points = curves["episode_return"].shape
    steps = np.broadcast_to(np.asarray(steps, float), (num_settings, num_points))
    order, heading = best_first(curves["episode_return"]) if labels else (np.array([0]), None)

    key, key_text = key_of(labels, order, num_seeds)
    key_columns = max(1, min(3, 100 // (max(map(len, key_text)) + 6)))

    names = [name for name, x in curves.items() if np.isfinite(x).any()] or ["episode_return"]
    # An error of predicted values is what prediction is about. The sort is stable.
    top = "rms_error" if "rms_error" in names else "episode_return"
    names.sort(key=lambda name: name != top)
    num_small = len(names) - 1
    columns = {1: 1, 2: 2, 4: 2}.get(num_small, 3)
    rows = -(-num_small // columns)
    figure = blank_figure(height=4 + 2 * rows + 0.2 * -(-len(key) // key_columns))
    grid = figure.add_gridspec(1 + rows, columns, height_ratios=[1.6] + [1] * rows)
    for i, name in enumerate(names):
        cell = grid[0, :] if i == 0 else grid[1 + (i - 1) // columns, (i - 1) % columns]
        axes = figure.add_subplot(cell)
        tidy(axes, name.replace("_", " "))
        is_return = name == "episode_return"
        draw_panel(axes, steps[order], curves[name][order], is_return, show_seeds=not labels)
        num_ticks = 10 if i == 0 or columns == 1 else 5
        axes.xaxis.set_major_locator(MaxNLocator(num_ticks, steps=[1, 2, 5, 10], integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 50k, 1M
        axes.set_xlim(0, 1.01 * max(np.nanmax(steps), 1))
        axes.set_xlabel(f"{unit} per seed")
    figure.suptitle(title, fontsize=12)
    style = {"frameon": False, "fontsize": 9, "title_fontsize": 9, "ncols": key_columns}
    figure.legend(key, key_text, title=heading, loc="outside lower center", **style)
    write_picture(path, figure)


def key_of(labels: list[str] | None, order: np.ndarray, num_seeds: int) -> tuple[list, list[str]]:
    """Return the handles and the texts of the key below the curves."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    key: list[Line2D | Patch] = [Line2D([], [], color=color) for color in COLORS[: len(order)]]
    key_text = [f"IQM over {num_seeds:,} seeds" if num_seeds > 1 else "1 seed"]
    if labels:
        key_text = [labels[g] for g in order]
    if num_seeds >= MIN_SEEDS:
        key.append(Patch(color=COLORS[0] if len(order) == 1 else "0.5", alpha=0.3, linewidth=0))
        key_text.append("95 % bootstrap interval")
    if num_seeds > 1 and not labels:
        share = f" ({MAX_SEED_LINES} of {num_seeds:,})" if num_seeds > MAX_SEED_LINES else ""
        key.append(Line2D([], [], color="0.4", alpha=0.5, linewidth=0.8))
        key_text.append(f"single seeds{share}")
    return key, key_text


def draw_panel(
    axes: Any, steps: np.ndarray, curves: np.ndarray, is_return: bool, show_seeds: bool
) -> None:
    """Draw one metric [G, S, L] against steps [G, L]."""
    from matplotlib.collections import LineCollection

    num_settings, _, num_points = curves.shape
    flat = curves.transpose(1, 0, 2).reshape(-1, num_settings * num_points)  # [S, G * L]
    line, low, high = (x.reshape(num_settings, num_points) for x in bands(flat))
    seeds = curves[0, :MAX_SEED_LINES]
    paths = [np.stack([steps[0], y], -1)[np.isfinite(y)] for y in seeds if np.isfinite(y).any()]
    if show_seeds and paths:
        faint = {"colors": "0.4", "alpha": np.clip(8 / len(paths), 0.15, 0.5), "linewidths": 0.6}
        axes.add_collection(LineCollection(paths, zorder=0.9, **faint), autolim=False)
        lowest, p1, p99, highest = np.percentile(finite(seeds), (0, 1, 99, 100))
        # One exploding loss must not flatten a panel; no return is cut off.
        explodes = highest - lowest > 10 * (p99 - p1) and not is_return
        ends = (p1, p99) if explodes else (lowest, highest)
        axes.update_datalim(np.stack([steps[0, [0, -1]], ends], -1))
    for g in reversed(range(num_settings)):  # the best comes first and is drawn on top
        known = np.isfinite(line[g])
        x, color, alpha = steps[g, known], COLORS[g], 0.3 if num_settings == 1 else 0.15
        axes.fill_between(x, low[g, known], high[g, known], color=color, alpha=alpha, linewidth=0)
        marker = "o" if known.sum() == 1 else None  # a line through one point is invisible
        axes.plot(x, line[g, known], color=color, linewidth=1.6, marker=marker)
    if not is_return and wants_log_axis(curves, line):
        axes.set_yscale("log")
        axes.minorticks_off()


def plot_sweep(path: str | Path, labels: list[str], scores: ArrayLike, score_name: str) -> None:
    """Draw the configurations by the IQM of their final scores [G, S]: the best on top, one dot per
    seed. OSError if the disk refuses."""
    scores = np.asarray(scores, float)
    num_settings, num_seeds = scores.shape
    figure = blank_figure(height=1.3 + 0.3 * num_settings)
    axes, names = figure.add_subplot(), []
    interval = ", 95 % bootstrap interval" if num_seeds >= MIN_SEEDS else ""
    tidy(axes, f"IQM over {num_seeds:,} seeds{interval}, single seeds")
    faint = {"color": "0.2", "alpha": np.clip(8 / num_seeds, 0.02, 0.4), "markersize": 3}
    for y, row in enumerate(sweep_table(range(num_settings), scores), start=1):
        g, failed = row["setting"], row["diverged"]
        name = labels[g] + (f" ({failed} of {num_seeds} diverged)" if failed else "")
        names.append(textwrap.fill(name, 60))  # two lines fit the height of a row
        if row["iqm"] is None:
            continue
        band = {"linewidth": 7, "alpha": 0.35, "solid_capstyle": "butt"}  # no cap past the ends
        if row["low"] is not None:
            axes.plot((row["low"], row["high"]), (y, y), color=COLORS[0], **band)
        axes.plot(finite(scores[g]), [y] * (num_seeds - failed), "o", markeredgewidth=0, **faint)
        axes.plot(row["iqm"], y, "o", color=COLORS[0], markersize=6, markeredgecolor="white")
    axes.margins(x=0.03)
    axes.set_yticks(range(1, num_settings + 1), names)
    axes.set_ylim(num_settings + 0.6, 0.4)  # rank 1 on top
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(score_name.replace("_", " "))
    write_picture(path, figure)


def blank_figure(height: float) -> Any:
    """Return a white figure, 9 inches wide and `height` inches high, that keeps its labels
    apart."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06)  # inches
    return Figure(figsize=(9, height), layout=layout, facecolor="white")


def tidy(axes: Any, title: str) -> None:
    """Give a panel the common look: a thin grid, no box, small grey text."""
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color("0.6")
    axes.tick_params(color="0.6", labelcolor="0.25", labelsize=8)
    axes.yaxis.set_major_formatter("{x:g}")  # no factor in the corner, where the title is
    axes.xaxis.label.set(size=8, color="0.25")


def write_picture(path: str | Path, figure: Any, caption: str = "") -> None:
    """Save a PNG whole or not at all: a killed run leaves the old picture, not half a new one.
    OSError if the disk refuses."""
    if caption:
        figure.supxlabel(caption, fontsize=8, color="0.35")
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        figure.savefig(temporary, format="png", dpi=150)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
