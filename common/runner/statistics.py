"""Statistics over seeds.

A score of NaN or infinity means that a seed has nothing to report or diverged: every statistic
leaves it out. Higher scores rank better. Shapes: G configurations of a sweep, S seeds, L points
along training.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike


def iqm(x: ArrayLike) -> float:
    """Return the interquartile mean: the mean without the lowest and the highest quarter; NaN
    without data.

    Drops floor(S/4) seeds at either end (Agarwal et al. 2021, https://arxiv.org/abs/2108.13264).
    """
    from scipy import stats

    x = finite(x)
    return float(stats.trim_mean(x, 0.25)) if x.size else float("nan")


def interval(x: ArrayLike, confidence: float = 0.95) -> tuple[float, float]:
    """Return the percentile bootstrap interval (low, high) of the IQM over seeds (Efron 1979)."""
    from scipy import stats

    x = finite(x)
    if x.size == 0 or x.min() == x.max():  # there is nothing to resample
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


def summarize(x: ArrayLike) -> dict[str, float | None]:
    """Return IQM, its 95 % interval, and the extremes over seeds, ready for JSON; None without
    data."""
    x = finite(x)
    if x.size == 0:
        return dict.fromkeys(("iqm", "low", "high", "min", "max"))
    low, high = interval(x)
    return {"iqm": iqm(x), "low": low, "high": high, "min": float(x.min()), "max": float(x.max())}


def sweep_table(labels: Iterable, scores: ArrayLike) -> list[dict]:
    """Return one row per configuration from the final scores [G, S], the best first.

    They are ranked by the IQM in which a seed without a score counts as the worst one. Where more
    than a quarter of the seeds have none that is -inf, and the IQM of the others decides.
    """
    rows = [
        {"setting": label, **summarize(x), "diverged": int(np.sum(~np.isfinite(x)))}
        for label, x in zip(labels, np.asarray(scores, float), strict=True)
    ]
    order = sorted(range(len(rows)), key=lambda i: rank_key(scores[i]), reverse=True)
    return [{"rank": rank, **rows[i]} for rank, i in enumerate(order, start=1)]


def rank_key(x: ArrayLike) -> tuple[float, float]:
    """Return the IQM of the scores [S] in which one that is not finite is -inf, and the IQM of the
    finite ones; -inf without data."""
    ordered = np.sort(np.where(np.isfinite(x), x, -np.inf))
    cut = len(ordered) // 4
    return float(np.mean(ordered[cut : len(ordered) - cut])), float(
        np.nan_to_num(iqm(x), nan=-np.inf)
    )


def finite(x: ArrayLike) -> np.ndarray:
    """Return the finite entries of x, as a flat float64 array."""
    x = np.asarray(x, float)
    return x[np.isfinite(x)]


def final_scores(curves: ArrayLike, weights: ArrayLike = 1.0) -> np.ndarray:
    """Return the weighted mean over the last 10 % of the points without NaN: [..., S, L] ->
    [..., S]."""
    curves = np.asarray(curves, float)
    last = np.isfinite(curves) & (
        np.arange(curves.shape[-1]) >= curves.shape[-1] - max(1, curves.shape[-1] // 10)
    )
    weight = np.where(last, weights, 0.0)
    total = np.sum(np.where(last, curves, 0) * weight, -1)
    weight = weight.sum(-1)
    return np.where(weight > 0, total / np.maximum(weight, 1e-30), np.nan)


def bands(curves: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the IQM over seeds and its 95 % bootstrap interval at every point: [S, L] -> 3 x [L].

    A resample of n seeds holds the j-th smallest value c_j times, c ~ Multinomial(n, 1/n), so its
    IQM is Σ_j w_j x_(j) with weights w that depend on c and n only. Points with the same number of
    seeds share the weights, so one matrix product bootstraps them all, without approximation.
    """
    curves = np.asarray(curves, float)
    ordered = np.sort(np.where(np.isfinite(curves), curves, np.nan), axis=0)  # NaN sorts last
    num_seeds = np.isfinite(ordered).sum(0)
    line, low, high = np.full((3, curves.shape[1]), np.nan)
    generator = np.random.default_rng(0)  # the same data give the same bands
    for n in np.unique(num_seeds[num_seeds > 0]):
        points, cut = num_seeds == n, n // 4
        values = ordered[:n, points]
        num_resamples = int(np.clip(2_000_000 // n, 500, 2000))  # bounds time and memory
        draws = generator.integers(n, size=(num_resamples, n))
        draws += n * np.arange(num_resamples)[:, None]
        counts = np.bincount(draws.ravel(), minlength=num_resamples * n).reshape(num_resamples, n)
        kept = np.clip(counts.cumsum(1), cut, n - cut)  # drops ranks below cut and above n - cut
        weights = np.diff(kept, prepend=cut, axis=1) / (n - 2 * cut)
        line[points] = values[cut : n - cut].mean(0)
        low[points], high[points] = np.quantile(weights @ values, (0.025, 0.975), axis=0)
    # Rounding can leave the range of the data by one unit in the last place, and a flat curve
    # would look noisy.
    return tuple(np.clip(x, ordered[0], np.fmax.reduce(ordered)) for x in (line, low, high))
