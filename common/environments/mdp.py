"""Finite Markov decision processes as arrays, for dynamic programming and for sampling alike.

    q(s,a) = Σ_s' P(s'|s,a) [r(s,a,s') + γ v(s')]

P(s'|s,a) and r(s,a,s') are equations 3.4 and 3.6 of Sutton & Barto 2018, Reinforcement Learning,
<http://incompleteideas.net/book/the-book-2nd.html>. The reward depends on s' because sampling needs
the reward of each outcome (in FrozenLake, for example).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


class MDP(NamedTuple):
    """A finite MDP. Terminal states are absorbing with reward 0, so their value is 0."""

    P: np.ndarray | jax.Array  # [S, A, S'] transition probabilities
    R: np.ndarray | jax.Array  # [S, A, S'] reward of each transition
    start: np.ndarray | jax.Array  # [S] start distribution
    terminal: np.ndarray | jax.Array  # [S] bool
    noise: np.ndarray | None = None  # [S, A] standard deviation of a normal reward around R
    features: np.ndarray | None = None  # [S, F] of a linear reward  # copied for .features


def tabulate(start: np.ndarray, terminal: np.ndarray, num_actions: int, outcomes: Callable) -> MDP:
    """P(s'|s,a) = Σ p and r(s,a,s') = Σ p r / Σ p, over the outcomes of (s,a) that lead to s'.

    `outcomes(state, action)` is a list of (probability, next state, reward), for states that are
    not terminal. `start`: [S] weights, which are normalized. `terminal`: [S] bool.
    """
    P = np.zeros((len(terminal), num_actions, len(terminal)))
    R = np.zeros_like(P)
    for state, action in np.ndindex(len(terminal), num_actions):
        ends = [(1.0, state, 0.0)] if terminal[state] else outcomes(state, action)
        for probability, next_state, reward in ends:
            P[state, action, next_state] += probability
            R[state, action, next_state] += probability * reward
    np.divide(R, P, out=R, where=P > 0)
    return MDP(P, R, start / np.sum(start), terminal)


def policy_values(mdp: MDP, policy: np.ndarray, gamma: float | jax.Array) -> jax.Array:
    """v = (I - γ P_π)⁻¹ r_π, eq. 4.4 as a linear system, of a policy π(a|s) [S, A]; [S].

    Terminal states have value 0. γ may be traced.
    """
    P = np.einsum("sa,sat->st", policy, mdp.P) * ~mdp.terminal
    r = np.einsum("sa,sat,sat->s", policy, mdp.P, mdp.R)
    return jnp.linalg.solve(jnp.eye(len(r)) - gamma * P, jnp.asarray(r, float))


def reachable(P: np.ndarray | jax.Array, states: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
    """Return the states on paths along P[s, s'] > 0 that start in `states` [S] bool; [S] bool."""
    found = states | (P[states] > 0).any(0)
    return found if np.array_equal(found, states) else reachable(P, found)


def visited_states(mdp: MDP, policy: np.ndarray) -> np.ndarray | jax.Array:
    """Return the states that a policy [S, A] can visit, without the terminal ones; [S] bool."""
    P = np.einsum("sa,sat->st", policy, mdp.P)
    return reachable(P, mdp.start > 0) & ~mdp.terminal


def load_policy(policy: str, num_states: int, num_actions: int) -> np.ndarray:
    """Return π(a|s) [S, A]: "uniform", or read from a .npy file.

    ValueError if the file holds anything but probabilities of that shape.
    """
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


class SparseMDP(NamedTuple):
    """A finite MDP whose sweeps cost S A K: at most K states can follow each state."""

    successor: jax.Array  # [S, K] what can follow a state
    P: jax.Array  # [S, A, K] its probabilities
    R: jax.Array  # [S, A] expected rewards
    start: jax.Array  # [S] start distribution
    terminal: jax.Array  # [S] bool
    features: jax.Array  # [S, F]; without any in the MDP, one for each state


def sparse(mdp: MDP) -> SparseMDP:
    """Return the arrays of an MDP for the states that P says can follow; for all if P is traced."""
    num_states, _, _ = mdp.P.shape
    possible = np.ones((num_states, num_states), bool)
    if not isinstance(mdp.P, Tracer):
        possible = np.any(np.asarray(mdp.P) > 0, axis=1)
    num_successors = int(np.sum(possible, axis=-1).max())
    successor = np.argsort(~possible, axis=-1, kind="stable")[:, :num_successors]

    def gather(x):
        """Return x [S, A, K] of the successors, from x [S, A, S']."""
        of_successors = x[np.arange(num_states)[:, None], :, successor]
        return jnp.moveaxis(jnp.asarray(of_successors, float), 2, 1)

    P = gather(mdp.P)
    return SparseMDP(
        successor=jnp.asarray(successor, jnp.int32),
        P=P,
        R=jnp.sum(P * gather(mdp.R), axis=-1),
        start=jnp.asarray(mdp.start, float),
        terminal=jnp.asarray(mdp.terminal),
        features=jnp.asarray(np.eye(num_states) if mdp.features is None else mdp.features, float),
    )
