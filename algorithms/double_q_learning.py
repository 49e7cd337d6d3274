"""Double Q-learning (tabular).

Differs from q_learning.py in that it keeps two tables: a coin chooses which one learns, the best
next action by that one is valued by the other, and the agent acts on their sum.

van Hasselt 2010, Double Q-learning, https://papers.nips.cc/paper/3964-double-q-learning;
Sutton & Barto 2018, section 6.7, http://incompleteideas.net/book/the-book-2nd.html

    Q1(s, a) ← Q1(s, a) + α [r + γ (1 - d) Q2(s', argmax_a' Q1(s', a')) - Q1(s, a)]   (eq. 6.10)

or the same with Q1 and Q2 exchanged, with d = 1 where the MDP terminated; a time limit does not end
the MDP. The step size at the n-th update of (s, a) in a table is α n^-p. Q converges to Q* with
1/2 < p <= 1 (section 4 of the paper); p = 0 is the constant step of the book's examples.

Departs from the book: the argmax takes the first of equal actions. An update of ours is `num_steps`
steps of the agent, each with its own update of Q.
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
    params: jax.Array  # Q1 and Q2 [2, S, A]
    visits: jax.Array  # n [2, S, A]
    env: EnvState


def td_error(q1, q2, transition: Transition, gamma) -> jax.Array:
    """δ = r + γ (1 - d) Q2(s', argmax_a' Q1(s', a')) - Q1(s, a), for one transition."""
    obs, action, reward, next_obs, terminated, _ = transition
    next_action = jnp.argmax(q1[next_obs])
    return reward + gamma * (1 - terminated) * q2[next_obs, next_action] - q1[obs, action]


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
        key, key_env = jax.random.split(key)
        q = jnp.zeros((2, env.num_states, env.num_actions))
        return State(key, q, jnp.zeros(q.shape, int), env.reset(key_env))

    def update(state, step):
        def interact(carry, key):
            q, visits, env_state = carry
            key_action, key_env, key_coin = jax.random.split(key, 3)
            action = epsilon_greedy(key_action, q[:, env_state.obs[0]].sum(0), config.epsilon)
            env_state, transitions = env.step(env_state, action[None], key_env)

            transition = jax.tree.map(lambda x: x[0], transitions)
            coin = jax.random.bernoulli(key_coin).astype(int)
            visited = coin, transition.obs, transition.action
            error = td_error(q[coin], q[1 - coin], transition, config.gamma)
            visits = visits.at[visited].add(1)
            alpha = step_size(config.learning_rate, config.learning_rate_power, visits[visited])
            q = q.at[visited].add(alpha * error)

            report = env_state.episode_return[0], q[visited], jnp.abs(error)
            return (q, visits, env_state), report

        keys = jax.random.split(jax.random.fold_in(state.key, step), config.num_steps)
        (q, visits, env_state), (episode_return, value, error) = jax.lax.scan(
            interact, (state.params, state.visits, state.env), keys
        )
        metrics = {
            "episode_return": jnp.nanmean(episode_return),
            "value": value.mean(),
            "td_error": error.mean(),
        }
        return State(state.key, q, visits, env_state), metrics

    def act(params, obs, key):
        return jnp.argmax(params[:, obs].sum(0))

    return Algorithm(
        init, update, act, config.total_timesteps // config.num_steps, config.num_steps
    )


if __name__ == "__main__":
    main(Config, make)
