"""Value iteration.

Bellman 1957, Dynamic Programming; Sutton & Barto 2018, section 4.4,
http://incompleteideas.net/book/the-book-2nd.html

    V(s) ← max_a Σ_s' P(s'|s,a) [r(s,a,s') + γ V(s')]                       (eq. 4.10)
    Q(s, a) ← Σ_s' P(s'|s,a) [r(s,a,s') + γ max_a' Q(s', a')]               (exercise 4.10)
    π(s) ← argmax_a Q(s, a)                                                 (eq. 4.9)

One `update` is one sweep over all states, of V or of Q as `--table` says. All seeds solve the same
MDP, but a random MDP (Garnet-tabular) is drawn for each seed; no environment plays that one, so
there is no final evaluation.

Departs from the book: synchronous sweeps, a fixed number of them (`bellman_residual` shows whether
they suffice). π is kept along the way, and an action is replaced only by one that is better by more
than θ: without a discount actions that lead to the goal and actions that only stay near it can tie
in the end, but not in the sweep in which the goal first counts. JAX_ENABLE_X64=1 gives float64.

Metrics: `episode_return`, NaN: there are no episodes; `value`, mean V of the start states
(discounted return); `bellman_residual`, largest change of an entry of V or Q in the sweep (the same
unit).
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from common.algorithm import Algorithm, require
from common.environments.mdp import MDP
from common.environments.tabular import TABULAR, make_mdp
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "FrozenLake-tabular"  # any <name>-tabular
    num_sweeps: int = 500  # over all states
    gamma: float | None = None  # discount factor; None: the MDP's own, as in its source
    table: Literal["V", "Q"] = "V"  # what the sweeps update
    theta: float = 1e-6  # θ: gains of an action up to this are ignored

    def __post_init__(self):
        require(self, "theta >= 0")


class Params(NamedTuple):
    v: jax.Array  # [S]
    q: jax.Array  # [S, A]
    policy: jax.Array  # [S] the action in each state


class State(NamedTuple):
    params: Params
    mdp: MDP | None  # the seed's own, if the MDP is random


def action_values(mdp: MDP, v, gamma) -> jax.Array:
    """q(s, a) = Σ_s' P(s'|s,a) [r(s,a,s') + γ v(s')], from v [S]; [S, A]."""
    return jnp.sum(mdp.P * (mdp.R + gamma * v), axis=-1)


def sweep_v(mdp: MDP, v, gamma) -> tuple[jax.Array, jax.Array]:
    """V(s) ← max_a q(s, a) with q(s, a) = Σ_s' P(s'|s,a) [r(s,a,s') + γ V(s')]; returns both."""
    q = action_values(mdp, v, gamma)
    return jnp.max(q, axis=-1), q


def sweep_q(mdp: MDP, q, gamma) -> tuple[jax.Array, jax.Array]:
    """Q(s, a) ← Σ_s' P(s'|s,a) [r(s,a,s') + γ max_a' Q(s', a')]; returns max_a Q(s, a), too."""
    q = action_values(mdp, jnp.max(q, axis=-1), gamma)
    return jnp.max(q, axis=-1), q


def policy_improvement(policy, q, theta) -> jax.Array:
    """π(s) ← argmax_a q(s, a) if max_a q(s, a) > q(s, π(s)) + θ, for π [S] and q [S, A]; [S]."""
    current = jnp.take_along_axis(q, policy[:, None], axis=-1)[:, 0]
    return jnp.where(jnp.max(q, axis=-1) > current + theta, jnp.argmax(q, axis=-1), policy)


def make(config: Config) -> Algorithm:
    is_random = config.env_id in TABULAR and TABULAR[config.env_id].random
    fixed_mdp = None if is_random else jax.tree.map(jnp.asarray, make_mdp(config.env_id))
    gamma = TABULAR[config.env_id].gamma if config.gamma is None else config.gamma

    def init(key):
        mdp = make_mdp(config.env_id, key) if is_random else fixed_mdp
        num_states, num_actions, _ = mdp.P.shape
        params = Params(
            v=jnp.zeros(num_states),
            q=jnp.zeros((num_states, num_actions)),
            policy=jnp.zeros(num_states, int),
        )
        return State(params, mdp if is_random else None)

    def update(state, step):
        mdp = state.mdp if is_random else fixed_mdp
        if config.table == "V":
            v, q = sweep_v(mdp, state.params.v, gamma)
            change = v - state.params.v
        else:
            v, q = sweep_q(mdp, state.params.q, gamma)
            change = q - state.params.q
        policy = policy_improvement(state.params.policy, q, config.theta)

        metrics = {
            "episode_return": jnp.array(jnp.nan, v.dtype),  # there are no episodes
            "value": mdp.start @ v,
            "bellman_residual": jnp.max(jnp.abs(change)),
        }
        return State(Params(v, q, policy), state.mdp), metrics

    def act(params, obs, key):
        return params.policy[obs]

    return Algorithm(init, update, None if is_random else act, config.num_sweeps, 1)


if __name__ == "__main__":
    main(Config, make)
