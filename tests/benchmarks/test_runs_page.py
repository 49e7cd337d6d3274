"""runs.md and environments.md: their commands are ones that the command line takes."""

import contextlib
import importlib
import re
import shlex
import sys

import pytest
from helpers import ROOT

from common.runner.cli import parse

COMMANDS = [
    (page.name, line.partition("#")[0].strip())
    for page in (ROOT / "benchmarks" / name for name in ("environments.md", "runs.md"))
    for block in re.findall(r"(?ms)^```\n(.*?)^```$", page.read_text())
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("python -m ")
]


def test_there_are_commands():
    pages = {page for page, _ in COMMANDS}
    assert pages == {"environments.md", "runs.md"} and len(COMMANDS) >= 6


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_is_taken(page, command, monkeypatch, capsys):
    """Algorithms' flags are parsed; a tool is refused nothing before it looks at the run."""
    _, _, module, *words = shlex.split(re.sub(r"[][]", "", command))
    if module.startswith("algorithms."):
        parse(importlib.import_module(module).Config, module, "", words)
        return
    monkeypatch.setattr(sys, "argv", [module, *words])
    with contextlib.suppress(SystemExit):
        importlib.import_module(module).main()
    assert "see --help" not in capsys.readouterr().err
