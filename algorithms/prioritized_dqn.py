"""DQN with prioritized experience replay.

Differs from dqn.py in the replay: transition i is drawn in proportion to a power of the last error
δ_i that it had, and its part of the loss weighted down for being drawn too often.

Schaul et al. 2016, Prioritized Experience Replay, https://arxiv.org/abs/1511.05952

    P(i) = p_i^α / Σ_k p_k^α, p_i = |δ_i| + ε                               (1)
    L(θ) = E[w_i δ_i²], w_i ∝ (N P(i))^-β, the largest of the batch 1       (section 3.4)

with δ that of dqn.py and N transitions in memory; new transitions have the largest priority so far,
β rises linearly to 1.

Departs from the paper: β is 1 from the start, where the paper starts at .4 or .5 (which costs a
quarter of the return on CartPole); DQN rather than double DQN; the error is not clipped; otherwise
as dqn.py.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.envs import EnvState, Transition, make_env, rollout
from common.networks import network_for
from common.prioritized import Prioritized, prioritized_buffer
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "CartPole-v1"  # any environment with discrete actions
    total_timesteps: int = 100_000  # environment steps, over all environments
    num_envs: int = 4  # environments stepped in parallel
    train_frequency: int = 1  # steps of each environment between gradient steps
    learning_rate: float = 1e-3  # of Adam
    gamma: float = 0.99  # discount factor
    buffer_size: int = 20_000  # transitions, rounded up to whole updates
    batch_size: int = 64  # transitions
    prioritized_replay_alpha: float = 0.6  # α: 0 draws uniformly
    prioritized_replay_beta: float = 1.0  # β at first, which rises linearly to 1
    prioritized_replay_eps: float = 1e-6  # ε
    learning_starts: int = 1_000  # environment steps at random first, rounded up to whole updates
    target_network_frequency: int = 15  # gradient steps between copies of θ into θ⁻
    tau: float = 1.0  # θ⁻ ← τ θ + (1 - τ) θ⁻ at each copy
    epsilon_start: float = 1.0  # probability of a random action, at first
    epsilon_end: float = 0.1  # and at last
    exploration_fraction: float = 0.2  # of the updates, over which epsilon falls linearly
    hidden_sizes: tuple[int, ...] = (256,)  # units of each hidden layer

    def __post_init__(self):
        require(
            self,
            "num_envs >= 1",
            "train_frequency >= 1",
            "learning_rate > 0",
            "0 <= gamma <= 1",
            "batch_size >= 1",
            "prioritized_replay_alpha >= 0",
            "0 <= prioritized_replay_beta <= 1",
            "prioritized_replay_eps > 0",
            "learning_starts >= 0",
            "buffer_size >= learning_starts",
            "total_timesteps >= learning_starts + 2 * num_envs * train_frequency",
            "target_network_frequency >= 1",
            "0 < tau <= 1",
            "0 <= epsilon_start <= 1",
            "0 <= epsilon_end <= 1",
            "0 < exploration_fraction <= 1",
            "all(size >= 1 for size in hidden_sizes)",
        )


class State(NamedTuple):
    key: jax.Array
    params: Any  # θ
    target_params: Any  # θ⁻
    opt_state: optax.OptState
    buffer: Prioritized  # [capacity, ...]
    env: EnvState


def td_error(params, target_params, transition: Transition, q, gamma) -> jax.Array:
    """δ = r + γ (1 - d) max_a' Q(s', a'; θ⁻) - Q(s, a; θ), for one transition."""
    obs, action, reward, next_obs, terminated, _ = transition
    target = reward + gamma * (1 - terminated) * jnp.max(q(target_params, next_obs))
    return jax.lax.stop_gradient(target) - q(params, obs)[action]


def priority(error, alpha, eps) -> jax.Array:
    """p^α, p = |δ| + ε."""
    return (jnp.abs(error) + eps) ** alpha


def importance_weights(probability, beta) -> jax.Array:
    """w_i = (N P(i))^-β / max_j (N P(j))^-β of a batch [B], in which N cancels."""
    return (probability / jnp.min(probability)) ** -beta


def epsilon_greedy(key, q_values, epsilon) -> jax.Array:
    """argmax_a q_values [N, A] with probability 1 - ε, else a uniformly random action; [N]."""
    greedy = jnp.argmax(q_values, axis=-1)
    explore, action = jax.random.uniform(key, (2, *greedy.shape))
    random = (action * q_values.shape[-1]).astype(greedy.dtype)
    return jnp.where(explore < epsilon, random, greedy)


def linear_decay(step, start, end, num_steps) -> jax.Array:
    """From `start` at step 0 to `end` at `num_steps`, and `end` from there on."""
    return start + (end - start) * jnp.minimum(step / num_steps, 1)


def make(config: Config) -> Algorithm:
    env = make_env(config.env_id, config.num_envs, actions="discrete")
    network = network_for(env, config.hidden_sizes, env.num_actions)
    optimizer = optax.adam(config.learning_rate)
    steps_per_update = config.num_envs * config.train_frequency
    buffer = prioritized_buffer(config.buffer_size, steps_per_update, config.batch_size)
    num_warmup = -(-config.learning_starts // steps_per_update)  # updates' worth of random steps
    num_updates = config.total_timesteps // steps_per_update - num_warmup

    def loss(params, target_params, batch, weights):
        def error(transition):
            return td_error(params, target_params, transition, network.apply, config.gamma)

        errors = jax.vmap(error)(batch)
        return jnp.mean(weights * jnp.square(errors)), errors

    def init(key):
        key, key_params, key_env, key_warmup = jax.random.split(key, 4)
        params = network.init(key_params)

        def random(obs, key):
            return jax.random.randint(key, (config.num_envs,), 0, env.num_actions)

        num_steps = num_warmup * config.train_frequency
        env_state, warmup, _ = rollout(env, random, env.reset(key_env), key_warmup, num_steps)
        return State(
            key=key,
            params=params,
            target_params=jax.tree.map(jnp.copy, params),
            opt_state=optimizer.init(params),
            buffer=buffer.init(warmup),
            env=env_state,
        )

    def update(state, step):
        key_rollout, key_sample = jax.random.split(jax.random.fold_in(state.key, step))
        epsilon = linear_decay(
            step,
            config.epsilon_start,
            config.epsilon_end,
            config.exploration_fraction * num_updates,
        )

        def explore(obs, key):
            return epsilon_greedy(key, network.apply(state.params, obs), epsilon)

        env_state, recent, episode_return = rollout(
            env, explore, state.env, key_rollout, config.train_frequency
        )
        data = buffer.add(state.buffer, recent, num_warmup + step)
        batch, index, probability = buffer.sample(data, key_sample)
        beta = linear_decay(step, config.prioritized_replay_beta, 1.0, num_updates)
        weights = importance_weights(probability, beta)

        (loss_value, errors), grads = jax.value_and_grad(loss, has_aux=True)(
            state.params, state.target_params, batch, weights
        )
        priorities = priority(
            errors, config.prioritized_replay_alpha, config.prioritized_replay_eps
        )
        data = buffer.update(data, index, priorities)
        updates, opt_state = optimizer.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        mixed = optax.incremental_update(params, state.target_params, config.tau)
        copy = (step + 1) % config.target_network_frequency == 0
        target_params = jax.tree.map(
            lambda new, old: jnp.where(copy, new, old), mixed, state.target_params
        )

        q_values = network.apply(state.params, recent.obs)
        value = jnp.take_along_axis(q_values, recent.action[..., None], axis=-1).mean()
        metrics = {"episode_return": episode_return, "value": value, "loss": loss_value}
        return State(state.key, params, target_params, opt_state, data, env_state), metrics

    def act(params, obs, key):
        return jnp.argmax(network.apply(params, obs))

    return Algorithm(
        init, update, act, num_updates, steps_per_update, num_warmup * steps_per_update
    )


if __name__ == "__main__":
    main(Config, make)
