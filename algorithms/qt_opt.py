"""QT-Opt: Q-learning with continuous actions.

Differs from ddpg.py in that there is no actor: wherever the best action is needed, the
cross-entropy method searches for it on Q.

Kalashnikov et al. 2018, QT-Opt: Scalable deep reinforcement learning for vision-based robotic
manipulation, https://arxiv.org/abs/1806.10293

    L(φ) = E[(r + γ (1 - d) Q(s', a*; φ⁻) - Q(s, a; φ))²]                      (1)
    a* ≈ argmax_a' Q(s', a'; φ⁻): draw N actions from a Gaussian and fit it to the best M of them,
    `num_cem_rounds` times; return the best of the last N                      (section 4.2)

with d = 1 where the MDP terminated; a time limit does not end the MDP. Actions are in [-1, 1] and
rescaled to the environment's bounds in env.step. The first Gaussian is as wide as that range and
samples are clipped to it, so that the bounds themselves are tried. One round is plain random
search.

Departs from the paper: the target is one network that follows slowly, not the smaller value of two
of different age; squared error, not cross-entropy; all experience is this run's own; Gaussian noise
on the best action explores, not the paper's scripted and noisy grasping policies; several
environments in parallel; `init` takes the random steps that fill the replay memory.

Metrics: `value`, mean Q(s, a) of the actions taken (discounted return); `loss`, mean squared TD
error of the batch (return²).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.buffers import uniform_buffer
from common.envs import EnvState, Transition, make_env, map_actions, rollout, scale_action
from common.exploration import random_policy
from common.networks import make_q_network
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "Pendulum-v1"  # any environment with continuous actions
    total_timesteps: int = 20_000  # environment steps, over all environments
    num_envs: int = 4  # environments stepped in parallel, once per gradient step
    learning_rate: float = 1e-3  # of Adam
    gamma: float = 0.98  # discount factor
    buffer_size: int = 20_000  # transitions, rounded up to whole updates
    batch_size: int = 128  # transitions
    learning_starts: int = 1_000  # random environment steps first, rounded up to whole updates
    tau: float = 0.02  # φ⁻ ← τ φ + (1 - τ) φ⁻ after each gradient step
    exploration_noise: float = 0.1  # σ of the noise added to actions in [-1, 1]
    num_samples: int = 64  # N, actions drawn in each round of the search
    num_elites: int = 6  # M, the best of them, to which the next Gaussian is fitted
    num_cem_rounds: int = 2  # rounds of the search; 1: plain random search
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of each hidden layer

    def __post_init__(self):
        require(
            self,
            "buffer_size >= learning_starts",
            "total_timesteps >= learning_starts + 2 * num_envs",
            "num_elites <= num_samples",
        )


class State(NamedTuple):
    key: jax.Array
    params: Any  # φ
    target_params: Any  # φ⁻
    opt_state: optax.OptState
    buffer: Transition  # [capacity, ...], actions in [-1, 1]
    env: EnvState


def td_error(q_value, reward, next_value, terminated, gamma) -> jax.Array:
    """δ = r + γ (1 - d) V(s') - Q(s, a), for one transition; no gradient through the target."""
    target = reward + gamma * (1 - terminated) * next_value
    return jax.lax.stop_gradient(target) - q_value


def cross_entropy_method(
    key, value: Callable, num_actions: int, num_samples: int, num_elites: int, num_rounds: int
) -> jax.Array:
    """argmax_a value(a) over [-1, 1]^A, approximately; [A]. `value` maps one action to a number."""
    mean, std = jnp.zeros(num_actions), jnp.ones(num_actions)
    for key_round in jax.random.split(key, num_rounds):
        noise = jax.random.normal(key_round, (num_samples, num_actions))
        actions = jnp.clip(mean + std * noise, -1, 1)
        _, elites = jax.lax.top_k(jax.vmap(value)(actions), num_elites)  # from the best down
        mean, std = actions[elites].mean(0), actions[elites].std(0)
    return actions[elites[0]]


def make(config: Config) -> Algorithm:
    env = map_actions(make_env(config.env_id, config.num_envs, actions="continuous"), scale_action)
    (num_actions,) = env.action_shape
    critic = make_q_network(env, config.hidden_sizes)
    optimizer = optax.adam(config.learning_rate)
    steps_per_update = config.num_envs
    buffer = uniform_buffer(config.buffer_size, steps_per_update, config.batch_size)
    warmup_updates = -(-config.learning_starts // steps_per_update)
    initial_steps = warmup_updates * steps_per_update
    num_updates = (config.total_timesteps - initial_steps) // steps_per_update

    def best_action(params, obs, key):
        return cross_entropy_method(
            key,
            lambda action: critic.apply(params, obs, action),
            num_actions,
            config.num_samples,
            config.num_elites,
            config.num_cem_rounds,
        )

    def best_actions(params, obs, key):  # of observations [B, ...]
        keys = jax.random.split(key, len(obs))
        return jax.vmap(best_action, (None, 0, 0))(params, obs, keys)

    def loss(params, target_params, batch, next_actions):
        def error(transition, next_action):
            q_value = critic.apply(params, transition.obs, transition.action)
            next_value = critic.apply(target_params, transition.next_obs, next_action)
            reward, terminated = transition.reward, transition.terminated
            return td_error(q_value, reward, next_value, terminated, config.gamma)

        return jnp.mean(jnp.square(jax.vmap(error)(batch, next_actions)))

    def init(key):
        key, key_params, key_env, key_warmup = jax.random.split(key, 4)
        params = critic.init(key_params)
        env_state, transitions, _ = rollout(
            env, random_policy(env), env.reset(key_env), key_warmup, warmup_updates
        )
        return State(
            key=key,
            params=params,
            target_params=jax.tree.map(jnp.copy, params),
            opt_state=optimizer.init(params),
            buffer=buffer.init(transitions),
            env=env_state,
        )

    def update(state, step):
        keys = jax.random.split(jax.random.fold_in(state.key, step), 3)
        key_rollout, key_sample, key_target = keys

        def behaviour_policy(obs, key):
            key_noise, key_action = jax.random.split(key)
            action = best_actions(state.params, obs, key_action)
            noise = config.exploration_noise * jax.random.normal(key_noise, action.shape)
            return jnp.clip(action + noise, -1, 1)

        env_state, transitions, episodes = rollout(env, behaviour_policy, state.env, key_rollout, 1)
        buffer_state = buffer.add(state.buffer, transitions, warmup_updates + step)
        batch = buffer.sample(buffer_state, key_sample, warmup_updates + step + 1)
        next_actions = best_actions(state.target_params, batch.next_obs, key_target)

        loss_value, grads = jax.value_and_grad(loss)(
            state.params, state.target_params, batch, next_actions
        )
        updates, opt_state = optimizer.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)

        target_params = optax.incremental_update(params, state.target_params, config.tau)
        value = critic.apply(state.params, transitions.obs, transitions.action).mean()
        metrics = episodes | {"value": value, "loss": loss_value}
        return State(state.key, params, target_params, opt_state, buffer_state, env_state), metrics

    def act(params, obs, key):
        return scale_action(env, best_action(params, obs, key))

    return Algorithm(init, update, act, num_updates, steps_per_update, initial_steps)


if __name__ == "__main__":
    main(Config, make)
