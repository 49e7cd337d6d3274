"""The measurement of the variance of REINFORCE's estimators, small."""

import dataclasses

import numpy as np
import pytest

from benchmarks import variance


@pytest.mark.slow
def test_variances_fall_from_estimator_to_estimator_on_the_same_episodes():
    config = dataclasses.replace(variance.CONFIG, hidden_sizes=(8,), num_envs=4)
    lines = variance.measure(256, updates=(0, 2), num_fits=20, config=config)
    assert [line["estimator"] for line in lines] == list(variance.NAMES) * 2
    assert [line["updates"] for line in lines] == [0] * 3 + [2] * 3
    for one in (lines[:3], lines[3:]):
        returns = {line["episode_return"] for line in one}
        assert len(returns) == 1 and 8 < returns.pop() < 60  # a policy that has hardly learned
        spread = [line["variance"] for line in one]
        assert spread[0] > spread[1] > spread[2] > 0
        for above, line in zip(one, one[1:], strict=False):
            lost = (above["variance"] - line["variance"]) * 255 / 256
            np.testing.assert_allclose(line["less_than_before"], lost, rtol=1e-3)


def test_errors_and_angles():
    x = np.array([1.0, 3.0])
    assert variance.standard_error(x) == 1 / 2**0.5
    assert variance.cosine(np.array([1.0, 0.0]), np.array([3.0, 4.0])) == 0.6
