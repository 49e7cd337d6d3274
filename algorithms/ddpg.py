"""Deep Deterministic Policy Gradient (DDPG).

Differs from dqn.py in the action, which is continuous and comes from a second network μ(s; θ), the
actor; Q(s, a; φ) takes it as an input; exploration adds noise to it; both target networks move a
little at every gradient step.

Lillicrap et al. 2016, Continuous control with deep reinforcement learning,
https://arxiv.org/abs/1509.02971

    L(φ) = E[(r + γ (1 - d) Q(s', μ(s'; θ⁻); φ⁻) - Q(s, a; φ))²]               (4), (5)
    ∇J(θ) = E[∇_a Q(s, a; φ) ∇_θ μ(s; θ)], at a = μ(s; θ)                      (6)

with d = 1 where the MDP terminated; a time limit does not end the MDP. Actions are in [-1, 1]
here, and scaled to the environment's bounds where they meet it.

Departs from the paper: the noise is Gaussian unless `noise_theta` is less than 1; one learning
rate; no batch normalisation and no weight decay; the action enters Q's first layer, and the last
layers start like the others; several environments in parallel; the random steps that fill the
replay memory at first are taken in `init`.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

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
from common.networks import critic_for, network_for
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "Pendulum-v1"  # any environment with continuous actions
    total_timesteps: int = 20_000  # environment steps, over all environments
    num_envs: int = 4  # environments stepped in parallel, once per gradient step
    learning_rate: float = 1e-3  # of Adam, for both networks
    gamma: float = 0.98  # discount factor
    buffer_size: int = 20_000  # transitions, rounded up to whole updates
    batch_size: int = 128  # transitions
    learning_starts: int = 1_000  # environment steps at random first, rounded up to whole updates
    tau: float = 0.02  # θ⁻ ← τ θ + (1 - τ) θ⁻ after each gradient step, and φ⁻ likewise
    exploration_noise: float = 0.1  # σ of the noise added to actions in [-1, 1]
    noise_theta: float = 1.0  # the noise forgets this part of itself each step; 1: independent
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of each hidden layer, in both networks

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
            "exploration_noise >= 0",
            "0 < noise_theta <= 1",
            "all(size >= 1 for size in hidden_sizes)",
        )


class State(NamedTuple):
    key: jax.Array
    params: Any  # θ
    opt_state: optax.OptState
    critic_params: Any  # φ
    critic_opt_state: optax.OptState
    target_params: Any  # the pair θ⁻, φ⁻
    buffer: Rows  # [capacity, ...], actions in [-1, 1]
    env: EnvState
    noise: jax.Array  # [N, A] of the last action, 0 at the start of an episode


def td_error(critic_params, target_params, transition: Transition, q, policy, gamma) -> jax.Array:
    """δ = r + γ (1 - d) Q(s', μ(s'; θ⁻); φ⁻) - Q(s, a; φ), for one transition."""
    target_actor, target_critic = target_params
    obs, action, reward, next_obs, terminated, _ = transition
    next_value = q(target_critic, next_obs, policy(target_actor, next_obs))
    target = reward + gamma * (1 - terminated) * next_value
    return jax.lax.stop_gradient(target) - q(critic_params, obs, action)


def policy_loss(params, critic_params, obs, q, policy) -> jax.Array:
    """-Q(s, μ(s; θ); φ), whose gradient in θ is -∇J(θ), for one observation."""
    return -q(critic_params, obs, policy(params, obs))


def ornstein_uhlenbeck(key, noise, theta, sigma) -> jax.Array:
    """x ← (1 - θ) x + σ ε, ε ~ N(0, 1): Gaussian noise that is independent if θ = 1."""
    return (1 - theta) * noise + sigma * jax.random.normal(key, noise.shape)


def make(config: Config) -> Algorithm:
    env = with_unit_actions(make_env(config.env_id, config.num_envs, actions="continuous"))
    (num_actions,) = env.action_shape
    actor = network_for(env, config.hidden_sizes, num_actions)
    critic = critic_for(env, config.hidden_sizes)
    optimizer = optax.adam(config.learning_rate)
    steps_per_update = config.num_envs
    buffer = uniform_buffer(config.buffer_size, steps_per_update, config.batch_size)
    num_warmup = -(-config.learning_starts // steps_per_update)  # updates' worth of random steps
    num_updates = config.total_timesteps // steps_per_update - num_warmup

    def policy(params, obs):
        return jnp.tanh(actor.apply(params, obs))

    def critic_loss(critic_params, target_params, batch):
        def error(t):
            return td_error(critic_params, target_params, t, critic.apply, policy, config.gamma)

        return jnp.mean(jnp.square(jax.vmap(error)(batch)))

    def actor_loss(params, critic_params, batch):
        def loss(obs):
            return policy_loss(params, critic_params, obs, critic.apply, policy)

        return jnp.mean(jax.vmap(loss)(batch.obs))

    def init(key):
        key, key_actor, key_critic, key_env, key_warmup = jax.random.split(key, 5)
        params, critic_params = actor.init(key_actor), critic.init(key_critic)

        def random(obs, key):
            return jax.random.uniform(key, (config.num_envs, num_actions), minval=-1, maxval=1)

        env_state, warmup, _ = rollout(env, random, env.reset(key_env), key_warmup, num_warmup)
        return State(
            key=key,
            params=params,
            opt_state=optimizer.init(params),
            critic_params=critic_params,
            critic_opt_state=optimizer.init(critic_params),
            target_params=jax.tree.map(jnp.copy, (params, critic_params)),
            buffer=buffer.init(warmup),
            env=env_state,
            noise=jnp.zeros((config.num_envs, num_actions)),
        )

    def update(state, step):
        key_noise, key_rollout, key_sample = jax.random.split(
            jax.random.fold_in(state.key, step), 3
        )
        noise = ornstein_uhlenbeck(
            key_noise, state.noise, config.noise_theta, config.exploration_noise
        )

        def explore(obs, key):
            return jnp.clip(policy(state.params, obs) + noise, -1, 1)

        env_state, recent, episode_return = rollout(env, explore, state.env, key_rollout, 1)
        done = (recent.terminated | recent.truncated)[0]
        data = buffer.add(state.buffer, recent, num_warmup + step)
        batch = buffer.sample(data, key_sample, num_warmup + step + 1)

        loss_value, grads = jax.value_and_grad(critic_loss)(
            state.critic_params, state.target_params, batch
        )
        updates, critic_opt_state = optimizer.update(grads, state.critic_opt_state)
        critic_params = optax.apply_updates(state.critic_params, updates)

        grads = jax.grad(actor_loss)(state.params, critic_params, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)

        target_params = optax.incremental_update(
            (params, critic_params), state.target_params, config.tau
        )
        value = critic.apply(state.critic_params, recent.obs, recent.action).mean()
        metrics = {"episode_return": episode_return, "value": value, "loss": loss_value}
        return State(
            key=state.key,
            params=params,
            opt_state=opt_state,
            critic_params=critic_params,
            critic_opt_state=critic_opt_state,
            target_params=target_params,
            buffer=data,
            env=env_state,
            noise=jnp.where(done[:, None], 0, noise),
        ), metrics

    def act(params, obs, key):
        return scale_action(env, policy(params, obs))

    return Algorithm(
        init, update, act, num_updates, steps_per_update, num_warmup * steps_per_update
    )


if __name__ == "__main__":
    main(Config, make)
