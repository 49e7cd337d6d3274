"""Policy iteration, and modified policy iteration.

Differs from value_iteration.py in that a policy is kept: it is evaluated by sweeps of its own,
and only then improved.

Howard 1960, Dynamic Programming and Markov Processes; Puterman & Shin 1978,
https://doi.org/10.1287/mnsc.24.11.1127 (modified); Sutton & Barto 2018, sections 4.1 to 4.3,
http://incompleteideas.net/book/the-book-2nd.html

    V(s) ← Σ_a π(a|s) Σ_s' P(s'|s,a) [r(s,a,s') + γ V(s')]                  (eq. 4.5)
    π(s) ← argmax_a Σ_s' P(s'|s,a) [r(s,a,s') + γ V(s')]                    (eq. 4.9)

One update is one evaluation, which goes on from the last one's V, and one improvement. The
evaluation sweeps until no value changes by more than θ, or `num_sweeps` times: few sweeps make it
modified policy iteration, and one makes it value iteration. Every seed solves the same MDP, except
where the MDP is random (Garnet-tabular): there each seed draws its own, and no environment exists
to play it in, so the final evaluation is left out.

Departs from the book: synchronous sweeps; an action is given up only for one that is better by more
than θ, so that ties cannot cycle; a fixed number of updates: the metric `policy_changes`, the
number of states whose action changed, tells when it is enough. JAX_ENABLE_X64=1 gives float64.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from common.algorithm import Algorithm, require
from common.environments.mdp import MDP
from common.environments.tabular import TABULAR, make_mdp
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "FrozenLake-tabular"  # any <name>-tabular
    num_iterations: int = 50  # evaluations, each with an improvement
    num_sweeps: int = 1_000  # over all states in one evaluation, at most
    theta: float = 1e-6  # θ: changes and gains no larger than this count for nothing
    gamma: float = 0.99  # discount factor

    def __post_init__(self):
        require(self, "num_iterations >= 1", "num_sweeps >= 1", "theta >= 0", "0 <= gamma <= 1")


class Params(NamedTuple):
    v: jax.Array  # [S] of the policy before the last improvement
    policy: jax.Array  # [S] the action in each state


class State(NamedTuple):
    params: Params
    mdp: MDP | None  # where each seed has its own


def action_values(mdp: MDP, v, gamma) -> jax.Array:
    """q(s, a) = Σ_s' P(s'|s,a) [r(s,a,s') + γ v(s')], [S, A]."""
    return jnp.sum(mdp.P * (mdp.R + gamma * v), axis=-1)


def policy_evaluation(mdp: MDP, policy, v, gamma, theta, num_sweeps):
    """V(s) ← Σ_a π(a|s) Σ_s' P(s'|s,a) [r(s,a,s') + γ V(s')], for a policy π(a|s) [S, A] and from
    v [S], until no value changes by more than θ, or `num_sweeps` times; with the sweeps made."""
    P = jnp.einsum("ij,ijk->ik", policy, mdp.P)
    reward = jnp.einsum("ij,ijk,ijk->i", policy, mdp.P, mdp.R)

    def unfinished(carry):
        _, change, sweep = carry
        return (change > theta) & (sweep < num_sweeps)

    def sweep_v(carry):
        v, _, sweep = carry
        after = reward + gamma * P @ v
        return after, jnp.max(jnp.abs(after - v)), sweep + 1

    start = v, jnp.full((), jnp.inf, v.dtype), jnp.int32(0)
    v, _, sweeps = jax.lax.while_loop(unfinished, sweep_v, start)
    return v, sweeps


def policy_improvement(policy, q, theta) -> jax.Array:
    """π(s) ← argmax_a q(s, a), where that is better by more than θ than q(s, π(s)); [S]."""
    kept = jnp.take_along_axis(q, policy[:, None], axis=-1)[:, 0]
    return jnp.where(jnp.max(q, axis=-1) > kept + theta, jnp.argmax(q, axis=-1), policy)


def make(config: Config) -> Algorithm:
    fixed = None
    if config.env_id not in TABULAR or not TABULAR[config.env_id].random:
        fixed = as_floats(make_mdp(config.env_id))

    def init(key):
        mdp = as_floats(make_mdp(config.env_id, key)) if fixed is None else fixed
        num_states, _, _ = mdp.P.shape
        params = Params(v=jnp.zeros(num_states), policy=jnp.zeros(num_states, int))
        return State(params, mdp if fixed is None else None)

    def update(state, step):
        mdp = state.mdp if fixed is None else fixed
        before, num_actions = state.params, mdp.P.shape[1]
        v, sweeps = policy_evaluation(
            mdp,
            jax.nn.one_hot(before.policy, num_actions),
            before.v,
            config.gamma,
            config.theta,
            config.num_sweeps,
        )
        q = action_values(mdp, v, config.gamma)
        params = Params(v=v, policy=policy_improvement(before.policy, q, config.theta))

        metrics = {
            "episode_return": jnp.array(jnp.nan, v.dtype),  # nobody acts
            "value": mdp.start @ v,
            "bellman_residual": jnp.max(jnp.abs(jnp.max(q, axis=-1) - v)),
            "policy_changes": jnp.sum(params.policy != before.policy).astype(v.dtype),
            "sweeps": sweeps.astype(v.dtype),
        }
        return State(params, state.mdp), metrics

    def act(params, obs, key):
        return params.policy[obs]

    return Algorithm(init, update, None if fixed is None else act, config.num_iterations, 1)


def as_floats(mdp: MDP) -> MDP:
    return jax.tree.map(lambda x: jnp.asarray(x, float), mdp)


if __name__ == "__main__":
    main(Config, make)
