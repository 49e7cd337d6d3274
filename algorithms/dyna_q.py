"""Dyna-Q and Dyna-Q+ (tabular).

Differs from q_learning.py in that it learns a model of the MDP, and after each real step makes
`num_planning_steps` more updates of Q with transitions that the model remembers.

Sutton 1990, Integrated Architectures for Learning, Planning, and Reacting Based on Approximating
Dynamic Programming, https://doi.org/10.1016/B978-1-55860-141-3.50030-4; Sutton & Barto 2018,
sections 8.2 and 8.3, http://incompleteideas.net/book/the-book-2nd.html

    Model(s, a) ← r, s', d
    Q(s, a) ← Q(s, a) + α [r + κ √τ + γ (1 - d) max_a' Q(s', a') - Q(s, a)]

with d = 1 where the MDP terminated; a time limit does not end the MDP. The second line is planning:
(s, a) is drawn from the pairs that were tried, r, s' and d from the model, and τ is the number of
real steps since (s, a) was last tried. κ = 0 is Dyna-Q. Dyna-Q+ has κ > 0 and `plan_untried`: the
untried actions of visited states are drawn too, and are taken to lead back with reward 0. The step
size at the n-th update of (s, a), real or planned, is α n^-p.

Departs from the book: the model may remember the last `num_outcomes` outcomes of (s, a), and draws
one of them. The book has 1, for what is deterministic; on anything else an outcome that is long
remembered counts too much, and Q converges to Q* only as `num_outcomes` grows. An update of ours is
`num_steps` steps of the agent, each with its own planning.
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
    num_planning_steps: int = 5  # updates with remembered transitions, per environment step
    num_outcomes: int = 1  # outcomes of a state and action that are remembered, the last ones
    kappa: float = 0.0  # bonus reward of planning, per √steps since the action was last tried
    plan_untried: bool = False  # plan with untried actions too: back to the state, reward 0

    def __post_init__(self):
        require(
            self,
            "num_steps >= 1",
            "total_timesteps >= num_steps",
            "0 < learning_rate <= 1",
            "0 <= learning_rate_power <= 1",
            "0 <= gamma <= 1",
            "0 <= epsilon <= 1",
            "num_planning_steps >= 0",
            "num_outcomes >= 1",
            "kappa >= 0",
        )


class Model(NamedTuple):
    next_obs: jax.Array  # [S, A, K] the last K outcomes
    reward: jax.Array  # [S, A, K]
    terminated: jax.Array  # [S, A, K]
    count: jax.Array  # [S, A] how often tried
    last_time: jax.Array  # [S, A] when last tried
    pairs: jax.Array  # [S * A] s * A + a of those to plan with, in the order they became known
    num_pairs: jax.Array  # [] how many; the rest of `pairs` means nothing


class State(NamedTuple):
    key: jax.Array
    params: jax.Array  # Q [S, A]
    visits: jax.Array  # n [S, A]
    model: Model
    env: EnvState


def td_error(q, transition: Transition, gamma) -> jax.Array:
    """δ = r + γ (1 - d) max_a' Q(s', a') - Q(s, a), for one transition."""
    obs, action, reward, next_obs, terminated, _ = transition
    return reward + gamma * (1 - terminated) * jnp.max(q[next_obs]) - q[obs, action]


def step_size(learning_rate, power, visits) -> jax.Array:
    """α n^-p, at the n-th visit."""
    return learning_rate * visits**-power


def epsilon_greedy(key, q_values, epsilon) -> jax.Array:
    """argmax_a q_values [A] with probability 1 - ε, ties at random, else any action; scalar."""
    explore, which = jax.random.uniform(key, 2)
    allowed = (q_values == jnp.max(q_values)) | (explore < epsilon)
    return jnp.argmax(jnp.cumsum(allowed) > which * jnp.sum(allowed))


def learn(model: Model, transition: Transition, time, plan_untried) -> Model:
    """Model(s, a) ← r, s', d; what is new joins the pairs."""
    obs, action, reward, next_obs, terminated, _ = transition
    num_actions, num_outcomes = model.reward.shape[1:]
    if plan_untried:
        new, actions = jnp.all(model.count[obs] == 0), jnp.arange(num_actions)
    else:
        new, actions = model.count[obs, action] == 0, action[None]
    tail = model.num_pairs + jnp.arange(actions.size)  # where the list is full, nothing is written
    slot = obs, action, model.count[obs, action] % num_outcomes
    return Model(
        next_obs=model.next_obs.at[slot].set(next_obs),
        reward=model.reward.at[slot].set(reward),
        terminated=model.terminated.at[slot].set(terminated),
        count=model.count.at[obs, action].add(1),
        last_time=model.last_time.at[obs, action].set(time),
        pairs=model.pairs.at[tail].set(obs * num_actions + actions),
        num_pairs=model.num_pairs + new * actions.size,
    )


def recall(key, model: Model, time, kappa) -> Transition:
    """(s, a) ~ pairs; r, s', d ~ Model(s, a), with κ √τ more reward."""
    num_actions, num_outcomes = model.reward.shape[1:]
    which, outcome = jax.random.uniform(key, 2)
    pair = model.pairs[jnp.int32(which * model.num_pairs)]
    obs, action = pair // num_actions, pair % num_actions
    slot = obs, action, jnp.int32(outcome * jnp.clip(model.count[obs, action], 1, num_outcomes))
    bonus = kappa * jnp.sqrt(time - model.last_time[obs, action])
    return Transition(
        obs,
        action,
        reward=model.reward[slot] + bonus,
        next_obs=model.next_obs[slot],
        terminated=model.terminated[slot],
        truncated=jnp.zeros((), bool),
    )


def make(config: Config) -> Algorithm:
    env = make_env(config.env_id, 1, actions="discrete", observations="integer")

    def init(key):
        key, key_env = jax.random.split(key)
        q = jnp.zeros((env.num_states, env.num_actions))
        zeros = jnp.zeros(q.shape, int)
        shape = (*q.shape, config.num_outcomes)
        model = Model(
            next_obs=jnp.broadcast_to(jnp.arange(env.num_states)[:, None, None], shape),
            reward=jnp.zeros(shape),
            terminated=jnp.zeros(shape, bool),
            count=zeros,
            last_time=zeros,
            pairs=zeros.ravel(),
            num_pairs=jnp.int32(0),
        )
        return State(key, q, zeros, model, env.reset(key_env))

    def update(state, step):
        def learn_values(carry, transition):
            q, visits = carry
            visited = transition.obs, transition.action
            error = td_error(q, transition, config.gamma)
            visits = visits.at[visited].add(1)
            alpha = step_size(config.learning_rate, config.learning_rate_power, visits[visited])
            q = q.at[visited].add(alpha * error)
            return (q, visits), (q[visited], jnp.abs(error))

        def interact(carry, x):
            time, key = x
            q, visits, model, env_state = carry
            key_action, key_env, key_planning = jax.random.split(key, 3)
            action = epsilon_greedy(key_action, q[env_state.obs[0]], config.epsilon)
            env_state, transitions = env.step(env_state, action[None], key_env)

            transition = jax.tree.map(lambda x: x[0], transitions)
            (q, visits), (value, error) = learn_values((q, visits), transition)
            model = learn(model, transition, time, config.plan_untried)

            keys = jax.random.split(key_planning, config.num_planning_steps)
            planned = jax.vmap(recall, (0, None, None, None))(keys, model, time, config.kappa)
            (q, visits), _ = jax.lax.scan(learn_values, (q, visits), planned)

            return (q, visits, model, env_state), (env_state.episode_return[0], value, error)

        keys = jax.random.split(jax.random.fold_in(state.key, step), config.num_steps)
        times = step * config.num_steps + jnp.arange(config.num_steps)
        (q, visits, model, env_state), (episode_return, value, error) = jax.lax.scan(
            interact, (state.params, state.visits, state.model, state.env), (times, keys)
        )
        metrics = {
            "episode_return": jnp.nanmean(episode_return),
            "value": value.mean(),
            "td_error": error.mean(),
        }
        return State(state.key, q, visits, model, env_state), metrics

    def act(params, obs, key):
        return jnp.argmax(params[obs])

    return Algorithm(
        init, update, act, config.total_timesteps // config.num_steps, config.num_steps
    )


if __name__ == "__main__":
    main(Config, make)
