"""On-policy maximum a posteriori policy optimization (V-MPO).

Differs from a2c.py in the policy's loss: the better half of a rollout is imitated, with weights
that grow with the advantage, within a trust region around an old policy, which also acts.

Song et al. 2020, V-MPO: on-policy maximum a posteriori policy optimization for discrete and
continuous control, https://arxiv.org/abs/1909.12238

    ψ ∝ exp(A / η) over the half of the batch with the largest A
    L_π(θ) = -Σ ψ ln π(a | s; θ)                                            (3)
    L_η(η) = η ε + η ln mean(exp(A / η)), over that half                    (4)
    L_α(θ, α) = E[α (ε_π - KL) + α KL], KL = KL(π(s; θ_old) ‖ π(s; θ))      (5)
    L(w) = E[½ (V(s; w) - R)²]

with A by GAE over a rollout of π(θ_old), and R = A + V(s; w); no gradient passes through KL in the
first term of (5) and through α in the second. λ = 1, the default, is the paper's n-step return. For
continuous actions KL has two parts, by the means and by the standard deviations, as in mpo.py.

Departs from the paper: ln η and ln α are learned, by an Adam of their own; policy and value share
no layer; no PopArt; continuous actions have one standard deviation for all observations, and their
units make finite bounds -1 and 1; truncated episodes bootstrap from V(s'). With norm_obs a rollout
and its loss see observations scaled by the statistics of all rollouts before it, the first one's
unscaled.

Metrics: `value`, mean V(s) of the rollout (discounted return, scaled with norm_reward);
`policy_loss`, (3); `value_loss`, L(w), without c₁; `entropy`, mean of H of π(θ) (nats); `kl`, mean
KL(π(θ_old) ‖ π(θ)) (nats); `temperature`, η (return per nat).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.distributions import (
    Normal,
    entropy,
    kl_divergence,
    log_probability,
    make_policy,
    mode,
    sample,
    with_orthogonal_init,
)
from common.envs import EnvState, bound_action, make_env, map_actions, rollout
from common.networks import make_network
from common.normalization import (
    Statistics,
    add_batch,
    no_obs_statistics,
    no_statistics,
    normalize,
    scale_rewards,
)
from common.returns import gae
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "CartPole-v1"  # any environment
    total_timesteps: int = 200_000  # environment steps, over all environments
    num_envs: int = 8  # environments stepped in parallel
    num_steps: int = 8  # steps of each environment in a rollout
    learning_rate: float = 2e-3  # of Adam
    anneal_lr: bool = True  # the learning rate falls linearly to 0
    dual_learning_rate: float = 1e-2  # of Adam, for ln η and ln α
    gamma: float = 0.99  # discount factor
    gae_lambda: float = 1.0  # λ of GAE
    target_network_frequency: int = 10  # updates between copies of θ into θ_old
    epsilon: float = 0.3  # ε, bound on KL(ψ ‖ uniform) over the better half (nats)
    epsilon_policy: float = 0.003  # ε_π of discrete actions (nats)
    epsilon_mean: float = 0.01  # ε_π of the means of continuous actions (nats)
    epsilon_std: float = 1e-4  # ε_π of their standard deviations (nats)
    init_temperature: float = 1.0  # initial η
    init_alpha: float = 1.0  # initial α
    vf_coef: float = 0.5  # c₁, the weight of L(w)
    max_grad_norm: float = 1.0  # global norm that gradients are clipped to
    norm_obs: bool = False  # scale observations to mean 0 and standard deviation 1
    norm_reward: bool = False  # divide rewards by the standard deviation of their discounted sum
    init_std: float = 1.0  # initial standard deviation of actions whose bounds are -1 and 1
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of each hidden layer

    def __post_init__(self):
        require(
            self,
            "total_timesteps >= num_envs * num_steps",
            "num_envs * num_steps >= 2",  # one transition has no better half
            "epsilon > 0",
            "epsilon_policy > 0",
            "epsilon_mean > 0",
            "epsilon_std > 0",
            "init_temperature > 0",
            "init_alpha > 0",
        )


class Params(NamedTuple):
    actor: Any  # θ
    statistics: Statistics | None  # of observations; None if they are not normalized


class Duals(NamedTuple):
    log_temperature: jax.Array  # ln η
    log_alpha: jax.Array  # ln α, [1] if actions are discrete, else [2]: means, deviations


class State(NamedTuple):
    key: jax.Array
    params: Params
    critic_params: Any  # w
    target_params: Any  # θ_old
    opt_state: optax.OptState
    duals: Duals
    duals_opt_state: optax.OptState
    env: EnvState
    reward_scale: Any  # of discounted sums: see scale_rewards; None if rewards are not normalized


class Batch(NamedTuple):
    obs: jax.Array  # [B, ...] as the networks see it
    action: jax.Array
    advantage: jax.Array  # [B] A
    target: jax.Array  # [B] R


def td_error(value, reward, next_value, terminated, gamma) -> jax.Array:
    """δ = r + γ (1 - d) V(s') - V(s), for one transition."""
    return reward + gamma * (1 - terminated) * next_value - value


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


def better_half(advantage) -> jax.Array:
    """The logarithm of a uniform distribution over the larger half of A [B], rounded down; [B]."""
    half = advantage.size // 2
    rank = jnp.argsort(jnp.argsort(-advantage))
    return jnp.where(rank < half, -jnp.log(half), -jnp.inf)


def value_loss(value, target) -> jax.Array:
    """½ (V(s; w) - R)², for one transition."""
    return 0.5 * jnp.square(value - target)


def make(config: Config) -> Algorithm:
    env = map_actions(make_env(config.env_id, config.num_envs), bound_action)
    no_obs = no_obs_statistics(env, config.norm_obs)
    no_rewards = (jnp.zeros(env.num_envs), no_statistics(())) if config.norm_reward else None
    actor = make_network(env, config.hidden_sizes, activation=jnp.tanh)
    actor = make_policy(env, with_orthogonal_init(actor, 0.01), config.init_std)
    critic = with_orthogonal_init(make_network(env, config.hidden_sizes, 1, jnp.tanh), 1.0)
    epsilons = [config.epsilon_policy]
    if env.num_actions is None:
        epsilons = [config.epsilon_mean, config.epsilon_std]
    epsilons = jnp.array(epsilons)
    dual_optimizer = optax.adam(config.dual_learning_rate)
    steps_per_update = config.num_envs * config.num_steps
    num_updates = config.total_timesteps // steps_per_update

    def optimizer(step):
        learning_rate = config.learning_rate * (1 - config.anneal_lr * step / num_updates)
        clip = optax.clip_by_global_norm(config.max_grad_norm)
        return optax.chain(clip, optax.adam(learning_rate, eps=1e-5))

    def values(critic_params, obs):
        return critic.apply(critic_params, obs)[..., 0]

    def loss(network_params, duals, target_params, batch):
        actor_params, critic_params = network_params
        distribution = actor.apply(actor_params, batch.obs)
        old = actor.apply(target_params, batch.obs)
        temperature, alpha = jax.tree.map(jnp.exp, duals)
        log_prior = better_half(batch.advantage)
        weight = jax.lax.stop_gradient(weights(temperature, batch.advantage, log_prior))
        kl = jnp.stack([kl_divergence(old, part).mean() for part in decoupled(old, distribution)])
        metrics = {
            "policy_loss": -jnp.sum(weight * log_probability(distribution, batch.action)),
            "value_loss": value_loss(values(critic_params, batch.obs), batch.target).mean(),
            "entropy": entropy(distribution).mean(),
            "kl": kl_divergence(old, distribution).mean(),
            "temperature": temperature,
        }
        total = metrics["policy_loss"] + config.vf_coef * metrics["value_loss"]
        total += dual(temperature, batch.advantage, log_prior, config.epsilon)
        total += jnp.sum(jax.lax.stop_gradient(alpha) * kl)
        total += multiplier_loss(duals.log_alpha, kl, epsilons).sum()
        return total, metrics

    def init(key):
        key, key_actor, key_critic, key_env = jax.random.split(key, 4)
        actor_params, critic_params = actor.init(key_actor), critic.init(key_critic)
        duals = Duals(
            log_temperature=jnp.log(jnp.asarray(config.init_temperature, float)),
            log_alpha=jnp.zeros(len(epsilons)) + jnp.log(config.init_alpha),
        )
        return State(
            key=key,
            params=Params(actor_params, no_obs),
            critic_params=critic_params,
            target_params=jax.tree.map(jnp.copy, actor_params),
            opt_state=optimizer(0).init((actor_params, critic_params)),
            duals=duals,
            duals_opt_state=dual_optimizer.init(duals),
            env=env.reset(key_env),
            reward_scale=no_rewards,
        )

    def update(state, step):
        key_rollout = jax.random.fold_in(state.key, step)
        params = state.params

        def behaviour_policy(obs, key):
            distribution = actor.apply(state.target_params, normalize(params.statistics, obs))
            return sample(key, distribution)

        env_state, transitions, episodes = rollout(
            env, behaviour_policy, state.env, key_rollout, config.num_steps
        )
        reward_scale, reward = scale_rewards(state.reward_scale, transitions, config.gamma)
        obs = normalize(params.statistics, transitions.obs)
        next_obs = normalize(params.statistics, transitions.next_obs)
        value = values(state.critic_params, obs)
        next_value = values(state.critic_params, next_obs)
        error = td_error(value, reward, next_value, transitions.terminated, config.gamma)
        done = transitions.terminated | transitions.truncated
        advantage = jax.vmap(gae, (1, 1, None, None), 1)(
            error, done, config.gamma, config.gae_lambda
        )
        batch = Batch(
            obs=obs,
            action=transitions.action,
            advantage=advantage,
            target=advantage + value,
        )
        batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)

        network_params = params.actor, state.critic_params
        (grads, dual_grads), metrics = jax.grad(loss, (0, 1), has_aux=True)(
            network_params, state.duals, state.target_params, batch
        )
        updates, opt_state = optimizer(step).update(grads, state.opt_state)
        network_params = optax.apply_updates(network_params, updates)
        updates, duals_opt_state = dual_optimizer.update(dual_grads, state.duals_opt_state)
        duals = optax.apply_updates(state.duals, updates)
        metrics |= episodes | {"value": value.mean()}
        statistics = add_batch(params.statistics, transitions.obs)
        actor_params, critic_params = network_params
        is_copy_step = (step + 1) % config.target_network_frequency == 0
        target_params = jax.tree.map(
            lambda new, old: jnp.where(is_copy_step, new, old), actor_params, state.target_params
        )
        return State(
            key=state.key,
            params=Params(actor_params, statistics),
            critic_params=critic_params,
            target_params=target_params,
            opt_state=opt_state,
            duals=duals,
            duals_opt_state=duals_opt_state,
            env=env_state,
            reward_scale=reward_scale,
        ), metrics

    def act(params, obs, key, choose=mode):
        distribution = actor.apply(params.actor, normalize(params.statistics, obs))
        return bound_action(env, choose(distribution))

    return Algorithm(init, update, act, num_updates, steps_per_update)


if __name__ == "__main__":
    main(Config, make)
