"""For copies: `make_expert` of the repository with fewer experts, and what reads a file, with fewer
checks: `read_dataset` or `read_transitions`, each whole, since a copy takes one of them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from common.datasets import Data, Dataset, sample_rows, unscale_action
from common.environments.experts import CONTROLLERS
from common.envs import Env, Transition


def read_dataset(path: str, env_id: str, env: Env) -> Dataset:
    """Return the transitions of a file of `python -m common.record` in manyseeds."""
    with np.load(path) as file:
        fields = {name: jnp.asarray(file[name]) for name in Transition._fields}
    fields["action"] = unscale_action(env, fields["action"])
    data = Data(Transition(**fields), len(fields["reward"]))
    return Dataset(lambda key: (), lambda _: data, lambda _, *args: sample_rows(data, *args))


def read_transitions(path: str, env_id: str, env: Env) -> Transition:
    """Return what a file of `python -m common.record` in manyseeds holds; [D, ...]."""
    with np.load(path) as file:
        fields = {name: jnp.asarray(file[name]) for name in Transition._fields}
    fields["action"] = unscale_action(env, fields["action"])
    return Transition(**fields)


def make_expert(env_id: str, env: Env, run: str = "") -> Callable:
    """Return the expert of an environment, or raise ValueError; a copy cannot load runs."""
    if run or env_id not in CONTROLLERS:
        raise ValueError(f"--expert: this copy has those of {', '.join(CONTROLLERS)} alone")
    return lambda obs, key: unscale_action(env, jax.vmap(CONTROLLERS[env_id])(obs))
