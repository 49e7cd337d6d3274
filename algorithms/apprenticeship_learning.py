"""Apprenticeship learning via inverse reinforcement learning.

Differs from value_iteration.py in that the reward is unknown: it plans for one guess at it after
another, until it visits what an expert visits.

Abbeel & Ng 2004, https://doi.org/10.1145/1015330.1015430

    μ(π) = E Σ_t γ^t φ(s_t)                                                 (section 2)
    w = (μ_E - μ̄) / t,   t = ‖μ_E - μ̄‖                                      (section 3.1)
    π = the optimal policy for the reward r(s) = w · φ(s),   μ = μ(π)       (section 3)
    μ̄ ← μ̄ + β (μ - μ̄),   β = (μ - μ̄) · (μ_E - μ̄) / ‖μ - μ̄‖²                (section 3.1)

The expert is optimal for the true reward, of which the learner sees only μ_E: exactly, or as the
mean over `--num-episodes` or over those of a `--dataset`, whose mean discounted return then is V_E.
Where that reward is w* · φ(s) with ‖w*‖ ≤ 1, the mixture of policies that has μ̄ is worth what the
expert is, up to the margin t. Theorem 1: t ≤ ε after at most O(k / ((1-γ)² ε²) ln(k / ((1-γ) ε)))
iterations with k features in [0, 1].

One `update` is one iteration. Policies are mixed as their visits x(s, a) = Σ_t γ^t P(s_t = s,
a_t = a), by the same β; `act` plays π(a|s) = x(s, a) / Σ_a x(s, a), which visits what the mixture
does. φ is the MDP's own, or tells all states apart. A terminal state counts once, on arrival. A
random MDP is drawn for each seed; no environment plays that one, so there is no final evaluation.

Departs from the paper: the projection is on the segment between μ̄ and μ, so β ≤ 1 for the μ_E of
few episodes, too; the mixture is played as one policy, not by drawing a policy for each episode;
μ̄ starts from the uniform policy; a fixed number of iterations (`margin` shows whether they
suffice). Plans are value iteration, and visits and episodes are cut after `num_sweeps` steps.

Metrics: `episode_return`, NaN: there are no episodes; `value`, Σ x(s, a) r(s, a) of the mixture
under the true reward (discounted return); `value_share`, 1 - (V_E - V) / |V_E| of that value V and
the expert's, V_E; `margin`, t before the iteration (discounted sum of features).
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from common.algorithm import Algorithm, require
from common.datasets import discounted_visits, read_transitions
from common.environments.mdp import SparseMDP, sparse
from common.environments.tabular import TABULAR, make_mdp
from common.envs import make_env
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "Macrocells-tabular"  # any <name>-tabular
    dataset: str = ""  # file of python -m common.record, or a Minari id; "": the expert described
    num_iterations: int = 40  # plans, each for another guess at the reward
    num_sweeps: int = 1_000  # over all states, of plans and of visits; steps of an episode
    num_episodes: int = 0  # of the expert, from which μ_E is estimated; 0: exact, or the dataset's
    gamma: float | None = None  # discount factor; None: the MDP's own, as in its source

    def __post_init__(self):
        require(self, "num_episodes >= 0", "num_episodes == 0 or not dataset")


class State(NamedTuple):
    params: jax.Array  # [S, A] x(s, a) of the mixture
    mdp: SparseMDP
    expert_visits: jax.Array  # [S] exact, or a mean over episodes
    expert_value: jax.Array  # exact, or a mean over those of the dataset


def action_values(mdp: SparseMDP, reward, v, gamma) -> jax.Array:
    """q(s, a) = r(s, a) + γ Σ_s' P(s'|s,a) v(s'), from v [S] and r [S, A] or [S, 1]; [S, A]."""
    return reward + gamma * jnp.einsum("sak,sk->sa", mdp.P, v[mdp.successor])


def optimal_policy(mdp: SparseMDP, reward, gamma, num_sweeps) -> jax.Array:
    """π(s) = argmax_a q(s, a), as probabilities [S, A], after sweeps of V(s) ← max_a q(s, a); where
    s is terminal, V(s) = r(s)."""

    def sweep(v, _):
        q = action_values(mdp, reward, v, gamma)
        return jnp.where(mdp.terminal, reward[:, 0], jnp.max(q, axis=-1)), None

    v, _ = jax.lax.scan(sweep, jnp.zeros(mdp.start.shape), length=num_sweeps)
    q = action_values(mdp, reward, v, gamma)
    return jax.nn.one_hot(jnp.argmax(q, axis=-1), q.shape[1], dtype=q.dtype)


def state_visits(mdp: SparseMDP, policy, gamma, num_steps) -> jax.Array:
    """D(s) = Σ_t γ^t P(s_t = s) of a policy [S, A], by D ← start + γ P_πᵀ D; [S]."""
    flow = jnp.einsum("sa,sak->sk", policy, mdp.P) * ~mdp.terminal[:, None]

    def sweep(visits, _):
        arrivals = jnp.zeros_like(visits).at[mdp.successor].add(visits[:, None] * flow)
        return mdp.start + gamma * arrivals, None

    visits, _ = jax.lax.scan(sweep, mdp.start, length=num_steps)
    return visits


def episode_visits(key, mdp: SparseMDP, policy, gamma, num_steps) -> jax.Array:
    """Σ_t γ^t 1(s_t = s) along one episode of a policy [S, A]; [S]."""
    key_start, key_steps = jax.random.split(key)

    def step(carry, t):
        state, weight, visits = carry
        key_action, key_next = jax.random.split(jax.random.fold_in(key_steps, t))
        visits = visits.at[state].add(weight)
        action = jax.random.categorical(key_action, jnp.log(policy[state]))
        k = jax.random.categorical(key_next, jnp.log(mdp.P[state, action]))
        weight = jnp.where(mdp.terminal[state], 0.0, gamma * weight)
        return (mdp.successor[state, k], weight, visits), None

    state = jax.random.categorical(key_start, jnp.log(mdp.start)).astype(jnp.int32)
    start = state, jnp.ones(()), jnp.zeros_like(mdp.start)
    (_, _, visits), _ = jax.lax.scan(step, start, jnp.arange(num_steps))
    return visits


def reward_weights(expert, mixture) -> tuple[jax.Array, jax.Array]:
    """w = (μ_E - μ̄) / t and t = ‖μ_E - μ̄‖, of feature expectations [K]."""
    margin = jnp.linalg.norm(expert - mixture)
    return (expert - mixture) / jnp.maximum(margin, jnp.finfo(margin.dtype).tiny), margin


def mixing_weight(expert, mixture, features) -> jax.Array:
    """β = (μ - μ̄) · (μ_E - μ̄) / ‖μ - μ̄‖² within [0, 1], of feature expectations [K]."""
    direction = features - mixture
    length = jnp.maximum(direction @ direction, jnp.finfo(direction.dtype).tiny)
    return jnp.clip(direction @ (expert - mixture) / length, 0, 1)


def make(config: Config) -> Algorithm:
    is_random = config.env_id in TABULAR and TABULAR[config.env_id].random
    fixed_mdp = None if is_random else make_mdp(config.env_id)
    gamma = TABULAR[config.env_id].gamma if config.gamma is None else config.gamma

    logged = None
    if config.dataset:
        if is_random:
            raise ValueError(f"--dataset: {config.env_id} is another MDP in each seed")
        logged = read_transitions(config.dataset, config.env_id, make_env(config.env_id, 1))

    def visits_of(mdp, policy):
        """x(s, a) = D(s) π(a|s), [S, A]."""
        return state_visits(mdp, policy, gamma, config.num_sweeps)[:, None] * policy

    def expert_of(mdp, key):
        """Return the expert's discounted visits of states [S], and its value."""
        if logged is not None:
            return discounted_visits(logged, len(mdp.start), gamma)
        expert = optimal_policy(mdp, mdp.R, gamma, config.num_sweeps)
        exact = visits_of(mdp, expert)
        visits = jnp.sum(exact, axis=-1)
        if config.num_episodes:
            keys = jax.random.split(key, config.num_episodes)
            episodes = jax.vmap(episode_visits, (0, None, None, None, None))
            visits = episodes(keys, mdp, expert, gamma, config.num_sweeps).mean(axis=0)
        return visits, jnp.sum(exact * mdp.R)

    def init(key):
        key_mdp, key_episodes = jax.random.split(key)
        mdp = sparse(make_mdp(config.env_id, key_mdp) if is_random else fixed_mdp)
        uniform = jnp.full_like(mdp.R, 1 / mdp.R.shape[1])
        return State(visits_of(mdp, uniform), mdp, *expert_of(mdp, key_episodes))

    def update(state, step):
        mdp, mixture = state.mdp, state.params
        expert_features = state.expert_visits @ mdp.features
        mixture_features = jnp.sum(mixture, axis=-1) @ mdp.features
        w, margin = reward_weights(expert_features, mixture_features)

        policy = optimal_policy(mdp, (mdp.features @ w)[:, None], gamma, config.num_sweeps)
        visits = visits_of(mdp, policy)
        features = jnp.sum(visits, axis=-1) @ mdp.features
        beta = mixing_weight(expert_features, mixture_features, features)
        mixture = mixture + beta * (visits - mixture)

        value = jnp.sum(mixture * mdp.R)
        regret = state.expert_value - value
        metrics = {
            "episode_return": jnp.array(jnp.nan, value.dtype),  # there are no episodes
            "value": value,
            "value_share": 1 - regret / jnp.abs(state.expert_value),
            "margin": margin,
        }
        return state._replace(params=mixture), metrics

    def act(params, obs, key):
        return jax.random.categorical(key, jnp.log(params[obs]))

    def picture(state):
        """Return the true reward, and how often the expert and the learner are in each state."""
        visits = jnp.stack([state.expert_visits, jnp.sum(state.params, axis=-1)])
        return {
            "names": ["true reward", "visits of the expert, log₁₀", "visits of the learner, log₁₀"],
            "maps": [state.mdp.R.mean(axis=-1), *jnp.log10(jnp.maximum(visits, 1e-3))],
        }

    act = None if is_random else act
    return Algorithm(init, update, act, config.num_iterations, 1, picture=picture)


if __name__ == "__main__":
    main(Config, make)
