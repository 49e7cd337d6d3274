"""Fitted Q iteration (batch FQI).

Batch reinforcement learning: `init` collects transitions with random policies, and each update is
one whole regression on these data, with targets that stay fixed.

Ernst, Geurts & Wehenkel 2005, Tree-based batch mode reinforcement learning,
https://www.jmlr.org/papers/v6/ernst05a.html; with neural networks Riedmiller 2005, Neural fitted Q
iteration, https://doi.org/10.1007/11564096_32

    Q_{k+1} = argmin_Q Σ_i (r_i + γ (1 - d_i) max_a' Q_k(s'_i, a') - Q(s_i, a_i))²   (Figure 1)

over all transitions i, with d = 1 where the MDP terminated; a time limit does not end the MDP. Each
regression starts from the network of the one before. With numbered states Q is a table and the
regression exact: Q_{k+1}(s, a) is the mean target of (s, a), which is value iteration in the
maximum-likelihood MDP of the data. A pair (s, a) without data keeps its initial value, 0.

Departs from the papers: a network trained by Adam on random batches, where the papers have trees
and Rprop on all transitions; a fixed number of iterations; the network sees observations with mean
0 and standard deviation 1 over the data.

Metrics: `episode_return`, NaN: an update takes no environment steps; `value`, mean Q(s, a) of data
drawn at random (discounted return); `loss`, mean squared error of the regression, over its gradient
steps, or with a table before it (return²).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.buffers import uniform_buffer
from common.envs import Transition, make_env, rollout
from common.exploration import epsilon_greedy
from common.networks import Network, make_network
from common.normalization import Statistics, add_batch, no_obs_statistics, normalize
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "CartPole-v1"  # any environment with discrete actions
    total_timesteps: int = 100_000  # environment steps, all in `init`, over all environments
    num_envs: int = 100  # environments stepped in parallel, each by its own random policy
    num_iterations: int = 800  # regressions, K
    gradient_steps: int = 80  # in each regression, where Q is a network
    learning_rate: float = 5e-4  # of Adam
    gamma: float = 0.998  # discount factor
    batch_size: int = 256  # transitions
    epsilon: float = 0.01  # probability of a random action; try 0.1 with numbered states
    hidden_sizes: tuple[int, ...] = (256,)  # units of each hidden layer

    def __post_init__(self):
        require(self, "total_timesteps >= num_envs")


class Params(NamedTuple):
    q_params: Any  # θ_k, or the table Q_k [S, A]
    statistics: Statistics | None  # of the observations in the data; None with numbered states


class State(NamedTuple):
    key: jax.Array
    params: Params
    opt_state: optax.OptState
    dataset: Transition  # [M, ...]


def td_error(q_value, reward, next_value, terminated, gamma) -> jax.Array:
    """δ = r + γ (1 - d) V(s') - Q(s, a), for one transition; no gradient through the target."""
    target = reward + gamma * (1 - terminated) * next_value
    return jax.lax.stop_gradient(target) - q_value


def mean_errors(errors, obs, action, table) -> jax.Array:
    """Return the mean error of each (s, a), 0 without data, in the shape of `table` [S, A].

    `errors` [M] are those of the pairs `obs` [M], `action` [M].
    """
    zeros = jnp.zeros_like(table)
    total, count = zeros.at[obs, action].add(errors), zeros.at[obs, action].add(1)
    return total / jnp.maximum(count, 1)


def make(config: Config) -> Algorithm:
    env = make_env(config.env_id, config.num_envs, actions="discrete")
    network = make_network(env, config.hidden_sizes)
    explorer = make_network(env, ())  # random linear policies; some balance a pole
    if env.num_states is not None:
        shape = (env.num_states, env.num_actions)
        network = Network(lambda key: jnp.zeros(shape), lambda table, obs: table[obs])
    no_obs = no_obs_statistics(env, env.num_states is None)
    optimizer = optax.adam(config.learning_rate)
    num_steps = config.total_timesteps // config.num_envs
    size = num_steps * config.num_envs
    dataset = uniform_buffer(size, size, config.batch_size)

    def q(params, obs):
        return network.apply(params.q_params, normalize(params.statistics, obs))

    def td_errors(params, target_params, transitions):
        def error(transition):
            q_value = q(params, transition.obs)[transition.action]
            next_value = jnp.max(q(target_params, transition.next_obs))
            reward, terminated = transition.reward, transition.terminated
            return td_error(q_value, reward, next_value, terminated, config.gamma)

        return jax.vmap(error)(transitions)

    def loss(q_params, target_params, batch):
        params = target_params._replace(q_params=q_params)
        return jnp.mean(jnp.square(td_errors(params, target_params, batch)))

    def exact_fit(state, key):
        data, table = state.dataset, state.params.q_params
        errors = td_errors(state.params, state.params, data)
        change = mean_errors(errors, data.obs, data.action, table)
        return table + change, state.opt_state, jnp.mean(jnp.square(errors))

    def gradient_fit(state, key):
        def step(carry, key):
            q_params, opt_state = carry
            batch = dataset.sample(state.dataset, key, 1)
            loss_value, grads = jax.value_and_grad(loss)(q_params, state.params, batch)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(q_params, updates), opt_state), loss_value

        keys = jax.random.split(key, config.gradient_steps)
        start = state.params.q_params, state.opt_state
        (q_params, opt_state), losses = jax.lax.scan(step, start, keys)
        return q_params, opt_state, jnp.mean(losses)

    fit = gradient_fit if env.num_states is None else exact_fit

    def init(key):
        key, key_params, key_env, key_policy, key_data = jax.random.split(key, 5)
        q_params = network.init(key_params)
        policy_params = jax.vmap(explorer.init)(jax.random.split(key_policy, config.num_envs))
        policy_params = jax.tree.map(lambda w: w**3, policy_params)  # so that few weights dominate

        def behaviour_policy(obs, key):
            preferences = jax.vmap(explorer.apply)(policy_params, obs)
            return epsilon_greedy(key, preferences, config.epsilon)

        _, transitions, _ = rollout(env, behaviour_policy, env.reset(key_env), key_data, num_steps)
        return State(
            key=key,
            params=Params(q_params, add_batch(no_obs, transitions.obs)),
            opt_state=optimizer.init(q_params),
            dataset=dataset.init(transitions),
        )

    def update(state, step):
        key_fit, key_batch = jax.random.split(jax.random.fold_in(state.key, step))
        q_params, opt_state, loss_value = fit(state, key_fit)
        params = state.params._replace(q_params=q_params)

        batch = dataset.sample(state.dataset, key_batch, 1)
        q_values = q(params, batch.obs)
        value = jnp.take_along_axis(q_values, batch.action[..., None], axis=-1).mean()
        episode_return = jnp.full_like(value, jnp.nan)  # an update takes no environment steps
        metrics = {"episode_return": episode_return, "value": value, "loss": loss_value}
        return State(state.key, params, opt_state, state.dataset), metrics

    def act(params, obs, key):
        return jnp.argmax(q(params, obs))

    return Algorithm(init, update, act, config.num_iterations, 1, size)


if __name__ == "__main__":
    main(Config, make)
