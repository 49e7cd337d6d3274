"""Proximal policy optimization with a recurrent network.

Differs from ppo.py in that actor and critic see a memory h: a gated recurrent unit (GRU), trained
by both, sees one observation o after the other. A minibatch holds whole rollouts of some of the
environments.

Schulman et al. 2017, Proximal policy optimization algorithms, https://arxiv.org/abs/1707.06347,
whose rollouts of T steps suit recurrent networks (section 5), and Cho et al. 2014, Learning phrase
representations using RNN encoder-decoder, https://arxiv.org/abs/1406.1078

    h_t = GRU(o_t, h_{t-1}),  h_{t-1} = 0 at the start of an episode         (Cho, eq. 5 to 8)
    ρ = π(a | h; θ) / π(a | h; θ_old)
    L(θ) = -E[min(ρ A, clip(ρ, 1 - ε, 1 + ε) A)]                            (eq. 7)
           + c₁ E[½ (V(h; w) - R)²] - c₂ E[H(π(h; θ))]                      (eq. 9)

with A by GAE over a rollout, and R = A + V(h; w_old). θ includes the GRU. The memories that a
rollout began with are kept for all of its epochs, and gradients go back to its first step. V of the
observation that ends an episode is taken with the memory of that episode. The GRU takes one step
after the other, forward and back, with a row for each environment of a minibatch: a rollout of more
environments and fewer steps is learned from faster.

Departs from the papers: a unit of the memory decays over 1 + u steps at first, u uniform from 1 to
`memory_steps` (chrono initialization, Tallec & Ollivier 2018, https://arxiv.org/abs/1804.11188);
the 13 core details, the 9 for continuous actions and the 5 for LSTMs of Huang et al. 2022,
https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/, such as orthogonal initial
weights (not the GRU's), an annealed learning rate, advantages normalized in each minibatch and
clipped values; but the units of continuous actions make finite bounds -1 and 1, and truncated
episodes bootstrap from V(h'). Statistics change once a rollout, not at every step: with norm_obs a
rollout and its loss see observations scaled by the statistics of all rollouts before it, the first
one's unscaled.

Metrics: `value`, mean V(h) of the rollout (discounted return, scaled with norm_reward);
`policy_loss`, mean of (7); `value_loss`, mean of the term of c₁, with clipping; `entropy`, mean of
H (nats); `approx_kl`, mean of ρ - 1 - ln ρ, which estimates KL(π_old, π) (nats); `clip_fraction`,
the part of samples with ρ outside 1 ± ε (all but `value` over every minibatch).
"""

import math
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
from common.envs import EnvState, bound_action, make_env, map_actions
from common.memory import recurrent, rollout_with_memory, with_mask
from common.networks import Network, as_vector, mlp
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
    env_id: str = "CartPole-v1-positions"  # any environment
    total_timesteps: int = 200_000  # environment steps, over all environments
    num_envs: int = 8  # environments stepped in parallel
    num_steps: int = 128  # steps of each environment in a rollout
    update_epochs: int = 4  # times that a rollout is used
    num_minibatches: int = 4  # gradient steps of an epoch, each with a part of the environments
    learning_rate: float = 1e-3  # of Adam
    anneal_lr: bool = True  # the learning rate falls linearly to 0
    gamma: float = 0.99  # discount factor
    gae_lambda: float = 0.95  # λ of GAE
    norm_adv: bool = True  # scale the advantages of a minibatch to mean 0 and standard deviation 1
    clip_coef: float = 0.2  # ε
    clip_vloss: bool = True  # clip V(h; w) to within ε of V(h; w_old)
    ent_coef: float = 0.01  # c₂
    vf_coef: float = 0.5  # c₁
    max_grad_norm: float = 0.5  # global norm that gradients are clipped to
    norm_obs: bool = True  # scale observations to mean 0 and standard deviation 1
    norm_reward: bool = True  # divide rewards by the standard deviation of their discounted sum
    init_std: float = 1.0  # initial standard deviation of actions whose bounds are -1 and 1
    hidden_sizes: tuple[int, ...] = ()  # units of each hidden layer, after the memory
    memory_size: int = 64  # units of the memory
    memory_steps: int = 20  # u at most: a unit of the memory decays over 1 + u steps at first

    def __post_init__(self):
        require(
            self,
            "total_timesteps >= num_envs * num_steps",
            "update_epochs >= 1",
            "num_envs % num_minibatches == 0",
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
    memory: jax.Array  # h [N, H] before the next step, after any reset
    reward_scale: Any  # of discounted sums: see scale_rewards; None if rewards are not normalized


class Batch(NamedTuple):
    """The rollouts of B environments."""

    obs: jax.Array  # [T, B, ...] as the networks see it
    action: jax.Array
    done: jax.Array  # [T, B] the step ended the episode
    log_prob: jax.Array  # [T, B] ln π(a | h; θ_old)
    value: jax.Array  # [T, B] V(h; w_old)
    advantage: jax.Array  # [T, B] A
    target: jax.Array  # [T, B] R


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
    num_outputs = env.num_actions or math.prod(env.action_shape)
    num_inputs = env.num_states or math.prod(env.obs_shape)
    vector = Network(lambda key: (), lambda params, obs: as_vector(env, obs))
    sizes = [config.memory_size, *config.hidden_sizes]
    actor = with_orthogonal_init(mlp([*sizes, num_outputs], jnp.tanh), 0.01)
    actor = make_policy(env, actor, config.init_std)
    actor = recurrent(vector, num_inputs, config.memory_size, actor, config.memory_steps)
    actor = with_mask(env, actor, lambda obs: obs)
    critic = with_orthogonal_init(mlp([*sizes, 1], jnp.tanh), 1.0)
    steps_per_update = config.num_envs * config.num_steps
    num_updates = config.total_timesteps // steps_per_update
    value_clip = config.clip_coef if config.clip_vloss else jnp.inf

    def optimizer(step):
        learning_rate = config.learning_rate * (1 - config.anneal_lr * step / num_updates)
        clip = optax.clip_by_global_norm(config.max_grad_norm)
        return optax.chain(clip, optax.adam(learning_rate, eps=1e-5))

    def values(critic_params, memory):
        return critic.apply(critic_params, memory)[..., 0]

    def loss(network_params, memory, batch):
        actor_params, critic_params = network_params
        distribution, memories, _ = actor.unroll(actor_params, memory, batch.obs, batch.done)
        value = values(critic_params, memories)
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
            memory=jnp.zeros((env.num_envs, config.memory_size)),
            reward_scale=no_rewards,
        )

    def update(state, step):
        key_rollout, key_epochs = jax.random.split(jax.random.fold_in(state.key, step))
        params = state.params

        def behaviour_policy(memory, obs, key):
            obs = normalize(params.statistics, obs)
            distribution, memory = actor.apply(params.actor, memory, obs)
            return sample(key, distribution), memory

        (env_state, memory), transitions, memories, episodes = rollout_with_memory(
            env,
            behaviour_policy,
            (state.env, state.memory),
            actor.init_memory(),
            key_rollout,
            config.num_steps,
        )
        reward_scale, reward = scale_rewards(state.reward_scale, transitions, config.gamma)
        obs = normalize(params.statistics, transitions.obs)
        next_obs = normalize(params.statistics, transitions.next_obs)
        distribution, memories = actor.apply(params.actor, memories, obs)  # before any reset
        _, next_memories = actor.apply(params.actor, memories, next_obs)
        value = values(state.critic_params, memories)
        next_value = values(state.critic_params, next_memories)
        error = td_error(value, reward, next_value, transitions.terminated, config.gamma)
        done = transitions.terminated | transitions.truncated
        advantage = jax.vmap(gae, (1, 1, None, None), 1)(
            error, done, config.gamma, config.gae_lambda
        )
        log_prob = log_probability(distribution, transitions.action)
        batch = Batch(
            obs=obs,
            action=transitions.action,
            done=done,
            log_prob=log_prob,
            value=value,
            advantage=advantage,
            target=advantage + value,
        )

        def learn(carry, index):
            network_params, opt_state = carry
            first, part = rows(state.memory, index), jax.tree.map(lambda x: x[:, index], batch)
            grads, metrics = jax.grad(loss, has_aux=True)(network_params, first, part)
            updates, opt_state = optimizer(step).update(grads, opt_state)
            network_params = optax.apply_updates(network_params, updates)
            return (network_params, opt_state), metrics

        keys = jax.random.split(key_epochs, config.update_epochs)
        index = jax.vmap(jax.random.permutation, (0, None))(keys, config.num_envs)
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
            memory=memory,
            reward_scale=reward_scale,
        ), metrics

    def act(params, memory, obs, key, choose=mode):
        obs = normalize(params.statistics, obs)
        distribution, memory = actor.apply(params.actor, memory, obs)
        return bound_action(env, choose(distribution)), memory

    return Algorithm(
        init, update, act, num_updates, steps_per_update, init_memory=actor.init_memory
    )


if __name__ == "__main__":
    main(Config, make)
