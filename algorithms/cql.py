"""Conservative Q-learning (CQL).

Differs from dqn.py in data that are there before training; and in the loss, which also lowers Q of
the actions that the network prefers and raises Q of those in the data.

Kumar et al. 2020, Conservative Q-learning for offline reinforcement learning,
https://arxiv.org/abs/2006.04779

    L(θ) = α E[ln Σ_a' exp Q(s, a'; θ) - Q(s, a; θ)] + ½ E[δ²]                   (CQL(H), 4)
    δ = r + γ (1 - d) max_a' Q(s', a'; θ⁻) - Q(s, a; θ)

with d = 1 where the MDP terminated; a time limit does not end the MDP.

The data are episodes of an expert that takes some actions at random, the more the later the
episode: of different quality, therefore. Each seed has data of its own, or all share a file.

Departs from the paper: the loss is twice that of the equation, so that with α = 0 it is dqn.py's; a
plain network learns means, where the paper's for discrete actions learns quantiles.

Metrics: `episode_return`, NaN: an update takes no environment steps; `value`, mean Q(s, a) of data
drawn at random (discounted return); `loss`, mean of δ² + 2 α (ln Σ_a' exp Q(s, a') - Q(s, a)) over
the batches (return²); `agreement`, the part of those data whose action is the greedy one.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.datasets import Data, noisy_policy, play_dataset, read_dataset
from common.environments.experts import make_expert
from common.envs import make_env
from common.networks import make_network
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "CartPole-v1"  # any environment with discrete actions
    dataset: str = ""  # file of python -m common.record, or a Minari id; "": the expert's episodes
    expert: str = ""  # folder of a trained run, whose best seed is the expert; "": the known one
    num_episodes: int = 100  # of the expert, without --dataset
    epsilon_min: float = 0.0  # probability of a random action in the first episode
    epsilon_max: float = 1.0  # in the last one; it grows evenly
    num_iterations: int = 50  # updates
    gradient_steps: int = 200  # in each update
    learning_rate: float = 1e-3  # of Adam
    gamma: float = 0.99  # discount factor
    batch_size: int = 64  # transitions
    alpha: float = 20.0  # weight of what keeps Q low outside the data
    target_network_frequency: int = 15  # gradient steps between copies of θ into θ⁻
    tau: float = 1.0  # θ⁻ ← τ θ + (1 - τ) θ⁻ at each copy
    hidden_sizes: tuple[int, ...] = (256,)  # units of each hidden layer

    def __post_init__(self):
        require(self, "alpha >= 0")


class State(NamedTuple):
    key: jax.Array
    params: Any  # θ
    target_params: Any  # θ⁻
    opt_state: optax.OptState
    dataset: Data | tuple  # D, or () where it is a file


def td_error(q_value, reward, next_value, terminated, gamma) -> jax.Array:
    """δ = r + γ (1 - d) V(s') - Q(s, a), for one transition; no gradient through the target."""
    target = reward + gamma * (1 - terminated) * next_value
    return jax.lax.stop_gradient(target) - q_value


def conservative_gap(q_values, action) -> jax.Array:
    """ln Σ_a' exp Q(s, a') - Q(s, a), for one transition; `q_values` [A] are those of s."""
    return jax.nn.logsumexp(q_values) - q_values[action]


def make(config: Config) -> Algorithm:
    env = make_env(config.env_id, config.num_episodes, actions="discrete")
    network = make_network(env, config.hidden_sizes)
    optimizer = optax.adam(config.learning_rate)
    if config.dataset:
        dataset = read_dataset(config.dataset, config.env_id, env)
    else:
        expert = make_expert(config.env_id, env, config.expert)
        epsilon = jnp.linspace(config.epsilon_min, config.epsilon_max, config.num_episodes)
        dataset = play_dataset(env, noisy_policy(env, expert, epsilon))

    def loss(params, target_params, batch):
        def transition_loss(transition):
            q_values, action = network.apply(params, transition.obs), transition.action
            next_value = jnp.max(network.apply(target_params, transition.next_obs))
            reward, terminated = transition.reward, transition.terminated
            error = td_error(q_values[action], reward, next_value, terminated, config.gamma)
            return jnp.square(error) + 2 * config.alpha * conservative_gap(q_values, action)

        return jnp.mean(jax.vmap(transition_loss)(batch))

    def init(key):
        key, key_params, key_data = jax.random.split(key, 3)
        params = network.init(key_params)
        return State(
            key=key,
            params=params,
            target_params=jax.tree.map(jnp.copy, params),
            opt_state=optimizer.init(params),
            dataset=dataset.init(key_data),
        )

    def update(state, step):
        key_steps, key_batch = jax.random.split(jax.random.fold_in(state.key, step))

        def gradient_step(carry, inputs):
            params, target_params, opt_state = carry
            number, key = inputs
            batch = dataset.sample(state.dataset, key, config.batch_size)
            loss_value, grads = jax.value_and_grad(loss)(params, target_params, batch)
            updates, opt_state = optimizer.update(grads, opt_state)
            params = optax.apply_updates(params, updates)
            polyak = optax.incremental_update(params, target_params, config.tau)
            is_copy_step = number % config.target_network_frequency == 0
            target_params = jax.tree.map(
                lambda new, old: jnp.where(is_copy_step, new, old), polyak, target_params
            )
            return (params, target_params, opt_state), loss_value

        start = state.params, state.target_params, state.opt_state
        numbers = step * config.gradient_steps + jnp.arange(1, config.gradient_steps + 1)
        keys = jax.random.split(key_steps, config.gradient_steps)
        carry, losses = jax.lax.scan(gradient_step, start, (numbers, keys))
        params, target_params, opt_state = carry

        batch = dataset.sample(state.dataset, key_batch, config.batch_size)
        q_values = network.apply(params, batch.obs)
        value = jnp.take_along_axis(q_values, batch.action[..., None], axis=-1).mean()
        agreement = jnp.mean(jnp.argmax(q_values, axis=-1) == batch.action, dtype=float)
        metrics = {"episode_return": jnp.full_like(value, jnp.nan), "value": value}
        metrics |= {"loss": losses.mean(), "agreement": agreement}
        return State(state.key, params, target_params, opt_state, state.dataset), metrics

    def act(params, obs, key):
        return jnp.argmax(network.apply(params, obs))

    return Algorithm(init, update, act, config.num_iterations, 1)


if __name__ == "__main__":
    main(Config, make)
