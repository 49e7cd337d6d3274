"""Value iteration.

Bellman 1957, Dynamic Programming; Sutton & Barto 2018, section 4.4,
http://incompleteideas.net/book/the-book-2nd.html

    V(s) ← max_a Σ_s' P(s'|s,a) [r(s,a,s') + γ V(s')]                       (eq. 4.10)
    Q(s, a) ← Σ_s' P(s'|s,a) [r(s,a,s') + γ max_a' Q(s', a')]               (exercise 4.10)

One `update` is one sweep over all states, of V or of Q as `--table` says. All seeds solve the same
MDP, but a random MDP (Garnet-tabular) is drawn for each seed; no environment plays that one, so
there is no final evaluation.

Departs from the book: synchronous sweeps, a fixed number of them; the metric `bellman_residual` is
the largest change of a sweep, to see when they have converged. JAX_ENABLE_X64=1 gives float64.
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
    gamma: float = 0.99  # discount factor
    table: Literal["V", "Q"] = "V"  # what the sweeps update

    def __post_init__(self):
        require(self)


class Params(NamedTuple):
    v: jax.Array  # [S]
    q: jax.Array  # [S, A]


class State(NamedTuple):
    params: Params
    mdp: MDP | None  # the seed's own, if the MDP is random


def action_values(mdp: MDP, v, gamma) -> jax.Array:
    """q(s, a) = Σ_s' P(s'|s,a) [r(s,a,s') + γ v(s')], from v [S]; [S, A]."""
    return jnp.sum(mdp.P * (mdp.R + gamma * v), axis=-1)


def sweep_v(mdp: MDP, params: Params, gamma) -> Params:
    """V(s) ← max_a q(s, a) with q(s, a) = Σ_s' P(s'|s,a) [r(s,a,s') + γ V(s')]; returns both."""
    q = action_values(mdp, params.v, gamma)
    return Params(v=jnp.max(q, axis=-1), q=q)


def sweep_q(mdp: MDP, params: Params, gamma) -> Params:
    """Q(s, a) ← Σ_s' P(s'|s,a) [r(s,a,s') + γ max_a' Q(s', a')]; returns max_a Q(s, a), too."""
    q = action_values(mdp, jnp.max(params.q, axis=-1), gamma)
    return Params(v=jnp.max(q, axis=-1), q=q)


def make(config: Config) -> Algorithm:
    is_random = config.env_id in TABULAR and TABULAR[config.env_id].random
    fixed_mdp = None if is_random else jax.tree.map(jnp.asarray, make_mdp(config.env_id))

    def init(key):
        mdp = make_mdp(config.env_id, key) if is_random else fixed_mdp
        num_states, num_actions, _ = mdp.P.shape
        params = Params(v=jnp.zeros(num_states), q=jnp.zeros((num_states, num_actions)))
        return State(params, mdp if is_random else None)

    def update(state, step):
        mdp = state.mdp if is_random else fixed_mdp
        if config.table == "V":
            params = sweep_v(mdp, state.params, config.gamma)
            change = params.v - state.params.v
        else:
            params = sweep_q(mdp, state.params, config.gamma)
            change = params.q - state.params.q

        metrics = {
            "episode_return": jnp.array(jnp.nan, params.v.dtype),  # there are no episodes
            "value": mdp.start @ params.v,
            "bellman_residual": jnp.max(jnp.abs(change)),
        }
        return State(params, state.mdp), metrics

    def act(params, obs, key):
        return jnp.argmax(params.q[obs])

    return Algorithm(init, update, None if is_random else act, config.num_sweeps, 1)


if __name__ == "__main__":
    main(Config, make)
