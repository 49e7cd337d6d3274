"""SARSA (tabular).

Differs from q_learning.py in the target, Q of the action that is really taken next, not the
maximum.

Rummery & Niranjan 1994, On-Line Q-Learning Using Connectionist Systems, technical report
CUED/F-INFENG/TR 166; Sutton & Barto 2018, section 6.4,
http://incompleteideas.net/book/the-book-2nd.html

    Q(s, a) ← Q(s, a) + α [r + γ (1 - d) Q(s', a') - Q(s, a)]               (eq. 6.7)

with d = 1 where the MDP terminated; a time limit does not end the MDP: a' is then drawn at s' like
any other, but not taken. The step size at the n-th visit to (s, a) is α n^-p. With 1/2 < p <=
1, Q converges to the values of the best policy whose actions are random with probability ε; p = 0
is the constant step of the book's examples.

Departs from the book: nothing. An update of ours is `num_steps` steps of the agent, each with its
own update of Q.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from common.algorithm import Algorithm, require
from common.envs import EnvState, Transition, make_env
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "CliffWalking-tabular"  # any environment with numbered states and actions
    total_timesteps: int = 20_000  # environment steps
    num_steps: int = 100  # environment steps of one update
    learning_rate: float = 0.5  # step size α, at the first visit to a state and action
    learning_rate_power: float = 0.0  # p: at the n-th visit it is α n^-p
    gamma: float = 1.0  # discount factor
    epsilon: float = 0.1  # probability of a random action

    def __post_init__(self):
        require(
            self,
            "num_steps >= 1",
            "total_timesteps >= num_steps",
            "0 < learning_rate <= 1",
            "0 <= learning_rate_power <= 1",
            "0 <= gamma <= 1",
            "0 <= epsilon <= 1",
        )


class State(NamedTuple):
    key: jax.Array
    params: jax.Array  # Q [S, A]
    visits: jax.Array  # n [S, A]
    env: EnvState
    action: jax.Array  # chosen already, for the next step


def td_error(q, transition: Transition, next_action, gamma) -> jax.Array:
    """δ = r + γ (1 - d) Q(s', a') - Q(s, a), for one transition."""
    obs, action, reward, next_obs, terminated, _ = transition
    return reward + gamma * (1 - terminated) * q[next_obs, next_action] - q[obs, action]


def step_size(learning_rate, power, visits) -> jax.Array:
    """α n^-p, at the n-th visit."""
    return learning_rate * visits**-power


def epsilon_greedy(key, q_values, epsilon) -> jax.Array:
    """argmax_a q_values [A] with probability 1 - ε, ties at random, else any action; scalar."""
    explore, which = jax.random.uniform(key, 2)
    allowed = (q_values == jnp.max(q_values)) | (explore < epsilon)
    return jnp.argmax(jnp.cumsum(allowed) > which * jnp.sum(allowed))


def make(config: Config) -> Algorithm:
    env = make_env(config.env_id, 1, actions="discrete", observations="integer")

    def init(key):
        key, key_env, key_action = jax.random.split(key, 3)
        q = jnp.zeros((env.num_states, env.num_actions))
        env_state = env.reset(key_env)
        action = epsilon_greedy(key_action, q[env_state.obs[0]], config.epsilon)
        return State(key, q, jnp.zeros(q.shape, int), env_state, action)

    def update(state, step):
        def interact(carry, key):
            q, visits, env_state, action = carry
            key_action, key_first, key_env = jax.random.split(key, 3)
            env_state, transitions = env.step(env_state, action[None], key_env)

            transition = jax.tree.map(lambda x: x[0], transitions)
            visited = transition.obs, transition.action
            next_action = epsilon_greedy(key_action, q[transition.next_obs], config.epsilon)
            error = td_error(q, transition, next_action, config.gamma)
            visits = visits.at[visited].add(1)
            alpha = step_size(config.learning_rate, config.learning_rate_power, visits[visited])
            q = q.at[visited].add(alpha * error)

            first_action = epsilon_greedy(key_first, q[env_state.obs[0]], config.epsilon)
            done = transition.terminated | transition.truncated
            action = jnp.where(done, first_action, next_action)

            report = env_state.episode_return[0], q[visited], jnp.abs(error)
            return (q, visits, env_state, action), report

        keys = jax.random.split(jax.random.fold_in(state.key, step), config.num_steps)
        (q, visits, env_state, action), (episode_return, value, error) = jax.lax.scan(
            interact, (state.params, state.visits, state.env, state.action), keys
        )
        metrics = {
            "episode_return": jnp.nanmean(episode_return),
            "value": value.mean(),
            "td_error": error.mean(),
        }
        return State(state.key, q, visits, env_state, action), metrics

    def act(params, obs, key):
        return jnp.argmax(params[obs])

    return Algorithm(
        init, update, act, config.total_timesteps // config.num_steps, config.num_steps
    )


if __name__ == "__main__":
    main(Config, make)
