"""Implicit Q-learning (IQL).

Differs from td3_bc.py in a network for V(s), an upper expectile of Q(s, a) over the actions in the
data, so that no other action is ever valued; and in a stochastic policy, fitted to the actions in
the data, those with the larger advantages more closely. It sees observations as they are.

Kostrikov et al. 2022, Offline reinforcement learning with implicit Q-learning,
https://arxiv.org/abs/2110.06169

    L(ψ)  = E[L_τ(min_j Q(s, a; φⱼ⁻) - V(s; ψ))], L_τ(u) = |τ - 1(u < 0)| u²            (5)
    L(φᵢ) = E[(r + γ (1 - d) V(s'; ψ) - Q(s, a; φᵢ))²], i = 1, 2                         (6)
    L(θ)  = -E[exp(β (min_j Q(s, a; φⱼ⁻) - V(s; ψ))) ln π(a | s; θ)]                     (7)

with d = 1 where the MDP terminated; a time limit does not end the MDP. Actions are in [-1, 1] and
rescaled to the environment's bounds in env.step. The policy is a normal distribution, not squashed;
its mean is a tanh, its standard deviation the same for all observations.

The data are episodes of an expert that takes some actions at random, the more the later the
episode: of different quality, therefore. Each seed has data of its own, or all share a file.

Departs from the paper: the exponential is clipped at 100, as in the authors' program; β is per unit
of return and rewards are not rescaled, so that it is smaller where returns are large; the policy's
step size is constant.

Metrics: `episode_return`, NaN: an update takes no environment steps; `value`, mean of both Q(s, a)
of data drawn at random (discounted return); `loss`, squared TD errors of both critics, added, mean
over the batches (return²); `weight`, mean of the clipped exp(β (min Q - V)) over the batches;
`distance`, mean of (a - mean of π)² over those data (squared half ranges of the action).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.datasets import Data, noisy_policy, play_dataset, read_dataset
from common.distributions import Normal, log_probability, make_policy
from common.environments.experts import make_expert
from common.envs import make_env, map_actions, scale_action
from common.networks import ensemble, make_network, make_q_network
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "Pendulum-v1"  # any environment with continuous actions
    dataset: str = ""  # file of python -m common.record, or a Minari id; "": the expert's episodes
    expert: str = ""  # folder of a trained run, whose best seed is the expert; "": the known one
    num_episodes: int = 100  # of the expert, without --dataset
    epsilon_min: float = 0.0  # probability of a random action in the first episode
    epsilon_max: float = 1.0  # in the last one; it grows evenly
    num_iterations: int = 50  # updates
    gradient_steps: int = 200  # in each update
    learning_rate: float = 3e-3  # of Adam, for all networks
    gamma: float = 0.98  # discount factor
    batch_size: int = 128  # transitions
    expectile: float = 0.7  # τ; .5: the mean over the data's actions, 1: the best of them
    beta: float = 0.3  # inverse temperature of the weights (per unit of return)
    tau: float = 0.02  # part of φ that goes into φ⁻ after each gradient step; not the expectile
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of each hidden layer, in all networks

    def __post_init__(self):
        require(self, "0 < expectile < 1", "beta >= 0")


class State(NamedTuple):
    key: jax.Array
    params: Any  # θ
    opt_state: optax.OptState
    value_params: Any  # ψ
    value_opt_state: optax.OptState
    critic_params: Any  # φ, [2, ...]
    critic_opt_state: optax.OptState
    target_params: Any  # φ⁻, [2, ...]
    dataset: Data | tuple  # D, or () where it is a file


def td_error(q_value, reward, next_value, terminated, gamma) -> jax.Array:
    """δ = r + γ (1 - d) V(s') - Q(s, a), for one transition; no gradient through the target."""
    target = reward + gamma * (1 - terminated) * next_value
    return jax.lax.stop_gradient(target) - q_value


def expectile_loss(error, expectile) -> jax.Array:
    """L_τ(u) = |τ - 1(u < 0)| u²; its minimum in V, with u = Q - V, is the τ-expectile of Q."""
    return jnp.abs(expectile - (error < 0)) * jnp.square(error)


def advantage_weight(q_value, value, beta) -> jax.Array:
    """min(exp(β (Q(s, a) - V(s))), 100), for one transition."""
    return jnp.minimum(jnp.exp(beta * (q_value - value)), 100)


def policy_loss(log_prob, weight) -> jax.Array:
    """-w ln π(a | s; θ), for one transition of weight w."""
    return -weight * log_prob


def make(config: Config) -> Algorithm:
    num_envs = config.num_episodes
    env = map_actions(make_env(config.env_id, num_envs, actions="continuous"), scale_action)
    (num_actions,) = env.action_shape
    actor = make_policy(env, make_network(env, config.hidden_sizes, num_actions), 1.0)
    value_network = make_network(env, config.hidden_sizes, 1)
    critics = ensemble(make_q_network(env, config.hidden_sizes), 2)
    optimizer = optax.adam(config.learning_rate)
    if config.dataset:
        dataset = read_dataset(config.dataset, config.env_id, env)
    else:
        expert = make_expert(config.env_id, env, config.expert)
        epsilon = jnp.linspace(config.epsilon_min, config.epsilon_max, config.num_episodes)
        dataset = play_dataset(env, noisy_policy(env, expert, epsilon))

    def policy(params, obs):
        mean, log_std = actor.apply(params, obs)
        return Normal(jnp.tanh(mean), jnp.clip(log_std, -5, 2))

    def v(params, obs):
        return value_network.apply(params, obs).squeeze(-1)

    def value_loss(value_params, q_values, batch):
        errors = q_values - v(value_params, batch.obs)
        return jnp.mean(expectile_loss(errors, config.expectile))

    def critic_loss(critic_params, value_params, batch):
        def error(transition):
            q_value = critics.apply(critic_params, transition.obs, transition.action)  # [2]
            next_value = v(value_params, transition.next_obs)
            reward, terminated = transition.reward, transition.terminated
            return td_error(q_value, reward, next_value, terminated, config.gamma)

        return jnp.mean(jnp.square(jax.vmap(error)(batch)).sum(-1))

    def actor_loss(params, weights, batch):
        log_probs = log_probability(policy(params, batch.obs), batch.action)
        return jnp.mean(policy_loss(log_probs, weights))

    def init(key):
        key, key_actor, key_value, key_critic, key_data = jax.random.split(key, 5)
        params, value_params = actor.init(key_actor), value_network.init(key_value)
        critic_params = critics.init(key_critic)
        return State(
            key=key,
            params=params,
            opt_state=optimizer.init(params),
            value_params=value_params,
            value_opt_state=optimizer.init(value_params),
            critic_params=critic_params,
            critic_opt_state=optimizer.init(critic_params),
            target_params=jax.tree.map(jnp.copy, critic_params),
            dataset=dataset.init(key_data),
        )

    def gradient_step(state, key):
        batch = dataset.sample(state.dataset, key, config.batch_size)
        q_values = jnp.min(critics.apply(state.target_params, batch.obs, batch.action), axis=0)

        grads = jax.grad(value_loss)(state.value_params, q_values, batch)
        updates, value_opt_state = optimizer.update(grads, state.value_opt_state)
        value_params = optax.apply_updates(state.value_params, updates)

        weights = advantage_weight(q_values, v(value_params, batch.obs), config.beta)
        grads = jax.grad(actor_loss)(state.params, weights, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)

        loss_value, grads = jax.value_and_grad(critic_loss)(
            state.critic_params, value_params, batch
        )
        updates, critic_opt_state = optimizer.update(grads, state.critic_opt_state)
        critic_params = optax.apply_updates(state.critic_params, updates)

        target_params = optax.incremental_update(critic_params, state.target_params, config.tau)
        return State(
            key=state.key,
            params=params,
            opt_state=opt_state,
            value_params=value_params,
            value_opt_state=value_opt_state,
            critic_params=critic_params,
            critic_opt_state=critic_opt_state,
            target_params=target_params,
            dataset=state.dataset,
        ), (loss_value, weights.mean())

    def update(state, step):
        key_steps, key_batch = jax.random.split(jax.random.fold_in(state.key, step))
        keys = jax.random.split(key_steps, config.gradient_steps)
        state, (losses, weights) = jax.lax.scan(gradient_step, state, keys)
        batch = dataset.sample(state.dataset, key_batch, config.batch_size)
        value = critics.apply(state.critic_params, batch.obs, batch.action).mean()
        distance = jnp.square(policy(state.params, batch.obs).mean - batch.action).mean()
        metrics = {"episode_return": jnp.full_like(value, jnp.nan), "value": value}
        metrics |= {"loss": losses.mean(), "weight": weights.mean(), "distance": distance}
        return state, metrics

    def act(params, obs, key):
        return scale_action(env, policy(params, obs).mean)

    return Algorithm(init, update, act, config.num_iterations, 1)


if __name__ == "__main__":
    main(Config, make)
