"""Monte Carlo: first-visit and every-visit, prediction and ε-soft control (tabular).

Sutton & Barto 2018, sections 5.1 and 5.4, http://incompleteideas.net/book/the-book-2nd.html; Singh
& Sutton 1996, https://doi.org/10.1007/BF00114726, on first and every visits.

    V(s_t) ← V(s_t) + α n^-p [G_t - V(s_t)]                                 (eq. 6.1)
    G_t = r_t+1 + γ r_t+2 + γ² r_t+3 + ...                                  (eq. 3.8)

for the n-th visit to s_t, where all visits count, or only the first ones of each episode; α = p = 1
averages the returns, p = 0 is a constant step. V is that of a fixed policy; with `--control` the
table is Q(s, a), and the policy is ε-greedy in it.

The book plays an episode, and then goes back through it: G ← r + γ G, and where a visit counts, V
moves to G. Here the same is done on the way, so that an episode may have any length and span
several calls of `update`: all the updates of an episode make up one linear change of each entry,
V(s) ← scale V(s) + shift; a visit that counts adds one with G = 0, each reward then adds to the G
of all visits so far, and the end of the episode makes the change.

Departs from the book: the updates of an episode are made in the order of time, not backwards (no
difference for averages). A truncated episode counts with the return it has, so that V is the value
under the time limit; leaving such episodes out would favour short ones.

Metrics: `value`, mean table entry of the states visited (discounted return); `rms_error`, root mean
square error of V over the states that the policy visits, after the update, NaN with `--control` or
an unknown MDP (the same unit).
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from common.algorithm import Algorithm, require
from common.environments.mdp import load_policy, policy_values, visited_states
from common.environments.tabular import TABULAR, make_mdp
from common.envs import EnvState, episode_metrics, make_env
from common.exploration import epsilon_greedy, linear_schedule
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "Blackjack-tabular"  # any environment with numbered states and actions
    control: bool = False  # learn Q and improve the policy; else learn V of `policy`
    policy: str = "uniform"  # the policy to evaluate: uniform, or a .npy file of π(a|s) [S, A]
    first_visit: bool = True  # only the first visits of each episode count; else every visit
    total_timesteps: int = 100_000  # environment steps
    steps_per_update: int = 100  # environment steps of one update
    learning_rate: float = 1.0  # step size α, at the first visit to a state
    learning_rate_power: float = 1.0  # p: at the n-th visit it is α n^-p
    gamma: float | None = None  # discount factor; None: the environment's own
    epsilon_start: float = 0.1  # initial probability of a random action in control
    epsilon_end: float = 0.1  # final probability of a random action
    exploration_fraction: float = 1.0  # of the updates, over which epsilon falls linearly
    initial_value: float = 0.0  # of every entry of the table

    def __post_init__(self):
        require(
            self,
            "total_timesteps >= steps_per_update",
            "0 < learning_rate <= 1",
            "initial_value >= 0",
        )


class Updates(NamedTuple):
    """What the end of the current episode will do: v ← scale v + shift, for each entry.

    The arrays are shaped like the table.
    """

    seen: jax.Array  # bool: visited in this episode
    scale: jax.Array
    shift: jax.Array
    trace: jax.Array  # weight of the next reward in `shift`


class State(NamedTuple):
    key: jax.Array
    params: jax.Array  # V [S] or Q [S, A]
    visits: jax.Array  # n, shaped like params
    episode: Updates
    env: EnvState
    exact: jax.Array  # the true values, shaped like params; NaN if they are not known


def start_episode(table) -> Updates:
    """v ← v, before any visit."""
    zeros = jnp.zeros_like(table)
    return Updates(jnp.zeros_like(table, bool), jnp.ones_like(table), zeros, zeros)


def add_visit(episode: Updates, entry, alpha) -> Updates:
    """v ← (1 - α) v + α G for one entry, after the updates so far, with G = 0 before any reward.

    α is a scalar, 0 if the visit does not count.
    """
    return Updates(
        seen=episode.seen.at[entry].set(True),
        scale=episode.scale.at[entry].multiply(1 - alpha),
        shift=episode.shift.at[entry].multiply(1 - alpha),
        trace=episode.trace.at[entry].multiply(1 - alpha).at[entry].add(alpha),
    )


def add_reward(episode: Updates, reward, gamma) -> Updates:
    """G ← G + γᵏ r in each update so far, where k is the number of steps since its visit."""
    shift = episode.shift + reward * episode.trace
    return episode._replace(shift=shift, trace=gamma * episode.trace)


def end_episode(table, episode: Updates) -> jax.Array:
    """v ← scale v + shift, for every entry of the table."""
    return episode.scale * table + episode.shift


def root_mean_square(x, where) -> jax.Array:
    """√(mean of x²) over the entries of x [S] where `where` [S] is true; over all if it is None."""
    return jnp.sqrt(jnp.mean(jnp.square(x), where=where))


def make(config: Config) -> Algorithm:
    env = make_env(config.env_id, 1, actions="discrete", observations="integer")
    gamma = env.gamma if config.gamma is None else config.gamma
    policy = load_policy(config.policy, env.num_states, env.num_actions)
    is_fixed = config.env_id in TABULAR and not TABULAR[config.env_id].random
    mdp = make_mdp(config.env_id) if is_fixed and not config.control else None
    scored = None if mdp is None else visited_states(mdp, policy)
    shape = (env.num_states, env.num_actions) if config.control else (env.num_states,)
    num_updates = config.total_timesteps // config.steps_per_update
    decay_updates = config.exploration_fraction * num_updates

    def init(key):
        key, key_env = jax.random.split(key)
        table = jnp.zeros(shape) + config.initial_value
        visits = jnp.zeros(shape, int)
        exact = jnp.full(shape, jnp.nan, float)
        if mdp is not None:
            exact = policy_values(mdp, policy, gamma)
        return State(key, table, visits, start_episode(table), env.reset(key_env), exact)

    def update(state, step):
        epsilon = linear_schedule(step, config.epsilon_start, config.epsilon_end, decay_updates)

        def interact(carry, key):
            table, visits, episode, env_state = carry
            key_action, key_env = jax.random.split(key)
            obs = env_state.obs[0]
            if config.control:
                action = epsilon_greedy(key_action, table[obs], epsilon)
            else:
                action = act(table, obs, key_action)
            env_state, transitions = env.step(env_state, action[None], key_env)

            transition = jax.tree.map(lambda x: x[0], transitions)
            visited = (obs, action) if config.control else obs
            counts = ~episode.seen[visited] | (not config.first_visit)
            visits = visits.at[visited].add(counts)
            alpha = config.learning_rate * visits[visited] ** -config.learning_rate_power
            episode = add_visit(episode, visited, counts * alpha)
            episode = add_reward(episode, transition.reward, gamma)

            done = transition.terminated | transition.truncated
            table = jnp.where(done, end_episode(table, episode), table)
            episode = jax.tree.map(
                lambda new, old: jnp.where(done, new, old), start_episode(table), episode
            )

            report = env_state.episode, table[visited]
            return (table, visits, episode, env_state), report

        keys = jax.random.split(jax.random.fold_in(state.key, step), config.steps_per_update)
        (table, visits, episode, env_state), (played, value) = jax.lax.scan(
            interact, (state.params, state.visits, state.episode, state.env), keys
        )
        metrics = {
            **episode_metrics(played),
            "value": value.mean(),
            "rms_error": root_mean_square(table - state.exact, scored),
        }
        return State(state.key, table, visits, episode, env_state, state.exact), metrics

    def act(params, obs, key):
        if config.control:
            return jnp.argmax(params[obs])
        return jax.random.categorical(key, jnp.log(jnp.asarray(policy, float))[obs])

    def picture(state):
        """Return the learned values, the true ones, and the policy that they are of."""
        return {"value": state.params, "exact": state.exact, "policy": policy}

    picture = None if config.control else picture
    return Algorithm(init, update, act, num_updates, config.steps_per_update, picture=picture)


if __name__ == "__main__":
    main(Config, make)
