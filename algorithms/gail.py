"""Generative adversarial imitation learning (GAIL).

Differs from ppo.py in the reward, which a discriminator gives that tells the policy's actions from
an expert's; the environment's is never used.

Ho & Ermon 2016, Generative adversarial imitation learning, https://arxiv.org/abs/1606.03476

    min_π max_D E_π[ln D(s, a)] + E_E[ln(1 - D(s, a))] - λ H(π)             (eq. 16)

where D(s, a) is the probability that (s, a) is the policy's, not the expert's. D ascends (17), and
the policy takes ln D for its cost (18). The best D = ρ_π / (ρ_π + ρ_E), of the occupancies ρ, makes
(16) the Jensen-Shannon divergence of ρ_π and ρ_E, times 2, less ln 4 and λ H: ρ_π = ρ_E is best.

    r = -ln D(s, a)

is that cost, as a reward, of PPO, Schulman et al. 2017, https://arxiv.org/abs/1707.06347:

    ρ = π(a | s; θ) / π(a | s; θ_old)
    L(θ) = -E[min(ρ A, clip(ρ, 1 - ε, 1 + ε) A)]                            (eq. 7)
           + c₁ E[½ (V(s; w) - R)²] - c₂ E[H(π(s; θ))]                      (eq. 9)

with A by GAE over a rollout, and R = A + V(s; w_old).

Use it where all episodes have the same length. This reward is positive whatever D says, so where
failure ends an episode a policy that is only paid to stay alive may look like the expert: CartPole
has 472 of 500 with --discriminator-learning-rate 0, by no demonstration. Where success ends it,
such a reward keeps the policy away from the goal. Ends by a time limit are bootstrapped, and do no
harm.

Departs from the paper: the policy learns by PPO, as ppo.py does, in place of TRPO, and λ is c₂; the
discriminator is penalized for its slope between the policy's pairs and the expert's (Gulrajani et
al. 2017, https://arxiv.org/abs/1704.00028, but towards slope 0, not 1), sees its inputs scaled by
their running mean and standard deviation, and actions clipped to their bounds; rewards are
normalized as PPO's are.

Metrics: `value`, mean V(s) of the rollout (discounted sum of r, scaled with norm_reward);
`imitation_reward`, mean r of it, not scaled; `discriminator_loss`, mean of -ln D of the policy's
pairs and -ln(1 - D) of the expert's, added: ln 4 = 1.386 if D cannot tell them apart (nats);
`gradient_penalty`, mean of the penalty, without its coefficient; `accuracy`, the part of the pairs
that D tells right (these three over the discriminator's batches); `policy_loss`, mean of (7);
`value_loss`, mean of the term of c₁, with clipping; `entropy`, mean of H (nats); `approx_kl`, mean
of ρ - 1 - ln ρ, which estimates KL(π_old, π) (nats); `clip_fraction`, the part of samples with ρ
outside 1 ± ε (these five over every minibatch).
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.buffers import rows
from common.datasets import Data, play_dataset, read_dataset
from common.distributions import (
    entropy,
    log_probability,
    make_policy,
    mode,
    sample,
    with_orthogonal_init,
)
from common.environments.experts import make_expert
from common.envs import EnvState, bound_action, make_env, map_actions, rollout
from common.networks import as_vector, make_network, mlp
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
    env_id: str = "Pendulum-v1"  # of fixed length; without --dataset or --expert a known one
    dataset: str = ""  # file of python -m common.record, or a Minari id; "": the expert's episodes
    expert: str = ""  # folder of a trained run, whose best seed is the expert; "": the known one
    num_episodes: int = 10  # of the expert, without --dataset
    total_timesteps: int = 300_000  # environment steps, over all environments
    num_envs: int = 16  # environments stepped in parallel
    num_steps: int = 128  # steps of each environment in a rollout
    update_epochs: int = 10  # times that a rollout is used
    num_minibatches: int = 4  # gradient steps of an epoch
    learning_rate: float = 1e-3  # of Adam
    anneal_lr: bool = True  # the learning rate falls linearly to 0
    gamma: float = 0.97  # discount factor
    gae_lambda: float = 0.95  # λ of GAE
    norm_adv: bool = True  # scale the advantages of a minibatch to mean 0 and standard deviation 1
    clip_coef: float = 0.2  # ε
    clip_vloss: bool = True  # clip V(s; w) to within ε of V(s; w_old)
    ent_coef: float = 0.0  # c₂
    vf_coef: float = 0.5  # c₁
    max_grad_norm: float = 0.5  # global norm that gradients are clipped to
    norm_obs: bool = True  # scale observations to mean 0 and standard deviation 1
    norm_reward: bool = True  # divide rewards by the standard deviation of their discounted sum
    init_std: float = 1.0  # initial standard deviation of actions whose bounds are -1 and 1
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of each hidden layer
    discriminator_learning_rate: float = 5e-4  # of its Adam; 0: it stays as it began
    discriminator_steps: int = 10  # gradient steps of the discriminator on a rollout
    batch_size: int = 512  # pairs of the policy, and as many of the expert, in each of these
    penalty_coef: float = 0.1  # of the discriminator's gradient penalty

    def __post_init__(self):
        require(
            self,
            "total_timesteps >= num_envs * num_steps",
            "update_epochs >= 1",
            "num_envs * num_steps % num_minibatches == 0",
            "num_envs * num_steps >= 2 * num_minibatches or not norm_adv",  # one is its own mean
            "clip_coef > 0",
            "discriminator_learning_rate >= 0",
        )


class Params(NamedTuple):
    actor: Any  # θ
    statistics: Statistics | None  # of observations; None if they are not normalized


class Discriminator(NamedTuple):
    params: Any
    opt_state: optax.OptState
    statistics: Statistics  # of its inputs, the policy's and the expert's


class State(NamedTuple):
    key: jax.Array
    params: Params
    critic_params: Any  # w
    opt_state: optax.OptState
    env: EnvState
    reward_scale: Any  # of discounted sums: see scale_rewards; None if rewards are not normalized
    discriminator: Discriminator
    dataset: Data | tuple  # the expert's transitions, or () where they are a file


class Batch(NamedTuple):
    obs: jax.Array  # [B, ...] as the networks see it
    action: jax.Array
    log_prob: jax.Array  # [B] ln π(a | s; θ_old)
    value: jax.Array  # [B] V(s; w_old)
    advantage: jax.Array  # [B] A
    target: jax.Array  # [B] R


def discriminator_loss(policy_logit, expert_logit) -> jax.Array:
    """-ln D(s, a) - ln(1 - D(s_E, a_E)) with D = 1 / (1 + exp(-logit)), for a pair of each."""
    return -jax.nn.log_sigmoid(policy_logit) - jax.nn.log_sigmoid(-expert_logit)


def gradient_penalty(gradient) -> jax.Array:
    """|∇ logit|², of the gradient with respect to the discriminator's inputs [I], at one point."""
    return jnp.sum(jnp.square(gradient))


def accuracy(policy_logit, expert_logit) -> jax.Array:
    """(1[D(s, a) > ½] + 1[D(s_E, a_E) < ½]) / 2, for a pair of each."""
    return ((policy_logit > 0) + 1.0 * (expert_logit < 0)) / 2


def imitation_reward(logit) -> jax.Array:
    """-ln D(s, a)."""
    return -jax.nn.log_sigmoid(logit)


def td_error(value, reward, next_value, terminated, gamma) -> jax.Array:
    """δ = r + γ (1 - d) V(s') - V(s), for one transition."""
    return reward + gamma * (1 - terminated) * next_value - value


def policy_loss(log_prob, old_log_prob, advantage, clip_coef) -> jax.Array:
    """-min(ρ A, clip(ρ, 1 - ε, 1 + ε) A) with ρ = exp(log_prob - old_log_prob)."""
    ratio = jnp.exp(log_prob - old_log_prob)
    clipped = jnp.clip(ratio, 1 - clip_coef, 1 + clip_coef)
    return -jnp.minimum(ratio * advantage, clipped * advantage)


def value_loss(value, old_value, target, clip_coef) -> jax.Array:
    """½ max((V - R)², (V_old + clip(V - V_old, -ε, ε) - R)²)."""
    clipped = old_value + jnp.clip(value - old_value, -clip_coef, clip_coef)
    return 0.5 * jnp.maximum(jnp.square(value - target), jnp.square(clipped - target))


def approximate_kl(log_prob, old_log_prob) -> jax.Array:
    """ρ - 1 - ln ρ, whose mean estimates KL(π_old, π) (http://joschu.net/blog/kl-approx.html)."""
    log_ratio = log_prob - old_log_prob
    return jnp.exp(log_ratio) - 1 - log_ratio


def is_clipped(log_prob, old_log_prob, clip_coef) -> jax.Array:
    """1 if |ρ - 1| > ε, else 0."""
    return 1.0 * (jnp.abs(jnp.exp(log_prob - old_log_prob) - 1) > clip_coef)


def make(config: Config) -> Algorithm:
    env = map_actions(make_env(config.env_id, config.num_envs), bound_action)
    expert_env = map_actions(make_env(config.env_id, config.num_episodes), bound_action)
    if config.dataset:
        dataset = read_dataset(config.dataset, config.env_id, expert_env)
    else:
        expert = make_expert(config.env_id, expert_env, config.expert)
        dataset = play_dataset(expert_env, expert)
    no_obs = no_obs_statistics(env, config.norm_obs)
    no_rewards = (jnp.zeros(env.num_envs), no_statistics(())) if config.norm_reward else None
    actor = make_network(env, config.hidden_sizes, activation=jnp.tanh)
    actor = make_policy(env, with_orthogonal_init(actor, 0.01), config.init_std)
    critic = with_orthogonal_init(make_network(env, config.hidden_sizes, 1, jnp.tanh), 1.0)
    num_inputs = env.num_states or math.prod(env.obs_shape)
    num_inputs += env.num_actions or math.prod(env.action_shape)
    discriminator_network = mlp([num_inputs, *config.hidden_sizes, 1], jnp.tanh)
    discriminator_optimizer = optax.adam(config.discriminator_learning_rate)
    steps_per_update = config.num_envs * config.num_steps
    num_updates = config.total_timesteps // steps_per_update
    value_clip = config.clip_coef if config.clip_vloss else jnp.inf

    def optimizer(step):
        learning_rate = config.learning_rate * (1 - config.anneal_lr * step / num_updates)
        clip = optax.clip_by_global_norm(config.max_grad_norm)
        return optax.chain(clip, optax.adam(learning_rate, eps=1e-5))

    def values(critic_params, obs):
        return critic.apply(critic_params, obs)[..., 0]

    def inputs(transitions):  # of the discriminator [..., I], not yet scaled
        if env.num_actions is not None:
            action = jax.nn.one_hot(transitions.action, env.num_actions)
        else:
            action = jnp.clip(transitions.action, -1, 1)
        return jnp.concatenate([as_vector(env, transitions.obs), action], axis=-1)

    def logits(discriminator_params, x):
        return discriminator_network.apply(discriminator_params, x)[..., 0]

    def loss_of_discriminator(discriminator_params, policy_x, expert_x, mixed_x):
        policy_logit = logits(discriminator_params, policy_x)
        expert_logit = logits(discriminator_params, expert_x)
        gradients = jax.vmap(jax.grad(logits, 1), (None, 0))(discriminator_params, mixed_x)
        metrics = {
            "discriminator_loss": discriminator_loss(policy_logit, expert_logit).mean(),
            "gradient_penalty": jax.vmap(gradient_penalty)(gradients).mean(),
            "accuracy": accuracy(policy_logit, expert_logit).mean(),
        }
        penalty = config.penalty_coef * metrics["gradient_penalty"]
        return metrics["discriminator_loss"] + penalty, metrics

    def learn_to_discriminate(discriminator, x, expert_x, key):
        key_rows, key_mix = jax.random.split(key)
        shape = config.discriminator_steps, config.batch_size
        policy_x = rows(x, jax.random.randint(key_rows, shape, 0, steps_per_update))
        expert_x = expert_x.reshape(policy_x.shape)
        statistics = add_batch(discriminator.statistics, jnp.stack([policy_x, expert_x]))
        policy_x, expert_x = normalize(statistics, policy_x), normalize(statistics, expert_x)
        part = jax.random.uniform(key_mix, (*shape, 1))
        mixed_x = part * policy_x + (1 - part) * expert_x

        def learn(carry, batches):
            params, opt_state = carry
            grads, metrics = jax.grad(loss_of_discriminator, has_aux=True)(params, *batches)
            updates, opt_state = discriminator_optimizer.update(grads, opt_state)
            return (optax.apply_updates(params, updates), opt_state), metrics

        carry = discriminator.params, discriminator.opt_state
        (params, opt_state), metrics = jax.lax.scan(learn, carry, (policy_x, expert_x, mixed_x))
        return Discriminator(params, opt_state, statistics), metrics

    def loss(network_params, batch):
        actor_params, critic_params = network_params
        distribution = actor.apply(actor_params, batch.obs)
        value = values(critic_params, batch.obs)
        log_prob = log_probability(distribution, batch.action)
        advantage = batch.advantage
        if config.norm_adv:
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        metrics = {
            "policy_loss": policy_loss(log_prob, batch.log_prob, advantage, config.clip_coef),
            "value_loss": value_loss(value, batch.value, batch.target, value_clip),
            "entropy": entropy(distribution),
            "approx_kl": approximate_kl(log_prob, batch.log_prob),
            "clip_fraction": is_clipped(log_prob, batch.log_prob, config.clip_coef),
        }
        metrics = {name: x.mean() for name, x in metrics.items()}
        total = metrics["policy_loss"] + config.vf_coef * metrics["value_loss"]
        return total - config.ent_coef * metrics["entropy"], metrics

    def init(key):
        key, key_actor, key_critic, key_env, key_discriminator, key_data = jax.random.split(key, 6)
        discriminator_params = discriminator_network.init(key_discriminator)
        actor_params, critic_params = actor.init(key_actor), critic.init(key_critic)
        return State(
            key=key,
            params=Params(actor_params, no_obs),
            critic_params=critic_params,
            opt_state=optimizer(0).init((actor_params, critic_params)),
            env=env.reset(key_env),
            reward_scale=no_rewards,
            discriminator=Discriminator(
                params=discriminator_params,
                opt_state=discriminator_optimizer.init(discriminator_params),
                statistics=no_statistics((num_inputs,)),
            ),
            dataset=dataset.init(key_data),
        )

    def update(state, step):
        key = jax.random.fold_in(state.key, step)
        key_rollout, key_epochs, key_expert, key_pairs = jax.random.split(key, 4)
        params = state.params

        def behaviour_policy(obs, key):
            distribution = actor.apply(params.actor, normalize(params.statistics, obs))
            return sample(key, distribution)

        env_state, transitions, episodes = rollout(
            env, behaviour_policy, state.env, key_rollout, config.num_steps
        )
        x = inputs(transitions)
        num_pairs = config.discriminator_steps * config.batch_size
        expert_x = inputs(dataset.sample(state.dataset, key_expert, num_pairs))
        discriminator, discriminator_metrics = learn_to_discriminate(
            state.discriminator, x.reshape(-1, num_inputs), expert_x, key_pairs
        )
        logit = logits(discriminator.params, normalize(discriminator.statistics, x))
        transitions = transitions._replace(reward=imitation_reward(logit))
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
        log_prob = log_probability(actor.apply(params.actor, obs), transitions.action)
        batch = Batch(
            obs=obs,
            action=transitions.action,
            log_prob=log_prob,
            value=value,
            advantage=advantage,
            target=advantage + value,
        )
        batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)

        def learn(carry, index):
            network_params, opt_state = carry
            grads, metrics = jax.grad(loss, has_aux=True)(network_params, rows(batch, index))
            updates, opt_state = optimizer(step).update(grads, opt_state)
            network_params = optax.apply_updates(network_params, updates)
            return (network_params, opt_state), metrics

        keys = jax.random.split(key_epochs, config.update_epochs)
        index = jax.vmap(jax.random.permutation, (0, None))(keys, steps_per_update)
        index = index.reshape(config.update_epochs * config.num_minibatches, -1)
        network_params = params.actor, state.critic_params
        (network_params, opt_state), metrics = jax.lax.scan(
            learn, (network_params, state.opt_state), index
        )
        metrics |= discriminator_metrics | {"imitation_reward": transitions.reward}
        metrics = {name: x.mean() for name, x in metrics.items()}
        metrics |= episodes | {"value": value.mean()}
        statistics = add_batch(params.statistics, transitions.obs)
        actor_params, critic_params = network_params
        return State(
            key=state.key,
            params=Params(actor_params, statistics),
            critic_params=critic_params,
            opt_state=opt_state,
            env=env_state,
            reward_scale=reward_scale,
            discriminator=discriminator,
            dataset=state.dataset,
        ), metrics

    def act(params, obs, key, choose=mode):
        distribution = actor.apply(params.actor, normalize(params.statistics, obs))
        return bound_action(env, choose(distribution))

    return Algorithm(init, update, act, num_updates, steps_per_update)


if __name__ == "__main__":
    main(Config, make)
