"""What tests/conftest.py leaves out, and which test is too dear for it."""

import os
import subprocess
import sys
import time

import pytest
from helpers import ROOT

TESTS = """
import time, pytest
def test_dear():
    begun = time.process_time()
    while time.process_time() - begun < 2:
        pass
@pytest.mark.parametrize("n", range(NUM))
def test_cheap(n): pass
"""


@pytest.fixture
def outcome(tmp_path):
    """The exit code and output of these tests, with the project's conftest."""

    def run(*words, num=120, **environment):
        (tmp_path / "test_costs.py").write_text(TESTS.replace("NUM", str(num)))
        command = [sys.executable, "-m", "pytest", "-p", "conftest", *words, "test_costs.py"]
        paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
        unset = ("PYTEST", "CPU_SHARE_PER_TEST", "COSTS")
        env = {x: y for x, y in os.environ.items() if not x.startswith(unset)}
        env |= paths | environment
        ended = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
        )
        return ended.returncode, ended.stdout

    return run


def test_a_test_that_takes_too_large_a_share_fails_them_all(outcome):
    code, said = outcome(CPU_SHARE_PER_TEST="0.5")
    assert code == 1 and "121 passed" in said and said.count("Mark it slow?") == 1
    assert "test_costs.py::test_dear: " in said
    code, said = outcome(num=20, CPU_SHARE_PER_TEST="0.5")  # of few tests each has a large one
    assert code == 0 and "21 passed" in said and "Mark it slow?" not in said


def test_what_has_not_begun_in_time_is_left_out_and_counted(outcome):
    code, said = outcome("--until", str(time.time() - 1), num=3)
    assert code == 0 and "4 skipped" in said and "4 tests left out: no time left" in said
    code, said = outcome("--until", str(time.time() + 1_000), num=3)
    assert code == 0 and "4 passed" in said and "left out" not in said
