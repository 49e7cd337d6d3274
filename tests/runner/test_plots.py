"""The pictures of a run: what they show, and that nothing overlaps."""

import itertools
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from matplotlib import colors, image
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection

from common.runner import plots, statistics

pytestmark = pytest.mark.filterwarnings("error")
NAN = float("nan")
SECONDS = 20  # of CPU time: two slow cores, nearly idle, took 5 to 8


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def learning(*shape, seed=0):
    """Return returns that rise from 0 to about 100."""
    return 100 * np.linspace(0, 1, shape[-1]) + noise(*shape, seed=seed)


@pytest.fixture
def figures(monkeypatch):
    """The figures drawn, laid out as they would be saved, instead of files."""
    drawn = []

    def keep(path, figure):
        FigureCanvasAgg(figure).draw()
        drawn.append(figure)

    monkeypatch.setattr(plots, "write_picture", keep)
    return drawn


def draw(figures, metrics, labels=None, steps=None):
    steps = np.arange(1, np.shape(metrics["episode_return"])[-1] + 1) if steps is None else steps
    plots.plot_curves("unused", steps, metrics, labels, "dqn · CartPole-v1")
    return figures[-1]


def panels(figure):
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def single_seeds(axes):
    found = [c for c in axes.collections if type(c) is LineCollection]
    return [path.vertices for c in found for path in c.get_paths()]


def key_of(figure):
    (legend,) = figure.legends
    return legend.get_title().get_text(), [text.get_text() for text in legend.get_texts()]


def assert_nothing_overlaps(figure):
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    boxes += [legend.get_window_extent() for legend in figure.legends]
    if figure.get_suptitle():
        boxes.append(figure._suptitle.get_window_extent())
    for a, b in itertools.combinations(boxes, 2):
        assert not a.overlaps(b)
    for box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0
        assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = zip(axis.get_majorticklocs(), axis.get_ticklabels(), strict=True)
            seen = [t.get_window_extent() for at, t in ticks if low <= at <= high]
            assert len(seen) > 1 or axis is axes.yaxis
            for a, b in itertools.pairwise(seen):
                assert not a.overlaps(b)


def seven_metrics(*shape):
    metrics = {f"metric_{i}": 10.0 ** (2 * i - 6) * noise(*shape, seed=i) for i in range(6)}
    return {**metrics, "episode_return": learning(*shape)}


@pytest.mark.parametrize("num_seeds", [1, 2, 32])
def test_curves_are_saved_as_a_png_that_is_not_blank(tmp_path, num_seeds):
    x = learning(num_seeds, 50)
    x[:, ::7] = NAN
    metrics = {"episode_return": x, "loss": noise(num_seeds, 50)}
    plots.plot_curves(tmp_path / "curves.png", np.arange(50) * 1000, metrics, title="dqn")
    pixels = image.imread(tmp_path / "curves.png")[..., :3]
    height, width, _ = pixels.shape
    assert width == 1350 and 600 < height < 1500
    np.testing.assert_array_equal(pixels[[0, -1]], 1)  # a white margin
    line = np.abs(pixels - colors.to_rgb(plots.COLORS[0])).max(-1) < 0.05
    assert line.sum() > 2000 and np.ptp(np.nonzero(line)[1]) > 0.8 * width
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


@pytest.mark.parametrize("num_settings", [1, 20])
def test_a_sweep_is_saved_as_a_png_that_is_not_blank(tmp_path, num_settings):
    labels = [f"learning_rate={i}" for i in range(num_settings)]
    plots.plot_sweep(tmp_path / "sweep.png", labels, noise(num_settings, 8), "return")
    pixels = image.imread(tmp_path / "sweep.png")[..., :3]
    line = np.abs(pixels - colors.to_rgb(plots.COLORS[0])).max(-1) < 0.05
    assert pixels.shape[1] == 1350 and line.sum() > 50 * num_settings


@pytest.mark.parametrize("num_metrics", range(1, 8))
def test_panels_labels_and_key_never_overlap(figures, num_metrics):
    metrics = dict(list(seven_metrics(32, 60).items())[-num_metrics:])
    figure = draw(figures, metrics, steps=np.linspace(0, 2.5e6, 60))
    assert len(figure.axes) == num_metrics
    assert_nothing_overlaps(figure)
    tops = [round(axes.get_position().y1, 3) for axes in figure.axes[1:]]
    rows = {1: [1], 2: [2], 3: [3], 4: [2, 2], 5: [3, 2], 6: [3, 3]}
    assert [tops.count(top) for top in sorted(set(tops), reverse=True)] == rows.get(len(tops), [])


@pytest.mark.parametrize("num_settings", [1, 4, 20])
def test_a_sweep_of_curves_has_no_overlaps(figures, num_settings):
    labels = [f"learning_rate={i}e-4 gae_lambda=0.95" for i in range(num_settings)]
    figure = draw(figures, seven_metrics(num_settings, 8, 60), labels)
    assert len(figure.axes) == 7
    assert_nothing_overlaps(figure)


@pytest.mark.parametrize("num_settings", [1, 4, 60])
def test_a_ranking_has_no_overlaps_even_with_long_names(figures, num_settings):
    labels = [f"learning_rate={i}e-4 " + "gae_lambda=0.95 " * 4 for i in range(num_settings)]
    scores = noise(num_settings, 8)
    scores[0, :2] = NAN
    plots.plot_sweep("unused", labels, scores, "return")
    assert_nothing_overlaps(figures[-1])


def test_the_return_comes_first_and_metrics_without_data_are_left_out(figures):
    x = np.full((4, 9), NAN)
    metrics = {"loss": noise(4, 9), "td_error": x, "episode_return": learning(4, 9), "kl": x + 1}
    figure = draw(figures, metrics)
    assert list(panels(figure)) == ["episode return", "loss"]
    heights = [axes.get_position().height for axes in figure.axes]
    assert heights[0] > 1.4 * heights[1]


def test_the_error_of_predicted_values_comes_before_the_return(figures):
    curve = np.ones((2, 9))
    figure = draw(figures, {"episode_return": curve, "value": curve, "rms_error": curve})
    assert list(panels(figure)) == ["rms error", "episode return", "value"]
    without = {"episode_return": curve, "rms_error": np.full((2, 9), np.nan)}
    assert list(panels(draw(figures, without))) == ["episode return"]


def test_dynamic_programming_gives_its_first_metric_the_large_panel(figures):
    residual = 100 * 10.0 ** -np.linspace(0, 10, 50) * np.ones((8, 1))
    metrics = {"episode_return": NAN * residual, "residual": residual, "value": noise(8, 50)}
    axes = panels(draw(figures, metrics))
    assert list(axes) == ["residual", "value"]
    assert axes["residual"].get_yscale() == "log" and axes["value"].get_yscale() == "linear"
    low, high = axes["residual"].get_ylim()
    assert 1e-9 < low < 1e-8 and 100 < high < 1e3


def test_a_run_that_reports_nothing_still_gives_a_picture(figures):
    assert list(panels(draw(figures, {"episode_return": np.full((2, 3), NAN)}))) == [
        "episode return"
    ]


@pytest.mark.parametrize(
    ("curve", "scale"),
    [
        ([2000, 50, 1], "log"),
        ([900, 50, 1], "linear"),  # less than three decades
        ([2000, 1, -1], "linear"),
        ([2000, 1, 0], "log"),  # a residual that ends at exactly 0
        ([0, 0, 0], "linear"),
        ([2000, NAN, 1], "log"),
        ([NAN, 2, 1], "linear"),
    ],
)
def test_axis_is_logarithmic_for_positive_metrics_over_three_decades(figures, curve, scale):
    metrics = {"episode_return": learning(5, 3), "loss": np.tile(np.float64(curve), (5, 1))}
    assert panels(draw(figures, metrics))["loss"].get_yscale() == scale


def test_one_negative_seed_keeps_the_axis_linear(figures):
    loss = np.tile([2000.0, 50, 1], (5, 1))
    loss[0, 1] = -1
    axes = panels(draw(figures, {"episode_return": learning(5, 3), "loss": loss}))
    assert axes["loss"].get_yscale() == "linear"


def test_the_return_keeps_a_linear_axis_whatever_it_spans(figures):
    axes = panels(draw(figures, {"episode_return": np.tile([1.0, 1e5], (3, 1))}))
    assert axes["episode return"].get_yscale() == "linear"


def test_at_most_64_single_seeds_are_drawn_and_the_key_says_so(figures):
    few = draw(figures, {"episode_return": learning(20, 9)})
    many = draw(figures, {"episode_return": learning(100, 9)})
    assert len(single_seeds(few.axes[0])) == 20 and len(single_seeds(many.axes[0])) == 64
    assert "single seeds" in key_of(few)[1] and "single seeds (64 of 100)" in key_of(many)[1]


def test_a_single_seed_connects_its_finite_points(figures):
    x = learning(3, 6)
    x[1, [0, 2, 5]] = NAN
    x[2] = NAN
    seeds = single_seeds(draw(figures, {"episode_return": x}).axes[0])
    assert len(seeds) == 2
    np.testing.assert_array_equal(seeds[1], np.stack([[2, 4, 5], x[1, [1, 3, 4]]], -1))


def test_line_and_band_are_the_iqm_and_its_interval(figures):
    x = learning(12, 5)
    x[:, 2] = NAN
    (axes,) = draw(figures, {"episode_return": x}).axes
    line, low, high = statistics.bands(x[:, [0, 1, 3, 4]])
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), np.stack([[1, 2, 4, 5], line], -1))
    (band,) = (c for c in axes.collections if type(c) is not LineCollection)
    edges = band.get_paths()[0].vertices
    for x, bottom, top in zip([1, 2, 4, 5], low, high, strict=True):
        heights = edges[edges[:, 0] == x, 1]
        assert (heights.min(), heights.max()) == (bottom, top)


def test_one_exploding_seed_does_not_flatten_a_panel_but_no_return_is_cut_off(figures):
    x = learning(20, 200)
    x[3, -3:] = 1e6
    axes = panels(draw(figures, {"episode_return": x, "loss": x}))
    assert axes["loss"].get_ylim()[1] < 200
    assert axes["episode return"].get_ylim()[1] > 1e6


def test_a_run_with_a_single_point_shows_a_marker(figures):
    (axes,) = draw(figures, {"episode_return": np.ones((4, 1))}, steps=[500]).axes
    assert axes.lines[0].get_marker() == "o"


def test_steps_are_written_short(figures):
    figure = draw(figures, {"episode_return": learning(2, 9)}, steps=np.linspace(0, 1e6, 9))
    ticks = [tick.get_text() for tick in figure.axes[0].get_xticklabels()]
    assert {"0", "200k", "1M"} <= set(ticks)
    assert figure.axes[0].get_xlabel() == "environment steps per seed"


def test_a_sweep_draws_the_best_eight_by_the_last_tenth_and_says_so(figures):
    level = np.random.default_rng(0).permutation(20)
    x = level[:, None, None] + 0.01 * noise(20, 8, 50)
    x[level == 0, :, :45] += 1000  # good until the last tenth
    x[level == 19, 0] = NAN  # one diverged seed does not hide a setting
    figure = draw(figures, {"episode_return": x, "loss": x}, [f"level {n}" for n in level])
    title, names = key_of(figure)
    assert title.startswith("best 8 of 20 settings")
    assert names[:-1] == [f"level {n}" for n in range(19, 11, -1)]
    for axes in figure.axes:
        assert len(axes.lines) == 8 and not single_seeds(axes)
        assert axes.lines[-1].get_color() == plots.COLORS[0]  # the best is drawn on top
        by_color = {line.get_color(): line.get_ydata().mean() for line in axes.lines}
        np.testing.assert_allclose([by_color[c] for c in plots.COLORS], range(19, 11, -1), atol=1)


def test_eight_settings_are_all_drawn_and_dead_ones_come_last(figures):
    x = learning(8, 4, 20) + 5 * np.arange(8)[:, None, None]
    x[7, :, 10:] = NAN
    title, names = key_of(draw(figures, {"episode_return": x}, list("abcdefgh")))
    assert title.startswith("8 settings") and names[:8] == list("gfedcbah")


def test_a_sweep_of_dynamic_programming_keeps_the_given_order(figures):
    x = np.full((9, 2, 20), NAN)
    metrics = {"episode_return": x, "residual": noise(9, 2, 20)}
    title, names = key_of(draw(figures, metrics, list("abcdefghi")))
    assert title == "first 8 of 9 settings" and names[:8] == list("abcdefgh")


def test_the_ranking_puts_the_best_on_top_with_interval_seeds_and_diverged_count(figures):
    scores = np.array([[1.0, 2, 3, 4, 5, 6], [NAN] * 6, [9, NAN, 11, 10, 12, 8]])
    plots.plot_sweep("unused", ["same", "same", "c"], scores, "episode_return")
    (axes,) = figures[-1].axes
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names == ["c (1 of 6 diverged)", "same", "same (6 of 6 diverged)"]
    assert axes.yaxis_inverted() and axes.get_xlabel() == "episode return"
    bar, dots, point = axes.lines[:3]
    np.testing.assert_array_equal(dots.get_xydata(), [[x, 1] for x in (9, 11, 10, 12, 8)])
    np.testing.assert_array_equal(point.get_xydata(), [[10, 1]])
    np.testing.assert_array_equal(bar.get_xdata(), statistics.interval([9, 11, 10, 12, 8]))
    assert bar.get_solid_capstyle() == "butt"  # a round cap would lengthen the interval
    assert len(axes.lines) == 6  # nothing is drawn for the setting that died


def test_curves_of_4096_seeds_with_holes_take_seconds(figures):
    x = learning(4096, 100)
    x[np.random.default_rng(1).random(x.shape) < 0.5] = NAN  # a different count at every point
    start = time.thread_time()
    draw(figures, {"episode_return": x, "loss": noise(4096, 100)})
    assert time.thread_time() - start < SECONDS


def test_a_failed_write_keeps_the_old_picture_and_raises(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    def full_disk(self, path, **kwargs):
        Path(path).write_bytes(b"half a PNG")
        raise OSError(28, "No space left on device")

    (tmp_path / "curves.png").write_bytes(b"old")
    monkeypatch.setattr(Figure, "savefig", full_disk)
    with pytest.raises(OSError, match="No space left"):
        plots.plot_curves(tmp_path / "curves.png", [1, 2], {"episode_return": [[1.0, 2]]})
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
    assert (tmp_path / "curves.png").read_bytes() == b"old"


def test_a_missing_folder_is_an_os_error(tmp_path):
    with pytest.raises(OSError):
        plots.plot_sweep(tmp_path / "gone" / "sweep.png", ["a"], [[1.0]], "return")


def test_import_loads_only_numpy_and_pictures_never_load_pyplot(tmp_path):
    code = """
import sys
from common.runner import plots
assert not {"scipy", "matplotlib", "jax"} & set(sys.modules)
plots.plot_curves(sys.argv[1], [1, 2], {"episode_return": [[1.0, 2.0]]})
assert "matplotlib.pyplot" not in sys.modules and "jax" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, tmp_path / "a.png"], cwd=ROOT, check=True)
