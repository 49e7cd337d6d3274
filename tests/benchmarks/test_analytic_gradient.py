"""What benchmarks/analytic_gradient.py predicts, and its figure from small runs."""

import numpy as np
import pytest

from algorithms import apg, shac
from benchmarks import analytic_gradient
from benchmarks.analytic_gradient import EPISODE, derivative, gain_line, myopic_gain, riccati_gain


@pytest.mark.parametrize("a", [0.9, 1.3])
def test_the_gradient_grows_as_predicted(a):
    for num_steps in (1, 7, 40):
        np.testing.assert_allclose(derivative(a, num_steps), a**num_steps, rtol=1e-5)


def test_predicted_gains():
    np.testing.assert_allclose(riccati_gain(1.0), [0.422082, 1.243929], rtol=1e-5)
    # One step: nothing that an action leads to is seen. A whole episode: its optimum.
    np.testing.assert_allclose(myopic_gain(1), 0, atol=1e-6)
    np.testing.assert_allclose(myopic_gain(EPISODE), [0.415724, 1.232586], rtol=1e-5)


@pytest.mark.slow
def test_a_small_figure(tmp_path):
    lines = [gain_line(module, 2, 2, total_timesteps=4_096) for module in (apg, shac)]
    assert [line["algorithm"] for line in lines] == ["apg", "shac"]
    growth = {a: [a**H for H in analytic_gradient.STEPS] for a in analytic_gradient.FACTORS}
    analytic_gradient.draw(growth, lines, 2, tmp_path)
    assert (tmp_path / "analytic_gradient.png").stat().st_size > 10_000
