"""Maximum entropy inverse reinforcement learning, in its causal form.

Differs from apprenticeship_learning.py in that one reward is fitted, under which the expert's
actions are the likeliest, by a policy that is as random as it can be.

Ziebart et al. 2008, https://cdn.aaai.org/AAAI/2008/AAAI08-227.pdf; causal: Ziebart, Bagnell & Dey
2010, https://icml.cc/Conferences/2010/papers/28.pdf; discounted: Bloem & Bambos 2014,
https://doi.org/10.1109/CDC.2014.7040156

    r(s) = θ · φ(s)                                                         (2008, eq. 1)
    Q(s, a) = r(s) + γ Σ_s' P(s'|s,a) V(s'),   V(s) = τ ln Σ_a exp(Q(s, a) / τ)
    π(a|s) = exp((Q(s, a) - V(s)) / τ)                                      (2010)
    D ← start + γ P_πᵀ D                                                    (2008, Algorithm 1)
    L(θ) = (θ · μ_E - Σ_s start(s) V(s)) / τ,   ∇L = (μ_E - Σ_s D(s) φ(s)) / τ  (2008, eq. 6)
    θ ← θ + α ∇L

L is E_E Σ_t γ^t ln π(a_t|s_t), up to what sampled episodes lack of P. The expert is this π for the
true reward, of which the learner sees only μ_E: exactly, or as the mean over `--num-episodes` or
over those of a `--dataset`, whose mean discounted return then is V_E. The reward that is found
explains the expert's actions, but is not the only one that does: a constant more in all states that
never end changes no action, for example. `picture.png` has it beside the true one.

One `update` is one step along the gradient; its sweeps of V and D go on from those of the last one,
with as many steps until the values of a fixed θ are exact. φ is the MDP's own, or tells all states
apart. A terminal state counts once, on arrival, and V(s) = r(s) there. A random MDP is drawn for
each seed; no environment plays that one, so there is no final evaluation.

Departs from the paper of 2008: its Algorithm 1 sums exp(reward) over paths, which takes for the
agent's choice what is chance, and so is biased where P is random; here the agent chooses its action
only (2010). A discount γ and a temperature τ; plain gradient ascent.

Metrics: `episode_return`, NaN: there are no episodes; `value`, Σ D(s) π(a|s) r(s, a) of the policy
under the true reward (discounted return); `value_share`, 1 - (V_E - V) / |V_E| of that value V and
the expert's, V_E; `log_likelihood`, L of θ before the step (nats in an episode, discounted);
`feature_gap`, ‖μ_E - Σ_s D(s) φ(s)‖ of that θ (discounted sum of features).
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
    num_iterations: int = 500  # steps along the gradient
    learning_rate: float = 1e-4  # α
    temperature: float = 0.1  # τ, in units of reward, of the learner and of the expert
    num_sweeps: int = 100  # over all states in one iteration, of V and of D
    num_steps: int = 1_000  # after which the expert's episodes are cut; sweeps of its V and D
    num_episodes: int = 0  # of the expert, from which μ_E is estimated; 0: exact, or the dataset's
    gamma: float | None = None  # discount factor; None: the MDP's own, as in its source

    def __post_init__(self):
        require(self, "num_episodes >= 0", "num_episodes == 0 or not dataset")


class State(NamedTuple):
    params: jax.Array  # [S, A] π(a|s)
    theta: jax.Array  # [F] θ
    v: jax.Array  # [S]
    visits: jax.Array  # [S] D
    mdp: SparseMDP
    expert_visits: jax.Array  # [S] exact, or a mean over episodes
    expert_value: jax.Array  # exact, or a mean over those of the dataset


def action_values(mdp: SparseMDP, reward, v, gamma) -> jax.Array:
    """q(s, a) = r(s, a) + γ Σ_s' P(s'|s,a) v(s'), from v [S] and r [S, A] or [S, 1]; [S, A]."""
    return reward + gamma * jnp.einsum("sak,sk->sa", mdp.P, v[mdp.successor])


def soft_values(mdp: SparseMDP, reward, v, gamma, temperature, num_sweeps) -> jax.Array:
    """V(s) ← τ ln Σ_a exp(q(s, a) / τ), from V = v; where s is terminal, V(s) = r(s); [S]."""

    def sweep(v, _):
        q = action_values(mdp, reward, v, gamma)
        soft_max = temperature * jax.nn.logsumexp(q / temperature, axis=-1)
        return jnp.where(mdp.terminal, reward[:, 0], soft_max), None

    v, _ = jax.lax.scan(sweep, v, length=num_sweeps)
    return v


def soft_policy(q, temperature) -> jax.Array:
    """π(a|s) = exp((q(s, a) - V(s)) / τ) with V(s) = τ ln Σ_a exp(q(s, a) / τ), from q [S, A]."""
    return jax.nn.softmax(q / temperature, axis=-1)


def state_visits(mdp: SparseMDP, policy, visits, gamma, num_sweeps) -> jax.Array:
    """D ← start + γ P_πᵀ D, from D = visits; D(s) = Σ_t γ^t P(s_t = s) of a policy [S, A]; [S]."""
    flow = jnp.einsum("sa,sak->sk", policy, mdp.P) * ~mdp.terminal[:, None]

    def sweep(visits, _):
        arrivals = jnp.zeros_like(visits).at[mdp.successor].add(visits[:, None] * flow)
        return mdp.start + gamma * arrivals, None

    visits, _ = jax.lax.scan(sweep, visits, length=num_sweeps)
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


def log_likelihood(theta, expert, start, v, temperature) -> jax.Array:
    """L(θ) = (θ · μ_E - Σ_s start(s) V(s)) / τ, from μ_E [F] and V [S] of θ."""
    return (theta @ expert - start @ v) / temperature


def gradient(expert, learner, temperature) -> jax.Array:
    """∇L = (μ_E - μ) / τ, from discounted sums of features [F]."""
    return (expert - learner) / temperature


def make(config: Config) -> Algorithm:
    is_random = config.env_id in TABULAR and TABULAR[config.env_id].random
    fixed_mdp = None if is_random else make_mdp(config.env_id)
    gamma = TABULAR[config.env_id].gamma if config.gamma is None else config.gamma
    temperature = config.temperature
    logged = None
    if config.dataset:
        if is_random:
            raise ValueError(f"--dataset: {config.env_id} is another MDP in each seed")
        logged = read_transitions(config.dataset, config.env_id, make_env(config.env_id, 1))

    def expert_of(mdp, key):
        """Return the expert's discounted visits of states [S], and its value."""
        if logged is not None:
            return discounted_visits(logged, len(mdp.start), gamma)
        zeros = jnp.zeros_like(mdp.start)
        v = soft_values(mdp, mdp.R, zeros, gamma, temperature, config.num_steps)
        expert = soft_policy(action_values(mdp, mdp.R, v, gamma), temperature)
        visits = state_visits(mdp, expert, mdp.start, gamma, config.num_steps)
        value = jnp.sum(visits[:, None] * expert * mdp.R)
        if config.num_episodes:
            keys = jax.random.split(key, config.num_episodes)
            episodes = jax.vmap(episode_visits, (0, None, None, None, None))
            visits = episodes(keys, mdp, expert, gamma, config.num_steps).mean(axis=0)
        return visits, value

    def init(key):
        key_mdp, key_episodes = jax.random.split(key)
        mdp = sparse(make_mdp(config.env_id, key_mdp) if is_random else fixed_mdp)
        expert_visits, expert_value = expert_of(mdp, key_episodes)
        return State(
            params=jnp.full_like(mdp.R, 1 / mdp.R.shape[1]),
            theta=jnp.zeros(mdp.features.shape[1]),
            v=jnp.zeros_like(mdp.start),
            visits=mdp.start,
            mdp=mdp,
            expert_visits=expert_visits,
            expert_value=expert_value,
        )

    def update(state, step):
        mdp, theta = state.mdp, state.theta
        reward = (mdp.features @ theta)[:, None]
        v = soft_values(mdp, reward, state.v, gamma, temperature, config.num_sweeps)
        policy = soft_policy(action_values(mdp, reward, v, gamma), temperature)
        visits = state_visits(mdp, policy, state.visits, gamma, config.num_sweeps)

        expert_features = state.expert_visits @ mdp.features
        features = visits @ mdp.features
        ascent = gradient(expert_features, features, temperature)

        value = jnp.sum(visits[:, None] * policy * mdp.R)
        regret = state.expert_value - value
        metrics = {
            "episode_return": jnp.array(jnp.nan, value.dtype),  # there are no episodes
            "value": value,
            "value_share": 1 - regret / jnp.abs(state.expert_value),
            "log_likelihood": log_likelihood(theta, expert_features, mdp.start, v, temperature),
            "feature_gap": jnp.linalg.norm(expert_features - features),
        }
        theta = theta + config.learning_rate * ascent
        return state._replace(params=policy, theta=theta, v=v, visits=visits), metrics

    def act(params, obs, key):
        return jax.random.categorical(key, jnp.log(params[obs]))

    def picture(state):
        """Return the true reward of a step from each state, and the one that was found."""
        found = state.mdp.features @ state.theta
        return {
            "names": ["true reward", "reward found"],
            "maps": [state.mdp.R.mean(axis=-1), found],
        }

    act = None if is_random else act
    return Algorithm(init, update, act, config.num_iterations, 1, picture=picture)


if __name__ == "__main__":
    main(Config, make)
