"""Logged transitions to learn from: played by a policy that needs no training, or read from a file.

Continuous actions are in [-1, 1], as `scale_action` takes them.
"""

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from common.buffers import rows
from common.envs import Env, Transition, is_bounded, lazy, rollout
from common.exploration import random_policy


class Data(NamedTuple):
    """Whole episodes, one after the other."""

    transitions: Transition  # [D, ...]
    size: Any  # how many of the D rows hold data: the first ones


class Dataset(NamedTuple):
    """Its state is what one seed's policy played, or () where all seeds share a file."""

    init: Callable  # key -> dataset_state
    data: Callable  # dataset_state -> Data
    sample: Callable  # dataset_state, key, batch_size -> transitions [B, ...]


def play_dataset(env: Env, policy: Callable) -> Dataset:
    """Play one episode of `policy(obs [N, ...], key) -> action` in each of the N environments."""

    def init(key):
        key_reset, key_play = jax.random.split(key)
        _, played, _ = rollout(env, policy, env.reset(key_reset), key_play, env.max_steps)
        return first_episodes(played)

    return Dataset(init, lambda data: data, sample_rows)


def sample_rows(data: Data, key: jax.Array, batch_size: int) -> Transition:
    """Draw transitions uniformly, with replacement; [B, ...]."""
    size = jnp.asarray(data.size).astype(jnp.uint32)
    index = jax.random.bits(key, (batch_size,)) % size  # bias: size / 2^32
    return rows(data.transitions, index)


def first_episodes(transitions: Transition) -> Data:
    """Return the first episode of each environment of a rollout [T, N, ...]."""
    transitions = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), transitions)  # [N, T, ...]
    done = transitions.terminated | transitions.truncated
    is_first = (jnp.cumsum(done, axis=1) - done == 0).ravel()
    order = jnp.argsort(~is_first, stable=True)
    ordered = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[order], transitions)
    return Data(ordered, jnp.sum(is_first, dtype=jnp.int32))


def discounted_visits(
    transitions: Transition, num_states: int, gamma: float
) -> tuple[jax.Array, jax.Array]:
    """Return Σ_t γ^t 1(s_t = s) [S] and Σ_t γ^t r_t of whole episodes [D], means over them; a last
    state counts if it is terminal."""
    done = transitions.terminated | transitions.truncated

    def step(weight, done):
        return jnp.where(done, 1.0, gamma * weight), weight

    weight = jax.lax.scan(step, jnp.ones(()), done)[1]
    visits = jnp.zeros(num_states).at[transitions.obs].add(weight)
    visits = visits.at[transitions.next_obs].add(gamma * weight * transitions.terminated)
    num_episodes = jnp.maximum(done.sum(), 1)
    return visits / num_episodes, weight @ transitions.reward / num_episodes


def noisy_policy(env: Env, policy: Callable, epsilon: jax.Array) -> Callable:
    """Return a policy that takes a random action with probability ε [N], else that of `policy`."""

    def noisy(obs, key):
        key_policy, key_random, key_which = jax.random.split(key, 3)
        action, random_action = policy(obs, key_policy), random_policy(env)(obs, key_random)
        is_random = jax.random.uniform(key_which, epsilon.shape) < epsilon
        is_random = is_random.reshape(-1, *[1] * (action.ndim - 1))
        return jnp.where(is_random, random_action, action)

    return noisy


def unscale_action(env: Env, action: jax.Array) -> jax.Array:
    """Rescale an action from the environment's bounds to [-1, 1]; a discrete one stays as it is."""
    if env.num_actions is not None:  # copied unless actions="continuous"
        return action
    return 2 * (action - env.action_low) / (env.action_high - env.action_low) - 1


def read_dataset(path: str, env_id: str, env: Env) -> Dataset:
    """Return the data set of a file: see `read_transitions`."""
    transitions = read_transitions(path, env_id, env)
    data = Data(transitions, len(transitions.reward))
    return Dataset(lambda key: (), lambda _: data, lambda _, *args: sample_rows(data, *args))


def read_transitions(path: str, env_id: str, env: Env) -> Transition:
    """Return what a file of `python -m common.record` holds, or a Minari dataset; [D, ...].

    ValueError if there is no such file, if it is damaged or empty, or of another environment.
    """
    is_minari = re.fullmatch(r".*-v\d+", path) and not Path(path).exists()
    arrays = read_minari(path) if is_minari else read_recording(path, env_id)
    obs = jax.eval_shape(env.reset, jax.random.key(0)).obs
    is_continuous = env.num_actions is None
    if len(arrays["reward"]) == 0:
        raise ValueError(f"--dataset {path} holds no transitions")
    if is_continuous and not is_bounded(env.action_low, env.action_high):
        raise ValueError(f"--dataset {path}: every action needs finite bounds")
    wanted = {"obs": obs.shape[1:], "next_obs": obs.shape[1:], "action": env.action_shape}
    for name, shape in wanted.items():
        if arrays[name].shape[1:] != tuple(shape):
            text = f"{list(arrays[name].shape[1:])}, not {list(shape)} as in this environment"
            raise ValueError(f"--dataset {path}: each {name} has shape {text}")
    if env.num_states is not None:
        highest = max(arrays[name].max() for name in ("obs", "next_obs"))
        if highest >= env.num_states or arrays["obs"].min() < 0:
            raise ValueError(f"--dataset {path}: states up to {highest}, not {env.num_states - 1}")
    if np.issubdtype(arrays["action"].dtype, np.floating) != is_continuous:
        raise ValueError(f"--dataset {path}: this environment has actions of another kind")
    fields = {name: jnp.asarray(arrays[name]) for name in Transition._fields}
    fields |= {name: fields[name].astype(obs.dtype) for name in ("obs", "next_obs")}
    fields |= {"action": unscale_action(env, fields["action"])}
    fields |= {"reward": fields["reward"].astype(float)}
    return Transition(**fields)


def read_recording(path: str, env_id: str) -> dict[str, np.ndarray]:
    """Return the arrays of a file of `python -m common.record`; ValueError if it cannot be used."""
    try:
        arrays, header = lazy("common.runner.checkpoint", "load")(Path(path))
    except Exception as error:  # a CheckpointError, whose message begins with the path
        raise ValueError(f"--dataset {error}") from error
    if "env_id" not in header or not set(Transition._fields) <= set(arrays):
        raise ValueError(f"--dataset {path}: not a file that python -m common.record wrote")
    if header["env_id"] != env_id:
        raise ValueError(f"--dataset {path} is of {header['env_id']}: choose that with --env-id")
    return arrays


def read_minari(name: str) -> dict[str, np.ndarray]:
    """Return the arrays of a Minari dataset that is on this machine; ValueError if there is none.

    <https://minari.farama.org>
    """
    try:
        minari = importlib.import_module("minari")
        episodes = list(minari.load_dataset(name).iterate_episodes())
    except ImportError as error:
        raise ValueError(f"--dataset {name} needs minari: pip install minari[hdf5]") from error
    except Exception as error:  # of many kinds, by version
        message = "neither a file nor a Minari dataset on this machine"
        raise ValueError(f"--dataset {name}: {message} (minari download {name})") from error
    if not all(isinstance(e.observations, np.ndarray) for e in episodes):
        raise ValueError(f"--dataset {name}: its observations are not arrays")
    columns = {
        "obs": [e.observations[:-1] for e in episodes],
        "action": [e.actions for e in episodes],
        "reward": [e.rewards for e in episodes],
        "next_obs": [e.observations[1:] for e in episodes],
        "terminated": [e.terminations for e in episodes],
        "truncated": [e.truncations for e in episodes],
    }
    return {name: np.concatenate(x) if x else np.zeros(0) for name, x in columns.items()}
