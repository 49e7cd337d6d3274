"""benchmarks/world_models.py: what stands in its table."""

import dataclasses

import numpy as np
import pytest
from helpers import small_config

from algorithms import world_models as algorithm
from benchmarks import world_models


@pytest.mark.slow
def test_each_actor_has_a_line(monkeypatch, tmp_path):
    """One temperature; in Catch, where every return is 1 or -1."""
    monkeypatch.setattr(world_models, "TEMPERATURES", [1.0])
    config = small_config(algorithm, num_steps=1)
    fields = {x.name: getattr(config, x.name) for x in dataclasses.fields(config)}
    del fields["env_id"]
    monkeypatch.setitem(world_models.SETTINGS, "Catch-bsuite", (fields, 2))
    lines = world_models.measure(config, 0, 2)
    assert [x["actor"] for x in lines] == ["V + M", "V alone", "random actions"]
    assert all(np.all(np.abs(x["real"]) <= 1) and len(x["real"]) == 2 for x in lines)
    assert np.isfinite(lines[0]["dream"]).all()
    world_models.draw(lines, config, tmp_path)
    assert (tmp_path / "world_models_catch.png").exists()
