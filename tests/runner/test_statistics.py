"""The statistics over seeds, against independent computations."""

import json
import math
import time
import tracemalloc

import numpy as np
import pytest

from common.runner import statistics

pytestmark = pytest.mark.filterwarnings("error")
NAN = float("nan")
SECONDS = 20  # of CPU time: two slow cores, nearly idle, took 5 to 8


def middle_half(x):
    """Return the IQM by hand: sort, drop floor(n/4) at either end, average the rest."""
    x = np.sort(x)
    cut = len(x) // 4
    return x[cut : len(x) - cut].mean()


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_iqm_of_a_multiple_of_four_is_the_mean_of_the_sorted_middle_half():
    assert statistics.iqm([8, 1, 100, 4, 2, -50, 5, 3]) == (2 + 3 + 4 + 5) / 4
    x = noise(32)
    assert statistics.iqm(x) == pytest.approx(np.sort(x)[8:24].mean(), abs=1e-12)


@pytest.mark.parametrize("n", range(1, 14))
def test_iqm_drops_the_floor_of_a_quarter_at_either_end_as_rliable_does(n):
    x = noise(n, seed=n) ** 3
    assert statistics.iqm(x) == pytest.approx(middle_half(x), abs=1e-12)


def test_iqm_leaves_out_what_is_not_finite():
    assert statistics.iqm([NAN, 1, 2, NAN, 3, 10, np.inf, -np.inf]) == 2.5
    assert np.isnan(statistics.iqm([NAN, NAN])) and np.isnan(statistics.iqm([]))


def test_interval_agrees_with_a_plain_bootstrap_loop():
    x = noise(20)
    rng = np.random.default_rng(7)
    loop = [middle_half(rng.choice(x, 20)) for _ in range(10_000)]
    for confidence in (0.95, 0.5):
        low, high = statistics.interval(x, confidence)
        tail = (1 - confidence) / 2
        expected = np.quantile(loop, (tail, 1 - tail))
        assert (low, high) == pytest.approx(expected, abs=0.2 * np.std(loop))


def test_interval_covers_the_true_iqm_about_as_often_as_it_says():
    # Percentile intervals of 24 seeds are a little too short; 90 to 95 % is what theory expects.
    samples = np.random.default_rng(3).laplace(size=(300, 24))
    covered = np.mean([low < 0 < high for low, high in map(statistics.interval, samples)])
    assert 0.88 <= covered <= 0.98


def test_the_same_data_give_the_same_interval_with_or_without_nan():
    x = noise(12)
    holed = np.insert(x, [0, 5, 12], NAN)
    assert statistics.interval(x) == statistics.interval(x) == statistics.interval(holed)


def test_interval_of_one_seed_or_of_equal_seeds_is_the_value_itself():
    assert statistics.interval([3.7]) == (3.7, 3.7)
    assert statistics.interval([NAN, 3.7]) == (3.7, 3.7)
    assert statistics.interval([500.0] * 9) == (500, 500)
    assert np.isnan(statistics.interval([NAN])).all()


def test_interval_of_four_seeds_is_the_one_counted_by_hand():
    # 13 of the 256 resamples hold the largest three or four times, so 5 % of the IQMs equal it.
    assert statistics.interval([0, 1, 10, 100]) == (0, 100)


def test_interval_of_two_seeds_lies_between_them():
    assert statistics.interval([1.0, 2.0]) == (1, 2)


def test_4096_seeds_take_seconds_and_megabytes():
    x = noise(4096)
    tracemalloc.start()
    start = time.thread_time()
    low, high = statistics.interval(x)
    seconds, (_, peak) = time.thread_time() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert low < statistics.iqm(x) < high and high - low < 0.1
    assert seconds < SECONDS and peak < 60e6


def test_summarize_is_plain_json_with_the_five_numbers():
    x = noise(8).astype(np.float32)
    summary = statistics.summarize([*x, NAN])
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert list(summary) == ["iqm", "low", "high", "min", "max"]
    assert summary["iqm"] == statistics.iqm(x) and summary["min"] == x.min()
    assert summary["max"] == x.max()
    assert summary["min"] <= summary["low"] < summary["iqm"] < summary["high"] <= summary["max"]


def test_summarize_of_nothing_is_none_everywhere():
    assert statistics.summarize([NAN, NAN]) == dict.fromkeys(["iqm", "low", "high", "min", "max"])


def test_sweep_table_ranks_by_iqm_and_counts_diverged_seeds():
    scores = [[1, 2, 3, 4], [NAN] * 4, [9, NAN, 9, np.inf], [-1e9, 5, 5, 1e9]]
    rows = statistics.sweep_table(["a", "dead", "c", "d"], scores)
    assert [row["setting"] for row in rows] == ["d", "a", "c", "dead"]
    assert [row["rank"] for row in rows] == [1, 2, 3, 4]
    assert [row["diverged"] for row in rows] == [0, 0, 2, 4]
    assert [row["iqm"] for row in rows] == [5, 2.5, 9, None]
    assert rows[0]["min"] == -1e9 and rows[0]["max"] == 1e9
    json.dumps(rows, allow_nan=False)


def test_one_survivor_does_not_rank_before_seeds_that_all_live():
    lone, solid = [500.0] + [NAN] * 31, [490.0] * 32
    rows = statistics.sweep_table(["lone", "solid"], [lone, solid])
    assert [row["setting"] for row in rows] == ["solid", "lone"]
    assert rows[1]["diverged"] == 31


def test_a_diverged_seed_counts_as_the_worst_one():
    """A quarter may diverge: the IQM leaves the worst quarter out."""
    rows = statistics.sweep_table(["a", "b"], [[NAN, 4, 4, 9], [3.9, 3.9, 3.9, 3.9]])
    assert [row["setting"] for row in rows] == ["a", "b"]
    rows = statistics.sweep_table(["a", "b"], [[NAN, NAN, 4, 9], [-5, -5, -5, -5]])
    assert [row["setting"] for row in rows] == ["b", "a"]


def test_sweep_table_keeps_a_negative_setting_before_a_dead_one():
    rows = statistics.sweep_table(["dead", "bad"], [[NAN], [-1e30]])
    assert [row["setting"] for row in rows] == ["bad", "dead"]


def test_final_scores_average_what_is_known_of_the_last_tenth():
    curve = np.arange(40.0)
    holed = np.where(curve == 39, NAN, curve)
    dead = np.where(curve > 30, NAN, curve)
    np.testing.assert_array_equal(statistics.final_scores([curve, holed, dead]), [37.5, 37, NAN])
    np.testing.assert_array_equal(statistics.final_scores([[1.0, 7.0]]), [7])


def test_final_scores_weigh_rows_by_their_episodes():
    curve, episodes = np.full(20, 7.0), np.ones(20)
    curve[-2:], episodes[-2:] = (500, 10), (1, 50)
    np.testing.assert_allclose(statistics.final_scores([curve], [episodes]), [1000 / 51])
    episodes[-2:] = 0
    assert np.isnan(statistics.final_scores([curve], [episodes])).all()


def test_few_seeds_have_no_interval_and_equal_settings_share_a_rank():
    assert statistics.summarize([1.0, 2, 3, 4])["low"] is None
    assert statistics.summarize([1.0, 2, 3, 4, 5])["low"] is not None
    rows = statistics.sweep_table("abc", [[500.0] * 5, [3.0] * 5, [500.0] * 5])
    assert [(row["setting"], row["rank"]) for row in rows] == [("a", 1), ("c", 1), ("b", 3)]


def test_settings_of_different_tasks_are_not_ranked_together():
    scores, tasks = [[1.0], [500.0], [2.0], [400.0]], ["x", "y", "x", "y"]
    rows = statistics.sweep_table("abcd", scores, tasks)
    assert [(row["setting"], row["rank"]) for row in rows] == [
        ("c", 1),
        ("a", 2),
        ("b", 1),
        ("d", 2),
    ]


def test_the_probability_of_being_best_by_hand():
    """Two seeds, of which the IQM drops none: resamples of (0, 2) have the means 0, 1, 1, 2, and
    those of (1, 1) always 1, so each wins one of four and they share two."""
    shares = statistics.probability_best([[0, 2], [1, 1]], 20_000)
    np.testing.assert_allclose(shares, 0.5, atol=4 * 0.35 / np.sqrt(20_000))
    shares = statistics.probability_best([[0, 4], [1, 1]], 20_000)  # 0, 2, 2, 4 against 1
    np.testing.assert_allclose(shares, [0.75, 0.25], atol=4 * 0.43 / np.sqrt(20_000))
    certain = statistics.probability_best([[5] * 8, [9] * 8, [9] * 8])
    np.testing.assert_array_equal(certain, [0, 0.5, 0.5])


def test_the_probability_of_being_best_agrees_with_a_plain_loop():
    scores, rng = noise(3, 9) + [[0.0], [0.3], [0.5]], np.random.default_rng(5)
    best = [np.argmax([middle_half(rng.choice(x, 9)) for x in scores]) for _ in range(4000)]
    expected = np.bincount(best, minlength=3) / 4000
    np.testing.assert_allclose(statistics.probability_best(scores), expected, atol=0.05)


def test_the_probability_of_being_best_counts_a_diverged_seed_as_the_worst():
    half = [NAN] * 4 + [9.0] * 4  # a quarter may be missing, which a resample has now and then
    shares = statistics.probability_best([half, [1.0] * 8], 20_000)
    missing = sum(math.comb(8, k) for k in range(3)) / 2**8  # at most two of eight
    assert shares[0] == pytest.approx(missing, abs=0.015)
    rows = statistics.sweep_table("ab", [half, [1.0] * 8])
    assert rows[0]["setting"] == "b" and rows[0]["best_probability"] > 0.8
    json.dumps(rows, allow_nan=False)


def test_how_sure_a_rank_is_needs_seeds_and_one_task():
    rows = statistics.sweep_table("ab", [[1.0] * 4, [2.0] * 4])
    assert [row["best_probability"] for row in rows] == [None, None]
    rows = statistics.sweep_table("abc", [[1.0] * 5, [2.0] * 5, [9.0] * 5], ["x", "x", "y"])
    shares = [(row["setting"], row["best_probability"]) for row in rows]
    assert shares == [("b", 1), ("a", 0), ("c", 1)]


def test_bands_are_the_iqm_and_bootstrap_interval_of_each_point():
    x = noise(24, 6)
    x[:5, 1] = x[:, 4] = NAN
    x[1:, 5] = np.inf
    line, low, high = statistics.bands(x)
    assert np.isnan([low[5], high[5]]).all()  # one seed has no interval
    assert line[5] == x[0, 5]
    for i in range(5):
        expected = statistics.interval(x[:, i])
        width = np.diff(expected)[0]
        np.testing.assert_allclose(line[i], statistics.iqm(x[:, i]))
        np.testing.assert_allclose((low[i], high[i]), expected, atol=0.06 * width)


def test_bands_of_equal_seeds_have_no_width_at_all():
    line, low, high = statistics.bands(np.full((37, 3), 0.1))
    assert (line == 0.1).all() and (low == 0.1).all() and (high == 0.1).all()


def test_bands_of_4096_seeds_take_seconds():
    x = noise(4096, 200)
    start = time.thread_time()
    line, low, high = statistics.bands(x)
    assert time.thread_time() - start < SECONDS
    # The standard error of the IQM of n normals is 1.09 / sqrt(n).
    np.testing.assert_allclose((high - low).mean(), 2 * 1.96 * 1.09 / 64, rtol=0.1)
    assert ((low < line) & (line < high)).all()
