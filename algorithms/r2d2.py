"""Recurrent replay distributed DQN (R2D2).

Differs from prioritized_dqn.py in the network, which has a memory m, a gated recurrent unit (GRU)
that sees the observations and the previous actions one after the other; in the replay, which holds
sequences; in the target, that of double_dqn.py over n steps as in n_step_dqn.py, rescaled by h; and
in the exploration, with an ε for each environment.

Kapturowski et al. 2019, Recurrent experience replay in distributed reinforcement learning,
https://openreview.net/forum?id=r1lyTjAqYX

    m_t = GRU(o_t, a_{t-1}, m_{t-1}),  m_{t-1} = 0 at the start of an episode
    Q(m, a; θ) = V(m; θ) + A(m, a; θ) - 1/|A| Σ_a' A(m, a'; θ)
    h(x) = sgn(x) (√(|x| + 1) - 1) + ε x                                    (section 2.3)
    y_t = h(Σ_{i<n} γⁱ r_{t+i} + γⁿ (1 - d) h⁻¹(Q(m_{t+n}, a*; θ⁻)))
    a* = argmax_a Q(m_{t+n}, a; θ)
    δ_t = y_t - Q(m_t, a_t; θ),  L(θ) = E[mean_t δ_t²]
    p = η max_t |δ_t| + (1 - η) mean_t |δ_t|, drawn in proportion to p^α
    ε_i = ε^(1 + 7 i / (N - 1)) in environment i of N                       (Horgan et al. 2018,
                                                                 https://arxiv.org/abs/1803.00933)

with d = 1 where the MDP terminated; a time limit does not end the MDP. Both end the sum as in
n_step_dqn.py. θ and θ⁻ have memories of their own.

A sequence is `burn_in` steps, `num_steps` steps that are learned from, and n - 1 steps that the
targets of the last of these need; it is kept with the memory that the policy had before its first
step. From that memory, the burn-in steps make one for the parameters of today (θ or θ⁻), without a
gradient. An update adds a sequence of each environment, whose first burn_in + n - 1 steps are the
last ones of the sequence before. Where an episode ends inside a sequence the memory starts again
from 0; Q of the observation that ends it is taken with the memory of that episode.

Departs from the paper: neither distributed nor asynchronous: an update is `num_steps` steps of all
environments, then `gradient_steps` gradient steps; a GRU, not an LSTM, and what its memory holds
decays over up to `memory_steps` steps at first (chrono initialization, Tallec & Ollivier 2018,
https://arxiv.org/abs/1804.11188); the streams V and A have no hidden layer of their own; the
network does not see the previous reward, which `act` is not told; a sequence may span several
episodes, where the paper's end with one; a new sequence has the largest priority so far, not one
computed where it was acted; the learning rate falls to 0; `act` takes no random actions.

Metrics: `value`, mean h⁻¹(Q(m, a)) of the actions taken (discounted return); `loss`, mean squared
TD error of the batches (rescaled return²).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.buffers import rows, uniform_buffer
from common.envs import Env, EnvState, Transition, make_env
from common.exploration import epsilon_greedy
from common.memory import (
    RecurrentNetwork,
    StoredSequence,
    cut_sequences,
    recurrent,
    rollout_with_memory,
    with_mask,
)
from common.networks import Network, make_network, mlp
from common.prioritized import Priorities, init_priorities, sample_rows, set_priorities
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "CartPole-v1-positions"  # any environment with discrete actions
    total_timesteps: int = 200_000  # environment steps, over all environments
    num_envs: int = 8  # environments stepped in parallel
    num_steps: int = 20  # steps of a sequence that are learned from, and of an update
    burn_in: int = 10  # steps of a sequence before those
    gradient_steps: int = 16  # of an update
    learning_rate: float = 2e-3  # of Adam
    anneal_lr: bool = True  # the learning rate falls linearly to 0
    gamma: float = 0.997  # discount factor
    n_step: int = 5  # rewards before the bootstrap, n
    rescale_eps: float = 1e-3  # ε of h
    buffer_size: int = 200_000  # steps that are learned from, rounded up to whole updates
    batch_size: int = 16  # sequences
    prioritized_replay_alpha: float = 0.9  # α: 0 draws uniformly
    prioritized_replay_eta: float = 0.9  # η: 1 for the largest error of a sequence, 0 for the mean
    prioritized_replay_eps: float = 1e-6  # added to every priority
    learning_starts: int = 1_000  # environment steps first, rounded up to whole updates
    target_network_frequency: int = 40  # gradient steps between copies of θ into θ⁻
    tau: float = 1.0  # θ⁻ ← τ θ + (1 - τ) θ⁻ at each copy
    epsilon: float = 0.4  # probability of a random action in environment 0, ε
    epsilon_power: float = 7.0  # the last one has ε^(1 + epsilon_power)
    hidden_sizes: tuple[int, ...] = (32,)  # units of each layer before the memory
    memory_size: int = 32  # units of the memory
    memory_steps: int = 20  # over which the memory decays at first, at most

    def __post_init__(self):
        require(
            self,
            "burn_in >= 0",
            "rescale_eps >= 0",
            "prioritized_replay_alpha >= 0",
            "0 <= prioritized_replay_eta <= 1",
            "prioritized_replay_eps > 0",
            "epsilon_power >= 0",
            "len(hidden_sizes) >= 1",
            "all(size >= 1 for size in hidden_sizes)",
            "buffer_size >= learning_starts",
            "total_timesteps >= learning_starts + num_envs * (burn_in + n_step + 2 * num_steps)",
        )


class Memory(NamedTuple):
    """What the policy knows of the episode so far."""

    hidden: jax.Array  # m [..., H]
    action: jax.Array  # int, the previous one; -1 at the start of an episode


class Stream(NamedTuple):
    """Steps of every environment."""

    memories: Memory  # [T, N, ...] before each step
    transitions: Transition  # [T, N, ...]


class State(NamedTuple):
    key: jax.Array
    params: Any  # θ
    target_params: Any  # θ⁻
    opt_state: optax.OptState
    buffer: StoredSequence  # [capacity, ...]
    priorities: Priorities  # p^α of its rows
    pending: Stream  # [burn_in + n - 1, N, ...] the latest steps, with which the next ones begin
    env: EnvState
    memory: Memory  # [N, ...] after any reset


def dueling(value, advantage) -> jax.Array:
    """V + A(a) - 1/|A| Σ_a' A(a'), from V [..., 1] and A [..., A]; [..., A]."""
    return value + advantage - jnp.mean(advantage, axis=-1, keepdims=True)


def make_recurrent_q_network(
    env: Env, hidden_sizes: tuple[int, ...], memory_size: int, memory_steps: int
) -> RecurrentNetwork:
    """Return Q(m, a) of `recurrent`, whose inputs are pairs: observations, and previous actions."""
    *sizes, num_features = hidden_sizes
    encoder = make_network(env, sizes, num_features)
    streams = mlp([memory_size, 1 + env.num_actions])

    def encode(params, inputs):
        obs, action = inputs
        action = jax.nn.one_hot(action, env.num_actions)  # zeros for -1
        return jnp.concatenate([jax.nn.relu(encoder.apply(params, obs)), action], axis=-1)

    def head(params, memory):
        y = streams.apply(params, memory)
        return dueling(y[..., :1], y[..., 1:])

    network = recurrent(
        Network(encoder.init, encode),
        num_features + env.num_actions,
        memory_size,
        Network(streams.init, head),
        max_steps=memory_steps,
    )
    return with_mask(env, network, lambda inputs: inputs[0])


def rescale(x, eps) -> jax.Array:
    """h(x) = sgn(x) (√(|x| + 1) - 1) + ε x.

    As a product with x, small x keep their digits, and the slope at 0 is right.
    """
    return x * (1 / (jnp.sqrt(jnp.abs(x) + 1) + 1) + eps)


def inverse_rescale(y, eps) -> jax.Array:
    """h⁻¹(y) = sgn(y) (u² - 1) with u = (√(1 + 4 ε (|y| + 1 + ε)) - 1) / (2 ε), as a product."""
    c = jnp.abs(y) + 1 + eps
    u = 2 * c / (jnp.sqrt(1 + 4 * eps * c) + 1)
    return y / (1 / (u + 1) + eps)


def n_step_return(reward, next_value, terminated, done, gamma, n) -> jax.Array:
    """Σ_{i<n} γⁱ r_{t+i} + γⁿ (1 - d) V(s_{t+n}), shorter where an episode is done, for the first T
    of the steps of one environment, [T + n - 1]; [T].

    `next_value` [T + n - 1] is V of what followed each step, before any reset.
    """
    bootstrap = (1 - terminated) * next_value
    returns = reward + gamma * bootstrap
    for num in range(len(reward) - 1, len(reward) - n, -1):
        rest = jnp.where(done[:num], bootstrap[:num], returns[1:])
        returns = reward[:num] + gamma * rest
    return returns


def rescaled_error(q_value, returns, eps) -> jax.Array:
    """δ = h(R) - Q(s, a), for one step; no gradient through the target."""
    return jax.lax.stop_gradient(rescale(returns, eps)) - q_value


def priority(error, eta, alpha, eps) -> jax.Array:
    """p^α with p = η max_t |δ_t| + (1 - η) mean_t |δ_t| + ε, for the errors δ [T] of a sequence."""
    error = jnp.abs(error)
    return (eta * jnp.max(error) + (1 - eta) * jnp.mean(error) + eps) ** alpha


def exploration(epsilon, power, num_envs) -> jax.Array:
    """ε_i = ε^(1 + power i / (N - 1)), [N]; ε if N = 1."""
    return epsilon ** (1 + power * jnp.arange(num_envs) / max(1, num_envs - 1))


def make(config: Config) -> Algorithm:
    env = make_env(config.env_id, config.num_envs, actions="discrete")
    network = make_recurrent_q_network(
        env, config.hidden_sizes, config.memory_size, config.memory_steps
    )
    steps_per_update = config.num_envs * config.num_steps
    num_blocks = -(-config.buffer_size // steps_per_update)  # each a sequence per environment
    num_rows = num_blocks * config.num_envs
    buffer = uniform_buffer(num_rows, config.num_envs, config.batch_size)
    overlap = config.burn_in + config.n_step - 1
    warmup_updates = -(-config.learning_starts // steps_per_update)
    warmup_steps = warmup_updates * config.num_steps + overlap
    initial_steps = warmup_steps * config.num_envs
    num_updates = (config.total_timesteps - initial_steps) // steps_per_update

    def optimizer(step):
        return optax.adam(config.learning_rate * (1 - config.anneal_lr * step / num_updates))

    def init_memory():
        return Memory(network.init_memory(), jnp.full((), -1, int))

    def collect(params, states, key, num_steps):
        epsilon = exploration(config.epsilon, config.epsilon_power, config.num_envs)

        def behaviour_policy(memory, obs, key):
            q_values, hidden = network.apply(params, memory.hidden, (obs, memory.action))
            action = epsilon_greedy(key, q_values, epsilon)
            return action, Memory(hidden, action)

        states, transitions, memories, episodes = rollout_with_memory(
            env, behaviour_policy, states, init_memory(), key, num_steps
        )
        return states, Stream(memories, transitions), episodes

    def q_values(params, sequence):
        """Q of the observations and of the next ones behind the burn-in, [num_steps + n - 1, A]."""
        memory, steps = sequence
        done = steps.terminated | steps.truncated
        previous = jnp.where(done, init_memory().action, steps.action)
        previous = jnp.concatenate([memory.action[None], previous[:-1]])
        inputs = (steps.obs, previous), done
        first, rest = (
            jax.tree.map(lambda x, part=part: x[part], inputs)
            for part in (slice(config.burn_in), slice(config.burn_in, None))
        )
        hidden = memory.hidden
        if config.burn_in:
            *_, hidden = network.unroll(jax.lax.stop_gradient(params), hidden, *first)
        q, after, _ = network.unroll(params, hidden, *rest)
        next_inputs = steps.next_obs[config.burn_in :], steps.action[config.burn_in :]
        return q, network.apply(params, after, next_inputs)[0]

    def loss(params, target_params, batch):
        def error(sequence):
            q, next_q = q_values(params, sequence)
            _, target_next_q = q_values(target_params, sequence)
            steps = jax.tree.map(lambda x: x[config.burn_in :], sequence.transitions)
            next_action = jnp.argmax(next_q, axis=-1, keepdims=True)
            next_value = jnp.take_along_axis(target_next_q, next_action, axis=-1).squeeze(-1)
            returns = n_step_return(
                steps.reward,
                inverse_rescale(next_value, config.rescale_eps),
                steps.terminated,
                steps.terminated | steps.truncated,
                config.gamma,
                config.n_step,
            )
            q_value = jnp.take_along_axis(q, steps.action[:, None], axis=-1).squeeze(-1)
            return rescaled_error(q_value[: config.num_steps], returns, config.rescale_eps)

        errors = jax.vmap(error)(batch)
        return jnp.mean(jnp.square(errors)), errors

    def init(key):
        key, key_params, key_env, key_warmup = jax.random.split(key, 4)
        params = network.init(key_params)
        memory = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (env.num_envs, *x.shape)), init_memory()
        )
        (env_state, memory), stream, _ = collect(
            params, (env.reset(key_env), memory), key_warmup, warmup_steps
        )
        is_full = jnp.arange(num_rows) < warmup_updates * config.num_envs
        return State(
            key=key,
            params=params,
            target_params=jax.tree.map(jnp.copy, params),
            opt_state=optimizer(0).init(params),
            buffer=buffer.init(cut_sequences(*stream, config.num_steps, overlap)),
            priorities=init_priorities(is_full.astype(float)),
            pending=jax.tree.map(lambda x: x[warmup_steps - overlap :], stream),
            env=env_state,
            memory=memory,
        )

    def update(state, step):
        key_rollout, key_learn = jax.random.split(jax.random.fold_in(state.key, step))
        (env_state, memory), stream, episodes = collect(
            state.params, (state.env, state.memory), key_rollout, config.num_steps
        )
        extended = jax.tree.map(lambda *x: jnp.concatenate(x), state.pending, stream)
        sequences = cut_sequences(*extended, config.num_steps, overlap)
        buffer_state = buffer.add(state.buffer, sequences, warmup_updates + step)
        first_row = (warmup_updates + step) % num_blocks * config.num_envs
        new_rows = first_row + jnp.arange(config.num_envs)
        priorities = set_priorities(state.priorities, new_rows, state.priorities.largest)

        def learn(carry, inputs):
            params, target_params, opt_state, priorities = carry
            key, gradient_step = inputs
            index, _ = sample_rows(priorities, key, config.batch_size)
            batch = rows(buffer_state, index)
            (loss_value, errors), grads = jax.value_and_grad(loss, has_aux=True)(
                params, target_params, batch
            )
            new_priority = jax.vmap(priority, (0, None, None, None))(
                errors,
                config.prioritized_replay_eta,
                config.prioritized_replay_alpha,
                config.prioritized_replay_eps,
            )
            priorities = set_priorities(priorities, index, new_priority)
            updates, opt_state = optimizer(step).update(grads, opt_state)
            params = optax.apply_updates(params, updates)
            polyak = optax.incremental_update(params, target_params, config.tau)
            is_copy_step = (gradient_step + 1) % config.target_network_frequency == 0
            target_params = jax.tree.map(
                lambda new, old: jnp.where(is_copy_step, new, old), polyak, target_params
            )
            return (params, target_params, opt_state, priorities), loss_value

        keys = jax.random.split(key_learn, config.gradient_steps)
        gradient_steps = step * config.gradient_steps + jnp.arange(config.gradient_steps)
        (params, target_params, opt_state, priorities), losses = jax.lax.scan(
            learn,
            (state.params, state.target_params, state.opt_state, priorities),
            (keys, gradient_steps),
        )

        memories, transitions = stream
        q, _ = network.apply(state.params, memories.hidden, (transitions.obs, memories.action))
        value = jnp.take_along_axis(q, transitions.action[..., None], axis=-1)
        value = inverse_rescale(value, config.rescale_eps).mean()
        metrics = episodes | {"value": value, "loss": losses.mean()}
        return State(
            key=state.key,
            params=params,
            target_params=target_params,
            opt_state=opt_state,
            buffer=buffer_state,
            priorities=priorities,
            pending=jax.tree.map(lambda x: x[config.num_steps :], extended),
            env=env_state,
            memory=memory,
        ), metrics

    def act(params, memory, obs, key):
        q_values, hidden = network.apply(params, memory.hidden, (obs, memory.action))
        action = jnp.argmax(q_values)
        return action, Memory(hidden, action)

    return Algorithm(
        init, update, act, num_updates, steps_per_update, initial_steps, init_memory=init_memory
    )


if __name__ == "__main__":
    main(Config, make)
