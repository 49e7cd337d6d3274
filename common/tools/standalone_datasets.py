"""For copies: `read_dataset` and `make_expert` of the repository with fewer checks and experts."""

import json
from collections.abc import Callable

import jax
import numpy as np

from common.datasets import Dataset, sample_rows, to_data, unscale_action
from common.environments.experts import CONTROLLERS
from common.envs import Env


def read_dataset(path: str, env_id: str, env: Env) -> Dataset:
    """Return the transitions of a file of `python -m common.record` in manyseeds."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    header = json.loads(arrays["header"].tobytes())
    if header["env_id"] != env_id:
        raise ValueError(f"--dataset {path} is of {header['env_id']}, not of {env_id}")
    data = to_data(arrays, env)
    return Dataset(lambda key: (), lambda _: data, lambda _, *args: sample_rows(data, *args))


def make_expert(env_id: str, env: Env, run: str = "") -> Callable:
    """Return the expert of an environment, or raise ValueError; a copy cannot load runs."""
    if run or env_id not in CONTROLLERS:
        raise ValueError(f"--expert: this copy has those of {', '.join(CONTROLLERS)} alone")
    return lambda obs, key: unscale_action(env, jax.vmap(CONTROLLERS[env_id])(obs))
