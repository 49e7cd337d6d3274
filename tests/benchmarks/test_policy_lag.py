"""What benchmarks/policy_lag.py measures, on small runs, and its arithmetic."""

import numpy as np
import pytest

from algorithms import a3c, impala
from benchmarks import policy_lag


def test_the_last_tenth_weighs_episodes_alike():
    returns = np.full((20, 2), 100.0)
    returns[-2:] = [[10, np.nan], [40, 7]]
    episodes = np.ones((20, 2), int)
    episodes[-2:] = [[3, 0], [1, 5]]
    np.testing.assert_allclose(policy_lag.last_tenth(returns, episodes), [(30 + 40) / 4, 7])


def test_both_panels_vary_one_thing_alone():
    configs = policy_lag.configs(100_000)
    assert [type(config) for config in configs] == [impala.Config] * 21 + [a3c.Config] * 6
    by_correction = {c.correction: [] for c in configs[:21]}
    for config in configs[:21]:
        by_correction[config.correction].append(config.policy_lag)
        assert config.learning_rate == policy_lag.LEARNING_RATE
    assert by_correction == dict.fromkeys(policy_lag.CORRECTIONS, policy_lag.LAGS)
    assert [config.num_workers for config in configs[21:]] == policy_lag.WORKERS


@pytest.mark.slow
def test_a_small_figure(tmp_path):
    lines = [
        policy_lag.line_of(config, 2)
        for config in policy_lag.configs(2_048, lags=[1], workers=[2])
        if getattr(config, "correction", "vtrace") == "vtrace"
    ]
    assert [(line["algorithm"], line["lag"]) for line in lines] == [("impala", 1), ("a3c", 1)]
    for line in lines:
        low, middle, high = (float(line[name]) for name in ("low", "iqm", "high"))
        assert 5 < low <= middle <= high < 100  # CartPole, hardly trained
    policy_lag.draw(lines, 2, 2_048, tmp_path)
    assert (tmp_path / "policy_lag.png").stat().st_size > 10_000
