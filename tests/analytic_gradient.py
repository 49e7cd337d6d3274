"""What the tests of apg.py and shac.py share: a window played anew, and central differences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from helpers import float64, small_config

from common.envs import make_env, scale_action
from common.normalization import normalize

ENDS = [5, 17, 30]  # steps to the time limit of each of three Pendulums
SMALL = {"total_timesteps": 1_200, "num_envs": 3, "num_steps": 30, "hidden_sizes": (4,)}


def elu_mlp(layers, x):
    for w, b in layers[:-1]:
        x = jax.nn.elu(x @ w + b)
    w, b = layers[-1]
    return x @ w + b


def first_state(module, **fields):
    """A config, its algorithm, and a State whose episodes end within the first window."""
    config = small_config(module, **SMALL | fields)
    algorithm = module.make(config)
    state = jax.jit(algorithm.init)(jax.random.key(3))
    inner = state.env.inner
    time = 200 - jnp.array(ENDS, inner.time.dtype)
    state = state._replace(env=state.env._replace(inner=inner.replace(time=time)))
    layers, log_std = state.params.actor  # far from 0, where an action depends on nothing
    layers = jax.tree.map(lambda x: x + 0.3 * jnp.cos(jnp.arange(x.size).reshape(x.shape)), layers)
    return config, algorithm, state._replace(params=state.params._replace(actor=(layers, log_std)))


def play(config, state, actor, num_keys):
    """The window of update 0 with those params of the actor: Transitions [T, N], last EnvState."""
    env = make_env(config.env_id, config.num_envs)
    key_noise, key_env = jax.random.split(jax.random.fold_in(state.key, 0), num_keys)[:2]
    noise = jax.random.normal(key_noise, (config.num_steps, config.num_envs, *env.action_shape))
    layers, log_std = actor

    def step(env_state, inputs):
        noise, key = inputs
        mean = elu_mlp(layers, normalize(state.params.statistics, env_state.obs))
        action = jnp.tanh(mean + jnp.exp(log_std) * noise)
        return env.step(env_state, scale_action(env, action), key)

    inputs = noise, jax.random.split(key_env, config.num_steps)
    env_state, transitions = jax.lax.scan(step, state.env, inputs)
    return transitions, env_state


def central_differences(loss, tree, h=1e-6):
    """The gradient of a loss at a tree of float64 arrays, number by number, as a vector."""
    flat, unflatten = jax.flatten_util.ravel_pytree(tree)
    steps = h * jnp.eye(len(flat))
    losses = jax.jit(jax.vmap(lambda x: loss(unflatten(x))))
    return (losses(flat + steps) - losses(flat - steps)) / (2 * h)


def first_moment(opt_state):
    """Adam's, as a vector: (1 - β₁) times the first gradient."""
    return jax.flatten_util.ravel_pytree(optax.tree_utils.tree_get(opt_state, "mu"))[0] / (1 - 0.7)


def check_first_gradient(module, num_keys, loss_of, **fields):
    """The gradient of update 0 is that of `loss_of(config, state, transitions)` by central
    differences, to 1e-6. Returns what is worth another look."""
    with float64():
        config, algorithm, state = first_state(module, max_grad_norm=1e9, **fields)
        after, metrics = jax.jit(algorithm.update)(state, jnp.int32(0))
        loss = lambda actor: loss_of(config, state, play(config, state, actor, num_keys)[0])
        expected = central_differences(loss, state.params.actor)
        found = first_moment(after.opt_state)
    assert np.abs(expected).min() > 1e-4
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(expected), rtol=1e-6)
    # The first step of Adam is as long as the learning rate, against the gradient's sign.
    new, old = (jax.flatten_util.ravel_pytree(x.params.actor)[0] for x in (after, state))
    np.testing.assert_allclose(new - old, -config.learning_rate * np.sign(expected), rtol=1e-3)
    return config, state, after, metrics
