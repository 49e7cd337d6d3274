"""Statistics over seeds, and the pictures of a run folder.

A score of one seed that is NaN or infinite means "nothing to report" or "this seed diverged": it
is left out of every statistic, never averaged in. Higher scores rank better. Shapes: G settings of
a sweep, S seeds, L points along training.
"""

import os
import textwrap
from pathlib import Path

import numpy as np

# Okabe and Ito's colour-blind safe palette, its yellow (unreadable on white) replaced by grey.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999"]
MAX_SETTINGS = len(COLORS)  # more curves than this in one panel cannot be told apart
MAX_SEED_LINES = 64  # single seeds drawn behind the curves


def iqm(x) -> float:
    """Interquartile mean: the mean of what is left without the lowest and highest quarter.

    Drops floor(S/4) seeds at either end (Agarwal et al. 2021, https://arxiv.org/abs/2108.13264).
    """
    from scipy import stats

    x = finite(x)
    return float(stats.trim_mean(x, 0.25)) if x.size else float("nan")


def interval(x, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of the IQM, resampling seeds (Efron 1979)."""
    from scipy import stats

    x = finite(x)
    if x.size == 0 or x.min() == x.max():  # one seed, or all alike: nothing to resample
        return iqm(x), iqm(x)
    result = stats.bootstrap(
        (x,),
        lambda sample, axis: stats.trim_mean(sample, 0.25, axis=axis),
        confidence_level=confidence,
        n_resamples=2000,
        batch=max(1, 1_000_000 // x.size),  # about 10 MB at a time, however many seeds
        method="percentile",
        rng=0,  # the same data give the same interval
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def summarize(x) -> dict:
    """IQM, its 95 % interval, and the extremes over seeds, ready for JSON (None: no data)."""
    x = finite(x)
    if x.size == 0:
        return dict.fromkeys(("iqm", "low", "high", "min", "max"))
    low, high = interval(x)
    return {"iqm": iqm(x), "low": low, "high": high, "min": float(x.min()), "max": float(x.max())}


def sweep_table(labels, scores) -> list[dict]:
    """One row a setting, best IQM first, from the final scores [G, S]; all-diverged ones last."""
    rows = [
        {"setting": label, **summarize(x), "diverged": int(np.sum(~np.isfinite(x)))}
        for label, x in zip(labels, np.asarray(scores, float), strict=True)
    ]
    rows.sort(key=lambda row: -np.inf if row["iqm"] is None else row["iqm"], reverse=True)
    return [{"rank": rank, **row} for rank, row in enumerate(rows, start=1)]


def finite(x) -> np.ndarray:
    """The finite entries of x, as a flat float64 array."""
    x = np.asarray(x, float)
    return x[np.isfinite(x)]


def final_scores(curves) -> np.ndarray:
    """Mean over the last 10 % of the points, NaN skipped: [..., S, L] -> [..., S]."""
    last = np.asarray(curves, float)[..., -max(1, np.shape(curves)[-1] // 10) :]
    known = np.isfinite(last)
    count = known.sum(-1)
    return np.where(count, np.where(known, last, 0).sum(-1) / np.maximum(count, 1), np.nan)


def bands(curves) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """IQM over seeds and its 95 % percentile bootstrap interval at every point: [S, P] -> 3 x [P].

    A resample of n seeds holds the j-th smallest value c_j times, c ~ Multinomial(n, 1/n), so its
    IQM is Σ_j w_j x_(j) with weights w that depend on c and n only. Points with equally many
    seeds share the weights, and one matrix product bootstraps them all: no approximation.
    """
    curves = np.asarray(curves, float)
    ordered = np.sort(np.where(np.isfinite(curves), curves, np.nan), axis=0)  # NaN sorts last
    num_seeds = np.isfinite(ordered).sum(0)
    line, low, high = np.full((3, curves.shape[1]), np.nan)
    generator = np.random.default_rng(0)  # the same data give the same bands
    for n in np.unique(num_seeds[num_seeds > 0]):
        at, cut = num_seeds == n, n // 4
        values = ordered[:n, at]
        resamples = int(np.clip(2_000_000 // n, 500, 2000))  # bounds time and memory
        draws = generator.integers(n, size=(resamples, n)) + n * np.arange(resamples)[:, None]
        counts = np.bincount(draws.ravel(), minlength=resamples * n).reshape(resamples, n)
        kept = np.clip(counts.cumsum(1), cut, n - cut)  # ranks below cut and above n - cut go
        weights = np.diff(kept, prepend=cut, axis=1) / (n - 2 * cut)
        line[at] = values[cut : n - cut].mean(0)
        low[at], high[at] = np.quantile(weights @ values, (0.025, 0.975), axis=0)
    # Rounding may leave the data by one unit in the last place, and a flat curve then looks noisy.
    return tuple(np.clip(x, ordered[0], np.fmax.reduce(ordered)) for x in (line, low, high))


def wants_log_axis(curves, line) -> bool:
    """Whether a metric is never negative and its IQM curves span more than three decades."""
    positive = line[line > 0]  # an exact 0, where a residual may end, just leaves the picture
    return positive.size > 0 and positive.max() / positive.min() > 1e3 and not (curves < 0).any()


def best_first(returns) -> tuple[np.ndarray, str]:
    """The settings of a sweep worth drawing, by final return [G, S, L], and a line saying which."""
    scores = np.array([iqm(x) for x in final_scores(returns)])
    order = np.argsort(np.where(np.isnan(scores), np.inf, -scores), kind="stable")[:MAX_SETTINGS]
    ranked, count = np.isfinite(scores).any(), f"{len(scores)} settings"
    if len(scores) > MAX_SETTINGS:
        count = f"{'best' if ranked else 'first'} {MAX_SETTINGS} of {count}"
    by = ", best first: IQM of the return over the last 10 % of training" if ranked else ""
    return order, count + by


def plot_curves(path, steps, metrics: dict, labels=None, title="", unit="environment steps"):
    """Draw every metric against steps [L]: IQM over seeds, its interval, single seeds behind.

    metrics: name -> [S, L], or with the labels of a sweep's settings name -> [G, S, L]; steps may
    then be [G, L], NaN where a setting has fewer points.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import EngFormatter, MaxNLocator

    curves = {name: np.asarray(x if labels else [x], float) for name, x in metrics.items()}
    num_settings, num_seeds, num_points = curves["episode_return"].shape
    steps = np.broadcast_to(np.asarray(steps, float), (num_settings, num_points))
    order, heading = best_first(curves["episode_return"]) if labels else ([0], None)

    key = [Line2D([], [], color=color) for color in COLORS[: len(order)]]
    key_text = [f"IQM over {num_seeds:,} seeds" if num_seeds > 1 else "1 seed"]
    if labels:
        key_text = [labels[g] for g in order]
    if num_seeds > 1:
        key.append(Patch(color=COLORS[0] if len(order) == 1 else "0.5", alpha=0.3, linewidth=0))
        key_text.append("95 % bootstrap interval")
    if num_seeds > 1 and not labels:
        drawn = f" ({MAX_SEED_LINES} of {num_seeds:,})" if num_seeds > MAX_SEED_LINES else ""
        key.append(Line2D([], [], color="0.4", alpha=0.5, linewidth=0.8))
        key_text.append(f"single seeds{drawn}")
    key_columns = max(1, min(3, 100 // (max(map(len, key_text)) + 6)))

    names = [name for name, x in curves.items() if np.isfinite(x).any()] or ["episode_return"]
    names.sort(key=lambda name: name != "episode_return")  # stable: the others keep their order
    num_small = len(names) - 1
    columns = {1: 1, 2: 2, 4: 2}.get(num_small, 3)
    rows = -(-num_small // columns)
    figure = blank_figure(height=4 + 2 * rows + 0.2 * -(-len(key) // key_columns))
    grid = figure.add_gridspec(1 + rows, columns, height_ratios=[1.6] + [1] * rows)
    for i, name in enumerate(names):
        place = grid[0, :] if i == 0 else grid[1 + (i - 1) // columns, (i - 1) % columns]
        axes = figure.add_subplot(place)
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


def draw_panel(axes, steps, curves, is_return: bool, show_seeds: bool) -> None:
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
        # One exploding loss must not flatten a panel; of the returns, nothing is cut off.
        explodes = highest - lowest > 10 * (p99 - p1) and not is_return
        ends = (p1, p99) if explodes else (lowest, highest)
        axes.update_datalim(np.stack([steps[0, [0, -1]], ends], -1))
    for g in reversed(range(num_settings)):  # the best comes first and is drawn on top
        at = np.isfinite(line[g])
        x, color, alpha = steps[g, at], COLORS[g], 0.3 if num_settings == 1 else 0.15
        axes.fill_between(x, low[g, at], high[g, at], color=color, alpha=alpha, linewidth=0)
        marker = "o" if at.sum() == 1 else None  # a line through one point is invisible
        axes.plot(x, line[g, at], color=color, linewidth=1.6, marker=marker)
    if not is_return and wants_log_axis(curves, line):
        axes.set_yscale("log")
        axes.minorticks_off()


def plot_sweep(path, labels, scores, score_name: str) -> None:
    """Rank settings by the IQM of their final scores [G, S]: best on top, one dot a seed."""
    scores = np.asarray(scores, float)
    num_settings, num_seeds = scores.shape
    figure = blank_figure(height=1.3 + 0.3 * num_settings)
    axes, names = figure.add_subplot(), []
    tidy(axes, f"IQM over {num_seeds:,} seeds, 95 % bootstrap interval, single seeds")
    faint = {"color": "0.2", "alpha": np.clip(8 / num_seeds, 0.02, 0.4), "markersize": 3}
    for row in sweep_table(range(num_settings), scores):
        g, y, failed = row["setting"], row["rank"], row["diverged"]
        name = labels[g] + (f" ({failed} of {num_seeds} diverged)" if failed else "")
        names.append(textwrap.fill(name, 60))  # two lines fit the height of a row
        if row["iqm"] is None:
            continue
        band = {"linewidth": 7, "alpha": 0.35, "solid_capstyle": "butt"}  # no cap past the ends
        axes.plot((row["low"], row["high"]), (y, y), color=COLORS[0], **band)
        axes.plot(finite(scores[g]), [y] * (num_seeds - failed), "o", markeredgewidth=0, **faint)
        axes.plot(row["iqm"], y, "o", color=COLORS[0], markersize=6, markeredgecolor="white")
    axes.margins(x=0.03)
    axes.set_yticks(range(1, num_settings + 1), names)
    axes.set_ylim(num_settings + 0.6, 0.4)  # rank 1 on top
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(score_name.replace("_", " "))
    write_picture(path, figure)


def blank_figure(height: float):
    """A white figure 9 inches wide that keeps its labels apart."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, height), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)  # inches
    return figure


def tidy(axes, title: str) -> None:
    """The look of every panel: a thin grid, no box, small grey text."""
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color("0.6")
    axes.tick_params(color="0.6", labelcolor="0.25", labelsize=8)
    axes.yaxis.set_major_formatter("{x:g}")  # no factor in the corner, where the title is
    axes.xaxis.label.set(size=8, color="0.25")


def write_picture(path, figure, caption: str = "") -> None:
    """Save a PNG whole or not at all: a killed run leaves the old picture, not half a new one."""
    if caption:
        figure.supxlabel(caption, fontsize=8, color="0.35")
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        figure.savefig(temporary, format="png", dpi=150)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
