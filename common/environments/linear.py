"""Linear systems with quadratic costs as arrays, for Riccati equations and for sampling alike.

    x' = A x + B u + w,   w ~ N(0, diag(noise²)),   reward = -(xᵀ Q x + uᵀ R u)

(the linear-quadratic regulator, Kalman 1960). The whole state is observed. A random system is drawn
with jax.random, so that it traces under jit and vmap over its key.
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
    noise: np.ndarray | jax.Array  # [n] standard deviation of w
    start: np.ndarray | jax.Array  # [n] first states are uniform in the box from -start to start


def first_state(system: System, key: jax.Array) -> jax.Array:
    """x ~ uniform from -start to start, [n]."""
    return jax.random.uniform(key, system.start.shape, minval=-1.0) * system.start


def mean_state(system: System, x: jax.Array, u: jax.Array) -> jax.Array:
    """E[x'] = A x + B u, [n]."""
    return jnp.matmul(system.A, x) + jnp.matmul(system.B, u)


def next_state(system: System, x: jax.Array, u: jax.Array, key: jax.Array) -> jax.Array:
    """x' = A x + B u + w, [n]."""
    return mean_state(system, x, u) + system.noise * jax.random.normal(key, x.shape)


def stage_cost(system: System, x: jax.Array, u: jax.Array) -> jax.Array:
    """xᵀ Q x + uᵀ R u, []."""
    return x @ system.Q @ x + u @ system.R @ u


def solve(matrix: jax.Array, right: jax.Array) -> jax.Array:
    """matrix⁻¹ right, [n, k], by Gauss-Jordan elimination without pivoting.

    The matrix [n, n] must be positive definite or upper triangular, and should be small. (LAPACK
    under vmap can deadlock XLA's CPU threads.)
    """
    rows = jnp.concatenate([matrix, right], axis=1)
    for i in range(len(matrix)):
        pivot = rows[i] / rows[i, i]
        rows = (rows - jnp.outer(rows[:, i], pivot)).at[i].set(pivot)
    return rows[:, len(matrix) :]


def double_integrator() -> System:
    """Return x' = x + v, v' = v + u: the position and velocity of a mass pushed by a force."""
    return System(
        A=np.array([[1.0, 1.0], [0.0, 1.0]]),
        B=np.array([[0.0], [1.0]]),
        Q=np.eye(2),
        R=np.eye(1),
        noise=np.full(2, 0.1),
        start=np.ones(2),
    )


def random_system(key: jax.Array, num_states: int = 4, num_actions: int = 2) -> System:
    """Draw A and B with independent entries ~ N(0, 1/n).

    The spectral radius of A is near 1 (Girko 1985), above or below it; the system is controllable
    with probability 1.
    """
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


def near_identity_system(key: jax.Array) -> System:
    """Draw A = I + .2 N and B = N with entries of N ~ N(0, 1), n = m = 3, without noise.

    (Amos et al. 2018, https://arxiv.org/abs/1810.13400, whose expert it is.)
    """
    key_a, key_b = jax.random.split(key)
    return System(
        A=jnp.eye(3) + 0.2 * jax.random.normal(key_a, (3, 3)),
        B=jax.random.normal(key_b, (3, 3)),
        Q=jnp.eye(3),
        R=jnp.eye(3),
        noise=jnp.zeros(3),
        start=jnp.ones(3),
    )


class Linear(NamedTuple):
    """A linear system with the bounds of its episodes and actions."""

    make: Callable[[jax.Array], System]  # key -> system; fixed systems ignore the key
    max_steps: int  # time limit of an episode
    max_action: float  # actions are in [-max_action, max_action]; optimal ones are well inside
    random: bool = False  # whether the system depends on the key


LINEAR = {
    "DoubleIntegrator-linear": Linear(lambda key: double_integrator(), 20, 3.0),
    "Random-linear": Linear(random_system, 10, 10.0, random=True),
    "NearIdentity-linear": Linear(near_identity_system, 5, 10.0, random=True),
}


def make_system(env_id: str, key: jax.Array | None = None) -> System:
    """Return the system of an id as JAX arrays in the default float type, or raise ValueError.

    A random system is drawn with `key`, or with jax.random.key(0).
    """
    make = lookup(LINEAR, env_id, "linear system").make
    system = make(jax.random.key(0) if key is None else key)
    return jax.tree.map(lambda x: jnp.asarray(x, float), system)


def make_linear_env(env_id: str, num_envs: int) -> Env:
    """Return `num_envs` copies of a linear system that clips actions, or raise ValueError."""
    with jax.ensure_compile_time_eval():
        system = make_system(env_id)
    num_states, num_actions = system.B.shape
    max_action, max_steps = LINEAR[env_id].max_action, LINEAR[env_id].max_steps

    def reset(key):
        x = first_state(system, key)
        return x, (x, jnp.int32(0))

    def step(key, inner, action):
        x, time = inner
        key_noise, key_reset = jax.random.split(key)
        action = jnp.clip(action, -max_action, max_action)
        next_x = next_state(system, x, action, key_noise)
        reward = -stage_cost(system, x, action)
        truncated = time + 1 >= max_steps
        x = jnp.where(truncated, first_state(system, key_reset), next_x)
        inner = (x, jnp.where(truncated, 0, time + 1))
        return x, inner, reward, jnp.bool_(False), truncated, next_x

    bound = np.full(num_actions, max_action)
    return batch_env(
        reset,
        step,
        num_envs,
        obs_shape=(num_states,),
        action_shape=(num_actions,),
        action_low=-bound,
        action_high=bound,
        max_steps=max_steps,
    )
