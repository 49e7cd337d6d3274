"""What benchmarks/overestimation.py measures, on a small run, and its arithmetic."""

import numpy as np

from algorithms import double_dqn
from benchmarks import overestimation


def test_discounted_return_of_so_many_steps():
    lengths = np.array([1, 2, 9, 10])
    expected = [1, 1.5, 2 - 2**-8.0, 2]  # the last one was cut by the time limit of 10
    np.testing.assert_allclose(overestimation.discounted(lengths, 0.5, 10), expected, rtol=1e-6)


def test_what_is_measured_and_drawn(tmp_path):
    config = double_dqn.Config(total_timesteps=1_400, batch_size=8, hidden_sizes=(8,))
    curve = overestimation.measure(double_dqn, 3, 2, config)
    np.testing.assert_array_equal(curve["steps"], [1_200, 1_400])
    assert curve["predicted"].shape == curve["achieved"].shape == (2, 3)
    assert (curve["achieved"] > 5).all() and (curve["achieved"] <= 100).all()
    assert np.isfinite(curve["predicted"]).all() and len(np.unique(curve["predicted"])) == 6
    overestimation.draw({"DQN": curve, "double DQN": curve}, 3, tmp_path)
    assert (tmp_path / "overestimation.png").stat().st_size > 10_000
    (first, last) = overestimation.lines_of("DQN", curve)
    middle = np.sort(curve["predicted"][0] - curve["achieved"][0])
    assert float(first["overestimation_iqm"]) == float(f"{middle.mean():.4g}")  # of three seeds
    assert (first["steps"], last["steps"], first["algorithm"]) == (1_200, 1_400, "DQN")
