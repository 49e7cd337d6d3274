"""Q actor-critic (QAC).

Differs from a2c.py in the critic, which is Q(s, a; w) and learns by the one-step error of SARSA; Q
takes the place of the advantage.

Sutton et al. 2000, Policy gradient methods for reinforcement learning with function approximation,
https://papers.nips.cc/paper/1713

    L(θ, w) = -E[ln π(a | s; θ) Q(s, a; w)]                                 (theorem 1)
              + E[½ δ²] - c E[H(π(s; θ))]
    δ = r + γ (1 - d) Q(s', a'; w) - Q(s, a; w)                             (SARSA)

with d = 1 where the MDP terminated. a' is a new sample from π at s', not the rollout's next action,
because there is none at a time limit or at the end of a rollout. The gradient of δ² is that of
Q(s, a; w) alone. The critic must follow the actor, so it learns faster.

Departs from the paper: Q is a network of its own, not linear in ∇ln π as theorem 2 requires; Q is
normalized in the first term, which subtracts a baseline that is the same for all states of a
rollout; γ^t is left out, as is usual; Adam; the entropy bonus; the units of continuous actions make
finite bounds -1 and 1. With norm_obs a rollout and its loss see observations scaled by the
statistics of all rollouts before it, the first one's unscaled.

Metrics: `value`, mean Q(s, a) of the rollout (discounted return, scaled with norm_reward);
`policy_loss`, mean of the first term of L; `value_loss`, mean of the second; `entropy`, mean of H
(nats).
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
from common.networks import make_network, make_q_network
from common.normalization import (
    Statistics,
    add_batch,
    no_obs_statistics,
    no_statistics,
    normalize,
    scale_rewards,
)
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "CartPole-v1"  # any environment
    total_timesteps: int = 300_000  # environment steps, over all environments
    num_envs: int = 8  # environments stepped in parallel
    num_steps: int = 8  # steps of each environment in a rollout
    learning_rate: float = 2.5e-4  # of Adam, for the actor
    critic_learning_rate: float = 1e-2  # of Adam, for the critic
    anneal_lr: bool = True  # the learning rates fall linearly to 0
    gamma: float = 0.99  # discount factor
    norm_adv: bool = True  # scale Q in the actor's loss to mean 0 and standard deviation 1
    ent_coef: float = 0.01  # c
    max_grad_norm: float = 10.0  # global norm that each network's gradient is clipped to
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
    value: jax.Array  # [B] Q(s, a; w), before the update
    target: jax.Array  # [B] Q(s, a; w) + δ


def td_error(q_value, reward, next_value, terminated, gamma) -> jax.Array:
    """δ = r + γ (1 - d) V(s') - Q(s, a), for one transition; no gradient through the target."""
    target = reward + gamma * (1 - terminated) * next_value
    return jax.lax.stop_gradient(target) - q_value


def policy_loss(log_prob, q_value) -> jax.Array:
    """-ln π(a | s; θ) Q(s, a; w), for one transition."""
    return -log_prob * q_value


def value_loss(q_value, target) -> jax.Array:
    """½ (Q(s, a; w) - target)², for one transition."""
    return 0.5 * jnp.square(q_value - target)


def make(config: Config) -> Algorithm:
    env = map_actions(make_env(config.env_id, config.num_envs), bound_action)
    no_obs = no_obs_statistics(env, config.norm_obs)
    no_rewards = (jnp.zeros(env.num_envs), no_statistics(())) if config.norm_reward else None
    actor = make_network(env, config.hidden_sizes, activation=jnp.tanh)
    actor = make_policy(env, with_orthogonal_init(actor, 0.01), config.init_std)
    critic = with_orthogonal_init(make_q_network(env, config.hidden_sizes), 1.0)
    steps_per_update = config.num_envs * config.num_steps
    num_updates = config.total_timesteps // steps_per_update

    def optimizer(step):
        def adam(learning_rate):
            learning_rate *= 1 - config.anneal_lr * step / num_updates
            clip = optax.clip_by_global_norm(config.max_grad_norm)
            return optax.chain(clip, optax.adam(learning_rate, eps=1e-5))

        optimizers = {
            "actor": adam(config.learning_rate),
            "critic": adam(config.critic_learning_rate),
        }
        return optax.partition(optimizers, ("actor", "critic"))

    def loss(network_params, batch):
        actor_params, critic_params = network_params
        distribution = actor.apply(actor_params, batch.obs)
        q_value = critic.apply(critic_params, batch.obs, batch.action)
        log_prob = log_probability(distribution, batch.action)
        weight = batch.value
        if config.norm_adv:
            weight = (weight - weight.mean()) / (weight.std() + 1e-8)
        metrics = {
            "policy_loss": policy_loss(log_prob, weight),
            "value_loss": value_loss(q_value, batch.target),
            "entropy": entropy(distribution),
        }
        metrics = {name: x.mean() for name, x in metrics.items()}
        total = metrics["policy_loss"] + metrics["value_loss"]
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
        key_rollout, key_next = jax.random.split(jax.random.fold_in(state.key, step))
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
        value = critic.apply(state.critic_params, obs, transitions.action)
        next_action = sample(key_next, actor.apply(params.actor, next_obs))
        next_value = critic.apply(state.critic_params, next_obs, next_action)
        error = td_error(value, reward, next_value, transitions.terminated, config.gamma)
        batch = Batch(
            obs=obs,
            action=transitions.action,
            value=value,
            target=value + error,
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
