"""Linear systems with quadratic costs as arrays, for Riccati equations and for sampling alike.

    x' = A x + B u + w,   w ~ N(0, diag(noise²)),   reward = -(xᵀ Q x + uᵀ R u)

(the linear-quadratic regulator, Kalman 1960). All of the state is observed. The fixed systems are
NumPy arrays in float64; the random one is made with jax.random, so that it traces under jit and
vmap over its key.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from common.environments.batching import batch_env, lookup
from common.envs import Env


class System(NamedTuple):
    """A linear system. A state has n components, an action m."""

    A: np.ndarray | jax.Array  # [n, n]
    B: np.ndarray | jax.Array  # [n, m]
    Q: np.ndarray | jax.Array  # [n, n] cost of the state, positive semi-definite
    R: np.ndarray | jax.Array  # [m, m] cost of the action, positive definite
    noise: np.ndarray | jax.Array  # [n] standard deviation of what is added to each next state
    start: np.ndarray | jax.Array  # [n] first states are uniform in the box from -start to start


def first_state(system: System, key) -> jax.Array:
    """x ~ uniform from -start to start, [n]."""
    return system.start * jax.random.uniform(key, system.start.shape, minval=-1.0)


def mean_state(system: System, x, u) -> jax.Array:
    """E[x'] = A x + B u, [n]."""
    return system.A @ x + system.B @ u


def next_state(system: System, x, u, key) -> jax.Array:
    """x' = A x + B u + w, [n]."""
    return mean_state(system, x, u) + system.noise * jax.random.normal(key, x.shape)


def stage_cost(system: System, x, u) -> jax.Array:
    """xᵀ Q x + uᵀ R u."""
    return x @ system.Q @ x + u @ system.R @ u


def solve(matrix, right) -> jax.Array:
    """matrix⁻¹ right for a small positive definite matrix [n, n], or an upper triangular one, which
    need no pivoting, by Gauss-Jordan elimination.

    LAPACK's calls with an axis of seeds would wait on XLA's CPU threads for work that only they can
    do, and hang.
    """
    rows = jnp.concatenate([matrix, right], axis=1)
    for i in range(len(matrix)):
        pivot = rows[i] / rows[i, i]
        rows = (rows - jnp.outer(rows[:, i], pivot)).at[i].set(pivot)
    return rows[:, len(matrix) :]


def double_integrator() -> System:
    """A mass on a line: position and velocity, pushed by a force; x' = x + v, v' = v + u."""
    return System(
        A=np.array([[1.0, 1.0], [0.0, 1.0]]),
        B=np.array([[0.0], [1.0]]),
        Q=np.eye(2),
        R=np.eye(1),
        noise=np.full(2, 0.1),
        start=np.ones(2),
    )


def random_system(key, num_states=4, num_actions=2) -> System:
    """A and B of independent normal numbers with variance 1/n: the spectral radius of A is near 1
    (Girko 1985), on either side of it, and every state can be reached with probability 1."""
    key_a, key_b = jax.random.split(key)
    scale = num_states**-0.5
    return System(
        A=scale * jax.random.normal(key_a, (num_states, num_states)),
        B=scale * jax.random.normal(key_b, (num_states, num_actions)),
        Q=jnp.eye(num_states),
        R=jnp.eye(num_actions),
        noise=jnp.full(num_states, 0.1),
        start=jnp.ones(num_states),
    )


class Linear(NamedTuple):
    """What an id stands for."""

    make: Callable[[jax.Array], System]  # of a key, which the fixed systems ignore
    max_steps: int  # steps, the time limit of an episode
    max_action: float  # actions lie between this and its negative; the best ones are well within
    random: bool = False  # does the system depend on the key?


LINEAR = {
    "DoubleIntegrator-linear": Linear(lambda key: double_integrator(), 20, 3.0),
    "Random-linear": Linear(random_system, 10, 10.0, random=True),
}


def make_system(env_id: str, key=None) -> System:
    """The system of that id; a random one is drawn with `key`, or with jax.random.key(0)."""
    return lookup(LINEAR, env_id, "linear system").make(jax.random.key(0) if key is None else key)


def as_floats(system: System) -> System:
    """The system as JAX's arrays."""
    return jax.tree.map(lambda x: jnp.asarray(x, float), system)


def make_linear_env(env_id: str, num_envs: int) -> Env:
    """Return `num_envs` copies of a linear system that clips actions, or raise ValueError."""
    with jax.ensure_compile_time_eval():
        system = jax.tree.map(np.asarray, make_system(env_id))
    num_states, num_actions = system.B.shape
    max_action, max_steps = LINEAR[env_id].max_action, LINEAR[env_id].max_steps

    def reset(key):
        x = first_state(as_floats(system), key)
        return x, (x, jnp.int32(0))

    def step(key, inner, action):
        x, time = inner
        key_noise, key_reset = jax.random.split(key)
        action = jnp.clip(action, -max_action, max_action)
        next_x = next_state(as_floats(system), x, action, key_noise)
        reward = -stage_cost(as_floats(system), x, action)
        truncated = time + 1 >= max_steps
        x = jnp.where(truncated, first_state(as_floats(system), key_reset), next_x)
        inner = (x, jnp.where(truncated, 0, time + 1))
        return x, inner, reward, jnp.bool_(False), truncated, next_x

    bound = np.full(num_actions, max_action)
    return batch_env(
        reset,
        step,
        num_envs,
        obs_shape=(num_states,),
        num_states=None,
        num_actions=None,
        action_shape=(num_actions,),
        action_low=-bound,
        action_high=bound,
        max_steps=max_steps,
    )
