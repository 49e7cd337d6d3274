"""Deep Deterministic Policy Gradient (DDPG).

Differs from dqn.py in the action, which is continuous and comes from a second network μ(s; θ), the
actor; Q(s, a; φ) takes it as an input; exploration adds noise to it; both target networks move a
little at every gradient step.

Lillicrap et al. 2016, Continuous control with deep reinforcement learning,
https://arxiv.org/abs/1509.02971

    L(φ) = E[(r + γ (1 - d) Q(s', μ(s'; θ⁻); φ⁻) - Q(s, a; φ))²]               (4), (5)
    ∇J(θ) = E[∇_a Q(s, a; φ) ∇_θ μ(s; θ)], at a = μ(s; θ)                      (6)

with d = 1 where the MDP terminated; a time limit does not end the MDP. Actions are in [-1, 1] and
rescaled to the environment's bounds in env.step.

Departs from the paper: the noise of successive actions is independent unless `ou_theta` is less
than 1; one learning rate; no batch normalisation and no weight decay; the action enters Q's first
layer, and the last layers start like the others; several environments in parallel; `init` takes the
random steps that fill the replay memory.

Metrics: `value`, mean Q(s, a) of the actions taken (discounted return); `loss`, mean squared TD
error of the batch (return²).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.buffers import uniform_buffer
from common.envs import EnvState, Transition, make_env, map_actions, rollout, scale_action
from common.exploration import random_policy
from common.networks import make_network, make_q_network
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
    learning_starts: int = 1_000  # random environment steps first, rounded up to whole updates
    tau: float = 0.02  # θ⁻ ← τ θ + (1 - τ) θ⁻ after each gradient step, and φ⁻ likewise
    exploration_noise: float = 0.1  # σ; noise on actions in [-1, 1] has std σ / √(1 - (1 - θ)²)
    ou_theta: float = 1.0  # θ of Ornstein-Uhlenbeck noise; 1: independent noise with std σ
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of each hidden layer, in all networks

    def __post_init__(self):
        require(
            self,
            "buffer_size >= learning_starts",
            "total_timesteps >= learning_starts + 2 * num_envs",
            "0 < ou_theta <= 1",
        )


class State(NamedTuple):
    key: jax.Array
    params: Any  # θ
    opt_state: optax.OptState
    critic_params: Any  # φ
    critic_opt_state: optax.OptState
    target_params: Any  # the pair θ⁻, φ⁻
    buffer: Transition  # [capacity, ...], actions in [-1, 1]
    env: EnvState
    noise: jax.Array  # [N, A] of the last action, 0 at the start of an episode


def td_error(q_value, reward, next_value, terminated, gamma) -> jax.Array:
    """δ = r + γ (1 - d) V(s') - Q(s, a), for one transition; no gradient through the target."""
    target = reward + gamma * (1 - terminated) * next_value
    return jax.lax.stop_gradient(target) - q_value


def policy_loss(q_value) -> jax.Array:
    """-Q(s, μ(s; θ); φ), for one observation; its gradient in θ is -∇J(θ)."""
    return -q_value


def ornstein_uhlenbeck(key, noise, theta, sigma) -> jax.Array:
    """x ← (1 - θ) x + σ ε, ε ~ N(0, 1), of the shape of `noise`; independent of x if θ = 1.

    Its standard deviation rises from σ to σ / √(1 - (1 - θ)²) in steps 1, 2, ... of an episode."""
    return (1 - theta) * noise + sigma * jax.random.normal(key, noise.shape)


def make(config: Config) -> Algorithm:
    env = map_actions(make_env(config.env_id, config.num_envs, actions="continuous"), scale_action)
    (num_actions,) = env.action_shape
    actor = make_network(env, config.hidden_sizes, num_actions)
    critic = make_q_network(env, config.hidden_sizes)
    optimizer = optax.adam(config.learning_rate)
    steps_per_update = config.num_envs
    buffer = uniform_buffer(config.buffer_size, steps_per_update, config.batch_size)
    warmup_updates = -(-config.learning_starts // steps_per_update)
    initial_steps = warmup_updates * steps_per_update
    num_updates = (config.total_timesteps - initial_steps) // steps_per_update

    def policy(params, obs):
        return jnp.tanh(actor.apply(params, obs))

    def critic_loss(critic_params, target_params, batch):
        target_actor_params, target_critic_params = target_params

        def error(transition):
            q_value = critic.apply(critic_params, transition.obs, transition.action)
            next_action = policy(target_actor_params, transition.next_obs)
            next_value = critic.apply(target_critic_params, transition.next_obs, next_action)
            reward, terminated = transition.reward, transition.terminated
            return td_error(q_value, reward, next_value, terminated, config.gamma)

        return jnp.mean(jnp.square(jax.vmap(error)(batch)))

    def actor_loss(params, critic_params, batch):
        def loss(obs):
            action = policy(params, obs)
            return policy_loss(critic.apply(critic_params, obs, action))

        return jnp.mean(jax.vmap(loss)(batch.obs))

    def init(key):
        key, key_actor, key_critic, key_env, key_warmup = jax.random.split(key, 5)
        params, critic_params = actor.init(key_actor), critic.init(key_critic)
        env_state, transitions, _ = rollout(
            env, random_policy(env), env.reset(key_env), key_warmup, warmup_updates
        )
        return State(
            key=key,
            params=params,
            opt_state=optimizer.init(params),
            critic_params=critic_params,
            critic_opt_state=optimizer.init(critic_params),
            target_params=jax.tree.map(jnp.copy, (params, critic_params)),
            buffer=buffer.init(transitions),
            env=env_state,
            noise=jnp.zeros((config.num_envs, num_actions)),
        )

    def update(state, step):
        keys = jax.random.split(jax.random.fold_in(state.key, step), 3)
        key_noise, key_rollout, key_sample = keys
        noise = ornstein_uhlenbeck(
            key_noise, state.noise, config.ou_theta, config.exploration_noise
        )

        def behaviour_policy(obs, key):
            return jnp.clip(policy(state.params, obs) + noise, -1, 1)

        env_state, transitions, episodes = rollout(env, behaviour_policy, state.env, key_rollout, 1)
        done = (transitions.terminated | transitions.truncated)[0]
        buffer_state = buffer.add(state.buffer, transitions, warmup_updates + step)
        batch = buffer.sample(buffer_state, key_sample, warmup_updates + step + 1)

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
        value = critic.apply(state.critic_params, transitions.obs, transitions.action).mean()
        metrics = episodes | {"value": value, "loss": loss_value}
        return State(
            key=state.key,
            params=params,
            opt_state=opt_state,
            critic_params=critic_params,
            critic_opt_state=critic_opt_state,
            target_params=target_params,
            buffer=buffer_state,
            env=env_state,
            noise=jnp.where(done[:, None], 0, noise),
        ), metrics

    def act(params, obs, key):
        return scale_action(env, policy(params, obs))

    return Algorithm(init, update, act, num_updates, steps_per_update, initial_steps)


if __name__ == "__main__":
    main(Config, make)
