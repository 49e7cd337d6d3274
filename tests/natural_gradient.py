"""What tests of natural_policy_gradient.py and trpo.py share."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from helpers import config_of, float64, gae_by_double_sum, tanh_mlp, with_all_ends
from jax.flatten_util import ravel_pytree

from common.envs import Env, Transition, make_env, rollout

P, REWARD = np.array([0.5, 0.3, 0.2]), np.array([1.0, 0.0, 2.0])  # the bandit
SMALL = {
    "total_timesteps": 600,
    "num_envs": 6,
    "num_steps": 10,
    "hidden_sizes": (4,),
    "update_epochs": 1,
    "num_minibatches": 1,
}


def bandit_update(module, monkeypatch, reward=REWARD, step=0, **fields):
    """An update where the policy has the probabilities P, and a rollout has each action as often as
    they say: the probabilities after it [3], and the metrics."""
    actions = jnp.array([[0, 1, 2, 0, 1, 0, 2, 0, 1, 0]])
    env = Env(reset=lambda key: None, step=None, num_envs=10, num_states=1, num_actions=3)
    obs, ended = jnp.zeros_like(actions), jnp.ones(actions.shape, bool)

    def all_actions(env, policy, state, key, num_steps):
        rewards = jnp.array(reward)[actions]
        return state, Transition(obs, actions, rewards, obs, ended, ~ended), {}

    monkeypatch.setattr(module, "make_env", lambda *_: env)
    monkeypatch.setattr(module, "rollout", all_actions)
    sizes = {"num_envs": 10, "num_steps": 1, "total_timesteps": 10, "hidden_sizes": ()}
    settings = {"norm_adv": False, "cg_damping": 0.0, "update_epochs": 1, "num_minibatches": 1}
    with float64():
        algorithm = module.make(module.Config(**sizes | settings | fields))
        state = algorithm.init(jax.random.key(0))
        actor = [(0 * w, jnp.log(P)) for w, _ in state.params.actor]
        critic = jax.tree.map(jnp.zeros_like, state.critic_params)
        state = state._replace(params=state.params._replace(actor=actor), critic_params=critic)
        state, metrics = jax.jit(algorithm.update)(state, jnp.int32(step))
        ((w, b),) = state.params.actor
        return np.asarray(jax.nn.softmax(w[0] + b)), metrics


class Update(NamedTuple):
    config: Any
    before: Any  # State
    after: Any
    metrics: dict
    transitions: Any  # [T, N, ...], with ends of all kinds


def first_update(module, monkeypatch, env_id, **fields) -> Update:
    """Update 0, in float64, of a rollout whose ends are drawn at random."""
    config = config_of(module, SMALL | {"env_id": env_id}, **fields)
    seen = with_all_ends(monkeypatch, module, config.num_steps, config.num_envs)
    with float64():
        algorithm = module.make(config)
        before = jax.jit(algorithm.init)(jax.random.key(0))
        after, metrics = jax.jit(algorithm.update)(before, jnp.int32(0))
        jax.effects_barrier()
    monkeypatch.setattr(module, "rollout", rollout)
    return Update(config, before, after, metrics, seen[0])


def step_of(update) -> np.ndarray:
    """What the update adds to the policy's parameters, [P]."""
    with float64():
        return np.asarray(flat(update.after.params.actor) - flat(update.before.params.actor))


def flat(tree):
    return ravel_pytree(tree)[0]


def advantages(update) -> tuple[np.ndarray, np.ndarray]:
    """A and V of every transition [T, N], by the double sum over steps without an end between."""
    config, x = update.config, update.transitions
    value, next_value = (
        np.asarray(tanh_mlp(update.before.critic_params, obs)[..., 0])
        for obs in (x.obs, x.next_obs)
    )
    error = x.reward + config.gamma * ~x.terminated * next_value - value
    done, decay = x.terminated | x.truncated, config.gamma * config.gae_lambda
    return gae_by_double_sum(error, done, decay), value


def dense_step(update) -> tuple[np.ndarray, float]:
    """(F + damping I)⁻¹ g and √(2 δ / gᵀ (F + damping I)⁻¹ g), with dense matrices."""
    config, x = update.config, update.transitions
    advantage = advantages(update)[0].ravel()
    advantage = (advantage - advantage.mean()) / advantage.std()
    obs, action = x.obs.reshape(len(advantage), -1), x.action.reshape(len(advantage), -1)
    theta, to_params = ravel_pytree(update.before.params.actor)
    is_discrete = make_env(config.env_id, 1).num_actions is not None

    def outputs(theta):  # logits, or mean and ln σ, of each observation
        params = to_params(theta)
        if is_discrete:
            return tanh_mlp(params, obs)
        mean, log_std = tanh_mlp(params[0], obs), params[1]
        return jnp.concatenate([mean, 0 * mean + log_std], axis=-1)

    def log_probs(theta):
        y = outputs(theta)
        if is_discrete:
            return jnp.take_along_axis(jax.nn.log_softmax(y), action, axis=-1)[:, 0]
        mean, log_std = jnp.split(y, 2, axis=-1)
        return jnp.sum(-0.5 * ((action - mean) / jnp.exp(log_std)) ** 2 - log_std, axis=-1)

    def metric(y):  # the Fisher matrix of one distribution
        if is_discrete:
            p = jax.nn.softmax(y)
            return jnp.diag(p) - jnp.outer(p, p)
        mean, log_std = jnp.split(y, 2)
        return jnp.diag(jnp.concatenate([jnp.exp(-2 * log_std), 2 + 0 * log_std]))

    jacobian = jax.jacobian(outputs)(theta)
    fisher = jnp.einsum("bip,bij,bjq->pq", jacobian, jax.vmap(metric)(outputs(theta)), jacobian)
    fisher = fisher / len(obs) + config.cg_damping * jnp.eye(len(theta))
    gradient = jax.jacobian(log_probs)(theta).T @ advantage / len(obs)
    direction = np.linalg.solve(fisher, gradient)
    return direction, np.sqrt(2 * config.target_kl / (gradient @ direction))
