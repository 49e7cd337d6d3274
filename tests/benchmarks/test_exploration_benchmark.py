"""What benchmarks/exploration.py measures, on small runs, and its arithmetic."""

import csv

import numpy as np
import pytest

from algorithms import ppo, rnd
from benchmarks import exploration


def test_good_episodes_by_their_mean_return():
    bad = -0.01  # the worst: right until the last step
    for total in (1, 8, 49):
        for good in range(0, total + 1, 7):
            mean = (0.99 * good + bad * (total - good)) / total
            assert exploration.good_episodes(np.array(mean), total) == good
    assert exploration.good_episodes(np.array(np.nan), 0) == 0


def test_the_first_time():
    is_so = np.array([[0, 1, 0], [1, 1, 0], [0, 0, 0]], bool)
    episodes = np.array([[8], [16], [24]])
    np.testing.assert_array_equal(exploration.first(is_so, episodes), [16, 8, np.inf])


def test_what_was_not_measured_again_stays_as_it_was(tmp_path, monkeypatch):
    path, line = tmp_path / "lines.csv", lambda name, n, x: {"name": name, "seeds": n, "x": x}
    monkeypatch.setattr("benchmarks.speed.commit", lambda: "first")
    exploration.save(path, [line("a", 1, 0.5), line("a", 8, 1.5), line("b", 1, 2.5)], "name")
    monkeypatch.setattr("benchmarks.speed.commit", lambda: "second")
    exploration.save(path, [line("a", 1, 3.5), line("c", 1, 4.5)], "name", "seeds")
    with open(path, newline="") as file:
        found = [(x["name"], x["seeds"], x["x"], x["commit"]) for x in csv.DictReader(file)]
    old = [("a", "8", "1.5", "first"), ("b", "1", "2.5", "first")]
    assert found == [*old, ("a", "1", "3.5", "second"), ("c", "1", "4.5", "second")]
    exploration.save(path, [line("d", 1, 0.0)])
    assert path.read_text().count("\n") == 2


@pytest.mark.slow
def test_what_is_counted_in_a_small_sea():
    """At size 2 a quarter of all episodes is good by chance. The first 100 of RND, which are its
    random steps, are not looked at, and may not be solved before the bound of 104."""
    for module, random_episodes in ((rnd, 100), (ppo, 0)):
        line = exploration.deep_sea_line(module, 2, 800, 3)
        assert line["found"] == line["greedy"] == "3 of 3" and line["bound"] == 104
        assert line["algorithm"] in ("rnd", "ppo") and line["by_chance"] == "1"
        assert 384 < line["episodes"] <= 400
        assert random_episodes < float(line["median_found"]) < random_episodes + 30
        assert float(line["median_found"]) <= float(line["median_solved"]) < 400
        solved = float(line["max_solved"]) < 104
        assert (line["solved"] == "3 of 3") == solved


@pytest.mark.slow
def test_the_rooms_are_drawn(tmp_path):
    curve = exploration.rooms(1.0, 2, total_timesteps=800)
    assert curve["novelty"].shape == curve["visits"].shape == (9, 2, 169)
    np.testing.assert_array_equal(curve["visits"].sum(-1).T, [curve["steps"]] * 2)
    walls = np.array([letter == "#" for letter in "".join(exploration.FOUR_ROOMS.layout)])
    assert not curve["visits"][..., walls].any() and (curve["visits"][-1, :, 14] > 0).all()
    first, *_, last = exploration.cells_seen(curve)
    assert first["steps"] == 160 and last["steps"] == 800 and last["fewest"] >= first["fewest"]
    exploration.draw(curve, tmp_path)
    assert (tmp_path / "four_rooms.png").stat().st_size > 10_000
