"""QT-Opt: Q-learning with continuous actions.

Differs from ddpg.py in that there is no actor: wherever the best action is needed it is searched
for, by the cross-entropy method on Q.

Kalashnikov et al. 2018, QT-Opt: Scalable deep reinforcement learning for vision-based robotic
manipulation, https://arxiv.org/abs/1806.10293

    L(φ) = E[(r + γ (1 - d) Q(s', a*; φ⁻) - Q(s, a; φ))²]                      (1)
    a* ≈ argmax_a' Q(s', a'; φ⁻): draw N actions from a Gaussian, fit it to the best M of them, draw
    again, so on `num_iterations` times; the best of the last N                (section 4.2)

with d = 1 where the MDP terminated; a time limit does not end the MDP. Actions are clipped to the
space's bounds, and the first Gaussian is as wide as the space, so that the bounds themselves are
tried. With one iteration this is plain random search.

Departs from the paper: the target is one network that follows slowly, not the smaller value of two
of different age; squared error, not cross-entropy; all experience is this run's own; several
environments in parallel; the random steps that fill the replay memory at first are taken in `init`.
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
from common.networks import critic_for
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
    learning_starts: int = 1_000  # environment steps at random first, rounded up to whole updates
    tau: float = 0.02  # φ⁻ ← τ φ + (1 - τ) φ⁻ after each gradient step
    exploration_noise: float = 0.1  # σ of the noise added to actions in [-1, 1]
    num_samples: int = 64  # actions drawn in each iteration of the search, N
    num_elites: int = 6  # the best of them, which the next ones resemble, M
    num_iterations: int = 2  # of the search; 1: plain random search
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of each hidden layer

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
            "num_samples >= 1",
            "1 <= num_elites <= num_samples",
            "num_iterations >= 1",
            "all(size >= 1 for size in hidden_sizes)",
        )


class State(NamedTuple):
    key: jax.Array
    params: Any  # φ
    target_params: Any  # φ⁻
    opt_state: optax.OptState
    buffer: Rows  # [capacity, ...], actions in [-1, 1]
    env: EnvState


def td_error(params, target_params, transition: Transition, next_action, q, gamma) -> jax.Array:
    """δ = r + γ (1 - d) Q(s', a*; φ⁻) - Q(s, a; φ), for one transition and the action a*."""
    obs, action, reward, next_obs, terminated, _ = transition
    target = reward + gamma * (1 - terminated) * q(target_params, next_obs, next_action)
    return jax.lax.stop_gradient(target) - q(params, obs, action)


def cross_entropy_method(
    key, value, num_actions: int, num_samples: int, num_elites: int, num_iterations: int
) -> jax.Array:
    """argmax_a value(a) over [-1, 1]^A, approximately; [A]. `value` is of one action."""
    mean, std = jnp.zeros(num_actions), jnp.ones(num_actions)
    for k in jax.random.split(key, num_iterations):
        noise = jax.random.normal(k, (num_samples, num_actions))
        actions = jnp.clip(mean + std * noise, -1, 1)
        _, best = jax.lax.top_k(jax.vmap(value)(actions), num_elites)
        mean, std = actions[best].mean(0), actions[best].std(0)
    return actions[best[0]]


def make(config: Config) -> Algorithm:
    env = with_unit_actions(make_env(config.env_id, config.num_envs, actions="continuous"))
    (num_actions,) = env.action_shape
    critic = critic_for(env, config.hidden_sizes)
    optimizer = optax.adam(config.learning_rate)
    steps_per_update = config.num_envs
    buffer = uniform_buffer(config.buffer_size, steps_per_update, config.batch_size)
    num_warmup = -(-config.learning_starts // steps_per_update)  # updates' worth of random steps
    num_updates = config.total_timesteps // steps_per_update - num_warmup

    def best_action(params, obs, key):
        return cross_entropy_method(
            key,
            lambda action: critic.apply(params, obs, action),
            num_actions,
            config.num_samples,
            config.num_elites,
            config.num_iterations,
        )

    def best_actions(params, obs, key):  # of observations [B, ...]
        keys = jax.random.split(key, len(obs))
        return jax.vmap(best_action, (None, 0, 0))(params, obs, keys)

    def loss(params, target_params, batch, next_actions):
        def error(t, next_action):
            return td_error(params, target_params, t, next_action, critic.apply, config.gamma)

        return jnp.mean(jnp.square(jax.vmap(error)(batch, next_actions)))

    def init(key):
        key, key_params, key_env, key_warmup = jax.random.split(key, 4)
        params = critic.init(key_params)

        def random(obs, key):
            return jax.random.uniform(key, (config.num_envs, num_actions), minval=-1, maxval=1)

        env_state, warmup, _ = rollout(env, random, env.reset(key_env), key_warmup, num_warmup)
        return State(
            key=key,
            params=params,
            target_params=jax.tree.map(jnp.copy, params),
            opt_state=optimizer.init(params),
            buffer=buffer.init(warmup),
            env=env_state,
        )

    def update(state, step):
        key_rollout, key_sample, key_target = jax.random.split(
            jax.random.fold_in(state.key, step), 3
        )

        def explore(obs, key):
            key_noise, key_action = jax.random.split(key)
            action = best_actions(state.params, obs, key_action)
            noise = config.exploration_noise * jax.random.normal(key_noise, action.shape)
            return jnp.clip(action + noise, -1, 1)

        env_state, recent, episode_return = rollout(env, explore, state.env, key_rollout, 1)
        data = buffer.add(state.buffer, recent, num_warmup + step)
        batch = buffer.sample(data, key_sample, num_warmup + step + 1)
        next_actions = best_actions(state.target_params, batch.next_obs, key_target)

        loss_value, grads = jax.value_and_grad(loss)(
            state.params, state.target_params, batch, next_actions
        )
        updates, opt_state = optimizer.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        target_params = optax.incremental_update(params, state.target_params, config.tau)
        value = critic.apply(state.params, recent.obs, recent.action).mean()
        metrics = {"episode_return": episode_return, "value": value, "loss": loss_value}
        return State(state.key, params, target_params, opt_state, data, env_state), metrics

    def act(params, obs, key):
        return scale_action(env, best_action(params, obs, key))

    return Algorithm(
        init, update, act, num_updates, steps_per_update, num_warmup * steps_per_update
    )


if __name__ == "__main__":
    main(Config, make)
