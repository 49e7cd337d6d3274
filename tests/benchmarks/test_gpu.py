"""The measurement of everything on a GPU, without one: its commands, its lines, and a dry run."""

import csv
import importlib
import json
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest
from helpers import ROOT

from benchmarks import gpu
from benchmarks.learning import suite
from benchmarks.speed import spawn
from common.runner.cli import parse

NO_PEERS = SimpleNamespace(peers=None, purejaxrl=None, cleanrl=None, out=None)


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("sizes", [gpu.FULL, gpu.TINY])
def test_every_command_is_one_that_its_algorithm_takes(sizes, monkeypatch):
    words, loops = [], []
    ok = {"status": "ok", "reason": ""}
    monkeypatch.setattr(gpu, "run_ours", lambda own, *_: words.append(own) or ok)
    monkeypatch.setattr(gpu, "child", lambda name, _, *own, **more: loops.append(own) or ok)
    for part in ("dqn", "others", "switches"):
        for entry in gpu.PARTS[part](NO_PEERS, sizes):
            entry.measure(10.0)
    assert len(words) == len(sizes.dqn_seeds) + 4 * len(sizes.seeds) + len(sizes.search_seeds)
    switched = len(sizes.switched) * len(sizes.seeds[:2]) * len(gpu.SWITCHES)
    assert len(loops) == len(sizes.dqn_seeds) + switched
    for name, flags in [(own[0], own[1:]) for own in words] + [
        (name, shlex.split(flags)) for name, flags, *_ in loops
    ]:
        parse(importlib.import_module(f"algorithms.{name}").Config, name, "", list(flags))


def test_rows_are_of_the_tier():
    assert {suite()[name]["tier"] for name in gpu.FULL.rows} == {"gpu"}


def test_bytes_over_the_time_of_a_copy_are_a_part_of_the_bandwidth():
    card = {"gigabytes_per_second": 4_000.0}
    entry = gpu.Entry("dqn", "dqn", 8, lambda _: {"bytes": 2e9, "update_us": 1_000.0, "reason": ""})
    assert gpu.measured(entry, 10.0, [card])["of_bandwidth"] == pytest.approx(0.5)
    assert "of_bandwidth" not in gpu.measured(entry, 10.0, [])


def test_lines_are_medians_of_the_rounds_that_succeeded():
    label = {"part": "dqn", "what": "dqn", "seeds": 8}
    done = {"status": "ok", "reason": ""}
    failed = {"status": "hung", "reason": "not finished after 9 s"}
    rates = [{"steps_per_second": x} | label | done for x in (1.0, 5.0, 2.0)]
    (line,) = gpu.lines([*rates, label | failed])
    assert (line["steps_per_second"], line["rounds"]) == ("2", 3)
    assert line["note"] == "not finished after 9 s" and line["peak_mib"] == ""


def test_what_is_cut_off_keeps_its_lines(tmp_path, monkeypatch, capsys):
    """A clock on which every run takes nearly five of ten minutes; the second run fails."""
    clock, results = [0.0], [{"status": "ok", "reason": "", "steps_per_second": 7.0}]
    results += [{"status": "failed", "reason": "out of memory"}, None]

    def measure(seconds):
        assert seconds == 600 - clock[0]
        clock[0] += 295
        return results.pop(0)

    entries = [gpu.Entry("dqn", f"run {i}", i, measure) for i in (1, 2, 3)]
    monkeypatch.setitem(gpu.PARTS, "dqn", lambda *_: entries)
    monkeypatch.setattr(gpu.time, "monotonic", lambda: clock[0])
    other = dict.fromkeys(gpu.COLUMNS, "") | {"part": "others", "what": "ppo", "seeds": "1"}
    gpu.write(tmp_path / "gpu.csv", [other])
    words = ["gpu", "--parts", "dqn", "--minutes", "10", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    clock[0] = 0.0
    gpu.main()
    assert "10 minutes are over" in capsys.readouterr().out and results == [None]
    lines = {line["what"]: line for line in read(tmp_path / "gpu.csv")}
    assert list(lines) == ["ppo", "run 1", "run 2"]
    assert lines["run 1"]["steps_per_second"] == "7"
    assert lines["run 2"]["note"] == "out of memory" and lines["run 2"]["rounds"] == "0"


def test_cleanrl_prints_its_rate(tmp_path):
    (tmp_path / "cleanrl").mkdir()
    script = "import sys; assert sys.argv[1] == '--total-timesteps'; print('SPS: 10'); "
    (tmp_path / "cleanrl" / "dqn.py").write_text(script + "print('SPS: 12')")
    arguments = SimpleNamespace(cleanrl=tmp_path)
    assert gpu.cleanrl_of(arguments, gpu.TINY)(60)["steps_per_second"] == 12.0
    (tmp_path / "cleanrl" / "dqn.py").write_text("import torch_of_this_card")
    failed = gpu.cleanrl_of(arguments, gpu.TINY)(60)
    assert failed["status"] == "failed" and "torch_of_this_card" in failed["reason"]


def test_a_folder_that_is_not_there_is_a_usage_error(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", "--purejaxrl", "nowhere"])
    with pytest.raises(SystemExit) as error:
        gpu.main()
    assert error.value.code == 2 and "--purejaxrl nowhere: there is no" in capsys.readouterr().err


def test_the_script_passes_its_flags_on():
    words = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "--help"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "--minutes" in done.stdout


@pytest.mark.slow
def test_a_dry_run_measures_every_part(tmp_path):
    """Real runs of tiny sizes: every line has its numbers."""
    words = ["-m", "benchmarks.gpu", "--tiny", "--minutes", "20", "--out", str(tmp_path)]
    done = spawn([sys.executable, *words], gpu.variables_of(), 1_200, wants_json=False)
    assert done["status"] == "ok", json.dumps(done)
    lines = read(tmp_path / "gpu.csv")
    assert {line["part"] for line in lines} == {"card", "dqn", "others", "rows", "switches"}
    for line in lines:
        assert line["rounds"] == "1", line
        assert float(line["steps_per_second"] or line["update_us"]) > 0
        if line["part"] in ("others", "rows") or line["what"] == "dqn":
            assert line["episode_return"], line
        if gpu.LOOP in line["what"]:
            assert float(line["of_bandwidth"]) > 0
    rows = {line["row"]: line for line in read(tmp_path / "learning.csv")}
    assert set(gpu.TINY.rows) < set(rows) and (tmp_path / f"{gpu.TINY.rows[0]}.png").exists()
