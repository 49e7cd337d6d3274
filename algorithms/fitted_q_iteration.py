"""Fitted Q iteration (batch FQI).

Differs from dqn.py in that it acts only once, before it learns, by policies drawn at random: the
transitions are collected in `init`, and each update is one whole regression on targets that stand
still.

Ernst, Geurts & Wehenkel 2005, Tree-based batch mode reinforcement learning,
https://www.jmlr.org/papers/v6/ernst05a.html; with neural networks Riedmiller 2005, Neural fitted Q
iteration, https://doi.org/10.1007/11564096_32

    Q_{k+1} = argmin_Q Σ_i (r_i + γ (1 - d_i) max_a' Q_k(s'_i, a') - Q(s_i, a_i))²   (Figure 1)

over all transitions i, with d = 1 where the MDP terminated; a time limit does not end the MDP. The
network starts each regression from where the last one ended. Where the states are numbers, Q is a
table and the regression exact: Q_{k+1}(s, a) is the mean of the targets of (s, a), so that this is
value iteration in the MDP that the data show. A pair that they lack keeps its value, 0.

Departs from the papers: a network trained by Adam on random batches, where the papers have trees
and Rprop on all transitions; a fixed number of iterations; the network sees observations at mean 0
and standard deviation 1 over the data.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.buffers import Rows, uniform_buffer, unpack
from common.envs import Transition, make_env, rollout
from common.networks import Network, network_for
from common.normalization import obs_normalizer
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "CartPole-v1"  # any environment with discrete actions
    total_timesteps: int = 100_000  # environment steps, all in `init`, over all environments
    num_envs: int = 100  # environments stepped in parallel, each by an explorer of its own
    num_iterations: int = 800  # regressions, K
    gradient_steps: int = 80  # in each of them, where Q is a network
    learning_rate: float = 5e-4  # of Adam
    gamma: float = 0.998  # discount factor
    batch_size: int = 256  # transitions
    epsilon: float = 0.01  # probability of a random action; try 0.1 where states are numbers
    hidden_sizes: tuple[int, ...] = (256,)  # units of each hidden layer

    def __post_init__(self):
        require(
            self,
            "num_envs >= 1",
            "total_timesteps >= num_envs",
            "num_iterations >= 1",
            "gradient_steps >= 1",
            "learning_rate > 0",
            "0 <= gamma <= 1",
            "batch_size >= 1",
            "0 <= epsilon <= 1",
            "all(size >= 1 for size in hidden_sizes)",
        )


class Params(NamedTuple):
    q: Any  # θ_k, or the table Q_k [S, A]
    statistics: Any  # of the observations in the data; () where states are numbers


class State(NamedTuple):
    key: jax.Array
    params: Params
    opt_state: optax.OptState
    dataset: Rows  # [M, ...]


def td_error(params, target_params, transition: Transition, q, gamma) -> jax.Array:
    """δ = r + γ (1 - d) max_a' Q(s', a'; θ_k) - Q(s, a; θ), for one transition."""
    obs, action, reward, next_obs, terminated, _ = transition
    target = reward + gamma * (1 - terminated) * jnp.max(q(target_params, next_obs))
    return jax.lax.stop_gradient(target) - q(params, obs)[action]


def mean_of_each(errors, obs, action, table) -> jax.Array:
    """The mean of the errors [M] of each (s, a), and 0 where there are none; as `table`, [S, A]."""
    zeros = jnp.zeros_like(table)
    total, count = zeros.at[obs, action].add(errors), zeros.at[obs, action].add(1)
    return total / jnp.maximum(count, 1)


def epsilon_greedy(key, q_values, epsilon) -> jax.Array:
    """argmax_a q_values [N, A] with probability 1 - ε, else a uniformly random action; [N]."""
    greedy = jnp.argmax(q_values, axis=-1)
    explore, action = jax.random.uniform(key, (2, *greedy.shape))
    random = (action * q_values.shape[-1]).astype(greedy.dtype)
    return jnp.where(explore < epsilon, random, greedy)


def make(config: Config) -> Algorithm:
    env = make_env(config.env_id, config.num_envs, actions="discrete")
    network = network_for(env, config.hidden_sizes, env.num_actions)
    explorer = network_for(env, (), env.num_actions)  # linear: of such, some balance a pole
    if env.num_states is not None:
        shape = (env.num_states, env.num_actions)
        network = Network(lambda key: jnp.zeros(shape), lambda table, obs: table[obs])
    normalizer = obs_normalizer(env, env.num_states is None)
    optimizer = optax.adam(config.learning_rate)
    num_steps = config.total_timesteps // config.num_envs
    size = num_steps * config.num_envs
    dataset = uniform_buffer(size, size, config.batch_size)

    def q_values(params, obs):
        return network.apply(params.q, normalizer.apply(params.statistics, obs))

    def errors(params, target_params, transitions):
        def error(transition):
            return td_error(params, target_params, transition, q_values, config.gamma)

        return jax.vmap(error)(transitions)

    def loss(q, target_params, batch):
        return jnp.mean(jnp.square(errors(target_params._replace(q=q), target_params, batch)))

    def exact_fit(state, key):
        transitions, table = unpack(state.dataset), state.params.q
        error = errors(state.params, state.params, transitions)
        change = mean_of_each(error, transitions.obs, transitions.action, table)
        return table + change, state.opt_state, jnp.mean(jnp.square(error))

    def gradient_fit(state, key):
        def step(carry, key):
            q, opt_state = carry
            batch = dataset.sample(state.dataset, key, 1)
            loss_value, grads = jax.value_and_grad(loss)(q, state.params, batch)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(q, updates), opt_state), loss_value

        keys = jax.random.split(key, config.gradient_steps)
        (q, opt_state), losses = jax.lax.scan(step, (state.params.q, state.opt_state), keys)
        return q, opt_state, jnp.mean(losses)

    fit = gradient_fit if env.num_states is None else exact_fit

    def init(key):
        key, key_params, key_env, key_explore, key_data = jax.random.split(key, 5)
        q = network.init(key_params)
        explorers = jax.vmap(explorer.init)(jax.random.split(key_explore, config.num_envs))
        explorers = jax.tree.map(lambda w: w**3, explorers)  # so that few weights count

        def explore(obs, key):
            return epsilon_greedy(key, jax.vmap(explorer.apply)(explorers, obs), config.epsilon)

        _, transitions, _ = rollout(env, explore, env.reset(key_env), key_data, num_steps)
        return State(
            key=key,
            params=Params(q, normalizer.add(normalizer.init(), transitions.obs)),
            opt_state=optimizer.init(q),
            dataset=dataset.init(transitions),
        )

    def update(state, step):
        key_fit, key_batch = jax.random.split(jax.random.fold_in(state.key, step))
        q, opt_state, loss_value = fit(state, key_fit)
        params = state.params._replace(q=q)

        batch = dataset.sample(state.dataset, key_batch, 1)
        values = jnp.take_along_axis(q_values(params, batch.obs), batch.action[..., None], axis=-1)
        value = values.mean()
        episode_return = jnp.full_like(value, jnp.nan)  # nobody acts
        metrics = {"episode_return": episode_return, "value": value, "loss": loss_value}
        return State(state.key, params, opt_state, state.dataset), metrics

    def act(params, obs, key):
        return jnp.argmax(q_values(params, obs))

    return Algorithm(init, update, act, config.num_iterations, 1, size)


if __name__ == "__main__":
    main(Config, make)
