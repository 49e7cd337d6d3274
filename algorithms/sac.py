"""Soft Actor-Critic (SAC).

Differs from td3.py in the policy, which is a squashed Gaussian and explores by itself; in the
entropy that is added to the reward, at a temperature α that is learned; in no noise beyond the
policy's own, no delay of the actor, and no target network of the actor.

Haarnoja et al. 2018, Soft actor-critic algorithms and applications,
https://arxiv.org/abs/1812.05905

    L(φᵢ) = E[(r + γ (1 - d) (min_j Q(s', a'; φⱼ⁻) - α ln π(a' | s'; θ)) - Q(s, a; φᵢ))²]     (5)
    L(θ)  = E[α ln π(a | s; θ) - min_i Q(s, a; φᵢ)], a = tanh(m(s; θ) + σ(s; θ) ε)            (9)
    L(α)  = E[-α (ln π(a | s; θ) + H)]                                                       (18)

with d = 1 where the MDP terminated; a time limit does not end the MDP. Actions are in [-1, 1]
here, and scaled to the environment's bounds where they meet it. H, the entropy wanted, is minus
the number of an action's components.

Departs from the paper: the noise ε of successive actions is correlated if `noise_theta` is less
than 1 (Eberhard et al. 2023, https://openreview.net/forum?id=hQ9V5QN27eS); several environments
in parallel; the random steps that fill the replay memory at first are taken in `init`.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.scipy.stats import norm

from common.algorithm import Algorithm, require
from common.buffers import Rows, uniform_buffer
from common.envs import (
    EnvState,
    Transition,
    make_env,
    rollout,
    scale_action,
    with_unit_actions,
)
from common.networks import critic_for, ensemble, network_for
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "Pendulum-v1"  # any environment with continuous actions
    total_timesteps: int = 20_000  # environment steps, over all environments
    num_envs: int = 4  # environments stepped in parallel, once per gradient step
    learning_rate: float = 1e-3  # of Adam, for all networks
    gamma: float = 0.98  # discount factor
    buffer_size: int = 20_000  # transitions, rounded up to whole updates
    batch_size: int = 128  # transitions
    learning_starts: int = 1_000  # environment steps at random first, rounded up to whole updates
    tau: float = 0.02  # φ⁻ ← τ φ + (1 - τ) φ⁻ after each gradient step
    alpha: float = 1.0  # temperature at first
    noise_theta: float = 1.0  # ε of an action forgets this part of the last one; 1: independent
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of each hidden layer, in all networks

    def __post_init__(self):
        require(
            self,
            "num_envs >= 1",
            "learning_rate > 0",
            "0 <= gamma <= 1",
            "batch_size >= 1",
            "learning_starts >= 0",
            "buffer_size >= learning_starts",
            "total_timesteps >= learning_starts + 2 * num_envs",
            "0 < tau <= 1",
            "alpha > 0",
            "0 < noise_theta <= 1",
            "all(size >= 1 for size in hidden_sizes)",
        )


class State(NamedTuple):
    key: jax.Array
    params: Any  # θ
    opt_state: optax.OptState
    critic_params: Any  # φ, [2, ...]
    critic_opt_state: optax.OptState
    target_params: Any  # φ⁻, [2, ...]
    log_alpha: jax.Array
    alpha_opt_state: optax.OptState
    buffer: Rows  # [capacity, ...], actions in [-1, 1]
    env: EnvState
    noise: jax.Array  # [N, A], ε of the last action


def td_error(
    critic_params, target_params, params, alpha, transition: Transition, noise, q, policy, gamma
) -> jax.Array:
    """δᵢ = r + γ (1 - d) (min_j Q(s', a'; φⱼ⁻) - α ln π(a' | s'; θ)) - Q(s, a; φᵢ), where a' is
    the policy's action for that noise, for one transition; [2]."""
    obs, action, reward, next_obs, terminated, _ = transition
    next_action, log_prob = policy(params, next_obs, noise)
    next_value = jnp.min(q(target_params, next_obs, next_action)) - alpha * log_prob
    target = reward + gamma * (1 - terminated) * next_value
    return jax.lax.stop_gradient(target) - q(critic_params, obs, action)


def policy_loss(params, critic_params, alpha, obs, noise, q, policy):
    """α ln π(a | s; θ) - min_i Q(s, a; φᵢ), and ln π(a | s; θ), for one observation and noise."""
    action, log_prob = policy(params, obs, noise)
    return alpha * log_prob - jnp.min(q(critic_params, obs, action)), log_prob


def temperature_loss(log_alpha, log_prob, target_entropy) -> jax.Array:
    """-α (ln π(a | s) + H)."""
    return -jnp.exp(log_alpha) * (log_prob + target_entropy)


def squashed_log_prob(x, mean, log_std) -> jax.Array:
    """ln π(tanh x) = Σ [ln N(x; m, σ) - ln(1 - tanh² x)], x ~ N(m, σ)     (appendix C)

    with ln(1 - tanh² x) = 2 (ln 2 - x - softplus(-2x)), which is exact for any x."""
    log_slope = 2 * (jnp.log(2) - x - jax.nn.softplus(-2 * x))
    return jnp.sum(norm.logpdf(x, mean, jnp.exp(log_std)) - log_slope, axis=-1)


def correlated_noise(key, noise, theta) -> jax.Array:
    """ε ← (1 - θ) ε + √(θ (2 - θ)) η, η ~ N(0, 1): N(0, 1) at each step, independent if θ = 1."""
    fresh = jax.random.normal(key, noise.shape)
    return (1 - theta) * noise + jnp.sqrt(theta * (2 - theta)) * fresh


def make(config: Config) -> Algorithm:
    env = with_unit_actions(make_env(config.env_id, config.num_envs, actions="continuous"))
    (num_actions,) = env.action_shape
    actor = network_for(env, config.hidden_sizes, 2 * num_actions)
    critics = ensemble(critic_for(env, config.hidden_sizes), 2)
    optimizer = optax.adam(config.learning_rate)
    steps_per_update = config.num_envs
    buffer = uniform_buffer(config.buffer_size, steps_per_update, config.batch_size)
    num_warmup = -(-config.learning_starts // steps_per_update)  # updates' worth of random steps
    num_updates = config.total_timesteps // steps_per_update - num_warmup

    def gaussian(params, obs):
        mean, log_std = jnp.split(actor.apply(params, obs), 2, axis=-1)
        return mean, jnp.clip(log_std, -20, 2)

    def policy(params, obs, noise):
        mean, log_std = gaussian(params, obs)
        x = mean + jnp.exp(log_std) * noise
        return jnp.tanh(x), squashed_log_prob(x, mean, log_std)

    def critic_loss(critic_params, target_params, params, alpha, batch, noise):
        def error(t, noise):
            return td_error(
                *(critic_params, target_params, params, alpha),
                *(t, noise, critics.apply, policy, config.gamma),
            )

        return jnp.mean(jnp.square(jax.vmap(error)(batch, noise)).sum(-1))

    def actor_loss(params, critic_params, alpha, batch, noise):
        def loss(obs, noise):
            return policy_loss(params, critic_params, alpha, obs, noise, critics.apply, policy)

        losses, log_prob = jax.vmap(loss)(batch.obs, noise)
        return jnp.mean(losses), jnp.mean(log_prob)

    def init(key):
        key, key_actor, key_critic, key_env, key_warmup, key_noise = jax.random.split(key, 6)
        params, critic_params = actor.init(key_actor), critics.init(key_critic)
        log_alpha = jnp.log(jnp.asarray(config.alpha, float))

        def random(obs, key):
            return jax.random.uniform(key, (config.num_envs, num_actions), minval=-1, maxval=1)

        env_state, warmup, _ = rollout(env, random, env.reset(key_env), key_warmup, num_warmup)
        return State(
            key=key,
            params=params,
            opt_state=optimizer.init(params),
            critic_params=critic_params,
            critic_opt_state=optimizer.init(critic_params),
            target_params=jax.tree.map(jnp.copy, critic_params),
            log_alpha=log_alpha,
            alpha_opt_state=optimizer.init(log_alpha),
            buffer=buffer.init(warmup),
            env=env_state,
            noise=jax.random.normal(key_noise, (config.num_envs, num_actions)),
        )

    def update(state, step):
        keys = jax.random.split(jax.random.fold_in(state.key, step), 4)
        key_explore, key_rollout, key_sample, key_noise = keys
        explore_noise = correlated_noise(key_explore, state.noise, config.noise_theta)

        def explore(obs, key):
            return policy(state.params, obs, explore_noise)[0]

        env_state, recent, episode_return = rollout(env, explore, state.env, key_rollout, 1)
        data = buffer.add(state.buffer, recent, num_warmup + step)
        batch = buffer.sample(data, key_sample, num_warmup + step + 1)
        noise, next_noise = jax.random.normal(key_noise, (2, *batch.action.shape))
        alpha = jnp.exp(state.log_alpha)

        loss_value, grads = jax.value_and_grad(critic_loss)(
            state.critic_params, state.target_params, state.params, alpha, batch, next_noise
        )
        updates, critic_opt_state = optimizer.update(grads, state.critic_opt_state)
        critic_params = optax.apply_updates(state.critic_params, updates)

        grads, log_prob = jax.grad(actor_loss, has_aux=True)(
            state.params, critic_params, alpha, batch, noise
        )
        updates, opt_state = optimizer.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)

        grad = jax.grad(temperature_loss)(state.log_alpha, log_prob, -num_actions)
        updates, alpha_opt_state = optimizer.update(grad, state.alpha_opt_state)
        log_alpha = optax.apply_updates(state.log_alpha, updates)

        target_params = optax.incremental_update(critic_params, state.target_params, config.tau)
        value = critics.apply(state.critic_params, recent.obs, recent.action).mean()
        metrics = {"episode_return": episode_return, "value": value, "loss": loss_value}
        metrics |= {"alpha": alpha, "entropy": -log_prob}
        return State(
            key=state.key,
            params=params,
            opt_state=opt_state,
            critic_params=critic_params,
            critic_opt_state=critic_opt_state,
            target_params=target_params,
            log_alpha=log_alpha,
            alpha_opt_state=alpha_opt_state,
            buffer=data,
            env=env_state,
            noise=explore_noise,
        ), metrics

    def act(params, obs, key):
        return scale_action(env, jnp.tanh(gaussian(params, obs)[0]))

    return Algorithm(
        init, update, act, num_updates, steps_per_update, num_warmup * steps_per_update
    )


if __name__ == "__main__":
    main(Config, make)
