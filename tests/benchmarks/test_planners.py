"""Planners and tables against libraries: the arithmetic of the table, and that both sides solve."""

import time
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import planners


def test_ratios_are_the_peers_time_over_ours():
    waits = {planners.OURS: 0.01, "peer": 0.03}
    contestants = {
        name: lambda name=name, x=x: (time.sleep(x), float(len(name)))[1]
        for name, x in waits.items()
    }
    ours, peer = planners.raced("iLQR", 3, contestants, 3)
    assert ours["ratio"] != ours["ratio"] and peer["ratio"] == pytest.approx(3, rel=0.5)
    assert (peer["size"], peer["result"], ours["seconds"] > 0.009) == (3, 4.0, True)


def test_value_iteration_is_numpys():
    contestants = planners.sweeps(None)
    assert set(contestants) == {planners.OURS, "NumPy"}
    assert contestants[planners.OURS]() == 0
    assert contestants["NumPy"]() < 1e-2  # ours are float32, up to hundreds


def test_a_toolbox_gets_the_same_table():
    seen = {}

    class ValueIteration:
        def __init__(self, P, rewards, gamma, epsilon):
            seen.update(P=P, rewards=rewards, gamma=gamma)

        def run(self):
            v = np.zeros(len(seen["rewards"]))
            for _ in range(self.max_iter):
                v = np.max(seen["rewards"].T + seen["gamma"] * (seen["P"] @ v), axis=0)
            self.V = tuple(v)

    contestants = planners.sweeps(SimpleNamespace(ValueIteration=ValueIteration))
    contestants[planners.OURS]()
    assert contestants["pymdptoolbox"]() < 1e-2
    assert np.allclose(seen["P"].sum(-1), 1)


def test_trajax_gets_the_same_starts_and_controls():
    def ilqr(cost, dynamics, x, controls, maxiter, grad_norm_threshold):
        total = 0.0
        for t, u in enumerate(controls):
            total, x = total + cost(x, u, t), dynamics(x, u, t)
        return None, None, total + cost(x, 0 * u, len(controls))

    contestants = planners.plans(2, SimpleNamespace(ilqr=ilqr))
    ours, theirs = contestants[planners.OURS](), contestants["trajax"]()
    assert -1_600 < theirs < ours < 0  # the plans that both begin with, and what we make of them
