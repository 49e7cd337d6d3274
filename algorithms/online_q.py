"""Online Q-learning with a network (semi-gradient).

Differs from dqn.py in what it lacks: no replay memory and no target network. Each step of the
environments is learned from once, as it comes, and the network that learns also gives the target.

Watkins 1989, Learning from Delayed Rewards, with a network in place of the table: Sutton & Barto
2018, section 16.5, http://incompleteideas.net/book/the-book-2nd.html

    θ ← θ + α [r + γ (1 - d) max_a' Q(s', a'; θ) - Q(s, a; θ)] ∇Q(s, a; θ)  (16.3)

with d = 1 where the MDP terminated; a time limit does not end the MDP. The target is taken for a
constant, though it moves with θ: the step is not down the gradient of any loss. Successive steps
are alike, so that what is learned of the others is forgotten, and nothing keeps Q from diverging.
DQN mends the two with replay and with the target network.

Departs from the book: Adam; several environments in parallel, over which the step is averaged.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.envs import EnvState, Transition, make_env, rollout
from common.networks import network_for
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "CartPole-v1"  # any environment with discrete actions
    total_timesteps: int = 100_000  # environment steps, over all environments
    num_envs: int = 4  # environments stepped in parallel
    train_frequency: int = 1  # steps of each environment between gradient steps
    learning_rate: float = 1e-3  # of Adam
    gamma: float = 0.99  # discount factor
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
            "total_timesteps >= 2 * num_envs * train_frequency",
            "0 <= epsilon_start <= 1",
            "0 <= epsilon_end <= 1",
            "0 < exploration_fraction <= 1",
            "all(size >= 1 for size in hidden_sizes)",
        )


class State(NamedTuple):
    key: jax.Array
    params: Any  # θ
    opt_state: optax.OptState
    env: EnvState


def td_error(params, transition: Transition, q, gamma) -> jax.Array:
    """δ = r + γ (1 - d) max_a' Q(s', a'; θ) - Q(s, a; θ), for one transition."""
    obs, action, reward, next_obs, terminated, _ = transition
    target = reward + gamma * (1 - terminated) * jnp.max(q(params, next_obs))
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
    network = network_for(env, config.hidden_sizes, env.num_actions)
    optimizer = optax.adam(config.learning_rate)
    steps_per_update = config.num_envs * config.train_frequency
    num_updates = config.total_timesteps // steps_per_update

    def loss(params, batch):
        def error(transition):
            return td_error(params, transition, network.apply, config.gamma)

        return jnp.mean(jnp.square(jax.vmap(jax.vmap(error))(batch)))

    def init(key):
        key, key_params, key_env = jax.random.split(key, 3)
        params = network.init(key_params)
        return State(
            key=key,
            params=params,
            opt_state=optimizer.init(params),
            env=env.reset(key_env),
        )

    def update(state, step):
        key_rollout = jax.random.fold_in(state.key, step)
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

        loss_value, grads = jax.value_and_grad(loss)(state.params, recent)
        updates, opt_state = optimizer.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)

        q_values = network.apply(state.params, recent.obs)
        value = jnp.take_along_axis(q_values, recent.action[..., None], axis=-1).mean()
        metrics = {"episode_return": episode_return, "value": value, "loss": loss_value}
        return State(state.key, params, opt_state, env_state), metrics

    def act(params, obs, key):
        return jnp.argmax(network.apply(params, obs))

    return Algorithm(init, update, act, num_updates, steps_per_update)


if __name__ == "__main__":
    main(Config, make)
