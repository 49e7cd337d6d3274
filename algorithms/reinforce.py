"""REINFORCE (Monte Carlo policy gradient), with three estimators.

Williams 1992, Simple statistical gradient-following algorithms for connectionist reinforcement
learning, https://doi.org/10.1007/BF00992696; Sutton & Barto 2018, chapter 13,
http://incompleteideas.net/book/the-book-2nd.html

    ∇J(θ) = E[Σ_t Ψ_t ∇ln π(a_t | s_t; θ)], the sum over one whole episode, with Ψ_t

    return          G_0 = r_1 + γ r_2 + γ² r_3 + ...                        (Williams, theorem 2)
    reward_to_go    G_t = r_t+1 + γ r_t+2 + γ² r_t+3 + ...                  (eq. 13.8)
    baseline        G_t - V(s_t; w), and L(w) = E[½ (V(s_t; w) - G_t)²]     (eq. 13.11)

Each leaves out some of the noise of the one above it: rewards before a_t, then what s_t says of
the rewards after it. As a rule it varies less.

Only whole episodes count. In an update all environments start anew and play `num_steps` - 1 steps
and a time limit more, so that what begins in the first `num_steps` steps is ended. All of these
episodes count, however long, and no others: to count whatever has ended would prefer short ones.
Whether an episode counts then depends on those before it alone, and the sum over all that count has
the mean E[their number] ∇J (Wald 1944, https://doi.org/10.1214/aoms/1177731235). The loss divides
it by a constant. Steps that do not count are in the budget like the others.

Departs from the book: Adam, one step for several episodes; the factor γ^t, which the discounted
gradient has before G_t, is left out, as is usual: all three are exact at γ = 1, and at any γ only
`return` is. At a time limit the return of `baseline` goes on with V; the others', which have
nothing to go on with, ends.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.distributions import distribution_for
from common.envs import clip_action, make_env, rollout, with_clipped_actions
from common.networks import network_for, orthogonal
from common.returns import gae
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "CartPole-v1"  # any environment
    estimator: str = "baseline"  # of the gradient: return, reward_to_go or baseline
    total_timesteps: int = 300_000  # environment steps, over all environments
    num_envs: int = 2  # environments stepped in parallel
    num_steps: int = 501  # steps of each environment in which an episode that counts begins
    learning_rate: float = 2e-3  # of Adam, for the actor
    critic_learning_rate: float = 2e-2  # of Adam, for the baseline
    anneal_lr: bool = True  # the learning rates fall linearly to 0
    gamma: float = 0.99  # discount factor
    init_std: float = 1.0  # standard deviation of continuous actions, at first
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of each hidden layer

    def __post_init__(self):
        require(
            self,
            "estimator in ('return', 'reward_to_go', 'baseline')",
            "num_envs >= 1",
            "num_steps >= 1",
            "total_timesteps >= num_envs * num_steps",
            "learning_rate > 0",
            "critic_learning_rate > 0",
            "0 <= gamma <= 1",
            "init_std > 0",
            "all(size >= 1 for size in hidden_sizes)",
        )


class State(NamedTuple):
    key: jax.Array
    params: Any  # θ
    critic: Any  # w
    opt_state: optax.OptState


class Batch(NamedTuple):
    obs: jax.Array  # [T, N, ...]
    action: jax.Array
    weight: jax.Array  # [T, N] Ψ
    target: jax.Array  # [T, N] G
    counts: jax.Array  # [T, N] bool


def episode_start(done) -> jax.Array:
    """The step at which the episode of each step began, where step 0 begins one; [T]."""
    begins = jnp.append(True, done[:-1])
    return jax.lax.cummax(jnp.where(begins, jnp.arange(len(done)), 0))


def reward_to_go(reward, value, next_value, terminated, truncated, gamma) -> jax.Array:
    """Ψ_t = G_t, to the end of the episode; [T]."""
    zero = jnp.zeros_like(value)
    return gae(reward, zero, zero, terminated, truncated, gamma, 1.0)


def whole_return(reward, value, next_value, terminated, truncated, gamma) -> jax.Array:
    """Ψ_t = G_0 of the episode of step t; [T]."""
    returns = reward_to_go(reward, value, next_value, terminated, truncated, gamma)
    return returns[episode_start(terminated | truncated)]


def less_baseline(reward, value, next_value, terminated, truncated, gamma) -> jax.Array:
    """Ψ_t = G_t - V(s_t), where G_t ends in γ V(s') if a time limit ended the episode; [T]."""
    return gae(reward, value, next_value, terminated, truncated, gamma, 1.0)


ESTIMATORS = {"return": whole_return, "reward_to_go": reward_to_go, "baseline": less_baseline}


def policy_loss(log_prob, weight) -> jax.Array:
    """-Ψ ln π(a | s; θ)."""
    return -weight * log_prob


def value_loss(value, target) -> jax.Array:
    """½ (V(s; w) - G)²."""
    return 0.5 * jnp.square(value - target)


def make(config: Config) -> Algorithm:
    env = with_clipped_actions(make_env(config.env_id, config.num_envs))
    distribution = distribution_for(env, config.init_std)
    sizes = config.hidden_sizes, distribution.num_outputs
    actor = distribution.head(orthogonal(network_for(env, *sizes, jnp.tanh), 0.01))
    critic = orthogonal(network_for(env, config.hidden_sizes, 1, jnp.tanh), 1.0)
    estimate = ESTIMATORS[config.estimator]
    num_steps = config.num_steps - 1 + env.max_steps
    steps_per_update = config.num_envs * num_steps
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

        adams = {
            "actor": adam(config.learning_rate),
            "critic": adam(config.critic_learning_rate),
        }
        return optax.partition(adams, ("actor", "critic"))

    def values(params, obs):
        return critic.apply(params, obs)[..., 0]

    def loss(networks, batch):
        y = actor.apply(networks[0], batch.obs)
        log_prob = distribution.log_prob(y, batch.action)
        metrics = {
            "policy_loss": policy_loss(log_prob, batch.weight),
            "value_loss": value_loss(values(networks[1], batch.obs), batch.target),
            "entropy": distribution.entropy(y),
        }
        # Over all steps: the number of those that count is random, and depends on the returns.
        total = jnp.mean(batch.counts * (metrics["policy_loss"] + metrics["value_loss"]))
        return total, {name: x.mean(where=batch.counts) for name, x in metrics.items()}

    def init(key):
        key, key_actor, key_critic = jax.random.split(key, 3)
        networks = actor.init(key_actor), critic.init(key_critic)
        return State(key, *networks, optimizer(0).init(networks))

    def update(state, step):
        key_env, key_rollout = jax.random.split(jax.random.fold_in(state.key, step))

        def explore(obs, key):
            return distribution.sample(actor.apply(state.params, obs), key)

        _, recent, _ = rollout(env, explore, env.reset(key_env), key_rollout, num_steps)
        value, next_value = values(state.critic, recent.obs), values(state.critic, recent.next_obs)
        outcome = recent.reward, value, next_value, recent.terminated, recent.truncated
        weight = jax.vmap(lambda *x: estimate(*x, config.gamma), 1, 1)(*outcome)
        target = value + jax.vmap(lambda *x: less_baseline(*x, config.gamma), 1, 1)(*outcome)
        done = recent.terminated | recent.truncated
        counts = jax.vmap(episode_start, 1, 1)(done) < config.num_steps
        batch = Batch(recent.obs, recent.action, weight, target, counts)

        networks = state.params, state.critic
        grads, metrics = jax.grad(loss, has_aux=True)(networks, batch)
        updates, opt_state = optimizer(step).update(grads, state.opt_state)
        networks = optax.apply_updates(networks, updates)
        metrics |= {
            "episode_return": jnp.sum(counts * recent.reward) / jnp.sum(counts & done),
            "value": value.mean(where=counts),
            "counted": counts.astype(float).mean(),
        }
        return State(state.key, *networks, opt_state), metrics

    def act(params, obs, key):
        return clip_action(env, distribution.mode(actor.apply(params, obs)))

    return Algorithm(init, update, act, num_updates, steps_per_update)


if __name__ == "__main__":
    main(Config, make)
