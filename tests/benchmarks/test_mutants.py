"""benchmarks/mutants.py: every bug can still be planted, and the table is that of today's bugs."""

import re
import subprocess
import sys

import pytest
from helpers import ROOT

from benchmarks import mutants
from benchmarks.mutants import MUTANTS, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_old_text_is_there_once_and_the_new_one_is_python(mutant):
    source = (ROOT / mutant.file).read_text()
    assert source.count(mutant.old) == 1
    compile(source.replace(mutant.old, mutant.new), mutant.file, "exec")
    assert (ROOT / mutant.tests).exists()


def test_the_tests_that_must_fail_are_there_in_the_quick_tier():
    """In one collection of all their files; -k looks for words in the name of a test."""
    files = sorted({mutant.tests for mutant in MUTANTS})
    command = [sys.executable, "-m", "pytest", "-n", "0", "--collect-only", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    found = [line.split("::", 1) for line in done.stdout.splitlines() if "::" in line]
    assert {file for file, _ in found} == set(files), done.stdout
    for mutant in MUTANTS:
        word = r"\b(?!(?:and|or|not)\b)\w+"
        chosen = re.sub(word, lambda x: f"({x[0].lower()!r} in name)", mutant.keyword)
        names = [name.lower() for file, name in found if file == mutant.tests]
        assert any(eval(chosen, {"name": name}) for name in names), mutant


def test_the_table_that_is_kept_is_of_these_bugs_and_none_survived():
    rows = {row["mutant"]: row for row in mutants.lines(mutants.RESULTS / "mutants.csv")}
    assert rows and all(row["result"] == "killed" for row in rows.values())
    known = {m.name: m for m in MUTANTS}
    for name, row in rows.items():
        assert [row[k] for k in ("file", "old", "new")] == list(known[name][1:4]), name


@pytest.mark.parametrize("expects, result", [(2, "killed"), (1, "survived")])
def test_a_bug_is_killed_or_survives(expects, result, tmp_path):
    (tmp_path / "code.py").write_text("value = 1\n")
    test = f"from code import value\n\ndef test_value():\n    assert value != {expects}\n"
    (tmp_path / "test_code.py").write_text(test.replace("from code", "from code_to_test"))
    (tmp_path / "code.py").rename(tmp_path / "code_to_test.py")
    mutant = Mutant("two", "code_to_test.py", "= 1", "= 2", "test_code.py", "value")
    assert mutants.planted(tmp_path, mutant) == result
    assert (tmp_path / "code_to_test.py").read_text() == "value = 1\n"
    assert mutants.planted(tmp_path, mutant._replace(old="= 3")) == "not there, or not once"


def test_names_are_unique():
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
