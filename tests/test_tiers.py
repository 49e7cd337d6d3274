"""What tests/conftest.py leaves out, and which test is too dear for it."""

import os
import subprocess
import sys
import time

import pytest
from helpers import ROOT

TESTS = """
import time
def test_dear():
    begun = time.process_time()
    while time.process_time() - begun < 0.5:
        pass
def test_cheap_1(): pass
def test_cheap_2(): pass
"""


@pytest.fixture
def outcome(tmp_path):
    """The exit code and output of these tests, beside the project's conftest."""
    (tmp_path / "test_costs.py").write_text(TESTS)

    def run(*words, **environment):
        command = [sys.executable, "-m", "pytest", "-p", "conftest", *words, "test_costs.py"]
        paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
        env = {x: y for x, y in os.environ.items() if "PYTEST" not in x} | paths | environment
        ended = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
        )
        return ended.returncode, ended.stdout

    return run


def test_a_test_that_takes_too_large_a_share_fails_them_all(outcome):
    code, said = outcome(CPU_SHARE_PER_TEST="0.9")
    assert code == 1 and "test_costs.py::test_dear: " in said and "test_cheap" not in said
    code, said = outcome()
    assert code == 0 and "3 passed" in said and "dear: " not in said


def test_what_has_not_begun_in_time_is_left_out_and_counted(outcome):
    code, said = outcome("--until", str(time.time() - 1))
    assert code == 0 and "3 skipped" in said and "3 tests left out: no time left" in said
    code, said = outcome("--until", str(time.time() + 100))
    assert code == 0 and "3 passed" in said and "left out" not in said
