"""The command line: an algorithm's Config, the run's own flags, and errors in one plain line."""

import argparse
import contextlib
import dataclasses
import io
import itertools
import re
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, get_args, get_origin

import numpy as np
import tyro

from common.algorithm import flag, require
from common.environments.env_parameters import join_id


@dataclasses.dataclass(frozen=True)
class Run:
    """Flags that every algorithm has."""

    seed: int = 0  # the first seed; seed k starts from jax.random.key(k)
    num_seeds: int = 1  # seeds, all trained in parallel
    seeds_at_once: int = 0  # most seeds that train at the same time, to save memory; 0: all
    block: int = 0  # most seeds that one device trains together; 0: by seeds_at_once and devices
    share: str = ""  # i/n: train share i (from 0) of n of the run in --out; the last finishes it
    distributed: str = ""  # auto, or leader's host:port/n/i: one run by n JAX processes
    env_params: tuple[str, ...] = ()  # gravity=9.8, or 8:12 drawn per episode; ends up in env_id
    sweep: tuple[str, ...] = ()  # a grid x seeds: learning_rate=1e-4,3e-4 env.gravity=8,9.8
    num_settings: int = 0  # draw so many from the ranges of the sweep: gamma=0.9:1 or log:1e-4:1e-2
    retrain_best: int = 0  # other seeds that train the best setting of the sweep again; 0: none
    eval_episodes: int = 100  # episodes of the final policy, per seed; 0: none
    eval_policy: Literal["greedy", "sample"] = "greedy"  # sample: from the distribution learned
    eval_every: int = 0  # environment steps between evaluations during training; 0: none
    log_points: int = 100  # rows of metrics.csv per seed
    parquet: bool = False  # write metrics and evaluation as .parquet, not .csv; needs pyarrow
    track: str = ""  # tensorboard, wandb or both with a comma: show the metrics there
    out: str = ""  # the run's folder, made or continued; else runs/<algorithm>-<env_id>-<time>
    checkpoint_every: float = 60.0  # seconds, but at least 20 times as long as a save takes
    keep_checkpoint: bool = False  # let the finished run go on: --resume DIR --total-timesteps MORE
    resume: str = ""  # the folder of an interrupted run: continue from its checkpoint
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ()  # modules or .py files
    quiet: bool = False  # print nothing but errors

    def __post_init__(self):
        require(
            self,
            "seed >= 0",
            "num_seeds >= 1",
            "seed + num_seeds < 2**31",
            "seeds_at_once >= 0",
            "block >= 0",
            "num_settings >= 0",
            "retrain_best >= 0",
            "eval_episodes >= 0",
            "eval_every >= 0",
            "log_points >= 1",
            "checkpoint_every > 0",
        )
        if self.num_settings and not self.sweep:
            raise ValueError("--num-settings needs --sweep, which says what to draw from")
        if self.eval_every and not self.eval_episodes:
            raise ValueError("--eval-every needs --eval-episodes above 0")
        if not re.fullmatch("|(tensorboard|wandb)(,(?!\\1)(tensorboard|wandb))?", self.track):
            raise ValueError(f"--track {self.track}: write tensorboard, wandb or tensorboard,wandb")
        if self.share and self.distributed:
            raise ValueError("--share and --distributed exclude each other")
        if (self.share or self.distributed) and not (self.out or self.resume):
            raise ValueError("--share and --distributed need --out, a folder that all can reach")
        parts = self.share.split("/")
        if self.share and not (
            len(parts) == 2 and all(x.isdecimal() for x in parts) and int(parts[0]) < int(parts[1])
        ):
            raise ValueError(f"--share {self.share}: write i/n, for example 0/4 to 3/4")
        pattern = r"auto|[^/]+:\d+/\d+/\d+"
        if self.distributed and not re.fullmatch(pattern, self.distributed):
            raise ValueError(f"--distributed {self.distributed}: write auto or host:port/n/i")


def fail(code: int, message: str) -> NoReturn:
    """End the program with an exit code and one line on stderr."""
    warn(message)
    sys.exit(code)


def warn(message: str) -> None:
    """Print one line of at most 200 characters on stderr."""
    program = sys.modules["__main__"].__spec__
    line = f"{program.name.rpartition('.')[2]}: " if program else ""
    line += " ".join(message.split())
    print(line if len(line) < 200 else line[:196] + "...", file=sys.stderr)


def tool_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return the parser of `python -m common.<name>`; wrong usage is one line and exit code 2."""
    parser = argparse.ArgumentParser(
        prog=f"python -m common.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.error = lambda message: fail(2, f"{message}; see --help")
    return parser


def parse(Config: type, program: str, description: str, argv: list[str]) -> tuple[Any, Run]:
    """Return the Config and the Run of the arguments; exit with code 2 if they are wrong."""

    @dataclasses.dataclass(frozen=True)
    class Arguments:
        config: tyro.conf.OmitArgPrefixes[Config]  # pyright: ignore[reportInvalidTypeForm]
        run: tyro.conf.OmitArgPrefixes[Run]

    types = {flag(field.name): field.type for field in dataclasses.fields(Config)}
    types |= {flag(field.name): field.type for field in dataclasses.fields(Run)}
    types["--import"] = types.pop("--imports")
    argv = _expand_exponents(argv, types)
    _refuse_unknown_flags(argv, types)
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            arguments = tyro.cli(Arguments, prog=program, description=description, args=argv)
    except SystemExit as stop:
        if stop.code:
            fail(2, (_one_line(box.getvalue()) or "wrong flags") + " (--help lists the flags)")
        raise
    try:
        return fold_parameters(arguments.config, arguments.run)
    except ValueError as error:
        fail(2, str(error))


def fold_parameters(config: Any, run: Run) -> tuple[Any, Run]:
    """Return the Config with `--env-params` in its env_id, where all else looks for them, and the
    Run without. ValueError if one is not name=value."""
    values = {}
    for item in run.env_params:
        name, equals, text = item.partition("=")
        if not (equals and text and name.isidentifier()):
            raise ValueError(f"--env-params {item}: write name=number or name=low:high")
        if name in values:
            raise ValueError(f"--env-params {name}: named twice")
        values[name] = text
    return configured(config, {f"env.{k}": x for k, x in values.items()}), dataclasses.replace(
        run, env_params=()
    )


def configured(config: Any, setting: dict[str, Any]) -> Any:
    """Return the Config with the fields of a setting; `env.<name>` is a parameter in its env_id."""
    params, fields = split_setting(setting)
    config = dataclasses.replace(config, **fields)
    if not params:
        return config
    return dataclasses.replace(config, env_id=join_id(config.env_id, params))


def split_setting(setting: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the parameters of the environment, without `env.`, and the fields of Config."""
    params = {k.removeprefix("env."): x for k, x in setting.items() if k.startswith("env.")}
    return params, {k: x for k, x in setting.items() if not k.startswith("env.")}


def given_fields(argv: list[str]) -> set[str]:
    """Return the fields of Config and Run that the arguments name."""
    names = {token[2:].partition("=")[0] for token in argv if token.startswith("--")}
    names |= {name.removeprefix("no-") for name in names}
    fields = {"import": "imports", "env-params": "env_id", "env_params": "env_id"}
    return {fields.get(name, name).replace("-", "_") for name in names}


def settings(
    sweep: tuple[str, ...],
    config: Any,
    num_settings: int = 0,
    seed: int = 0,
    parameters: dict[str, int | float] | None = None,
) -> list[dict[str, Any]]:
    """Return the fields to replace in every setting of a sweep; [{}] without one.

    That is every combination of values, or so many that are drawn: uniformly from low:high,
    log-uniformly from log:low:high, to four digits, integers whole, and from lists. Setting i is
    the same, however many are drawn. `parameters` are those of the environment; None: not known
    yet. ValueError for a field that does not exist, a value of the wrong type, or one that Config
    refuses.
    """
    choices = search_space(sweep, config, num_settings, parameters)
    if num_settings:
        combinations = _draw(choices, num_settings, seed)
    else:
        combinations = [
            dict(zip(choices, values, strict=True))
            for values in itertools.product(*choices.values())
        ]
    for setting in combinations:
        configured(config, setting)
    return combinations


class Range(NamedTuple):
    """Numbers to draw from."""

    kind: type
    low: int | float
    high: int | float
    is_log: bool

    def draw(self, generator: np.random.Generator) -> int | float:
        ends = self.low, self.high
        x = np.exp(generator.uniform(*np.log(ends))) if self.is_log else generator.uniform(*ends)
        return self.rounded(x)

    def rounded(self, x: float) -> int | float:
        """Return a float with four digits, or a whole number, within the ends."""
        x = round(x) if self.kind is int else float(f"{x:.4g}")
        return min(max(x, self.low), self.high)


def search_space(
    sweep: tuple[str, ...],
    config: Any,
    num_settings: int = 0,
    parameters: dict[str, int | float] | None = None,
) -> dict[str, list | Range]:
    """Return what each field of a sweep is chosen from: see `settings`. Ranges need
    `num_settings`."""
    types = {field.name: field.type for field in dataclasses.fields(config)}
    choices = {}
    for item in sweep:
        name, equals, values = item.partition("=")
        name = name.lstrip("-").replace("-", "_")
        if not equals or not values:
            raise ValueError(f"--sweep {item}: write field=value,value as in gamma=0.9,0.99")
        if name in choices:
            raise ValueError(f"--sweep {name}: named twice; put all its values after one =")
        if name.startswith("env."):
            kind = _parameter_type(name, config.env_id, parameters)
        elif name in types:
            kind = float if types[name] == float | None else types[name]
        else:
            raise ValueError(f"--sweep {name}: no such field{_did_you_mean(name, types)}")
        choices[name] = _choices(name, kind, values, num_settings)
    return choices


def _parameter_type(name: str, env_id: str, parameters: dict[str, int | float] | None) -> type:
    """Return the type of `env.<name>`; ValueError if the environment has no such parameter."""
    if parameters is None:
        return float
    if name.removeprefix("env.") not in parameters:
        has = f"has only {', '.join(parameters)}" if parameters else "has none that can be set"
        raise ValueError(f"--sweep {name}: {env_id} {has}")
    return type(parameters[name.removeprefix("env.")])


def _choices(name: str, kind: Any, text: str, num_settings: int) -> list | Range:
    """Return the values that the text lists, or the range that it names."""
    item = f"--sweep {name}={text}"
    if kind not in (int, float) or ":" not in text:
        values = [_value(name, kind, x) for x in text.split(",")]
        if len(set(values)) < len(values):
            raise ValueError(f"{item}: a value is there twice; write each once")
        return values
    if not num_settings:
        raise ValueError(f"{item}: a range is drawn from; say how often with --num-settings 32")
    scale, _, rest = text.rpartition("log:")
    ends = [_value(name, kind, x) for x in rest.split(":")]
    is_log = text.startswith("log:")
    if scale or len(ends) != 2 or not ends[0] < ends[1] or (is_log and ends[0] <= 0):
        example = "log:1e-4:1e-2 with 0 < low < high" if is_log else "0.9:0.99 with low < high"
        raise ValueError(f"{item}: write low:high or log:low:high, as in {example}")
    return Range(kind, ends[0], ends[1], is_log)


def _draw(choices: dict[str, list | Range], num_settings: int, seed: int) -> list[dict[str, Any]]:
    """Return that many different settings."""
    generator, drawn = np.random.default_rng(seed), []
    for _ in range(100 * num_settings):
        setting = {
            name: x.draw(generator) if isinstance(x, Range) else x[generator.integers(len(x))]
            for name, x in choices.items()
        }
        if setting not in drawn:
            drawn.append(setting)
        if len(drawn) == num_settings:
            return drawn
    raise ValueError(
        f"--num-settings {num_settings}: the sweep has only {len(drawn)} different settings; "
        "draw fewer, or leave out --num-settings to train them all"
    )


def _value(name: str, kind: Any, text: str) -> Any:
    """Return one swept value as the field's type; ValueError if it is of another."""
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
        return kind(_expand_exponent(text) if kind is int else text)
    except (ValueError, KeyError):
        raise ValueError(f"--sweep {name}: {text!r} is not of type {kind.__name__}") from None


def _expand_exponent(text: str) -> str:
    """Return 1e6 as 1000000, and anything else as it is."""
    if re.fullmatch(r"[+-]?\d+(\.\d*)?[eE]\+?\d+", text) and float(text).is_integer():
        return str(int(float(text)))
    return text


def _expand_exponents(argv: list[str], types: dict[str, Any]) -> list[str]:
    """Return the arguments with 1e6 as 1000000 where a flag takes integers: people write numbers of
    steps so, and tyro refuses it."""
    result, takes_int = [], False
    for token in argv:
        if not token.startswith("--"):
            result.append(_expand_exponent(token) if takes_int else token)
            continue
        name, equals, value = token.partition("=")
        kind = types.get(flag(name[2:]))
        takes_int = kind is int or (get_origin(kind) is tuple and get_args(kind)[0] is int)
        result.append(f"{name}={_expand_exponent(value)}" if equals and takes_int else token)
    return result


def _refuse_unknown_flags(argv: list[str], types: dict[str, Any]) -> None:
    """Exit with code 2 at a flag that does not exist, or that is true or false and has a value."""
    known = {
        *types,
        "--help",
        *("--no-" + name[2:] for name, kind in types.items() if kind is bool),
    }
    kind, sequence = None, ""
    for token in argv:
        name = "--" + token[2:].partition("=")[0].replace("_", "-")
        if token.startswith("--"):
            kind, sequence = types.get(name), name
        elif get_origin(kind) is tuple and get_args(kind)[0] in (int, float) and "," in token:
            fail(2, f"{sequence} {token}: write {sequence} {token.replace(',', ' ')}")
        if token.startswith("--") and name not in known:
            fail(2, f"unknown flag {name}{_did_you_mean(name, known)} (--help lists the flags)")
        if token.startswith("--") and "=" in token and types.get(name, bool) is bool:
            fail(2, f"{name} takes no value; leave out the = (--help lists the flags)")


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint at the known name that is most like `name`, if one is: by its initials
    (--lr), by a part (--steps), or by its letters."""
    words = lambda text: [word for word in re.split("[-_]", text) if word]
    initials = lambda text: "".join(word[0] for word in words(text))
    by_initials = [x for x in known if initials(x) == "".join(words(name))]
    by_letters = get_close_matches(name, known, n=1)
    by_part = [x for x in known if len(name.strip("-")) > 3 and name.strip("-") in x]
    close = [*by_initials, *by_part, *by_letters]
    return f"; did you mean {close[0]}?" if close else ""


def _one_line(box: str) -> str:
    """Return the message in the first part of the box that tyro draws around an error.

    tyro has no public way to get at a message: `console_outputs=False` drops it, and its hook
    `tyro._errors.on_parse_error` is private and new. The box is drawn with "-" if not in UTF-8.
    """
    lines = [line.strip("│ ") for line in box.splitlines()[1:]]
    is_text = lambda line: bool(line.strip("─╰╯-"))
    inside = itertools.dropwhile(lambda line: not is_text(line), lines)
    message = " ".join(itertools.takewhile(is_text, inside))
    return re.sub(r"^Error parsing (config|run): ", "", message)
