"""Searches against mctx and by hand, outcomes by hand, the network against lax.conv, updates."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import every_end, float64, keys, trained

from algorithms.alphazero import (
    ILLEGAL,
    Config,
    Node,
    Trajectory,
    board_network,
    completed_q,
    extend,
    gumbel_rule,
    halving,
    improved_logits,
    make,
    puct,
    puct_rule,
    search,
)
from common.environments.games import make_game
from common.environments.simulators import Outcome, Simulator, simulator_of_game

SMALL = Config(
    total_timesteps=160,
    num_envs=4,
    num_steps=10,
    num_simulations=6,
    num_considered=4,
    gradient_steps=2,
    batch_size=8,
    buffer_size=80,
    hidden_sizes=(16,),
    num_matches=2,
)


def node(logits, value, visits, total):
    return Node(*(jnp.array(x, float) for x in (logits, value, visits, total)))


# The rules of a search.


def test_sequential_halving_by_hand():
    """4 actions and 16 simulations: two phases of 8, two visits for each of 4, four for each of 2.
    With 5, the last phase is cut; of one action all; with fewer simulations than actions each is
    tried at most once."""
    assert halving(4, 16) == [0] * 4 + [1] * 4 + [2, 2, 3, 3, 4, 4, 5, 5]
    assert halving(4, 5) == [0, 0, 0, 0, 1]
    assert halving(1, 3) == [0, 1, 2]
    assert halving(8, 5) == [0] * 5


def test_sequential_halving_is_that_of_mctx():
    from mctx._src.seq_halving import get_sequence_of_considered_visits

    for num_considered in range(1, 20):
        for num_simulations in (1, 2, 8, 16, 32, 50, 200):
            expected = get_sequence_of_considered_visits(num_considered, num_simulations)
            np.testing.assert_array_equal(halving(num_considered, num_simulations), expected)


def test_q_is_completed_by_hand():
    """p = 1/2, 1/4, 1/4; visits 3, 1, 0 with Q = 1/3 and -1: their mean by p is -1/9, and
    v_mix = (0.4 + 4 (-1/9)) / 5. Without any visit it is v."""
    some = node(np.log([2, 1, 1]), 0.4, [3, 1, 0], [1, -1, 0])
    np.testing.assert_allclose(completed_q(some), [1 / 3, -1, (0.4 - 4 / 9) / 5], rtol=1e-5)
    np.testing.assert_allclose(completed_q(node([0, 0], 0.4, [0, 0], [0, 0])), 0.4)
    expected = np.log([2, 1, 1]) + 53 * 0.1 * np.array([1 / 3, -1, (0.4 - 4 / 9) / 5])
    np.testing.assert_allclose(improved_logits(some, 0.1), expected, rtol=1e-5)


def test_the_improved_policy_never_has_a_lower_expectation():
    """On bandits of known q whose actions were all visited."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        logits, q, visits = rng.normal(size=6), rng.normal(size=6), rng.integers(1, 5, 6)
        prior = np.exp(logits) / np.exp(logits).sum()
        improved = jax.nn.softmax(
            improved_logits(node(logits, prior @ q, visits, visits * q), rng.uniform(0.01, 1))
        )
        assert improved @ q >= prior @ q - 1e-5


def test_below_the_root_visits_follow_the_improved_policy():
    """π' = (.8, .2) - n / (1 + 3): .8 - 3/4 < .2, and .8 - 2/4 > .2 - 1/4."""
    rule = gumbel_rule(jnp.zeros(2), None, 0.0)
    assert rule.inner(node(np.log([4, 1]), 0.0, [3, 0], [0, 0])) == 1
    assert rule.inner(node(np.log([4, 1]), 0.0, [2, 1], [0, 0])) == 0


def test_the_move_is_the_best_of_the_most_visited_and_noise_counts():
    some = node([0, 0, 5], 0.0, [4, 4, 1], [0, 0, 1])
    for noise, action in (([0, 1, 0], 1), ([1, 0, 9], 0)):
        found, policy = gumbel_rule(jnp.array(noise, float), None, 0.0).decide(some)
        assert found == action
        np.testing.assert_allclose(policy, jax.nn.softmax(some.logits))


def test_puct_by_hand():
    """Q = 0.5, 0, -1; c p √9 / (1 + n) = 1.25 (.5, .25, .25) 3 / (5, 1, 6)."""
    score = puct(
        jnp.array([0.5, 0.25, 0.25]), jnp.array([4.0, 0, 5]), jnp.array([2.0, 0, -5]), 1.25
    )
    np.testing.assert_allclose(score, [0.5 + 0.375, 0.9375, -1 + 0.15625], rtol=1e-6)


def test_the_noise_of_dirichlet_is_at_the_root_and_on_legal_actions_only():
    """A quarter of it; the action with nearly all noise is not legal."""
    noise = jnp.array([0.05, 0.9, 0.05])
    some = node([0.8, ILLEGAL, 0], 0.0, [1, 0, 0], [0, 0, 0])
    rule = puct_rule(jnp.zeros(3), noise, 0.25, 1.0)
    assert rule.root(some, 0) == 2  # (.75 .69 + .125) / 2 < .75 .31 + .125
    assert rule.inner(some) == 0  # .69 / 2 > .31
    assert puct_rule(jnp.zeros(3), noise, 0.0, 1.0).root(some, 0) == 0
    action, policy = rule.decide(some._replace(visits=jnp.array([3.0, 0, 1])))
    assert action == 0 and policy.tolist() == [0.75, 0, 0.25]


def test_moves_are_drawn_from_the_visits_of_a_puct_search():
    noise = jax.random.gumbel(jax.random.key(0), (4_000, 3))
    some = node([0, 0, 0], 0.0, [6, 0, 2], [0, 0, 0])
    decide = lambda noise: puct_rule(noise, jnp.ones(3), 0.25, 1.0).decide(some)[0]
    share = np.bincount(jax.vmap(decide)(noise), minlength=3) / 4_000
    np.testing.assert_allclose(share, [0.75, 0, 0.25], atol=0.03)


@pytest.mark.parametrize("discount", [-1.0, 0.5])
def test_a_path_adds_each_reward_to_all_earlier_returns(discount):
    """Rewards 1, 2, 4, the last of which ends the episode: a value after it has no weight."""
    path = Trajectory(jnp.int32(0), jnp.full(4, 99), jnp.zeros(4), jnp.zeros(4))
    for edge, reward, weight in ((5, 1.0, discount), (7, 2.0, discount), (8, 4.0, 0.0)):
        path = extend(path, edge, reward, weight)
    expected = [1 + discount * (2 + discount * 4), 2 + discount * 4, 4, 0]
    np.testing.assert_allclose(path.returns + path.weight * 1e3, expected)
    assert path.edge.tolist() == [5, 7, 8, 99] and path.length == 3


# Whole searches.


def fake_network(board, legal):
    """A number for every board, and as many logits as there are cells."""
    x = board @ jnp.sqrt(jnp.arange(2.0, 2 + board.shape[-1]))
    logits = jnp.cos(x * jnp.arange(1.0, 1 + legal.shape[-1]))
    return jnp.where(legal, logits, ILLEGAL), jnp.sin(x) / 2


def roots_of(game, num_roots):
    """Boards after 0 to 3 moves."""
    roots = []
    for i in range(num_roots):
        state = game.init()
        for move in range(i % 4):
            state = game.step(state, (2 * i + 3 * move) % game.num_actions)[0]
        roots.append(state)
    return jnp.stack(roots)


@pytest.mark.parametrize("num_simulations, num_considered", [(32, 16), (50, 4)])
def test_a_gumbel_search_is_that_of_mctx(num_simulations, num_considered):
    """The same visits at the root, in every game, with the same noise and the same network."""
    import mctx

    game, num_roots = make_game("TicTacToe-game"), 8
    simulator = simulator_of_game(game)
    tried = jnp.array([halving(min(max(n, 1), num_considered), num_simulations) for n in range(10)])

    def ours(state, noise):
        rule = gumbel_rule(noise, tried, 0.1)
        found = search(simulator, fake_network, rule, state, jax.random.key(0), num_simulations)
        return found, *rule.decide(found)

    def expand(params, key, action, state):
        outcome = jax.vmap(simulator.step, (0, 0, None))(state, action, None)
        logits, value = jax.vmap(fake_network)(outcome.obs, jax.vmap(game.legal)(outcome.obs))
        output = mctx.RecurrentFnOutput(
            reward=outcome.reward, discount=outcome.discount, prior_logits=logits, value=value
        )
        return output, outcome.obs

    with float64():
        roots = roots_of(game, num_roots)
        key = jax.random.key(3)
        noise = jax.random.gumbel(jax.random.split(key)[1], (num_roots, 9))  # as mctx draws it
        found, action, policy = jax.jit(jax.vmap(ours))(roots, noise)
        logits, value = jax.vmap(fake_network)(roots, jax.vmap(game.legal)(roots))
        theirs = jax.jit(
            functools.partial(
                mctx.gumbel_muzero_policy,
                None,
                recurrent_fn=expand,
                num_simulations=num_simulations,
                max_num_considered_actions=num_considered,
                qtransform=functools.partial(
                    mctx.qtransform_completed_by_mix_value, value_scale=0.1, rescale_values=False
                ),
            )
        )(
            rng_key=key,
            root=mctx.RootFnOutput(prior_logits=logits, value=value, embedding=roots),
            invalid_actions=~jax.vmap(game.legal)(roots),
        )
    np.testing.assert_array_equal(found.visits, theirs.search_tree.summary().visit_counts)
    np.testing.assert_array_equal(action, theirs.action)
    np.testing.assert_allclose(policy, theirs.action_weights, atol=1e-9)


def one_search(simulator, state, num_simulations, evaluate, value_scale=0.1):
    tried = jnp.array([halving(max(n, 1), num_simulations) for n in range(10)])
    rule = gumbel_rule(jnp.zeros(simulator.num_actions), tried, value_scale)
    find = lambda state: search(
        simulator, evaluate, rule, state, jax.random.key(0), num_simulations
    )
    return jax.tree.map(np.asarray, jax.jit(find)(state))


def know_nothing(obs, legal):
    return jnp.where(legal, 0.0, ILLEGAL), jnp.float32(0)


def test_signs_of_both_players_where_two_moves_are_left():
    """We have 1, 5 and 6, they have 0, 2, 3 and 4. If we take 7 they complete 0, 4 and 8, which is
    known from the second visit on; if we take 8, 7 makes a draw."""
    state = jnp.int8([-1, 1, -1, -1, -1, 1, 1, 0, 0])
    found = one_search(simulator_of_game(make_game("TicTacToe-game")), state, 8, know_nothing)
    assert found.visits[:7].sum() == 0 and found.visits.sum() == 8 and found.visits[7] >= 2
    assert found.total[7] == -(found.visits[7] - 1) and found.total[8] == 0


@pytest.mark.parametrize(
    "cells, exact",
    [
        ([1, 1, 0, -1, -1, 0, 0, 0, 0], {2: 1}),  # we complete a row
        ([0, 1, 0, -1, -1, 0, 0, 0, 1], {0: -1, 2: -1, 6: -1, 7: -1}),  # they do, unless at 5
    ],
)
def test_a_win_is_worth_1_and_leaving_one_to_the_opponent_minus_1(cells, exact):
    """Q of a move that wins is 1 from the first visit on; a move after which the opponent wins
    tends to -1."""
    simulator = simulator_of_game(make_game("TicTacToe-game"))
    found = one_search(simulator, jnp.int8(cells), 200, know_nothing, value_scale=1.0)
    for action, value in exact.items():
        if value == 1:
            assert found.total[action] == found.visits[action] > 0
        else:
            assert found.total[action] / found.visits[action] < -0.4
    best = 2 if 2 in exact and exact[2] == 1 else 5
    assert np.argmax(found.visits) == best


@every_end
def test_the_value_beyond_an_end_counts_unless_the_mdp_ended(terminated, truncated, bootstraps):
    """Action 1 pays 2, and the episode ends in one of the ways: what follows is of a new episode,
    which no simulation enters. The value of the last observation is 10."""
    done = terminated or truncated

    def step(state, action, key):
        reward = 2.0 * action
        discount = 0.5 * (1 - terminated)
        return Outcome(state + 1, jnp.float32(7), reward, discount, jnp.bool_(done))

    simulator = Simulator(None, step, lambda state: state, lambda state: jnp.ones(2, bool), 2, 9)
    evaluate = lambda obs, legal: (jnp.zeros(2), jnp.where(obs == 7, 10.0, 0.0))
    found = one_search(simulator, jnp.float32(0), 6, evaluate)
    q = found.total / found.visits
    if done:
        np.testing.assert_allclose(q, [0.5 * 10 * bootstraps, 2 + 0.5 * 10 * bootstraps])
    else:  # the tree grows beyond
        assert found.visits.sum() == 6 and q[1] > q[0] >= 2.5


# The network.


def test_a_convolution_is_that_of_jax():
    """With zeros around the board, of the pieces of both players; then a residual block."""
    network = board_network((6, 7), 1, 5, (), 3)
    params = network.init(jax.random.key(0))
    cells = jax.random.randint(jax.random.key(1), (4, 42), -1, 2)
    layers, last = params

    def convolve(layer, x):
        w, b = layer
        kernel = w.reshape(3, 3, -1, w.shape[-1])
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dims) + b

    board = cells.reshape(4, 6, 7)
    x = convolve(layers[0], jnp.stack([board == 1, board == -1], axis=-1).astype(float))
    x = x + convolve(layers[2], jax.nn.relu(convolve(layers[1], jax.nn.relu(x))))
    w, b = last[0]
    expected = jax.nn.relu(x).reshape(4, -1) @ w + b
    np.testing.assert_allclose(network.apply(params, cells), expected, rtol=1e-4, atol=1e-5)


def test_without_blocks_the_pieces_go_to_the_layers():
    network = board_network((3, 3), 0, 5, (4,), 2)
    layers, last = network.init(jax.random.key(0))
    assert layers == [] and [w.shape for w, _ in last] == [(18, 4), (4, 2)]


# Updates.


def test_outcomes_are_in_view_of_the_player_to_move():
    """In games that ended within the rollout z is ±1 or 0 and alternates, to end with the last
    mover's reward; it is the same for the network of any seed. Of 10 moves each, from the empty
    board on, none of which is random."""
    algorithm = make(dataclasses.replace(SMALL, random_moves=0))
    positions = jax.jit(algorithm.init)(jax.random.key(0)).buffer
    obs, outcome = (
        np.asarray(x[:40]).reshape(10, 4, -1) for x in (positions.obs, positions.outcome)
    )
    num_pieces = np.sum(obs != 0, axis=-1)
    for game in range(4):
        ends = np.flatnonzero(num_pieces[1:, game] == 0)  # the last move of a game
        assert len(ends) >= 1
        z = outcome[: ends[0] + 1, game, 0]
        assert round(float(z[-1]), 5) in (0, 1)  # who moves last has won or drawn
        np.testing.assert_allclose(z[:-1], -z[1:], atol=1e-5)


def test_random_moves_come_before_a_game_and_are_not_learned_from():
    config = dataclasses.replace(SMALL, random_moves=9, num_envs=64, total_timesteps=1280)
    positions = jax.jit(make(config).init)(jax.random.key(0)).buffer
    first = np.asarray(positions.obs[:64])
    counts = np.bincount(np.sum(first != 0, axis=-1), minlength=9)
    assert counts[:4].min() > 0 and len(np.unique(first, axis=0)) > 25


@pytest.mark.parametrize("search", ["gumbel", pytest.param("puct", marks=pytest.mark.slow)])
def test_an_update_descends_the_loss_of_turned_positions(search):
    """One gradient step, with the batch drawn and turned as the update draws it."""
    config = dataclasses.replace(SMALL, gradient_steps=1, search=search, weight_decay=0.1)
    algorithm, game = make(config), make_game("TicTacToe-game")
    network = board_network((3, 3), 0, 64, (16,), 10)
    with float64():
        state = jax.jit(algorithm.init)(jax.random.key(0))
        after, metrics = jax.jit(algorithm.update)(state, 0)
        _, key_learn, _ = jax.random.split(jax.random.fold_in(state.key, 0), 3)
        key_sample, key_turn = jax.random.split(jax.random.fold_in(key_learn, 0))
        index = jax.random.bits(key_sample, (8,)) % 80
        kind = np.asarray(jax.random.randint(key_turn, (8,), 0, 8))
        batch = jax.tree.map(lambda x: np.asarray(x)[index], after.buffer)
        cells = np.stack([x[game.symmetries[0][k]] for x, k in zip(batch.obs, kind, strict=True)])
        policy = np.stack(
            [x[game.symmetries[1][k]] for x, k in zip(batch.policy, kind, strict=True)]
        )

        def loss(params):
            y = network.apply(params, jnp.asarray(cells))
            log_prob = jnp.log(
                jnp.exp(y[:, :9])
                * (cells == 0)
                / jnp.sum(jnp.exp(y[:, :9]) * (cells == 0), -1, keepdims=True)
                + 1e-300
            )
            errors = (batch.outcome - jnp.tanh(y[:, 9])) ** 2
            return jnp.mean(errors) - jnp.mean(jnp.sum(policy * log_prob, -1))

        value, grads = jax.value_and_grad(loss)(state.params)
        optimizer = optax.adamw(config.learning_rate, weight_decay=0.1)
        updates, _ = optimizer.update(grads, optimizer.init(state.params), state.params)
        expected = optax.apply_updates(state.params, updates)
    np.testing.assert_allclose(metrics["value_loss"] + metrics["policy_loss"], value, rtol=1e-6)
    for x, y in zip(jax.tree.leaves(after.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)


def test_act_is_legal_and_takes_a_win():
    algorithm = make(SMALL)
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state.params)
    boards = jnp.int8([[1, 1, 0, -1, -1, 0, 0, 0, 0], [1, -1, 1, -1, -1, 1, 1, 1, 0]])
    act = jax.jit(jax.vmap(algorithm.act, (None, 0, 0)))
    assert act(params, boards, keys(0, 1)).tolist() == [2, 8]


def test_an_outcome_in_an_environment_is_the_discounted_return_of_its_episode():
    """CartPole pays 1 a step: z_t = 1 + γ z_t+1, and 1 where the pole falls, which ends with no
    value. The last of 60 steps bootstraps; what acts on an observation is the network."""
    fields = {"env_id": "CartPole-v1", "num_steps": 60, "total_timesteps": 480, "gamma": 0.9}
    algorithm = make(dataclasses.replace(SMALL, **fields, value_scale=0.01, buffer_size=240))
    state = jax.jit(algorithm.init)(jax.random.key(0))
    z = np.asarray(state.buffer.outcome).reshape(60, 4)
    fell = np.abs(z[:-1] - 1) < 1e-5
    assert 4 <= fell.sum() < 40
    np.testing.assert_allclose(z[:-1], np.where(fell, 1, 1 + 0.9 * z[1:]), atol=1e-4)
    assert algorithm.act(state.params, jnp.zeros(4), jax.random.key(0)) in (0, 1)


def test_the_network_learns_what_an_environment_pays():
    """v of CartPole comes nearer to z, of which it knows nothing at first."""
    fields = {"env_id": "CartPole-v1", "gamma": 0.9, "gradient_steps": 50, "learning_rate": 3e-3}
    config = dataclasses.replace(SMALL, **fields, value_scale=0.01, total_timesteps=800)
    progress = [trained(make(config), [0], n).mean["value_loss"][0] for n in (1, 12)]
    assert progress[1] < progress[0] / 2
