"""What an algorithm is, and what its Config must satisfy."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args, get_origin

import jax
from jax.core import Tracer


class Algorithm(NamedTuple):
    """Three pure functions, and how often to call them.

    An `act` that has learned a distribution takes `choose`, too: distribution -> action, by default
    its mode.
    """

    init: Callable[[jax.Array], Any]  # key -> State, ready for `update`
    update: Callable  # State, step -> State, metrics: a lax.scan body over the update's index
    act: Callable | None  # params, obs, key -> action: the evaluation policy, for one observation
    num_updates: int
    steps_per_update: int  # environment steps of one update, over all environments
    initial_steps: int = 0  # environment steps taken in `init`
    picture: Callable | None = None  # State of one seed -> arrays to draw  # copied for picture
    # () -> memory at an episode's start; then `act`: params, memory, obs, key -> action, memory
    init_memory: Callable | None = None  # copied for init_memory


BOUNDS = {  # what a number must satisfy, by the first pattern that matches its field's whole name
    "gamma|epsilon.*|.*_lambda|.*_power": "0 <= {} <= 1",
    "tau|.*_fraction": "0 < {} <= 1",
    "num_.*|.*_size|.*_steps|.*_frequency|steps_.*|total_timesteps|n_step|horizon": "{} >= 1",
    ".*_sizes": "all(size >= 1 for size in {})",
    ".*_rate|.*_std|.*_norm|.*_factor|temperature": "{} > 0",
    ".*_coef|.*_noise|.*_clip|.*_starts": "{} >= 0",
}
MAX_INT = 2**31 - 1  # compiled programs count in int32
UNLIMITED = ("total_timesteps", "eval_every")  # counted in Python


def require(config: Any, *conditions: str) -> None:
    """Raise ValueError unless the fields of a Config satisfy BOUNDS and every condition.

    A condition is a Python expression of fields, such as "buffer_size >= learning_starts". One
    that names a single field replaces the bound that follows from that field's name. Floats must
    be finite, integers fit in int32, and Literals be one of their choices. Fields that are traced
    or None are skipped; validate values before vmapping.
    """
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    named = {text: set(re.findall(r"\w+", text)) & set(fields) for text in conditions}
    bounds = {}
    for field in dataclasses.fields(config):
        if get_origin(field.type) is Literal and fields[field.name] not in get_args(field.type):
            choices = ", ".join(map(str, get_args(field.type)))
            raise ValueError(f"{flag(field.name)} {fields[field.name]}: must be one of {choices}")
    for name, value in fields.items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"{flag(name)} {number}: must be a finite number")
            if isinstance(number, int) and abs(number) > MAX_INT and name not in UNLIMITED:
                raise ValueError(f"{flag(name)}: must be at most {MAX_INT:,}")
        bound = next((text for names, text in BOUNDS.items() if re.fullmatch(names, name)), None)
        if bound and {name} not in named.values():
            bounds[bound.format(name)] = {name}
    for text, names in (bounds | named).items():
        is_known = not any(isinstance(fields[name], Tracer | None) for name in names)
        if is_known and not eval(text, {"all": all, "len": len}, fields):
            values = " ".join(f"{flag(name)} {fields[name]}" for name in fields if name in names)
            raise ValueError(f"{values}: must satisfy {text}")


def flag(name: str) -> str:
    """Return the command-line flag of a field."""
    return "--" + name.replace("_", "-")
