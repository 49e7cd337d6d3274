"""The command line: an algorithm's Config, the run's own flags, and one plain line when wrong."""

import contextlib
import dataclasses
import io
import itertools
import re
import sys
from difflib import get_close_matches
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin

import tyro

from common.algorithm import flag, require


@dataclasses.dataclass(frozen=True)
class Run:
    seed: int = 0  # the first seed; seed k starts from jax.random.key(k)
    num_seeds: int = 1  # seeds, all trained in parallel
    seeds_at_once: int = 0  # at most so many of them at a time, to save memory; 0: all
    sweep: tuple[str, ...] = ()  # a grid x seeds: learning_rate=1e-4,3e-4 gamma=0.9,0.99
    eval_episodes: int = 100  # episodes of the final policy, per seed; 0: none
    eval_every: int = 0  # environment steps between greedy evaluations on the way; 0: none
    log_points: int = 100  # rows of metrics.csv per seed
    out: str = ""  # the run's folder; else runs/<algorithm>-<environment>-<time>
    checkpoint_every: float = 60.0  # seconds
    resume: str = ""  # the folder of an interrupted run: go on where its checkpoint stands
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ()  # modules to load first
    quiet: bool = False  # print nothing but errors

    def __post_init__(self):
        require(
            self,
            "seed >= 0",
            "num_seeds >= 1",
            "seed + num_seeds < 2**31",
            "seeds_at_once >= 0",
            "eval_episodes >= 0",
            "eval_every >= 0",
            "log_points >= 1",
            "checkpoint_every > 0",
        )
        if self.eval_every and not self.eval_episodes:
            raise ValueError("--eval-every needs --eval-episodes above 0")


def fail(code: int, message: str) -> NoReturn:
    """Ends the program with one line on stderr."""
    warn(message)
    sys.exit(code)


def warn(message: str) -> None:
    """One line on stderr, of less than 200 characters."""
    program = sys.modules["__main__"].__spec__
    line = f"{program.name.rpartition('.')[2]}: " if program else ""
    line += " ".join(message.split())
    print(line if len(line) < 200 else line[:196] + "...", file=sys.stderr)


def parse(Config: type, program: str, description: str, argv: list[str]) -> tuple[Any, Run]:
    """The Config and the Run that the arguments describe; exits with 2 if they are wrong."""

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        config: tyro.conf.OmitArgPrefixes[Config]
        run: tyro.conf.OmitArgPrefixes[Run]

    types = {flag(field.name): field.type for field in dataclasses.fields(Config)}
    types |= {flag(field.name): field.type for field in dataclasses.fields(Run)}
    types["--import"] = types.pop("--imports")
    argv = _whole_numbers(argv, types)
    _refuse_unknown_flags(argv, types)
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            arguments = tyro.cli(Arguments, prog=program, description=description, args=argv)
    except SystemExit as stop:
        if stop.code:
            fail(2, _one_line(box.getvalue()) + " (--help lists the flags)")
        raise
    return arguments.config, arguments.run


def settings(sweep: tuple[str, ...], config: Any) -> list[dict[str, Any]]:
    """Every combination of the swept values, as the fields to replace: [{}] without a sweep.

    ValueError for a field that does not exist, a value of the wrong type, or one that Config
    refuses.
    """
    types = {field.name: field.type for field in dataclasses.fields(config)}
    grid = {}
    for item in sweep:
        name, equals, values = item.partition("=")
        name = name.lstrip("-").replace("-", "_")
        if not equals or not values:
            raise ValueError(f"--sweep {item}: write field=value,value as in gamma=0.9,0.99")
        if name not in types:
            raise ValueError(f"--sweep {name}: no such field{_did_you_mean(name, types)}")
        if name in grid:
            raise ValueError(f"--sweep {name}: named twice; put all its values behind one =")
        grid[name] = [_value(name, types[name], text) for text in values.split(",")]
        if len(set(grid[name])) < len(grid[name]):
            raise ValueError(f"--sweep {item}: a value stands there twice; write each once")
    combinations = [
        dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
    ]
    for setting in combinations:
        dataclasses.replace(config, **setting)
    return combinations


def _value(name, kind, text):
    """The text of one swept value as a value of the field's type."""
    if get_origin(kind) is Literal:
        choices = {str(choice): choice for choice in get_args(kind)}
        if text not in choices:
            raise ValueError(f"--sweep {name}: {text!r} is not one of {', '.join(choices)}")
        return choices[text]
    if kind not in (int, float, bool, str):
        raise ValueError(f"--sweep {name}: only numbers, strings and true/false can be swept")
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return kind(_whole(text) if kind is int else text)
    except (ValueError, KeyError):
        raise ValueError(f"--sweep {name}: {text!r} is not of type {kind.__name__}") from None


def _whole(text: str) -> str:
    """1e6 as 1000000, anything else as it is."""
    if re.fullmatch(r"[+-]?\d+(\.\d*)?[eE]\+?\d+", text) and float(text).is_integer():
        return str(int(float(text)))
    return text


def _whole_numbers(argv, types):
    """Accepts 1e6 where a flag takes an int, as people write step counts."""
    result, kind = [], None
    for token in argv:
        if token.startswith("--"):
            name, equals, value = token.partition("=")
            kind = types.get(flag(name[2:]))
            takes_int = kind is int or (get_origin(kind) is tuple and get_args(kind)[0] is int)
            result.append(f"{name}={_whole(value)}" if equals and takes_int else token)
        else:
            takes_int = kind is int or (get_origin(kind) is tuple and get_args(kind)[0] is int)
            result.append(_whole(token) if takes_int else token)
    return result


def _refuse_unknown_flags(argv, types):
    known = {
        *types,
        "--help",
        *("--no-" + name[2:] for name, kind in types.items() if kind is bool),
    }
    for token in argv:
        name = "--" + token[2:].partition("=")[0].replace("_", "-")
        if token.startswith("--") and name not in known:
            fail(2, f"unknown flag {name}{_did_you_mean(name, known)} (--help lists the flags)")
        if token.startswith("--") and "=" in token and types.get(name, bool) is bool:
            fail(2, f"{name} takes no value; leave out the = (--help lists the flags)")


def _did_you_mean(name, known) -> str:
    close = get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _one_line(box: str) -> str:
    """What tyro says in the first part of its box, which is drawn with "-" if not in UTF-8."""
    lines = [line.strip("│ ") for line in box.splitlines()[1:]]
    is_text = lambda line: bool(line.strip("─╰╯-"))
    inside = itertools.dropwhile(lambda line: not is_text(line), lines)
    text = " ".join(itertools.takewhile(is_text, inside))
    return re.sub(r"^Error parsing (config|run): ", "", text)
