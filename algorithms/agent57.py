"""Agent57.

Differs from ngu.py in Q, which is the sum of two networks, one of each reward; and in the policies,
which a bandit chooses for the episodes of its environment by their returns.

Badia et al. 2020b, Agent57: outperforming the Atari human benchmark,
https://arxiv.org/abs/2003.13350

    Q_j(m, a) = h(h⁻¹(Q^e_j(m, a)) + β_j h⁻¹(Q^i_j(m, a)))                          (section 3.1)
    L(θ) = E[mean_{j, t} ((y^e_t - Q^e_j(m_t, a_t))² + (y^i_t - Q^i_j(m_t, a_t))²)]
    arm of an episode: argmax_j μ̂_j + β √(1 / N_j), any one with probability ε     (section 3.2)

with y^e and y^i the targets of ngu.py for the extrinsic reward and Q^e, and for the intrinsic one
and Q^i, each with its target network and its memory; in both, policy π_j is greedy in the sum Q_j.
An arm is a policy j. Of the last `window_size` episodes of the environment N_j were played by arm
j, and μ̂_j is their mean return, undiscounted and without novelty. The first episodes try one arm
after the other. `act` follows the arm whose mean return over all environments is the largest.

Departs from the paper: as ngu.py does, but β = .3; the discounts are those of ngu.py, where the
paper has others for the first policies; the bandit learns of episodes, and chooses, once an
update; the evaluation has no bandit of its own.

Metrics: `value`, mean h⁻¹(Q^e_0(m, a)) of the actions taken (discounted return); `loss`, mean
squared error of the batches, the sum of both networks' (rescaled return²); `arm`, mean number j of
the policies that acted; `best_arm`, that of the policy that `act` follows; `intrinsic_reward`, mean
r^intrinsic; `modulator`, mean min(max(α, 1), L); `action_loss`, mean cross-entropy of the
classifier (nats); `novelty`, mean ‖ĝ - g‖².
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.buffers import rows, uniform_buffer
from common.envs import Env, EnvState, Transition, make_env
from common.exploration import epsilon_greedy
from common.memory import (
    RecurrentNetwork,
    StoredSequence,
    cut_sequences,
    recurrent,
    rollout_with_memory,
    with_mask,
)
from common.networks import Network, make_network, mlp
from common.normalization import Statistics, add_batch, no_statistics
from common.prioritized import Priorities, init_priorities, sample_rows, set_priorities
from common.returns import retrace
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "DeepSea10-bsuite"  # any environment with discrete actions
    total_timesteps: int = 60_000  # environment steps, over all environments
    num_envs: int = 8  # environments stepped in parallel
    num_steps: int = 10  # steps of a sequence that are learned from, and of an update
    burn_in: int = 5  # steps of a sequence before those
    gradient_steps: int = 4  # of an update
    learning_rate: float = 2e-3  # of Adam, for Q
    novelty_learning_rate: float = 1e-3  # of Adam, for f and ĝ
    num_policies: int = 4  # the first exploits, the last explores most
    window_size: int = 90  # episodes of an environment that its bandit remembers
    bandit_coef: float = 1.0  # β of the bandit
    bandit_epsilon: float = 0.5  # ε of the bandit: arms at random
    gamma: float = 0.997  # discount factor of the first policy
    gamma_last: float = 0.99  # discount factor of the last policy
    intrinsic_coef: float = 0.3  # β of the last policy
    retrace_lambda: float = 0.95  # λ
    rescale_eps: float = 1e-3  # ε of h
    num_neighbors: int = 3  # k
    kernel_eps: float = 0.1  # ε of K
    modulator_max: float = 5.0  # L
    error_steps: int = 1_000  # steps that count in μ and σ, the older ones ever less
    episodic_memory_size: int = 100  # steps of an episode whose embeddings are kept, the latest
    embedding_size: int = 32  # numbers of f, g and ĝ
    buffer_size: int = 5_000  # steps that are learned from, rounded up to whole updates
    batch_size: int = 16  # sequences
    prioritized_replay_alpha: float = 0.9  # α: 0 draws uniformly
    prioritized_replay_eta: float = 0.9  # η: 1 for the largest error of a sequence, 0 for the mean
    prioritized_replay_eps: float = 1e-6  # added to every priority
    learning_starts: int = 1_000  # environment steps first, rounded up to whole updates
    target_network_frequency: int = 100  # gradient steps between copies of θ into θ⁻
    tau: float = 1.0  # θ⁻ ← τ θ + (1 - τ) θ⁻ at each copy
    epsilon: float = 0.4  # probability of a random action in environment 0, ε
    epsilon_power: float = 7.0  # the last one has ε^(1 + epsilon_power)
    hidden_sizes: tuple[int, ...] = (32,)  # units of each layer before the memory, of f, g and ĝ
    memory_size: int = 32  # units of the memory
    memory_steps: int = 20  # over which the memory decays at first, at most

    def __post_init__(self):
        require(
            self,
            "burn_in >= 0",
            "0 <= bandit_epsilon <= 1",
            "0 <= gamma < 1",
            "0 <= gamma_last < 1",
            "rescale_eps >= 0",
            "kernel_eps > 0",
            "modulator_max >= 1",
            "num_neighbors <= episodic_memory_size",
            "prioritized_replay_alpha >= 0",
            "0 <= prioritized_replay_eta <= 1",
            "prioritized_replay_eps > 0",
            "epsilon_power >= 0",
            "len(hidden_sizes) >= 1",
            "all(size >= 1 for size in hidden_sizes)",
            "buffer_size >= learning_starts",
            "total_timesteps >= learning_starts + num_envs * (burn_in + 2 * num_steps)",
        )


class Memory(NamedTuple):
    """What the policy knows of the episode so far."""

    hidden: jax.Array  # m of both networks [..., 2, H]
    action: jax.Array  # int, the previous one; -1 at the start of an episode
    policy: jax.Array  # int, j of this episode; -1 before it is drawn


class Params(NamedTuple):
    """What the policy is made of."""

    networks: Any  # θ^e and θ^i, [2, ...]
    returns: jax.Array  # of each policy [J], the mean of what the bandits remember


class Bandit(NamedTuple):
    """The last episodes of an environment, a ring."""

    arms: jax.Array  # int [W]; -1 before it is written
    returns: jax.Array  # [W]
    num: jax.Array  # episodes so far


class EpisodicMemory(NamedTuple):
    """Embeddings of the states of an episode, a ring."""

    embeddings: jax.Array  # f [C, E]
    num: jax.Array  # how many were written


class Mean(NamedTuple):
    """A running mean, total / num."""

    total: jax.Array
    num: jax.Array


class Novelty(NamedTuple):
    """What rewards for novelty are made of."""

    episode: EpisodicMemory  # [N, ...]
    distances: Mean  # d_m², over all that were finite
    error: Statistics  # of ‖ĝ - g‖²: μ and σ²


class NoveltyParams(NamedTuple):
    """Networks that are learned for novelty."""

    embedding: Any  # f
    classifier: Any  # of the action
    predictor: Any  # ĝ


class Step(NamedTuple):
    """Steps that are kept."""

    transition: Transition
    intrinsic_reward: jax.Array


class Stream(NamedTuple):
    """Steps of every environment."""

    memories: Memory  # [T, N, ...] before each step
    steps: Step  # [T, N, ...]


class State(NamedTuple):
    key: jax.Array
    params: Params
    target_params: Any  # θ^e⁻ and θ^i⁻, [2, ...]
    novelty_params: NoveltyParams
    random_params: Any  # g
    opt_state: optax.OptState
    novelty_opt_state: optax.OptState
    buffer: StoredSequence  # [capacity, ...]
    priorities: Priorities  # p^α of its rows
    pending: Stream  # [burn_in, N, ...] the latest steps, with which the next ones begin
    env: EnvState
    memory: Memory  # [N, ...] after any reset
    novelty: Novelty
    bandits: Bandit  # [N, ...]


def dueling(value, advantage) -> jax.Array:
    """V + A(a) - 1/|A| Σ_a' A(a'), from V [..., 1] and A [..., A]; [..., A]."""
    return value + advantage - jnp.mean(advantage, axis=-1, keepdims=True)


def make_recurrent_q_network(
    env: Env, hidden_sizes: tuple[int, ...], memory_size: int, memory_steps: int, num_policies: int
) -> RecurrentNetwork:
    """Return Q_j(m, a), [..., J, A], of `recurrent`, whose inputs are pairs: observations, and
    previous actions."""
    *sizes, num_features = hidden_sizes
    encoder = make_network(env, sizes, num_features)
    streams = mlp([memory_size + num_policies, memory_size, 1 + env.num_actions])

    def encode(params, inputs):
        obs, action = inputs
        action = jax.nn.one_hot(action, env.num_actions)  # zeros for -1
        return jnp.concatenate([jax.nn.relu(encoder.apply(params, obs)), action], axis=-1)

    def head(params, memory):
        shape = memory.shape[:-1]
        memory = jnp.broadcast_to(memory[..., None, :], (*shape, num_policies, memory_size))
        policy = jnp.broadcast_to(jnp.eye(num_policies), (*shape, num_policies, num_policies))
        y = streams.apply(params, jnp.concatenate([memory, policy], axis=-1))
        return dueling(y[..., :1], y[..., 1:])

    network = recurrent(
        Network(encoder.init, encode),
        num_features + env.num_actions,
        memory_size,
        Network(streams.init, head),
        max_steps=memory_steps,
    )
    return with_mask(env, network, lambda inputs: inputs[0])


def intrinsic_weights(largest, num_policies) -> jax.Array:
    """β_j: 0 for j = 0, β for j = J - 1, else β σ(10 (2 j - (J - 2)) / (J - 2)); [J]."""
    j = jnp.arange(num_policies)
    between = jax.nn.sigmoid(10 * (2 * j - (num_policies - 2)) / max(1, num_policies - 2))
    return largest * jnp.where(j == 0, 0, jnp.where(j == num_policies - 1, 1, between))


def discounts(first, last, num_policies) -> jax.Array:
    """γ_j = 1 - (1 - γ_0)^(1 - x) (1 - γ_{J-1})^x with x = j / (J - 1), [J]; γ_0 if J = 1."""
    x = jnp.arange(num_policies) / max(1, num_policies - 1)
    return 1 - (1 - first) ** (1 - x) * (1 - last) ** x


def nearest_distances(embeddings, num, query, num_neighbors) -> jax.Array:
    """d² from a query [E] to the nearest of the first `num` embeddings [C, E], rising; infinite
    where there are fewer than `num_neighbors` of them, [k]."""
    distances = jnp.sum(jnp.square(embeddings - query), axis=-1)
    distances = jnp.where(jnp.arange(len(embeddings)) < num, distances, jnp.inf)
    return -jax.lax.top_k(-distances, num_neighbors)[0]


def episodic_reward(distances, mean_distance, kernel_eps) -> jax.Array:
    """1 / (√(Σ_i K_i) + c) from k distances d² [k] and d_m²; 0 if one is infinite, and where
    √(Σ_i K_i) + c > 8. ξ = 0.008 and c = 0.001, as in the paper."""
    rate = distances / jnp.maximum(mean_distance, 1e-8)
    kernel = kernel_eps / (jnp.maximum(rate - 0.008, 0) + kernel_eps)
    similarity = jnp.sqrt(jnp.sum(kernel)) + 0.001
    return jnp.where(jnp.isinf(distances[-1]) | (similarity > 8), 0, 1 / similarity)


def modulator(error, mean, std, largest) -> jax.Array:
    """min(max(1 + (‖ĝ - g‖² - μ) / σ, 1), L)."""
    return jnp.clip(1 + (error - mean) / std, 1, largest)


def rescale(x, eps) -> jax.Array:
    """h(x) = sgn(x) (√(|x| + 1) - 1) + ε x.

    As a product with x, small x keep their digits, and the slope at 0 is right.
    """
    return x * (1 / (jnp.sqrt(jnp.abs(x) + 1) + 1) + eps)


def inverse_rescale(y, eps) -> jax.Array:
    """h⁻¹(y) = sgn(y) (u² - 1) with u = (√(1 + 4 ε (|y| + 1 + ε)) - 1) / (2 ε), as a product."""
    c = jnp.abs(y) + 1 + eps
    u = 2 * c / (jnp.sqrt(1 + 4 * eps * c) + 1)
    return y / (1 / (u + 1) + eps)


def td_error(q_value, reward, next_value, terminated, gamma) -> jax.Array:
    """δ = r + γ (1 - d) V(s') - Q(s, a), for one transition; no gradient through the target."""
    target = reward + gamma * (1 - terminated) * next_value
    return jax.lax.stop_gradient(target) - q_value


def combine(extrinsic, intrinsic, beta, eps) -> jax.Array:
    """Q = h(h⁻¹(Q^e) + β h⁻¹(Q^i))."""
    return rescale(inverse_rescale(extrinsic, eps) + beta * inverse_rescale(intrinsic, eps), eps)


def record(bandit, arm, episode_return) -> Bandit:
    """Write an episode over the oldest one."""
    row = bandit.num % len(bandit.arms)
    return Bandit(
        arms=bandit.arms.at[row].set(arm),
        returns=bandit.returns.at[row].set(episode_return),
        num=bandit.num + 1,
    )


def plays_and_returns(bandit, num_arms) -> tuple[jax.Array, jax.Array]:
    """N_j and the sum of the returns of each arm, of all episodes that are remembered; both [J]."""
    plays = bandit.arms[..., None] == jnp.arange(num_arms)
    episodes = tuple(range(plays.ndim - 1))
    return plays.sum(episodes), jnp.sum(plays * bandit.returns[..., None], episodes)


def choose_arm(key, bandit, num_arms, coef, epsilon) -> jax.Array:
    """argmax_j μ̂_j + β √(1 / N_j), with probability ε any arm; arm k in the k-th of the first J.

    Sliding-window upper confidence bounds, Garivier & Moulines 2008, simplified,
    https://arxiv.org/abs/0805.3415. An arm that is not in the window is tried.
    """
    key_explore, key_arm = jax.random.split(key)
    plays, returns = plays_and_returns(bandit, num_arms)
    bounds = jnp.where(plays > 0, returns / plays + coef / jnp.sqrt(plays), jnp.inf)
    any_arm = jax.random.randint(key_arm, (), 0, num_arms)
    explores = jax.random.uniform(key_explore) < epsilon
    arm = jnp.where(explores, any_arm, jnp.argmax(bounds))
    return jnp.where(bandit.num < num_arms, bandit.num, arm)


def mean_returns(bandits, num_arms) -> jax.Array:
    """Mean return of each arm over all bandits, [J]; that of the worst, for one not remembered."""
    plays, returns = plays_and_returns(bandits, num_arms)
    means = returns / jnp.maximum(plays, 1)
    worst = jnp.min(means, where=plays > 0, initial=jnp.inf)
    return jnp.where(plays > 0, means, jnp.where(jnp.isfinite(worst), worst, 0))


def priority(error, eta, alpha, eps) -> jax.Array:
    """p^α with p = η max_t |δ_t| + (1 - η) mean_t |δ_t| + ε, for the errors δ [T] of a sequence."""
    error = jnp.abs(error)
    return (eta * jnp.max(error) + (1 - eta) * jnp.mean(error) + eps) ** alpha


def exploration(epsilon, power, num_envs) -> jax.Array:
    """ε_i = ε^(1 + power i / (N - 1)), [N]; ε if N = 1."""
    return epsilon ** (1 + power * jnp.arange(num_envs) / max(1, num_envs - 1))


def make(config: Config) -> Algorithm:
    env = make_env(config.env_id, config.num_envs, actions="discrete")
    network = make_recurrent_q_network(
        env, config.hidden_sizes, config.memory_size, config.memory_steps, config.num_policies
    )
    embedding = make_network(env, config.hidden_sizes, config.embedding_size)  # f, and ĝ and g
    classifier = mlp([2 * config.embedding_size, *config.hidden_sizes, env.num_actions])
    apply = jax.vmap(network.apply, (0, -2, None), (0, -2))  # both networks
    beta = intrinsic_weights(config.intrinsic_coef, config.num_policies)
    optimizer = optax.adam(config.learning_rate)
    novelty_optimizer = optax.adam(config.novelty_learning_rate)
    steps_per_update = config.num_envs * config.num_steps
    num_blocks = -(-config.buffer_size // steps_per_update)  # each a sequence per environment
    num_rows = num_blocks * config.num_envs
    buffer = uniform_buffer(num_rows, config.num_envs, config.batch_size)
    overlap = config.burn_in
    warmup_updates = -(-config.learning_starts // steps_per_update)
    warmup_steps = warmup_updates * config.num_steps + overlap
    initial_steps = warmup_steps * config.num_envs
    num_updates = (config.total_timesteps - initial_steps) // steps_per_update

    def init_memory():
        hidden = jnp.stack([network.init_memory()] * 2)
        return Memory(hidden, jnp.full((), -1, int), jnp.full((), -1, int))

    def total(q_values):
        """Q^e and Q^i, [2, ..., J, A] -> Q [..., J, A]."""
        extrinsic, intrinsic = q_values
        return combine(extrinsic, intrinsic, beta[:, None], config.rescale_eps)

    def collect(networks, states, arms, key, num_steps):
        epsilon = exploration(config.epsilon, config.epsilon_power, config.num_envs)

        def behaviour_policy(memory, obs, key):
            policy = jnp.where(memory.policy < 0, arms, memory.policy)
            q_values, hidden = apply(networks, memory.hidden, (obs, memory.action))
            q_values = total(q_values)[jnp.arange(env.num_envs), policy]
            action = epsilon_greedy(key, q_values, epsilon)
            return action, Memory(hidden, action, policy)

        return rollout_with_memory(env, behaviour_policy, states, init_memory(), key, num_steps)

    def choose_arms(bandits, key):
        keys = jax.random.split(key, env.num_envs)
        return jax.vmap(choose_arm, (0, 0, None, None, None))(
            keys, bandits, config.num_policies, config.bandit_coef, config.bandit_epsilon
        )

    def record_episodes(bandits, before, policies, transitions):
        """Write those that ended in a rollout, which began in the EnvState `before`, into the
        bandits; `policies` [T, N] acted."""

        def step(carry, inputs):
            bandit, episode_return = carry
            policy, reward, done = inputs
            episode_return += reward
            new = record(bandit, policy, episode_return)
            bandit = jax.tree.map(partial(jnp.where, done), new, bandit)
            return (bandit, jnp.where(done, 0, episode_return)), None

        total, _, done = before.episode
        begun = jnp.where(done, 0, total)
        done = transitions.terminated | transitions.truncated
        inputs = policies, transitions.reward, done
        return jax.lax.scan(jax.vmap(step), (bandits, begun), inputs)[0][0]

    def prediction_error(params, random_params, next_obs):
        difference = embedding.apply(params, next_obs) - embedding.apply(random_params, next_obs)
        return jnp.sum(jnp.square(difference), axis=-1)

    def intrinsic_rewards(novelty, params, random_params, transitions):
        """Of the next observations of a rollout, [T, N]; and their modulators."""

        def step(episode, inputs):
            f, next_f, done = inputs
            row = episode.num % config.episodic_memory_size
            embeddings = episode.embeddings.at[row].set(f)
            num = episode.num + 1
            distances = nearest_distances(embeddings, num, next_f, config.num_neighbors)
            return EpisodicMemory(embeddings, jnp.where(done, 0, num)), distances

        f = embedding.apply(params.embedding, transitions.obs)
        next_f = embedding.apply(params.embedding, transitions.next_obs)
        done = transitions.terminated | transitions.truncated
        inputs = f, next_f, done
        episode, distances = jax.lax.scan(jax.vmap(step), novelty.episode, inputs)
        is_known = jnp.isfinite(distances)
        mean = Mean(
            total=novelty.distances.total + jnp.sum(distances, where=is_known),
            num=novelty.distances.num + jnp.sum(is_known),
        )
        reward = jax.vmap(jax.vmap(episodic_reward, (0, None, None)), (0, None, None))(
            distances, mean.total / jnp.maximum(mean.num, 1), config.kernel_eps
        )
        errors = prediction_error(params.predictor, random_params, transitions.next_obs)
        count = jnp.minimum(novelty.error.count, config.error_steps)
        error = add_batch(novelty.error._replace(count=count), errors)
        factor = modulator(errors, error.mean, jnp.sqrt(error.var + 1e-8), config.modulator_max)
        return Novelty(episode, mean, error), factor * reward, factor

    def q_values(params, hidden, sequence):
        """Of one network, for the observations and for the next ones behind the burn-in,
        [num_steps, J, A]."""
        memory, steps = sequence.memory, sequence.transitions.transition
        done = steps.terminated | steps.truncated
        previous = jnp.where(done, init_memory().action, steps.action)
        previous = jnp.concatenate([memory.action[None], previous[:-1]])
        inputs = (steps.obs, previous), done
        first, rest = (
            jax.tree.map(lambda x, part=part: x[part], inputs)
            for part in (slice(config.burn_in), slice(config.burn_in, None))
        )
        if config.burn_in:
            *_, hidden = network.unroll(jax.lax.stop_gradient(params), hidden, *first)
        q, after, _ = network.unroll(params, hidden, *rest)
        next_inputs = steps.next_obs[config.burn_in :], steps.action[config.burn_in :]
        return q, network.apply(params, after, next_inputs)[0]

    def q_errors(params, target_params, sequence):
        """y - Q of both networks and every policy, [2, num_steps, J]."""
        steps, intrinsic_reward = jax.tree.map(lambda x: x[config.burn_in :], sequence.transitions)
        done = steps.terminated | steps.truncated

        def errors(q, target_q, target_next_q, greedy, next_greedy, reward, gamma):
            """Of one network and policy, from Q [T, A] and the greedy actions [T]."""
            of = lambda q, action: jnp.take_along_axis(q, action[:, None], axis=-1).squeeze(-1)
            value = inverse_rescale(of(target_q, steps.action), config.rescale_eps)
            next_value = inverse_rescale(of(target_next_q, next_greedy), config.rescale_eps)
            error = td_error(value, reward, next_value, steps.terminated, gamma)
            trace = config.retrace_lambda * (steps.action == greedy)
            returns = retrace(value, error, done, trace, gamma)
            target = jax.lax.stop_gradient(rescale(returns, config.rescale_eps))
            return target - of(q, steps.action)

        q_of_both = jax.vmap(q_values, (0, 0, None))
        q, next_q = q_of_both(params, sequence.memory.hidden, sequence)
        target_q, target_next_q = q_of_both(target_params, sequence.memory.hidden, sequence)
        of_policies = jax.vmap(errors, (1, 1, 1, 1, 1, None, 0), 1)
        return jax.vmap(of_policies, (0, 0, 0, None, None, 0, None))(
            q,
            target_q,
            target_next_q,
            jnp.argmax(total(q), axis=-1),
            jnp.argmax(total(next_q), axis=-1),
            jnp.stack([steps.reward, intrinsic_reward]),
            discounts(config.gamma, config.gamma_last, config.num_policies),
        )

    def novelty_loss(params, random_params, transitions):
        """Of the classifier of actions and of the predictor, and both of them."""
        pairs = [
            embedding.apply(params.embedding, obs)
            for obs in (transitions.obs, transitions.next_obs)
        ]
        logits = classifier.apply(params.classifier, jnp.concatenate(pairs, axis=-1))
        action_loss = optax.softmax_cross_entropy_with_integer_labels(logits, transitions.action)
        errors = prediction_error(params.predictor, random_params, transitions.next_obs)
        metrics = {"action_loss": action_loss.mean(), "novelty": errors.mean()}
        return action_loss.mean() + errors.mean(), metrics

    def loss(params, target_params, batch):
        errors = jax.vmap(q_errors, (None, None, 0))(params, target_params, batch)
        return jnp.mean(jnp.sum(jnp.square(errors), axis=1)), errors

    def init(key):
        key, *keys = jax.random.split(key, 8)
        networks = jax.vmap(network.init)(jax.random.split(keys[0]))
        novelty_params = NoveltyParams(
            embedding=embedding.init(keys[1]),
            classifier=classifier.init(keys[2]),
            predictor=embedding.init(keys[3]),
        )
        random_params = embedding.init(keys[4])
        many = lambda tree: jax.tree.map(
            lambda x: jnp.broadcast_to(x, (env.num_envs, *x.shape)), tree
        )
        episode = EpisodicMemory(
            jnp.zeros((config.episodic_memory_size, config.embedding_size)), jnp.zeros((), int)
        )
        arms = jnp.arange(env.num_envs) % config.num_policies  # in the warm-up
        bandit = Bandit(
            arms=jnp.full(config.window_size, -1, int),
            returns=jnp.zeros(config.window_size),
            num=jnp.zeros((), int),
        )
        novelty = Novelty(many(episode), Mean(jnp.zeros(()), jnp.zeros(())), no_statistics(()))
        (env_state, memory), transitions, memories, _ = collect(
            networks, (env.reset(keys[5]), many(init_memory())), arms, keys[6], warmup_steps
        )
        novelty, reward, _ = intrinsic_rewards(novelty, novelty_params, random_params, transitions)
        stream = Stream(memories, Step(transitions, reward))
        is_full = jnp.arange(num_rows) < warmup_updates * config.num_envs
        return State(
            key=key,
            params=Params(networks, jnp.zeros(config.num_policies)),
            target_params=jax.tree.map(jnp.copy, networks),
            novelty_params=novelty_params,
            random_params=random_params,
            opt_state=optimizer.init(networks),
            novelty_opt_state=novelty_optimizer.init(novelty_params),
            buffer=buffer.init(cut_sequences(*stream, config.num_steps, overlap)),
            priorities=init_priorities(is_full.astype(float)),
            pending=jax.tree.map(lambda x: x[warmup_steps - overlap :], stream),
            env=env_state,
            memory=memory,
            novelty=novelty,
            bandits=many(bandit),
        )

    def update(state, step):
        keys = jax.random.split(jax.random.fold_in(state.key, step), 3)
        key_arms, key_rollout, key_learn = keys
        arms, networks = choose_arms(state.bandits, key_arms), state.params.networks
        (env_state, memory), transitions, memories, episodes = collect(
            networks, (state.env, state.memory), arms, key_rollout, config.num_steps
        )
        policies = jnp.where(memories.policy < 0, arms, memories.policy)
        bandits = record_episodes(state.bandits, state.env, policies, transitions)
        returns = mean_returns(bandits, config.num_policies)
        novelty, intrinsic_reward, factor = intrinsic_rewards(
            state.novelty, state.novelty_params, state.random_params, transitions
        )
        stream = Stream(memories, Step(transitions, intrinsic_reward))
        extended = jax.tree.map(lambda *x: jnp.concatenate(x), state.pending, stream)
        sequences = cut_sequences(*extended, config.num_steps, overlap)
        buffer_state = buffer.add(state.buffer, sequences, warmup_updates + step)
        first_row = (warmup_updates + step) % num_blocks * config.num_envs
        new_rows = first_row + jnp.arange(config.num_envs)
        priorities = set_priorities(state.priorities, new_rows, state.priorities.largest)

        def learn(carry, inputs):
            params, target_params, opt_state, priorities = carry
            key, gradient_step = inputs
            index, _ = sample_rows(priorities, key, config.batch_size)
            batch = rows(buffer_state, index)
            (loss_value, errors), grads = jax.value_and_grad(loss, has_aux=True)(
                params, target_params, batch
            )
            new_priority = jax.vmap(priority, (0, None, None, None))(
                jnp.mean(jnp.abs(errors), axis=(1, 3)),
                config.prioritized_replay_eta,
                config.prioritized_replay_alpha,
                config.prioritized_replay_eps,
            )
            priorities = set_priorities(priorities, index, new_priority)
            updates, opt_state = optimizer.update(grads, opt_state)
            params = optax.apply_updates(params, updates)
            polyak = optax.incremental_update(params, target_params, config.tau)
            is_copy_step = (gradient_step + 1) % config.target_network_frequency == 0
            target_params = jax.tree.map(
                lambda new, old: jnp.where(is_copy_step, new, old), polyak, target_params
            )
            return (params, target_params, opt_state, priorities), loss_value

        keys = jax.random.split(key_learn, config.gradient_steps)
        gradient_steps = step * config.gradient_steps + jnp.arange(config.gradient_steps)
        (new_networks, target_params, opt_state, priorities), losses = jax.lax.scan(
            learn,
            (networks, state.target_params, state.opt_state, priorities),
            (keys, gradient_steps),
        )
        grads, metrics = jax.grad(novelty_loss, has_aux=True)(
            state.novelty_params, state.random_params, transitions
        )
        updates, novelty_opt_state = novelty_optimizer.update(grads, state.novelty_opt_state)
        novelty_params = optax.apply_updates(state.novelty_params, updates)

        q, _ = apply(networks, memories.hidden, (transitions.obs, memories.action))
        value = jnp.take_along_axis(q[0, ..., 0, :], transitions.action[..., None], axis=-1)
        metrics |= episodes | {
            "loss": losses.mean(),
            "value": inverse_rescale(value, config.rescale_eps).mean(),
            "arm": policies.mean(),
            "best_arm": jnp.argmax(returns).astype(returns.dtype),
            "intrinsic_reward": intrinsic_reward.mean(),
            "modulator": factor.mean(),
        }
        return State(
            key=state.key,
            params=Params(new_networks, returns),
            target_params=target_params,
            novelty_params=novelty_params,
            random_params=state.random_params,
            opt_state=opt_state,
            novelty_opt_state=novelty_opt_state,
            buffer=buffer_state,
            priorities=priorities,
            pending=jax.tree.map(lambda x: x[config.num_steps :], extended),
            env=env_state,
            memory=memory,
            novelty=novelty,
            bandits=bandits,
        ), metrics

    def act(params, memory, obs, key):
        q_values, hidden = apply(params.networks, memory.hidden, (obs, memory.action))
        action = jnp.argmax(total(q_values)[jnp.argmax(params.returns)])
        return action, Memory(hidden, action, memory.policy)

    return Algorithm(
        init, update, act, num_updates, steps_per_update, initial_steps, init_memory=init_memory
    )


if __name__ == "__main__":
    main(Config, make)
