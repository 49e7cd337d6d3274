"""Categorical DQN (C51).

Differs from dqn.py in that it learns the distribution of the return, Z(s, a), not its mean: the
network gives the probabilities of `num_atoms` fixed returns z, and learns those of the target.

Bellemare, Dabney & Munos 2017, A distributional perspective on reinforcement learning,
https://arxiv.org/abs/1707.06887

    Q(s, a) = Σᵢ zᵢ pᵢ(s, a; θ), zᵢ = Vmin + i Δz                              (Algorithm 1)
    T zⱼ = clip(r + γ (1 - d) zⱼ, Vmin, Vmax)                                  (Algorithm 1)
    mᵢ = Σⱼ max(0, 1 - |T zⱼ - zᵢ| / Δz) pⱼ(s', argmax_a' Q(s', a'; θ⁻); θ⁻)   (7)
    L(θ) = E[-Σᵢ mᵢ log pᵢ(s, a; θ)]                                           (Algorithm 1)

with d = 1 where the MDP terminated; a time limit does not end the MDP. Returns beyond [Vmin, Vmax]
are taken for the nearest bound, so it must span them: with a reward of 1 at every step they lie in
[0, 1 / (1 - γ)], as in CartPole; with -1, in [-1 / (1 - γ), 0], as in Acrobot and MountainCar.

Departs from the paper: several environments in parallel; the random steps that fill the replay
memory at first are taken in `init`.
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
    buffer_size: int = 20_000  # transitions, rounded up to whole updates
    batch_size: int = 64  # transitions
    learning_starts: int = 1_000  # environment steps at random first, rounded up to whole updates
    target_network_frequency: int = 15  # gradient steps between copies of θ into θ⁻
    tau: float = 1.0  # θ⁻ ← τ θ + (1 - τ) θ⁻ at each copy
    num_atoms: int = 51  # returns that have a probability, evenly spaced
    v_min: float = 0.0  # the least of them, for CartPole; -100 for Acrobot and MountainCar
    v_max: float = 100.0  # the greatest; 0 for Acrobot and MountainCar
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
            "batch_size >= 1",
            "learning_starts >= 0",
            "buffer_size >= learning_starts",
            "total_timesteps >= learning_starts + 2 * num_envs * train_frequency",
            "target_network_frequency >= 1",
            "0 < tau <= 1",
            "num_atoms >= 2",
            "v_min < v_max",
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
    env: EnvState


def expected_return(probabilities, support) -> jax.Array:
    """Q(s, a) = Σᵢ zᵢ pᵢ(s, a), from p [..., A, K]; [..., A]."""
    return jnp.matmul(probabilities, support, precision="highest")  # not in a GPU's TF32


def project(support, reward, discount, probabilities) -> jax.Array:
    """mᵢ = Σⱼ max(0, 1 - |T zⱼ - zᵢ| / Δz) pⱼ, T zⱼ = clip(r + discount zⱼ, Vmin, Vmax), where the
    distribution `probabilities` is on the atoms z of `support`; [K]."""
    last = len(support) - 1
    spacing = (support[last] - support[0]) / last
    position = jnp.clip((reward + discount * support - support[0]) / spacing, 0, last)
    distance = jnp.abs(position - jnp.arange(len(support))[:, None])  # [i, j], in units of Δz
    return jnp.matmul(jnp.maximum(0, 1 - distance), probabilities, precision="highest")


def cross_entropy(
    params, target_params, transition: Transition, logits, support, gamma
) -> jax.Array:
    """-Σᵢ mᵢ log pᵢ(s, a; θ), for one transition."""
    obs, action, reward, next_obs, terminated, _ = transition
    next_probabilities = jax.nn.softmax(logits(target_params, next_obs))
    next_action = jnp.argmax(expected_return(next_probabilities, support))
    target = project(support, reward, gamma * (1 - terminated), next_probabilities[next_action])
    log_probabilities = jax.nn.log_softmax(logits(params, obs)[action])
    return -jnp.matmul(jax.lax.stop_gradient(target), log_probabilities, precision="highest")


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
    network = network_for(env, config.hidden_sizes, env.num_actions * config.num_atoms)
    support = jnp.linspace(config.v_min, config.v_max, config.num_atoms)
    optimizer = optax.adam(config.learning_rate)
    steps_per_update = config.num_envs * config.train_frequency
    buffer = uniform_buffer(config.buffer_size, steps_per_update, config.batch_size)
    num_warmup = -(-config.learning_starts // steps_per_update)  # updates' worth of random steps
    num_updates = config.total_timesteps // steps_per_update - num_warmup

    def logits(params, obs):
        x = network.apply(params, obs)
        return x.reshape(*x.shape[:-1], env.num_actions, config.num_atoms)

    def q(params, obs):
        return expected_return(jax.nn.softmax(logits(params, obs)), support)

    def loss(params, target_params, batch):
        def error(transition):
            return cross_entropy(params, target_params, transition, logits, support, config.gamma)

        return jnp.mean(jax.vmap(error)(batch))

    def init(key):
        key, key_params, key_env, key_warmup = jax.random.split(key, 4)
        params = network.init(key_params)

        def random(obs, key):
            return jax.random.randint(key, (config.num_envs,), 0, env.num_actions)

        num_steps = num_warmup * config.train_frequency
        env_state, warmup, _ = rollout(env, random, env.reset(key_env), key_warmup, num_steps)
        return State(
            key=key,
            params=params,
            target_params=jax.tree.map(jnp.copy, params),
            opt_state=optimizer.init(params),
            buffer=buffer.init(warmup),
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
            return epsilon_greedy(key, q(state.params, obs), epsilon)

        env_state, recent, episode_return = rollout(
            env, explore, state.env, key_rollout, config.train_frequency
        )
        data = buffer.add(state.buffer, recent, num_warmup + step)
        batch = buffer.sample(data, key_sample, num_warmup + step + 1)

        loss_value, grads = jax.value_and_grad(loss)(state.params, state.target_params, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        mixed = optax.incremental_update(params, state.target_params, config.tau)
        copy = (step + 1) % config.target_network_frequency == 0
        target_params = jax.tree.map(
            lambda new, old: jnp.where(copy, new, old), mixed, state.target_params
        )

        q_values = q(state.params, recent.obs)
        value = jnp.take_along_axis(q_values, recent.action[..., None], axis=-1).mean()
        metrics = {"episode_return": episode_return, "value": value, "loss": loss_value}
        return State(state.key, params, target_params, opt_state, data, env_state), metrics

    def act(params, obs, key):
        return jnp.argmax(q(params, obs))

    return Algorithm(
        init, update, act, num_updates, steps_per_update, num_warmup * steps_per_update
    )


if __name__ == "__main__":
    main(Config, make)
