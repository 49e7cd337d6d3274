"""Importance weighted actor-learner (IMPALA).

Differs from a2c.py in the actors, which act with the parameters that the learner had `policy_lag`
updates ago, and in the advantages and targets, which correct for that by V-trace.

Espeholt et al. 2018, IMPALA: Scalable distributed deep-RL with importance weighted actor-learner
architectures, https://arxiv.org/abs/1802.01561

    v_s = V(s) + Σ_t γ^(t-s) (Π_s≤i<t c_i) ρ_t δ_t                          (eq. 1)
    ρ = min(ρ̄, π(a | s; θ) / μ(a | s)),  c = λ min(c̄, π(a | s; θ) / μ(a | s))
    L(θ, w) = -E[ρ ln π(a | s; θ) (r + γ v_s+1 - V(s))]                     (section 4.2)
              + c₁ E[½ (V(s; w) - v_s)²] - c₂ E[H(π(s; θ))]

where μ = π(θ_old) acted, and v_s+1 is V(s') at the end of a rollout and where the time limit cut
it. Without lag, and with ρ̄ and c̄ of at least 1, this is a2c.py at λ = 1. Two weaker corrections of
section 5.2.2 are here, too; its ε-correction, which bounds ln π, is not:

    one_step    ρ in the policy's gradient alone; v_s is the n-step return, as if ρ = c = 1
    none        both as if ρ = c = 1

Departs from the paper: actors and learner take turns in one program, so that the lag is what the
flag says, where the paper's is that of a queue (the first updates act with the first parameters);
Adam, not RMSProp; normalized advantages, before ρ; policy and value share no layer; continuous
actions have one standard deviation for all observations, and their units make finite bounds -1 and
1; truncated episodes bootstrap from V(s'). With norm_obs the learner sees observations scaled by
the statistics of all rollouts before this one, the actors by those that are as old as their
parameters.

Metrics: `value`, mean V(s) of the rollout (discounted return, scaled with norm_reward);
`policy_loss`, mean of the first term of L; `value_loss`, mean of the second, without c₁; `entropy`,
mean of H (nats); `weight`, mean of ρ, 1 if nothing was corrected or had to be.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

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
from common.returns import vtrace
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "CartPole-v1"  # any environment
    total_timesteps: int = 200_000  # environment steps, over all environments
    num_envs: int = 8  # environments stepped in parallel
    num_steps: int = 8  # steps of each environment in a rollout
    policy_lag: int = 4  # updates by which the actors' parameters are behind the learner's
    correction: Literal["vtrace", "one_step", "none"] = "vtrace"  # for that lag
    rho_bar: float = 1.0  # ρ̄, bound of the weights of errors and of the policy's gradient
    c_bar: float = 1.0  # c̄, bound of the weights in traces
    learning_rate: float = 1.5e-3  # of Adam
    anneal_lr: bool = True  # the learning rate falls linearly to 0
    gamma: float = 0.99  # discount factor
    gae_lambda: float = 1.0  # λ of the traces
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
            "policy_lag >= 0",
            "rho_bar > 0",
            "0 <= c_bar <= rho_bar",
        )


class Params(NamedTuple):
    actor: Any  # θ
    statistics: Statistics | None  # of observations; None if they are not normalized


class State(NamedTuple):
    key: jax.Array
    params: Params
    old_params: Params  # [lag + 1, ...] those of update n are in row n % (lag + 1)
    critic_params: Any  # w
    opt_state: optax.OptState
    env: EnvState
    reward_scale: Any  # of discounted sums: see scale_rewards; None if rewards are not normalized


class Batch(NamedTuple):
    obs: jax.Array  # [T, N, ...] as the networks see it
    action: jax.Array
    weight: jax.Array  # [T, N] ρ
    advantage: jax.Array  # [T, N] r + γ v_s+1 - V(s)
    target: jax.Array  # [T, N] v_s


def td_error(value, reward, next_value, terminated, gamma) -> jax.Array:
    """δ = r + γ (1 - d) V(s') - V(s), for one transition."""
    return reward + gamma * (1 - terminated) * next_value - value


def weights(log_prob, old_log_prob, rho_bar, c_bar, correction) -> tuple:
    """Return ρ of the policy's gradient, ρ of the errors and c, for one transition."""
    ratio = jnp.exp(log_prob - old_log_prob)  # π(a | s; θ) / μ(a | s)
    rho, c, one = jnp.minimum(rho_bar, ratio), jnp.minimum(c_bar, ratio), jnp.ones_like(ratio)
    corrections = {"vtrace": (rho, rho, c), "one_step": (rho, one, one), "none": (one, one, one)}
    return corrections[correction]


def next_targets(target, next_value, done) -> jax.Array:
    """v_t+1, but V(s') at the end and where an episode is done, from v and V(s') [T]; [T]."""
    return jnp.where(done, next_value, jnp.append(target[1:], next_value[-1]))


def policy_loss(log_prob, weight, advantage) -> jax.Array:
    """-ρ ln π(a | s; θ) A, for one transition."""
    return -weight * log_prob * advantage


def value_loss(value, target) -> jax.Array:
    """½ (V(s; w) - v_s)², for one transition."""
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
    num_old = config.policy_lag + 1

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
            "policy_loss": policy_loss(log_prob, batch.weight, advantage),
            "value_loss": value_loss(value, batch.target),
            "entropy": entropy(distribution),
        }
        metrics = {name: x.mean() for name, x in metrics.items()}
        total = metrics["policy_loss"] + config.vf_coef * metrics["value_loss"]
        return total - config.ent_coef * metrics["entropy"], metrics

    def init(key):
        key, key_actor, key_critic, key_env = jax.random.split(key, 4)
        actor_params, critic_params = actor.init(key_actor), critic.init(key_critic)
        params = Params(actor_params, no_obs)
        return State(
            key=key,
            params=params,
            old_params=jax.tree.map(lambda x: jnp.stack([x] * num_old), params),
            critic_params=critic_params,
            opt_state=optimizer(0).init((actor_params, critic_params)),
            env=env.reset(key_env),
            reward_scale=no_rewards,
        )

    def update(state, step):
        key_rollout = jax.random.fold_in(state.key, step)
        params = state.params
        old_params = jax.tree.map(
            lambda old, x: jax.lax.dynamic_update_index_in_dim(old, x, step % num_old, 0),
            state.old_params,
            params,
        )
        acting = jax.tree.map(  # the oldest
            lambda x: jax.lax.dynamic_index_in_dim(x, (step + 1) % num_old, keepdims=False),
            old_params,
        )

        def behaviour(obs):
            return actor.apply(acting.actor, normalize(acting.statistics, obs))

        def behaviour_policy(obs, key):
            return sample(key, behaviour(obs))

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
        old_log_prob = log_probability(behaviour(transitions.obs), transitions.action)
        log_prob = log_probability(actor.apply(params.actor, obs), transitions.action)
        weight, error_weight, trace = weights(
            log_prob, old_log_prob, config.rho_bar, config.c_bar, config.correction
        )
        target = jax.vmap(vtrace, (1, 1, 1, 1, None), 1)(
            value, error_weight * error, done, config.gae_lambda * trace, config.gamma
        )
        next_target = jax.vmap(next_targets, 1, 1)(target, next_value, done)
        batch = Batch(
            obs=obs,
            action=transitions.action,
            weight=weight,
            advantage=td_error(value, reward, next_target, transitions.terminated, config.gamma),
            target=target,
        )

        network_params = params.actor, state.critic_params
        grads, metrics = jax.grad(loss, has_aux=True)(network_params, batch)
        updates, opt_state = optimizer(step).update(grads, state.opt_state)
        network_params = optax.apply_updates(network_params, updates)
        metrics |= episodes | {"value": value.mean(), "weight": weight.mean()}
        statistics = add_batch(params.statistics, transitions.obs)
        actor_params, critic_params = network_params
        return State(
            key=state.key,
            params=Params(actor_params, statistics),
            old_params=old_params,
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
