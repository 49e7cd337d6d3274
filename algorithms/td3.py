"""Twin Delayed Deep Deterministic policy gradient (TD3).

Differs from ddpg.py in two critics, whose smaller value is the target; in noise on the target's
action; and in the actor and the targets, which move once in `policy_frequency` critic steps.

Fujimoto et al. 2018, Addressing function approximation error in actor-critic methods,
https://arxiv.org/abs/1802.09477

    L(φᵢ) = E[(r + γ (1 - d) min_j Q(s', ã; φⱼ⁻) - Q(s, a; φᵢ))²], i = 1, 2        (10)
    ã = clip(μ(s'; θ⁻) + clip(ε, -c, c), -1, 1), ε ~ N(0, σ)                       (14)
    ∇J(θ) = E[∇_a Q(s, a; φ₁) ∇_θ μ(s; θ)], at a = μ(s; θ)                    (Algorithm 1)

with d = 1 where the MDP terminated; a time limit does not end the MDP. Actions are in [-1, 1]
here, and scaled to the environment's bounds where they meet it.

Departs from the paper: the environment steps between two steps of the actor all come before the
critic steps; several environments in parallel; the random steps that fill the replay memory at
first are taken in `init`.
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
from common.networks import critic_for, ensemble, network_for
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "Pendulum-v1"  # any environment with continuous actions
    total_timesteps: int = 20_000  # environment steps, over all environments
    num_envs: int = 4  # environments stepped in parallel, once per critic step
    policy_frequency: int = 2  # critic steps between steps of the actor and of the targets
    learning_rate: float = 1e-3  # of Adam, for all networks
    gamma: float = 0.98  # discount factor
    buffer_size: int = 20_000  # transitions, rounded up to whole updates
    batch_size: int = 128  # transitions
    learning_starts: int = 1_000  # environment steps at random first, rounded up to whole updates
    tau: float = 0.02  # θ⁻ ← τ θ + (1 - τ) θ⁻ after each step of the actor, and φ⁻ likewise
    exploration_noise: float = 0.1  # σ of the noise added to actions in [-1, 1]
    policy_noise: float = 0.2  # σ of the noise on the target's action
    noise_clip: float = 0.5  # c, its greatest size
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of each hidden layer, in all networks

    def __post_init__(self):
        require(
            self,
            "num_envs >= 1",
            "policy_frequency >= 1",
            "learning_rate > 0",
            "0 <= gamma <= 1",
            "batch_size >= 1",
            "learning_starts >= 0",
            "buffer_size >= learning_starts",
            "total_timesteps >= learning_starts + 2 * num_envs * policy_frequency",
            "0 < tau <= 1",
            "exploration_noise >= 0",
            "policy_noise >= 0",
            "noise_clip >= 0",
            "all(size >= 1 for size in hidden_sizes)",
        )


class State(NamedTuple):
    key: jax.Array
    params: Any  # θ
    opt_state: optax.OptState
    critic_params: Any  # φ, [2, ...]
    critic_opt_state: optax.OptState
    target_params: Any  # the pair θ⁻, φ⁻
    buffer: Rows  # [capacity, ...], actions in [-1, 1]
    env: EnvState


def td_error(
    critic_params, target_params, transition: Transition, noise, q, policy, gamma
) -> jax.Array:
    """δᵢ = r + γ (1 - d) min_j Q(s', ã; φⱼ⁻) - Q(s, a; φᵢ), ã = clip(μ(s'; θ⁻) + noise, -1, 1),
    for one transition; [2]."""
    target_actor, target_critics = target_params
    obs, action, reward, next_obs, terminated, _ = transition
    next_action = jnp.clip(policy(target_actor, next_obs) + noise, -1, 1)
    next_value = jnp.min(q(target_critics, next_obs, next_action))
    target = reward + gamma * (1 - terminated) * next_value
    return jax.lax.stop_gradient(target) - q(critic_params, obs, action)


def policy_loss(params, critic_params, obs, q, policy) -> jax.Array:
    """-Q(s, μ(s; θ); φ₁), whose gradient in θ is -∇J(θ), for one observation."""
    return -q(critic_params, obs, policy(params, obs))


def clipped_noise(key, shape, sigma, clip) -> jax.Array:
    """clip(ε, -c, c), ε ~ N(0, σ)."""
    return jnp.clip(sigma * jax.random.normal(key, shape), -clip, clip)


def make(config: Config) -> Algorithm:
    env = with_unit_actions(make_env(config.env_id, config.num_envs, actions="continuous"))
    (num_actions,) = env.action_shape
    actor = network_for(env, config.hidden_sizes, num_actions)
    critic = critic_for(env, config.hidden_sizes)
    critics = ensemble(critic, 2)
    optimizer = optax.adam(config.learning_rate)
    steps_per_update = config.num_envs * config.policy_frequency
    num_samples = config.batch_size * config.policy_frequency
    buffer = uniform_buffer(config.buffer_size, steps_per_update, num_samples)
    num_warmup = -(-config.learning_starts // steps_per_update)  # updates' worth of random steps
    num_updates = config.total_timesteps // steps_per_update - num_warmup

    def policy(params, obs):
        return jnp.tanh(actor.apply(params, obs))

    def critic_loss(critic_params, target_params, batch, noise):
        def error(t, noise):
            return td_error(
                critic_params, target_params, t, noise, critics.apply, policy, config.gamma
            )

        return jnp.mean(jnp.square(jax.vmap(error)(batch, noise)).sum(-1))

    def actor_loss(params, critic_params, batch):
        def loss(obs):
            return policy_loss(params, critic_params, obs, critic.apply, policy)

        return jnp.mean(jax.vmap(loss)(batch.obs))

    def init(key):
        key, key_actor, key_critic, key_env, key_warmup = jax.random.split(key, 5)
        params, critic_params = actor.init(key_actor), critics.init(key_critic)

        def random(obs, key):
            return jax.random.uniform(key, (config.num_envs, num_actions), minval=-1, maxval=1)

        num_steps = num_warmup * config.policy_frequency
        env_state, warmup, _ = rollout(env, random, env.reset(key_env), key_warmup, num_steps)
        return State(
            key=key,
            params=params,
            opt_state=optimizer.init(params),
            critic_params=critic_params,
            critic_opt_state=optimizer.init(critic_params),
            target_params=jax.tree.map(jnp.copy, (params, critic_params)),
            buffer=buffer.init(warmup),
            env=env_state,
        )

    def update(state, step):
        keys = jax.random.split(jax.random.fold_in(state.key, step), 3)
        key_rollout, key_sample, key_noise = keys

        def explore(obs, key):
            noise = config.exploration_noise * jax.random.normal(key, (len(obs), num_actions))
            return jnp.clip(policy(state.params, obs) + noise, -1, 1)

        env_state, recent, episode_return = rollout(
            env, explore, state.env, key_rollout, config.policy_frequency
        )
        data = buffer.add(state.buffer, recent, num_warmup + step)
        batches = jax.tree.map(
            lambda x: x.reshape(config.policy_frequency, config.batch_size, *x.shape[1:]),
            buffer.sample(data, key_sample, num_warmup + step + 1),
        )
        noise = clipped_noise(
            key_noise, batches.action.shape, config.policy_noise, config.noise_clip
        )

        def critic_step(carry, batch):
            critic_params, critic_opt_state = carry
            loss_value, grads = jax.value_and_grad(critic_loss)(
                critic_params, state.target_params, *batch
            )
            updates, critic_opt_state = optimizer.update(grads, critic_opt_state)
            return (optax.apply_updates(critic_params, updates), critic_opt_state), loss_value

        carry = state.critic_params, state.critic_opt_state
        carry, losses = jax.lax.scan(critic_step, carry, (batches, noise))
        critic_params, critic_opt_state = carry

        first_critic = jax.tree.map(lambda x: x[0], critic_params)
        batch = jax.tree.map(lambda x: x[-1], batches)
        grads = jax.grad(actor_loss)(state.params, first_critic, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)

        target_params = optax.incremental_update(
            (params, critic_params), state.target_params, config.tau
        )
        value = critics.apply(state.critic_params, recent.obs, recent.action).mean()
        metrics = {"episode_return": episode_return, "value": value, "loss": losses.mean()}
        return State(
            key=state.key,
            params=params,
            opt_state=opt_state,
            critic_params=critic_params,
            critic_opt_state=critic_opt_state,
            target_params=target_params,
            buffer=data,
            env=env_state,
        ), metrics

    def act(params, obs, key):
        return scale_action(env, policy(params, obs))

    return Algorithm(
        init, update, act, num_updates, steps_per_update, num_warmup * steps_per_update
    )


if __name__ == "__main__":
    main(Config, make)
