"""What benchmarks/differentiable_mpc.py measures, and one small run of it."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algorithms.differentiable_mpc import Config, Model
from benchmarks import differentiable_mpc as benchmark
from common.environments.linear import make_system


def test_controls_are_those_of_the_model_within_the_bound():
    system = make_system("NearIdentity-linear", jax.random.key(1))
    x = benchmark.new_states(system)[:50]
    config = Config(max_action=0.3)
    expert = benchmark.controls(config, Model(), system, x)
    same = benchmark.controls(config, Model((system.A, system.B)), system, x)
    np.testing.assert_allclose(expert, same, atol=1e-6)
    assert expert.shape == (50, 5, 3) and np.abs(expert).max() == np.float32(0.3)
    nothing = benchmark.controls(config, Model((system.A, 0 * system.B)), system, x)
    np.testing.assert_array_equal(nothing, jnp.zeros((50, 5, 3)))


@pytest.mark.slow
def test_a_whole_run(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "DEMONSTRATIONS", (10,))
    monkeypatch.setattr(benchmark, "LEARNERS", ("network", "cost"))
    words = ["_", "--seeds", "2", "--updates", "2", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", words)
    benchmark.main()
    with open(tmp_path / "differentiable_mpc.csv", newline="") as file:
        network, cost = csv.DictReader(file)
    assert (network["learner"], cost["learner"]) == ("network", "cost")
    assert network["network_over_it"] == "1" and float(cost["network_over_it"]) > 10
    assert float(cost["worst"]) < 2e-3 < float(network["worst"])
    assert (tmp_path / "differentiable_mpc.png").stat().st_size > 10_000


def test_a_run_of_nothing_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["_", "--updates", "0"])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert "--seeds and --updates must be at least 1" in capsys.readouterr().err
