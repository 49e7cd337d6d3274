"""Finite Markov decision processes as arrays, for dynamic programming and for sampling alike.

    q(s,a) = Σ_s' P(s'|s,a) [r(s,a,s') + γ v(s')]

P(s'|s,a) and r(s,a,s') are equations 3.4 and 3.6 of Sutton & Barto 2018, Reinforcement Learning,
<http://incompleteideas.net/book/the-book-2nd.html>. The reward depends on s' because sampling needs
the reward of each outcome (in FrozenLake, for example).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class MDP(NamedTuple):
    """A finite MDP. Terminal states are absorbing with reward 0, so their value is 0."""

    P: np.ndarray | jax.Array  # [S, A, S'] transition probabilities
    R: np.ndarray | jax.Array  # [S, A, S'] reward of each transition
    start: np.ndarray | jax.Array  # [S] start distribution
    terminal: np.ndarray | jax.Array  # [S] bool
    noise: np.ndarray | None = None  # [S, A] standard deviation of a normal reward around R


def tabulate(start, terminal, num_actions, outcomes) -> MDP:
    """P(s'|s,a) = Σ p and r(s,a,s') = Σ p r / Σ p, over the outcomes of (s,a) that lead to s'.

    `outcomes(state, action)` is a list of (probability, next state, reward); the ends of episodes
    are added here. `start`: [S] weights, made to sum to 1. `terminal`: [S] bool.
    """
    num_states = len(terminal)
    P = np.zeros((num_states, num_actions, num_states))
    R = np.zeros((num_states, num_actions, num_states))
    for state in range(num_states):
        for action in range(num_actions):
            if terminal[state]:
                P[state, action, state] = 1.0
                continue
            for probability, next_state, reward in outcomes(state, action):
                P[state, action, next_state] += probability
                R[state, action, next_state] += probability * reward
    np.divide(R, P, out=R, where=P > 0)
    return MDP(P, R, start / np.sum(start), terminal)


def policy_values(mdp: MDP, policy, gamma) -> jax.Array:
    """v = (I - γ P_π)⁻¹ r_π (eq. 4.4 as a linear system) of a policy [S, A], [S]; 0 in terminal
    states. γ may be traced."""
    P = np.einsum("sa,sat->st", policy, mdp.P) * ~mdp.terminal
    r = np.einsum("sa,sat,sat->s", policy, mdp.P, mdp.R)
    return jnp.linalg.solve(jnp.eye(len(r)) - gamma * P, jnp.asarray(r, float))


def reachable(P, states) -> np.ndarray:
    """[S] bool: `states`, and all that paths from them along P[s,s'] > 0 lead to."""
    found = states | (P[states] > 0).any(0)
    return found if np.array_equal(found, states) else reachable(P, found)


def given_policy(policy: str, num_states: int, num_actions: int) -> np.ndarray:
    """π(a|s) [S, A]: uniform, or as in a .npy file; ValueError if it holds something else."""
    if policy == "uniform":
        return np.full((num_states, num_actions), 1 / num_actions)
    try:
        table = np.asarray(np.load(policy), float)
    except (OSError, EOFError, TypeError, ValueError) as error:
        raise ValueError(f"--policy {policy}: no file of numbers written by numpy.save") from error
    if table.shape != (num_states, num_actions):
        wanted = f"[{num_states}, {num_actions}]"
        raise ValueError(f"--policy {policy}: must have shape {wanted}, not {list(table.shape)}")
    if not (np.all(table >= 0) and np.allclose(table.sum(-1), 1)):
        raise ValueError(f"--policy {policy}: each row must hold probabilities that sum to 1")
    return table
