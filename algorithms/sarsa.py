"""SARSA (tabular).

Differs from q_learning.py in the value of the next state: Q of the action that is taken there, not
the maximum.

Rummery & Niranjan 1994, On-Line Q-Learning Using Connectionist Systems, technical report
CUED/F-INFENG/TR 166; Sutton & Barto 2018, section 6.4,
http://incompleteideas.net/book/the-book-2nd.html

    Q(s, a) ← Q(s, a) + α [r + γ (1 - d) Q(s', a') - Q(s, a)]               (eq. 6.7)

with d = 1 where the MDP terminated; a time limit does not end the MDP: a' is then drawn at s' as
usual, but never taken. The step size at the n-th visit to (s, a) is α n^-p. With 1/2 < p <= 1, Q
converges to the values of the best policy whose actions are random with probability ε; p = 0 is the
constant step of the book's examples.

Departs from the book: nothing. `update` takes `steps_per_update` steps, each of which changes Q.

Metrics: `value`, mean Q(s, a) of the actions taken, after their updates (discounted return);
`td_error`, mean size of the bracket (the same unit).
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
    env_id: str = "CliffWalking-tabular"  # any environment with numbered states and actions
    total_timesteps: int = 20_000  # environment steps
    steps_per_update: int = 100  # environment steps of one update
    learning_rate: float = 0.5  # step size α, at the first visit to a state and action
    learning_rate_power: float = 0.0  # p: at the n-th visit it is α n^-p
    gamma: float | None = None  # discount factor; None: the environment's own
    epsilon: float = 0.1  # probability of a random action

    def __post_init__(self):
        require(self, "total_timesteps >= steps_per_update", "0 < learning_rate <= 1")


class State(NamedTuple):
    key: jax.Array
    params: jax.Array  # Q [S, A]
    visits: jax.Array  # n [S, A]
    env: EnvState
    action: jax.Array  # [] of the next step


def td_error(q_value, reward, next_value, terminated, gamma) -> jax.Array:
    """δ = r + γ (1 - d) V(s') - Q(s, a), for one transition; no gradient through the target."""
    target = reward + gamma * (1 - terminated) * next_value
    return jax.lax.stop_gradient(target) - q_value


def make(config: Config) -> Algorithm:
    env = make_env(config.env_id, 1, actions="discrete", observations="integer")
    gamma = env.gamma if config.gamma is None else config.gamma
    num_updates = config.total_timesteps // config.steps_per_update

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
            next_value = q[transition.next_obs, next_action]
            reward, terminated = transition.reward, transition.terminated
            error = td_error(q[visited], reward, next_value, terminated, gamma)
            visits = visits.at[visited].add(1)
            alpha = config.learning_rate * visits[visited] ** -config.learning_rate_power
            q = q.at[visited].add(alpha * error)

            first_action = epsilon_greedy(key_first, q[env_state.obs[0]], config.epsilon)
            done = transition.terminated | transition.truncated
            action = jnp.where(done, first_action, next_action)

            report = env_state.episode, q[visited], jnp.abs(error)
            return (q, visits, env_state, action), report

        keys = jax.random.split(jax.random.fold_in(state.key, step), config.steps_per_update)
        (q, visits, env_state, action), (episode, value, error) = jax.lax.scan(
            interact, (state.params, state.visits, state.env, state.action), keys
        )
        metrics = {
            **episode_metrics(episode),
            "value": value.mean(),
            "td_error": error.mean(),
        }
        return State(state.key, q, visits, env_state, action), metrics

    def act(params, obs, key):
        return jnp.argmax(params[obs])

    return Algorithm(init, update, act, num_updates, config.steps_per_update)


if __name__ == "__main__":
    main(Config, make)
