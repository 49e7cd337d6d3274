"""Random command lines of `python -m algorithms.<name>`: each is refused in one plain line, with
exit code 2, that names the flag, or it runs, and what runs can be traced. No traceback."""

import contextlib
import dataclasses
import io
import sys
import time
from pathlib import Path
from typing import get_args, get_origin

import jax
import jax.numpy as jnp
import pytest
from helpers import ALGORITHMS, load
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common import run
from common.runner import loop, run_folder
from common.runner.cli import Run

INTS = ["0", "1", "2", "3", "7", "64", "-1", "1e3", "1e6", "1e12", "2147483648", "9" * 30, "1.5"]
FLOATS = [
    "0",
    "1",
    "-1",
    "0.5",
    "1e-45",
    "1e-9",
    "1e38",
    "1e308",
    "nan",
    "inf",
    "-inf",
    "2",
    "1e999",
]
TEXTS = [
    "",
    "x",
    "None",
    "1",
    "CartPole-v1",
    "Pendulum-v1",
    "FrozenLake-misc",
    "FrozenLake-tabular",
]
TEXTS += ["Blackjack-tabular", "/etc", "/", "ö∂\u202e", "a b", "'; ls", "--"]
NAMES = ["--", "-", "---seed", "--sead", "--löss", "stray", "--learning-rates", "-h2", "--=", "=3"]
NOT_RUN = {"resume", "imports", "out", "sweep"}  # flags about files; other tests have them


def values(field):
    """Return a strategy: half of the values are near the default, and mostly accepted."""
    near = [str(field.default)]
    if field.type in (int, float):
        near += [str(field.type(field.default * x)) for x in (0.75, 0.9, 1)]
    if isinstance(field.default, tuple):
        near = [" ".join(map(str, field.default)) or "8"]
    return st.one_of(st.sampled_from(near), any_value(field))


def any_value(field):
    """Return a strategy of values, right and wrong, for a field's type."""
    kind = float if field.type == float | None else field.type
    if kind is int:
        return st.sampled_from([*INTS, *TEXTS[:3]])
    if kind is float:
        return st.sampled_from([*FLOATS, *TEXTS[:3]])
    if get_origin(kind) is tuple:
        return st.sampled_from(["", "0", "8", "8 4", "x", "-1", "8 0", "1.5", "9" * 30])
    return st.sampled_from([*TEXTS, *map(str, get_args(kind))])


def tokens(field):
    """Return a strategy of a flag, right or nearly so, with a value of any kind."""
    flag = "--" + field.name.replace("_", "-")
    if field.type is bool:
        return st.sampled_from([[flag], ["--no-" + flag[2:]], [flag, "maybe"], [flag + "=1"]])
    plain = values(field).map(
        lambda value: [flag, *(value.split(" ") if value[:1].isdigit() else [value])]
    )
    joined = values(field).map(lambda value: [f"{flag}={value}"])
    odd = st.sampled_from([[flag], [flag[:-1], "1"], [flag + "s", "1"], [flag.upper(), "1"]])
    return st.one_of(plain, plain, plain, joined, odd)


def command_lines(config):
    """Return a strategy of command lines with one to three flags."""
    fields = [*dataclasses.fields(config), *dataclasses.fields(Run)]
    known = st.one_of([tokens(field) for field in fields if field.name not in NOT_RUN])
    stray = st.sampled_from(NAMES).map(lambda name: [name])
    return st.lists(st.one_of(known, known, known, known, stray), min_size=1, max_size=3).map(
        lambda parts: [token for part in parts for token in part]
    )


def called(module, argv, patch, traced, num_traced):
    """Return the exit code, stdout and stderr of `main`, which stops before it compiles. Of the
    accepted command lines the first `num_traced` are traced; of the others `make` is called."""

    def trace(job):
        algorithm = job.make(job.config)
        if len(traced) < num_traced:
            traced.append(argv)
            state = jax.eval_shape(algorithm.init, jax.random.key(0))
            jax.eval_shape(algorithm.update, state, jnp.int32(0))

    patch.setattr(loop, "run", trace)
    patch.setattr(run_folder, "new_path", lambda *arguments: Path("/nowhere"))
    patch.setattr(run_folder, "create", lambda *arguments: True)
    patch.setattr(sys, "argv", ["test", *argv])
    output, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
        try:
            run.main(module.Config, module.make)
        except SystemExit as stop:
            return stop.code, output.getvalue(), error.getvalue()
    return 0, output.getvalue(), error.getvalue()


@pytest.mark.parametrize("num_traced", [1, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_command_line_is_refused_in_one_line_or_runs(name, num_traced, monkeypatch):
    module, traced, slowest = load(name), [], 0.0
    outcomes = {0: 0, 2: 0}

    @settings(
        max_examples=20 if num_traced == 1 else 30,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(command_lines(module.Config))
    def check(argv):
        nonlocal slowest
        clock = time.process_time()
        code, output, error = called(module, argv, monkeypatch, traced, num_traced)
        outcomes[code] += 1
        if code == 2:
            slowest = max(slowest, time.process_time() - clock)
            assert error.count("\n") == 1 and len(error) <= 200, error
            assert output == "" and "Traceback" not in error
            words = error.replace("_", "-").lower()
            flags = [token.partition("=")[0].lower().replace("_", "-") for token in argv]
            assert any(flag.lstrip("-") in words for flag in flags if flag.strip("-")) or any(
                token in error for token in argv
            ), error
        else:
            assert error == "" or "--help" in argv or "-h" in argv, error

    check()
    assert min(outcomes.values()) >= 2 and traced, outcomes
    assert slowest < 5  # a second on a quiet machine
