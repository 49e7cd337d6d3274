"""Analytic policy gradient (APG).

Freeman et al. 2021, Brax, https://arxiv.org/abs/2106.13281 (section on APG); the gradient of the return itself, by
back-propagation through H steps of a differentiable environment s' = f(s, a):

    L(θ) = -1/H E[Σ_t γ^k r(s_t, a_t)], a = tanh(m(s; θ) + σ ε), ε ~ N(0, 1)

TODO
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.distributions import make_policy, with_orthogonal_init
from common.environments.differentiable import make_differentiable_env
from common.envs import EnvState, bound_action, episode_metrics, map_actions
from common.networks import make_network
from common.normalization import Statistics, add_batch, no_obs_statistics, normalize
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "Pendulum-v1"  # an environment whose rewards have gradients
    total_timesteps: int = 400_000  # environment steps, over all environments
    num_envs: int = 64  # environments stepped in parallel
    num_steps: int = 32  # H: steps of each environment in a window
    learning_rate: float = 1e-2  # of Adam
    anneal_lr: bool = True  # the learning rate falls linearly to 0
    gamma: float = 0.99  # discount factor
    max_grad_norm: float = 1.0  # global norm that gradients are clipped to
    norm_obs: bool = True  # scale observations to mean 0 and standard deviation 1
    init_std: float = 0.3  # initial σ
    squash: bool = True  # a = tanh(...); if not, the environment's bounds clip actions
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of each hidden layer

    def __post_init__(self):
        require(self, "total_timesteps >= num_envs * num_steps")


class Params(NamedTuple):
    actor: Any  # θ
    statistics: Statistics | None  # of observations; None if they are not normalized


class State(NamedTuple):
    key: jax.Array
    params: Params
    opt_state: optax.OptState
    env: EnvState


def discounts(done, gamma) -> jax.Array:
    """γ^k, where k counts the steps since the window or the episode began, [T]."""

    def step(discount, done):
        return jnp.where(done, 1, gamma * discount), discount

    return jax.lax.scan(step, jnp.ones(()), done)[1]


def window_return(reward, terminated, truncated, gamma) -> jax.Array:
    """1/H Σ_t γ^k r_t, of one window [T]."""
    return jnp.mean(discounts(terminated | truncated, gamma) * reward)


def make(config: Config) -> Algorithm:
    env = make_differentiable_env(config.env_id, config.num_envs, through="reward")
    env = map_actions(env, bound_action)
    no_obs = no_obs_statistics(env, config.norm_obs)
    actor = make_network(env, config.hidden_sizes, math.prod(env.action_shape), jax.nn.elu)
    actor = make_policy(env, with_orthogonal_init(actor, 0.01), config.init_std)
    steps_per_update = config.num_envs * config.num_steps
    num_updates = config.total_timesteps // steps_per_update

    def optimizer(step):
        learning_rate = config.learning_rate * (1 - config.anneal_lr * step / num_updates)
        clip = optax.clip_by_global_norm(config.max_grad_norm)
        return optax.chain(clip, optax.adam(learning_rate, b1=0.7, b2=0.95))

    def policy(params, obs, noise):
        mean, log_std = actor.apply(params.actor, normalize(params.statistics, obs))
        action = mean + jnp.exp(log_std) * noise
        return jnp.tanh(action) if config.squash else action

    def init(key):
        key, key_actor, key_env = jax.random.split(key, 3)
        actor_params = actor.init(key_actor)
        return State(
            key=key,
            params=Params(actor_params, no_obs),
            opt_state=optimizer(0).init(actor_params),
            env=env.reset(key_env),
        )

    def update(state, step):
        key_noise, key_env = jax.random.split(jax.random.fold_in(state.key, step))
        keys = jax.random.split(key_env, config.num_steps)
        shape = config.num_steps, config.num_envs, *env.action_shape
        noise = jax.random.normal(key_noise, shape)
        params = state.params

        def loss(actor_params, noise):
            def env_step(env_state, inputs):
                noise, key = inputs
                action = policy(params._replace(actor=actor_params), env_state.obs, noise)
                env_state, transition = env.step(env_state, action, key)
                return env_state, (transition, env_state.episode)

            # The first state is a constant: no gradient flows back into the window before.
            env_state, (transitions, episode) = jax.lax.scan(env_step, state.env, (noise, keys))
            returns = jax.vmap(window_return, (1, 1, 1, None))(
                transitions.reward, transitions.terminated, transitions.truncated, config.gamma
            )
            return -returns.mean(), (env_state, transitions, episode_metrics(episode))

        (grads, noise_grads), (env_state, transitions, episodes) = jax.grad(
            loss, (0, 1), has_aux=True
        )(params.actor, noise)
        updates, opt_state = optimizer(step).update(grads, state.opt_state)
        actor_params = optax.apply_updates(params.actor, updates)
        metrics = episodes | {
            "grad_norm": optax.global_norm(grads),
            "lost": jnp.mean(noise_grads == 0, dtype=noise.dtype),
            "std": jnp.exp(actor_params[1]).mean(),
        }
        statistics = add_batch(params.statistics, transitions.obs)
        return State(state.key, Params(actor_params, statistics), opt_state, env_state), metrics

    def act(params, obs, key):
        return bound_action(env, policy(params, obs, 0.0))

    return Algorithm(init, update, act, num_updates, steps_per_update)


if __name__ == "__main__":
    main(Config, make)
