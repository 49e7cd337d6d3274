"""Value iteration.

Bellman 1957, Dynamic Programming; Sutton & Barto 2018, section 4.4,
http://incompleteideas.net/book/the-book-2nd.html

    V(s) ← max_a Σ_s' P(s'|s,a) [r(s,a,s') + γ V(s')]                       (eq. 4.10)
    Q(s, a) ← Σ_s' P(s'|s,a) [r(s,a,s') + γ max_a' Q(s', a')]               (exercise 4.10)

One update is one sweep over all states, of V or of Q as `--table` says. Every seed solves the same
MDP, except where the MDP is random (Garnet-tabular): there each seed draws its own, and no
environment exists to play it in, so the final evaluation is left out.

Departs from the book: synchronous sweeps, a fixed number of them; the metric `bellman_residual`,
the largest change of the sweep, tells when it is enough. JAX_ENABLE_X64=1 gives float64.
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
        require(self, "num_sweeps >= 1", "0 <= gamma <= 1")


class Params(NamedTuple):
    v: jax.Array  # [S]
    q: jax.Array  # [S, A]


class State(NamedTuple):
    params: Params
    mdp: MDP | None  # where each seed has its own


def action_values(mdp: MDP, v, gamma) -> jax.Array:
    """q(s, a) = Σ_s' P(s'|s,a) [r(s,a,s') + γ v(s')], [S, A]."""
    return jnp.sum(mdp.P * (mdp.R + gamma * v), axis=-1)


def sweep_v(mdp: MDP, params: Params, gamma) -> Params:
    """V(s) ← max_a Σ_s' P(s'|s,a) [r(s,a,s') + γ V(s')]; the q inside the maximum is kept."""
    q = action_values(mdp, params.v, gamma)
    return Params(v=jnp.max(q, axis=-1), q=q)


def sweep_q(mdp: MDP, params: Params, gamma) -> Params:
    """Q(s, a) ← Σ_s' P(s'|s,a) [r(s,a,s') + γ max_a' Q(s', a')]; its maximum is kept as v."""
    q = action_values(mdp, jnp.max(params.q, axis=-1), gamma)
    return Params(v=jnp.max(q, axis=-1), q=q)


def make(config: Config) -> Algorithm:
    fixed = None
    if config.env_id not in TABULAR or not TABULAR[config.env_id].random:
        fixed = as_floats(make_mdp(config.env_id))

    def init(key):
        mdp = as_floats(make_mdp(config.env_id, key)) if fixed is None else fixed
        num_states, num_actions, _ = mdp.P.shape
        params = Params(v=jnp.zeros(num_states), q=jnp.zeros((num_states, num_actions)))
        return State(params, mdp if fixed is None else None)

    def update(state, step):
        mdp = state.mdp if fixed is None else fixed
        sweep = {"V": sweep_v, "Q": sweep_q}[config.table]
        params = sweep(mdp, state.params, config.gamma)

        before, after = (getattr(x, config.table.lower()) for x in (state.params, params))
        metrics = {
            "episode_return": jnp.array(jnp.nan, after.dtype),  # nobody acts
            "value": mdp.start @ params.v,
            "bellman_residual": jnp.max(jnp.abs(after - before)),
        }
        return State(params, state.mdp), metrics

    def act(params, obs, key):
        return jnp.argmax(params.q[obs])

    return Algorithm(init, update, None if fixed is None else act, config.num_sweeps, 1)


def as_floats(mdp: MDP) -> MDP:
    return jax.tree.map(lambda x: jnp.asarray(x, float), mdp)


if __name__ == "__main__":
    main(Config, make)
