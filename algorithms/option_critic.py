"""Option-critic (tabular).

Differs from sarsa.py in what acts: options ω, each with a softmax policy π_ω(a | s; θ) and a
probability β_ω(s; ϑ) to stop in s. Both are learned by their gradients; Q has an axis of options.
The option that goes on is a memory.

Bacon, Harb & Precup 2017, The option-critic architecture, https://arxiv.org/abs/1609.05140

    Q_Ω(s, ω) = Σ_a π_ω(a | s) Q_U(s, ω, a)                                 (eq. 1)
    Q_U(s, ω, a) ← Q_U(s, ω, a) + α [r + γ (1 - d) U(ω, s') - Q_U(s, ω, a)] (eq. 2)
    U(ω, s') = (1 - β_ω(s')) Q_Ω(s', ω) + β_ω(s') V_Ω(s')                   (eq. 3)
    θ ← θ + α_θ ∇ln π_ω(a | s; θ) [Q_U(s, ω, a) - Q_Ω(s, ω)]                (theorem 1)
    ϑ ← ϑ - α_ϑ (1 - d) ∇β_ω(s'; ϑ) [Q_Ω(s', ω) - V_Ω(s') + η]              (theorem 2)

with d = 1 where the MDP terminated; a time limit does not end the MDP. The policy over options is
ε-greedy in Q_Ω, and V_Ω in the last line is its mean; in eq. 3 the critic, intra-option Q-learning,
has max_ω Q_Ω instead (algorithm 1). The last two lines see Q_U after its update. π_ω is the softmax
of θ / T, so ∇ln π = (1(a) - π) / T; β is the sigmoid of ϑ. The cost η keeps options from stopping
too soon. With one option this is an actor-critic, whose critic is Expected SARSA.

Departs from the paper: the baseline Q_Ω(s, ω) in theorem 1, which the paper has with networks only;
Q_U begins with small random numbers, which tell the options apart. `update` takes
`steps_per_update` steps, each of which learns. The evaluation policy takes the best option and its
likeliest action, but whether an option stops is random.

Metrics: `value`, mean Q_U(s, ω, a) of the actions taken, after their updates (discounted return);
`td_error`, mean size of the bracket in eq. 2 (the same unit); `option_duration`, mean steps of the
options that ended, NaN if none did: an option ends when it stops, even if it is chosen again, and
with the episode; `largest_share`, the share of the steps that the most used option took.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from common.algorithm import Algorithm, require
from common.envs import EnvState, episode_metrics, make_env
from common.exploration import epsilon_greedy
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "FourRooms-tabular"  # any environment with numbered states and actions
    total_timesteps: int = 50_000  # environment steps
    steps_per_update: int = 500  # environment steps of one update
    num_options: int = 4  # with 1: actor-critic
    learning_rate: float = 0.5  # α, of the critic Q_U
    policy_learning_rate: float = 0.02  # α_θ, of the options' policies
    termination_learning_rate: float = 0.25  # α_ϑ, of their terminations
    temperature: float = 0.1  # T, of the softmax over actions
    gamma: float | None = 0.99  # discount factor; None: the environment's own
    epsilon: float = 0.1  # probability of a random option
    deliberation_cost: float = 0.0  # η, of stopping an option (discounted return)

    def __post_init__(self):
        require(
            self,
            "total_timesteps >= steps_per_update",
            "0 < learning_rate <= 1",
            "deliberation_cost >= 0",
        )


class Params(NamedTuple):
    q: jax.Array  # Q_U [S, Ω, A]
    preferences: jax.Array  # θ [S, Ω, A]
    terminations: jax.Array  # ϑ [S, Ω]


class State(NamedTuple):
    key: jax.Array
    params: Params
    env: EnvState
    option: jax.Array  # [] of the next step
    duration: jax.Array  # [] steps that it has taken


def option_value(q_values, probabilities) -> jax.Array:
    """Q_Ω = Σ_a π(a) Q_U(a), eq. 1, over the last axis."""
    return jnp.sum(probabilities * q_values, axis=-1)


def mean_value(option_values, epsilon) -> jax.Array:
    """V_Ω = (1 - ε) max_ω Q_Ω + ε mean_ω Q_Ω, of the ε-greedy policy over options [Ω]."""
    return (1 - epsilon) * jnp.max(option_values) + epsilon * jnp.mean(option_values)


def value_on_arrival(stop, option_value, value) -> jax.Array:
    """U = (1 - β) Q_Ω + β V_Ω, eq. 3."""
    return (1 - stop) * option_value + stop * value


def td_error(q_value, reward, next_value, terminated, gamma) -> jax.Array:
    """δ = r + γ (1 - d) V(s') - Q(s, a), for one transition; no gradient through the target."""
    target = reward + gamma * (1 - terminated) * next_value
    return jax.lax.stop_gradient(target) - q_value


def policy_gradient(probabilities, action, advantage, temperature) -> jax.Array:
    """∇ln π(a; θ) A with π = softmax(θ / T) [A], of theorem 1; [A]."""
    one_hot = jnp.arange(len(probabilities)) == action
    return (one_hot - probabilities) / temperature * advantage


def termination_gradient(stop, advantage, cost) -> jax.Array:
    """-∇β(ϑ) (A_Ω + η) with β the sigmoid of ϑ, theorem 2."""
    return -stop * (1 - stop) * (advantage + cost)


def make(config: Config) -> Algorithm:
    env = make_env(config.env_id, 1, actions="discrete", observations="integer")
    gamma = env.gamma if config.gamma is None else config.gamma
    num_updates = config.total_timesteps // config.steps_per_update

    def policies(params, obs):
        """Return π [Ω, A] of all options in a state."""
        return jax.nn.softmax(params.preferences[obs] / config.temperature)

    def option_values(params, obs):
        """Return Q_Ω [Ω] in a state."""
        return option_value(params.q[obs], policies(params, obs))

    def stop_probability(params, obs, option):
        return jax.nn.sigmoid(params.terminations[obs, option])

    def init(key):
        key, key_q, key_env, key_option = jax.random.split(key, 4)
        shape = env.num_states, config.num_options, env.num_actions
        q = 1e-3 * jax.random.normal(key_q, shape)
        params = Params(q, jnp.zeros(shape), jnp.zeros(shape[:2]))
        env_state = env.reset(key_env)
        values = option_values(params, env_state.obs[0])
        option = epsilon_greedy(key_option, values, config.epsilon)
        return State(key, params, env_state, option, jnp.zeros((), int))

    def learn(params, option, transition):
        """Return the Params after one step of an option, and the TD error."""
        obs, action, next_obs = transition.obs, transition.action, transition.next_obs
        taken = obs, option, action
        stop = stop_probability(params, next_obs, option)

        next_values = option_values(params, next_obs)
        next_value = value_on_arrival(stop, next_values[option], jnp.max(next_values))
        reward, terminated = transition.reward, transition.terminated
        error = td_error(params.q[taken], reward, next_value, terminated, gamma)
        params = params._replace(q=params.q.at[taken].add(config.learning_rate * error))

        probabilities = policies(params, obs)[option]
        advantage = params.q[taken] - option_values(params, obs)[option]
        gradient = policy_gradient(probabilities, action, advantage, config.temperature)
        change = config.policy_learning_rate * gradient
        preferences = params.preferences.at[obs, option].add(change)

        next_values = option_values(params, next_obs)
        advantage = next_values[option] - mean_value(next_values, config.epsilon)
        gradient = termination_gradient(stop, advantage, config.deliberation_cost)
        change = config.termination_learning_rate * (1 - terminated) * gradient
        terminations = params.terminations.at[next_obs, option].add(change)
        return Params(params.q, preferences, terminations), error

    def update(state, step):
        def interact(carry, key):
            params, env_state, option, duration = carry
            key_action, key_env, key_stop, key_option = jax.random.split(key, 4)
            logits = params.preferences[env_state.obs[0], option] / config.temperature
            action = jax.random.categorical(key_action, logits)
            env_state, transitions = env.step(env_state, action[None], key_env)

            transition = jax.tree.map(lambda x: x[0], transitions)
            params, error = learn(params, option, transition)
            value = params.q[transition.obs, option, transition.action]

            stop = stop_probability(params, transition.next_obs, option)
            done = transition.terminated | transition.truncated
            ended = done | jax.random.bernoulli(key_stop, stop)
            report = env_state.episode, value, jnp.abs(error), ended, duration + 1, option
            values = option_values(params, env_state.obs[0])
            chosen = epsilon_greedy(key_option, values, config.epsilon)
            option = jnp.where(ended, chosen, option)
            duration = jnp.where(ended, 0, duration + 1)
            return (params, env_state, option, duration), report

        keys = jax.random.split(jax.random.fold_in(state.key, step), config.steps_per_update)
        carry, (episode, value, error, ended, durations, options) = jax.lax.scan(
            interact, (state.params, state.env, state.option, state.duration), keys
        )
        used = jax.nn.one_hot(options, config.num_options, dtype=value.dtype).mean(axis=0)
        metrics = {
            **episode_metrics(episode),
            "value": value.mean(),
            "td_error": error.mean(),
            "option_duration": jnp.mean(durations, where=ended, dtype=value.dtype),
            "largest_share": used.max(),
        }
        return State(state.key, *carry), metrics

    def act(params, memory, obs, key):
        ended = jax.random.bernoulli(key, stop_probability(params, obs, memory)) | (memory < 0)
        option = jnp.where(ended, jnp.argmax(option_values(params, obs)), memory)
        return jnp.argmax(params.preferences[obs, option]), option

    def init_memory():
        return jnp.array(-1)  # no option yet

    return Algorithm(
        init, update, act, num_updates, config.steps_per_update, init_memory=init_memory
    )


if __name__ == "__main__":
    main(Config, make)
