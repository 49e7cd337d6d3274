"""DQN with n-step returns.

Differs from dqn.py in the target, which sums n rewards before it bootstraps. An n-step transition
enters the replay memory n - 1 steps after it began.

Sutton 1988, Learning to predict by the methods of temporal differences,
https://doi.org/10.1007/BF00115009, in DQN as in Hessel et al. 2018, Rainbow,
https://arxiv.org/abs/1710.02298

    R = Σ_{i<n} γⁱ r_{t+i}                                                  (section Multi-step
    L(θ) = E[(R + γⁿ (1 - d) max_a' Q(s_{t+n}, a'; θ⁻) - Q(s_t, a_t; θ))²]          learning)

with d = 1 where the MDP terminated; a time limit does not end the MDP. Both end the sum: if the
episode ends after k < n steps, R has k rewards, and γᵏ and s_{t+k}, from before the reset, replace
γⁿ and s_{t+n}.

Departs from the paper: nothing but what dqn.py departs from. As there, the rewards after a_t come
from the ε-greedy policy that was followed, without off-policy correction.

Metrics: `value`, mean Q(s, a) of the actions taken (discounted return); `loss`, mean squared TD
error of the batch (return²).
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.buffers import uniform_buffer
from common.envs import EnvState, Transition, make_env, rollout
from common.exploration import epsilon_greedy, linear_schedule, random_policy
from common.networks import make_network
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
    learning_starts: int = 1_000  # random environment steps first, rounded up to whole updates
    target_network_frequency: int = 15  # gradient steps between copies of θ into θ⁻
    tau: float = 1.0  # θ⁻ ← τ θ + (1 - τ) θ⁻ at each copy
    epsilon_start: float = 1.0  # initial probability of a random action
    epsilon_end: float = 0.1  # final probability of a random action
    exploration_fraction: float = 0.2  # of the updates, over which epsilon falls linearly
    hidden_sizes: tuple[int, ...] = (256,)  # units of each hidden layer

    def __post_init__(self):
        require(
            self,
            "buffer_size >= learning_starts",
            "total_timesteps >= learning_starts + num_envs * (n_step + 2 * train_frequency)",
        )


class NStep(NamedTuple):
    """n transitions as one, or k < n where the episode ended after k."""

    obs: jax.Array
    action: jax.Array
    reward: jax.Array  # Σ_{i<k} γⁱ r_{t+i}
    next_obs: jax.Array  # after k steps, before any reset
    terminated: jax.Array  # bool: the MDP ended at step k
    discount: jax.Array  # γᵏ


class State(NamedTuple):
    key: jax.Array
    params: Any  # θ
    target_params: Any  # θ⁻
    opt_state: optax.OptState
    buffer: NStep  # [capacity, ...]
    pending: Transition  # [n - 1, N, ...] the latest steps, whose n-step transitions are to come
    env: EnvState


def n_step(window: Transition, gamma: float) -> NStep:
    """Return the n-step transition that starts a window [n, ...] of one environment's steps."""

    def step(i):
        return jax.tree.map(lambda x: x[i], window)

    end = step(0)  # the last step that counts
    reward, discount = end.reward, jnp.full_like(end.reward, gamma)
    for i in range(1, len(window.reward)):
        continues = ~(end.terminated | end.truncated)
        reward += jnp.where(continues, discount * window.reward[i], 0)
        discount *= jnp.where(continues, gamma, 1)
        end = jax.tree.map(partial(jnp.where, continues), step(i), end)
    return NStep(window.obs[0], window.action[0], reward, end.next_obs, end.terminated, discount)


def td_error(q_value, reward, next_value, terminated, gamma) -> jax.Array:
    """δ = r + γ (1 - d) V(s') - Q(s, a), for one transition; no gradient through the target."""
    target = reward + gamma * (1 - terminated) * next_value
    return jax.lax.stop_gradient(target) - q_value


def make(config: Config) -> Algorithm:
    env = make_env(config.env_id, config.num_envs, actions="discrete")
    network = make_network(env, config.hidden_sizes)
    optimizer = optax.adam(config.learning_rate)
    steps_per_update = config.num_envs * config.train_frequency
    buffer = uniform_buffer(config.buffer_size, steps_per_update, config.batch_size)
    warmup_updates = -(-config.learning_starts // steps_per_update)
    warmup_steps = warmup_updates * config.train_frequency + config.n_step - 1
    initial_steps = warmup_steps * config.num_envs
    num_updates = (config.total_timesteps - initial_steps) // steps_per_update
    decay_updates = config.exploration_fraction * num_updates

    def n_step_transitions(stream):
        """Transitions [T + n - 1, N, ...] -> NStep [T, N, ...]."""
        num = len(stream.reward) - config.n_step + 1
        windows = jax.tree.map(
            lambda x: jnp.stack([x[i : i + num] for i in range(config.n_step)], axis=2), stream
        )
        return jax.vmap(jax.vmap(n_step, (0, None)), (0, None))(windows, config.gamma)

    def loss(params, target_params, batch):
        def error(transition):
            q_value = network.apply(params, transition.obs)[transition.action]
            next_value = jnp.max(network.apply(target_params, transition.next_obs))
            reward, terminated = transition.reward, transition.terminated
            return td_error(q_value, reward, next_value, terminated, transition.discount)

        return jnp.mean(jnp.square(jax.vmap(error)(batch)))

    def init(key):
        key, key_params, key_env, key_warmup = jax.random.split(key, 4)
        params = network.init(key_params)
        env_state, transitions, _ = rollout(
            env, random_policy(env), env.reset(key_env), key_warmup, warmup_steps
        )
        return State(
            key=key,
            params=params,
            target_params=jax.tree.map(jnp.copy, params),
            opt_state=optimizer.init(params),
            buffer=buffer.init(n_step_transitions(transitions)),
            pending=jax.tree.map(lambda x: x[warmup_steps - config.n_step + 1 :], transitions),
            env=env_state,
        )

    def update(state, step):
        key_rollout, key_sample = jax.random.split(jax.random.fold_in(state.key, step))
        epsilon = linear_schedule(step, config.epsilon_start, config.epsilon_end, decay_updates)

        def behaviour_policy(obs, key):
            return epsilon_greedy(key, network.apply(state.params, obs), epsilon)

        env_state, transitions, episodes = rollout(
            env, behaviour_policy, state.env, key_rollout, config.train_frequency
        )
        stream = jax.tree.map(lambda *x: jnp.concatenate(x), state.pending, transitions)
        pending = jax.tree.map(lambda x: x[config.train_frequency :], stream)
        buffer_state = buffer.add(state.buffer, n_step_transitions(stream), warmup_updates + step)
        batch = buffer.sample(buffer_state, key_sample, warmup_updates + step + 1)

        loss_value, grads = jax.value_and_grad(loss)(state.params, state.target_params, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        polyak = optax.incremental_update(params, state.target_params, config.tau)
        is_copy_step = (step + 1) % config.target_network_frequency == 0
        target_params = jax.tree.map(
            lambda new, old: jnp.where(is_copy_step, new, old), polyak, state.target_params
        )

        q_values = network.apply(state.params, transitions.obs)
        value = jnp.take_along_axis(q_values, transitions.action[..., None], axis=-1).mean()
        metrics = episodes | {"value": value, "loss": loss_value}
        state = State(state.key, params, target_params, opt_state, buffer_state, pending, env_state)
        return state, metrics

    def act(params, obs, key):
        return jnp.argmax(network.apply(params, obs))

    return Algorithm(init, update, act, num_updates, steps_per_update, initial_steps)


if __name__ == "__main__":
    main(Config, make)
