"""For copies of algorithms whose policies have memory: common/tools/standalone_main.py's `play`."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_map_with_path

from common.algorithm import Algorithm
from common.envs import make_env
from common.memory import rollout_with_memory


def play(algorithm: Algorithm, env_id: str, path: str, key: jax.Array) -> None:
    """Print the mean return of 100 episodes of each policy in a file that `main` saved."""
    assert algorithm.act and algorithm.init_memory  # not copied
    params = jax.eval_shape(algorithm.init, key).params
    with np.load(path) as file:
        params = tree_map_with_path(lambda path, _: file[keystr(path)], params)
    env, initial = make_env(env_id, 100), algorithm.init_memory()
    act = jax.vmap(algorithm.act, (None, 0, 0, 0))
    key_reset, key = jax.random.split(key)

    def mean_return(params):
        def policy(memory, obs, key):
            return act(params, memory, obs, jax.random.split(key, 100))

        memory = jax.tree.map(lambda x: jnp.broadcast_to(x, (100, *x.shape)), initial)
        states = env.reset(key_reset), memory
        _, transitions, *_ = rollout_with_memory(env, policy, states, initial, key, env.max_steps)
        done = transitions.terminated | transitions.truncated
        is_first_episode = jnp.cumsum(done, axis=0) - done == 0
        return jnp.sum(transitions.reward * is_first_episode) / 100

    print("return of each policy:", *(f"{x:.4g}" for x in jax.jit(jax.vmap(mean_return))(params)))
