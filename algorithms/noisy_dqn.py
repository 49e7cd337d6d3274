"""DQN with noisy networks (NoisyNet-DQN).

Differs from dqn.py in how it explores: random numbers, whose scale σ is learned, are added to the
weights of every fully connected layer. It always takes the best action of the network so drawn, and
there is no ε-greedy. The final policy is that of μ, without noise.

Fortunato et al. 2018, Noisy networks for exploration, https://arxiv.org/abs/1706.10295

    y = (μʷ + σʷ ⊙ εʷ) x + μᵇ + σᵇ ⊙ εᵇ                                       (9)
    εʷᵢⱼ = f(εᵢ) f(εⱼ), εᵇⱼ = f(εⱼ), f(x) = sgn(x) √|x|, εᵢ, εⱼ ~ N(0, 1)     (10), (11)
    L(θ) = E[(r + γ (1 - d) max_a' Q(s', a', ε'; θ⁻) - Q(s, a, ε; θ))²]       (Algorithm 1)

with θ = (μ, σ) and d = 1 where the MDP terminated; a time limit does not end the MDP. ε and ε' are
independent and drawn once for each gradient step; to act, each environment draws at every step.

Departs from the paper: Adam, not RMSProp; the error is not clipped to [-1, 1], which on long
episodes with few ends would learn the median of the targets, not their mean; several environments
in parallel; the random steps that fill the replay memory at first are taken in `init`; with
--scale-obs (of Obando-Ceron & Castro 2021, https://arxiv.org/abs/2011.14826) no observation is so
small beside the others that noise hides it.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.buffers import Rows, uniform_buffer
from common.envs import EnvState, Transition, make_env, rollout
from common.networks import Network, network_for, scaled
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
    sigma_zero: float = 0.5  # σ of a layer with p inputs starts at sigma_zero / √p
    scale_obs: bool = False  # observations scaled from their bounds to [-1, 1]
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
            "sigma_zero >= 0",
            "all(size >= 1 for size in hidden_sizes)",
        )


class State(NamedTuple):
    key: jax.Array
    params: Any  # θ, a Noisy
    target_params: Any  # θ⁻
    opt_state: optax.OptState
    buffer: Rows  # [capacity, ...]
    env: EnvState


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


def td_error(params, target_params, transition: Transition, q, gamma) -> jax.Array:
    """δ = r + γ (1 - d) max_a' Q(s', a'; θ⁻) - Q(s, a; θ), for one transition."""
    obs, action, reward, next_obs, terminated, _ = transition
    target = reward + gamma * (1 - terminated) * jnp.max(q(target_params, next_obs))
    return jax.lax.stop_gradient(target) - q(params, obs)[action]


def make(config: Config) -> Algorithm:
    env = make_env(config.env_id, config.num_envs, actions="discrete")
    network = network_for(env, config.hidden_sizes, env.num_actions)
    if config.scale_obs:
        network = scaled(env, network)
    network = noisy(network, len(config.hidden_sizes) + 1, config.sigma_zero)
    optimizer = optax.adam(config.learning_rate)
    steps_per_update = config.num_envs * config.train_frequency
    buffer = uniform_buffer(config.buffer_size, steps_per_update, config.batch_size)
    num_warmup = -(-config.learning_starts // steps_per_update)  # updates' worth of random steps
    num_updates = config.total_timesteps // steps_per_update - num_warmup

    def loss(params, target_params, batch, key):
        key_online, key_target = jax.random.split(key)
        params, target_params = perturb(params, key_online), perturb(target_params, key_target)

        def error(transition):
            return td_error(params, target_params, transition, network.apply, config.gamma)

        return jnp.mean(jnp.square(jax.vmap(error)(batch)))

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
        keys = jax.random.split(jax.random.fold_in(state.key, step), 3)
        key_rollout, key_sample, key_noise = keys

        def explore(obs, key):
            def best(obs, key):
                return jnp.argmax(network.apply(perturb(state.params, key), obs))

            return jax.vmap(best)(obs, jax.random.split(key, config.num_envs))

        env_state, recent, episode_return = rollout(
            env, explore, state.env, key_rollout, config.train_frequency
        )
        data = buffer.add(state.buffer, recent, num_warmup + step)
        batch = buffer.sample(data, key_sample, num_warmup + step + 1)

        loss_value, grads = jax.value_and_grad(loss)(
            state.params, state.target_params, batch, key_noise
        )
        updates, opt_state = optimizer.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        mixed = optax.incremental_update(params, state.target_params, config.tau)
        copy = (step + 1) % config.target_network_frequency == 0
        target_params = jax.tree.map(
            lambda new, old: jnp.where(copy, new, old), mixed, state.target_params
        )

        q_values = network.apply(state.params.mu, recent.obs)
        value = jnp.take_along_axis(q_values, recent.action[..., None], axis=-1).mean()
        metrics = {"episode_return": episode_return, "value": value, "loss": loss_value}
        return State(state.key, params, target_params, opt_state, data, env_state), metrics

    def act(params, obs, key):
        return jnp.argmax(network.apply(params.mu, obs))

    return Algorithm(
        init, update, act, num_updates, steps_per_update, num_warmup * steps_per_update
    )


if __name__ == "__main__":
    main(Config, make)
