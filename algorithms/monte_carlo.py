"""Monte Carlo: first-visit and every-visit, prediction and ε-soft control (tabular).

Sutton & Barto 2018, sections 5.1 and 5.4, http://incompleteideas.net/book/the-book-2nd.html; Singh
& Sutton 1996, https://doi.org/10.1007/BF00114726, on first and every visits.

    V(s_t) ← V(s_t) + α n^-p [G_t - V(s_t)]                                 (eq. 6.1)
    G_t = r_t+1 + γ r_t+2 + γ² r_t+3 + ...                                  (eq. 3.8)

for the n-th visit to s_t, of all visits or of the first ones of each episode; α = p = 1 averages
the returns, p = 0 is a constant step. V is of a given policy; with `--control` the table is
Q(s, a), of the policy that is ε-greedy in it.

G_t is known at the end of the episode, and only then does the table change. Until then two more
tables follow what this end will leave of V(s) and what it will add, so that an episode may be of
any length and span updates: none is cut or left out.

Departs from the book: the updates of an episode are in the order of time, not backwards (the same
for averages). At a time limit nothing is left to bootstrap from, so the return counts as it is: V
is that of the MDP with its limit. Leaving such episodes out would prefer the short ones.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from common.algorithm import Algorithm, require
from common.environments.mdp import given_policy, policy_values, reachable
from common.environments.tabular import TABULAR, make_mdp
from common.envs import EnvState, make_env
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "Blackjack-tabular"  # any environment with numbered states and actions
    control: bool = False  # improve the policy, and learn Q; else learn V of a given policy
    policy: str = "uniform"  # what is evaluated; or a .npy file of probabilities [S, A]
    first_visit: bool = True  # only the first visits of each episode count; else every visit
    total_timesteps: int = 100_000  # environment steps
    num_steps: int = 100  # environment steps of one update
    learning_rate: float = 1.0  # step size α, at the first visit to a state
    learning_rate_power: float = 1.0  # p: at the n-th visit it is α n^-p
    gamma: float = 1.0  # discount factor
    epsilon_start: float = 0.1  # probability of a random action in control, at first
    epsilon_end: float = 0.1  # and at last
    exploration_fraction: float = 1.0  # of the updates, over which epsilon falls linearly
    initial_value: float = 0.0  # of every entry of the table

    def __post_init__(self):
        require(
            self,
            "num_steps >= 1",
            "total_timesteps >= num_steps",
            "0 < learning_rate <= 1",
            "0 <= learning_rate_power <= 1",
            "0 <= gamma <= 1",
            "0 <= epsilon_start <= 1",
            "0 <= epsilon_end <= 1",
            "0 < exploration_fraction <= 1",
            "initial_value >= 0",
        )


class Episode(NamedTuple):
    """What the end of the episode under way will do to each entry: v ← kept v + added."""

    kept: jax.Array
    added: jax.Array
    trace: jax.Array  # how much of the next reward will be added


class State(NamedTuple):
    key: jax.Array
    params: jax.Array  # V [S] or Q [S, A]
    visits: jax.Array  # n, like params
    episode: Episode  # like params
    env: EnvState
    exact: jax.Array  # [S] the true values, NaN if they are not known


def step_size(learning_rate, power, visits) -> jax.Array:
    """α n^-p, at the n-th visit."""
    return learning_rate * visits**-power


def new_episode(table) -> Episode:
    """Nothing visited: the end would change nothing."""
    return Episode(jnp.ones_like(table), jnp.zeros_like(table), jnp.zeros_like(table))


def visit(episode: Episode, visited, alpha) -> Episode:
    """v ← v + α [G - v] with G still 0: all that the end will do to the entry shrinks by 1 - α,
    and α of each reward from now on will be added."""
    return Episode(
        kept=episode.kept.at[visited].multiply(1 - alpha),
        added=episode.added.at[visited].multiply(1 - alpha),
        trace=episode.trace.at[visited].multiply(1 - alpha).at[visited].add(alpha),
    )


def collect(episode: Episode, reward, gamma) -> Episode:
    """G ← G + γᵏ r for all the visits so far, k steps ago each."""
    added = episode.added + reward * episode.trace
    return episode._replace(added=added, trace=gamma * episode.trace)


def end(table, episode: Episode) -> jax.Array:
    """v ← kept v + added."""
    return episode.kept * table + episode.added


def epsilon_greedy(key, q_values, epsilon) -> jax.Array:
    """argmax_a q_values [A] with probability 1 - ε, ties at random, else any action; scalar."""
    explore, which = jax.random.uniform(key, 2)
    allowed = (q_values == jnp.max(q_values)) | (explore < epsilon)
    return jnp.argmax(jnp.cumsum(allowed) > which * jnp.sum(allowed))


def linear_decay(step, start, end, num_steps) -> jax.Array:
    """From `start` at step 0 to `end` at `num_steps`, and `end` from there on."""
    return start + (end - start) * jnp.minimum(step / num_steps, 1)


def root_mean_square(x, where) -> jax.Array:
    """√ of the mean of x², over the entries `where` says."""
    return jnp.sqrt(jnp.mean(jnp.square(x), where=where))


def make(config: Config) -> Algorithm:
    env = make_env(config.env_id, 1, actions="discrete", observations="integer")
    policy = given_policy(config.policy, env.num_states, env.num_actions)
    known = config.env_id in TABULAR and not TABULAR[config.env_id].random and not config.control
    mdp = make_mdp(config.env_id) if known else None
    scored = None
    if known:  # the states that can be visited
        P = np.einsum("sa,sat->st", policy, mdp.P)
        scored = reachable(P, mdp.start > 0) & ~mdp.terminal
    shape = (env.num_states, env.num_actions) if config.control else (env.num_states,)
    num_updates = config.total_timesteps // config.num_steps

    def init(key):
        key, key_env = jax.random.split(key)
        zeros = jnp.zeros(shape)
        table = zeros + config.initial_value
        exact = policy_values(mdp, policy, config.gamma) if known else zeros + jnp.nan
        visits = zeros.astype(int)
        return State(key, table, visits, new_episode(table), env.reset(key_env), exact)

    def update(state, step):
        epsilon = linear_decay(
            step,
            config.epsilon_start,
            config.epsilon_end,
            config.exploration_fraction * num_updates,
        )

        def interact(carry, key):
            table, visits, episode, env_state = carry
            key_action, key_env = jax.random.split(key)
            obs = env_state.obs[0]
            if config.control:
                action = epsilon_greedy(key_action, table[obs], epsilon)
            else:
                action = act(table, obs, key_action)
            env_state, transitions = env.step(env_state, action[None], key_env)

            _, _, reward, _, terminated, truncated = jax.tree.map(lambda x: x[0], transitions)
            visited = (obs, action) if config.control else obs
            counted = (episode.kept[visited] == 1) | (not config.first_visit)
            visits = visits.at[visited].add(counted)
            alpha = step_size(config.learning_rate, config.learning_rate_power, visits[visited])
            episode = collect(visit(episode, visited, counted * alpha), reward, config.gamma)

            done = terminated | truncated
            table = jnp.where(done, end(table, episode), table)
            episode = jax.tree.map(lambda x, y: jnp.where(done, x, y), new_episode(table), episode)
            rms_error = jnp.where(done, root_mean_square(table - state.exact, scored), jnp.nan)
            metrics = env_state.episode_return[0], table[visited], rms_error
            return (table, visits, episode, env_state), metrics

        keys = jax.random.split(jax.random.fold_in(state.key, step), config.num_steps)
        (table, visits, episode, env_state), (episode_return, value, rms_error) = jax.lax.scan(
            interact, (state.params, state.visits, state.episode, state.env), keys
        )
        metrics = {
            "episode_return": jnp.nanmean(episode_return),
            "value": value.mean(),
            "rms_error": jnp.nanmean(rms_error),
        }
        return State(state.key, table, visits, episode, env_state, state.exact), metrics

    def act(params, obs, key):
        if config.control:
            return jnp.argmax(params[obs])
        return jax.random.categorical(key, jnp.log(jnp.asarray(policy, float))[obs])

    return Algorithm(init, update, act, num_updates, config.num_steps)


if __name__ == "__main__":
    main(Config, make)
