"""Rainbow.

Differs from dqn.py in all that six papers change: the targets of double_dqn.py, n_step_dqn.py and
c51.py in one, the network of dueling_dqn.py with the noise of noisy_dqn.py, and the replay of
prioritized_dqn.py.

Hessel et al. 2018, Rainbow: Combining improvements in deep reinforcement learning,
https://arxiv.org/abs/1710.02298, section The integrated agent

    Q(s, a) = Σᵢ zᵢ pᵢ(s, a; θ), zᵢ = Vmin + i Δz
    log pᵢ(s, a) = log softmaxᵢ(Vᵢ(s) + Aᵢ(s, a) - 1/|A| Σ_a' Aᵢ(s, a'))
    R = Σ_{i<n} γⁱ r_{t+i}, a* = argmax_a' Q(s_{t+n}, a'; θ)
    m = Φ (R + γⁿ (1 - d) z, p(s_{t+n}, a*; θ⁻))
    L(θ) = E[w -Σᵢ mᵢ log pᵢ(s_t, a_t; θ)], drawn in proportion to (-Σᵢ mᵢ log pᵢ)^α

with Φ the projection onto the atoms, and d = 1 where the MDP terminated; a time limit does not end
the MDP. Either ends the sum as in n_step_dqn.py. θ = (μ, σ), with ε and ε' as in noisy_dqn.py.

Departs from the paper: the cross-entropy in place of the KL divergence, which is less by the
entropy of m; several environments in parallel, which act with the same noise in each step; the
random steps that fill the replay memory at first are taken in `init`; no rewards are clipped, nor
gradients; --scale-obs as in noisy_dqn.py.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.envs import Env, EnvState, Transition, make_env, rollout
from common.networks import Network, dense, network_for, scaled
from common.prioritized import Prioritized, prioritized_buffer
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
    prioritized_replay_alpha: float = 0.6  # α: 0 draws uniformly
    prioritized_replay_beta: float = 1.0  # β at first, which rises linearly to 1
    prioritized_replay_eps: float = 1e-6  # ε
    learning_starts: int = 1_000  # environment steps at random first, rounded up to whole updates
    target_network_frequency: int = 15  # gradient steps between copies of θ into θ⁻
    tau: float = 1.0  # θ⁻ ← τ θ + (1 - τ) θ⁻ at each copy
    num_atoms: int = 51  # returns that have a probability, evenly spaced
    v_min: float = 0.0  # the least of them, for CartPole; -100 for Acrobot and MountainCar
    v_max: float = 100.0  # the greatest; 0 for Acrobot and MountainCar
    sigma_zero: float = 0.5  # σ of a layer with p inputs starts at sigma_zero / √p
    scale_obs: bool = False  # observations scaled from their bounds to [-1, 1]
    hidden_sizes: tuple[int, ...] = (256,)  # units of each hidden layer; the last: of each stream's

    def __post_init__(self):
        require(
            self,
            "num_envs >= 1",
            "train_frequency >= 1",
            "learning_rate > 0",
            "0 <= gamma <= 1",
            "n_step >= 1",
            "batch_size >= 1",
            "prioritized_replay_alpha >= 0",
            "0 <= prioritized_replay_beta <= 1",
            "prioritized_replay_eps > 0",
            "learning_starts >= 0",
            "buffer_size >= learning_starts",
            "total_timesteps >= learning_starts + num_envs * (n_step + 2 * train_frequency)",
            "target_network_frequency >= 1",
            "0 < tau <= 1",
            "num_atoms >= 2",
            "v_min < v_max",
            "sigma_zero >= 0",
            "len(hidden_sizes) >= 1",
            "all(size >= 1 for size in hidden_sizes)",
        )


class State(NamedTuple):
    key: jax.Array
    params: Any  # θ, a Noisy
    target_params: Any  # θ⁻
    opt_state: optax.OptState
    buffer: Prioritized  # [capacity, ...]
    pending: Transition  # [n - 1, N, ...] the latest steps, whose n-step transitions are to come
    env: EnvState


def dueling(value, advantage) -> jax.Array:
    """V(s) + A(s, a) - 1/|A| Σ_a' A(s, a'), from V [..., 1, K] and A [..., A, K]."""
    return value + advantage - jnp.mean(advantage, axis=-2, keepdims=True)


def dueling_network_for(env: Env, hidden_sizes, num_atoms: int) -> Network:
    """The network that fits the environment's observations, but for its last hidden layer, of which
    each stream has one. They see the same and lie side by side in one layer of twice the size."""
    size = hidden_sizes[-1]
    torso = network_for(env, hidden_sizes[:-1], 2 * size)

    def init(key):
        key_torso, key_value, key_advantage = jax.random.split(key, 3)
        advantage = dense(key_advantage, size, env.num_actions * num_atoms)
        heads = [dense(key_value, size, num_atoms), advantage]
        return [*torso.init(key_torso), *heads]

    def apply(params, obs):
        *torso_params, (w_value, b_value), (w_advantage, b_advantage) = params
        hidden = jax.nn.relu(torso.apply(torso_params, obs))
        for_value, for_advantage = jnp.split(hidden, 2, axis=-1)
        value, advantage = for_value @ w_value + b_value, for_advantage @ w_advantage + b_advantage
        advantage = advantage.reshape(*value.shape[:-1], env.num_actions, num_atoms)
        return dueling(value[..., None, :], advantage)

    return Network(init, apply)


class Noisy(NamedTuple):
    mu: list  # (weights, bias) of every layer
    sigma: list  # of those that have noise, the last ones


def noisy(network: Network, num_noisy: int, sigma_zero) -> Network:
    """The network with noise in its last `num_noisy` layers: μ ~ U[-1/√p, 1/√p] and σ = σ₀ / √p
    in one with p inputs. `apply` takes μ, or what `perturb` makes of μ and σ."""

    def init_layer(key, layer):
        num_inputs, num_outputs = layer[0].shape
        bound = 1 / jnp.sqrt(num_inputs)
        mu = jax.random.uniform(key, (num_inputs + 1, num_outputs), minval=-bound, maxval=bound)
        sigma = jnp.full_like(mu, sigma_zero * bound)
        return (mu[:-1], mu[-1]), (sigma[:-1], sigma[-1])

    def init(key):
        key_network, *keys = jax.random.split(key, 1 + num_noisy)
        layers = network.init(key_network)
        drawn = [init_layer(k, x) for k, x in zip(keys, layers[-num_noisy:], strict=True)]
        mu, sigma = zip(*drawn, strict=True)
        return Noisy([*layers[:-num_noisy], *mu], list(sigma))

    return Network(init, network.apply)


def factorised_noise(x, num_inputs: int):
    """εʷᵢⱼ = f(εᵢ) f(εⱼ) [p, q] and εᵇⱼ = f(εⱼ) [q], f(x) = sgn(x) √|x|, of x ~ N(0, 1) [p + q]."""
    f = x / (jnp.sqrt(jnp.abs(x)) + 1e-20)  # XLA would compute a product anew for every weight
    return jnp.outer(f[:num_inputs], f[num_inputs:]), f[num_inputs:]


def perturb(params: Noisy, key) -> list:
    """μ + σ ⊙ ε in the layers that have noise, μ in the others: what the network applies."""
    num_plain = len(params.mu) - len(params.sigma)
    ends = list(accumulate(sum(w.shape) for w, _ in params.sigma))
    parts = jnp.split(jax.random.normal(key, (ends[-1],)), ends[:-1])
    noise = [factorised_noise(x, len(w)) for x, (w, _) in zip(parts, params.sigma, strict=True)]
    drawn = jax.tree.map(lambda m, s, e: m + s * e, params.mu[num_plain:], params.sigma, noise)
    return params.mu[:num_plain] + drawn


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


def priority(error, alpha, eps) -> jax.Array:
    """p^α, p = |δ| + ε."""
    return (jnp.abs(error) + eps) ** alpha


def importance_weights(probability, beta) -> jax.Array:
    """w_i = (N P(i))^-β / max_j (N P(j))^-β of a batch [B], in which N cancels."""
    return (probability / jnp.min(probability)) ** -beta


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


def cross_entropy(params, target_params, transition: NStep, logits, support) -> jax.Array:
    """-Σᵢ mᵢ log pᵢ(s, a; θ), for one transition."""
    obs, action, reward, next_obs, terminated, discount = transition
    next_probabilities = jax.nn.softmax(logits(target_params, next_obs))
    online_probabilities = jax.nn.softmax(logits(params, next_obs))
    next_action = jnp.argmax(expected_return(online_probabilities, support))
    target = project(support, reward, discount * (1 - terminated), next_probabilities[next_action])
    log_probabilities = jax.nn.log_softmax(logits(params, obs)[action])
    return -jnp.matmul(jax.lax.stop_gradient(target), log_probabilities, precision="highest")


def linear_decay(step, start, end, num_steps) -> jax.Array:
    """From `start` at step 0 to `end` at `num_steps`, and `end` from there on."""
    return start + (end - start) * jnp.minimum(step / num_steps, 1)


def make(config: Config) -> Algorithm:
    env = make_env(config.env_id, config.num_envs, actions="discrete")
    network = dueling_network_for(env, config.hidden_sizes, config.num_atoms)
    if config.scale_obs:
        network = scaled(env, network)
    network = noisy(network, len(config.hidden_sizes) + 2, config.sigma_zero)
    support = jnp.linspace(config.v_min, config.v_max, config.num_atoms)
    optimizer = optax.adam(config.learning_rate)
    steps_per_update = config.num_envs * config.train_frequency
    buffer = prioritized_buffer(config.buffer_size, steps_per_update, config.batch_size)
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

    def q(params, obs):
        return expected_return(jax.nn.softmax(network.apply(params, obs)), support)

    def loss(params, target_params, batch, weights, key):
        key_online, key_target = jax.random.split(key)
        params, target_params = perturb(params, key_online), perturb(target_params, key_target)

        def error(transition):
            return cross_entropy(params, target_params, transition, network.apply, support)

        errors = jax.vmap(error)(batch)
        return jnp.mean(weights * errors), errors

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
        keys = jax.random.split(jax.random.fold_in(state.key, step), 3)
        key_rollout, key_sample, key_noise = keys

        def explore(obs, key):
            return jnp.argmax(q(perturb(state.params, key), obs), axis=-1)

        env_state, recent, episode_return = rollout(
            env, explore, state.env, key_rollout, config.train_frequency
        )
        stream = jax.tree.map(lambda *x: jnp.concatenate(x), state.pending, recent)
        pending = jax.tree.map(lambda x: x[config.train_frequency :], stream)
        data = buffer.add(state.buffer, n_steps(stream), num_warmup + step)
        batch, index, probability = buffer.sample(data, key_sample)
        beta = linear_decay(step, config.prioritized_replay_beta, 1.0, num_updates)
        weights = importance_weights(probability, beta)

        (loss_value, errors), grads = jax.value_and_grad(loss, has_aux=True)(
            state.params, state.target_params, batch, weights, key_noise
        )
        priorities = priority(
            errors, config.prioritized_replay_alpha, config.prioritized_replay_eps
        )
        data = buffer.update(data, index, priorities)
        updates, opt_state = optimizer.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        mixed = optax.incremental_update(params, state.target_params, config.tau)
        copy = (step + 1) % config.target_network_frequency == 0
        target_params = jax.tree.map(
            lambda new, old: jnp.where(copy, new, old), mixed, state.target_params
        )

        q_values = q(state.params.mu, recent.obs)
        value = jnp.take_along_axis(q_values, recent.action[..., None], axis=-1).mean()
        metrics = {"episode_return": episode_return, "value": value, "loss": loss_value}
        state = State(state.key, params, target_params, opt_state, data, pending, env_state)
        return state, metrics

    def act(params, obs, key):
        return jnp.argmax(q(params.mu, obs))

    return Algorithm(init, update, act, num_updates, steps_per_update, initial_steps)


if __name__ == "__main__":
    main(Config, make)
