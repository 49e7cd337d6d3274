"""What benchmarks/imitation.py compares, and one small run of it."""

import csv

import numpy as np
import pytest

from benchmarks import imitation


@pytest.mark.parametrize("env_id", list(imitation.LENGTHS))
@pytest.mark.parametrize("num_episodes", imitation.EPISODES)
def test_both_have_the_same_labels_and_gradient_steps(env_id, num_episodes):
    clone = imitation.config_of("behaviour_cloning", env_id, num_episodes, 10_000)
    other = imitation.config_of("dagger", env_id, num_episodes, 10_000)
    assert clone.num_episodes * imitation.LENGTHS[env_id] == other.total_timesteps
    assert clone.num_iterations * clone.gradient_steps == 10_000
    num_rounds = other.total_timesteps // (other.num_envs * other.num_steps)
    assert num_rounds >= 5
    assert num_rounds * other.gradient_steps == pytest.approx(10_000, rel=0.01)


def test_the_ledge_tells_the_two_apart():
    cloned, aggregated = (imitation.ledge_costs(name, 2) for name in imitation.NAMES)
    np.testing.assert_allclose(cloned[:, 99], 37.2372, atol=1e-4)
    np.testing.assert_allclose(aggregated[:, 99], 1.0)


@pytest.mark.slow
def test_a_whole_run(tmp_path, monkeypatch):
    words = "_ --tasks Pendulum-v1 --episodes 1 --gradient-steps 100 --seeds 2"
    monkeypatch.setattr("sys.argv", [*words.split(), "--out", str(tmp_path)])
    imitation.main()
    with open(tmp_path / "imitation.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["algorithm"] for line in lines] == list(imitation.NAMES)
    assert all(line["labels"] == "200" and float(line["score"]) < 60 for line in lines)
    assert (tmp_path / "imitation.png").stat().st_size > 10_000
    assert (tmp_path / "ledge.csv").stat().st_size > 100
