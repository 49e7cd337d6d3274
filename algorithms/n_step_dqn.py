"""DQN with n-step returns.

Differs from dqn.py in the target, which has n rewards before it bootstraps: what goes into the
replay memory is a transition of n steps, n - 1 steps after it began.

Sutton 1988, Learning to predict by the methods of temporal differences,
https://doi.org/10.1007/BF00115009, in DQN as in Hessel et al. 2018, Rainbow,
https://arxiv.org/abs/1710.02298

    R = Σ_{i<n} γⁱ r_{t+i}                                                  (section Multi-step
    L(θ) = E[(R + γⁿ (1 - d) max_a' Q(s_{t+n}, a'; θ⁻) - Q(s_t, a_t; θ))²]          learning)

with d = 1 where the MDP terminated; a time limit does not end the MDP. Either ends the sum: k < n
steps from an end, the sum has k rewards, γⁿ is γᵏ, and s_{t+k} is from before the reset.

Departs from the paper: nothing but what dqn.py departs from. As there, rewards after a_t are those
of the ε-greedy policy of the time, uncorrected.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.buffers import Rows, uniform_buffer
from common.envs import EnvState, Transition, make_env, rollout
from common.networks import network_for
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "CartPole-v1"  # any environment with discrete actions
    total_timesteps: int = 100_000  # environment steps, over all environments
    num_envs: int = 4  # environments stepped in parallel
    train_frequency: int = 1  # steps of each environment between gradient steps
    learning_rate: float = 1e-3  # of Adam
    gamma: float = 0.99  # discount factor
    n_step: int = 3  # rewards before the bootstrap, n
    buffer_size: int = 20_000  # transitions, rounded up to whole updates
    batch_size: int = 64  # transitions
    learning_starts: int = 1_000  # environment steps at random first, rounded up to whole updates
    target_network_frequency: int = 15  # gradient steps between copies of θ into θ⁻
    tau: float = 1.0  # θ⁻ ← τ θ + (1 - τ) θ⁻ at each copy
    epsilon_start: float = 1.0  # probability of a random action, at first
    epsilon_end: float = 0.1  # and at last
    exploration_fraction: float = 0.2  # of the updates, over which epsilon falls linearly
    hidden_sizes: tuple[int, ...] = (256,)  # units of each hidden layer

    def __post_init__(self):
        require(
            self,
            "num_envs >= 1",
            "train_frequency >= 1",
            "learning_rate > 0",
            "0 <= gamma <= 1",
            "n_step >= 1",
            "batch_size >= 1",
            "learning_starts >= 0",
            "buffer_size >= learning_starts",
            "total_timesteps >= learning_starts + num_envs * (n_step + 2 * train_frequency)",
            "target_network_frequency >= 1",
            "0 < tau <= 1",
            "0 <= epsilon_start <= 1",
            "0 <= epsilon_end <= 1",
            "0 < exploration_fraction <= 1",
            "all(size >= 1 for size in hidden_sizes)",
        )


class State(NamedTuple):
    key: jax.Array
    params: Any  # θ
    target_params: Any  # θ⁻
    opt_state: optax.OptState
    buffer: Rows  # [capacity, ...]
    pending: Transition  # [n - 1, N, ...] the latest steps, whose n-step transitions are to come
    env: EnvState


class NStep(NamedTuple):
    """n transitions as one, or fewer where the episode ends before."""

    obs: jax.Array
    action: jax.Array
    reward: jax.Array  # Σ_{i<k} γⁱ r_{t+i}
    next_obs: jax.Array  # after k steps, before any reset
    terminated: jax.Array
    discount: jax.Array  # γᵏ


def n_step(window: Transition, gamma) -> NStep:
    """The n-step transition that begins a window [n, ...] of one environment's steps."""
    first, *others = zip(*window, strict=True)
    obs, action, reward, next_obs, terminated, truncated = first
    discount = jnp.full_like(reward, gamma)
    for _, _, later_reward, *later in others:
        goes_on = ~(terminated | truncated)
        reward += jnp.where(goes_on, discount * later_reward, 0)
        discount *= jnp.where(goes_on, gamma, 1)
        end = next_obs, terminated, truncated
        next_obs, terminated, truncated = (
            jnp.where(goes_on, x, y) for x, y in zip(later, end, strict=True)
        )
    return NStep(obs, action, reward, next_obs, terminated, discount)


def td_error(params, target_params, transition: NStep, q) -> jax.Array:
    """δ = R + γᵏ (1 - d) max_a' Q(s', a'; θ⁻) - Q(s, a; θ), for one n-step transition."""
    obs, action, reward, next_obs, terminated, discount = transition
    target = reward + discount * (1 - terminated) * jnp.max(q(target_params, next_obs))
    return jax.lax.stop_gradient(target) - q(params, obs)[action]


def epsilon_greedy(key, q_values, epsilon) -> jax.Array:
    """argmax_a q_values [N, A] with probability 1 - ε, else a uniformly random action; [N]."""
    greedy = jnp.argmax(q_values, axis=-1)
    explore, action = jax.random.uniform(key, (2, *greedy.shape))
    random = (action * q_values.shape[-1]).astype(greedy.dtype)
    return jnp.where(explore < epsilon, random, greedy)


def linear_decay(step, start, end, num_steps) -> jax.Array:
    """From `start` at step 0 to `end` at `num_steps`, and `end` from there on."""
    return start + (end - start) * jnp.minimum(step / num_steps, 1)


def make(config: Config) -> Algorithm:
    env = make_env(config.env_id, config.num_envs, actions="discrete")
    network = network_for(env, config.hidden_sizes, env.num_actions)
    optimizer = optax.adam(config.learning_rate)
    steps_per_update = config.num_envs * config.train_frequency
    buffer = uniform_buffer(config.buffer_size, steps_per_update, config.batch_size)
    num_warmup = -(-config.learning_starts // steps_per_update)  # updates' worth of random steps
    num_warmup_steps = num_warmup * config.train_frequency + config.n_step - 1
    initial_steps = num_warmup_steps * config.num_envs
    num_updates = (config.total_timesteps - initial_steps) // steps_per_update

    def n_steps(stream):  # [T + n - 1, N, ...] -> [T, N, ...]
        num = len(stream.reward) - config.n_step + 1
        windows = jax.tree.map(
            lambda x: jnp.stack([x[i : i + num] for i in range(config.n_step)], axis=2), stream
        )
        return jax.vmap(jax.vmap(n_step, (0, None)), (0, None))(windows, config.gamma)

    def loss(params, target_params, batch):
        def error(transition):
            return td_error(params, target_params, transition, network.apply)

        return jnp.mean(jnp.square(jax.vmap(error)(batch)))

    def init(key):
        key, key_params, key_env, key_warmup = jax.random.split(key, 4)
        params = network.init(key_params)

        def random(obs, key):
            return jax.random.randint(key, (config.num_envs,), 0, env.num_actions)

        env_state, warmup, _ = rollout(
            env, random, env.reset(key_env), key_warmup, num_warmup_steps
        )
        return State(
            key=key,
            params=params,
            target_params=jax.tree.map(jnp.copy, params),
            opt_state=optimizer.init(params),
            buffer=buffer.init(n_steps(warmup)),
            pending=jax.tree.map(lambda x: x[num_warmup_steps - config.n_step + 1 :], warmup),
            env=env_state,
        )

    def update(state, step):
        key_rollout, key_sample = jax.random.split(jax.random.fold_in(state.key, step))
        epsilon = linear_decay(
            step,
            config.epsilon_start,
            config.epsilon_end,
            config.exploration_fraction * num_updates,
        )

        def explore(obs, key):
            return epsilon_greedy(key, network.apply(state.params, obs), epsilon)

        env_state, recent, episode_return = rollout(
            env, explore, state.env, key_rollout, config.train_frequency
        )
        stream = jax.tree.map(lambda *x: jnp.concatenate(x), state.pending, recent)
        pending = jax.tree.map(lambda x: x[config.train_frequency :], stream)
        data = buffer.add(state.buffer, n_steps(stream), num_warmup + step)
        batch = buffer.sample(data, key_sample, num_warmup + step + 1)

        loss_value, grads = jax.value_and_grad(loss)(state.params, state.target_params, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        mixed = optax.incremental_update(params, state.target_params, config.tau)
        copy = (step + 1) % config.target_network_frequency == 0
        target_params = jax.tree.map(
            lambda new, old: jnp.where(copy, new, old), mixed, state.target_params
        )

        q_values = network.apply(state.params, recent.obs)
        value = jnp.take_along_axis(q_values, recent.action[..., None], axis=-1).mean()
        metrics = {"episode_return": episode_return, "value": value, "loss": loss_value}
        state = State(state.key, params, target_params, opt_state, data, pending, env_state)
        return state, metrics

    def act(params, obs, key):
        return jnp.argmax(network.apply(params, obs))

    return Algorithm(init, update, act, num_updates, steps_per_update, initial_steps)


if __name__ == "__main__":
    main(Config, make)
