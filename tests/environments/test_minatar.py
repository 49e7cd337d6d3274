"""MinAtar: every member of the DQN family takes all five games, and what a transition weighs."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from helpers import load, small_config

from common.buffers import uniform_buffer
from common.envs import make_env, rollout

# channels of the 10 x 10 observation, actions
GAMES = {"Asterix": (4, 5), "Breakout": (4, 3), "Freeway": (7, 3), "Seaquest": (10, 6)}
GAMES |= {"SpaceInvaders": (6, 4)}
FAMILY = ["dqn", "double_dqn", "dueling_dqn", "n_step_dqn", "prioritized_dqn", "noisy_dqn", "c51"]
FAMILY += ["rainbow", "online_q", "fitted_q_iteration"]


@pytest.mark.parametrize(
    "name, game",
    [  # each member with two of the games in the quick tier
        pytest.param(name, game, marks=[] if (i - j) % 5 in (0, 2) else pytest.mark.slow)
        for i, name in enumerate(FAMILY)
        for j, game in enumerate(GAMES)
    ],
)
def test_every_game_goes_into_every_member(name, game):
    """The program of a run is built, without compiling it."""
    module = load(name)
    config = dataclasses.replace(small_config(module), env_id=f"{game}-MinAtar")
    algorithm = module.make(config)
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    after, metrics = jax.eval_shape(algorithm.update, state, jnp.int32(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    obs = jax.ShapeDtypeStruct((10, 10, GAMES[game][0]), bool)
    action = jax.eval_shape(algorithm.act, state.params, obs, jax.random.key(0))
    assert action.shape == () and metrics["loss"].shape == ()


@pytest.mark.parametrize("game", GAMES)
def test_a_transition_weighs_two_observations_of_a_byte_a_cell_and_ten_bytes(game):
    """Action and reward take 4 bytes each, the two ends one each; 100,000 transitions of 64 seeds
    then fit into 13 GB for the largest game."""
    channels, num_actions = GAMES[game]
    env, buffer = make_env(f"{game}-MinAtar", 2), uniform_buffer(100, 2, 32)

    def play(key):
        def policy(obs, key):
            return jnp.zeros(2, jnp.int32)

        return buffer.init(rollout(env, policy, env.reset(key), key, 3)[1])

    buffer_state = jax.eval_shape(play, jax.random.key(0))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(buffer_state)) / 100
    assert size == 2 * 100 * channels + 4 + 4 + 2
    assert 64 * 100_000 * size < 13e9
    assert env.num_actions == num_actions
