"""What the tests of recurrent Q-learning share: a network step by step, what an update drew from
the replay, and the values of what a policy meets."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from common.buffers import rows
from common.envs import make_env
from common.memory import rollout_with_memory
from common.prioritized import sample_rows, set_priorities


def next_hidden(params, hidden, obs, action):
    """The memories [B, H] after one observation; `action` is the one before, -1 for none."""
    [(w, b)], (w_gru, b_gru, u), _ = params
    size, before = hidden.shape[-1], np.array([[1, 0], [0, 1], [0, 0]])[np.asarray(action)]
    features = jnp.concatenate([jnp.maximum(obs @ w + b, 0), before], axis=-1)
    x = features @ w_gru + b_gru
    gates = jax.nn.sigmoid(x[:, : 2 * size] + hidden @ u[:, : 2 * size])
    r, z = gates[:, :size], gates[:, size:]
    new = jnp.tanh(x[:, 2 * size :] + (r * hidden) @ u[:, 2 * size :])
    return z * hidden + (1 - z) * new


def q_by_loop(q_step, params, memory, steps, burn_in):
    """Q of the observations and of the next ones, [T, B, ...] each, by
    `q_step(params, hidden, obs, action) -> Q, hidden`; memories and previous actions start again at
    every end, and nothing of the burn-in is differentiated."""
    hidden, action, q, next_q = memory.hidden, memory.action, [], []
    for t in range(steps.reward.shape[1]):
        y, hidden = q_step(params, hidden, steps.obs[:, t], action)
        if t >= burn_in:
            q.append(y)
            next_q.append(q_step(params, hidden, steps.next_obs[:, t], steps.action[:, t])[0])
        else:
            hidden = jax.lax.stop_gradient(hidden)
        goes_on = ~(steps.terminated | steps.truncated)[:, t]
        hidden, action = hidden * goes_on[:, None], np.where(goes_on, steps.action[:, t], -1)
    return jnp.stack(q), jnp.stack(next_q)


def first_update(algorithm, config, change=lambda state, other: state, num_keys=2):
    """Update 0 of `change(State, params of another seed)`: the State before, the one after, the
    metrics, the priorities and the rows by which it drew, and their sequences.

    It draws by the last of the `num_keys` keys of the update.
    """
    init = jax.jit(algorithm.init)
    before = change(init(jax.random.key(0)), init(jax.random.key(1)).params)
    after, metrics = jax.jit(algorithm.update)(before, jnp.int32(0))
    warmup = -(-config.learning_starts // (config.num_envs * config.num_steps))
    new_rows = warmup * config.num_envs + jnp.arange(config.num_envs)
    priorities = set_priorities(before.priorities, new_rows, before.priorities.largest)
    key_learn = jax.random.split(jax.random.fold_in(before.key, 0), num_keys)[-1]
    index, _ = sample_rows(priorities, jax.random.split(key_learn, 1)[0], config.batch_size)
    batch = jax.tree.map(np.asarray, rows(after.buffer, index))
    return before, after, metrics, priorities, index, batch


def values_met(algorithm, config, params, value_of, num_states):
    """Average `value_of(hidden, (obs, previous action))` [T, N] by the states that the policy of
    `params` meets, whose observations are one-hot; [num_states]."""
    env = make_env(config.env_id, 32)
    act = jax.vmap(partial(algorithm.act, params), (0, 0, None))
    first = algorithm.init_memory()
    memory = jax.tree.map(lambda x: jnp.broadcast_to(x, (32, *x.shape)), first)
    _, steps, memories, _ = jax.jit(
        lambda states: rollout_with_memory(env, act, states, first, jax.random.key(5), 64)
    )((env.reset(jax.random.key(6)), memory))
    values = value_of(memories.hidden, (steps.obs, memories.action)).ravel()
    which = steps.obs.reshape(-1, num_states).argmax(-1)
    count = np.bincount(which, None, num_states)
    return np.bincount(which, values, num_states) / np.maximum(1, count)


def retrace_by_double_sum(q, error, done, trace, gamma):
    """Retrace as its paper writes it."""
    targets = []
    for t in range(len(q)):
        total, weight = q[t], 1.0
        for s in range(t, len(q)):
            if s > t:
                weight *= 0 if done[s - 1] else gamma * trace[s]
            total += weight * error[s]
        targets.append(total)
    return targets
