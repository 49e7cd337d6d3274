"""Short-horizon actor-critic (SHAC).

Differs from apg.py in a critic: a window ends in the value of its last state, so that it may be
short and yet not myopic. The critic learns from the same windows by TD(λ).

Xu et al. 2022, Accelerated policy learning with parallel differentiable simulation,
https://arxiv.org/abs/2204.07137

    L(θ) = -1/H E[Σ_t γ^k r(s_t, a_t) + γ^K V(s_K; φ')],   s_t+1 = f(s_t, a_t)        (eq. 5)
    a_t = tanh(m(s_t; θ) + σ ε_t),   ε_t ~ N(0, 1)
    L(φ) = E[(V(s; φ) - Ṽ(s))²],   Ṽ = V(s; φ') + Σ_k (γ λ)^k δ_t+k

for t in a window of H steps, the k-th since it or the episode began; s_K is the last state of the
window, or that of an episode in it, before the reset; V is 0 there if the MDP terminated, not if a
time limit cut. δ = r + γ (1 - d) V(s'; φ') - V(s; φ'), and Ṽ sums them up to s_K. A window begins
in the last state of the one before, a constant: no gradient passes from window to window, nor
through a reset. After each of them φ' ← τ φ + (1 - τ) φ'.

Departs from the paper: smaller networks without layer normalization; fewer passes of the critic
over a window; the critic's learning rate is the actor's. Adam has the β of the authors' code. With
norm_obs a window sees observations scaled by the statistics of all windows before it, the first
one's unscaled.

Metrics: `value`, mean of the target network's V in a window (discounted return); `value_loss`, mean
L(φ) over all minibatches (return²); `grad_norm`, global norm of dL/dθ before it is clipped; `lost`,
part of the actions through which no gradient passes, because tanh is flat or a bound clips; `std`,
mean σ, in units of the argument of tanh.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.buffers import rows
from common.distributions import make_policy, with_orthogonal_init
from common.environments.differentiable import make_differentiable_env
from common.envs import EnvState, episode_metrics, map_actions, scale_action
from common.networks import make_network
from common.normalization import Statistics, add_batch, no_obs_statistics, normalize
from common.returns import gae
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "Pendulum-v1"  # any environment whose observations have gradients
    total_timesteps: int = 400_000  # environment steps, over all environments
    num_envs: int = 32  # environments stepped in parallel
    num_steps: int = 16  # H: steps of each environment in a window
    learning_rate: float = 5e-3  # of Adam, for the actor
    critic_learning_rate: float = 5e-3  # of Adam, for the critic
    anneal_lr: bool = True  # the learning rates fall linearly to 0
    gamma: float = 0.97  # discount factor
    td_lambda: float = 0.95  # λ of TD(λ)
    update_epochs: int = 4  # passes of the critic over a window
    num_minibatches: int = 4  # gradient steps in a pass
    tau: float = 0.8  # φ' ← τ φ + (1 - τ) φ' after each window
    max_grad_norm: float = 1.0  # global norm that gradients are clipped to
    norm_obs: bool = True  # scale observations to mean 0 and standard deviation 1
    init_std: float = 0.3  # initial σ
    squash: bool = True  # actions, in units of their bounds, are tanh(x), or x clipped
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of each hidden layer; none: a linear policy
    critic_hidden_sizes: tuple[int, ...] = (64, 64)  # units of each hidden layer of the critic

    def __post_init__(self):
        require(
            self,
            "total_timesteps >= num_envs * num_steps",
            "update_epochs >= 1",
            "num_envs * num_steps % num_minibatches == 0",
        )


class Params(NamedTuple):
    actor: Any  # θ
    statistics: Statistics | None  # of observations; None if they are not normalized


class State(NamedTuple):
    key: jax.Array
    params: Params
    opt_state: optax.OptState
    critic_params: Any  # φ
    critic_opt_state: optax.OptState
    target_params: Any  # φ'
    env: EnvState


def discounts(done, gamma) -> jax.Array:
    """γ^k of each step, the k-th since the window or the episode began, [T]."""

    def step(discount, done):
        return jnp.where(done, 1, gamma * discount), discount

    return jax.lax.scan(step, jnp.ones(()), done)[1]


def window_return(reward, next_value, terminated, truncated, gamma) -> jax.Array:
    """Σ_t γ^k [r_t + γ (1 - d) V(s_t+1) where the window or an episode ends] of one window [T]."""
    done = terminated | truncated
    end_value = gamma * (1 - terminated) * next_value * done.at[-1].set(True)
    return jnp.sum(discounts(done, gamma) * (reward + end_value))


def td_error(value, reward, next_value, terminated, gamma) -> jax.Array:
    """δ = r + γ (1 - d) V(s') - V(s), for one transition."""
    return reward + gamma * (1 - terminated) * next_value - value


def value_loss(value, target) -> jax.Array:
    """(V(s; φ) - Ṽ)², for one transition."""
    return jnp.square(value - target)


def make(config: Config) -> Algorithm:
    env = make_differentiable_env(config.env_id, config.num_envs, through="next_obs")
    env = map_actions(env, scale_action)
    no_obs = no_obs_statistics(env, config.norm_obs)
    actor = make_network(env, config.hidden_sizes, activation=jax.nn.elu)
    actor = make_policy(env, with_orthogonal_init(actor, 0.01), config.init_std)
    critic = make_network(env, config.critic_hidden_sizes, 1, jax.nn.elu)
    critic = with_orthogonal_init(critic, 1.0)
    steps_per_update = config.num_envs * config.num_steps
    num_updates = config.total_timesteps // steps_per_update

    def optimizer(learning_rate, step):
        learning_rate *= 1 - config.anneal_lr * step / num_updates
        clip = optax.clip_by_global_norm(config.max_grad_norm)
        return optax.chain(clip, optax.adam(learning_rate, b1=0.7, b2=0.95))

    def policy(params, obs, noise):
        mean, log_std = actor.apply(params.actor, normalize(params.statistics, obs))
        x = mean + jnp.exp(log_std) * noise
        return jnp.tanh(x) if config.squash else jnp.clip(x, -1, 1)

    def values(critic_params, obs):
        return critic.apply(critic_params, obs)[..., 0]

    def critic_loss(critic_params, batch):
        obs, target = batch
        return value_loss(values(critic_params, obs), target).mean()

    def init(key):
        key, key_actor, key_critic, key_env = jax.random.split(key, 4)
        actor_params, critic_params = actor.init(key_actor), critic.init(key_critic)
        return State(
            key=key,
            params=Params(actor_params, no_obs),
            opt_state=optimizer(config.learning_rate, 0).init(actor_params),
            critic_params=critic_params,
            critic_opt_state=optimizer(config.critic_learning_rate, 0).init(critic_params),
            target_params=jax.tree.map(jnp.copy, critic_params),
            env=env.reset(key_env),
        )

    def update(state, step):
        keys = jax.random.split(jax.random.fold_in(state.key, step), 3)
        key_noise, key_env, key_epochs = keys
        params = state.params
        shape = config.num_steps, config.num_envs, *env.action_shape
        noise = jax.random.normal(key_noise, shape)
        env_keys = jax.random.split(key_env, config.num_steps)

        def loss(actor_params, noise):
            def env_step(env_state, inputs):
                noise, key = inputs
                action = policy(Params(actor_params, params.statistics), env_state.obs, noise)
                env_state, transition = env.step(env_state, action, key)
                return env_state, (transition, env_state.episode)

            env_state, (transitions, episode) = jax.lax.scan(env_step, state.env, (noise, env_keys))
            next_value = values(
                state.target_params, normalize(params.statistics, transitions.next_obs)
            )
            returns = jax.vmap(window_return, (1, 1, 1, 1, None))(
                transitions.reward,
                next_value,
                transitions.terminated,
                transitions.truncated,
                config.gamma,
            )
            metrics = episode_metrics(episode)
            return -returns.mean() / config.num_steps, (env_state, transitions, metrics)

        grads, (env_state, transitions, metrics) = jax.grad(loss, (0, 1), has_aux=True)(
            params.actor, noise
        )
        actor_grads, noise_grads = grads
        updates, opt_state = optimizer(config.learning_rate, step).update(
            actor_grads, state.opt_state
        )
        actor_params = optax.apply_updates(params.actor, updates)

        obs = normalize(params.statistics, transitions.obs)
        next_obs = normalize(params.statistics, transitions.next_obs)
        value, next_value = (values(state.target_params, x) for x in (obs, next_obs))
        error = td_error(
            value, transitions.reward, next_value, transitions.terminated, config.gamma
        )
        done = transitions.terminated | transitions.truncated
        advantage = jax.vmap(gae, (1, 1, None, None), 1)(
            error, done, config.gamma, config.td_lambda
        )
        batch = obs, value + advantage
        batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)

        def learn(carry, index):
            critic_params, opt_state = carry
            loss, grads = jax.value_and_grad(critic_loss)(critic_params, rows(batch, index))
            updates, opt_state = optimizer(config.critic_learning_rate, step).update(
                grads, opt_state
            )
            return (optax.apply_updates(critic_params, updates), opt_state), loss

        epoch_keys = jax.random.split(key_epochs, config.update_epochs)
        index = jax.vmap(jax.random.permutation, (0, None))(epoch_keys, steps_per_update)
        index = index.reshape(config.update_epochs * config.num_minibatches, -1)
        (critic_params, critic_opt_state), losses = jax.lax.scan(
            learn, (state.critic_params, state.critic_opt_state), index
        )
        target_params = optax.incremental_update(critic_params, state.target_params, config.tau)
        metrics |= {
            "value": value.mean(),
            "value_loss": losses.mean(),
            "grad_norm": optax.tree_utils.tree_norm(actor_grads),
            "lost": jnp.mean(noise_grads == 0, dtype=noise.dtype),
            "std": jnp.exp(params.actor[1]).mean(),
        }
        statistics = add_batch(params.statistics, transitions.obs)
        return State(
            key=state.key,
            params=Params(actor_params, statistics),
            opt_state=opt_state,
            critic_params=critic_params,
            critic_opt_state=critic_opt_state,
            target_params=target_params,
            env=env_state,
        ), metrics

    def act(params, obs, key):
        return scale_action(env, policy(params, obs, 0.0))

    return Algorithm(init, update, act, num_updates, steps_per_update)


if __name__ == "__main__":
    main(Config, make)
