"""Policy iteration, and modified policy iteration.

Differs from value_iteration.py in that it keeps a policy: each update evaluates it by sweeps of V
and then improves it.

Howard 1960, Dynamic Programming and Markov Processes; Puterman & Shin 1978,
https://doi.org/10.1287/mnsc.24.11.1127 (modified); Sutton & Barto 2018, sections 4.1 to 4.3,
http://incompleteideas.net/book/the-book-2nd.html

    V(s) ← Σ_a π(a|s) Σ_s' P(s'|s,a) [r(s,a,s') + γ V(s')]                  (eq. 4.5)
    π(s) ← argmax_a Σ_s' P(s'|s,a) [r(s,a,s') + γ V(s')]                    (eq. 4.9)

One `update` is one evaluation, which starts from the V of the last one, and one improvement. The
evaluation sweeps until no value changes by more than θ, or `num_sweeps` times: with few sweeps this
is modified policy iteration, with one it is value iteration. All seeds solve the same MDP, but a
random MDP (Garnet-tabular) is drawn for each seed; no environment plays that one, so there is no
final evaluation.

Departs from the book: synchronous sweeps; an action is replaced only by one that is better by more
than θ, so that ties cannot cycle; a fixed number of updates (`policy_changes` shows whether they
suffice). JAX_ENABLE_X64=1 gives float64.

Metrics: `episode_return`, NaN: there are no episodes; `value`, mean V of the start states
(discounted return); `bellman_residual`, largest |max_a Q(s, a) - V(s)| (the same unit);
`policy_changes`, states whose action changed; `sweeps`, those of the evaluation.
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
    num_sweeps: int = 1_000  # largest number of sweeps over all states in one evaluation
    theta: float = 1e-6  # θ: changes of a value and gains of an action up to this are ignored
    gamma: float | None = None  # discount factor; None: the MDP's own, as in its source

    def __post_init__(self):
        require(self, "theta >= 0")


class Params(NamedTuple):
    v: jax.Array  # [S] of the policy before the last improvement
    policy: jax.Array  # [S] the action in each state


class State(NamedTuple):
    params: Params
    mdp: MDP | None  # the seed's own, if the MDP is random


def action_values(mdp: MDP, v, gamma) -> jax.Array:
    """q(s, a) = Σ_s' P(s'|s,a) [r(s,a,s') + γ v(s')], from v [S]; [S, A]."""
    return jnp.sum(mdp.P * (mdp.R + gamma * v), axis=-1)


def policy_evaluation(mdp: MDP, policy, v, gamma, theta, num_sweeps) -> tuple[jax.Array, jax.Array]:
    """V(s) ← Σ_a π(a|s) Σ_s' P(s'|s,a) [r(s,a,s') + γ V(s')], from V = v [S] for a policy [S, A],
    until no value changes by more than θ, or `num_sweeps` times; V and the number of sweeps."""
    P = jnp.einsum("ij,ijk->ik", policy, mdp.P)
    reward = jnp.einsum("ij,ijk,ijk->i", policy, mdp.P, mdp.R)

    def unfinished(carry):
        _, change, sweep = carry
        return (change > theta) & (sweep < num_sweeps)

    def sweep_v(carry):
        v, _, sweep = carry
        new_v = reward + gamma * P @ v
        return new_v, jnp.max(jnp.abs(new_v - v)), sweep + 1

    start = v, jnp.full((), jnp.inf, v.dtype), jnp.int32(0)
    v, _, sweeps = jax.lax.while_loop(unfinished, sweep_v, start)
    return v, sweeps


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
        num_states, _, _ = mdp.P.shape
        params = Params(v=jnp.zeros(num_states), policy=jnp.zeros(num_states, int))
        return State(params, mdp if is_random else None)

    def update(state, step):
        mdp = state.mdp if is_random else fixed_mdp
        probabilities = jax.nn.one_hot(state.params.policy, mdp.P.shape[1])
        v, num_sweeps = policy_evaluation(
            mdp, probabilities, state.params.v, gamma, config.theta, config.num_sweeps
        )
        q = action_values(mdp, v, gamma)
        policy = policy_improvement(state.params.policy, q, config.theta)

        metrics = {
            "episode_return": jnp.array(jnp.nan, v.dtype),  # there are no episodes
            "value": mdp.start @ v,
            "bellman_residual": jnp.max(jnp.abs(jnp.max(q, axis=-1) - v)),
            "policy_changes": jnp.sum(policy != state.params.policy).astype(v.dtype),
            "sweeps": num_sweeps.astype(v.dtype),
        }
        return State(Params(v, policy), state.mdp), metrics

    def act(params, obs, key):
        return params.policy[obs]

    return Algorithm(init, update, None if is_random else act, config.num_iterations, 1)


if __name__ == "__main__":
    main(Config, make)
