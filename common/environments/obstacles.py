"""A point robot that must not touch obstacles: `PointRobot-obstacles`.

    v' = clip(v + dt u, -2, 2),   p' = p + dt v',   dt = .2

The planning problem of Donald, Xavier, Canny & Reif 1993, Kinodynamic Motion Planning,
https://doi.org/10.1145/174147.174150: a point mass whose velocity and acceleration are bounded in
each direction. An observation is the position and the velocity, (p, v). In a room of 10 x 10 two
walls, each with a gap at one end, stand between start and goal. Reward 1 for reaching the goal
slowly, else 0; that and a collision end the episode. No noise but the start.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from common.environments.batching import batch_env, lookup
from common.envs import Env


class Room(NamedTuple):
    """Intervals of positions and velocities; boxes are (left, bottom, right, top)."""

    boxes: np.ndarray  # [B, 4]
    low: np.ndarray  # [4] (p, v) of the room
    high: np.ndarray  # [4]
    start_low: np.ndarray  # [4] starts are uniform between these
    start_high: np.ndarray  # [4]
    goal_low: np.ndarray  # [4]
    goal_high: np.ndarray  # [4]
    max_steps: int  # time limit of an episode


OBSTACLES = {
    "PointRobot-obstacles": Room(
        boxes=np.array([[3.0, 0.0, 3.5, 7.0], [6.5, 3.0, 7.0, 10.0]]),
        low=np.array([0.0, 0.0, -2.0, -2.0]),
        high=np.array([10.0, 10.0, 2.0, 2.0]),
        start_low=np.array([0.5, 0.5, 0.0, 0.0]),
        start_high=np.array([2.0, 2.0, 0.0, 0.0]),
        goal_low=np.array([8.5, 8.5, -0.5, -0.5]),
        goal_high=np.array([9.5, 9.5, 0.5, 0.5]),
        max_steps=300,
    )
}


def make_room(env_id: str) -> Room:
    """Return a room, its arrays in today's precision; ValueError if there is none with that id."""
    room = lookup(OBSTACLES, env_id, "room with obstacles")
    return jax.tree.map(lambda x: jnp.asarray(x, float) if np.ndim(x) else x, room)


def collides(room: Room, position: jax.Array) -> jax.Array:
    """Return whether a position [2] is in a box or outside the room."""
    in_box = (position >= room.boxes[:, :2]) & (position <= room.boxes[:, 2:])
    outside = (position < room.low[:2]) | (position > room.high[:2])
    return jnp.any(jnp.all(in_box, axis=-1)) | jnp.any(outside)


def step_robot(room: Room, x: jax.Array, u: jax.Array) -> tuple:
    """Return the next state [4], the reward and whether the episode ends, for x [4] and u [2]."""
    velocity = jnp.clip(x[2:] + 0.2 * jnp.clip(u, -1, 1), room.low[2:], room.high[2:])
    next_x = jnp.concatenate([x[:2] + 0.2 * velocity, velocity])
    has_arrived = jnp.all((next_x >= room.goal_low) & (next_x <= room.goal_high))
    return next_x, has_arrived.astype(next_x.dtype), has_arrived | collides(room, next_x[:2])


def make_obstacles_env(env_id: str, num_envs: int) -> Env:
    """Return `num_envs` copies of a room, or raise ValueError."""
    room = make_room(env_id)

    def draw_start(key):
        return jax.random.uniform(key, (4,), float, room.start_low, room.start_high)

    def reset(key):
        x = draw_start(key)
        return x, (x, jnp.int32(0))

    def step(key, inner, action):
        x, time = inner
        next_x, reward, terminated = step_robot(room, x, action)
        truncated = time + 1 >= room.max_steps
        done = terminated | truncated
        x = jnp.where(done, draw_start(key), next_x)
        return x, (x, jnp.where(done, 0, time + 1)), reward, terminated, truncated, next_x

    return batch_env(
        reset,
        step,
        num_envs,
        obs_shape=(4,),
        action_shape=(2,),
        action_low=np.full(2, -1.0),
        action_high=np.full(2, 1.0),
        max_steps=room.max_steps,
        obs_low=OBSTACLES[env_id].low.astype(np.float32),
        obs_high=OBSTACLES[env_id].high.astype(np.float32),
    )
