"""Categorical DQN (C51).

Differs from dqn.py in what it learns: the distribution of the return, Z(s, a), not only its mean.
The network gives the probabilities of `num_atoms` fixed returns z, and the targets are projected
onto these atoms.

Bellemare, Dabney & Munos 2017, A distributional perspective on reinforcement learning,
https://arxiv.org/abs/1707.06887

    Q(s, a) = Σᵢ zᵢ pᵢ(s, a; θ), zᵢ = Vmin + i Δz                              (Algorithm 1)
    T zⱼ = clip(r + γ (1 - d) zⱼ, Vmin, Vmax)                                  (Algorithm 1)
    mᵢ = Σⱼ max(0, 1 - |T zⱼ - zᵢ| / Δz) pⱼ(s', argmax_a' Q(s', a'; θ⁻); θ⁻)   (7)
    L(θ) = E[-Σᵢ mᵢ log pᵢ(s, a; θ)]                                           (Algorithm 1)

with d = 1 where the MDP terminated; a time limit does not end the MDP. Returns outside [Vmin, Vmax]
are clipped, so the interval must contain them: with a reward of 1 at every step they lie in
[0, 1 / (1 - γ)], as in CartPole; with -1, in [-1 / (1 - γ), 0], as in Acrobot and MountainCar.

Departs from the paper: Adam's ε is 1e-8, not 0.01 / 32; rewards are not clipped; `act` takes no
random actions; several environments in parallel; `init` takes the random steps that fill the
replay memory.

Metrics: `value`, mean Q(s, a) of the actions taken (discounted return); `loss`, mean cross-entropy
of the batch (nats).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.buffers import uniform_buffer
from common.distributions import legal_only
from common.envs import Env, EnvState, Transition, make_env, rollout
from common.exploration import epsilon_greedy, linear_schedule, random_policy
from common.networks import Network, make_network
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "CartPole-v1"  # any environment with discrete actions
    total_timesteps: int = 100_000  # environment steps, over all environments
    num_envs: int = 4  # environments stepped in parallel
    train_frequency: int = 1  # steps of each environment between gradient steps
    learning_rate: float = 1e-3  # of Adam
    gamma: float = 0.99  # discount factor
    buffer_size: int = 20_000  # transitions, rounded up to whole updates
    batch_size: int = 64  # transitions
    learning_starts: int = 1_000  # random environment steps first, rounded up to whole updates
    target_network_frequency: int = 15  # gradient steps between copies of θ into θ⁻
    tau: float = 1.0  # θ⁻ ← τ θ + (1 - τ) θ⁻ at each copy
    num_atoms: int = 51  # returns that have a probability, evenly spaced
    v_min: float = 0.0  # the smallest of them: 0 for CartPole, -100 for Acrobot and MountainCar
    v_max: float = 100.0  # the largest: 100 for CartPole, 0 for Acrobot and MountainCar
    epsilon_start: float = 1.0  # initial probability of a random action
    epsilon_end: float = 0.1  # final probability of a random action
    exploration_fraction: float = 0.2  # of the updates, over which epsilon falls linearly
    hidden_sizes: tuple[int, ...] = (256,)  # units of each hidden layer

    def __post_init__(self):
        require(
            self,
            "num_atoms >= 2",
            "v_min < v_max",
            "buffer_size >= learning_starts",
            "total_timesteps >= learning_starts + 2 * num_envs * train_frequency",
        )


class State(NamedTuple):
    key: jax.Array
    params: Any  # θ
    target_params: Any  # θ⁻
    opt_state: optax.OptState
    buffer: Transition  # [capacity, ...]
    env: EnvState


def make_categorical_network(env: Env, hidden_sizes: tuple[int, ...], num_atoms: int) -> Network:
    """Return `make_network` with the logits of K atoms for each action as outputs, [..., A, K]."""
    network = make_network(env, hidden_sizes, env.num_actions * num_atoms)

    def apply(params, obs):
        logits = network.apply(params, obs)
        return logits.reshape(*logits.shape[:-1], env.num_actions, num_atoms)

    return Network(network.init, apply)


def expected_return(probabilities, support) -> jax.Array:
    """Q(s, a) = Σᵢ zᵢ pᵢ(s, a), from p [..., A, K] and z [K]; [..., A]."""
    return jnp.matmul(probabilities, support, precision="highest")  # not in a GPU's TF32


def project(support, reward, discount, probabilities) -> jax.Array:
    """mᵢ = Σⱼ max(0, 1 - |T zⱼ - zᵢ| / Δz) pⱼ, T zⱼ = clip(r + discount zⱼ, Vmin, Vmax), for one
    transition, from the atoms z [K] of `support` and the probabilities p [K] on them; [K]."""
    last = len(support) - 1
    spacing = (support[last] - support[0]) / last
    position = jnp.clip((reward + discount * support - support[0]) / spacing, 0, last)
    distance = jnp.abs(position - jnp.arange(len(support))[:, None])  # [i, j], in units of Δz
    return jnp.matmul(jnp.maximum(0, 1 - distance), probabilities, precision="highest")


def cross_entropy(target, logits) -> jax.Array:
    """-Σᵢ mᵢ log pᵢ, from the target m [K] and the logits of p [K]; no gradient through m."""
    log_probabilities = jax.nn.log_softmax(logits)
    return -jnp.matmul(jax.lax.stop_gradient(target), log_probabilities, precision="highest")


def make(config: Config) -> Algorithm:
    env = make_env(config.env_id, config.num_envs, actions="discrete")
    network = make_categorical_network(env, config.hidden_sizes, config.num_atoms)
    support = jnp.linspace(config.v_min, config.v_max, config.num_atoms)
    optimizer = optax.adam(config.learning_rate)
    steps_per_update = config.num_envs * config.train_frequency
    buffer = uniform_buffer(config.buffer_size, steps_per_update, config.batch_size)
    warmup_updates = -(-config.learning_starts // steps_per_update)
    warmup_steps = warmup_updates * config.train_frequency  # of each environment
    initial_steps = warmup_steps * config.num_envs
    num_updates = (config.total_timesteps - initial_steps) // steps_per_update
    decay_updates = config.exploration_fraction * num_updates

    def q(params, obs):
        q_values = expected_return(jax.nn.softmax(network.apply(params, obs)), support)
        return legal_only(env, obs, q_values)

    def loss(params, target_params, batch):
        def transition_loss(transition):
            logits = network.apply(params, transition.obs)[transition.action]
            next_action = jnp.argmax(q(target_params, transition.next_obs))
            next_probabilities = jax.nn.softmax(network.apply(target_params, transition.next_obs))
            reward, discount = transition.reward, config.gamma * (1 - transition.terminated)
            target = project(support, reward, discount, next_probabilities[next_action])
            return cross_entropy(target, logits)

        return jnp.mean(jax.vmap(transition_loss)(batch))

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
            buffer=buffer.init(transitions),
            env=env_state,
        )

    def update(state, step):
        key_rollout, key_sample = jax.random.split(jax.random.fold_in(state.key, step))
        epsilon = linear_schedule(step, config.epsilon_start, config.epsilon_end, decay_updates)

        def behaviour_policy(obs, key):
            return epsilon_greedy(key, q(state.params, obs), epsilon)

        env_state, transitions, episodes = rollout(
            env, behaviour_policy, state.env, key_rollout, config.train_frequency
        )
        buffer_state = buffer.add(state.buffer, transitions, warmup_updates + step)
        batch = buffer.sample(buffer_state, key_sample, warmup_updates + step + 1)

        loss_value, grads = jax.value_and_grad(loss)(state.params, state.target_params, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        polyak = optax.incremental_update(params, state.target_params, config.tau)
        is_copy_step = (step + 1) % config.target_network_frequency == 0
        target_params = jax.tree.map(
            lambda new, old: jnp.where(is_copy_step, new, old), polyak, state.target_params
        )

        q_values = q(state.params, transitions.obs)
        value = jnp.take_along_axis(q_values, transitions.action[..., None], axis=-1).mean()
        metrics = episodes | {"value": value, "loss": loss_value}
        return State(state.key, params, target_params, opt_state, buffer_state, env_state), metrics

    def act(params, obs, key):
        return jnp.argmax(q(params, obs))

    return Algorithm(init, update, act, num_updates, steps_per_update, initial_steps)


if __name__ == "__main__":
    main(Config, make)
