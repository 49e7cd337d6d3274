"""Maximum a posteriori Policy Optimisation (MPO).

Abdolmaleki et al. 2018, Maximum a posteriori policy optimisation,
https://arxiv.org/abs/1806.06920, with the decoupled normal distribution of Abdolmaleki et al. 2018,
Relative entropy regularized policy iteration, https://arxiv.org/abs/1812.02256

    q(a | s) ∝ π(a | s; θ⁻) exp(Q(s, a; φ⁻) / η)                            (8)
    g(η) = η ε + η E_s[ln E_a~π(θ⁻)[exp(Q(s, a; φ⁻) / η)]]                  (9)
    max_θ E_s,a~q[ln π(a | s; θ)] with E_s[KL(π(s; θ⁻) ‖ π(s; θ))] ≤ ε_π    (12)
    L(φ) = E[(r + γ (1 - d) E_a'~π(θ⁻)[Q(s', a'; φ⁻)] - Q(s, a; φ))²]

with d = 1 where the MDP terminated; a time limit does not end the MDP. η minimizes g, so q is at
most ε away from the policy; the bound of (12) has a multiplier α, which grows while KL is larger.
A normal policy is fitted twice, with the old standard deviations and with the old means, and each
fit has a bound of its own. Discrete actions are summed over; of continuous ones K are sampled.

Departs from the paper: targets of one step, not Retrace; ln η and ln α take one step of Adam an
update; standard deviations for each component, not a covariance matrix; means are within the
bounds, which are -1 and 1 for the policy, and Q is that of the action clipped to them; several
environments in parallel; `init` takes the random steps that fill the replay memory.

Metrics: `value`, mean Q(s, a) of the actions taken (discounted return); `loss`, mean squared TD
error of the batch (return²); `temperature`, η (return per nat); `kl`, mean KL(π(θ⁻) ‖ π(θ)) of the
batch (nats); `entropy`, mean of that of π(θ), in the units of the policy (nats).
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.buffers import uniform_buffer
from common.distributions import (
    Normal,
    entropy,
    kl_divergence,
    log_probability,
    mode,
    sample,
    with_orthogonal_init,
)
from common.envs import (
    EnvState,
    Transition,
    bound_action,
    is_bounded,
    make_env,
    map_actions,
    rollout,
)
from common.exploration import random_policy
from common.networks import make_network, make_q_network
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "Pendulum-v1"  # any environment
    total_timesteps: int = 30_000  # environment steps, over all environments
    num_envs: int = 4  # environments stepped in parallel, once per gradient step
    learning_rate: float = 1e-3  # of Adam, for both networks
    dual_learning_rate: float = 1e-2  # of Adam, for ln η and ln α
    gamma: float = 0.98  # discount factor
    buffer_size: int = 30_000  # transitions, rounded up to whole updates
    batch_size: int = 128  # transitions
    learning_starts: int = 1_000  # random environment steps first, rounded up to whole updates
    target_network_frequency: int = 100  # gradient steps between copies of θ, φ into θ⁻, φ⁻
    num_samples: int = 20  # K, actions sampled per observation, if they are continuous
    epsilon: float = 0.1  # ε, bound on KL(q ‖ π) (nats)
    epsilon_policy: float = 0.01  # bound on KL(π(θ⁻) ‖ π(θ)) of discrete actions (nats)
    epsilon_mean: float = 0.05  # bound on the part of the means, of continuous actions (nats)
    epsilon_std: float = 1e-4  # bound on the part of the standard deviations (nats)
    init_temperature: float = 1.0  # initial η
    init_alpha: float = 1.0  # initial multipliers of the policy's bounds
    init_std: float = 0.5  # initial standard deviation of actions whose bounds are -1 and 1
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of each hidden layer, in both networks

    def __post_init__(self):
        require(
            self,
            "buffer_size >= learning_starts",
            "total_timesteps >= learning_starts + 2 * num_envs",
            "epsilon > 0",
            "epsilon_policy > 0",
            "epsilon_mean > 0",
            "epsilon_std > 0",
            "init_temperature > 0",
            "init_alpha > 0",
        )


class Duals(NamedTuple):
    log_temperature: jax.Array  # ln η
    log_alpha: jax.Array  # ln α, [1] if actions are discrete, else [2]: means, deviations


class State(NamedTuple):
    key: jax.Array
    params: Any  # θ
    opt_state: optax.OptState
    critic_params: Any  # φ
    critic_opt_state: optax.OptState
    target_params: Any  # the pair θ⁻, φ⁻
    duals: Duals
    duals_opt_state: optax.OptState
    buffer: Transition  # [capacity, ...], actions in units of the bounds
    env: EnvState


def td_error(q_value, reward, next_value, terminated, gamma) -> jax.Array:
    """δ = r + γ (1 - d) V(s') - Q(s, a), for one transition; no gradient through the target."""
    target = reward + gamma * (1 - terminated) * next_value
    return jax.lax.stop_gradient(target) - q_value


def weights(temperature, q_values, log_prior) -> jax.Array:
    """q(a) = π(a) exp(Q(a) / η) / Σ_a π(a) exp(Q(a) / η), of actions [K] with ln π(a); [K]."""
    return jax.nn.softmax(log_prior + q_values / temperature)


def dual(temperature, q_values, log_prior, epsilon) -> jax.Array:
    """g(η) = η ε + η ln Σ_a π(a) exp(Q(a) / η), of actions [K] with ln π(a).

    Its derivative is ε - KL(q ‖ π)."""
    return temperature * (epsilon + jax.nn.logsumexp(log_prior + q_values / temperature))


def multiplier_loss(log_alpha, kl, epsilon) -> jax.Array:
    """α (ε - KL), whose descent raises α while KL > ε; no gradient through KL."""
    return jnp.exp(log_alpha) * (epsilon - jax.lax.stop_gradient(kl))


def decoupled(old, new) -> list:
    """Return what is fitted and bounded separately: the old policy with the new means, and with the
    new standard deviations. Logits are one part."""
    if isinstance(new, Normal):
        return [Normal(new.mean, old.log_std), Normal(old.mean, new.log_std)]
    return [new]


def make(config: Config) -> Algorithm:
    env = map_actions(make_env(config.env_id, config.num_envs), bound_action)
    is_discrete = env.num_actions is not None
    if is_discrete:
        critic = make_network(env, config.hidden_sizes)
        epsilons = jnp.array([config.epsilon_policy])
    else:
        critic = make_q_network(env, config.hidden_sizes)
        epsilons = jnp.array([config.epsilon_mean, config.epsilon_std])
    has_bounds = not is_discrete and is_bounded(env.action_low, env.action_high)
    num_outputs = 0 if is_discrete else 2 * math.prod(env.action_shape)  # 0: one for each action
    actor = with_orthogonal_init(make_network(env, config.hidden_sizes, num_outputs), 0.01)
    optimizer, dual_optimizer = map(optax.adam, (config.learning_rate, config.dual_learning_rate))
    steps_per_update = config.num_envs
    buffer = uniform_buffer(config.buffer_size, steps_per_update, config.batch_size)
    warmup_updates = -(-config.learning_starts // steps_per_update)
    initial_steps = warmup_updates * steps_per_update
    num_updates = (config.total_timesteps - initial_steps) // steps_per_update

    def policy(params, obs):
        output = actor.apply(params, obs)
        if is_discrete:
            return output
        mean, log_std = jnp.split(output, 2, axis=-1)
        mean = jnp.tanh(mean) if has_bounds else mean
        return Normal(mean, jnp.log(config.init_std) + log_std)

    def q_value(critic_params, obs, action):
        if is_discrete:
            return critic.apply(critic_params, obs)[action]
        action = jnp.clip(action, -1, 1) if has_bounds else action
        return critic.apply(critic_params, obs, action)

    q_values = jax.vmap(q_value, (None, None, 0))  # of actions [K]

    def expectation(key, distribution):
        """Return actions [K, ...] and ln π [K] for E_a~π: all actions, or samples of one weight."""
        if is_discrete:
            return jnp.arange(env.num_actions), jax.nn.log_softmax(distribution)
        mean = jnp.broadcast_to(distribution.mean, (config.num_samples, *env.action_shape))
        actions = sample(key, Normal(mean, distribution.log_std))
        return actions, jnp.full(config.num_samples, -math.log(config.num_samples))

    def critic_loss(critic_params, target_params, batch, keys):
        old_params, old_critic_params = target_params

        def error(transition, key):
            q = q_value(critic_params, transition.obs, transition.action)
            actions, log_prior = expectation(key, policy(old_params, transition.next_obs))
            next_q_values = q_values(old_critic_params, transition.next_obs, actions)
            next_value = jnp.sum(jnp.exp(log_prior) * next_q_values)
            reward, terminated = transition.reward, transition.terminated
            return td_error(q, reward, next_value, terminated, config.gamma)

        return jnp.mean(jnp.square(jax.vmap(error)(batch, keys)))

    def improvement_loss(params, duals, target_params, batch, keys):
        old_params, old_critic_params = target_params
        temperature, alpha = jax.tree.map(jnp.exp, duals)

        def loss(obs, key):
            old, new = policy(old_params, obs), policy(params, obs)
            actions, log_prior = expectation(key, old)
            q = q_values(old_critic_params, obs, actions)
            weight = jax.lax.stop_gradient(weights(temperature, q, log_prior))
            parts = decoupled(old, new)
            kl = jnp.stack([kl_divergence(old, part) for part in parts])
            total = -jnp.sum(weight * sum(log_probability(part, actions) for part in parts))
            total += dual(temperature, q, log_prior, config.epsilon)
            total += jnp.sum(jax.lax.stop_gradient(alpha) * kl)
            total += jnp.sum(multiplier_loss(duals.log_alpha, kl, epsilons))
            return total, {"kl": kl_divergence(old, new), "entropy": entropy(new)}

        total, metrics = jax.vmap(loss)(batch.obs, keys)
        return total.mean(), {name: x.mean() for name, x in metrics.items()}

    def init(key):
        key, key_actor, key_critic, key_env, key_warmup = jax.random.split(key, 5)
        params, critic_params = actor.init(key_actor), critic.init(key_critic)
        duals = Duals(
            log_temperature=jnp.log(jnp.asarray(config.init_temperature, float)),
            log_alpha=jnp.zeros(len(epsilons)) + jnp.log(config.init_alpha),
        )
        env_state, transitions, _ = rollout(
            env, random_policy(env), env.reset(key_env), key_warmup, warmup_updates
        )
        return State(
            key=key,
            params=params,
            opt_state=optimizer.init(params),
            critic_params=critic_params,
            critic_opt_state=optimizer.init(critic_params),
            target_params=jax.tree.map(jnp.copy, (params, critic_params)),
            duals=duals,
            duals_opt_state=dual_optimizer.init(duals),
            buffer=buffer.init(transitions),
            env=env_state,
        )

    def update(state, step):
        keys = jax.random.split(jax.random.fold_in(state.key, step), 3)
        key_rollout, key_sample, key_actions = keys
        keys_next, keys_actions = jax.random.split(key_actions, (2, config.batch_size))

        def behaviour_policy(obs, key):
            return sample(key, policy(state.params, obs))

        env_state, transitions, episodes = rollout(env, behaviour_policy, state.env, key_rollout, 1)
        buffer_state = buffer.add(state.buffer, transitions, warmup_updates + step)
        batch = buffer.sample(buffer_state, key_sample, warmup_updates + step + 1)

        loss_value, grads = jax.value_and_grad(critic_loss)(
            state.critic_params, state.target_params, batch, keys_next
        )
        updates, critic_opt_state = optimizer.update(grads, state.critic_opt_state)
        critic_params = optax.apply_updates(state.critic_params, updates)

        (grads, dual_grads), metrics = jax.grad(improvement_loss, (0, 1), has_aux=True)(
            state.params, state.duals, state.target_params, batch, keys_actions
        )
        updates, opt_state = optimizer.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)
        updates, duals_opt_state = dual_optimizer.update(dual_grads, state.duals_opt_state)
        duals = optax.apply_updates(state.duals, updates)

        is_copy_step = (step + 1) % config.target_network_frequency == 0
        target_params = jax.tree.map(
            lambda new, old: jnp.where(is_copy_step, new, old),
            (params, critic_params),
            state.target_params,
        )
        of_each = jax.vmap(jax.vmap(q_value, (None, 0, 0)), (None, 0, 0))  # [1, N]
        value = of_each(state.critic_params, transitions.obs, transitions.action).mean()
        metrics |= episodes | {"value": value, "loss": loss_value}
        metrics |= {"temperature": jnp.exp(state.duals.log_temperature)}
        return State(
            key=state.key,
            params=params,
            opt_state=opt_state,
            critic_params=critic_params,
            critic_opt_state=critic_opt_state,
            target_params=target_params,
            duals=duals,
            duals_opt_state=duals_opt_state,
            buffer=buffer_state,
            env=env_state,
        ), metrics

    def act(params, obs, key, choose=mode):
        return bound_action(env, choose(policy(params, obs)))

    return Algorithm(init, update, act, num_updates, steps_per_update, initial_steps)


if __name__ == "__main__":
    main(Config, make)
