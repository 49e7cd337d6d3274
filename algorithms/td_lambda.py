"""Temporal-difference prediction: TD(0), n-step TD and TD(λ) (tabular).

Sutton 1988, Learning to Predict by the Methods of Temporal Differences,
https://doi.org/10.1007/BF00115009; Sutton & Barto 2018, sections 6.1, 7.1 and 12.2,
http://incompleteideas.net/book/the-book-2nd.html

    V ← V + α [G_t:t+n - V(s_t)] z_t                                        (eqs. 7.2, 12.7)
    G_t:t+n = r_t+1 + γ r_t+2 + ... + γⁿ⁻¹ r_t+n + γⁿ V(s_t+n)              (eq. 7.1)
    z_t = γ λ z_t-1 + 1(s_t)                                                (eq. 12.5)

of a given policy. n-step TD has λ = 0, TD(λ) with accumulating traces has n = 1, TD(0) has both.
The return is cut where the episode ends: by V = 0 where the MDP terminated, by V(s') at a time
limit.

Departs from the book: nothing. The update of s_t is made once n more steps are known, be they of
the next episode: the book makes the last n - 1 updates of an episode at its end, and none in the
first n - 1 steps of the next, which is the same order. The first n steps are taken in `init`.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from common.algorithm import Algorithm, require
from common.environments.mdp import given_policy, policy_values, reachable
from common.environments.tabular import TABULAR, make_mdp
from common.envs import EnvState, Transition, make_env, rollout
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "RandomWalk19-tabular"  # any environment with numbered states and actions
    policy: str = "uniform"  # what is evaluated; or a .npy file of probabilities [S, A]
    total_timesteps: int = 10_000  # environment steps
    num_steps: int = 100  # environment steps of one update
    learning_rate: float = 0.1  # step size α
    gamma: float = 1.0  # discount factor
    n_step: int = 1  # rewards before the bootstrap, n
    td_lambda: float = 0.0  # decay of the eligibility trace, λ; needs n = 1
    initial_value: float = 0.0  # of every state

    def __post_init__(self):
        require(
            self,
            "num_steps >= 1",
            "0 < learning_rate <= 1",
            "0 <= gamma <= 1",
            "n_step >= 1",
            "0 <= td_lambda <= 1",
            "n_step == 1 or td_lambda == 0",
            "total_timesteps >= num_steps + n_step",
            "initial_value >= 0",
        )


class State(NamedTuple):
    key: jax.Array
    params: jax.Array  # V [S]
    trace: jax.Array  # z [S]
    recent: Transition  # [n] whose updates are still to be made
    env: EnvState
    exact: jax.Array  # [S] the true values, NaN if they are not known


def n_step_return(v, window: Transition, gamma) -> jax.Array:
    """G = r_1 + γ r_2 + ... + γⁿ⁻¹ r_n + γⁿ V(s_n) of n transitions, cut where the episode ends."""
    n = window.reward.shape[0]
    done = window.terminated | window.truncated
    in_episode = jnp.cumprod(jnp.append(True, ~done[:-1]))
    last = done.at[-1].set(True)
    bootstrap = last * (1 - window.terminated) * v[window.next_obs]
    return jnp.sum(in_episode * gamma ** jnp.arange(n) * (window.reward + gamma * bootstrap))


def accumulating_trace(trace, obs, gamma, td_lambda) -> jax.Array:
    """z ← γ λ z + 1(s), [S]."""
    return (gamma * td_lambda * trace).at[obs].add(1)


def root_mean_square(x, where) -> jax.Array:
    """√ of the mean of x², over the entries `where` says."""
    return jnp.sqrt(jnp.mean(jnp.square(x), where=where))


def make(config: Config) -> Algorithm:
    env = make_env(config.env_id, 1, actions="discrete", observations="integer")
    policy = given_policy(config.policy, env.num_states, env.num_actions)
    fixed = config.env_id in TABULAR and not TABULAR[config.env_id].random
    mdp = make_mdp(config.env_id) if fixed else None
    scored = None
    if fixed:  # the states that can be visited
        P = np.einsum("sa,sat->st", policy, mdp.P)
        scored = reachable(P, mdp.start > 0) & ~mdp.terminal

    def act(params, obs, key):
        return jax.random.categorical(key, jnp.log(jnp.asarray(policy, float))[obs])

    def play(env_state, key, num_steps):
        policy = lambda obs, key: act(None, obs, key)
        env_state, transitions, episode_return = rollout(env, policy, env_state, key, num_steps)
        return env_state, jax.tree.map(lambda x: x[:, 0], transitions), episode_return

    def init(key):
        key, key_env, key_warmup = jax.random.split(key, 3)
        env_state, recent, _ = play(env.reset(key_env), key_warmup, config.n_step)
        zeros = jnp.zeros(env.num_states)
        exact = policy_values(mdp, policy, config.gamma) if fixed else zeros + jnp.nan
        return State(key, zeros + config.initial_value, zeros, recent, env_state, exact)

    def update(state, step):
        def learn(carry, t):
            v, trace = carry
            slice_of = lambda x: jax.lax.dynamic_slice_in_dim(x, t, config.n_step)
            window = jax.tree.map(slice_of, transitions)
            first = jax.tree.map(lambda x: x[0], window)

            error = n_step_return(v, window, config.gamma) - v[first.obs]
            trace = accumulating_trace(trace, first.obs, config.gamma, config.td_lambda)
            v = v + config.learning_rate * error * trace

            done = first.terminated | first.truncated
            rms_error = jnp.where(done, root_mean_square(v - state.exact, scored), jnp.nan)
            trace = jnp.where(done, 0, trace)
            return (v, trace), (v[first.obs], jnp.abs(error), rms_error)

        key = jax.random.fold_in(state.key, step)
        env_state, recent, episode_return = play(state.env, key, config.num_steps)
        transitions = jax.tree.map(lambda *x: jnp.concatenate(x), state.recent, recent)
        (v, trace), (value, error, rms_error) = jax.lax.scan(
            learn, (state.params, state.trace), jnp.arange(config.num_steps)
        )
        recent = jax.tree.map(lambda x: x[config.num_steps :], transitions)
        metrics = {
            "episode_return": episode_return,
            "value": value.mean(),
            "td_error": error.mean(),
            "rms_error": jnp.nanmean(rms_error),
        }
        return State(state.key, v, trace, recent, env_state, state.exact), metrics

    num_updates = (config.total_timesteps - config.n_step) // config.num_steps
    return Algorithm(init, update, act, num_updates, config.num_steps, config.n_step)


if __name__ == "__main__":
    main(Config, make)
