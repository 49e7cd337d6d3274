"""Temporal-difference prediction: TD(0), n-step TD and TD(λ) (tabular).

Sutton 1988, Learning to Predict by the Methods of Temporal Differences,
https://doi.org/10.1007/BF00115009; Sutton & Barto 2018, sections 6.1, 7.1 and 12.2,
http://incompleteideas.net/book/the-book-2nd.html

    V ← V + α [G_t:t+n - V(s_t)] z_t                                        (eqs. 7.2, 12.7)
    G_t:t+n = r_t+1 + γ r_t+2 + ... + γⁿ⁻¹ r_t+n + γⁿ V(s_t+n)              (eq. 7.1)
    z_t = γ λ z_t-1 + 1(s_t)                                                (eq. 12.5)

for a fixed policy. n-step TD has λ = 0, TD(λ) with accumulating traces has n = 1, TD(0) has both.
Where the episode ends, the return is cut: it bootstraps from 0 where the MDP terminated, and from
V(s') at a time limit.

Departs from the book: nothing. The update of s_t is made when n more steps are known, even if they
belong to the next episode. The book makes the last n - 1 updates of an episode at its end, and none
in the first n - 1 steps of the next one: the order is the same. `init` takes the first n steps.

Metrics: `value`, mean V(s) of the states visited, after their updates (discounted return);
`td_error`, mean size of the bracket; `rms_error`, root mean square error of V over the states that
the policy visits, after the update, NaN if their true values are unknown (the same unit).
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from common.algorithm import Algorithm, require
from common.environments.mdp import load_policy, policy_values, visited_states
from common.environments.tabular import TABULAR, make_mdp
from common.envs import EnvState, Transition, make_env, rollout
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "RandomWalk19-tabular"  # any environment with numbered states and actions
    policy: str = "uniform"  # the policy to evaluate: uniform, or a .npy file of π(a|s) [S, A]
    total_timesteps: int = 10_000  # environment steps
    steps_per_update: int = 100  # environment steps of one update
    learning_rate: float = 0.1  # step size α
    gamma: float | None = None  # discount factor; None: the environment's own
    n_step: int = 1  # rewards before the bootstrap, n
    td_lambda: float = 0.0  # decay of the eligibility trace, λ; needs n = 1
    initial_value: float = 0.0  # of every state

    def __post_init__(self):
        require(
            self,
            "total_timesteps >= steps_per_update + n_step",
            "0 < learning_rate <= 1",
            "n_step == 1 or td_lambda == 0",
            "initial_value >= 0",
        )


class State(NamedTuple):
    key: jax.Array
    params: jax.Array  # V [S]
    trace: jax.Array  # z [S]
    pending: Transition  # [n] the last steps, whose updates are not made yet
    env: EnvState
    exact: jax.Array  # [S] the true values, NaN if they are not known


def n_step_return(reward, next_value, terminated, truncated, gamma) -> jax.Array:
    """G = r_1 + γ r_2 + ... + γⁿ⁻¹ r_n + γⁿ V(s_n), cut where the episode ends.

    The arguments are of n steps in a row, [n]; `next_value` is V(s_1), ..., V(s_n).
    """
    done = terminated | truncated
    in_episode = jnp.cumprod(jnp.append(True, ~done[:-1]))
    is_last = done.at[-1].set(True)
    bootstrap = is_last * (1 - terminated) * next_value
    discount = gamma ** jnp.arange(len(reward))
    return jnp.sum(in_episode * discount * (reward + gamma * bootstrap))


def accumulating_trace(trace, obs, gamma, td_lambda) -> jax.Array:
    """z ← γ λ z + 1(s), for z [S] and the number s of a state; [S]."""
    return (gamma * td_lambda * trace).at[obs].add(1)


def root_mean_square(x, where) -> jax.Array:
    """√(mean of x²) over the entries of x [S] where `where` [S] is true; over all if it is None."""
    return jnp.sqrt(jnp.mean(jnp.square(x), where=where))


def make(config: Config) -> Algorithm:
    env = make_env(config.env_id, 1, actions="discrete", observations="integer")
    gamma = env.gamma if config.gamma is None else config.gamma
    policy = load_policy(config.policy, env.num_states, env.num_actions)
    is_fixed = config.env_id in TABULAR and not TABULAR[config.env_id].random
    mdp = make_mdp(config.env_id) if is_fixed else None
    scored = None if mdp is None else visited_states(mdp, policy)
    num_updates = (config.total_timesteps - config.n_step) // config.steps_per_update

    def act(params, obs, key):
        return jax.random.categorical(key, jnp.log(jnp.asarray(policy, float))[obs])

    def play(env_state, key, num_steps):
        env_state, transitions, episodes = rollout(
            env, lambda obs, key: act(None, obs, key), env_state, key, num_steps
        )
        return env_state, jax.tree.map(lambda x: x[:, 0], transitions), episodes

    def init(key):
        key, key_env, key_warmup = jax.random.split(key, 3)
        env_state, pending, _ = play(env.reset(key_env), key_warmup, config.n_step)
        zeros = jnp.zeros(env.num_states)
        exact = jnp.full(env.num_states, jnp.nan, float)
        if mdp is not None:
            exact = policy_values(mdp, policy, gamma)
        return State(key, zeros + config.initial_value, zeros, pending, env_state, exact)

    def update(state, step):
        def learn(carry, t):
            v, trace = carry
            window = jax.tree.map(
                lambda x: jax.lax.dynamic_slice_in_dim(x, t, config.n_step), transitions
            )
            first = jax.tree.map(lambda x: x[0], window)

            next_value = v[window.next_obs]
            target = n_step_return(
                window.reward, next_value, window.terminated, window.truncated, gamma
            )
            error = target - v[first.obs]
            trace = accumulating_trace(trace, first.obs, gamma, config.td_lambda)
            v = v + config.learning_rate * error * trace

            done = first.terminated | first.truncated
            trace = jnp.where(done, 0, trace)
            return (v, trace), (v[first.obs], jnp.abs(error))

        key = jax.random.fold_in(state.key, step)
        env_state, played, episodes = play(state.env, key, config.steps_per_update)
        transitions = jax.tree.map(lambda *x: jnp.concatenate(x), state.pending, played)
        (v, trace), (value, error) = jax.lax.scan(
            learn, (state.params, state.trace), jnp.arange(config.steps_per_update)
        )
        pending = jax.tree.map(lambda x: x[config.steps_per_update :], transitions)
        metrics = {
            **episodes,
            "value": value.mean(),
            "td_error": error.mean(),
            "rms_error": root_mean_square(v - state.exact, scored),
        }
        return State(state.key, v, trace, pending, env_state, state.exact), metrics

    def picture(state):
        """Return the learned values, the true ones, and the policy that they are of."""
        return {"value": state.params, "exact": state.exact, "policy": policy}

    return Algorithm(
        init, update, act, num_updates, config.steps_per_update, config.n_step, picture
    )


if __name__ == "__main__":
    main(Config, make)
