"""Dataset aggregation (DAgger).

Differs from behaviour_cloning.py in the states that the expert labels: those that the policy itself
visits, round after round, added to all labels before.

Ross, Gordon & Bagnell 2011, A reduction of imitation learning and structured prediction to
no-regret online learning, https://proceedings.mlr.press/v15/ross11a.html

    π_i = β_i π* + (1 - β_i) π̂_i,   D ← D ∪ {(s, π*(s)) : s visited by π_i}      (Algorithm 3.1)
    π̂_{i+1} = argmin_θ E_D[-ln π(π*(s)|s; θ)]

with β_i = β^i. Each step is one of the expert π* with probability β_i; the label is the expert's
action, whoever acted. π is a softmax over discrete actions. It is a normal distribution of fixed
standard deviation around μ(s; θ) for continuous ones, and the loss is E_D[|π*(s) - μ(s; θ)|²].

Departs from the paper: a small network trained by Adam, which goes on from the round before; the
last policy is kept, not the best of all rounds on held-out states; episodes go on from round to
round. `init` takes the first round, where β_0 = 1.

Metrics: `value`, NaN: none is learned; `loss`, mean over the batches (nat, or squared units of
actions in [-1, 1]); `agreement`, part of the round's states in which the policy would do what the
expert does, to .1 of the range if continuous.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.buffers import uniform_buffer
from common.environments.experts import make_expert
from common.envs import EnvState, Transition, bound_action, make_env, map_actions, rollout
from common.networks import make_network
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "CartPole-v1"  # any environment; without --expert a known one
    expert: str = ""  # folder of a trained run, whose best seed is the expert; "": the known one
    total_timesteps: int = 6_000  # environment steps, each labelled, over all environments
    num_envs: int = 4  # environments stepped in parallel
    num_steps: int = 100  # of each environment in a round
    beta: float = 0.0  # the expert acts with probability beta^i in round i = 0, 1, ...
    gradient_steps: int = 700  # in each round
    learning_rate: float = 1e-3  # of Adam
    batch_size: int = 256  # pairs of observation and label
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of each hidden layer

    def __post_init__(self):
        require(self, "0 <= beta <= 1", "total_timesteps >= 2 * num_envs * num_steps")


class State(NamedTuple):
    key: jax.Array
    params: Any  # θ
    opt_state: optax.OptState
    dataset: Transition  # D: [capacity, ...], whose actions are the labels
    env: EnvState


def imitation_loss(output, action) -> jax.Array:
    """-ln π(a|s) if `output` are logits [A] and `action` an integer, else |a - μ|² of [*shape]."""
    if jnp.issubdtype(action.dtype, jnp.integer):
        return -jax.nn.log_softmax(output)[action]
    return jnp.sum(jnp.square(action - output))


def is_same_action(output, action) -> jax.Array:
    """a = argmax_a π(a|s), or |a - μ| < .1 in every component."""
    if jnp.issubdtype(action.dtype, jnp.integer):
        return jnp.argmax(output) == action
    return jnp.all(jnp.abs(action - jnp.clip(output, -1, 1)) < 0.1)


def make(config: Config) -> Algorithm:
    env = map_actions(make_env(config.env_id, config.num_envs), bound_action)
    network = make_network(env, config.hidden_sizes)
    optimizer = optax.adam(config.learning_rate)
    expert = make_expert(config.env_id, env, config.expert)
    steps_per_update = config.num_envs * config.num_steps
    num_updates = config.total_timesteps // steps_per_update - 1
    capacity = (num_updates + 1) * steps_per_update
    dataset = uniform_buffer(capacity, steps_per_update, config.batch_size)

    def mode(outputs):
        return jnp.argmax(outputs, axis=-1) if env.num_actions is not None else outputs

    def loss(params, batch):
        return jnp.mean(jax.vmap(imitation_loss)(network.apply(params, batch.obs), batch.action))

    def play(params, beta, env_state, key):
        """Take one round; return the EnvState, the Transitions with the expert's actions as labels
        [T, N, ...], the metrics of episodes, and the agreement."""
        key_rollout, key_label = jax.random.split(key)

        def mixture(obs, key):
            key_expert, key_which = jax.random.split(key)
            action = mode(network.apply(params, obs))
            is_expert = jax.random.uniform(key_which, (config.num_envs,)) < beta
            is_expert = is_expert.reshape(-1, *[1] * (action.ndim - 1))
            return jnp.where(is_expert, expert(obs, key_expert), action)

        env_state, visited, episodes = rollout(
            env, mixture, env_state, key_rollout, config.num_steps
        )
        keys = jax.random.split(key_label, config.num_steps)
        labels = jax.vmap(expert)(visited.obs, keys)
        outputs = network.apply(params, visited.obs)
        is_same = jax.vmap(jax.vmap(is_same_action))(outputs, labels)
        agreement = jnp.mean(is_same, dtype=outputs.dtype)
        return env_state, visited._replace(action=labels), episodes, agreement

    def fit(params, opt_state, data, num_rounds, key):
        def gradient_step(carry, key):
            params, opt_state = carry
            batch = dataset.sample(data, key, num_rounds)
            loss_value, grads = jax.value_and_grad(loss)(params, batch)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state), loss_value

        keys = jax.random.split(key, config.gradient_steps)
        (params, opt_state), losses = jax.lax.scan(gradient_step, (params, opt_state), keys)
        return params, opt_state, losses.mean()

    def init(key):
        key, key_params, key_env, key_play, key_fit = jax.random.split(key, 5)
        params = network.init(key_params)
        env_state, labelled, *_ = play(params, 1.0, env.reset(key_env), key_play)
        data = dataset.init(labelled)
        params, opt_state, _ = fit(params, optimizer.init(params), data, jnp.uint32(1), key_fit)
        return State(key, params, opt_state, data, env_state)

    def update(state, step):
        key_play, key_fit = jax.random.split(jax.random.fold_in(state.key, step))
        beta = config.beta ** (step + 1)
        env_state, labelled, episodes, agreement = play(state.params, beta, state.env, key_play)
        data = dataset.add(state.dataset, labelled, step + 1)
        params, opt_state, loss_value = fit(state.params, state.opt_state, data, step + 2, key_fit)

        metrics = episodes | {"value": jnp.full_like(loss_value, jnp.nan), "loss": loss_value}
        metrics |= {"agreement": agreement}
        return State(state.key, params, opt_state, data, env_state), metrics

    def act(params, obs, key):
        output = network.apply(params, obs)
        if env.num_actions is not None:
            return jnp.argmax(output)
        return bound_action(env, output)

    return Algorithm(init, update, act, num_updates, steps_per_update, steps_per_update)


if __name__ == "__main__":
    main(Config, make)
