"""Dueling DQN.

Differs from dqn.py in the network, which ends in two streams: the value of the state, and the
advantage of each action over the mean.

Wang et al. 2016, Dueling network architectures for deep reinforcement learning,
https://arxiv.org/abs/1511.06581

    Q(s, a; θ) = V(s; θ) + A(s, a; θ) - 1/|A| Σ_a' A(s, a'; θ)              (9)
    L(θ) = E[(r + γ (1 - d) max_a' Q(s', a'; θ⁻) - Q(s, a; θ))²]            (section 2.1)

with d = 1 where the MDP terminated; a time limit does not end the MDP.

Departs from the paper: DQN's target, not Double DQN's; the gradient is neither scaled by 1/√2 where
the streams join nor clipped; Adam, not RMSProp; rewards are not clipped; `act` takes no random
actions; several environments in parallel; `init` takes the random steps that fill the replay
memory.

Metrics: `value`, mean Q(s, a) of the actions taken (discounted return); `loss`, mean squared TD
error of the batch (return²).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.buffers import uniform_buffer
from common.distributions import legal_only
from common.envs import Env, EnvState, Transition, make_env, rollout
from common.exploration import epsilon_greedy, linear_schedule, random_policy
from common.networks import Network, dense, make_network
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
    learning_starts: int = 1_000  # random environment steps first, rounded up to whole updates
    target_network_frequency: int = 15  # gradient steps between copies of θ into θ⁻
    tau: float = 1.0  # θ⁻ ← τ θ + (1 - τ) θ⁻ at each copy
    epsilon_start: float = 1.0  # initial probability of a random action
    epsilon_end: float = 0.1  # final probability of a random action
    exploration_fraction: float = 0.2  # of the updates, over which epsilon falls linearly
    hidden_sizes: tuple[int, ...] = (256,)  # units of each hidden layer, the last in each stream

    def __post_init__(self):
        require(
            self,
            "len(hidden_sizes) >= 1",
            "all(size >= 1 for size in hidden_sizes)",
            "buffer_size >= learning_starts",
            "total_timesteps >= learning_starts + 2 * num_envs * train_frequency",
        )


class State(NamedTuple):
    key: jax.Array
    params: Any  # θ
    target_params: Any  # θ⁻
    opt_state: optax.OptState
    buffer: Transition  # [capacity, ...]
    env: EnvState


def dueling(value, advantage) -> jax.Array:
    """Q(s, a) = V(s) + A(s, a) - 1/|A| Σ_a' A(s, a'), from V [..., 1] and A [..., A]; [..., A]."""
    return value + advantage - jnp.mean(advantage, axis=-1, keepdims=True)


def make_dueling_network(env: Env, hidden_sizes: tuple[int, ...]) -> Network:
    """Return `make_network` with its last hidden layer and its output split into two streams.

    Both streams have the same inputs, so their hidden layers are the halves of one wide layer.
    """
    size = hidden_sizes[-1]
    torso = make_network(env, hidden_sizes[:-1], 2 * size)

    def init(key):
        key_torso, key_value, key_advantage = jax.random.split(key, 3)
        heads = [dense(key_value, size, 1), dense(key_advantage, size, env.num_actions)]
        return [*torso.init(key_torso), *heads]

    def apply(params, obs):
        *torso_params, (w_value, b_value), (w_advantage, b_advantage) = params
        hidden = jax.nn.relu(torso.apply(torso_params, obs))
        hidden_value, hidden_advantage = jnp.split(hidden, 2, axis=-1)
        value = hidden_value @ w_value + b_value
        advantage = hidden_advantage @ w_advantage + b_advantage
        return legal_only(env, obs, dueling(value, advantage))

    return Network(init, apply)


def td_error(q_value, reward, next_value, terminated, gamma) -> jax.Array:
    """δ = r + γ (1 - d) V(s') - Q(s, a), for one transition; no gradient through the target."""
    target = reward + gamma * (1 - terminated) * next_value
    return jax.lax.stop_gradient(target) - q_value


def make(config: Config) -> Algorithm:
    env = make_env(config.env_id, config.num_envs, actions="discrete")
    network = make_dueling_network(env, config.hidden_sizes)
    optimizer = optax.adam(config.learning_rate)
    steps_per_update = config.num_envs * config.train_frequency
    buffer = uniform_buffer(config.buffer_size, steps_per_update, config.batch_size)
    warmup_updates = -(-config.learning_starts // steps_per_update)
    warmup_steps = warmup_updates * config.train_frequency  # of each environment
    initial_steps = warmup_steps * config.num_envs
    num_updates = (config.total_timesteps - initial_steps) // steps_per_update
    decay_updates = config.exploration_fraction * num_updates

    def loss(params, target_params, batch):
        def error(transition):
            q_value = network.apply(params, transition.obs)[transition.action]
            next_value = jnp.max(network.apply(target_params, transition.next_obs))
            reward, terminated = transition.reward, transition.terminated
            return td_error(q_value, reward, next_value, terminated, config.gamma)

        return jnp.mean(jnp.square(jax.vmap(error)(batch)))

    def init(key):
        key, key_params, key_env, key_warmup = jax.random.split(key, 4)
        params = network.init(key_params)
        env_state, transitions, _ = rollout(
            env, random_policy(env), env.reset(key_env), key_warmup, warmup_steps
        )
        return State(
            key=key,
            params=params,
            target_params=jax.tree.map(jnp.copy, params),
            opt_state=optimizer.init(params),
            buffer=buffer.init(transitions),
            env=env_state,
        )

    def update(state, step):
        key_rollout, key_sample = jax.random.split(jax.random.fold_in(state.key, step))
        epsilon = linear_schedule(step, config.epsilon_start, config.epsilon_end, decay_updates)

        def behaviour_policy(obs, key):
            return epsilon_greedy(key, network.apply(state.params, obs), epsilon)

        env_state, transitions, episodes = rollout(
            env, behaviour_policy, state.env, key_rollout, config.train_frequency
        )
        buffer_state = buffer.add(state.buffer, transitions, warmup_updates + step)
        batch = buffer.sample(buffer_state, key_sample, warmup_updates + step + 1)

        loss_value, grads = jax.value_and_grad(loss)(state.params, state.target_params, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        polyak = optax.incremental_update(params, state.target_params, config.tau)
        is_copy_step = (step + 1) % config.target_network_frequency == 0
        target_params = jax.tree.map(
            lambda new, old: jnp.where(is_copy_step, new, old), polyak, state.target_params
        )

        q_values = network.apply(state.params, transitions.obs)
        value = jnp.take_along_axis(q_values, transitions.action[..., None], axis=-1).mean()
        metrics = episodes | {"value": value, "loss": loss_value}
        return State(state.key, params, target_params, opt_state, buffer_state, env_state), metrics

    def act(params, obs, key):
        return jnp.argmax(network.apply(params, obs))

    return Algorithm(init, update, act, num_updates, steps_per_update, initial_steps)


if __name__ == "__main__":
    main(Config, make)
