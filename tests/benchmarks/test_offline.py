"""What benchmarks/offline.py compares, and one small run of it."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import offline


@pytest.mark.parametrize("quality", list(offline.QUALITIES))
def test_data_are_of_the_quality_that_is_asked_for(monkeypatch, quality):
    monkeypatch.setattr(offline, "NUM_EPISODES", 8)
    play = jax.jit(lambda key: offline.noisy_data("Pendulum-v1", *offline.QUALITIES[quality], key))
    transitions = play(jax.random.key(0)).transitions
    returns = np.asarray(transitions.reward).reshape(8, 200).sum(1)
    assert (returns[:2].mean() > -400) == (quality != "random")
    assert (returns[-2:].mean() > -400) == (quality == "expert")
    assert jnp.abs(transitions.action).max() <= 1


@pytest.mark.slow
def test_a_whole_run(tmp_path, monkeypatch):
    contestants = {"Pendulum-v1": {}}
    for label, (module, fields) in offline.CONTESTANTS["Pendulum-v1"].items():
        if label in ("IQL", "behaviour cloning"):
            small = {"hidden_sizes": (8,), "batch_size": 8}
            contestants["Pendulum-v1"][label] = (module, fields | small)
    monkeypatch.setattr(offline, "CONTESTANTS", contestants)
    monkeypatch.setattr(offline, "NUM_EPISODES", 2)
    words = "_ --tasks Pendulum-v1 --gradient-steps 20 --points 2 --seeds 2"
    monkeypatch.setattr("sys.argv", [*words.split(), "--out", str(tmp_path)])
    offline.main()
    with open(tmp_path / "offline.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["algorithm"], line["data"]) for line in lines] == [
        (label, quality) for label in ("IQL", "behaviour cloning") for quality in offline.QUALITIES
    ]
    assert all(float(line["score"]) < 80 for line in lines)
    assert (tmp_path / "offline.png").stat().st_size > 10_000
