"""Actor-critic with experience replay (ACER).

Actor and critic learn from the newest rollouts as in a2c.py, and then from older ones out of a
replay memory, each kept with the policy μ that acted in it. The critic is Q(s, a; w); Retrace
corrects its targets for the difference between μ and π. The gradient of the policy has weights
ρ(a) = π(a | s; θ) / μ(a | s), truncated at c, and a second term for what that cuts off. A trust
region keeps every step near to θₐ, an average of past θ.

Wang et al. 2017, Sample efficient actor-critic with experience replay,
https://arxiv.org/abs/1611.01224

    V(s) = Σ_a π(a | s; θ) Q(s, a; w)
    Qʳᵉᵗ_t = r_t + γ (1 - d_t) V(s_{t+1})
             + γ min(1, ρ_{t+1}) (Qʳᵉᵗ_{t+1} - Q(s_{t+1}, a_{t+1}; w))              (5)
    g = min(c, ρ_t) ∇_φ ln π(a_t) (Qʳᵉᵗ_t - V(s_t))                                 (9)
        + Σ_a max(0, 1 - c / ρ_t(a)) π(a) ∇_φ ln π(a) (Q(s_t, a; w) - V(s_t))
    k = ∇_φ KL(π(s_t; θₐ) ‖ π(s_t; θ))
    z = g - max(0, (kᵀg - δ) / |k|²) k                                              (12)
    θ ascends (∂φ/∂θ)ᵀ z, w descends ½ (Qʳᵉᵗ_t - Q(s_t, a_t; w))², θₐ ← α θₐ + (1 - α) θ

with d = 1 where the MDP terminated; a time limit does not end the MDP. Both end the recursion, and
so does the end of a rollout. φ(s; θ) are the logits of π, and z is the nearest vector to g along
which KL grows by at most δ.

Departs from the paper: one process; after a step on the newest rollouts come exactly `replay_ratio`
steps on as many replayed ones, where the paper draws a Poisson number with that mean; φ are logits,
not probabilities; discrete actions only, so there is no stochastic dueling network; policy and Q
share no layer; Adam, not RMSProp; the entropy bonus is part of g.

Metrics: `value`, mean Q(s, a) of the newest rollouts (discounted return); `value_loss`, mean of
½ (Qʳᵉᵗ - Q)²; `entropy`, mean of that of π (nats); `kl`, mean of KL(πₐ ‖ π), where πₐ has the
parameters θₐ (nats, and as the two before it over all rollouts that the update learned from).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.buffers import uniform_buffer
from common.distributions import (
    entropy,
    kl_divergence,
    log_probability,
    mode,
    sample,
    with_orthogonal_init,
)
from common.envs import EnvState, Transition, make_env, rollout
from common.networks import make_network
from common.returns import retrace
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "CartPole-v1"  # any environment with discrete actions
    total_timesteps: int = 100_000  # environment steps, over all environments
    num_envs: int = 8  # environments stepped in parallel
    num_steps: int = 16  # steps of each environment in a rollout
    replay_ratio: int = 4  # gradient steps on replayed rollouts after one on the newest
    buffer_size: int = 100_000  # environment steps, rounded up to whole updates
    learning_starts: int = 1_000  # environment steps first, rounded up to whole updates
    learning_rate: float = 2e-3  # of Adam
    anneal_lr: bool = True  # the learning rate falls linearly to 0
    gamma: float = 0.99  # discount factor
    importance_clip: float = 10.0  # c
    trust_region_delta: float = 1.0  # δ
    average_decay: float = 0.99  # α, at each gradient step
    ent_coef: float = 0.03  # of the entropy in g
    vf_coef: float = 0.5  # of the critic's loss
    max_grad_norm: float = 1.0  # global norm that gradients are clipped to
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of each hidden layer

    def __post_init__(self):
        require(
            self,
            "replay_ratio >= 0",
            "trust_region_delta > 0",
            "0 <= average_decay < 1",
            "buffer_size >= learning_starts",
            "total_timesteps >= learning_starts + 2 * num_envs * num_steps",
        )


class Rollouts(NamedTuple):
    """Steps of one environment."""

    transitions: Transition  # [T, ...]
    logits: jax.Array  # [T, A] of μ


class State(NamedTuple):
    key: jax.Array
    params: Any  # θ
    average_params: Any  # θₐ
    critic_params: Any  # w
    opt_state: optax.OptState
    buffer: Rollouts  # [capacity, T, ...]
    env: EnvState


def state_value(logits, q_values) -> jax.Array:
    """V(s) = Σ_a π(a | s) Q(s, a), from the logits of π [..., A] and Q [..., A]; [...]."""
    return jnp.sum(jax.nn.softmax(logits) * q_values, axis=-1)


def td_error(q_value, reward, next_value, terminated, gamma) -> jax.Array:
    """δ = r + γ (1 - d) V(s') - Q(s, a), for one transition; no gradient through the target."""
    target = reward + gamma * (1 - terminated) * next_value
    return jax.lax.stop_gradient(target) - q_value


def policy_gradient(logits, behaviour_logits, action, q_values, q_return, clip) -> jax.Array:
    """g without the entropy, from Q [A] and Qʳᵉᵗ of the action taken, for one transition; [A].

    ∇_φ ln π(a) is e_a - π, so that Σ_a x_a ∇_φ ln π(a) = x - π Σ_a x_a.
    """
    policy = jax.nn.softmax(logits)
    ratio = jnp.exp(jax.nn.log_softmax(logits) - jax.nn.log_softmax(behaviour_logits))
    value = state_value(logits, q_values)
    is_taken = jax.nn.one_hot(action, len(logits))
    truncated = is_taken * jnp.minimum(clip, ratio) * (q_return - value)
    correction = jnp.maximum(0, 1 - clip / ratio) * policy * (q_values - value)
    weight = truncated + correction
    return weight - policy * jnp.sum(weight)


def trust_region(gradient, kl_gradient, delta) -> jax.Array:
    """z = g - max(0, (kᵀg - δ) / |k|²) k, which minimizes |z - g|² subject to kᵀz ≤ δ; [A]."""
    excess = jnp.sum(kl_gradient * gradient) - delta
    squared_norm = jnp.sum(jnp.square(kl_gradient))
    scale = jnp.where(excess > 0, excess / squared_norm, 0)
    return gradient - scale * kl_gradient


def policy_loss(logits, direction) -> jax.Array:
    """-zᵀ φ(s; θ), whose gradient is -(∂φ/∂θ)ᵀ z, for one observation; no gradient through z."""
    return -jnp.sum(jax.lax.stop_gradient(direction) * logits)


def value_loss(q_value, target) -> jax.Array:
    """½ (Qʳᵉᵗ - Q(s, a; w))², for one transition; no gradient through the target."""
    return 0.5 * jnp.square(jax.lax.stop_gradient(target) - q_value)


def make(config: Config) -> Algorithm:
    env = make_env(config.env_id, config.num_envs, actions="discrete")
    actor = make_network(env, config.hidden_sizes, activation=jnp.tanh)
    actor = with_orthogonal_init(actor, 0.01)
    critic = make_network(env, config.hidden_sizes, activation=jnp.tanh)
    critic = with_orthogonal_init(critic, 1.0)
    steps_per_update = config.num_envs * config.num_steps
    num_rows = -(-config.buffer_size // steps_per_update) * config.num_envs
    buffer = uniform_buffer(num_rows, config.num_envs, config.replay_ratio * config.num_envs)
    warmup_updates = -(-config.learning_starts // steps_per_update)
    initial_steps = warmup_updates * steps_per_update
    num_updates = (config.total_timesteps - initial_steps) // steps_per_update

    def optimizer(step):
        learning_rate = config.learning_rate * (1 - config.anneal_lr * step / num_updates)
        clip = optax.clip_by_global_norm(config.max_grad_norm)
        return optax.chain(clip, optax.adam(learning_rate, eps=1e-5))

    def collect(params, env_state, key, num_updates):
        """Rollouts of `num_updates` updates, [num_updates, N, T, ...]."""
        behaviour_policy = lambda obs, key: sample(key, actor.apply(params, obs))
        env_state, transitions, episodes = rollout(
            env, behaviour_policy, env_state, key, num_updates * config.num_steps
        )
        rollouts = Rollouts(transitions, actor.apply(params, transitions.obs))
        rollouts = jax.tree.map(
            lambda x: x.reshape(num_updates, config.num_steps, *x.shape[1:]).swapaxes(1, 2),
            rollouts,
        )
        return env_state, rollouts, episodes

    def loss(network_params, average_params, batch):
        actor_params, critic_params = network_params
        steps, behaviour_logits = batch
        logits = actor.apply(actor_params, steps.obs)
        average_logits = actor.apply(average_params, steps.obs)
        q_values = critic.apply(critic_params, steps.obs)
        q_value = jnp.take_along_axis(q_values, steps.action[..., None], axis=-1).squeeze(-1)

        next_logits = actor.apply(actor_params, steps.next_obs)
        next_value = state_value(next_logits, critic.apply(critic_params, steps.next_obs))
        error = td_error(q_value, steps.reward, next_value, steps.terminated, config.gamma)
        log_prob = log_probability(logits, steps.action)
        ratio = jnp.exp(log_prob - log_probability(behaviour_logits, steps.action))
        done = steps.terminated | steps.truncated
        q_return = jax.vmap(retrace, (0, 0, 0, 0, None))(
            q_value, error, done, jnp.minimum(1, ratio), config.gamma
        )

        def direction(logits, average_logits, behaviour_logits, action, q_values, q_return):
            gradient = policy_gradient(
                logits, behaviour_logits, action, q_values, q_return, config.importance_clip
            )
            gradient += config.ent_coef * jax.grad(entropy)(logits)
            kl_gradient = jax.grad(kl_divergence, argnums=1)(average_logits, logits)
            return trust_region(gradient, kl_gradient, config.trust_region_delta)

        z = jax.vmap(jax.vmap(direction))(
            logits, average_logits, behaviour_logits, steps.action, q_values, q_return
        )
        metrics = {
            "value": q_value,
            "value_loss": value_loss(q_value, q_return),
            "entropy": entropy(logits),
            "kl": kl_divergence(average_logits, logits),
        }
        metrics = {name: x.mean() for name, x in metrics.items()}
        loss_of_policy = jax.vmap(jax.vmap(policy_loss))(logits, z).mean()
        return loss_of_policy + config.vf_coef * metrics["value_loss"], metrics

    def init(key):
        key, key_actor, key_critic, key_env, key_warmup = jax.random.split(key, 5)
        params, critic_params = actor.init(key_actor), critic.init(key_critic)
        env_state, rollouts, _ = collect(params, env.reset(key_env), key_warmup, warmup_updates)
        return State(
            key=key,
            params=params,
            average_params=jax.tree.map(jnp.copy, params),
            critic_params=critic_params,
            opt_state=optimizer(0).init((params, critic_params)),
            buffer=buffer.init(rollouts),
            env=env_state,
        )

    def update(state, step):
        key_rollout, key_sample = jax.random.split(jax.random.fold_in(state.key, step))
        env_state, newest, episodes = collect(state.params, state.env, key_rollout, 1)
        buffer_state = buffer.add(state.buffer, newest, warmup_updates + step)
        replayed = buffer.sample(buffer_state, key_sample, warmup_updates + step + 1)
        batches = jax.tree.map(
            lambda x, y: jnp.concatenate([x, y.reshape(config.replay_ratio, *x.shape[1:])]),
            newest,
            replayed,
        )

        def learn(carry, batch):
            network_params, average_params, opt_state = carry
            grads, metrics = jax.grad(loss, has_aux=True)(network_params, average_params, batch)
            updates, opt_state = optimizer(step).update(grads, opt_state)
            network_params = optax.apply_updates(network_params, updates)
            average_params = optax.incremental_update(
                network_params[0], average_params, 1 - config.average_decay
            )
            return (network_params, average_params, opt_state), metrics

        carry = (state.params, state.critic_params), state.average_params, state.opt_state
        (network_params, average_params, opt_state), metrics = jax.lax.scan(learn, carry, batches)
        value = metrics.pop("value")[0]
        metrics = {name: x.mean() for name, x in metrics.items()} | episodes | {"value": value}
        params, critic_params = network_params
        return State(
            key=state.key,
            params=params,
            average_params=average_params,
            critic_params=critic_params,
            opt_state=opt_state,
            buffer=buffer_state,
            env=env_state,
        ), metrics

    def act(params, obs, key, choose=mode):
        return choose(actor.apply(params, obs))

    return Algorithm(init, update, act, num_updates, steps_per_update, initial_steps)


if __name__ == "__main__":
    main(Config, make)
