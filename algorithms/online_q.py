"""Online Q-learning with a network (semi-gradient).

Differs from dqn.py in what it lacks: a replay memory and a target network. It learns from each step
of the environments once, when it is taken, and the online network also gives the target.

Watkins 1989, Learning from Delayed Rewards, with a network in place of the table: Sutton & Barto
2018, section 16.5, http://incompleteideas.net/book/the-book-2nd.html

    θ ← θ + α [r + γ (1 - d) max_a' Q(s', a'; θ) - Q(s, a; θ)] ∇Q(s, a; θ)  (16.3)

with d = 1 where the MDP terminated; a time limit does not end the MDP. The target is treated as a
constant, though it depends on θ: the step does not follow the gradient of any loss. Successive
transitions are correlated, so the network forgets other states, and nothing stops Q from diverging.
DQN fixes both with replay and with the target network.

Departs from the book: Adam; several environments in parallel, over which the step is averaged.

Metrics: `value`, mean Q(s, a) of the actions taken (discounted return); `loss`, mean squared TD
error of the steps taken (return²).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.envs import EnvState, make_env, rollout
from common.exploration import epsilon_greedy, linear_schedule
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
    epsilon_start: float = 1.0  # initial probability of a random action
    epsilon_end: float = 0.1  # final probability of a random action
    exploration_fraction: float = 0.2  # of the updates, over which epsilon falls linearly
    hidden_sizes: tuple[int, ...] = (256,)  # units of each hidden layer

    def __post_init__(self):
        require(self, "total_timesteps >= 2 * num_envs * train_frequency")


class State(NamedTuple):
    key: jax.Array
    params: Any  # θ
    opt_state: optax.OptState
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
    num_updates = config.total_timesteps // steps_per_update
    decay_updates = config.exploration_fraction * num_updates

    def loss(params, transitions):
        def error(transition):
            q_value = network.apply(params, transition.obs)[transition.action]
            next_value = jnp.max(network.apply(params, transition.next_obs))
            reward, terminated = transition.reward, transition.terminated
            return td_error(q_value, reward, next_value, terminated, config.gamma)

        return jnp.mean(jnp.square(jax.vmap(jax.vmap(error))(transitions)))

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
        epsilon = linear_schedule(step, config.epsilon_start, config.epsilon_end, decay_updates)

        def behaviour_policy(obs, key):
            return epsilon_greedy(key, network.apply(state.params, obs), epsilon)

        env_state, transitions, episodes = rollout(
            env, behaviour_policy, state.env, key_rollout, config.train_frequency
        )

        loss_value, grads = jax.value_and_grad(loss)(state.params, transitions)
        updates, opt_state = optimizer.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)

        q_values = network.apply(state.params, transitions.obs)
        value = jnp.take_along_axis(q_values, transitions.action[..., None], axis=-1).mean()
        metrics = episodes | {"value": value, "loss": loss_value}
        return State(state.key, params, opt_state, env_state), metrics

    def act(params, obs, key):
        return jnp.argmax(network.apply(params, obs))

    return Algorithm(init, update, act, num_updates, steps_per_update)


if __name__ == "__main__":
    main(Config, make)
