"""Environments whose steps can be differentiated with respect to the actions."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from common.envs import Env, make_env


def make_differentiable_env(
    env_id: str, num_envs: int, through: Literal["reward", "next_obs"]
) -> Env:
    """Return `num_envs` copies of an environment with bounded actions, in which rewards or
    observations have gradients with respect to earlier actions; ValueError if they have not."""
    env = make_env(env_id, num_envs, actions="continuous")
    if not has_gradient(env_id, through, jnp.result_type(float)):  # not copied
        what = "reward" if through == "reward" else "observation"
        raise ValueError(
            f"{env_id}: no {what} has a gradient with respect to an earlier action; this algorithm "
            "needs one, as Pendulum-v1, Reacher-brax and every <name>-linear have it"
        )
    return env


@functools.cache
def has_gradient(env_id: str, through: str, precision: np.dtype) -> bool:
    """Return whether the first action of 16 episodes of 8 random ones matters: a later reward, or
    any next observation, has a derivative with respect to it that is not 0."""
    with jax.ensure_compile_time_eval():
        env = make_env(env_id, 16)
        key_reset, key_action, key_step = jax.random.split(jax.random.key(0), 3)
        keys = jax.random.split(key_step, 8)
        low, high = jnp.asarray(env.action_low, float), jnp.asarray(env.action_high, float)
        uniform = jax.random.uniform(key_action, (8, 16, *env.action_shape))
        actions = low + (high - low) * uniform

        def play(first_action):
            def step(state, inputs):
                state, transition = env.step(state, *inputs)
                return state, getattr(transition, through)

            inputs = actions.at[0].set(first_action), keys
            return jax.lax.scan(step, env.reset(key_reset), inputs)[1]

        # It runs once: XLA need not optimize it, which takes a minute for some of Brax's.
        options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
        derivative = jax.jit(lambda x: jax.jvp(play, (x,), (x + 1,))[1], compiler_options=options)
        return bool(jnp.any(derivative(actions[0])[through == "reward" :] != 0))
