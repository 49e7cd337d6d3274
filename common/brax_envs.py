"""Brax's environments (Freeman et al. 2021, https://arxiv.org/abs/2106.13281) as batches that start
themselves anew: `Hopper-brax`, or with another physics pipeline than `spring`, `Hopper-brax-mjx`.

Brax's own wrapper replays the first start for ever and loses the last observation of an episode. A
full reset in every step would cost up to half of the simulation, so starts are drawn ahead.
"""

import contextlib
import functools
import io
import warnings
from difflib import get_close_matches

import jax
import jax.numpy as jnp

NAMES = {
    "Ant": "ant",
    "Fast": "fast",
    "HalfCheetah": "halfcheetah",
    "Hopper": "hopper",
    "Humanoid": "humanoid",
    "HumanoidStandup": "humanoidstandup",
    "InvertedDoublePendulum": "inverted_double_pendulum",
    "InvertedPendulum": "inverted_pendulum",
    "Pusher": "pusher",
    "Reacher": "reacher",
    "Walker2d": "walker2d",
}
BROKEN = {"Swimmer": "Brax 0.14 fails in its reset"}
BACKENDS = "spring", "generalized", "positional", "mjx"
MAX_STEPS = {"Fast": 128}  # as in Brax's tests; all others 1,000, as in its training
MIN_AHEAD = 64  # starts drawn ahead; or twice as many as there are environments


@functools.cache
def load(env_id: str):
    """The environment of that id and its time limit, or ValueError."""
    name, _, backend = env_id.partition("-brax")
    backend = backend.removeprefix("-") or BACKENDS[0]
    if name in BROKEN:
        raise ValueError(f"{env_id} does not work, {BROKEN[name]}; choose another")
    if name not in NAMES:
        close = get_close_matches(name, NAMES, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}-brax?" if close else "for example Ant-brax"
        raise ValueError(f"no environment {env_id!r} in Brax; {hint}")
    if backend not in BACKENDS:
        raise ValueError(f"{env_id}: the physics are {', '.join(BACKENDS)}, not {backend!r}")
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Brax says on import what is missing and what follows it
        import mujoco
        from brax import envs

        # MuJoCo would write what it finds old-fashioned in Brax's models to MUJOCO_LOG.TXT.
        mujoco.set_mju_user_warning(lambda message: None)
        try:
            env = envs.get_environment(NAMES[name], backend=backend)
        finally:
            mujoco.set_mju_user_warning(None)
    return env, MAX_STEPS.get(name, 1_000)


@jax.custom_batching.custom_vmap
def anywhere(flag):
    """Whether the flag is up in any of the runs that are vmapped: a scalar, for all of them."""
    return flag


@anywhere.def_vmap
def _(axis_size, in_batched, flag):
    return anywhere(jnp.any(flag)), False


def batched(env_id: str, num_envs: int):
    """`reset(key) -> obs [N, ...], inner` and `step(key, inner, action [N, A]) -> obs, inner,
    reward, terminated, truncated, next_obs` of `num_envs` copies.

    Episode n starts as the nth number folded into the key says. Starts are drawn ahead, all that
    fit at once, whenever those of any seed run short: when that is changes no start.
    """
    env, max_steps = load(env_id)
    num_ahead = max(MIN_AHEAD, 2 * num_envs)

    def starts(key, first, num):
        return jax.vmap(lambda n: env.reset(jax.random.fold_in(key, n)))(first + jnp.arange(num))

    def reset(key):
        both = starts(key, 0, num_envs + num_ahead)
        states = jax.tree.map(lambda x: x[:num_envs], both)
        ahead = jax.tree.map(lambda x: x[num_envs:], both)
        first = jnp.int32(num_envs)
        return states.obs, (states, jnp.zeros(num_envs, jnp.int32), key, ahead, first, first)

    def step(_, inner, action):
        states, time, key, ahead, first, episodes = inner
        # First of all, or XLA would copy all starts in every step.
        ahead, first = jax.lax.cond(
            anywhere(episodes - first > num_ahead - num_envs),
            lambda: (starts(key, episodes, num_ahead), episodes),
            lambda: (ahead, first),
        )
        after = jax.vmap(env.step)(states, action)
        terminated, truncated = after.done > 0, time + 1 >= max_steps
        done = terminated | truncated
        place = episodes - first + jnp.cumsum(done) - 1

        def where_done(start, old):
            return jnp.where(done.reshape(-1, *[1] * (old.ndim - 1)), start[place], old)

        states = jax.tree.map(where_done, ahead, after)
        episodes += jnp.sum(done, dtype=jnp.int32)
        # Physics that broke down, or an action that is no number, earns no number.
        sound = jnp.isfinite(after.obs).all(-1) & jnp.isfinite(action).all(-1)
        reward = jnp.where(sound, after.reward, jnp.nan)
        inner = states, jnp.where(done, 0, time + 1), key, ahead, first, episodes
        return states.obs, inner, reward, terminated, truncated, after.obs

    return reset, step
