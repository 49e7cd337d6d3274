"""Parameters of environments, at the end of an id: `CartPole-v1+gravity=9.8+length=0.5:1`.

A number holds for the whole run. A range is drawn from uniformly when an episode begins (domain
randomisation, Tobin et al. 2017, https://arxiv.org/abs/1703.06907), and the value is kept in the
EnvState until the episode ends.

They are part of the id because an id already goes into every algorithm, every file of a run and
every tool. A value that a sweep traces has no text, so `swept` hands it over beside the id.
"""

import contextlib
import math
import re
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax

from common.envs import Env, find_family

NUMBER = r"[+-]?(\d[\d_]*\.?\d*|\.\d+)(e[+-]?\d+)?"


class Asked(NamedTuple):
    """What an id asks of the environment that is being made."""

    texts: dict[str, str]  # a number or a range, by the name of its parameter
    known: dict[str, int | float]  # filled by the environment: its parameters and their values


ASKED: ContextVar[Asked | None] = ContextVar("ASKED", default=None)
SWEPT: ContextVar[dict[str, jax.Array] | None] = ContextVar("SWEPT", default=None)


class Values(NamedTuple):
    """Parameters as an environment takes them; the names of the three differ."""

    fixed: dict[str, int | float]
    traced: dict[str, jax.Array]  # swept in this very program
    ranges: dict[str, tuple[int, int] | tuple[float, float]]  # of integers both ends are drawn

    def end(self, which: int) -> dict[str, int | float]:
        """Return concrete values, of the ranges their low (0) or their high (1) end."""
        return self.fixed | {name: ends[which] for name, ends in self.ranges.items()}

    def draw(self, key: jax.Array) -> dict[str, jax.Array]:
        """Return a value of each range, for one episode."""
        drawn = {}
        for i, (name, (low, high)) in enumerate(self.ranges.items()):
            own = jax.random.fold_in(key, i)
            if isinstance(low, int):
                drawn[name] = jax.random.randint(own, (), low, high + 1)
            else:
                drawn[name] = jax.random.uniform(own, (), minval=low, maxval=high)
        return drawn


def split_id(env_id: str) -> tuple[str, dict[str, str]]:
    """Return an id without its parameters, and their texts by name."""
    base, *items = re.split(r"\+(?=[A-Za-z_])", env_id)
    return base, {name: text for name, _, text in (item.partition("=") for item in items)}


def join_id(env_id: str, values: dict[str, Any]) -> str:
    """Return an id with these parameters, instead of what it says of the same ones."""
    base, texts = split_id(env_id)
    return "+".join([base, *(f"{name}={x}" for name, x in {**texts, **values}.items())])


def make_parameters_env(env_id: str, num_envs: int) -> Env:
    """Return `num_envs` copies of an environment with parameters; ValueError, one line, if it has
    no such parameter or if a value is not a number or a range that the parameter can take."""
    base, texts = split_id(env_id)
    with asking(texts) as asked:
        env = find_family(base)(base, num_envs)
    if not asked.known:
        raise ValueError(f"--env-params: {base} has none that can be set")
    return env


def parameters_of(env_id: str) -> dict[str, int | float]:
    """Return the parameters of an environment that can be set, and their values; {} if it has
    none."""
    base, _ = split_id(env_id)
    with asking({}) as asked:
        find_family(base)(base, 1)
    return asked.known


@contextlib.contextmanager
def asking(texts: dict[str, str]) -> Iterator[Asked]:
    """Make environments with these parameters; yield what is asked, with what is known then."""
    asked = Asked(texts, {})
    token = ASKED.set(asked)
    try:
        yield asked
    finally:
        ASKED.reset(token)


@contextlib.contextmanager
def swept(values: dict[str, jax.Array]) -> Iterator[None]:
    """Make environments whose ids name these parameters with these values instead of theirs."""
    token = SWEPT.set(values)
    try:
        yield
    finally:
        SWEPT.reset(token)


def take(env_id: str, known: dict[str, int | float]) -> Values:
    """Return the parameters that the id under way asks for, for an environment that has the `known`
    ones; ValueError if it has not."""
    asked = ASKED.get()
    if asked is None:
        return Values({}, {}, {})
    asked.known.update(known)
    fixed, ranges = {}, {}
    for name, text in asked.texts.items():
        if name not in known:
            has = f"has only {', '.join(known)}" if known else "has none that can be set"
            raise ValueError(f"--env-params {name}: {env_id} {has}")
        low, colon, high = text.partition(":")
        ends = [to_number(name, x, known[name]) for x in ((low, high) if colon else (text,))]
        if colon and not ends[0] < ends[1]:
            raise ValueError(f"--env-params {name}={text}: a range is low:high with low < high")
        if colon:
            ranges[name] = tuple(ends)
        else:
            fixed[name] = ends[0]
    traced = {name: x for name, x in (SWEPT.get() or {}).items() if name in fixed}
    return Values(fixed, traced, ranges)


def to_number(name: str, text: str, known: int | float) -> int | float:
    """Return a number of the type of the `known` value; ValueError if the text is of another."""
    what = f"--env-params {name}={text}"
    if not re.fullmatch(NUMBER, text.lower()) or not math.isfinite(float(text)):
        raise ValueError(f"{what}: must be a number, or a range such as 0.5:1.5")
    if isinstance(known, int) and not float(text).is_integer():
        raise ValueError(f"{what}: must be a whole number, as {known}")
    return int(float(text)) if isinstance(known, int) else float(text)
