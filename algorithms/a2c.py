"""Advantage actor-critic (A2C).

Mnih et al. 2016, Asynchronous methods for deep reinforcement learning,
https://arxiv.org/abs/1602.01783; without the asynchrony: environments in parallel instead of
workers, as Wu et al. 2017, https://arxiv.org/abs/1708.05144, name it

    L(θ, w) = -E[ln π(a | s; θ) A]                                          (section 4.3)
              + c₁ E[½ (V(s; w) - R)²] - c₂ E[H(π(s; θ))]

with A by GAE over a rollout, and R = A + V(s; w). λ = 1 is the paper's n-step return.

Departs from the paper: Adam, not RMSProp; GAE, normalized; policy and value share no layer;
continuous actions have one standard deviation for all observations; at a time limit the return goes
on with V.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.distributions import distribution_for
from common.envs import EnvState, clip_action, make_env, rollout, with_clipped_actions
from common.networks import network_for, orthogonal
from common.normalization import obs_normalizer, reward_scaler
from common.returns import gae
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "CartPole-v1"  # any environment
    total_timesteps: int = 200_000  # environment steps, over all environments
    num_envs: int = 8  # environments stepped in parallel
    num_steps: int = 8  # steps of each environment in a rollout
    learning_rate: float = 2e-3  # of Adam
    anneal_lr: bool = True  # the learning rate falls linearly to 0
    gamma: float = 0.99  # discount factor
    gae_lambda: float = 0.95  # λ of GAE
    norm_adv: bool = True  # advantages of a rollout at mean 0 and standard deviation 1
    ent_coef: float = 0.01  # c₂
    vf_coef: float = 0.5  # c₁
    max_grad_norm: float = 10.0  # global norm that gradients are clipped to
    norm_obs: bool = False  # observations at mean 0 and standard deviation 1
    norm_reward: bool = False  # rewards by the standard deviation of their discounted sum
    init_std: float = 1.0  # standard deviation of continuous actions, at first
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of each hidden layer

    def __post_init__(self):
        require(
            self,
            "num_envs >= 1",
            "num_steps >= 1",
            "total_timesteps >= num_envs * num_steps",
            "learning_rate > 0",
            "0 <= gamma <= 1",
            "0 <= gae_lambda <= 1",
            "ent_coef >= 0",
            "vf_coef >= 0",
            "max_grad_norm > 0",
            "init_std > 0",
            "all(size >= 1 for size in hidden_sizes)",
        )


class Params(NamedTuple):
    actor: Any  # θ
    statistics: Any  # of observations; () if they are not normalized


class State(NamedTuple):
    key: jax.Array
    params: Params
    critic: Any  # w
    opt_state: optax.OptState
    env: EnvState
    reward_statistics: Any  # () if rewards are not normalized


class Batch(NamedTuple):
    obs: jax.Array  # [B, ...] as the networks see it
    action: jax.Array
    advantage: jax.Array  # [B] A
    target: jax.Array  # [B] R


def policy_loss(log_prob, advantage) -> jax.Array:
    """-ln π(a | s; θ) A."""
    return -log_prob * advantage


def value_loss(value, target) -> jax.Array:
    """½ (V(s; w) - R)²."""
    return 0.5 * jnp.square(value - target)


def make(config: Config) -> Algorithm:
    env = with_clipped_actions(make_env(config.env_id, config.num_envs))
    distribution = distribution_for(env, config.init_std)
    normalizer = obs_normalizer(env, config.norm_obs)
    scaler = reward_scaler(env, config.norm_reward)
    sizes = config.hidden_sizes, distribution.num_outputs
    actor = distribution.head(orthogonal(network_for(env, *sizes, jnp.tanh), 0.01))
    critic = orthogonal(network_for(env, config.hidden_sizes, 1, jnp.tanh), 1.0)
    steps_per_update = config.num_envs * config.num_steps
    num_updates = config.total_timesteps // steps_per_update

    def optimizer(step):
        learning_rate = config.learning_rate * (1 - config.anneal_lr * step / num_updates)
        clip = optax.clip_by_global_norm(config.max_grad_norm)
        return optax.chain(clip, optax.adam(learning_rate, eps=1e-5))

    def values(params, obs):
        return critic.apply(params, obs)[..., 0]

    def loss(networks, batch):
        y = actor.apply(networks[0], batch.obs)
        value = values(networks[1], batch.obs)
        log_prob = distribution.log_prob(y, batch.action)
        advantage = batch.advantage
        if config.norm_adv:
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        metrics = {
            "policy_loss": policy_loss(log_prob, advantage),
            "value_loss": value_loss(value, batch.target),
            "entropy": distribution.entropy(y),
        }
        metrics = {name: x.mean() for name, x in metrics.items()}
        total = metrics["policy_loss"] + config.vf_coef * metrics["value_loss"]
        return total - config.ent_coef * metrics["entropy"], metrics

    def init(key):
        key, key_actor, key_critic, key_env = jax.random.split(key, 4)
        networks = actor.init(key_actor), critic.init(key_critic)
        return State(
            key=key,
            params=Params(networks[0], normalizer.init()),
            critic=networks[1],
            opt_state=optimizer(0).init(networks),
            env=env.reset(key_env),
            reward_statistics=scaler.init(),
        )

    def update(state, step):
        key_rollout = jax.random.fold_in(state.key, step)
        params = state.params

        def explore(obs, key):
            y = actor.apply(params.actor, normalizer.apply(params.statistics, obs))
            return distribution.sample(y, key)

        env_state, recent, episode_return = rollout(
            env, explore, state.env, key_rollout, config.num_steps
        )
        reward_statistics, reward = scaler.apply(state.reward_statistics, recent, config.gamma)
        obs = normalizer.apply(params.statistics, recent.obs)
        next_obs = normalizer.apply(params.statistics, recent.next_obs)
        value, next_value = values(state.critic, obs), values(state.critic, next_obs)
        advantage = jax.vmap(lambda *x: gae(*x, config.gamma, config.gae_lambda), 1, 1)(
            reward, value, next_value, recent.terminated, recent.truncated
        )
        batch = Batch(obs, recent.action, advantage, advantage + value)
        batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)

        networks = params.actor, state.critic
        grads, metrics = jax.grad(loss, has_aux=True)(networks, batch)
        updates, opt_state = optimizer(step).update(grads, state.opt_state)
        networks = optax.apply_updates(networks, updates)
        metrics |= {"episode_return": episode_return, "value": value.mean()}
        statistics = normalizer.add(params.statistics, recent.obs)
        return State(
            key=state.key,
            params=Params(networks[0], statistics),
            critic=networks[1],
            opt_state=opt_state,
            env=env_state,
            reward_statistics=reward_statistics,
        ), metrics

    def act(params, obs, key):
        y = actor.apply(params.actor, normalizer.apply(params.statistics, obs))
        return clip_action(env, distribution.mode(y))

    return Algorithm(init, update, act, num_updates, steps_per_update)


if __name__ == "__main__":
    main(Config, make)
