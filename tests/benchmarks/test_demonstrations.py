"""One small run of benchmarks/demonstrations.py."""

import csv

import pytest

from benchmarks import demonstrations


@pytest.mark.slow
def test_a_whole_run_has_a_line_for_each_number_of_episodes(tmp_path, monkeypatch):
    words = ["_", "--episodes", "2", "0", "--iterations", "2", "--seeds", "2"]
    monkeypatch.setattr("sys.argv", [*words, "--out", str(tmp_path)])
    demonstrations.main()
    with open(tmp_path / "demonstrations.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    found = [(line["algorithm"], line["episodes"], line["seeds"]) for line in lines]
    assert found == [(x, m, "2") for x in demonstrations.ALGORITHMS for m in ("2", "exact")]
    for name in demonstrations.ALGORITHMS:
        few, exact = (float(line["iqm"]) for line in lines if line["algorithm"] == name)
        assert 0.5 < few < exact < 1
    for name in ("demonstrations.png", "reward_maps.png"):
        assert (tmp_path / name).stat().st_size > 10_000


def test_a_folder_that_is_missing_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["_", "--out", "/nowhere"])
    with pytest.raises(SystemExit):
        demonstrations.main()
    assert "--out a folder" in capsys.readouterr().err
