"""DQN with noisy networks (NoisyNet-DQN).

Differs from dqn.py in exploration: noise with a learned scale σ is added to the weights of every
fully connected layer, and the behaviour policy is greedy in the network with that noise, not
ε-greedy. `act` uses μ, without noise.

Fortunato et al. 2018, Noisy networks for exploration, https://arxiv.org/abs/1706.10295

    y = (μʷ + σʷ ⊙ εʷ) x + μᵇ + σᵇ ⊙ εᵇ                                       (9)
    εʷᵢⱼ = f(εᵢ) f(εⱼ), εᵇⱼ = f(εⱼ), f(x) = sgn(x) √|x|, εᵢ, εⱼ ~ N(0, 1)     (10), (11)
    L(θ) = E[(r + γ (1 - d) max_a' Q(s', a', ε'; θ⁻) - Q(s, a, ε; θ))²]       (Algorithm 1)

with θ = (μ, σ) and d = 1 where the MDP terminated; a time limit does not end the MDP. ε and ε' are
independent and drawn once for each gradient step; to act, each environment draws at every step.

Departs from the paper: Adam, not RMSProp; the error is not clipped to [-1, 1], because clipping
learns the median of the targets, not their mean, where episodes are long and rarely end; rewards
are not clipped; several environments in parallel; `init` takes the random steps that fill the
replay memory;
--scale-obs (from Obando-Ceron & Castro 2021, https://arxiv.org/abs/2011.14826) brings observations
to one scale, so that noise does not drown the small ones.

Metrics: `value`, mean Q(s, a) of the actions taken, without noise (discounted return); `loss`, mean
squared TD error of the batch (return²).
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.buffers import uniform_buffer
from common.envs import Env, EnvState, Transition, make_env, rollout
from common.exploration import random_policy
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
    sigma_init: float = 0.5  # σ₀; σ of a layer with p inputs starts at σ₀ / √p
    scale_obs: bool = False  # rescale observations from their bounds to [-1, 1]
    hidden_sizes: tuple[int, ...] = (256,)  # units of each hidden layer

    def __post_init__(self):
        require(
            self,
            "sigma_init >= 0",
            "buffer_size >= learning_starts",
            "total_timesteps >= learning_starts + 2 * num_envs * train_frequency",
        )


class NoisyParams(NamedTuple):
    mu: list  # (weights, bias) of every layer
    sigma: list  # (weights, bias) of the last layers, those that have noise


class State(NamedTuple):
    key: jax.Array
    params: NoisyParams  # θ = (μ, σ)
    target_params: NoisyParams  # θ⁻
    opt_state: optax.OptState
    buffer: Transition  # [capacity, ...]
    env: EnvState


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


def td_error(q_value, reward, next_value, terminated, gamma) -> jax.Array:
    """δ = r + γ (1 - d) V(s') - Q(s, a), for one transition; no gradient through the target."""
    target = reward + gamma * (1 - terminated) * next_value
    return jax.lax.stop_gradient(target) - q_value


def make(config: Config) -> Algorithm:
    env = make_env(config.env_id, config.num_envs, actions="discrete")
    network = make_network(env, config.hidden_sizes)
    if config.scale_obs:
        network = with_scaled_obs(env, network)
    network = with_noise(network, len(config.hidden_sizes) + 1, config.sigma_init)
    optimizer = optax.adam(config.learning_rate)
    steps_per_update = config.num_envs * config.train_frequency
    buffer = uniform_buffer(config.buffer_size, steps_per_update, config.batch_size)
    warmup_updates = -(-config.learning_starts // steps_per_update)
    warmup_steps = warmup_updates * config.train_frequency  # of each environment
    initial_steps = warmup_steps * config.num_envs
    num_updates = (config.total_timesteps - initial_steps) // steps_per_update

    def loss(params, target_params, batch, key):
        key_online, key_target = jax.random.split(key)
        params, target_params = perturb(params, key_online), perturb(target_params, key_target)

        def error(transition):
            q_value = network.apply(params, transition.obs)[transition.action]
            next_value = jnp.max(network.apply(target_params, transition.next_obs))
            reward, terminated = transition.reward, transition.terminated
            return td_error(q_value, reward, next_value, terminated, config.gamma)

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
            buffer=buffer.init(transitions),
            env=env_state,
        )

    def update(state, step):
        keys = jax.random.split(jax.random.fold_in(state.key, step), 3)
        key_rollout, key_sample, key_noise = keys

        def behaviour_policy(obs, key):
            def greedy_action(obs, key):
                return jnp.argmax(network.apply(perturb(state.params, key), obs))

            return jax.vmap(greedy_action)(obs, jax.random.split(key, config.num_envs))

        env_state, transitions, episodes = rollout(
            env, behaviour_policy, state.env, key_rollout, config.train_frequency
        )
        buffer_state = buffer.add(state.buffer, transitions, warmup_updates + step)
        batch = buffer.sample(buffer_state, key_sample, warmup_updates + step + 1)

        loss_value, grads = jax.value_and_grad(loss)(
            state.params, state.target_params, batch, key_noise
        )
        updates, opt_state = optimizer.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        polyak = optax.incremental_update(params, state.target_params, config.tau)
        is_copy_step = (step + 1) % config.target_network_frequency == 0
        target_params = jax.tree.map(
            lambda new, old: jnp.where(is_copy_step, new, old), polyak, state.target_params
        )

        q_values = network.apply(state.params.mu, transitions.obs)
        value = jnp.take_along_axis(q_values, transitions.action[..., None], axis=-1).mean()
        metrics = episodes | {"value": value, "loss": loss_value}
        return State(state.key, params, target_params, opt_state, buffer_state, env_state), metrics

    def act(params, obs, key):
        return jnp.argmax(network.apply(params.mu, obs))

    return Algorithm(init, update, act, num_updates, steps_per_update, initial_steps)


if __name__ == "__main__":
    main(Config, make)
