"""Analytic policy gradient (APG): back-propagation through the environment.

Freeman et al. 2021, Brax, a differentiable physics engine, https://arxiv.org/abs/2106.13281

    L(θ) = -1/H E[Σ_t γ^k r(s_t, a_t)],   s_t+1 = f(s_t, a_t)
    a_t = tanh(m(s_t; θ) + σ ε_t),   ε_t ~ N(0, 1)

for t in a window of H steps, the k-th since it or the episode began. dL/dθ is the gradient of the
return itself, in reverse mode through the steps f of the environment; it needs no critic and no
likelihood. A window begins in the last state of the one before, a constant: no gradient passes from
window to window, nor through a reset. What follows a window counts for nothing, so a short one is
myopic; along a long one ∂s_t+H/∂s_t may grow like |∂s'/∂s|^H.

Departs from Brax's code: rewards are discounted; σ is the same for all observations; there is no
layer normalization; all gradients together are clipped, not each for itself; the learning rate
falls linearly; episodes begin at the same time. Adam has Brax's β. With norm_obs a window sees
observations scaled by the statistics of all windows before it, the first one's unscaled.

Metrics: `value`, mean Σ_t γ^k r_t of a window (discounted return); `grad_norm`, global norm of
dL/dθ before it is clipped; `lost`, part of the actions through which no gradient passes, because
tanh is flat, a bound clips, or the window ends before they matter; `std`, mean σ, in units of the
argument of tanh.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.distributions import make_policy, with_orthogonal_init
from common.environments.differentiable import make_differentiable_env
from common.envs import EnvState, episode_metrics, map_actions, scale_action
from common.networks import make_network
from common.normalization import Statistics, add_batch, no_obs_statistics, normalize
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "Pendulum-v1"  # any environment whose rewards have gradients
    total_timesteps: int = 400_000  # environment steps, over all environments
    num_envs: int = 16  # environments stepped in parallel
    num_steps: int = 32  # H: steps of each environment in a window
    learning_rate: float = 5e-3  # of Adam
    anneal_lr: bool = True  # the learning rate falls linearly to 0
    gamma: float = 0.99  # discount factor
    max_grad_norm: float = 1.0  # global norm that gradients are clipped to
    norm_obs: bool = True  # scale observations to mean 0 and standard deviation 1
    init_std: float = 0.3  # initial σ
    squash: bool = True  # actions, in units of their bounds, are tanh(x), or x clipped
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of each hidden layer; none: a linear policy

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
    """γ^k of each step, the k-th since the window or the episode began, [T]."""

    def step(discount, done):
        return jnp.where(done, 1, gamma * discount), discount

    return jax.lax.scan(step, jnp.ones(()), done)[1]


def window_return(reward, terminated, truncated, gamma) -> jax.Array:
    """Σ_t γ^k r_t of one window [T]."""
    return jnp.sum(discounts(terminated | truncated, gamma) * reward)


def make(config: Config) -> Algorithm:
    env = make_differentiable_env(config.env_id, config.num_envs, through="reward")
    env = map_actions(env, scale_action)
    no_obs = no_obs_statistics(env, config.norm_obs)
    actor = make_network(env, config.hidden_sizes, activation=jax.nn.elu)
    actor = make_policy(env, with_orthogonal_init(actor, 0.01), config.init_std)
    steps_per_update = config.num_envs * config.num_steps
    num_updates = config.total_timesteps // steps_per_update

    def optimizer(step):
        learning_rate = config.learning_rate * (1 - config.anneal_lr * step / num_updates)
        clip = optax.clip_by_global_norm(config.max_grad_norm)
        return optax.chain(clip, optax.adam(learning_rate, b1=0.7, b2=0.95))

    def policy(params, obs, noise):
        mean, log_std = actor.apply(params.actor, normalize(params.statistics, obs))
        x = mean + jnp.exp(log_std) * noise
        return jnp.tanh(x) if config.squash else jnp.clip(x, -1, 1)

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
            returns = jax.vmap(window_return, (1, 1, 1, None))(
                transitions.reward, transitions.terminated, transitions.truncated, config.gamma
            )
            metrics = episode_metrics(episode) | {"value": returns.mean()}
            return -returns.mean() / config.num_steps, (env_state, transitions, metrics)

        grads, (env_state, transitions, metrics) = jax.grad(loss, (0, 1), has_aux=True)(
            params.actor, noise
        )
        actor_grads, noise_grads = grads
        updates, opt_state = optimizer(step).update(actor_grads, state.opt_state)
        actor_params = optax.apply_updates(params.actor, updates)
        metrics |= {
            "grad_norm": optax.tree_utils.tree_norm(actor_grads),
            "lost": jnp.mean(noise_grads == 0, dtype=noise.dtype),
            "std": jnp.exp(params.actor[1]).mean(),
        }
        statistics = add_batch(params.statistics, transitions.obs)
        return State(
            key=state.key,
            params=Params(actor_params, statistics),
            opt_state=opt_state,
            env=env_state,
        ), metrics

    def act(params, obs, key):
        return scale_action(env, policy(params, obs, 0.0))

    return Algorithm(init, update, act, num_updates, steps_per_update)


if __name__ == "__main__":
    main(Config, make)
