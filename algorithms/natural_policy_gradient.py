"""Natural policy gradient (NPG).

Differs from a2c.py in the direction of the policy's step, which does not depend on how the policy
is parametrized, and in its length, a KL divergence; the critic learns apart, for several epochs.

Kakade 2001, A natural policy gradient,
https://papers.nips.cc/paper/2073

    F(θ) = E[∇ln π(a | s; θ) ∇ln π(a | s; θ)ᵀ]                              (section 3)
    θ ← θ + β F⁻¹ g,   g = ∇η(θ) = E[∇ln π(a | s; θ) A]
    β = √(2 δ / gᵀ F⁻¹ g)      a step of ½ (Δθ)ᵀ F Δθ = δ, about KL(π_old ‖ π)

with β as Rajeswaran et al. 2017 have it, https://arxiv.org/abs/1703.02660, and A by GAE over a
rollout.

Departs from the paper: F is the mean over a rollout's states, exact over actions; x ≈ F⁻¹ g by some
iterations of conjugate gradient, as in Schulman et al. 2015, https://arxiv.org/abs/1502.05477, with
F + damping I for F everywhere, in β too; A in place of Q; a learned V(s; w) in place of the
compatible critic; normalized advantages; policy and value share no layer; continuous actions have
one standard deviation for all observations, and their units make finite bounds -1 and 1; truncated
episodes bootstrap from V(s'); δ may be annealed. With norm_obs a rollout and its loss see
observations scaled by the statistics of all rollouts before it, the first one's unscaled.

Metrics: `value`, mean V(s) of the rollout (discounted return, scaled with norm_reward);
`value_loss`, mean ½ (V - R)² over every minibatch; `entropy`, mean of H (nats); `kl`, mean
KL(π_old ‖ π) of the step (nats); `improvement`, mean of (ρ - 1) A after it, with the
ratio ρ of the probabilities after and before it; `step_size`, β.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from common.algorithm import Algorithm, require
from common.buffers import rows
from common.distributions import (
    entropy,
    kl_divergence,
    log_probability,
    make_policy,
    mode,
    sample,
    with_orthogonal_init,
)
from common.envs import EnvState, bound_action, make_env, map_actions, rollout
from common.natural_gradient import conjugate_gradient, fisher_vector_product
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
    num_steps: int = 128  # steps of each environment in a rollout
    target_kl: float = 0.01  # δ (nats)
    anneal_kl: bool = False  # δ falls linearly to 0
    num_cg_iterations: int = 10  # of conjugate gradient
    cg_damping: float = 1e-3  # added to the diagonal of F
    update_epochs: int = 5  # times that the critic learns from a rollout
    num_minibatches: int = 8  # gradient steps of an epoch
    learning_rate: float = 1e-3  # of Adam, for the critic
    gamma: float = 0.99  # discount factor
    gae_lambda: float = 0.98  # λ of GAE
    norm_adv: bool = True  # scale the advantages of a rollout to mean 0 and standard deviation 1
    norm_obs: bool = False  # scale observations to mean 0 and standard deviation 1
    norm_reward: bool = False  # divide rewards by the standard deviation of their discounted sum
    init_std: float = 1.0  # initial standard deviation of actions whose bounds are -1 and 1
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of each hidden layer

    def __post_init__(self):
        require(
            self,
            "total_timesteps >= num_envs * num_steps",
            "target_kl > 0",
            "cg_damping >= 0",
            "update_epochs >= 1",
            "num_envs * num_steps % num_minibatches == 0",
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


def improvement(log_prob, old_log_prob, advantage) -> jax.Array:
    """(ρ - 1) A with ρ = exp(log_prob - old_log_prob), for one transition.

    At θ_old its gradient is ∇ln π(a | s; θ) A.
    """
    return (jnp.exp(log_prob - old_log_prob) - 1) * advantage


def step_size(squared_norm, target_kl) -> jax.Array:
    """β = √(2 δ / xᵀ F x); finite if x is 0."""
    return jnp.sqrt(2 * target_kl / jnp.maximum(squared_norm, jnp.finfo(squared_norm.dtype).tiny))


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
    optimizer = optax.adam(config.learning_rate, eps=1e-5)

    def values(critic_params, obs):
        return critic.apply(critic_params, obs)[..., 0]

    def critic_loss(critic_params, batch):
        return value_loss(values(critic_params, batch.obs), batch.target).mean()

    def improve(actor_params, batch, target_kl):
        theta, to_params = ravel_pytree(actor_params)
        advantage = batch.advantage
        if config.norm_adv:
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        old = actor.apply(actor_params, batch.obs)
        old_log_prob = log_probability(old, batch.action)

        def policy(theta):
            return actor.apply(to_params(theta), batch.obs)

        def mean_improvement(theta):
            log_prob = log_probability(policy(theta), batch.action)
            return improvement(log_prob, old_log_prob, advantage).mean()

        gradient = jax.grad(mean_improvement)(theta)
        product = fisher_vector_product(policy, theta, config.cg_damping)
        direction, image = conjugate_gradient(product, gradient, config.num_cg_iterations)
        beta = step_size(direction @ image, target_kl)
        theta += beta * direction
        return to_params(theta), {
            "kl": kl_divergence(old, policy(theta)).mean(),
            "improvement": mean_improvement(theta),
            "step_size": beta,
            "entropy": entropy(old).mean(),
        }

    def init(key):
        key, key_actor, key_critic, key_env = jax.random.split(key, 4)
        actor_params, critic_params = actor.init(key_actor), critic.init(key_critic)
        return State(
            key=key,
            params=Params(actor_params, no_obs),
            critic_params=critic_params,
            opt_state=optimizer.init(critic_params),
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
        batch = Batch(
            obs=obs,
            action=transitions.action,
            advantage=advantage,
            target=advantage + value,
        )
        batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)

        target_kl = config.target_kl * (1 - config.anneal_kl * step / num_updates)
        actor_params, metrics = improve(params.actor, batch, target_kl)

        def learn(carry, index):
            critic_params, opt_state = carry
            loss, grads = jax.value_and_grad(critic_loss)(critic_params, rows(batch, index))
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(critic_params, updates), opt_state), loss

        keys = jax.random.split(key_epochs, config.update_epochs)
        index = jax.vmap(jax.random.permutation, (0, None))(keys, steps_per_update)
        index = index.reshape(config.update_epochs * config.num_minibatches, -1)
        (critic_params, opt_state), losses = jax.lax.scan(
            learn, (state.critic_params, state.opt_state), index
        )
        metrics |= episodes | {"value": value.mean(), "value_loss": losses.mean()}
        statistics = add_batch(params.statistics, transitions.obs)
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
