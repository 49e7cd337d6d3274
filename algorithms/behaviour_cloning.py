"""Behaviour cloning (BC).

Imitates an expert by supervised learning: its observations are the inputs, its actions the labels.

Pomerleau 1988, ALVINN: an autonomous land vehicle in a neural network,
https://proceedings.neurips.cc/paper/1988/hash/812b4ba287f5ee0bc9d43bbf5bbe87fb-Abstract.html

    L(θ) = -E_D[ln π(a|s; θ)]                                               (maximum likelihood)

over the pairs (s, a) of the demonstrations D. π is a softmax over discrete actions. It is a normal
distribution of fixed standard deviation around μ(s; θ) for continuous ones, where maximum
likelihood is least squares: L(θ) = E_D[|a - μ(s; θ)|²].

Small errors take the policy to states that the expert never visits. If it errs with probability ε
a step on the expert's states, its cost over T steps may exceed the expert's by T² ε (Ross & Bagnell
2010, Theorem 2.1, https://proceedings.mlr.press/v9/ross10a.html); dagger.py has T ε.

Departs from the paper: a small network trained by Adam; the expert is a controller, a trained
policy, or a file. `init` plays or reads its episodes.

Metrics: `episode_return`, NaN: an update takes no environment steps; `value`, NaN: none is learned;
`loss`, L(θ), mean over the batches (nat, or squared units of actions in [-1, 1]); `agreement`, part
of the demonstrations in the batches whose action is the policy's, to .1 of the range if continuous.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.datasets import Data, play_dataset, read_dataset
from common.environments.experts import make_expert
from common.envs import bound_action, make_env, map_actions
from common.networks import make_network
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "CartPole-v1"  # any environment; without --dataset or --expert a known one
    dataset: str = ""  # file of python -m common.record, or a Minari id; "": the expert's episodes
    expert: str = ""  # folder of a trained run, whose best seed is the expert; "": the known one
    num_episodes: int = 25  # of the expert, without --dataset
    num_iterations: int = 100  # updates
    gradient_steps: int = 100  # in each update
    learning_rate: float = 1e-3  # of Adam
    batch_size: int = 256  # pairs of observation and action
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of each hidden layer

    def __post_init__(self):
        require(self)


class State(NamedTuple):
    key: jax.Array
    params: Any  # θ
    opt_state: optax.OptState
    dataset: Data | tuple  # D, or () where it is a file


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
    env = map_actions(make_env(config.env_id, config.num_episodes), bound_action)
    network = make_network(env, config.hidden_sizes)
    optimizer = optax.adam(config.learning_rate)
    if config.dataset:
        dataset = read_dataset(config.dataset, config.env_id, env)
    else:
        dataset = play_dataset(env, make_expert(config.env_id, env, config.expert))

    def loss(params, batch):
        outputs = network.apply(params, batch.obs)
        losses = jax.vmap(imitation_loss)(outputs, batch.action)
        is_same = jax.vmap(is_same_action)(outputs, batch.action)
        return jnp.mean(losses), jnp.mean(is_same, dtype=losses.dtype)

    def init(key):
        key, key_params, key_data = jax.random.split(key, 3)
        params = network.init(key_params)
        return State(key, params, optimizer.init(params), dataset.init(key_data))

    def update(state, step):
        def gradient_step(carry, key):
            params, opt_state = carry
            batch = dataset.sample(state.dataset, key, config.batch_size)
            (loss_value, agreement), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
            updates, opt_state = optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state), (loss_value, agreement)

        keys = jax.random.split(jax.random.fold_in(state.key, step), config.gradient_steps)
        start = state.params, state.opt_state
        (params, opt_state), (losses, agreements) = jax.lax.scan(gradient_step, start, keys)

        nothing = jnp.full_like(losses[0], jnp.nan)
        metrics = {"episode_return": nothing, "value": nothing, "loss": losses.mean()}
        metrics |= {"agreement": agreements.mean()}
        return State(state.key, params, opt_state, state.dataset), metrics

    def act(params, obs, key):
        output = network.apply(params, obs)
        if env.num_actions is not None:
            return jnp.argmax(output)
        return bound_action(env, output)

    return Algorithm(init, update, act, config.num_iterations, 1)


if __name__ == "__main__":
    main(Config, make)
