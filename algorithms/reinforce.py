"""REINFORCE (Monte Carlo policy gradient), with three estimators.

Williams 1992, Simple statistical gradient-following algorithms for connectionist reinforcement
learning, https://doi.org/10.1007/BF00992696; Sutton & Barto 2018, chapter 13,
http://incompleteideas.net/book/the-book-2nd.html

    ∇J(θ) = E[Σ_t Ψ_t ∇ln π(a_t | s_t; θ)], the sum over one whole episode, with Ψ_t

    return          G_0 = r_1 + γ r_2 + γ² r_3 + ...                        (Williams, theorem 2)
    reward_to_go    G_t = r_t+1 + γ r_t+2 + γ² r_t+3 + ...                  (eq. 13.8)
    baseline        G_t - V(s_t; w), and L(w) = E[½ (V(s_t; w) - G_t)²]     (eq. 13.11)

Each usually has less variance than the one above it, because it leaves out noise: the rewards
before a_t, then what s_t predicts of the rewards after it.

Only whole episodes count. In an update all environments start with a reset and run num_steps - 1 +
max_steps steps, so every episode started in the first num_steps steps finishes. These episodes
count, and no others: using all finished episodes would favour short ones. Whether an episode counts
depends only on the episodes before it, so the expected sum over those that count is E[their number]
∇J (Wald 1944, https://doi.org/10.1214/aoms/1177731235). The loss divides it by a constant. Steps
that do not count are part of the budget, too.

Departs from the book: Adam, one step for several episodes; the factor γ^t, which the discounted
gradient has before G_t, is left out, as is usual: all three are exact at γ = 1, and at any γ only
`return` is; the units of continuous actions make finite bounds -1 and 1. With
`baseline` truncated episodes bootstrap from V(s'); the other two have no V, and their returns end
at the time limit.

Metrics: `value`, mean V(s) of the steps that count (discounted return); `policy_loss`, mean of -Ψ
ln π over them; `value_loss`, mean of ½ (V - G)² over them; `entropy`, mean entropy of π over them
(nats); `counted`, how many these are: the weight of their means, and no column of metrics.csv;
`episodes`, those that count, which alone make `episode_return` and `episode_length`.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.distributions import (
    entropy,
    log_probability,
    make_policy,
    mode,
    sample,
    with_orthogonal_init,
)
from common.envs import bound_action, make_env, map_actions, rollout
from common.networks import make_network
from common.returns import gae
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "CartPole-v1"  # any environment
    estimator: Literal["return", "reward_to_go", "baseline"] = "baseline"  # of the gradient
    total_timesteps: int = 300_000  # environment steps, over all environments
    num_envs: int = 2  # environments stepped in parallel
    num_steps: int = 501  # steps of each environment in which an episode that counts may start
    learning_rate: float = 2e-3  # of Adam, for the actor
    critic_learning_rate: float = 2e-2  # of Adam, for the baseline
    anneal_lr: bool = True  # the learning rates fall linearly to 0
    gamma: float = 0.99  # discount factor
    init_std: float = 1.0  # initial standard deviation of actions whose bounds are -1 and 1
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of each hidden layer

    def __post_init__(self):
        require(self, "total_timesteps >= num_envs * num_steps")


class State(NamedTuple):
    key: jax.Array
    params: Any  # θ
    critic_params: Any  # w
    opt_state: optax.OptState


class Batch(NamedTuple):
    obs: jax.Array  # [T, N, ...]
    action: jax.Array
    weight: jax.Array  # [T, N] Ψ
    target: jax.Array  # [T, N] G
    is_counted: jax.Array  # [T, N] bool, whether the step's episode counts


def td_error(value, reward, next_value, terminated, gamma) -> jax.Array:
    """δ = r + γ (1 - d) V(s') - V(s), for one transition."""
    return reward + gamma * (1 - terminated) * next_value - value


def reward_to_go(reward, done, gamma) -> jax.Array:
    """G_t = r_t+1 + γ G_t+1, to the end of each episode of a trajectory [T]; [T]."""
    return gae(reward, done, gamma, 1.0)


def episode_return(reward, done, gamma) -> jax.Array:
    """G_0 of the episode that step t belongs to, for each step of a trajectory [T]; [T]."""
    return reward_to_go(reward, done, gamma)[episode_start(done)]


def episode_start(done) -> jax.Array:
    """Return the first step of the episode of each step, where step 0 is one; [T]."""
    starts = jnp.append(True, done[:-1])
    return jax.lax.cummax(jnp.where(starts, jnp.arange(len(done)), 0))


def policy_loss(log_prob, weight) -> jax.Array:
    """-Ψ ln π(a | s; θ), for one transition."""
    return -weight * log_prob


def value_loss(value, target) -> jax.Array:
    """½ (V(s; w) - G)², for one transition."""
    return 0.5 * jnp.square(value - target)


def make(config: Config) -> Algorithm:
    env = map_actions(make_env(config.env_id, config.num_envs), bound_action)
    actor = make_network(env, config.hidden_sizes, activation=jnp.tanh)
    actor = make_policy(env, with_orthogonal_init(actor, 0.01), config.init_std)
    critic = with_orthogonal_init(make_network(env, config.hidden_sizes, 1, jnp.tanh), 1.0)
    rollout_steps = config.num_steps - 1 + env.max_steps
    steps_per_update = config.num_envs * rollout_steps
    num_updates = config.total_timesteps // steps_per_update
    if num_updates < 1:
        raise ValueError(
            f"--total-timesteps {config.total_timesteps}: must be at least {steps_per_update}, the "
            f"steps of one update (an episode of {config.env_id} lasts up to {env.max_steps})"
        )

    def optimizer(step):
        def adam(learning_rate):
            learning_rate *= 1 - config.anneal_lr * step / num_updates
            return optax.adam(learning_rate, eps=1e-5)

        optimizers = {
            "actor": adam(config.learning_rate),
            "critic": adam(config.critic_learning_rate),
        }
        return optax.partition(optimizers, ("actor", "critic"))

    def values(critic_params, obs):
        return critic.apply(critic_params, obs)[..., 0]

    def loss(network_params, batch):
        actor_params, critic_params = network_params
        distribution = actor.apply(actor_params, batch.obs)
        value = values(critic_params, batch.obs)
        log_prob = log_probability(distribution, batch.action)
        metrics = {
            "policy_loss": policy_loss(log_prob, batch.weight),
            "value_loss": value_loss(value, batch.target),
            "entropy": entropy(distribution),
        }
        # The mean is over all steps: how many of them count depends on the returns.
        total = jnp.mean(batch.is_counted * (metrics["policy_loss"] + metrics["value_loss"]))
        return total, {name: x.mean(where=batch.is_counted) for name, x in metrics.items()}

    def init(key):
        key, key_actor, key_critic = jax.random.split(key, 3)
        actor_params, critic_params = actor.init(key_actor), critic.init(key_critic)
        opt_state = optimizer(0).init((actor_params, critic_params))
        return State(key, actor_params, critic_params, opt_state)

    def update(state, step):
        key_env, key_rollout = jax.random.split(jax.random.fold_in(state.key, step))

        def behaviour_policy(obs, key):
            return sample(key, actor.apply(state.params, obs))

        _, transitions, _ = rollout(
            env, behaviour_policy, env.reset(key_env), key_rollout, rollout_steps
        )
        reward, terminated = transitions.reward, transitions.terminated
        value = values(state.critic_params, transitions.obs)
        next_value = values(state.critic_params, transitions.next_obs)
        error = td_error(value, reward, next_value, terminated, config.gamma)
        done = terminated | transitions.truncated
        advantage = jax.vmap(gae, (1, 1, None, None), 1)(error, done, config.gamma, 1.0)
        weight = {
            "return": jax.vmap(episode_return, (1, 1, None), 1)(reward, done, config.gamma),
            "reward_to_go": jax.vmap(reward_to_go, (1, 1, None), 1)(reward, done, config.gamma),
            "baseline": advantage,
        }[config.estimator]
        is_counted = jax.vmap(episode_start, 1, 1)(done) < config.num_steps
        batch = Batch(transitions.obs, transitions.action, weight, advantage + value, is_counted)

        network_params = state.params, state.critic_params
        grads, metrics = jax.grad(loss, has_aux=True)(network_params, batch)
        updates, opt_state = optimizer(step).update(grads, state.opt_state)
        network_params = optax.apply_updates(network_params, updates)
        num_episodes = jnp.sum(is_counted & done, dtype=jnp.int32)
        metrics |= {
            "episode_return": jnp.sum(is_counted * reward) / num_episodes,
            "episode_length": jnp.sum(is_counted) / num_episodes,
            "episodes": num_episodes,
            "value": value.mean(where=is_counted),
            "counted": jnp.sum(is_counted, dtype=jnp.int32),  # steps that the means are over
        }
        actor_params, critic_params = network_params
        return State(state.key, actor_params, critic_params, opt_state), metrics

    def act(params, obs, key, choose=mode):
        return bound_action(env, choose(actor.apply(params, obs)))

    return Algorithm(init, update, act, num_updates, steps_per_update)


if __name__ == "__main__":
    main(Config, make)
