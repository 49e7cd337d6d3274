"""Proximal policy optimization (PPO).

Differs from a2c.py in the objective, which is clipped, so that a rollout can be used for several
epochs of minibatches.

Schulman et al. 2017, Proximal policy optimization algorithms, https://arxiv.org/abs/1707.06347

    ρ = π(a | s; θ) / π(a | s; θ_old)
    L(θ) = -E[min(ρ A, clip(ρ, 1 - ε, 1 + ε) A)]                            (eq. 7)
           + c₁ E[½ (V(s; w) - R)²] - c₂ E[H(π(s; θ))]                      (eq. 9)

with A by GAE over a rollout, and R = A + V(s; w_old).

Departs from the paper: the 13 core details and the 9 for continuous actions of Huang et al. 2022,
https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/, such as orthogonal initial
weights, an annealed learning rate, advantages normalized in each minibatch and clipped values; but
the units of continuous actions make finite bounds -1 and 1, and truncated episodes bootstrap from
V(s'). Statistics change once a rollout, not at every step: with norm_obs a rollout and its loss see
observations scaled by the statistics of all rollouts before it, the first one's unscaled.

Metrics: `value`, mean V(s) of the rollout (discounted return, scaled with norm_reward);
`policy_loss`, mean of (7); `value_loss`, mean of the term of c₁, with clipping; `entropy`, mean of
H (nats); `approx_kl`, mean of ρ - 1 - ln ρ, which estimates KL(π_old, π) (nats); `clip_fraction`,
the part of samples with ρ outside 1 ± ε (all but `value` over every minibatch).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.buffers import rows
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
    num_envs: int = 4  # environments stepped in parallel
    num_steps: int = 128  # steps of each environment in a rollout
    update_epochs: int = 4  # times that a rollout is used
    num_minibatches: int = 4  # gradient steps of an epoch
    learning_rate: float = 1e-3  # of Adam
    anneal_lr: bool = True  # the learning rate falls linearly to 0
    gamma: float = 0.99  # discount factor
    gae_lambda: float = 0.95  # λ of GAE
    norm_adv: bool = True  # scale the advantages of a minibatch to mean 0 and standard deviation 1
    clip_coef: float = 0.2  # ε
    clip_vloss: bool = True  # clip V(s; w) to within ε of V(s; w_old)
    ent_coef: float = 0.01  # c₂
    vf_coef: float = 0.5  # c₁
    max_grad_norm: float = 0.5  # global norm that gradients are clipped to
    norm_obs: bool = False  # scale observations to mean 0 and standard deviation 1
    norm_reward: bool = False  # divide rewards by the standard deviation of their discounted sum
    init_std: float = 1.0  # initial standard deviation of actions whose bounds are -1 and 1
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of each hidden layer

    def __post_init__(self):
        require(
            self,
            "total_timesteps >= num_envs * num_steps",
            "update_epochs >= 1",
            "num_envs * num_steps % num_minibatches == 0",
            "num_envs * num_steps >= 2 * num_minibatches or not norm_adv",  # one is its own mean
            "clip_coef > 0",
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
    log_prob: jax.Array  # [B] ln π(a | s; θ_old)
    value: jax.Array  # [B] V(s; w_old)
    advantage: jax.Array  # [B] A
    target: jax.Array  # [B] R


def td_error(value, reward, next_value, terminated, gamma) -> jax.Array:
    """δ = r + γ (1 - d) V(s') - V(s), for one transition."""
    return reward + gamma * (1 - terminated) * next_value - value


def policy_loss(log_prob, old_log_prob, advantage, clip_coef) -> jax.Array:
    """-min(ρ A, clip(ρ, 1 - ε, 1 + ε) A) with ρ = exp(log_prob - old_log_prob)."""
    ratio = jnp.exp(log_prob - old_log_prob)
    clipped = jnp.clip(ratio, 1 - clip_coef, 1 + clip_coef)
    return -jnp.minimum(ratio * advantage, clipped * advantage)


def value_loss(value, old_value, target, clip_coef) -> jax.Array:
    """½ max((V - R)², (V_old + clip(V - V_old, -ε, ε) - R)²)."""
    clipped = old_value + jnp.clip(value - old_value, -clip_coef, clip_coef)
    return 0.5 * jnp.maximum(jnp.square(value - target), jnp.square(clipped - target))


def approximate_kl(log_prob, old_log_prob) -> jax.Array:
    """ρ - 1 - ln ρ, whose mean estimates KL(π_old, π) (http://joschu.net/blog/kl-approx.html)."""
    log_ratio = log_prob - old_log_prob
    return jnp.exp(log_ratio) - 1 - log_ratio


def is_clipped(log_prob, old_log_prob, clip_coef) -> jax.Array:
    """1 if |ρ - 1| > ε, else 0."""
    return 1.0 * (jnp.abs(jnp.exp(log_prob - old_log_prob) - 1) > clip_coef)


def make(config: Config) -> Algorithm:
    env = map_actions(make_env(config.env_id, config.num_envs), bound_action)
    no_obs = no_obs_statistics(env, config.norm_obs)
    no_rewards = (jnp.zeros(env.num_envs), no_statistics(())) if config.norm_reward else None
    actor = make_network(env, config.hidden_sizes, activation=jnp.tanh)
    actor = make_policy(env, with_orthogonal_init(actor, 0.01), config.init_std)
    critic = with_orthogonal_init(make_network(env, config.hidden_sizes, 1, jnp.tanh), 1.0)
    steps_per_update = config.num_envs * config.num_steps
    num_updates = config.total_timesteps // steps_per_update
    value_clip = config.clip_coef if config.clip_vloss else jnp.inf

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
            "policy_loss": policy_loss(log_prob, batch.log_prob, advantage, config.clip_coef),
            "value_loss": value_loss(value, batch.value, batch.target, value_clip),
            "entropy": entropy(distribution),
            "approx_kl": approximate_kl(log_prob, batch.log_prob),
            "clip_fraction": is_clipped(log_prob, batch.log_prob, config.clip_coef),
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
        key_rollout, key_epochs = jax.random.split(jax.random.fold_in(state.key, step))
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
        log_prob = log_probability(actor.apply(params.actor, obs), transitions.action)
        batch = Batch(
            obs=obs,
            action=transitions.action,
            log_prob=log_prob,
            value=value,
            advantage=advantage,
            target=advantage + value,
        )
        batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)

        def learn(carry, index):
            network_params, opt_state = carry
            grads, metrics = jax.grad(loss, has_aux=True)(network_params, rows(batch, index))
            updates, opt_state = optimizer(step).update(grads, opt_state)
            network_params = optax.apply_updates(network_params, updates)
            return (network_params, opt_state), metrics

        keys = jax.random.split(key_epochs, config.update_epochs)
        index = jax.vmap(jax.random.permutation, (0, None))(keys, steps_per_update)
        index = index.reshape(config.update_epochs * config.num_minibatches, -1)
        network_params = params.actor, state.critic_params
        (network_params, opt_state), metrics = jax.lax.scan(
            learn, (network_params, state.opt_state), index
        )
        metrics = {name: x.mean() for name, x in metrics.items()}
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
