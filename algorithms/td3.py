"""Twin Delayed Deep Deterministic policy gradient (TD3).

Differs from ddpg.py in two critics, whose smaller value is the target; in noise on the target's
action; and in the actor and the targets, which move once in `policy_frequency` critic steps.

Fujimoto et al. 2018, Addressing function approximation error in actor-critic methods,
https://arxiv.org/abs/1802.09477

    L(φᵢ) = E[(r + γ (1 - d) min_j Q(s', ã; φⱼ⁻) - Q(s, a; φᵢ))²], i = 1, 2        (10)
    ã = clip(μ(s'; θ⁻) + clip(ε, -c, c), -1, 1), ε ~ N(0, σ)                       (14)
    ∇J(θ) = E[∇_a Q(s, a; φ₁) ∇_θ μ(s; θ)], at a = μ(s; θ)                    (Algorithm 1)

with d = 1 where the MDP terminated; a time limit does not end the MDP. Actions are in [-1, 1] and
rescaled to the environment's bounds in env.step.

Departs from the paper: the environment steps between two steps of the actor all come before the
critic steps; several environments in parallel; `init` takes the random steps that fill the replay
memory.

Metrics: `value`, mean of both Q(s, a) of the actions taken (discounted return); `loss`, squared TD
errors of both critics, added, mean over the batches (return²).
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
from common.networks import ensemble, make_network, make_q_network
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "Pendulum-v1"  # any environment with continuous actions
    total_timesteps: int = 20_000  # environment steps, over all environments
    num_envs: int = 4  # environments stepped in parallel, once per gradient step
    policy_frequency: int = 2  # gradient steps of the critics per step of the actor and the targets
    learning_rate: float = 1e-3  # of Adam, for all networks
    gamma: float = 0.98  # discount factor
    buffer_size: int = 20_000  # transitions, rounded up to whole updates
    batch_size: int = 128  # transitions
    learning_starts: int = 1_000  # random environment steps first, rounded up to whole updates
    tau: float = 0.02  # θ⁻ ← τ θ + (1 - τ) θ⁻ after each step of the actor, and φ⁻ likewise
    exploration_noise: float = 0.1  # σ of the noise added to actions in [-1, 1]
    policy_noise: float = 0.2  # σ of the noise on the target's action
    noise_clip: float = 0.5  # c, the largest size of that noise
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of each hidden layer, in all networks

    def __post_init__(self):
        require(
            self,
            "buffer_size >= learning_starts",
            "total_timesteps >= learning_starts + 2 * num_envs * policy_frequency",
        )


class State(NamedTuple):
    key: jax.Array
    params: Any  # θ
    opt_state: optax.OptState
    critic_params: Any  # φ, [2, ...]
    critic_opt_state: optax.OptState
    target_params: Any  # the pair θ⁻, φ⁻
    buffer: Transition  # [capacity, ...], actions in [-1, 1]
    env: EnvState


def td_error(q_value, reward, next_value, terminated, gamma) -> jax.Array:
    """δ = r + γ (1 - d) V(s') - Q(s, a), for one transition; no gradient through the target."""
    target = reward + gamma * (1 - terminated) * next_value
    return jax.lax.stop_gradient(target) - q_value


def policy_loss(q_value) -> jax.Array:
    """-Q(s, μ(s; θ); φ₁), for one observation; its gradient in θ is -∇J(θ)."""
    return -q_value


def smoothed_action(action, noise, noise_clip) -> jax.Array:
    """clip(a + clip(ε, -c, c), -1, 1), the target's action; all of one shape."""
    return jnp.clip(action + jnp.clip(noise, -noise_clip, noise_clip), -1, 1)


def make(config: Config) -> Algorithm:
    env = map_actions(make_env(config.env_id, config.num_envs, actions="continuous"), scale_action)
    (num_actions,) = env.action_shape
    actor = make_network(env, config.hidden_sizes, num_actions)
    critic = make_q_network(env, config.hidden_sizes)
    critics = ensemble(critic, 2)
    optimizer = optax.adam(config.learning_rate)
    steps_per_update = config.num_envs * config.policy_frequency
    samples_per_update = config.batch_size * config.policy_frequency
    buffer = uniform_buffer(config.buffer_size, steps_per_update, samples_per_update)
    warmup_updates = -(-config.learning_starts // steps_per_update)
    warmup_steps = warmup_updates * config.policy_frequency  # of each environment
    initial_steps = warmup_updates * steps_per_update
    num_updates = (config.total_timesteps - initial_steps) // steps_per_update

    def policy(params, obs):
        return jnp.tanh(actor.apply(params, obs))

    def critic_loss(critic_params, target_params, batch, noise):
        target_actor_params, target_critic_params = target_params

        def error(transition, noise):
            q_value = critics.apply(critic_params, transition.obs, transition.action)  # [2]
            next_action = policy(target_actor_params, transition.next_obs)
            next_action = smoothed_action(next_action, noise, config.noise_clip)
            next_q_value = critics.apply(target_critic_params, transition.next_obs, next_action)
            next_value = jnp.min(next_q_value)
            reward, terminated = transition.reward, transition.terminated
            return td_error(q_value, reward, next_value, terminated, config.gamma)

        return jnp.mean(jnp.square(jax.vmap(error)(batch, noise)).sum(-1))

    def actor_loss(params, critic_params, batch):
        def loss(obs):
            action = policy(params, obs)
            return policy_loss(critic.apply(critic_params, obs, action))

        return jnp.mean(jax.vmap(loss)(batch.obs))

    def init(key):
        key, key_actor, key_critic, key_env, key_warmup = jax.random.split(key, 5)
        params, critic_params = actor.init(key_actor), critics.init(key_critic)
        env_state, transitions, _ = rollout(
            env, random_policy(env), env.reset(key_env), key_warmup, warmup_steps
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
        )

    def update(state, step):
        keys = jax.random.split(jax.random.fold_in(state.key, step), 3)
        key_rollout, key_sample, key_noise = keys

        def behaviour_policy(obs, key):
            noise = config.exploration_noise * jax.random.normal(key, (len(obs), num_actions))
            return jnp.clip(policy(state.params, obs) + noise, -1, 1)

        env_state, transitions, episodes = rollout(
            env, behaviour_policy, state.env, key_rollout, config.policy_frequency
        )
        buffer_state = buffer.add(state.buffer, transitions, warmup_updates + step)
        batches = jax.tree.map(
            lambda x: x.reshape(config.policy_frequency, config.batch_size, *x.shape[1:]),
            buffer.sample(buffer_state, key_sample, warmup_updates + step + 1),
        )
        noises = config.policy_noise * jax.random.normal(key_noise, batches.action.shape)

        def critic_step(carry, inputs):
            critic_params, critic_opt_state = carry
            batch, noise = inputs
            loss_value, grads = jax.value_and_grad(critic_loss)(
                critic_params, state.target_params, batch, noise
            )
            updates, critic_opt_state = optimizer.update(grads, critic_opt_state)
            critic_params = optax.apply_updates(critic_params, updates)
            return (critic_params, critic_opt_state), loss_value

        (critic_params, critic_opt_state), loss_values = jax.lax.scan(
            critic_step, (state.critic_params, state.critic_opt_state), (batches, noises)
        )

        first_critic_params = jax.tree.map(lambda x: x[0], critic_params)
        batch = jax.tree.map(lambda x: x[-1], batches)
        grads = jax.grad(actor_loss)(state.params, first_critic_params, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)

        target_params = optax.incremental_update(
            (params, critic_params), state.target_params, config.tau
        )
        value = critics.apply(state.critic_params, transitions.obs, transitions.action).mean()
        metrics = episodes | {"value": value, "loss": loss_values.mean()}
        return State(
            key=state.key,
            params=params,
            opt_state=opt_state,
            critic_params=critic_params,
            critic_opt_state=critic_opt_state,
            target_params=target_params,
            buffer=buffer_state,
            env=env_state,
        ), metrics

    def act(params, obs, key):
        return scale_action(env, policy(params, obs))

    return Algorithm(init, update, act, num_updates, steps_per_update, initial_steps)


if __name__ == "__main__":
    main(Config, make)
