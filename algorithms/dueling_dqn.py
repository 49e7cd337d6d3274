"""Dueling DQN.

Differs from dqn.py in the network, which ends in two streams: the value of the state, and the
advantage of each action over the mean.

Wang et al. 2016, Dueling network architectures for deep reinforcement learning,
https://arxiv.org/abs/1511.06581

    Q(s, a; θ) = V(s; θ) + A(s, a; θ) - 1/|A| Σ_a' A(s, a'; θ)              (9)
    L(θ) = E[(r + γ (1 - d) max_a' Q(s', a'; θ⁻) - Q(s, a; θ))²]            (section 2.1)

with d = 1 where the MDP terminated; a time limit does not end the MDP.

Departs from the paper: DQN's target, not Double DQN's; the gradient is neither scaled by 1/√2 where
the streams meet nor clipped; Adam, not RMSProp; several environments in parallel; the random steps
that fill the replay memory at first are taken in `init`.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.buffers import Rows, uniform_buffer
from common.envs import Env, EnvState, Transition, make_env, rollout
from common.networks import Network, dense, network_for
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
    learning_starts: int = 1_000  # environment steps at random first, rounded up to whole updates
    target_network_frequency: int = 15  # gradient steps between copies of θ into θ⁻
    tau: float = 1.0  # θ⁻ ← τ θ + (1 - τ) θ⁻ at each copy
    epsilon_start: float = 1.0  # probability of a random action, at first
    epsilon_end: float = 0.1  # and at last
    exploration_fraction: float = 0.2  # of the updates, over which epsilon falls linearly
    hidden_sizes: tuple[int, ...] = (256,)  # units of each hidden layer; the last: of each stream's

    def __post_init__(self):
        require(
            self,
            "num_envs >= 1",
            "train_frequency >= 1",
            "learning_rate > 0",
            "0 <= gamma <= 1",
            "batch_size >= 1",
            "learning_starts >= 0",
            "buffer_size >= learning_starts",
            "total_timesteps >= learning_starts + 2 * num_envs * train_frequency",
            "target_network_frequency >= 1",
            "0 < tau <= 1",
            "0 <= epsilon_start <= 1",
            "0 <= epsilon_end <= 1",
            "0 < exploration_fraction <= 1",
            "len(hidden_sizes) >= 1",
            "all(size >= 1 for size in hidden_sizes)",
        )


class State(NamedTuple):
    key: jax.Array
    params: Any  # θ
    target_params: Any  # θ⁻
    opt_state: optax.OptState
    buffer: Rows  # [capacity, ...]
    env: EnvState


def dueling(value, advantage) -> jax.Array:
    """Q(s, a) = V(s) + A(s, a) - 1/|A| Σ_a' A(s, a'), from V [..., 1] and A [..., A]."""
    return value + advantage - jnp.mean(advantage, axis=-1, keepdims=True)


def dueling_network_for(env: Env, hidden_sizes) -> Network:
    """The network that fits the environment's observations, but for its last hidden layer, of which
    each stream has one. They see the same and lie side by side in one layer of twice the size."""
    size = hidden_sizes[-1]
    torso = network_for(env, hidden_sizes[:-1], 2 * size)

    def init(key):
        key_torso, key_value, key_advantage = jax.random.split(key, 3)
        heads = [dense(key_value, size, 1), dense(key_advantage, size, env.num_actions)]
        return [*torso.init(key_torso), *heads]

    def apply(params, obs):
        *torso_params, (w_value, b_value), (w_advantage, b_advantage) = params
        hidden = jax.nn.relu(torso.apply(torso_params, obs))
        for_value, for_advantage = jnp.split(hidden, 2, axis=-1)
        return dueling(for_value @ w_value + b_value, for_advantage @ w_advantage + b_advantage)

    return Network(init, apply)


def td_error(params, target_params, transition: Transition, q, gamma) -> jax.Array:
    """δ = r + γ (1 - d) max_a' Q(s', a'; θ⁻) - Q(s, a; θ), for one transition."""
    obs, action, reward, next_obs, terminated, _ = transition
    target = reward + gamma * (1 - terminated) * jnp.max(q(target_params, next_obs))
    return jax.lax.stop_gradient(target) - q(params, obs)[action]


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
    network = dueling_network_for(env, config.hidden_sizes)
    optimizer = optax.adam(config.learning_rate)
    steps_per_update = config.num_envs * config.train_frequency
    buffer = uniform_buffer(config.buffer_size, steps_per_update, config.batch_size)
    num_warmup = -(-config.learning_starts // steps_per_update)  # updates' worth of random steps
    num_updates = config.total_timesteps // steps_per_update - num_warmup

    def loss(params, target_params, batch):
        def error(transition):
            return td_error(params, target_params, transition, network.apply, config.gamma)

        return jnp.mean(jnp.square(jax.vmap(error)(batch)))

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
        batch = buffer.sample(data, key_sample, num_warmup + step + 1)

        loss_value, grads = jax.value_and_grad(loss)(state.params, state.target_params, batch)
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
