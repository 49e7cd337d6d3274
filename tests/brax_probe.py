"""An environment in the form of Brax's that costs next to nothing."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Countdown(NamedTuple):
    """The State, as Brax names it, of an environment that starts at a random number between 20 and
    40 and ends after that many steps."""

    obs: jax.Array  # [2] the start, the steps since
    reward: jax.Array
    done: jax.Array


class CountdownEnv:
    action_size = 1

    def reset(self, key):
        start = jax.random.uniform(key, minval=20, maxval=40)
        return Countdown(jnp.stack([start, 0.0]), jnp.float32(0), jnp.float32(0))

    def step(self, state, action):
        obs = state.obs + jnp.array([0.0, 1.0])
        return Countdown(obs, jnp.float32(1), (obs[1] >= obs[0]).astype(jnp.float32))
