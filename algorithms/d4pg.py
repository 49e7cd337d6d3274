"""Distributed Distributional Deep Deterministic Policy Gradient (D4PG).

Differs from ddpg.py in the critic, which learns the distribution of the return Z(s, a; φ) on fixed
atoms as c51.py does, and in its target, which sums n rewards before it bootstraps as n_step_dqn.py
does.

Barth-Maron et al. 2018, Distributed distributional deterministic policy gradients,
https://arxiv.org/abs/1804.08617

    R = Σ_{i<n} γⁱ r_{t+i}                                                     (section 3)
    T zⱼ = clip(R + γⁿ (1 - d) zⱼ, Vmin, Vmax)                                 (appendix A)
    mᵢ = Σⱼ max(0, 1 - |T zⱼ - zᵢ| / Δz) pⱼ(s_{t+n}, μ(s_{t+n}; θ⁻); φ⁻)       (appendix A)
    L(φ) = E[-Σᵢ mᵢ log pᵢ(s_t, a_t; φ)]                                       (appendix A)
    ∇J(θ) = E[∇_a Σᵢ zᵢ pᵢ(s, a; φ) ∇_θ μ(s; θ)], at a = μ(s; θ)               (section 3)

with d = 1 where the MDP terminated; a time limit does not end the MDP. Both end the sum as in
n_step_dqn.py. Actions are in [-1, 1] and rescaled to the environment's bounds in env.step. Returns
outside [Vmin, Vmax] are clipped, so the interval must contain them, or all mass ends on one atom
and the actor has no gradient: Pendulum's rewards are at least -16.3, so its returns are at least
-16.3 / (1 - γ).

Departs from the paper: one process acts and learns; replay is uniform, because priorities mattered
least of the parts that the paper leaves out in turn; both target networks move a little at every
gradient step; the noise of successive actions is independent unless `ou_theta` is less than 1; one
learning rate; the action enters the critic's first layer; no layer normalisation. Weights start
orthogonal, in the last layers near 0: atoms are far apart, so the slopes of a critic that starts
at random would drive the actor to its bounds. `init` takes the random steps that fill the replay
memory.

Metrics: `value`, mean Σᵢ zᵢ pᵢ(s, a) of the actions taken (discounted return); `loss`, mean
cross-entropy of the batch (nats).
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.buffers import uniform_buffer
from common.distributions import with_orthogonal_init
from common.envs import Env, EnvState, Transition, make_env, map_actions, rollout, scale_action
from common.exploration import random_policy
from common.networks import Network, as_vector, make_network, mlp
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "Pendulum-v1"  # any environment with continuous actions
    total_timesteps: int = 20_000  # environment steps, over all environments
    num_envs: int = 2  # environments stepped in parallel, once per gradient step
    learning_rate: float = 1e-3  # of Adam, for all networks
    gamma: float = 0.98  # discount factor
    n_step: int = 3  # rewards before the bootstrap, n
    buffer_size: int = 20_000  # transitions, rounded up to whole updates
    batch_size: int = 128  # transitions
    learning_starts: int = 1_000  # random environment steps first, rounded up to whole updates
    tau: float = 0.02  # θ⁻ ← τ θ + (1 - τ) θ⁻ after each gradient step, and φ⁻ likewise
    num_atoms: int = 51  # returns that have a probability, evenly spaced
    v_min: float = -850.0  # the smallest of them: below -16.3 / (1 - gamma) for Pendulum
    v_max: float = 0.0  # the largest: 0 for Pendulum
    exploration_noise: float = 0.6  # σ; noise on actions in [-1, 1] has std σ / √(1 - (1 - θ)²)
    ou_theta: float = 1.0  # θ of Ornstein-Uhlenbeck noise; 1: independent noise with std σ
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of each hidden layer, in all networks

    def __post_init__(self):
        require(
            self,
            "num_atoms >= 2",
            "v_min < v_max",
            "buffer_size >= learning_starts",
            "total_timesteps >= learning_starts + num_envs * (n_step + 2)",
            "0 < ou_theta <= 1",
        )


class NStep(NamedTuple):
    """n transitions as one, or k < n where the episode ended after k."""

    obs: jax.Array
    action: jax.Array
    reward: jax.Array  # Σ_{i<k} γⁱ r_{t+i}
    next_obs: jax.Array  # after k steps, before any reset
    terminated: jax.Array  # bool: the MDP ended at step k
    discount: jax.Array  # γᵏ


class State(NamedTuple):
    key: jax.Array
    params: Any  # θ
    opt_state: optax.OptState
    critic_params: Any  # φ
    critic_opt_state: optax.OptState
    target_params: Any  # the pair θ⁻, φ⁻
    buffer: NStep  # [capacity, ...], actions in [-1, 1]
    pending: Transition  # [n - 1, N, ...] the latest steps, whose n-step transitions are to come
    env: EnvState
    noise: jax.Array  # [N, A] of the last action, 0 at the start of an episode


def make_categorical_q_network(env: Env, hidden_sizes: tuple[int, ...], num_atoms: int) -> Network:
    """Return the logits of K atoms of Z(s, a), an MLP over the observation and the action, [K]."""
    num_inputs = env.num_states or math.prod(env.obs_shape)
    num_inputs += math.prod(env.action_shape)
    network = mlp([num_inputs, *hidden_sizes, num_atoms])

    def apply(params, obs, action):
        return network.apply(params, jnp.concatenate([as_vector(env, obs), action], axis=-1))

    return Network(network.init, apply)


def n_step(window: Transition, gamma: float) -> NStep:
    """Return the n-step transition that starts a window [n, ...] of one environment's steps."""

    def step(i):
        return jax.tree.map(lambda x: x[i], window)

    end = step(0)  # the last step that counts
    reward, discount = end.reward, jnp.full_like(end.reward, gamma)
    for i in range(1, len(window.reward)):
        continues = ~(end.terminated | end.truncated)
        reward += jnp.where(continues, discount * window.reward[i], 0)
        discount *= jnp.where(continues, gamma, 1)
        end = jax.tree.map(partial(jnp.where, continues), step(i), end)
    return NStep(window.obs[0], window.action[0], reward, end.next_obs, end.terminated, discount)


def expected_return(probabilities, support) -> jax.Array:
    """Q(s, a) = Σᵢ zᵢ pᵢ(s, a), from p [..., A, K] and z [K]; [..., A]."""
    return jnp.matmul(probabilities, support, precision="highest")  # not in a GPU's TF32


def project(support, reward, discount, probabilities) -> jax.Array:
    """mᵢ = Σⱼ max(0, 1 - |T zⱼ - zᵢ| / Δz) pⱼ, T zⱼ = clip(r + discount zⱼ, Vmin, Vmax), for one
    transition, from the atoms z [K] of `support` and the probabilities p [K] on them; [K]."""
    last = len(support) - 1
    spacing = (support[last] - support[0]) / last
    position = jnp.clip((reward + discount * support - support[0]) / spacing, 0, last)
    distance = jnp.abs(position - jnp.arange(len(support))[:, None])  # [i, j], in units of Δz
    return jnp.matmul(jnp.maximum(0, 1 - distance), probabilities, precision="highest")


def cross_entropy(target, logits) -> jax.Array:
    """-Σᵢ mᵢ log pᵢ, from the target m [K] and the logits of p [K]; no gradient through m."""
    log_probabilities = jax.nn.log_softmax(logits)
    return -jnp.matmul(jax.lax.stop_gradient(target), log_probabilities, precision="highest")


def policy_loss(q_value) -> jax.Array:
    """-Q(s, μ(s; θ); φ), for one observation; its gradient in θ is -∇J(θ)."""
    return -q_value


def ornstein_uhlenbeck(key, noise, theta, sigma) -> jax.Array:
    """x ← (1 - θ) x + σ ε, ε ~ N(0, 1), of the shape of `noise`; independent of x if θ = 1.

    Its standard deviation rises from σ to σ / √(1 - (1 - θ)²) in steps 1, 2, ... of an episode."""
    return (1 - theta) * noise + sigma * jax.random.normal(key, noise.shape)


def make(config: Config) -> Algorithm:
    env = map_actions(make_env(config.env_id, config.num_envs, actions="continuous"), scale_action)
    (num_actions,) = env.action_shape
    actor = with_orthogonal_init(make_network(env, config.hidden_sizes, num_actions), 0.01)
    critic = make_categorical_q_network(env, config.hidden_sizes, config.num_atoms)
    critic = with_orthogonal_init(critic, 0.01)
    support = jnp.linspace(config.v_min, config.v_max, config.num_atoms)
    optimizer = optax.adam(config.learning_rate)
    steps_per_update = config.num_envs
    buffer = uniform_buffer(config.buffer_size, steps_per_update, config.batch_size)
    warmup_updates = -(-config.learning_starts // steps_per_update)
    warmup_steps = warmup_updates + config.n_step - 1  # of each environment
    initial_steps = warmup_steps * config.num_envs
    num_updates = (config.total_timesteps - initial_steps) // steps_per_update

    def policy(params, obs):
        return jnp.tanh(actor.apply(params, obs))

    def q(critic_params, obs, action):
        probabilities = jax.nn.softmax(critic.apply(critic_params, obs, action))
        return expected_return(probabilities, support)

    def n_step_transitions(stream):
        """Transitions [T + n - 1, N, ...] -> NStep [T, N, ...]."""
        num = len(stream.reward) - config.n_step + 1
        windows = jax.tree.map(
            lambda x: jnp.stack([x[i : i + num] for i in range(config.n_step)], axis=2), stream
        )
        return jax.vmap(jax.vmap(n_step, (0, None)), (0, None))(windows, config.gamma)

    def critic_loss(critic_params, target_params, batch):
        target_actor_params, target_critic_params = target_params

        def transition_loss(transition):
            logits = critic.apply(critic_params, transition.obs, transition.action)
            next_action = policy(target_actor_params, transition.next_obs)
            next_logits = critic.apply(target_critic_params, transition.next_obs, next_action)
            reward, discount = transition.reward, transition.discount * (1 - transition.terminated)
            # Not in one kernel with the projection, which takes XLA minutes to compile for a GPU.
            next_probabilities = jax.lax.optimization_barrier(jax.nn.softmax(next_logits))
            target = project(support, reward, discount, next_probabilities)
            return cross_entropy(target, logits)

        return jnp.mean(jax.vmap(transition_loss)(batch))

    def actor_loss(params, critic_params, batch):
        def loss(obs):
            action = policy(params, obs)
            return policy_loss(q(critic_params, obs, action))

        return jnp.mean(jax.vmap(loss)(batch.obs))

    def init(key):
        key, key_actor, key_critic, key_env, key_warmup = jax.random.split(key, 5)
        params, critic_params = actor.init(key_actor), critic.init(key_critic)
        env_state, transitions, _ = rollout(
            env, random_policy(env), env.reset(key_env), key_warmup, warmup_steps
        )
        return State(
            key=key,
            params=params,
            opt_state=optimizer.init(params),
            critic_params=critic_params,
            critic_opt_state=optimizer.init(critic_params),
            target_params=jax.tree.map(jnp.copy, (params, critic_params)),
            buffer=buffer.init(n_step_transitions(transitions)),
            pending=jax.tree.map(lambda x: x[warmup_updates:], transitions),
            env=env_state,
            noise=jnp.zeros((config.num_envs, num_actions)),
        )

    def update(state, step):
        keys = jax.random.split(jax.random.fold_in(state.key, step), 3)
        key_noise, key_rollout, key_sample = keys
        noise = ornstein_uhlenbeck(
            key_noise, state.noise, config.ou_theta, config.exploration_noise
        )

        def behaviour_policy(obs, key):
            return jnp.clip(policy(state.params, obs) + noise, -1, 1)

        env_state, transitions, episodes = rollout(env, behaviour_policy, state.env, key_rollout, 1)
        done = (transitions.terminated | transitions.truncated)[0]
        stream = jax.tree.map(lambda *x: jnp.concatenate(x), state.pending, transitions)
        buffer_state = buffer.add(state.buffer, n_step_transitions(stream), warmup_updates + step)
        batch = buffer.sample(buffer_state, key_sample, warmup_updates + step + 1)

        loss_value, grads = jax.value_and_grad(critic_loss)(
            state.critic_params, state.target_params, batch
        )
        updates, critic_opt_state = optimizer.update(grads, state.critic_opt_state)
        critic_params = optax.apply_updates(state.critic_params, updates)

        grads = jax.grad(actor_loss)(state.params, critic_params, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state)
        params = optax.apply_updates(state.params, updates)

        target_params = optax.incremental_update(
            (params, critic_params), state.target_params, config.tau
        )
        value = q(state.critic_params, transitions.obs, transitions.action).mean()
        metrics = episodes | {"value": value, "loss": loss_value}
        return State(
            key=state.key,
            params=params,
            opt_state=opt_state,
            critic_params=critic_params,
            critic_opt_state=critic_opt_state,
            target_params=target_params,
            buffer=buffer_state,
            pending=jax.tree.map(lambda x: x[1:], stream),
            env=env_state,
            noise=jnp.where(done[:, None], 0, noise),
        ), metrics

    def act(params, obs, key):
        return scale_action(env, policy(params, obs))

    return Algorithm(init, update, act, num_updates, steps_per_update, initial_steps)


if __name__ == "__main__":
    main(Config, make)
