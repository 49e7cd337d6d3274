"""TD3 with behaviour cloning (TD3+BC).

Differs from td3.py in data that are there before training, of which the observations are brought to
mean 0 and standard deviation 1; and in the actor's loss, which also draws its actions to those of
the data.

Fujimoto & Gu 2021, A minimalist approach to offline reinforcement learning,
https://arxiv.org/abs/2106.06860

    L(φᵢ) = E[(r + γ (1 - d) min_j Q(s', ã; φⱼ⁻) - Q(s, a; φᵢ))²], i = 1, 2      (TD3, 10)
    ã = clip(μ(s'; θ⁻) + clip(ε, -c, c), -1, 1), ε ~ N(0, σ)                     (TD3, 14)
    L(θ) = E[(μ(s; θ) - a)² - λ Q(s, μ(s; θ); φ₁)]                                     (3)
    λ = α / E|Q|                                                                       (5)

with d = 1 where the MDP terminated; a time limit does not end the MDP. E is over the transitions of
a batch. Actions are in [-1, 1] and rescaled to the environment's bounds in env.step.

The data are episodes of an expert that takes some actions at random, the more the later the
episode: of different quality, therefore. Each seed has data of its own, or all share a file.

Departs from the paper: the square is a mean over the components of an action, and |Q| is of the
policy's actions, not of those in the data, as in the authors' program; observations are clipped 10
standard deviations from their mean; α is 4, not 2.5.

Metrics: `episode_return`, NaN: an update takes no environment steps; `value`, mean of both Q(s, a)
of data drawn at random (discounted return); `loss`, squared TD errors of both critics, added, mean
over the batches (return²); `distance`, mean of (μ(s) - a)² over those data (squared half ranges of
the action).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.datasets import Data, noisy_policy, play_dataset, read_dataset
from common.environments.experts import make_expert
from common.envs import make_env, map_actions, scale_action
from common.networks import ensemble, make_network, make_q_network
from common.normalization import Statistics, normalize
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "Pendulum-v1"  # any environment with continuous actions
    dataset: str = ""  # file of python -m common.record, or a Minari id; "": the expert's episodes
    expert: str = ""  # folder of a trained run, whose best seed is the expert; "": the known one
    num_episodes: int = 100  # of the expert, without --dataset
    epsilon_min: float = 0.0  # probability of a random action in the first episode
    epsilon_max: float = 1.0  # in the last one; it grows evenly
    num_iterations: int = 50  # updates
    gradient_steps: int = 200  # of the critics in each update, rounded up to whole actor steps
    policy_frequency: int = 2  # gradient steps of the critics per step of the actor and the targets
    learning_rate: float = 1e-3  # of Adam, for all networks
    gamma: float = 0.98  # discount factor
    batch_size: int = 128  # transitions
    alpha: float = 4.0  # weight of Q against the distance to the actions in the data
    tau: float = 0.02  # θ⁻ ← τ θ + (1 - τ) θ⁻ after each step of the actor, and φ⁻ likewise
    policy_noise: float = 0.2  # σ of the noise on the target's action
    noise_clip: float = 0.5  # c, the largest size of that noise
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of each hidden layer, in all networks

    def __post_init__(self):
        require(self, "alpha >= 0")


class Params(NamedTuple):
    actor_params: Any  # θ
    statistics: Statistics  # of the observations in the data


class State(NamedTuple):
    key: jax.Array
    params: Params
    opt_state: optax.OptState
    critic_params: Any  # φ, [2, ...]
    critic_opt_state: optax.OptState
    target_params: Any  # the pair θ⁻, φ⁻
    dataset: Data | tuple  # D, or () where it is a file


def td_error(q_value, reward, next_value, terminated, gamma) -> jax.Array:
    """δ = r + γ (1 - d) V(s') - Q(s, a), for one transition; no gradient through the target."""
    target = reward + gamma * (1 - terminated) * next_value
    return jax.lax.stop_gradient(target) - q_value


def policy_loss(q_value, action, data_action, weight) -> jax.Array:
    """(μ(s; θ) - a)² - λ Q(s, μ(s; θ); φ₁), for one transition; the square is a mean over the
    components of the actions [A]."""
    return jnp.mean(jnp.square(action - data_action)) - weight * q_value


def q_weight(q_value, alpha) -> jax.Array:
    """λ = α / E|Q|, of the values [B] of a batch; no gradient through it."""
    return alpha / jax.lax.stop_gradient(jnp.mean(jnp.abs(q_value)))


def smoothed_action(action, noise, noise_clip) -> jax.Array:
    """clip(a + clip(ε, -c, c), -1, 1), the target's action; all of one shape."""
    return jnp.clip(action + jnp.clip(noise, -noise_clip, noise_clip), -1, 1)


def obs_statistics(data: Data) -> Statistics:
    """Return the mean and variance of the observations in the rows that hold data."""
    obs = data.transitions.obs.astype(float)
    is_data = jnp.arange(len(obs)) < data.size
    mean = jnp.average(obs, axis=0, weights=is_data)
    var = jnp.average(jnp.square(obs - mean), axis=0, weights=is_data)
    return Statistics(jnp.asarray(data.size, float), mean, var)


def make(config: Config) -> Algorithm:
    num_envs = config.num_episodes
    env = map_actions(make_env(config.env_id, num_envs, actions="continuous"), scale_action)
    (num_actions,) = env.action_shape
    actor = make_network(env, config.hidden_sizes, num_actions)
    critic = make_q_network(env, config.hidden_sizes)
    critics = ensemble(critic, 2)
    optimizer = optax.adam(config.learning_rate)
    num_actor_steps = -(-config.gradient_steps // config.policy_frequency)  # in an update
    if config.dataset:
        dataset = read_dataset(config.dataset, config.env_id, env)
    else:
        expert = make_expert(config.env_id, env, config.expert)
        epsilon = jnp.linspace(config.epsilon_min, config.epsilon_max, config.num_episodes)
        dataset = play_dataset(env, noisy_policy(env, expert, epsilon))

    def policy(params, obs):
        return jnp.tanh(actor.apply(params, obs))

    def critic_loss(critic_params, target_params, batch, noise):
        target_actor_params, target_critic_params = target_params

        def error(transition, noise):
            q_value = critics.apply(critic_params, transition.obs, transition.action)  # [2]
            next_action = policy(target_actor_params, transition.next_obs)
            next_action = smoothed_action(next_action, noise, config.noise_clip)
            next_q_value = critics.apply(target_critic_params, transition.next_obs, next_action)
            next_value = jnp.min(next_q_value)
            reward, terminated = transition.reward, transition.terminated
            return td_error(q_value, reward, next_value, terminated, config.gamma)

        return jnp.mean(jnp.square(jax.vmap(error)(batch, noise)).sum(-1))

    def actor_loss(actor_params, critic_params, batch):
        action = policy(actor_params, batch.obs)
        q_value = critic.apply(critic_params, batch.obs, action)
        weight = q_weight(q_value, config.alpha)
        losses = jax.vmap(policy_loss, (0, 0, 0, None))(q_value, action, batch.action, weight)
        return jnp.mean(losses)

    def sample(state, key, batch_size):
        batch = dataset.sample(state.dataset, key, batch_size)
        obs, next_obs = (normalize(state.params.statistics, x) for x in (batch.obs, batch.next_obs))
        return batch._replace(obs=obs, next_obs=next_obs)

    def init(key):
        key, key_actor, key_critic, key_data = jax.random.split(key, 4)
        actor_params, critic_params = actor.init(key_actor), critics.init(key_critic)
        data = dataset.init(key_data)
        return State(
            key=key,
            params=Params(actor_params, obs_statistics(dataset.data(data))),
            opt_state=optimizer.init(actor_params),
            critic_params=critic_params,
            critic_opt_state=optimizer.init(critic_params),
            target_params=jax.tree.map(jnp.copy, (actor_params, critic_params)),
            dataset=data,
        )

    def actor_step(state, key):
        key_sample, key_noise = jax.random.split(key)
        batches = jax.tree.map(
            lambda x: x.reshape(config.policy_frequency, config.batch_size, *x.shape[1:]),
            sample(state, key_sample, config.policy_frequency * config.batch_size),
        )
        noises = config.policy_noise * jax.random.normal(key_noise, batches.action.shape)

        def critic_step(carry, inputs):
            critic_params, critic_opt_state = carry
            batch, noise = inputs
            loss_value, grads = jax.value_and_grad(critic_loss)(
                critic_params, state.target_params, batch, noise
            )
            updates, critic_opt_state = optimizer.update(grads, critic_opt_state)
            critic_params = optax.apply_updates(critic_params, updates)
            return (critic_params, critic_opt_state), loss_value

        (critic_params, critic_opt_state), loss_values = jax.lax.scan(
            critic_step, (state.critic_params, state.critic_opt_state), (batches, noises)
        )

        first_critic_params = jax.tree.map(lambda x: x[0], critic_params)
        batch = jax.tree.map(lambda x: x[-1], batches)
        grads = jax.grad(actor_loss)(state.params.actor_params, first_critic_params, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state)
        actor_params = optax.apply_updates(state.params.actor_params, updates)

        target_params = optax.incremental_update(
            (actor_params, critic_params), state.target_params, config.tau
        )
        return State(
            key=state.key,
            params=state.params._replace(actor_params=actor_params),
            opt_state=opt_state,
            critic_params=critic_params,
            critic_opt_state=critic_opt_state,
            target_params=target_params,
            dataset=state.dataset,
        ), loss_values.mean()

    def update(state, step):
        key_steps, key_batch = jax.random.split(jax.random.fold_in(state.key, step))
        state, loss_values = jax.lax.scan(
            actor_step, state, jax.random.split(key_steps, num_actor_steps)
        )
        batch = sample(state, key_batch, config.batch_size)
        value = critics.apply(state.critic_params, batch.obs, batch.action).mean()
        distance = jnp.square(policy(state.params.actor_params, batch.obs) - batch.action).mean()
        metrics = {"episode_return": jnp.full_like(value, jnp.nan), "value": value}
        return state, metrics | {"loss": loss_values.mean(), "distance": distance}

    def act(params, obs, key):
        obs = normalize(params.statistics, obs)
        return scale_action(env, policy(params.actor_params, obs))

    return Algorithm(init, update, act, config.num_iterations, 1)


if __name__ == "__main__":
    main(Config, make)
