"""Q actor-critic (QAC).

Differs from a2c.py in the critic, which is Q(s, a; w), learned by the one-step error of SARSA; it
takes the place of the advantage.

Sutton et al. 2000, Policy gradient methods for reinforcement learning with function approximation,
https://papers.nips.cc/paper/1713

    L(θ, w) = -E[ln π(a | s; θ) Q(s, a; w)]                                 (theorem 1)
              + c₁ E[½ δ²] - c₂ E[H(π(s; θ))]
    δ = r + γ (1 - d) Q(s', a'; w) - Q(s, a; w)                             (SARSA)

with d = 1 where the MDP terminated, and a' drawn at s' from π, but not taken: at a time limit and
at the end of a rollout nothing is. The gradient of δ² is that of Q(s, a; w) alone. The critic must
follow the actor, so it learns faster.

Departs from the paper: Q is a network of its own, not linear in ∇ln π as theorem 2 wants it; in its
place in the first term Q is normalized, which takes away a baseline that is the same for all states
of a rollout; γ^t is left out, as is usual; Adam; the entropy bonus.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.distributions import distribution_for
from common.envs import EnvState, clip_action, make_env, rollout, with_clipped_actions
from common.networks import Network, critic_for, network_for, orthogonal
from common.normalization import obs_normalizer, reward_scaler
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "CartPole-v1"  # any environment
    total_timesteps: int = 300_000  # environment steps, over all environments
    num_envs: int = 8  # environments stepped in parallel
    num_steps: int = 8  # steps of each environment in a rollout
    learning_rate: float = 2.5e-4  # of Adam, for the actor
    critic_learning_rate: float = 1e-2  # of Adam, for the critic
    anneal_lr: bool = True  # the learning rates fall linearly to 0
    gamma: float = 0.99  # discount factor
    norm_adv: bool = True  # Q in the actor's loss at mean 0 and standard deviation 1
    ent_coef: float = 0.01  # c₂
    vf_coef: float = 0.5  # c₁
    max_grad_norm: float = 10.0  # global norm that each network's gradient is clipped to
    norm_obs: bool = False  # observations at mean 0 and standard deviation 1
    norm_reward: bool = False  # rewards by the standard deviation of their discounted sum
    init_std: float = 1.0  # standard deviation of continuous actions, at first
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of each hidden layer

    def __post_init__(self):
        require(
            self,
            "num_envs >= 1",
            "num_steps >= 1",
            "total_timesteps >= num_envs * num_steps",
            "learning_rate > 0",
            "critic_learning_rate > 0",
            "0 <= gamma <= 1",
            "ent_coef >= 0",
            "vf_coef >= 0",
            "max_grad_norm > 0",
            "init_std > 0",
            "all(size >= 1 for size in hidden_sizes)",
        )


class Params(NamedTuple):
    actor: Any  # θ
    statistics: Any  # of observations; () if they are not normalized


class State(NamedTuple):
    key: jax.Array
    params: Params
    critic: Any  # w
    opt_state: optax.OptState
    env: EnvState
    reward_statistics: Any  # () if rewards are not normalized


class Batch(NamedTuple):
    obs: jax.Array  # [B, ...] as the networks see it
    action: jax.Array
    value: jax.Array  # [B] Q(s, a; w), as it was
    target: jax.Array  # [B] Q(s, a; w) + δ


def td_error(reward, value, next_value, terminated, gamma) -> jax.Array:
    """δ = r + γ (1 - d) Q(s', a'; w) - Q(s, a; w), for one transition."""
    return reward + gamma * (1 - terminated) * next_value - value


def policy_loss(log_prob, value) -> jax.Array:
    """-ln π(a | s; θ) Q(s, a; w)."""
    return -log_prob * value


def value_loss(value, target) -> jax.Array:
    """½ (Q(s, a; w) - target)²."""
    return 0.5 * jnp.square(value - target)


def q_network(env, hidden_sizes) -> Network:
    """Q(s, a); actions that are numbers are one-hot inputs."""
    if env.num_actions is None:
        return critic_for(env, hidden_sizes)
    network = critic_for(env._replace(action_shape=(env.num_actions,)), hidden_sizes)

    def apply(params, obs, action):
        return network.apply(params, obs, jax.nn.one_hot(action, env.num_actions))

    return Network(network.init, apply)


def make(config: Config) -> Algorithm:
    env = with_clipped_actions(make_env(config.env_id, config.num_envs))
    distribution = distribution_for(env, config.init_std)
    normalizer = obs_normalizer(env, config.norm_obs)
    scaler = reward_scaler(env, config.norm_reward)
    sizes = config.hidden_sizes, distribution.num_outputs
    actor = distribution.head(orthogonal(network_for(env, *sizes, jnp.tanh), 0.01))
    critic = orthogonal(q_network(env, config.hidden_sizes), 1.0)
    steps_per_update = config.num_envs * config.num_steps
    num_updates = config.total_timesteps // steps_per_update

    def optimizer(step):
        def adam(learning_rate):
            learning_rate *= 1 - config.anneal_lr * step / num_updates
            clip = optax.clip_by_global_norm(config.max_grad_norm)
            return optax.chain(clip, optax.adam(learning_rate, eps=1e-5))

        adams = {
            "actor": adam(config.learning_rate),
            "critic": adam(config.critic_learning_rate),
        }
        return optax.partition(adams, ("actor", "critic"))

    def loss(networks, batch):
        y = actor.apply(networks[0], batch.obs)
        value = critic.apply(networks[1], batch.obs, batch.action)
        log_prob = distribution.log_prob(y, batch.action)
        weight = batch.value
        if config.norm_adv:
            weight = (weight - weight.mean()) / (weight.std() + 1e-8)
        metrics = {
            "policy_loss": policy_loss(log_prob, weight),
            "value_loss": value_loss(value, batch.target),
            "entropy": distribution.entropy(y),
        }
        metrics = {name: x.mean() for name, x in metrics.items()}
        total = metrics["policy_loss"] + config.vf_coef * metrics["value_loss"]
        return total - config.ent_coef * metrics["entropy"], metrics

    def init(key):
        key, key_actor, key_critic, key_env = jax.random.split(key, 4)
        networks = actor.init(key_actor), critic.init(key_critic)
        return State(
            key=key,
            params=Params(networks[0], normalizer.init()),
            critic=networks[1],
            opt_state=optimizer(0).init(networks),
            env=env.reset(key_env),
            reward_statistics=scaler.init(),
        )

    def update(state, step):
        key_rollout, key_next = jax.random.split(jax.random.fold_in(state.key, step))
        params = state.params

        def explore(obs, key):
            y = actor.apply(params.actor, normalizer.apply(params.statistics, obs))
            return distribution.sample(y, key)

        env_state, recent, episode_return = rollout(
            env, explore, state.env, key_rollout, config.num_steps
        )
        reward_statistics, reward = scaler.apply(state.reward_statistics, recent, config.gamma)
        obs = normalizer.apply(params.statistics, recent.obs)
        next_obs = normalizer.apply(params.statistics, recent.next_obs)
        next_action = distribution.sample(actor.apply(params.actor, next_obs), key_next)
        value = critic.apply(state.critic, obs, recent.action)
        next_value = critic.apply(state.critic, next_obs, next_action)
        error = td_error(reward, value, next_value, recent.terminated, config.gamma)
        batch = Batch(obs, recent.action, value, value + error)
        batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)

        networks = params.actor, state.critic
        grads, metrics = jax.grad(loss, has_aux=True)(networks, batch)
        updates, opt_state = optimizer(step).update(grads, state.opt_state)
        networks = optax.apply_updates(networks, updates)
        metrics |= {"episode_return": episode_return, "value": value.mean()}
        statistics = normalizer.add(params.statistics, recent.obs)
        return State(
            key=state.key,
            params=Params(networks[0], statistics),
            critic=networks[1],
            opt_state=opt_state,
            env=env_state,
            reward_statistics=reward_statistics,
        ), metrics

    def act(params, obs, key):
        y = actor.apply(params.actor, normalizer.apply(params.statistics, obs))
        return clip_action(env, distribution.mode(y))

    return Algorithm(init, update, act, num_updates, steps_per_update)


if __name__ == "__main__":
    main(Config, make)
