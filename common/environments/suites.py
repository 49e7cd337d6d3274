"""Environments of other suites written in JAX: the suite's own id, then the suite, as
`Snake-v1-jumanji`. A suite's package is imported when one of its ids is used.

What suites mix is taken apart here: the time limit truncates, and all other ends terminate.
"""

import functools
import importlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from common.environments.batching import lookup
from common.environments.gymnax_checks import attempt
from common.environments.resets import reset_ahead_env
from common.envs import Env, is_bounded

NEVER = 2**31 - 1  # a time limit for a suite that must have one
NO_LIMIT = 10_000  # steps after which episodes are truncated where a suite never ends them
MOST_ACTIONS = 10_000  # combinations of several choices that become one number


class World(NamedTuple):
    """One environment of a suite, which neither resets itself nor has a time limit."""

    reset: Callable  # key -> state
    step: Callable  # key, state, action -> state, reward, terminated
    observe: Callable  # state -> obs, one array
    max_steps: int
    actions: dict[str, Any]  # Env's fields: num_actions, or action_shape, action_low, action_high
    legal: Callable | None = None  # state -> mask of legal actions [A], bool


def make_suite_env(env_id: str, num_envs: int) -> Env:
    """Return `num_envs` copies of an environment of a suite; ValueError, one line, if its package
    is missing, if there is no such id, or if algorithms cannot use it."""
    world = load(env_id)
    functions = world.reset, world.step, world.observe
    env = reset_ahead_env(*functions, num_envs, world.max_steps, **world.actions)
    if world.legal is None:
        return env
    legal = functools.partial(mask_of, env.obs_shape, world.actions["num_actions"])
    return env._replace(legal=legal)


# Cached, because JAX compiles for each instance.
@functools.cache
def load(env_id: str) -> World:
    """Return the world of an id; ValueError, one line, as make_suite_env says."""
    name, _, suite = env_id.rpartition("-")
    world = SUITES[suite](name, functools.partial(import_module, env_id))
    is_discrete = "num_actions" in world.actions

    def reset(key):
        # As two numbers: some suites use a key twice, which JAX refuses where keys have a type.
        return world.reset(jax.random.key_data(key))

    def step(key, state, action):
        action = action.astype(jnp.int32) if is_discrete else action  # not int64, in float64
        return world.step(jax.random.key_data(key), state, action)

    def observe(state):
        obs = world.observe(state)
        obs = obs if obs.dtype == bool else obs.astype(float)
        return obs if world.legal is None else append_mask(obs, world.legal(state))

    def try_step(key):
        state = reset(key)
        action = jnp.zeros(world.actions.get("action_shape", ()))
        return observe(state), step(key, state, action)[1]

    _, reward = attempt(f"{env_id}: it", jax.eval_shape, try_step, jax.random.key(0))
    if reward.shape != ():
        raise ValueError(f"{env_id} rewards each of several agents; algorithms here train one")
    return world._replace(reset=reset, step=step, observe=observe)


def import_module(env_id: str, module: str) -> Any:
    """Return a module of a suite; ValueError, one line, that says how to install it."""
    try:
        return attempt(f"{env_id}: import {module}", importlib.import_module, module)
    except ValueError as error:
        missing = getattr(error.__cause__, "name", None)
        if not isinstance(error.__cause__, ModuleNotFoundError) or missing != module.split(".")[0]:
            raise
        package = env_id.rpartition("-")[2]
        raise ValueError(f"{env_id} needs a package: pip install {package}") from error


def choose(name: str, names: Iterable[str], suite: str) -> str:
    """Return the name if the suite has it; ValueError with all ids if not."""
    return lookup({f"{x}-{suite}": x for x in sorted(names)}, f"{name}-{suite}", "environment")


def planes(symbols: jax.Array, sizes: tuple[int, ...]) -> jax.Array:
    """Return symbols [H, W, C], where those of channel i are below sizes[i], as planes of 0 and 1,
    bool [H, W, sum(sizes)]; a symbol that is not below its size is in none."""
    channels = zip(jnp.moveaxis(symbols, -1, 0), sizes, strict=True)
    return jnp.concatenate([x[..., None] == jnp.arange(n) for x, n in channels], axis=-1)


def append_mask(obs: jax.Array, mask: jax.Array) -> jax.Array:
    """Append a mask [A] to an image [H, W, C] as planes filled row by row, else to a vector."""
    mask = mask.astype(obs.dtype)
    if obs.ndim != 3:
        return jnp.concatenate([obs.ravel(), mask])
    height, width, _ = obs.shape
    num_planes = -(-len(mask) // (height * width))
    mask = jnp.pad(mask, (0, num_planes * height * width - len(mask)))
    planes_of_mask = jnp.moveaxis(mask.reshape(num_planes, height, width), 0, -1)
    return jnp.concatenate([obs, planes_of_mask], -1)


def mask_of(obs_shape: tuple[int, ...], num_actions: int, obs: jax.Array) -> jax.Array:
    """Return the mask [..., A] that `append_mask` appended to observations [..., *obs_shape]; a
    history of vectors ends in that of the last one, too."""
    if len(obs_shape) == 3:
        height, width, _ = obs_shape
        num_planes = -(-num_actions // (height * width))
        obs = jnp.moveaxis(obs[..., -num_planes:], -1, -3)
        return obs.reshape(*obs.shape[:-3], -1)[..., :num_actions] > 0
    return obs[..., -num_actions:] > 0


def navix(name: str, load_module: Callable) -> World:
    """MiniGrid (Pignatelli et al. 2024, https://arxiv.org/abs/2407.19396). Seen is the whole grid:
    what is in a cell, its colour, and its state or direction. Reward 1 at the goal."""
    package = load_module("navix")
    env = package.make(choose(name, package.registry(), "navix"))

    def bare(timestep):  # without its sprites, which take most of the memory
        return timestep.replace(state=timestep.state.replace(cache=None))

    def step(key, timestep, action):
        timestep = env._step(timestep, action)  # `step` also resets, in every step under vmap
        return timestep, timestep.reward, timestep.is_termination()

    def observe(timestep):
        return planes(timestep.observation, (11, 6, 4))

    actions = {"num_actions": len(env.action_set)}
    return World(lambda key: bare(env.reset(key)), step, observe, int(env.max_steps), actions)


def xminigrid(name: str, load_module: Callable) -> World:
    """XLand-MiniGrid (Nikulin et al. 2023, https://arxiv.org/abs/2312.12044). Seen are the cells
    before the agent, 7 x 7: what is in each, its colour. Reward 1 - 0.9 t / limit at the goal."""
    package = load_module("xminigrid")
    constants = load_module("xminigrid.core.constants")
    names = [x for x in package.registered_environments() if not x.startswith("XLand")]
    if name in package.registered_environments() and name not in names:
        raise ValueError(
            f"{name}-xminigrid has no goal until it is given rules, which are downloads"
        )
    env, params = package.make(choose(name, names, "xminigrid"))

    def reset(key):
        return env.reset(params, key)

    def step(key, timestep, action):
        timestep = env.step(params, timestep, action)
        return timestep, timestep.reward, timestep.discount == 0  # its limit leaves it at 1

    def observe(timestep):
        return planes(timestep.observation, (constants.NUM_TILES, constants.NUM_COLORS))

    actions = {"num_actions": env.num_actions(params)}
    return World(reset, step, observe, int(params.max_steps), actions)


def craftax(name: str, load_module: Callable) -> World:
    """Craftax (Matthews et al. 2024, https://arxiv.org/abs/2402.16801), Classic or whole. Seen is a
    vector, `Symbolic`, or an image, `Pixels`. Reward for achievements, and for health."""
    make = load_module("craftax.craftax_env").make_craftax_env_from_name
    kinds = [
        f"Craftax-{x}-v1" for x in ("Classic-Symbolic", "Classic-Pixels", "Symbolic", "Pixels")
    ]
    env = make(choose(name, kinds, "craftax"), auto_reset=False)
    params = env.default_params
    max_steps = int(params.max_timesteps)
    params = params.replace(max_timesteps=NEVER)

    def reset(key):
        return env.reset_env(key, params)

    def step(key, state, action):
        obs, inner, reward, done, _ = env.step_env(key, state[1], action, params)
        return (obs, inner), reward, done

    return World(reset, step, lambda state: state[0], max_steps, {"num_actions": env.num_actions})


def pgx(name: str, load_module: Callable) -> World:
    """PGX (Koyamada et al. 2023, https://arxiv.org/abs/2303.17503): MinAtar, 2048, and games of
    two against a player who takes each legal move with the same probability.

    The suite draws who begins. An illegal move ends a game and loses it.
    """
    package = load_module("pgx")
    env = package.make(choose(name, package.available_envs(), "pgx"))
    if env.num_players > 2:
        raise ValueError(
            f"{name}-pgx is a game of {env.num_players}: there are those of one and two"
        )

    def reply(state, key, reward):
        """Let the opponent move until it is the learner's turn, or over."""

        def waits(carry):
            state = carry[0]
            return (state.current_player != 0) & ~state.terminated

        def move(carry):
            state, key, reward = carry
            key, key_move, key_step = jax.random.split(key, 3)
            action = jax.random.categorical(
                key_move, jnp.where(state.legal_action_mask, 0, -jnp.inf)
            )
            state = env.step(state, action, key_step)
            return state, key, reward + state.rewards[0]

        if env.num_players == 1:
            return state, reward
        state, _, reward = jax.lax.while_loop(waits, move, (state, key, reward))
        return state, reward

    def reset(key):
        key, key_reply = jax.random.split(key)
        return reply(env.init(key), key_reply, jnp.float32(0))[0]

    def step(key, state, action):
        key, key_reply = jax.random.split(key)
        state = env.step(state, action, key)
        state, reward = reply(state, key_reply, state.rewards[0])
        return state, reward, state.terminated

    def observe(state):
        return state.observation

    # PGX's num_actions runs a whole reset, operation by operation.
    num_actions = jax.eval_shape(env.init, jax.random.key(0)).legal_action_mask.shape[0]
    legal = None if name.startswith("minatar-") else lambda state: state.legal_action_mask  # all
    return World(reset, step, observe, NO_LIMIT, {"num_actions": num_actions}, legal)


def jumanji(name: str, load_module: Callable) -> World:
    """Jumanji (Bonnet et al. 2024, https://arxiv.org/abs/2306.09884). Seen is the image, where
    it is all there is but a mask of legal actions, else a vector of everything, with the mask.

    The number of the step is not seen. Integers are scaled to [0, 1] where they have bounds. Where
    an action is several choices, each combination has a number.
    """
    package = load_module("jumanji")
    specs = load_module("jumanji.specs")
    choose(name, package.registered_environments(), "jumanji")
    if name == "Sokoban-v0":
        raise ValueError(f"{name}-jumanji downloads its levels and is not supported")
    env = package.make(name)
    seen, spec = env.observation_spec, env.action_spec
    max_steps = int(getattr(env, "time_limit", NO_LIMIT))
    env.time_limit = NEVER

    def encode(path, x):
        x = jnp.asarray(x)  # some are Python's numbers
        part = functools.reduce(lambda spec, key: getattr(spec, key.name), path, seen)
        low, high = (np.asarray(getattr(part, y, np.nan), float) for y in ("minimum", "maximum"))
        is_scaled = jnp.issubdtype(x.dtype, jnp.integer) and is_bounded(low, high, most=2**24)
        return (x - low) / (high - low) if is_scaled else x.astype(float)

    def observe(state):
        parts = jax.tree_util.tree_leaves_with_path(state[1])
        unseen = {"step_count", "step", *(["action_mask"] if is_masked else [])}
        parts = {path: x for path, x in parts if path[-1].name not in unseen}
        first, *others = [x for path, x in parts.items() if path[-1].name != "action_mask"]
        if not others and jnp.ndim(first) == 3 and jnp.issubdtype(first.dtype, jnp.floating):
            return first
        return jnp.concatenate([encode(path, x).ravel() for path, x in parts.items()])

    def legal(state):
        return state[1].action_mask.ravel()

    def reset(key):
        state, timestep = env.reset(key)
        return state, timestep.observation

    def step(key, state, action):
        action = decode(action)
        inner, timestep = env.step(state[0], action)
        return (inner, timestep.observation), timestep.reward, timestep.last()

    def decode(action):
        if isinstance(spec, specs.MultiDiscreteArray):
            action = jnp.stack(jnp.unravel_index(action, choices))
        return action.reshape(spec.shape).astype(spec.dtype)

    choices = np.asarray(getattr(spec, "num_values", ())).ravel().tolist()
    num_actions = int(np.prod(choices, dtype=float))
    if num_actions > MOST_ACTIONS or not (choices or jnp.issubdtype(spec.dtype, jnp.floating)):
        kinds = f"{num_actions:.0e} combinations" if choices else "integers that are not numbered"
        raise ValueError(f"{name}-jumanji has actions that algorithms cannot use: {kinds}")
    _, first = jax.eval_shape(reset, jax.random.key_data(jax.random.key(0)))
    mask = getattr(first, "action_mask", None)
    is_masked = mask is not None and mask.shape == tuple(choices)  # of each combination
    actions: dict[str, Any] = {"num_actions": num_actions}
    if not choices:
        low, high = (np.broadcast_to(x, spec.shape).ravel() for x in (spec.minimum, spec.maximum))
        actions = {"action_shape": low.shape, "action_low": low, "action_high": high}
    return World(reset, step, observe, max_steps, actions, legal if is_masked else None)


def playground(name: str, load_module: Callable) -> World:
    """MuJoCo Playground (Zakka et al. 2025, https://arxiv.org/abs/2502.08844), with the physics of
    MJX in JAX. Seen is a vector; of several, `state`, which is for policies."""
    package = load_module("mujoco_playground")
    registry = package.registry
    choose(name, registry.ALL_ENVS, "playground")
    models = Path(package.__file__).parent / "external_deps" / "mujoco_menagerie"
    if name not in package.dm_control_suite.ALL_ENVS and not models.exists():
        code = f"from mujoco_playground import registry; registry.load({name!r})"
        raise ValueError(f'{name}-playground downloads models; let it, once: python -c "{code}"')
    env = registry.load(name, config_overrides={"impl": "jax"})
    max_steps = int(registry.get_default_config(name).episode_length)

    def step(key, state, action):
        state = env.step(state, action)
        return state, state.reward, state.done > 0

    def observe(state):
        return state.obs["state"] if isinstance(state.obs, dict) else state.obs

    high = np.ones(env.action_size)
    actions = {"action_shape": high.shape, "action_low": -high, "action_high": high}
    return World(env.reset, step, observe, max_steps, actions)


SUITES = {  # by the names of their packages on PyPI
    "navix": navix,
    "jumanji": jumanji,
    "craftax": craftax,
    "pgx": pgx,
    "xminigrid": xminigrid,
    "playground": playground,
}
