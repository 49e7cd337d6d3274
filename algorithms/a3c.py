"""Asynchronous advantage actor-critic (A3C).

Differs from a2c.py in the workers: each has one environment and a copy of the parameters, computes
its gradient from that copy, gives it to the parameters that all share, and copies what these then
are; and in the optimizer.

Mnih et al. 2016, Asynchronous methods for deep reinforcement learning,
https://arxiv.org/abs/1602.01783

    L(θ', w') = Σ_t -ln π(a | s; θ') (R - V(s; w'))                         (algorithm S3)
                + c₁ ½ (V(s; w') - R)² - c₂ H(π(s; θ'))
    g ← α g + (1 - α) ∇L²,  (θ, w) ← (θ, w) - η ∇L / √(g + ε)               (section 4)
    (θ', w') ← (θ, w)

with R of up to num_steps rewards, and one g for all workers (Shared RMSProp).

This is a deterministic simulation of asynchrony. The workers take turns, so a gradient is always
num_workers - 1 updates of the parameters old; with one worker this is A2C. A gradient depends on
nothing but its worker's copy, so those of a round are computed at once, and then applied one after
the other. The paper's workers run freely: their order and lags vary, and they write without locks,
so that parts of their updates may be lost.

Departs from the paper, besides: rollouts go on over the end of an episode; gradients are clipped;
policy and value share no layer; continuous actions have one standard deviation for all
observations, and their units make finite bounds -1 and 1; truncated episodes bootstrap from V(s').
With norm_obs a rollout and its loss see observations scaled by the statistics of all workers'
rollouts before it, the first one's unscaled.

Metrics: `value`, mean V(s) of the rollouts (discounted return, scaled with norm_reward);
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
    num_workers: int = 8  # each with one environment
    num_steps: int = 8  # steps of a rollout
    learning_rate: float = 2e-3  # η
    anneal_lr: bool = True  # the learning rate falls linearly to 0
    gamma: float = 0.99  # discount factor
    rms_decay: float = 0.99  # α
    rms_epsilon: float = 0.1  # ε
    ent_coef: float = 0.01  # c₂
    vf_coef: float = 0.5  # c₁
    max_grad_norm: float = 40.0  # global norm that gradients are clipped to
    norm_obs: bool = False  # scale observations to mean 0 and standard deviation 1
    norm_reward: bool = False  # divide rewards by the standard deviation of their discounted sum
    init_std: float = 1.0  # initial standard deviation of actions whose bounds are -1 and 1
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of each hidden layer

    def __post_init__(self):
        require(
            self,
            "total_timesteps >= num_workers * num_steps",
            "0 <= rms_decay < 1",
            "rms_epsilon > 0",
        )


class Params(NamedTuple):
    actor: Any  # θ
    statistics: Statistics | None  # of observations; None if they are not normalized


class State(NamedTuple):
    key: jax.Array
    params: Params
    critic_params: Any  # w
    copies: Any  # [W, ...] (θ', w') of each worker
    opt_state: optax.OptState  # g
    env: EnvState
    reward_scale: Any  # of discounted sums: see scale_rewards; None if rewards are not normalized


class Batch(NamedTuple):
    obs: jax.Array  # [T, ...] as the networks see it
    action: jax.Array
    advantage: jax.Array  # [T] R - V(s)
    target: jax.Array  # [T] R


def td_error(value, reward, next_value, terminated, gamma) -> jax.Array:
    """δ = r + γ (1 - d) V(s') - V(s), for one transition."""
    return reward + gamma * (1 - terminated) * next_value - value


def policy_loss(log_prob, advantage) -> jax.Array:
    """-ln π(a | s; θ') (R - V(s; w')), for one transition."""
    return -log_prob * advantage


def value_loss(value, target) -> jax.Array:
    """½ (V(s; w') - R)², for one transition."""
    return 0.5 * jnp.square(value - target)


def take_turns(optimizer, params, opt_state, grads) -> tuple:
    """Apply the gradient of each worker [W, ...] to the parameters, one after the other; return
    these, the optimizer's state, and what each worker copies after its own, [W, ...]."""

    def turn(carry, grads):
        params, opt_state = carry
        updates, opt_state = optimizer.update(grads, opt_state)
        params = optax.apply_updates(params, updates)
        return (params, opt_state), params

    (params, opt_state), copies = jax.lax.scan(turn, (params, opt_state), grads)
    return params, opt_state, copies


def make(config: Config) -> Algorithm:
    env = map_actions(make_env(config.env_id, config.num_workers), bound_action)
    no_obs = no_obs_statistics(env, config.norm_obs)
    no_rewards = (jnp.zeros(env.num_envs), no_statistics(())) if config.norm_reward else None
    actor = make_network(env, config.hidden_sizes, activation=jnp.tanh)
    actor = make_policy(env, with_orthogonal_init(actor, 0.01), config.init_std)
    critic = with_orthogonal_init(make_network(env, config.hidden_sizes, 1, jnp.tanh), 1.0)
    steps_per_update = config.num_workers * config.num_steps
    num_updates = config.total_timesteps // steps_per_update

    def optimizer(step):
        learning_rate = config.learning_rate * (1 - config.anneal_lr * step / num_updates)
        clip = optax.clip_by_global_norm(config.max_grad_norm)
        rmsprop = optax.rmsprop(learning_rate, config.rms_decay, config.rms_epsilon)
        return optax.chain(clip, rmsprop)

    def values(critic_params, obs):
        return critic.apply(critic_params, obs)[..., 0]

    def loss(network_params, batch):
        actor_params, critic_params = network_params
        distribution = actor.apply(actor_params, batch.obs)
        value = values(critic_params, batch.obs)
        log_prob = log_probability(distribution, batch.action)
        metrics = {
            "policy_loss": policy_loss(log_prob, batch.advantage),
            "value_loss": value_loss(value, batch.target),
            "entropy": entropy(distribution),
        }
        metrics = {name: x.mean() for name, x in metrics.items()}
        total = metrics["policy_loss"] + config.vf_coef * metrics["value_loss"]
        total -= config.ent_coef * metrics["entropy"]
        return config.num_steps * total, metrics  # the sum over the rollout

    def init(key):
        key, key_actor, key_critic, key_env = jax.random.split(key, 4)
        actor_params, critic_params = actor.init(key_actor), critic.init(key_critic)
        network_params = actor_params, critic_params
        return State(
            key=key,
            params=Params(actor_params, no_obs),
            critic_params=critic_params,
            copies=jax.tree.map(lambda x: jnp.stack([x] * config.num_workers), network_params),
            opt_state=optimizer(0).init(network_params),
            env=env.reset(key_env),
            reward_scale=no_rewards,
        )

    def update(state, step):
        key_rollout = jax.random.fold_in(state.key, step)
        params = state.params
        actor_copies, critic_copies = state.copies

        def behaviour_policy(obs, key):
            obs = normalize(params.statistics, obs)
            return sample(key, jax.vmap(actor.apply)(actor_copies, obs))

        env_state, transitions, episodes = rollout(
            env, behaviour_policy, state.env, key_rollout, config.num_steps
        )
        reward_scale, reward = scale_rewards(state.reward_scale, transitions, config.gamma)
        obs = normalize(params.statistics, transitions.obs)
        next_obs = normalize(params.statistics, transitions.next_obs)
        value = jax.vmap(values, (0, 1), 1)(critic_copies, obs)
        next_value = jax.vmap(values, (0, 1), 1)(critic_copies, next_obs)
        error = td_error(value, reward, next_value, transitions.terminated, config.gamma)
        done = transitions.terminated | transitions.truncated
        advantage = jax.vmap(gae, (1, 1, None, None), 1)(error, done, config.gamma, 1.0)
        batch = Batch(
            obs=obs,
            action=transitions.action,
            advantage=advantage,
            target=advantage + value,
        )

        grads, metrics = jax.vmap(jax.grad(loss, has_aux=True), (0, 1))(state.copies, batch)
        network_params, opt_state, copies = take_turns(
            optimizer(step), (params.actor, state.critic_params), state.opt_state, grads
        )
        metrics = {name: x.mean() for name, x in metrics.items()}
        metrics |= episodes | {"value": value.mean()}
        statistics = add_batch(params.statistics, transitions.obs)
        actor_params, critic_params = network_params
        return State(
            key=state.key,
            params=Params(actor_params, statistics),
            critic_params=critic_params,
            copies=copies,
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
