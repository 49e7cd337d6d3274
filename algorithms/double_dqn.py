"""Double DQN.

Differs from dqn.py in the target: the online network θ chooses the next action, the target network
θ⁻ evaluates it.

van Hasselt, Guez & Silver 2016, Deep reinforcement learning with double Q-learning,
https://arxiv.org/abs/1509.06461

    L(θ) = E[(r + γ (1 - d) Q(s', argmax_a' Q(s', a'; θ); θ⁻) - Q(s, a; θ))²]   (section Double DQN)

with d = 1 where the MDP terminated; a time limit does not end the MDP.

Departs from the paper: Adam, not RMSProp; errors are not clipped, so that means are learned and not
medians; rewards are not clipped; `act` takes no random actions; several environments in parallel;
`init` takes the random steps that fill the replay memory.

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
from common.envs import EnvState, Transition, make_env, rollout
from common.exploration import epsilon_greedy, linear_schedule, random_policy
from common.networks import make_network
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
    hidden_sizes: tuple[int, ...] = (256,)  # units of each hidden layer

    def __post_init__(self):
        require(
            self,
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


def td_error(q_value, reward, next_value, terminated, gamma) -> jax.Array:
    """δ = r + γ (1 - d) V(s') - Q(s, a), for one transition; no gradient through the target."""
    target = reward + gamma * (1 - terminated) * next_value
    return jax.lax.stop_gradient(target) - q_value


def make(config: Config) -> Algorithm:
    env = make_env(config.env_id, config.num_envs, actions="discrete")
    network = make_network(env, config.hidden_sizes)
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
            next_action = jnp.argmax(network.apply(params, transition.next_obs))
            next_value = network.apply(target_params, transition.next_obs)[next_action]
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
