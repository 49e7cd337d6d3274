"""Rainbow.

Differs from dqn.py in everything that six papers change: the targets of double_dqn.py,
n_step_dqn.py and c51.py combined, the network of dueling_dqn.py with the noise of noisy_dqn.py, and
the replay of prioritized_dqn.py.

Hessel et al. 2018, Rainbow: Combining improvements in deep reinforcement learning,
https://arxiv.org/abs/1710.02298, section The integrated agent

    Q(s, a) = Σᵢ zᵢ pᵢ(s, a; θ), zᵢ = Vmin + i Δz
    log pᵢ(s, a) = log softmaxᵢ(Vᵢ(s) + Aᵢ(s, a) - 1/|A| Σ_a' Aᵢ(s, a'))
    R = Σ_{i<n} γⁱ r_{t+i}, a* = argmax_a' Q(s_{t+n}, a'; θ)
    m = Φ (R + γⁿ (1 - d) z, p(s_{t+n}, a*; θ⁻))
    L(θ) = E[w -Σᵢ mᵢ log pᵢ(s_t, a_t; θ)], drawn in proportion to (-Σᵢ mᵢ log pᵢ)^α

with Φ the projection onto the atoms, and d = 1 where the MDP terminated; a time limit does not end
the MDP. Both end the sum as in n_step_dqn.py. θ = (μ, σ), with ε and ε' as in noisy_dqn.py; the Q
that selects a* has noise of its own, ε'', as in NoisyNet's double variant (Fortunato et al. 2018,
https://arxiv.org/abs/1706.10295).

Departs from the paper: the loss and the priorities are cross-entropies, which exceed the paper's KL
divergences by the entropy of m; α = 0.6, not 0.5; β is 1 from the start, not 0.4; Adam's ε is
1e-8, not 1.5e-4; several environments in parallel, which act with the same noise in each step;
`init` takes the random steps that fill the replay memory; neither rewards nor gradients are
clipped; --scale-obs as in noisy_dqn.py.

Metrics: `value`, mean Q(s, a) of the actions taken, without noise (discounted return); `loss`, mean
weighted cross-entropy of the batch (nats).
"""

from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.buffers import rows, uniform_buffer
from common.distributions import legal_only
from common.envs import Env, EnvState, Transition, make_env, rollout
from common.exploration import linear_schedule, random_policy
from common.networks import Network, dense, make_network
from common.prioritized import Priorities, init_priorities, sample_rows, set_priorities
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
    prioritized_replay_beta: float = 1.0  # initial β, which rises linearly to 1
    prioritized_replay_eps: float = 1e-6  # ε
    learning_starts: int = 1_000  # random environment steps first, rounded up to whole updates
    target_network_frequency: int = 15  # gradient steps between copies of θ into θ⁻
    tau: float = 1.0  # θ⁻ ← τ θ + (1 - τ) θ⁻ at each copy
    num_atoms: int = 51  # returns that have a probability, evenly spaced
    v_min: float = 0.0  # the smallest of them: 0 for CartPole, -100 for Acrobot and MountainCar
    v_max: float = 100.0  # the largest: 100 for CartPole, 0 for Acrobot and MountainCar
    sigma_init: float = 0.5  # σ₀; σ of a layer with p inputs starts at σ₀ / √p
    scale_obs: bool = False  # rescale observations from their bounds to [-1, 1]
    hidden_sizes: tuple[int, ...] = (256,)  # units of each hidden layer, the last in each stream

    def __post_init__(self):
        require(
            self,
            "prioritized_replay_alpha >= 0",
            "0 <= prioritized_replay_beta <= 1",
            "prioritized_replay_eps > 0",
            "num_atoms >= 2",
            "v_min < v_max",
            "sigma_init >= 0",
            "len(hidden_sizes) >= 1",
            "all(size >= 1 for size in hidden_sizes)",
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


class NoisyParams(NamedTuple):
    mu: list  # (weights, bias) of every layer
    sigma: list  # (weights, bias) of the last layers, those that have noise


class State(NamedTuple):
    key: jax.Array
    params: NoisyParams  # θ = (μ, σ)
    target_params: NoisyParams  # θ⁻
    opt_state: optax.OptState
    buffer: NStep  # [capacity, ...]
    priorities: Priorities  # p^α of its rows
    pending: Transition  # [n - 1, N, ...] the latest steps, whose n-step transitions are to come
    env: EnvState


def dueling(value, advantage) -> jax.Array:
    """V(s) + A(s, a) - 1/|A| Σ_a' A(s, a'), from V [..., 1, K] and A [..., A, K]; [..., A, K]."""
    return value + advantage - jnp.mean(advantage, axis=-2, keepdims=True)


def make_dueling_network(env: Env, hidden_sizes: tuple[int, ...], num_atoms: int) -> Network:
    """Return `make_network` with its last hidden layer and its output split into two streams.

    Both streams have the same inputs, so their hidden layers are the halves of one wide layer.
    """
    size = hidden_sizes[-1]
    torso = make_network(env, hidden_sizes[:-1], 2 * size)

    def init(key):
        key_torso, key_value, key_advantage = jax.random.split(key, 3)
        advantage = dense(key_advantage, size, env.num_actions * num_atoms)
        heads = [dense(key_value, size, num_atoms), advantage]
        return [*torso.init(key_torso), *heads]

    def apply(params, obs):
        *torso_params, (w_value, b_value), (w_advantage, b_advantage) = params
        hidden = jax.nn.relu(torso.apply(torso_params, obs))
        hidden_value, hidden_advantage = jnp.split(hidden, 2, axis=-1)
        value = hidden_value @ w_value + b_value
        advantage = hidden_advantage @ w_advantage + b_advantage
        advantage = advantage.reshape(*value.shape[:-1], env.num_actions, num_atoms)
        return dueling(value[..., None, :], advantage)

    return Network(init, apply)


def with_scaled_obs(env: Env, network: Network) -> Network:
    """Return the network with its observations rescaled from their bounds to [-1, 1]."""
    low, high = env.obs_low, env.obs_high
    if low is None:
        raise ValueError("--scale-obs needs an environment whose observations have finite bounds")

    def apply(params, obs):
        return network.apply(params, 2 * (obs - low) / (high - low) - 1)

    return Network(network.init, apply)


def with_noise(network: Network, num_noisy: int, sigma_init: float) -> Network:
    """Return the network with noise in its last `num_noisy` layers.

    Initially μ ~ U[-1/√p, 1/√p] and σ = σ₀ / √p in a layer with p inputs. `init` returns
    NoisyParams; `apply` takes `params.mu`, or `perturb(params, key)`.
    """

    def init_layer(key, layer):
        num_inputs, num_outputs = layer[0].shape
        bound = 1 / jnp.sqrt(num_inputs)
        mu = jax.random.uniform(key, (num_inputs + 1, num_outputs), minval=-bound, maxval=bound)
        sigma = jnp.full_like(mu, sigma_init * bound)
        return (mu[:-1], mu[-1]), (sigma[:-1], sigma[-1])

    def init(key):
        key_network, *keys = jax.random.split(key, 1 + num_noisy)
        layers = network.init(key_network)
        pairs = [init_layer(k, x) for k, x in zip(keys, layers[-num_noisy:], strict=True)]
        mu, sigma = zip(*pairs, strict=True)
        return NoisyParams([*layers[:-num_noisy], *mu], list(sigma))

    return Network(init, network.apply)


def factorised_noise(x, num_inputs: int) -> tuple[jax.Array, jax.Array]:
    """εʷᵢⱼ = f(εᵢ) f(εⱼ) [p, q] and εᵇⱼ = f(εⱼ) [q], f(x) = sgn(x) √|x|, of x ~ N(0, 1) [p + q]."""
    # A quotient, because XLA would recompute the product sgn(x) √|x| for every weight.
    f = x / (jnp.sqrt(jnp.abs(x)) + 1e-20)
    return jnp.outer(f[:num_inputs], f[num_inputs:]), f[num_inputs:]


def perturb(params: NoisyParams, key) -> list:
    """μ + σ ⊙ ε in the layers with noise, μ in the others: params for `Network.apply`."""
    num_plain = len(params.mu) - len(params.sigma)
    ends = list(accumulate(sum(w.shape) for w, _ in params.sigma))
    parts = jnp.split(jax.random.normal(key, (ends[-1],)), ends[:-1])
    noise = [factorised_noise(x, len(w)) for x, (w, _) in zip(parts, params.sigma, strict=True)]
    noisy = jax.tree.map(lambda m, s, e: m + s * e, params.mu[num_plain:], params.sigma, noise)
    return params.mu[:num_plain] + noisy


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


def priority(error, alpha, eps) -> jax.Array:
    """p^α with p = |δ| + ε, for errors δ of any shape."""
    return (jnp.abs(error) + eps) ** alpha


def importance_weights(probability, beta) -> jax.Array:
    """w_i = (N P(i))^-β / max_j (N P(j))^-β over a batch [B], in which N cancels; [B]."""
    return (probability / jnp.min(probability)) ** -beta


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
    network = make_dueling_network(env, config.hidden_sizes, config.num_atoms)
    if config.scale_obs:
        network = with_scaled_obs(env, network)
    network = with_noise(network, len(config.hidden_sizes) + 2, config.sigma_init)
    support = jnp.linspace(config.v_min, config.v_max, config.num_atoms)
    optimizer = optax.adam(config.learning_rate)
    steps_per_update = config.num_envs * config.train_frequency
    buffer = uniform_buffer(config.buffer_size, steps_per_update, config.batch_size)
    num_blocks = -(-config.buffer_size // steps_per_update)
    warmup_updates = -(-config.learning_starts // steps_per_update)
    warmup_steps = warmup_updates * config.train_frequency + config.n_step - 1
    initial_steps = warmup_steps * config.num_envs
    num_updates = (config.total_timesteps - initial_steps) // steps_per_update

    def n_step_transitions(stream):
        """Transitions [T + n - 1, N, ...] -> NStep [T, N, ...]."""
        num = len(stream.reward) - config.n_step + 1
        windows = jax.tree.map(
            lambda x: jnp.stack([x[i : i + num] for i in range(config.n_step)], axis=2), stream
        )
        return jax.vmap(jax.vmap(n_step, (0, None)), (0, None))(windows, config.gamma)

    def q(params, obs):
        q_values = expected_return(jax.nn.softmax(network.apply(params, obs)), support)
        return legal_only(env, obs, q_values)

    def loss(params, target_params, batch, weights, key):
        key_online, key_target, key_selection = jax.random.split(key, 3)
        selection_params = perturb(params, key_selection)
        params, target_params = perturb(params, key_online), perturb(target_params, key_target)

        def transition_loss(transition):
            logits = network.apply(params, transition.obs)[transition.action]
            next_action = jnp.argmax(q(selection_params, transition.next_obs))
            next_probabilities = jax.nn.softmax(network.apply(target_params, transition.next_obs))
            reward, discount = transition.reward, transition.discount * (1 - transition.terminated)
            target = project(support, reward, discount, next_probabilities[next_action])
            return cross_entropy(target, logits)

        errors = jax.vmap(transition_loss)(batch)  # they take the place of |δ|
        return jnp.mean(weights * errors), errors

    def init(key):
        key, key_params, key_env, key_warmup = jax.random.split(key, 4)
        params = network.init(key_params)
        env_state, transitions, _ = rollout(
            env, random_policy(env), env.reset(key_env), key_warmup, warmup_steps
        )
        is_full = jnp.arange(num_blocks * steps_per_update) < warmup_updates * steps_per_update
        return State(
            key=key,
            params=params,
            target_params=jax.tree.map(jnp.copy, params),
            opt_state=optimizer.init(params),
            buffer=buffer.init(n_step_transitions(transitions)),
            priorities=init_priorities(is_full.astype(float)),
            pending=jax.tree.map(lambda x: x[warmup_steps - config.n_step + 1 :], transitions),
            env=env_state,
        )

    def update(state, step):
        keys = jax.random.split(jax.random.fold_in(state.key, step), 3)
        key_rollout, key_sample, key_noise = keys

        def behaviour_policy(obs, key):
            return jnp.argmax(q(perturb(state.params, key), obs), axis=-1)

        env_state, transitions, episodes = rollout(
            env, behaviour_policy, state.env, key_rollout, config.train_frequency
        )
        stream = jax.tree.map(lambda *x: jnp.concatenate(x), state.pending, transitions)
        pending = jax.tree.map(lambda x: x[config.train_frequency :], stream)
        buffer_state = buffer.add(state.buffer, n_step_transitions(stream), warmup_updates + step)
        first_row = (warmup_updates + step) % num_blocks * steps_per_update
        new_rows = first_row + jnp.arange(steps_per_update)
        priorities = set_priorities(state.priorities, new_rows, state.priorities.largest)
        index, probability = sample_rows(priorities, key_sample, config.batch_size)
        batch = rows(buffer_state, index)
        beta = linear_schedule(step, config.prioritized_replay_beta, 1.0, num_updates)
        weights = importance_weights(probability, beta)

        (loss_value, errors), grads = jax.value_and_grad(loss, has_aux=True)(
            state.params, state.target_params, batch, weights, key_noise
        )
        new_priority = priority(
            errors, config.prioritized_replay_alpha, config.prioritized_replay_eps
        )
        priorities = set_priorities(priorities, index, new_priority)
        updates, opt_state = optimizer.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        polyak = optax.incremental_update(params, state.target_params, config.tau)
        is_copy_step = (step + 1) % config.target_network_frequency == 0
        target_params = jax.tree.map(
            lambda new, old: jnp.where(is_copy_step, new, old), polyak, state.target_params
        )

        q_values = q(state.params.mu, transitions.obs)
        value = jnp.take_along_axis(q_values, transitions.action[..., None], axis=-1).mean()
        metrics = episodes | {"value": value, "loss": loss_value}
        return State(
            key=state.key,
            params=params,
            target_params=target_params,
            opt_state=opt_state,
            buffer=buffer_state,
            priorities=priorities,
            pending=pending,
            env=env_state,
        ), metrics

    def act(params, obs, key):
        return jnp.argmax(q(params.mu, obs))

    return Algorithm(init, update, act, num_updates, steps_per_update, initial_steps)


if __name__ == "__main__":
    main(Config, make)
