"""Soft Actor-Critic (SAC).

Differs from ddpg.py in two critics, whose smaller value is the target; in a stochastic policy, a
squashed Gaussian, which explores by itself and needs no target network; and in the policy's
entropy, which is added to the reward at a temperature α that is learned.

Haarnoja et al. 2018, Soft actor-critic algorithms and applications,
https://arxiv.org/abs/1812.05905

    L(φᵢ) = E[(r + γ (1 - d) (min_j Q(s', a'; φⱼ⁻) - α ln π(a' | s'; θ)) - Q(s, a; φᵢ))²]     (5)
    L(θ)  = E[α ln π(a | s; θ) - min_i Q(s, a; φᵢ)], a = tanh(m(s; θ) + σ(s; θ) ε)            (9)
    L(α)  = E[-α (ln π(a | s; θ) + H)]                                                       (18)

with d = 1 where the MDP terminated; a time limit does not end the MDP. Actions are in [-1, 1] and
rescaled to the environment's bounds in env.step. H = -dim(A) is the target entropy.

Departs from the paper: the noise ε of successive actions is correlated if `noise_correlation` is
more than 0 (Eberhard et al. 2023, https://openreview.net/forum?id=hQ9V5QN27eS); several
environments in parallel; `init` takes the random steps that fill the replay memory.

Metrics: `value`, mean of both Q(s, a) of the actions taken (discounted return with entropy);
`loss`, squared TD errors of both critics, added, mean over the batch (return²); `temperature`, α
(reward per nat); `entropy`, mean of -ln π of actions in [-1, 1] (nats).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.scipy.stats import norm

from common.algorithm import Algorithm, require
from common.buffers import uniform_buffer
from common.distributions import Normal, mode
from common.envs import EnvState, Transition, make_env, map_actions, rollout, scale_action
from common.exploration import random_policy
from common.networks import ensemble, make_network, make_q_network
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "Pendulum-v1"  # any environment with continuous actions
    total_timesteps: int = 20_000  # environment steps, over all environments
    num_envs: int = 4  # environments stepped in parallel, once per gradient step
    learning_rate: float = 1e-3  # of Adam, for all networks
    gamma: float = 0.98  # discount factor
    buffer_size: int = 20_000  # transitions, rounded up to whole updates
    batch_size: int = 128  # transitions
    learning_starts: int = 1_000  # random environment steps first, rounded up to whole updates
    tau: float = 0.02  # φ⁻ ← τ φ + (1 - τ) φ⁻ after each gradient step
    alpha: float = 0.1  # initial temperature; ln α changes by at most `learning_rate` an update
    noise_correlation: float = 0.0  # of ε with that of the last action; 0: independent
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of each hidden layer, in all networks

    def __post_init__(self):
        require(
            self,
            "buffer_size >= learning_starts",
            "total_timesteps >= learning_starts + 2 * num_envs",
            "alpha > 0",
            "0 <= noise_correlation < 1",
        )


class State(NamedTuple):
    key: jax.Array
    params: Any  # θ
    opt_state: optax.OptState
    critic_params: Any  # φ, [2, ...]
    critic_opt_state: optax.OptState
    target_params: Any  # φ⁻, [2, ...]
    log_alpha: jax.Array
    alpha_opt_state: optax.OptState
    buffer: Transition  # [capacity, ...], actions in [-1, 1]
    env: EnvState
    noise: jax.Array  # [N, A], ε of the last action


def td_error(q_value, reward, next_value, terminated, gamma) -> jax.Array:
    """δ = r + γ (1 - d) V(s') - Q(s, a), for one transition; no gradient through the target."""
    target = reward + gamma * (1 - terminated) * next_value
    return jax.lax.stop_gradient(target) - q_value


def policy_loss(q_value, log_prob, alpha) -> jax.Array:
    """α ln π(a | s; θ) - Q(s, a), for one observation."""
    return alpha * log_prob - q_value


def temperature_loss(log_alpha, log_prob, target_entropy) -> jax.Array:
    """-α (ln π(a | s) + H)."""
    return -jnp.exp(log_alpha) * (log_prob + target_entropy)


def squashed_log_prob(x, noise, log_std) -> jax.Array:
    """ln π(tanh x) = Σ [ln N(ε; 0, 1) - ln σ - ln(1 - tanh² x)], x = m + σ ε [..., A]  (appendix C)

    with ln(1 - tanh² x) = 2 (ln 2 - x - softplus(-2x)), which is exact for any x. ε is an argument
    because (x - m) / σ has few digits where σ is small."""
    log_slope = 2 * (jnp.log(2) - x - jax.nn.softplus(-2 * x))
    return jnp.sum(norm.logpdf(noise) - log_std - log_slope, axis=-1)


def correlated_noise(key, noise, correlation) -> jax.Array:
    """ε ← c ε + √(1 - c²) η, η ~ N(0, 1), of the shape of `noise`; ε stays N(0, 1)."""
    innovation = jax.random.normal(key, noise.shape)
    return correlation * noise + jnp.sqrt(1 - correlation**2) * innovation


def make(config: Config) -> Algorithm:
    env = map_actions(make_env(config.env_id, config.num_envs, actions="continuous"), scale_action)
    (num_actions,) = env.action_shape
    actor = make_network(env, config.hidden_sizes, 2 * num_actions)
    critics = ensemble(make_q_network(env, config.hidden_sizes), 2)
    optimizer = optax.adam(config.learning_rate)
    steps_per_update = config.num_envs
    buffer = uniform_buffer(config.buffer_size, steps_per_update, config.batch_size)
    warmup_updates = -(-config.learning_starts // steps_per_update)
    initial_steps = warmup_updates * steps_per_update
    num_updates = (config.total_timesteps - initial_steps) // steps_per_update

    def gaussian(params, obs):
        mean, log_std = jnp.split(actor.apply(params, obs), 2, axis=-1)
        return mean, jnp.clip(log_std, -20, 2)

    def policy(params, obs, noise):
        mean, log_std = gaussian(params, obs)
        x = mean + jnp.exp(log_std) * noise
        return jnp.tanh(x), squashed_log_prob(x, noise, log_std)

    def critic_loss(critic_params, target_params, params, alpha, batch, noise):
        def error(transition, noise):
            q_value = critics.apply(critic_params, transition.obs, transition.action)  # [2]
            next_action, next_log_prob = policy(params, transition.next_obs, noise)
            next_q_value = critics.apply(target_params, transition.next_obs, next_action)
            next_value = jnp.min(next_q_value) - alpha * next_log_prob
            reward, terminated = transition.reward, transition.terminated
            return td_error(q_value, reward, next_value, terminated, config.gamma)

        return jnp.mean(jnp.square(jax.vmap(error)(batch, noise)).sum(-1))

    def actor_loss(params, critic_params, alpha, batch, noise):
        def loss(obs, noise):
            action, log_prob = policy(params, obs, noise)
            q_value = jnp.min(critics.apply(critic_params, obs, action))
            return policy_loss(q_value, log_prob, alpha), log_prob

        losses, log_prob = jax.vmap(loss)(batch.obs, noise)
        return jnp.mean(losses), jnp.mean(log_prob)

    def init(key):
        key, key_actor, key_critic, key_env, key_warmup, key_noise = jax.random.split(key, 6)
        params, critic_params = actor.init(key_actor), critics.init(key_critic)
        log_alpha = jnp.log(jnp.asarray(config.alpha, float))
        env_state, transitions, _ = rollout(
            env, random_policy(env), env.reset(key_env), key_warmup, warmup_updates
        )
        return State(
            key=key,
            params=params,
            opt_state=optimizer.init(params),
            critic_params=critic_params,
            critic_opt_state=optimizer.init(critic_params),
            target_params=jax.tree.map(jnp.copy, critic_params),
            log_alpha=log_alpha,
            alpha_opt_state=optimizer.init(log_alpha),
            buffer=buffer.init(transitions),
            env=env_state,
            noise=jax.random.normal(key_noise, (config.num_envs, num_actions)),
        )

    def update(state, step):
        keys = jax.random.split(jax.random.fold_in(state.key, step), 4)
        key_noise, key_rollout, key_sample, key_policy = keys
        noise = correlated_noise(key_noise, state.noise, config.noise_correlation)

        def behaviour_policy(obs, key):
            return policy(state.params, obs, noise)[0]

        env_state, transitions, episodes = rollout(env, behaviour_policy, state.env, key_rollout, 1)
        buffer_state = buffer.add(state.buffer, transitions, warmup_updates + step)
        batch = buffer.sample(buffer_state, key_sample, warmup_updates + step + 1)
        policy_noise, next_noise = jax.random.normal(key_policy, (2, *batch.action.shape))
        alpha = jnp.exp(state.log_alpha)

        loss_value, grads = jax.value_and_grad(critic_loss)(
            state.critic_params, state.target_params, state.params, alpha, batch, next_noise
        )
        updates, critic_opt_state = optimizer.update(grads, state.critic_opt_state)
        critic_params = optax.apply_updates(state.critic_params, updates)

        grads, log_prob = jax.grad(actor_loss, has_aux=True)(
            state.params, critic_params, alpha, batch, policy_noise
        )
        updates, opt_state = optimizer.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)

        grads = jax.grad(temperature_loss)(state.log_alpha, log_prob, -num_actions)
        updates, alpha_opt_state = optimizer.update(grads, state.alpha_opt_state)
        log_alpha = optax.apply_updates(state.log_alpha, updates)

        target_params = optax.incremental_update(critic_params, state.target_params, config.tau)
        value = critics.apply(state.critic_params, transitions.obs, transitions.action).mean()
        metrics = episodes | {"value": value, "loss": loss_value}
        metrics |= {"temperature": alpha, "entropy": -log_prob}
        return State(
            key=state.key,
            params=params,
            opt_state=opt_state,
            critic_params=critic_params,
            critic_opt_state=critic_opt_state,
            target_params=target_params,
            log_alpha=log_alpha,
            alpha_opt_state=alpha_opt_state,
            buffer=buffer_state,
            env=env_state,
            noise=noise,
        ), metrics

    def act(params, obs, key, choose=mode):
        x = choose(Normal(*gaussian(params, obs)))
        return scale_action(env, jnp.tanh(x))

    return Algorithm(init, update, act, num_updates, steps_per_update, initial_steps)


if __name__ == "__main__":
    main(Config, make)
