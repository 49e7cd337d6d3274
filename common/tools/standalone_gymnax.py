"""For copies with gymnax's environments alone: common/envs.py's `make_env`."""

import gymnax
import jax
import jax.numpy as jnp
import numpy as np

from common.envs import Env, EnvState, Transition, first_episode, next_episode


def make_env(env_id: str, num_envs: int, actions: str = "any", observations: str = "any") -> Env:
    """Return `num_envs` copies of a gymnax environment, or raise ValueError."""
    if env_id not in gymnax.registered_envs:
        raise ValueError(f"--env-id: no environment {env_id!r} is registered with gymnax")
    env, params = gymnax.make(env_id)
    obs_space, action_space = env.observation_space(params), env.action_space(params)
    is_discrete = hasattr(action_space, "n")
    if actions not in ("any", "discrete" if is_discrete else "continuous"):
        raise ValueError(f"--env-id: {env_id} has no {actions} actions")
    low, high = (getattr(obs_space, name, None) for name in ("low", "high"))
    reset_all = jax.vmap(lambda key: env.reset(key, params))
    step_all = jax.vmap(lambda key, inner, action: env.step(key, inner, action, params))
    shapes = jax.eval_shape(reset_all, jax.random.split(jax.random.key(0), num_envs))
    is_scaled = jnp.issubdtype(shapes[0].dtype, jnp.integer) and low is not None

    def encode(obs):  # integers are scaled to [0, 1], but the numbers of states
        if env_id.endswith("-MinAtar"):  # copied for MinAtar
            return obs.astype(bool)
        return (obs - low) / (high - low) if is_scaled else obs

    def strong(tree, shapes):  # some environments reset to weakly typed arrays
        return jax.tree.map(lambda x, y: jax.lax.convert_element_type(x, y.dtype), tree, shapes)

    def reset(key):
        obs, inner = strong(reset_all(jax.random.split(key, num_envs)), shapes)
        return EnvState(inner, encode(obs), first_episode(num_envs))

    def step(state, action, key):
        outputs = step_all(jax.random.split(key, num_envs), state.inner, action)
        obs, inner, reward, terminated, truncated, info = outputs
        obs, inner = strong((obs, inner), shapes)
        next_obs = encode(strong(info["final_observation"], shapes[0]))
        reward = jnp.asarray(reward, float)
        transition = Transition(state.obs, action, reward, next_obs, terminated, truncated)
        episode = next_episode(state.episode, reward, terminated | truncated)
        return EnvState(inner, encode(obs), episode), transition

    fields = {"max_steps": getattr(params, "max_steps_in_episode", 10_000)}
    with np.errstate(over="ignore"):  # copied for obs_low
        span = np.asarray(high, np.float32) - np.asarray(low, np.float32)
    if np.all(np.isfinite(span)):  # copied for obs_low
        fields |= {"obs_low": low, "obs_high": high}
    if not is_discrete:  # copied unless actions="discrete"
        shape = fields["action_shape"] = action_space.shape
        fields["action_low"] = jnp.broadcast_to(action_space.low, shape)
        fields["action_high"] = jnp.broadcast_to(action_space.high, shape)
    num_states, num_actions = getattr(obs_space, "n", None), getattr(action_space, "n", None)
    return Env(reset, step, num_envs, shapes[0].shape[1:], num_states, num_actions, **fields)
