"""What the tests share."""

import contextlib
import dataclasses
import functools
import gc
import importlib
import io
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from probes import ALL_PROBES, CONTINUOUS, CONTINUOUS_VALUES, GAMMA, best_actions

from common.buffers import uniform_buffer
from common.environments.tabular import TABULAR, make_mdp
from common.envs import Transition, episode_metrics, make_env, rollout
from common.exploration import random_policy
from common.networks import ensemble, make_network, make_q_network
from common.run import main
from common.runner import checkpoint
from common.runner.program import init_run, run_updates

ROOT = Path(__file__).parent.parent
ALGORITHMS = sorted(path.stem for path in (ROOT / "algorithms").glob("[a-z]*.py"))
# One of each family, for what is not worth a compilation of every file in the quick tier.
FAMILIES = ["value_iteration", "q_learning", "n_step_dqn", "ppo", "sac", "lqr", "mcts", "pets"]
SMALL = {
    "total_timesteps": 1_200,
    "learning_starts": 200,
    "buffer_size": 1_000,
    "batch_size": 16,
    "hidden_sizes": (16,),
    "num_sweeps": 20,
    "num_steps": 20,
    "steps_per_update": 20,
    "steps_per_fit": 20,
    "num_riccati_steps": 20,
    "num_vae_updates": 1,
    "num_rnn_updates": 2,
    "num_generations": 3,
    "num_dreams": 4,
    "num_cem_rounds": 3,
    "num_rounds": 3,
    "num_starts": 3,
    "num_iterations": 3,
    "num_samples": 16,
    "num_elites": 4,
    "horizon": 4,
    "gradient_steps": 4,
    "memory_size": 8,
    "episodic_memory_size": 16,
    "embedding_size": 4,
    "num_simulations": 20,
    "num_episodes": 2,
    "num_rollouts": 5,
    "updates_per_step": 1,
    "cg_damping": 1.0,  # what is nearly singular amplifies the last bits
}


def small_config(module, **fields):
    """The file's Config at a size that compiles and runs in a moment."""
    known = {field.name: type(field.default) for field in dataclasses.fields(module.Config)}
    small = {k: x for k, x in SMALL.items() if known.get(k) is type(x)}  # lqr's horizon is a word
    return module.Config(**small | {k: x for k, x in fields.items() if k in known})


def load(name: str):
    return importlib.import_module(f"algorithms.{name}")


def random_env(module) -> str:
    """An environment in which two seeds must differ: a random MDP where only MDPs are solved, and a
    random linear system where only those are."""
    config = small_config(module)
    if hasattr(config, "total_timesteps"):
        return config.env_id
    if config.env_id == "RandomMaze-tabular":  # random already
        return config.env_id
    kind = config.env_id.rpartition("-")[2]
    return {"tabular": "Garnet-tabular", "linear": "Random-linear"}.get(kind, config.env_id)


@functools.lru_cache(maxsize=2)
def small_algorithm(name):
    """An algorithm at that size where two seeds must differ, in float64: tests that train it, in
    `float64()`, share programs."""
    module = load(name)
    with float64():
        return module.make(small_config(module, env_id=random_env(module)))


float64 = functools.partial(jax.enable_x64, True)


def keys(*seeds: int):
    return jax.vmap(jax.random.key)(jnp.array(seeds))


LONG = {"xla_backend_optimization_level": 1}  # what runs for long is worth a longer compilation


def trained(algorithm, seeds, stop: int, start: int = 0, progress=None, long=False):
    """The RunState after updates `start` to `stop - 1` of those seeds; it uses up its argument.
    One that is `long` is compiled with LONG."""
    init, step = programs(algorithm, long)
    progress = init(keys(*seeds)) if progress is None else progress
    return step(progress, jnp.int32(start), jnp.int32(stop), jnp.bool_(start == 0))


@functools.lru_cache(maxsize=8)
def programs(algorithm, long=False):
    """`init_run` and `run_updates` of an algorithm, jitted."""
    init = jax.jit(lambda keys: init_run(algorithm.init, algorithm.update, keys))
    updates = lambda *args: run_updates(algorithm.update, *args)
    return init, jax.jit(updates, donate_argnums=0, compiler_options=LONG if long else None)


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


def run_here(name, *arguments, check: int | None = 0):
    """What `run` does, in this process, which has imported JAX: `name` is a module with a `main`,
    or one of algorithms/, whose `main(Config, make)` is called. Its completed process."""
    module = importlib.import_module(name)
    is_algorithm = name.startswith("algorithms.")
    call = functools.partial(main, module.Config, module.make) if is_algorithm else module.main
    code, out, err = 0, io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name.rpartition(".")[2], *map(str, arguments)])
        patch.setattr(gc, "freeze", lambda: None)  # it would keep what other tests have left
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                call()
        except SystemExit as stop:
            code = stop.code
    done = subprocess.CompletedProcess(arguments, code or 0, out.getvalue(), err.getvalue())
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


def first_act(algorithm):
    """`params, obs, key -> action` at the start of an episode, with or without memory."""
    if getattr(algorithm, "init_memory", None) is None:
        return algorithm.act
    return lambda params, *inputs: algorithm.act(params, algorithm.init_memory(), *inputs)[0]


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


def check_picture_of_values(algorithm, exact, policy):
    """The picture of a prediction shows what seed 0 has learned, beside the exact values."""
    state = jax.tree.map(lambda x: x[0], trained(algorithm, [0], algorithm.num_updates).state)
    picture = algorithm.picture(state)
    np.testing.assert_array_equal(picture["value"], state.params)
    np.testing.assert_allclose(picture["exact"], exact, atol=1e-6)
    np.testing.assert_array_equal(picture["policy"], policy)


def histories(algorithm, metric, num_seeds, long=True):
    """The last States of seeds 0, 1, ..., and that metric of their updates, [S, T]."""
    train = jax.vmap(lambda key: history(algorithm, metric, key))
    train = jax.jit(train, compiler_options=LONG if long else None)
    states, values = train(keys(*range(num_seeds)))
    return states, np.asarray(values)


def episode_returns(algorithm, num_seeds):
    """The returns of the episodes of seeds 0, 1, ..., in order; one step an update."""
    _, returns = histories(algorithm, "episode_return", num_seeds)
    return [x[~np.isnan(x)] for x in returns]


# Probes: what is learned is compared with the values that are known, and with the best actions.


def check_probe(module, config, values_of, tolerance, long=True):
    """Two seeds learn the values of the probe that `config` names, to `tolerance(value)`, and the
    best actions. `values_of(config, state, obs)` gives the values [S] of one seed's State; it is
    jitted where the policy has no memory, and plays itself where it has one."""
    tables, values = ALL_PROBES[config.env_id.replace("Vector-", "-")]
    algorithm = module.make(config)
    obs = jnp.arange(len(tables[0]))
    obs = jax.nn.one_hot(obs, len(obs)) if "Vector-" in config.env_id else obs
    run_state = trained(algorithm, [0, 1], algorithm.num_updates, long=long)
    jit = jax.jit if algorithm.init_memory is None else lambda function: function
    values_of_state = jit(lambda state: values_of(config, state, obs))
    act = jax.jit(jax.vmap(first_act(algorithm), (None, 0, None)))
    for state in each(run_state.state, 2):
        learned = np.asarray(values_of_state(state))
        for s, value in values.items():
            assert abs(learned[s] - value) <= tolerance(value), (s, learned[s], value)
        actions = act(state.params, obs, jax.random.key(0))
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
    network = make_network(make_env(config.env_id, 1), config.hidden_sizes, 2)
    return network.apply(state.params, obs).max(-1)


def check_q_probe(module, name, values_of=q_network_values, tolerance=0.03, **fields):
    """What is learned from replay has the values of the probe, relative to at least 2."""
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
    check_probe(module, config, values_of, lambda value: tolerance * max(abs(value), 2))


def critic_values(config, state, obs):
    """V of `state.critic_params`, a network with tanh."""
    critic = make_network(make_env(config.env_id, 1), config.hidden_sizes, 1, jnp.tanh)
    return critic.apply(state.critic_params, obs)[:, 0]


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
    check_probe(module, config, values_of, lambda value: 0.05 * max(abs(value), 2), long=False)


def check_always_cut(module, **fields):
    """Where the time limit cuts every step, each of reward 1, the value is still 1 / (1 - γ)."""
    defaults = {"env_id": "Cut-probe", "num_envs": 4, "gamma": GAMMA, "hidden_sizes": (16,)}
    algorithm = module.make(config_of(module, defaults, **fields))
    _, values = histories(algorithm, "value", 2, long=False)
    np.testing.assert_allclose(values[:, -1], 1 / (1 - GAMMA), rtol=0.05)


def twin_critic_values(config, state, obs, action):
    """Q of the first of the two networks `state.critic_params`."""
    critics = ensemble(make_q_network(make_env(config.env_id, 1), config.hidden_sizes), 2)
    return critics.apply(state.critic_params, obs, action)[0]


def check_continuous_probe(
    module, values_of, expected=lambda state: CONTINUOUS_VALUES, tolerance=0.1, **fields
):
    """Two seeds learn the values of the Continuous-probe within 0.1, and the best actions within
    `tolerance`. `values_of(config, state, obs, action)` gives Q [S] for actions in [-1, 1]."""
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
    run_state = trained(algorithm, [0, 1], algorithm.num_updates, long=True)
    act = jax.jit(jax.vmap(first_act(algorithm), (None, 0, None)))
    q_values = jax.jit(lambda state, actions: values_of(config, state, obs, (actions - 1) / 2))
    for state in each(run_state.state, 2):
        actions = act(state.params, obs, jax.random.key(0))
        values = q_values(state, actions)
        np.testing.assert_allclose(values, expected(state), atol=0.1)
        for s in (4, 5):
            np.testing.assert_allclose(actions[s, 0], CONTINUOUS["best"][s], atol=tolerance)


# One update of deep Q-learning, against the loss and its gradient worked out in the test.


class Update(NamedTuple):
    config: Any
    algorithm: Any
    state: Any  # before the update
    metrics: dict
    batch: Any  # drawn from the replay [B, ...]
    gradient: Any


def first_update(module, **fields) -> Update:
    """Update 0 of a State whose networks differ and whose transitions have all kinds of ends."""
    defaults = {
        "env_id": "TogetherVector-probe",
        "total_timesteps": 1_000,
        "learning_starts": 300,
        "buffer_size": 500,
        "batch_size": 64,
        "hidden_sizes": (16,),
        "num_envs": 5,
        "gamma": GAMMA,
    }
    config = config_of(module, defaults, **fields)
    algorithm = module.make(config)
    init, update = jax.jit(algorithm.init), jax.jit(algorithm.update)
    state = init(jax.random.key(0))
    rng = np.random.default_rng(0)
    flags = {"terminated", "truncated"} & set(state.buffer._fields)
    ends = {flag: jnp.array(rng.random(config.buffer_size) < 0.5) for flag in sorted(flags)}
    state = state._replace(
        target_params=init(jax.random.key(1)).params, buffer=state.buffer._replace(**ends)
    )
    after, metrics = update(state, jnp.int32(0))
    buffer = uniform_buffer(config.buffer_size, config.num_envs, config.batch_size)
    key_sample = jax.random.split(jax.random.fold_in(state.key, 0))[1]
    num_rounds = config.learning_starts // config.num_envs + 1
    batch = jax.jit(buffer.sample)(after.buffer, key_sample, num_rounds)
    gradient = jax.tree.map(lambda mean: mean / (1 - 0.9), after.opt_state[0].mu)  # of Adam
    return Update(config, algorithm, state, metrics, batch, gradient)


def check_td_loss(update, q, next_values):
    """The loss is the mean of (r + γ (1 - d) V(s') - Q(s, a))² over the batch, where V(s') is
    `next_values` [B] and Q is `q(params, obs)` [B, A]; its gradient is that of Q(s, a) alone."""
    batch = update.batch
    if "truncated" in batch._fields:
        ends = set(zip(batch.terminated.tolist(), batch.truncated.tolist(), strict=True))
        assert len(ends) == 4
    discount = getattr(batch, "discount", update.config.gamma)
    targets = batch.reward + discount * ~batch.terminated * next_values

    def loss(params):
        values = jnp.take_along_axis(q(params, batch.obs), batch.action[:, None], axis=-1)
        return jnp.mean((targets - values[:, 0]) ** 2)

    check_loss(update, loss)


def check_loss(update, loss):
    """The update has the value of `loss(params)` and descends its gradient."""
    expected, gradient = jax.jit(jax.value_and_grad(loss))(update.state.params)
    np.testing.assert_allclose(update.metrics["loss"], expected, rtol=1e-5)
    for got, want in pairs(update.gradient, gradient):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


# A rollout to check an actor-critic's update on.


def random_rollout(env, policy, state, key, num_steps):
    """In place of `rollout`: transitions with random observations and rewards, with all kinds of
    ends, and the policy's actions. `next_obs` is the next `obs` unless the episode ends."""
    key_obs, key_action, key_reward, key_end = jax.random.split(key, 4)
    shape = num_steps, env.num_envs
    obs, next_obs = jax.random.normal(key_obs, (2, *shape, *env.obs_shape))
    action = jax.vmap(policy)(obs, jax.random.split(key_action, num_steps))
    reward = jax.random.normal(key_reward, shape)
    terminated, truncated = jax.random.bernoulli(key_end, 0.3, (2, *shape))
    ends = (terminated | truncated).at[-1].set(True)[..., None]
    next_obs = jnp.where(ends, next_obs, jnp.roll(obs, -1, axis=0))
    transitions = Transition(obs, action, reward, next_obs, terminated, truncated)
    return state, transitions, episode_metrics(state.episode)


def with_all_ends(monkeypatch, module, num_steps, num_envs):
    """Let the rollouts of a module end at random in all four ways; return a list that will hold the
    Transitions [T, N, ...] of each, as NumPy arrays."""
    ends = jnp.array(np.random.default_rng(0).random((2, num_steps, num_envs)) < 0.3)
    seen = []

    def rollout_with_ends(*inputs):
        state, transitions, episodes = rollout(*inputs)
        transitions = transitions._replace(terminated=ends[0], truncated=ends[1])
        jax.debug.callback(lambda x: seen.append(jax.tree.map(np.asarray, x)), transitions)
        return state, transitions, episodes

    monkeypatch.setattr(module, "rollout", rollout_with_ends)
    return seen


def gae_by_double_sum(error, done, decay):
    """A_t = Σ_k decay^k δ_{t+k}, over the rest of the episode, from δ and done [T, ...]."""
    advantage = np.zeros_like(error)
    for t in range(len(error)):
        goes_on = np.ones_like(done[t])
        for k in range(t, len(error)):
            advantage[t] += goes_on * decay ** (k - t) * error[k]
            goes_on = goes_on & ~done[k]
    return advantage


def tanh_mlp(params, x):
    """A multi-layer perceptron, without common/networks.py."""
    for w, b in params[:-1]:
        x = jnp.tanh(x @ w + b)
    return x @ params[-1][0] + params[-1][1]


# One step of a table on the random walk, against its equation.


def check_table_steps(module, monkeypatch, next_values, **fields):
    """Every step moves one entry of the table to Q + α n^-½ [r + γ (1 - d) V(s') - Q], at its n-th
    visit, whichever way it ends: it may terminate, be truncated by a limit of 5 steps, neither or
    both.

    V(s') is one of `next_values(q, entry, next_obs)`, from the table before the step; an entry is
    (s, a), or (i, s, a) where there are several tables.
    """
    walk = make_mdp("RandomWalk5-tabular")
    cut = TABULAR["RandomWalk5-tabular"]._replace(max_steps=5)
    monkeypatch.setitem(TABULAR, "Cut-tabular", cut)
    defaults = {
        "env_id": "Cut-tabular",
        "total_timesteps": 300,
        "steps_per_update": 1,
        "learning_rate": 0.25,
        "learning_rate_power": 0.5,
        "gamma": 0.5,
        "epsilon": 0.8,
    }
    algorithm = module.make(config_of(module, defaults, **fields))
    state = jax.jit(algorithm.init)(jax.random.key(0))
    state = state._replace(params=jax.random.normal(jax.random.key(1), state.params.shape))
    update, time, ends = jax.jit(algorithm.update), 0, set()
    for step in range(300):
        before, (state, _) = state, update(state, jnp.int32(step))
        (entry,) = np.argwhere(np.asarray(state.visits != before.visits))
        entry, (s, action) = tuple(entry), entry[-2:]
        next_s = s + [-1, 1][action]
        terminated, truncated = bool(walk.terminal[next_s]), time == 4
        ends.add((terminated, truncated))
        time = 0 if terminated or truncated else time + 1

        q, expected = np.asarray(before.params), np.array(before.params)
        bootstraps = 0.5 * (not terminated) * np.ravel(next_values(q, entry, next_s))
        targets = walk.R[s, action, next_s] + bootstraps
        alpha = 0.25 * float(state.visits[entry]) ** -0.5
        learned = q[entry] + alpha * (targets - q[entry])
        expected[entry] = learned[np.abs(learned - state.params[entry]).argmin()]
        np.testing.assert_allclose(state.params, expected, rtol=1e-5, atol=1e-6)
    assert len(ends) == 4


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
    mdp = make_mdp("CliffWalking-tabular")
    true = np.zeros(q.shape[1:])
    for _ in range(1_000):
        v = (1 - target_epsilon) * true.max(-1) + target_epsilon * true.mean(-1)
        true = np.sum(mdp.P * (mdp.R + v), axis=-1)
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
    return jax.tree.map(lambda x: np.asarray(x)[start:stop], state.buffer)


def relu_mlp(params, x):
    """A multi-layer perceptron, without common/networks.py."""
    for w, b in params[:-1]:
        x = jnp.maximum(x @ w + b, 0)
    return x @ params[-1][0] + params[-1][1]


class ContinuousUpdate(NamedTuple):
    config: Any
    before: Any  # State
    after: Any
    metrics: dict
    batch: Any  # drawn from the replay [B, ...]
    keys: Any  # of the update


def first_continuous_update(module, num_keys, which_samples, **fields) -> ContinuousUpdate:
    """Update 0 of a State whose target networks are other ones and whose transitions have all kinds
    of ends. It splits its key into `num_keys`, and samples with that number `which_samples`."""
    config = small_continuous(module, **{"batch_size": 64, "gamma": GAMMA} | fields)
    algorithm = module.make(config)
    init = jax.jit(algorithm.init)
    before = init(jax.random.key(0))
    rng = np.random.default_rng(0)
    flags = jnp.array(rng.random((2, len(before.buffer.reward))) < 0.5)
    before = before._replace(
        target_params=init(jax.random.key(1)).target_params,
        buffer=before.buffer._replace(terminated=flags[0], truncated=flags[1]),
    )
    after, metrics = jax.jit(algorithm.update)(before, jnp.int32(0))
    keys = jax.random.split(jax.random.fold_in(before.key, 0), num_keys)
    buffer = uniform_buffer(config.buffer_size, config.num_envs, config.batch_size)
    batch = jax.jit(buffer.sample)(after.buffer, keys[which_samples], 2_000 // config.num_envs + 1)
    assert len(set(zip(batch.terminated.tolist(), batch.truncated.tolist(), strict=True))) == 4
    return ContinuousUpdate(config, before, after, metrics, batch, keys)


def check_gradient(opt_state, loss, params):
    """Adam's first moment, after its first step, is a tenth of the gradient of `loss(params)`."""
    mean = optax.tree_utils.tree_get(opt_state, "mu")
    for got, expected in pairs(mean, jax.jit(jax.grad(loss))(params)):
        np.testing.assert_allclose(10 * got, expected, rtol=1e-4, atol=1e-6)


def relu_q(params, obs, action):
    """Q(s, a) of a multi-layer perceptron, [B], or of two of them, [B, 2]."""
    x = jnp.concatenate([obs, action], axis=-1)
    if params[0][0].ndim == 2:
        return relu_mlp(params, x)[:, 0]
    return jax.vmap(relu_mlp, (0, None), out_axes=-1)(params, x)[:, 0]


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


# Learning from data that are there before training.


def play_at_random(monkeypatch, module):
    """Let the episodes in the data be those of random actions, in any environment."""
    monkeypatch.setattr(module, "make_expert", lambda env_id, env, run: random_policy(env))


class OfflineUpdate(NamedTuple):
    config: Any
    algorithm: Any
    before: Any  # State
    after: Any
    metrics: dict
    key_step: Any  # of the gradient step
    key_batch: Any  # of the metrics


def first_offline_update(module, monkeypatch, **fields) -> OfflineUpdate:
    """Update 0, one gradient step, of a State whose target networks are other ones and whose data
    have all kinds of ends."""
    play_at_random(monkeypatch, module)
    defaults = {"num_episodes": 100, "num_iterations": 1, "gradient_steps": 1, "batch_size": 64}
    defaults |= {"hidden_sizes": (16,), "gamma": GAMMA, "policy_frequency": 1}
    config = config_of(module, defaults, **fields)
    algorithm = module.make(config)
    init = jax.jit(algorithm.init)
    before = init(jax.random.key(0))
    transitions = before.dataset.transitions
    ends = jnp.array(np.random.default_rng(0).random((2, len(transitions.reward))) < 0.5)
    transitions = transitions._replace(terminated=ends[0], truncated=ends[1])
    before = before._replace(
        target_params=init(jax.random.key(4)).target_params,
        dataset=before.dataset._replace(transitions=transitions),
    )
    after, metrics = jax.jit(algorithm.update)(before, jnp.int32(0))
    key_steps, key_batch = jax.random.split(jax.random.fold_in(before.key, 0))
    (key_step,) = jax.random.split(key_steps, 1)
    return OfflineUpdate(config, algorithm, before, after, metrics, key_step, key_batch)


def all_ends(batch):
    """The batch, which must have transitions that terminate, are truncated, both and neither."""
    assert len(set(zip(batch.terminated.tolist(), batch.truncated.tolist(), strict=True))) == 4
    return batch
