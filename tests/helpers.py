"""What the tests share."""

import dataclasses
import functools
import importlib
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import ALL_PROBES, CONTINUOUS, CONTINUOUS_VALUES, GAMMA, best_actions

from common.buffers import unpack
from common.environments.tabular import make_mdp
from common.envs import Transition, make_env
from common.networks import critic_for, ensemble, network_for
from common.runner import checkpoint
from common.runner.program import init_run, run_updates

ROOT = Path(__file__).parent.parent
ALGORITHMS = sorted(
    path.stem for path in (ROOT / "algorithms").glob("*.py") if path.stem != "__init__"
)
SMALL = {
    "total_timesteps": 1_200,
    "learning_starts": 200,
    "buffer_size": 1_000,
    "batch_size": 16,
    "hidden_sizes": (16,),
    "num_sweeps": 20,
    "num_steps": 20,
    "num_starts": 3,
    "num_iterations": 3,
    "num_samples": 16,
    "num_elites": 4,
    "horizon": 4,
    "gradient_steps": 20,
}


def small_config(module, **fields):
    """The file's Config at a size that compiles and runs in a moment."""
    known = {field.name for field in dataclasses.fields(module.Config)}
    return module.Config(**{k: x for k, x in (SMALL | fields).items() if k in known})


def load(name: str):
    return importlib.import_module(f"algorithms.{name}")


def keys(*seeds: int):
    return jax.vmap(jax.random.key)(jnp.array(seeds))


def trained(algorithm, seeds, stop: int, start: int = 0, progress=None):
    """The RunState after updates `start` to `stop - 1` of those seeds; it uses up its argument."""
    init, step = programs(algorithm)
    progress = init(keys(*seeds)) if progress is None else progress
    return step(progress, jnp.int32(start), jnp.int32(stop), jnp.bool_(start == 0))


@functools.lru_cache(maxsize=2)
def programs(algorithm):
    """`begin` and `advance` of an algorithm as standalone copies jit them."""
    # Of what conftest.py asks of XLA this makes float64 depend on the batch, by more than 1e-9.
    exact = jax.config.jax_enable_x64 and "fusion_emitters" in os.environ.get("XLA_FLAGS", "")
    jit = functools.partial(
        jax.jit, compiler_options={"xla_cpu_use_fusion_emitters": True} if exact else None
    )
    init = jit(lambda keys: init_run(algorithm.init, algorithm.update, keys))
    return init, jit(lambda *args: run_updates(algorithm.update, *args), donate_argnums=0)


def to_bits(tree) -> dict[str, tuple]:
    """Shape, type and bytes of every leaf, by path name."""
    arrays = checkpoint.named_arrays(tree)
    return {name: (x.shape, str(x.dtype), x.tobytes()) for name, x in arrays.items()}


def run(*arguments, check: int | None = 0, timeout: float = 240, **kwargs):
    """`python -m <arguments>` in the repository; its completed process."""
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=kwargs.pop("cwd", ROOT),
        env={**os.environ, **kwargs.pop("env", {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        **kwargs,
    )
    if check is not None:
        assert done.returncode == check, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


# What an error or a target may take from the next state.
every_end = pytest.mark.parametrize(
    "terminated, truncated, bootstraps",
    [
        (False, False, True),
        (True, False, False),  # the MDP ended
        (False, True, True),  # only the clock ran out
        (True, True, False),
    ],
)


def config_of(module, defaults, **fields):
    """The file's Config with those fields, and of the defaults those that it knows."""
    known = {field.name for field in dataclasses.fields(module.Config)}
    return module.Config(**{k: x for k, x in defaults.items() if k in known} | fields)


def states_of(algorithm, num_updates):
    """The States of seed 0: that of `init`, and that after each update."""
    update = jax.jit(algorithm.update)
    states = [jax.jit(algorithm.init)(jax.random.key(0))]
    for step in range(num_updates):
        states.append(update(states[-1], jnp.int32(step))[0])
    return states


def history(algorithm, metric, key):
    """The last State, and that metric of every update, [T]."""

    def update(state, step):
        state, metrics = algorithm.update(state, step)
        return state, metrics[metric]

    return jax.lax.scan(update, algorithm.init(key), jnp.arange(algorithm.num_updates))


def histories(algorithm, metric, num_seeds):
    """The last States of seeds 0, 1, ..., and that metric of their updates, [S, T]."""
    states, values = jax.jit(jax.vmap(lambda key: history(algorithm, metric, key)))(
        keys(*range(num_seeds))
    )
    return states, np.asarray(values)


def episode_returns(algorithm, num_seeds):
    """The returns of the episodes of seeds 0, 1, ..., in order; one step an update."""
    _, returns = histories(algorithm, "episode_return", num_seeds)
    return [x[~np.isnan(x)] for x in returns]


# Probes: what is learned is compared with the values that are known, and with the best actions.


def check_probe(module, config, values_of, tolerance):
    """Two seeds learn the values of the probe that `config` names, to `tolerance(value)`, and the
    best actions. `values_of(config, state, obs)` gives the values [S] of one seed's State."""
    tables, values = ALL_PROBES[config.env_id.replace("Vector-", "-")]
    algorithm = module.make(config)
    obs = jnp.arange(len(tables[0]))
    obs = jax.nn.one_hot(obs, len(obs)) if "Vector-" in config.env_id else obs
    for state in each(trained(algorithm, [0, 1], algorithm.num_updates).state, 2):
        learned = np.asarray(values_of(config, state, obs))
        for s, value in values.items():
            assert abs(learned[s] - value) <= tolerance(value), (s, learned[s], value)
        actions = jax.vmap(algorithm.act, (None, 0, None))(state.params, obs, jax.random.key(0))
        for s, action in best_actions(tables).items():
            assert actions[s] == action, (s, actions[s])


def each(states, num_seeds):
    """The State of each seed, of States with a first axis of seeds."""
    one = jax.jit(lambda seed: jax.tree.map(lambda x: x[seed], states))
    return [one(seed) for seed in range(num_seeds)]


def check_table_probe(module, name, table=lambda params: params, **fields):
    """`table(params)`, Q [S, A], has the values of the probe within 1 %. In the probes an action
    matters at most on the last step, so an ε-greedy policy is worth as much as the greedy one."""
    defaults = {
        "env_id": name,
        "total_timesteps": 8_000,
        "gamma": GAMMA,
        "epsilon": 0.2,
        "learning_rate": 0.2,
    }
    values_of = lambda config, state, obs: table(state.params)[obs].max(-1)
    config = config_of(module, defaults, **fields)
    check_probe(module, config, values_of, lambda value: 0.01 * abs(value))


def q_network_values(config, state, obs):
    """max Q of `state.params`, a network with ReLU for two actions."""
    network = network_for(make_env(config.env_id, 1), config.hidden_sizes, 2)
    return network.apply(state.params, obs).max(-1)


def check_q_probe(module, name, values_of=q_network_values, **fields):
    """What is learned from replay has the values of the probe within 3 %."""
    defaults = {
        "env_id": name,
        "total_timesteps": 16_000,
        "num_envs": 4,
        "gamma": GAMMA,
        "learning_starts": 400,
        "buffer_size": 2_000,
        "batch_size": 32,
        "learning_rate": 3e-3,
        "target_network_frequency": 20,
        "hidden_sizes": (32,),
    }
    config = config_of(module, defaults, **fields)
    check_probe(module, config, values_of, lambda value: 0.03 * max(abs(value), 2))


def critic_values(config, state, obs):
    """V of `state.critic`, a network with tanh."""
    critic = network_for(make_env(config.env_id, 1), config.hidden_sizes, 1, jnp.tanh)
    return critic.apply(state.critic, obs)[:, 0]


def check_actor_critic_probe(module, name, values_of=critic_values, **fields):
    """The critic has the values of the probe within 5 %, and the actor the best actions."""
    defaults = {
        "env_id": name,
        "num_envs": 4,
        "gamma": GAMMA,
        "ent_coef": 0.0,
        "hidden_sizes": (16,),
    }
    config = config_of(module, defaults, **fields)
    check_probe(module, config, values_of, lambda value: 0.05 * max(abs(value), 2))


def twin_critic_values(config, state, obs, action):
    """Q of the first of the two networks `state.critic_params`."""
    critics = ensemble(critic_for(make_env(config.env_id, 1), config.hidden_sizes), 2)
    return critics.apply(state.critic_params, obs, action)[0]


def check_continuous_probe(module, values_of, expected=lambda state: CONTINUOUS_VALUES, **fields):
    """Two seeds learn the values of the Continuous-probe within 0.1, and the best actions.
    `values_of(config, state, obs, action)` gives Q [S] for actions in [-1, 1]."""
    defaults = {
        "env_id": "Continuous-probe",
        "total_timesteps": 12_000,
        "num_envs": 4,
        "gamma": GAMMA,
        "learning_starts": 400,
        "buffer_size": 2_000,
        "batch_size": 64,
        "learning_rate": 3e-3,
        "tau": 0.05,
        "exploration_noise": 0.2,
        "hidden_sizes": (32,),
    }
    config = config_of(module, defaults, **fields)
    algorithm = module.make(config)
    obs = jnp.eye(8)[:7]
    for state in each(trained(algorithm, [0, 1], algorithm.num_updates).state, 2):
        actions = jax.vmap(algorithm.act, (None, 0, None))(state.params, obs, jax.random.key(0))
        values = values_of(config, state, obs, (actions - 1) / 2)
        np.testing.assert_allclose(values, expected(state), atol=0.1)
        for s in (4, 5):
            np.testing.assert_allclose(actions[s, 0], CONTINUOUS["best"][s], atol=0.1)


# Tables on the cliff of Sutton & Barto 2018, Example 6.6.


def online_return(episodes):
    """The mean return of episodes 401 to 500, which every seed must have played."""
    assert min(map(len, episodes)) >= 500
    return np.mean([returns[400:500] for returns in episodes])


def error_on_the_cliff(algorithm, num_seeds, target_epsilon=0.0):
    """The largest error of the learned Q over all states and actions that can be reached, as a part
    of the range of the true values, of each seed. True is Q = r + (1 - ε) max Q + ε mean Q with the
    target's ε."""
    q = np.asarray(trained(algorithm, range(num_seeds), algorithm.num_updates).state.params)
    P, R, *_ = make_mdp("CliffWalking-tabular")
    true = np.zeros(q.shape[1:])
    for _ in range(1_000):
        v = (1 - target_epsilon) * true.max(-1) + target_epsilon * true.mean(-1)
        true = np.sum(P * (R + v), axis=-1)
    visited = np.arange(37)  # the rest is the cliff and the goal
    return np.abs(q - true)[:, visited].max((1, 2)) / np.ptp(true[visited])


# Prediction on the random walk of Sutton & Barto 2018, Example 6.2.


def values_of_the_walk(gamma):
    """v = γ P v + r for five states between two ends; a step from the last of them to the right
    pays 1."""
    walk = make_mdp("RandomWalk5-tabular")
    P = walk.P.mean(1) * ~walk.terminal
    return np.linalg.solve(np.eye(7) - gamma * P, [0, 0, 0, 0, 0, 0.5, 0])


def episodes_of(steps, ends):
    """A list of steps cut into lists, after each of the indices `ends`."""
    return [steps[i:j] for i, j in zip([0, *ends[:-1] + 1], ends + 1, strict=True)]


# Actor and critic with replay and continuous actions.


def parabola(params, obs, action):
    """Q(s, a) = c0 s - (a - c1 s)², for numbers."""
    return params[0] * obs - (action - params[1] * obs) ** 2


def transition_of_numbers(terminated, truncated):
    """From s = 2 by a = 1 to s' = 5, with reward 3."""
    numbers = jnp.float32(2), jnp.float32(1), 3.0, jnp.float32(5)
    return Transition(*numbers, jnp.array(terminated), jnp.array(truncated))


def small_continuous(module, **fields):
    """A Config that fills two thirds of its replay in `init`; the probe's episodes end after 1, 2
    or 8 steps."""
    defaults = {
        "env_id": "Continuous-probe",
        "total_timesteps": 3_000,
        "learning_starts": 2_000,
        "buffer_size": 3_000,
        "batch_size": 16,
        "hidden_sizes": (16,),
        "num_envs": 5,
    }
    return config_of(module, defaults, **fields)


def replayed(state, start, stop):
    """The transitions in those rows of the replay."""
    return jax.tree.map(lambda x: np.asarray(x)[start:stop], unpack(state.buffer))


def relu_mlp(params, x):
    """A multi-layer perceptron, without common/networks.py."""
    for w, b in params[:-1]:
        x = jnp.maximum(x @ w + b, 0)
    return x @ params[-1][0] + params[-1][1]


def check_targets(states, learned, tau):
    """`target_params` start equal to `learned(state)` and then move by τ towards it."""
    for x, target in pairs(learned(states[0]), states[0].target_params):
        np.testing.assert_array_equal(x, target)
    for before, after in pairwise(states):
        mixed = jax.tree.map(
            lambda x, old: tau * x + (1 - tau) * old, learned(after), before.target_params
        )
        for new, expected in pairs(after.target_params, mixed):
            np.testing.assert_allclose(new, expected, rtol=1e-5, atol=1e-7)


def pairs(tree, other):
    """The leaves of two trees, side by side."""
    return zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)


def check_budget(algorithm, initial_steps, total):
    """Steps in `init`, rounded up to whole updates, and in all updates together."""
    assert algorithm.initial_steps == initial_steps
    assert algorithm.initial_steps + algorithm.num_updates * algorithm.steps_per_update == total


def check_mean(samples, exact, deviations=4.5):
    """The mean of samples [S, ...] is the exact gradient within its standard errors, which are a
    few per cent of the gradient."""
    samples = np.concatenate([x.reshape(len(x), -1) for x in jax.tree.leaves(samples)], axis=1)
    exact = np.concatenate([np.ravel(x) for x in jax.tree.leaves(exact)])
    errors = samples.std(0) / np.sqrt(len(samples))
    assert np.linalg.norm(errors) < 0.05 * np.linalg.norm(exact)
    assert np.all(np.abs(samples.mean(0) - exact) <= deviations * errors + 1e-12)
