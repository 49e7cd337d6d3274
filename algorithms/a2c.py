"""Advantage actor-critic (A2C).

Mnih et al. 2016, Asynchronous methods for deep reinforcement learning,
https://arxiv.org/abs/1602.01783; without the asynchrony: environments in parallel instead of
workers, as Wu et al. 2017, https://arxiv.org/abs/1708.05144, name it

    L(θ, w) = -E[ln π(a | s; θ) A]                                          (section 4.3)
              + c₁ E[½ (V(s; w) - R)²] - c₂ E[H(π(s; θ))]

with A by GAE over a rollout, and R = A + V(s; w). λ = 1, the default, is the paper's n-step return.

Departs from the paper: Adam, not RMSProp; normalized advantages; policy and value share no layer;
continuous actions have one standard deviation for all observations, and their units make finite
bounds -1 and 1; truncated episodes bootstrap from V(s'). With norm_obs a rollout and its loss see
observations scaled by the statistics of all rollouts before it, the first one's unscaled.

Metrics: `value`, mean V(s) of the rollout (discounted return, scaled with norm_reward);
`policy_loss`, mean of the first term of L; `value_loss`, mean of the second, without c₁; `entropy`,
mean of H (nats).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.distributions import (
    entropy,
    log_probability,
    make_policy,
    mode,
    sample,
    with_orthogonal_init,
)
from common.envs import EnvState, bound_action, make_env, map_actions, rollout
from common.networks import make_network
from common.normalization import (
    Statistics,
    add_batch,
    no_obs_statistics,
    no_statistics,
    normalize,
    scale_rewards,
)
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
    gae_lambda: float = 1.0  # λ of GAE
    norm_adv: bool = True  # scale the advantages of a rollout to mean 0 and standard deviation 1
    ent_coef: float = 0.01  # c₂
    vf_coef: float = 0.5  # c₁
    max_grad_norm: float = 1.0  # global norm that gradients are clipped to
    norm_obs: bool = False  # scale observations to mean 0 and standard deviation 1
    norm_reward: bool = False  # divide rewards by the standard deviation of their discounted sum
    init_std: float = 1.0  # initial standard deviation of actions whose bounds are -1 and 1
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of each hidden layer

    def __post_init__(self):
        require(
            self,
            "total_timesteps >= num_envs * num_steps",
            "num_envs * num_steps >= 2 or not norm_adv",  # a single one is its own mean
        )


class Params(NamedTuple):
    actor: Any  # θ
    statistics: Statistics | None  # of observations; None if they are not normalized


class State(NamedTuple):
    key: jax.Array
    params: Params
    critic_params: Any  # w
    opt_state: optax.OptState
    env: EnvState
    reward_scale: Any  # of discounted sums: see scale_rewards; None if rewards are not normalized


class Batch(NamedTuple):
    obs: jax.Array  # [B, ...] as the networks see it
    action: jax.Array
    advantage: jax.Array  # [B] A
    target: jax.Array  # [B] R


def td_error(value, reward, next_value, terminated, gamma) -> jax.Array:
    """δ = r + γ (1 - d) V(s') - V(s), for one transition."""
    return reward + gamma * (1 - terminated) * next_value - value


def policy_loss(log_prob, advantage) -> jax.Array:
    """-ln π(a | s; θ) A, for one transition."""
    return -log_prob * advantage


def value_loss(value, target) -> jax.Array:
    """½ (V(s; w) - R)², for one transition."""
    return 0.5 * jnp.square(value - target)


def make(config: Config) -> Algorithm:
    env = map_actions(make_env(config.env_id, config.num_envs), bound_action)
    no_obs = no_obs_statistics(env, config.norm_obs)
    no_rewards = (jnp.zeros(env.num_envs), no_statistics(())) if config.norm_reward else None
    actor = make_network(env, config.hidden_sizes, activation=jnp.tanh)
    actor = make_policy(env, with_orthogonal_init(actor, 0.01), config.init_std)
    critic = with_orthogonal_init(make_network(env, config.hidden_sizes, 1, jnp.tanh), 1.0)
    steps_per_update = config.num_envs * config.num_steps
    num_updates = config.total_timesteps // steps_per_update

    def optimizer(step):
        learning_rate = config.learning_rate * (1 - config.anneal_lr * step / num_updates)
        clip = optax.clip_by_global_norm(config.max_grad_norm)
        return optax.chain(clip, optax.adam(learning_rate, eps=1e-5))

    def values(critic_params, obs):
        return critic.apply(critic_params, obs)[..., 0]

    def loss(network_params, batch):
        actor_params, critic_params = network_params
        distribution = actor.apply(actor_params, batch.obs)
        value = values(critic_params, batch.obs)
        log_prob = log_probability(distribution, batch.action)
        advantage = batch.advantage
        if config.norm_adv:
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        metrics = {
            "policy_loss": policy_loss(log_prob, advantage),
            "value_loss": value_loss(value, batch.target),
            "entropy": entropy(distribution),
        }
        metrics = {name: x.mean() for name, x in metrics.items()}
        total = metrics["policy_loss"] + config.vf_coef * metrics["value_loss"]
        return total - config.ent_coef * metrics["entropy"], metrics

    def init(key):
        key, key_actor, key_critic, key_env = jax.random.split(key, 4)
        actor_params, critic_params = actor.init(key_actor), critic.init(key_critic)
        return State(
            key=key,
            params=Params(actor_params, no_obs),
            critic_params=critic_params,
            opt_state=optimizer(0).init((actor_params, critic_params)),
            env=env.reset(key_env),
            reward_scale=no_rewards,
        )

    def update(state, step):
        key_rollout = jax.random.fold_in(state.key, step)
        params = state.params

        def behaviour_policy(obs, key):
            distribution = actor.apply(params.actor, normalize(params.statistics, obs))
            return sample(key, distribution)

        env_state, transitions, episodes = rollout(
            env, behaviour_policy, state.env, key_rollout, config.num_steps
        )
        reward_scale, reward = scale_rewards(state.reward_scale, transitions, config.gamma)
        obs = normalize(params.statistics, transitions.obs)
        next_obs = normalize(params.statistics, transitions.next_obs)
        value = values(state.critic_params, obs)
        next_value = values(state.critic_params, next_obs)
        error = td_error(value, reward, next_value, transitions.terminated, config.gamma)
        done = transitions.terminated | transitions.truncated
        advantage = jax.vmap(gae, (1, 1, None, None), 1)(
            error, done, config.gamma, config.gae_lambda
        )
        batch = Batch(
            obs=obs,
            action=transitions.action,
            advantage=advantage,
            target=advantage + value,
        )
        batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)

        network_params = params.actor, state.critic_params
        grads, metrics = jax.grad(loss, has_aux=True)(network_params, batch)
        updates, opt_state = optimizer(step).update(grads, state.opt_state)
        network_params = optax.apply_updates(network_params, updates)
        metrics |= episodes | {"value": value.mean()}
        statistics = add_batch(params.statistics, transitions.obs)
        actor_params, critic_params = network_params
        return State(
            key=state.key,
            params=Params(actor_params, statistics),
            critic_params=critic_params,
            opt_state=opt_state,
            env=env_state,
            reward_scale=reward_scale,
        ), metrics

    def act(params, obs, key, choose=mode):
        distribution = actor.apply(params.actor, normalize(params.statistics, obs))
        return bound_action(env, choose(distribution))

    return Algorithm(init, update, act, num_updates, steps_per_update)


if __name__ == "__main__":
    main(Config, make)
