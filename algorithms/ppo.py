"""Proximal policy optimization (PPO).

Differs from a2c.py in the objective, which is clipped, so that a rollout can be used for several
epochs of minibatches.

Schulman et al. 2017, Proximal policy optimization algorithms, https://arxiv.org/abs/1707.06347

    ρ = π(a | s; θ) / π(a | s; θ_old)
    L(θ) = -E[min(ρ A, clip(ρ, 1 - ε, 1 + ε) A)]                            (eq. 7)
           + c₁ E[½ (V(s; w) - R)²] - c₂ E[H(π(s; θ))]                      (eq. 9)

with A by GAE over a rollout, and R = A + V(s; w_old).

The 13 core details and the 9 for continuous actions of Huang et al. 2022,
https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/, are marked "core" and
"continuous" where they happen.

Departs from the paper: by these details. Departs from the details: statistics move once a
rollout, not at every step; at a time limit the return goes on with V.
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
    num_envs: int = 4  # environments stepped in parallel
    num_steps: int = 128  # steps of each environment in a rollout
    update_epochs: int = 4  # times that a rollout is used
    num_minibatches: int = 4  # gradient steps of an epoch
    learning_rate: float = 1e-3  # of Adam
    anneal_lr: bool = True  # the learning rate falls linearly to 0
    gamma: float = 0.99  # discount factor
    gae_lambda: float = 0.95  # λ of GAE
    norm_adv: bool = True  # advantages of a minibatch at mean 0 and standard deviation 1
    clip_coef: float = 0.2  # ε
    clip_vloss: bool = True  # V(s; w) within ε of V(s; w_old)
    ent_coef: float = 0.01  # c₂
    vf_coef: float = 0.5  # c₁
    max_grad_norm: float = 0.5  # global norm that gradients are clipped to
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
            "update_epochs >= 1",
            "num_minibatches >= 1",
            "num_envs * num_steps % num_minibatches == 0",
            "learning_rate > 0",
            "0 <= gamma <= 1",
            "0 <= gae_lambda <= 1",
            "clip_coef > 0",
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
    log_prob: jax.Array  # [B] ln π(a | s; θ_old)
    value: jax.Array  # [B] V(s; w_old)
    advantage: jax.Array  # [B] A
    target: jax.Array  # [B] R


def policy_loss(log_prob, old_log_prob, advantage, clip_coef) -> jax.Array:
    """-min(ρ A, clip(ρ, 1 - ε, 1 + ε) A) with ρ = exp(log_prob - old_log_prob). (core 8)"""
    ratio = jnp.exp(log_prob - old_log_prob)
    clipped = jnp.clip(ratio, 1 - clip_coef, 1 + clip_coef)
    return -jnp.minimum(ratio * advantage, clipped * advantage)


def value_loss(value, old_value, target, clip) -> jax.Array:
    """½ max((V - R)², (V_old + clip(V - V_old, -ε, ε) - R)²)."""
    clipped = old_value + jnp.clip(value - old_value, -clip, clip)
    return 0.5 * jnp.maximum(jnp.square(value - target), jnp.square(clipped - target))


def approximate_kl(log_prob, old_log_prob) -> jax.Array:
    """ρ - 1 - ln ρ: its mean estimates KL(π_old, π) (http://joschu.net/blog/kl-approx.html)."""
    log_ratio = log_prob - old_log_prob
    return jnp.exp(log_ratio) - 1 - log_ratio


def is_clipped(log_prob, old_log_prob, clip_coef) -> jax.Array:
    """1 if |ρ - 1| > ε, else 0."""
    return 1.0 * (jnp.abs(jnp.exp(log_prob - old_log_prob) - 1) > clip_coef)


def permutation(key, size) -> jax.Array:
    """The numbers below `size` in random order: random bits, sorted, that end in the numbers."""
    low = jnp.uint32((1 << (size - 1).bit_length()) - 1)
    bits = jax.random.bits(key, (size,)) & ~low | jnp.arange(size, dtype=jnp.uint32)
    return (jnp.sort(bits) & low).astype(jnp.int32)


def make(config: Config) -> Algorithm:
    env = with_clipped_actions(make_env(config.env_id, config.num_envs))  # core 1: in parallel
    # continuous 1 to 3: Gaussian, one std for all observations, independent components;
    # continuous 5: actions clipped as they enter the environment, and only there
    distribution = distribution_for(env, config.init_std)
    normalizer = obs_normalizer(env, config.norm_obs)  # continuous 6, 7: and clipped
    scaler = reward_scaler(env, config.norm_reward)  # continuous 8, 9: and clipped
    sizes = config.hidden_sizes, distribution.num_outputs
    # core 2: orthogonal weights; core 13, continuous 4: actor and critic share no layer
    actor = distribution.head(orthogonal(network_for(env, *sizes, jnp.tanh), 0.01))
    critic = orthogonal(network_for(env, config.hidden_sizes, 1, jnp.tanh), 1.0)
    steps_per_update = config.num_envs * config.num_steps
    num_updates = config.total_timesteps // steps_per_update

    def optimizer(step):
        # core 3: ε of Adam; core 4: annealing; core 11: clipping by the global norm
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
        if config.norm_adv:  # core 7: of each minibatch
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        clip = config.clip_coef if config.clip_vloss else jnp.inf  # core 9: value clipping
        metrics = {  # core 12: what to watch
            "policy_loss": policy_loss(log_prob, batch.log_prob, advantage, config.clip_coef),
            "value_loss": value_loss(value, batch.value, batch.target, clip),
            "entropy": distribution.entropy(y),
            "approx_kl": approximate_kl(log_prob, batch.log_prob),
            "clip_fraction": is_clipped(log_prob, batch.log_prob, config.clip_coef),
        }
        metrics = {name: x.mean() for name, x in metrics.items()}
        total = metrics["policy_loss"] + config.vf_coef * metrics["value_loss"]
        return total - config.ent_coef * metrics["entropy"], metrics  # core 10: entropy bonus

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
        key_rollout, key_epochs = jax.random.split(jax.random.fold_in(state.key, step))
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
        )  # core 5: GAE
        log_prob = distribution.log_prob(actor.apply(params.actor, obs), recent.action)
        batch = Batch(obs, recent.action, log_prob, value, advantage, advantage + value)
        batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)

        def learn(carry, index):
            networks, opt_state = carry
            minibatch = jax.tree.map(lambda x: x.at[index].get(mode="promise_in_bounds"), batch)
            grads, metrics = jax.grad(loss, has_aux=True)(networks, minibatch)
            updates, opt_state = optimizer(step).update(grads, opt_state)
            return (optax.apply_updates(networks, updates), opt_state), metrics

        keys = jax.random.split(key_epochs, config.update_epochs)
        index = jax.vmap(permutation, (0, None))(keys, steps_per_update)  # core 6: minibatches
        index = index.reshape(config.update_epochs * config.num_minibatches, -1)
        networks = params.actor, state.critic
        (networks, opt_state), metrics = jax.lax.scan(learn, (networks, state.opt_state), index)
        metrics = {name: x.mean() for name, x in metrics.items()}
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
