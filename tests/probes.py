"""Probe environments of known value, in the manner of Andy Jones's
https://andyljones.com/posts/rl-debugging.html, as gymnax environments with numbered states."""

from typing import Any

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces

from common.environments.linear import LINEAR, Linear, System


@struct.dataclass
class EnvState(environment.EnvState):
    s: jax.Array


@struct.dataclass
class EnvParams(environment.EnvParams):
    max_steps_in_episode: int = 8


class Probe(environment.Environment[EnvState, EnvParams]):
    """A deterministic MDP given by tables: next state and reward [S][A], which states end the
    episode, and the states it starts in, each equally likely."""

    def __init__(self, next_state, reward, terminal, starts, vector=False):
        self.next_state, self.reward = np.array(next_state), np.array(reward, np.float32)
        self.terminal, self.starts, self.vector = np.array(terminal), np.array(starts), vector

    @property
    def default_params(self):
        return EnvParams()

    @property
    def name(self):
        return "Probe"

    def step_env(self, key, state, action, params):
        s = jnp.asarray(self.next_state)[state.s, action]
        reward = jnp.asarray(self.reward)[state.s, action]
        state = EnvState(time=state.time + 1, s=s)
        return self.observe(key, state, action, params), state, reward, self.ended(s), {}

    def ended(self, s):
        return jnp.asarray(self.terminal)[s]

    def reset_env(self, key, params):
        state = EnvState(time=0, s=jax.random.choice(key, jnp.asarray(self.starts)))
        return self.observe(key, state, None, params), state

    def observe(self, key, state, action, params) -> Any:
        if self.vector:
            return jax.nn.one_hot(state.s, len(self.terminal))
        return state.s

    def is_terminated(self, state, params):
        return self.ended(state.s)

    def action_space(self, params=None):
        return spaces.Discrete(self.reward.shape[1])

    def observation_space(self, params):
        if self.vector:
            return spaces.Box(0, 1, (len(self.terminal),), jnp.float32)
        return spaces.Discrete(len(self.terminal))


GAMMA = 0.8
# Name: tables, and the optimal values of the states where an action is taken, at GAMMA.
PROBES = {
    # One step, reward 1.
    "Constant-probe": (([[1, 1]] * 2, [[1, 1]] * 2, [False, True], [0]), {0: 1.0}),
    # One step; the observation tells the reward, -1 or 1.
    "ByObservation-probe": (
        ([[2, 2]] * 3, [[-1, -1], [1, 1], [0, 0]], [False, False, True], [0, 1]),
        {0: -1.0, 1: 1.0},
    ),
    # Two steps, the reward at the end.
    "TwoStep-probe": (
        ([[1, 1], [2, 2], [2, 2]], [[0, 0], [1, 1], [0, 0]], [False, False, True], [0]),
        {0: GAMMA, 1: 1.0},
    ),
    # One step; action 1 pays 1, action 0 costs 1.
    "ByAction-probe": (([[1, 1]] * 2, [[-1, 1]] * 2, [False, True], [0]), {0: 1.0}),
    # One step; the action that is named by the observation pays 1, the other costs 1.
    "ByBoth-probe": (
        ([[2, 2]] * 3, [[1, -1], [-1, 1], [0, 0]], [False, False, True], [0, 1]),
        {0: 1.0, 1: 1.0},
    ),
    # Never ends; reward 1 a step, and a time limit of 8 that must not be taken for an end.
    "AlwaysTruncated-probe": (([[0, 0]], [[1, 1]], [False], [0]), {0: 1 / (1 - GAMMA)}),
    # From 1 for ever with reward 1; each reset lands in 0, whose step pays 50. Bootstrapping from
    # the observation after the reset would add far too much to state 1.
    "ResetTrap-probe": (
        ([[1, 1], [1, 1]], [[50, 50], [1, 1]], [False, False], [0]),
        {0: 50 + GAMMA / (1 - GAMMA), 1: 1 / (1 - GAMMA)},
    ),
}


def side_by_side(probes):
    """Tables and values of those probes in one. The states of each follow those of the one before,
    and all starts are equally likely."""
    next_state, reward, terminal, starts, values = [], [], [], [], {}
    for (probe_next, probe_reward, probe_terminal, probe_starts), probe_values in probes:
        first = len(terminal)
        next_state += [[first + s for s in row] for row in probe_next]
        reward += probe_reward
        terminal += probe_terminal
        starts += [first + s for s in probe_starts]
        values |= {first + s: value for s, value in probe_values.items()}
    return (next_state, reward, terminal, starts), values


def best_actions(tables) -> dict[int, int]:
    """Of the states where the action matters, which in these probes is for its reward alone."""
    _, reward, terminal, _ = tables
    matters = [s for s, row in enumerate(reward) if not terminal[s] and min(row) < max(row)]
    return {s: int(np.argmax(reward[s])) for s in matters}


def probes_but(*names):
    return [probe for name, probe in PROBES.items() if name not in names]


ALL_PROBES = PROBES | {
    # The resets of ResetTrap must land nowhere but in its state 0.
    "Together-probe": side_by_side(probes_but("ResetTrap-probe")),
    # Those that end, whose values do not depend on what a time limit does to a return.
    "Ending-probe": side_by_side(probes_but("ResetTrap-probe", "AlwaysTruncated-probe")),
}
TOGETHER, TOGETHER_VALUES = ALL_PROBES["Together-probe"]
TOGETHER_ACTIONS = best_actions(TOGETHER)
for name, (tables, _) in ALL_PROBES.items():
    for vector in (False, True):
        env_id = name.replace("-", "Vector-") if vector else name
        if env_id not in gymnax.registered_envs:
            gymnax.register(env_id, lambda tables=tables, vector=vector: Probe(*tables, vector))


class CutProbe(Probe):
    """One step, then the time limit."""

    @property
    def default_params(self):
        return EnvParams(max_steps_in_episode=1)


if "Cut-probe" not in gymnax.registered_envs:
    gymnax.register("Cut-probe", lambda: CutProbe(*PROBES["AlwaysTruncated-probe"][0]))


class ContinuousProbe(Probe):
    """Probes in one: the start decides which. Actions are in [-1, 3]; in states that have a best
    action the reward falls with the square of the distance from it."""

    def __init__(self, next_state, reward, best, terminal, starts):
        super().__init__(next_state, reward, terminal, starts, vector=True)
        self.best = np.array(best, np.float32)

    def step_env(self, key, state, action, params):
        obs, after, reward, ended, info = super().step_env(key, state, 0, params)
        distance = action[0] - jnp.asarray(self.best)[state.s]
        reward -= jnp.where(jnp.isnan(distance), 0, distance**2)
        return obs, after, reward, ended, info

    def action_space(self, params=None):
        return spaces.Box(-1, 3, (1,), jnp.float32)


NONE = np.nan
# From 0: one step, reward 1. From 1: one step, reward -1. From 2: two steps, reward 1 at the end.
# From 4 and 5: one step, best actions 0.5 and 2. From 6: for ever, reward 1, but for a time limit
# of 8 that must not be taken for an end.
CONTINUOUS = {
    "next_state": [[7], [7], [3], [7], [7], [7], [6], [7]],
    "reward": [[1], [-1], [0], [1], [1], [0], [1], [0]],
    "best": [NONE, NONE, NONE, NONE, 0.5, 2, NONE, NONE],
    "terminal": [False] * 7 + [True],
    "starts": [0, 1, 2, 4, 5, 6],
}
CONTINUOUS_VALUES = np.array([1, -1, GAMMA, 1, 1, 0, 1 / (1 - GAMMA)])
if "Continuous-probe" not in gymnax.registered_envs:
    gymnax.register("Continuous-probe", lambda: ContinuousProbe(**CONTINUOUS))
# Two steps, whose rewards fall with the square of the action's distance from 0.5 and from 1.5.
SLOPE = {
    "next_state": [[1], [2], [2]],
    "reward": [[0.0], [1.0], [0.0]],
    "best": [0.5, 1.5, NONE],
    "terminal": [False, False, True],
    "starts": [0],
}
if "Slope-probe" not in gymnax.registered_envs:
    gymnax.register("Slope-probe", lambda: ContinuousProbe(**SLOPE))


# A mass on a line for 20 steps, pushed: x = (place, speed). Nothing is random but the start.
MASS = System(
    A=np.array([[1.0, 0.2], [0.0, 1.0]]),
    B=np.array([[0.02], [0.2]]),
    Q=np.diag([1.0, 0.1]),
    R=np.array([[0.1]]),
    noise=np.zeros(2),
    start=np.ones(2),
)
LINEAR["Mass-linear"] = Linear(lambda key: MASS, max_steps=20, max_action=5.0)


def best_mass_return(x, num_steps=20):
    """-xᵀ P x, of the best actions from x [..., 2]: P by Riccati's recursion from the end."""
    A, B, Q, R, *_ = MASS
    P = np.zeros((2, 2))
    for _ in range(num_steps):
        K = (B.T @ P @ A) / (R + B.T @ P @ B)
        P = Q + A.T @ P @ (A - B @ K)
    x = np.asarray(x)
    return -np.einsum("...i,ij,...j->...", x, P, x)
