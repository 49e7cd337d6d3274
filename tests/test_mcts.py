"""UCT by hand, the tree against mctx, values against minimax, play against a perfect player."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import LONG, every_end, run_here, trained

from algorithms.mcts import Config, Tree, backup, choose, make, search, uct
from benchmarks.alphazero import reachable
from common.environments.games import (
    board,
    decisive,
    make_game,
    tic_tac_toe_code,
    tic_tac_toe_values,
)
from common.environments.simulators import (
    Outcome,
    Simulator,
    simulator_of_env,
    simulator_of_game,
)
from common.envs import Env, EnvState, Transition

SMALL = Config(num_envs=4, num_simulations=20, rollout_length=9, total_timesteps=400)


def test_uct_by_hand():
    """N = 8: Q = 3/6 and -1/2, ln 8 = 2.0794."""
    bound = uct(jnp.array([6.0, 2.0]), jnp.array([3.0, -1.0]), 2.0)
    np.testing.assert_allclose(bound, [0.5 + 2 * 0.58871, -0.5 + 2 * 1.01967], rtol=1e-5)


def test_the_untried_come_first_then_the_largest_bound_and_the_illegal_never():
    visits, total = jnp.array([3.0, 0, 0, 5, 0]), jnp.array([3.0, 0, 0, -5, 0])
    legal = jnp.array([True, True, False, True, True])
    action = lambda u, visits, legal: int(choose(u, legal, visits, total, 1.0))
    assert [action(u, visits, legal) for u in (0.0, 0.49, 0.5, 0.99)] == [1, 1, 4, 4]
    tried = legal & (visits > 0)
    assert action(0.5, visits, tried) == 0  # 1 + √(ln 8 / 3) > -1 + √(ln 8 / 5)
    assert action(0.5, visits, tried.at[0].set(False)) == 3


def test_an_illegal_action_is_no_visit():
    """N = 3 + 1, of the legal two of nine: 0.8 + 1.4 √(ln 4 / 3) = 1.752 > 1.4 √(ln 4) = 1.648.
    With N = 11 the second would be larger."""
    visits, total = jnp.zeros((2, 9)).at[:, 4].set(jnp.array([3, 2.4])).at[0, 7].set(1)
    legal = jnp.zeros(9, bool).at[jnp.array([4, 7])].set(True)
    np.testing.assert_allclose(uct(visits, total, 1.4)[legal], [1.75168, 1.64837], rtol=1e-5)
    assert choose(0.5, legal, visits, total, 1.4) == 4


def test_backup_counts_and_adds_on_the_path_only_and_keeps_a_child_that_is_there():
    """Three nodes with two actions; the path is (0, 1), (2, 0), and there it has ended."""
    zeros = jnp.zeros((3, 2))
    tree = Tree(child=jnp.array([[0, 2], [0, 0], [0, 0]]), visits=zeros + 1, total=zeros)
    path, returns = jnp.array([1, 4, 6]), jnp.array([0.5, -3.0, 9.0])  # 6 is no step
    after = backup(tree, path, returns, new_node=7)
    np.testing.assert_array_equal(after.visits, [[1, 2], [1, 1], [2, 1]])
    np.testing.assert_array_equal(after.total, [[0, 0.5], [0, 0], [-3, 0]])
    np.testing.assert_array_equal(after.child, [[0, 2], [0, 0], [7, 0]])
    again = backup(after, path, returns, new_node=8)
    np.testing.assert_array_equal(again.child, after.child)


# What a search knows: a chain of states 0, 1, ..., where action a pays a and the state goes up.


def chain(length, gamma=1.0):
    def step(state, action, key):
        done = state + 1 >= length
        return Outcome(state + 1, state + 1, action.astype(float), gamma * (1 - done), done)

    return two_actions(step, length)


def two_actions(step, max_steps):
    return Simulator(None, step, lambda state: state, lambda state: jnp.ones(2, bool), 2, max_steps)


def searched(simulator, state, num_simulations, uct_c=1.0, rollout_length=0, seed=0):
    find = lambda key: search(simulator, state, key, num_simulations, uct_c, rollout_length)
    return jax.tree.map(np.asarray, jax.jit(find)(jax.random.key(seed)))


def test_returns_are_discounted_and_a_tree_adds_up():
    """Most simulations take action 1 three times, 1 + γ + γ²; action 0 first has γ + γ² at most.
    Each visit to a node but the first goes on to one of its actions, the end of the chain aside."""
    tree = searched(chain(3, gamma=0.5), jnp.int32(0), 400)
    assert tree.visits[0].sum() == 400
    q = tree.total[0] / tree.visits[0]
    assert tree.visits[0, 1] > 350 and 1.5 < q[1] <= 1.75 and q[0] <= 0.75
    depth, into = {0: 0}, {0: 401}
    for node, action in np.argwhere(tree.child > 0):
        depth[tree.child[node, action]] = depth[node] + 1
        into[tree.child[node, action]] = tree.visits[node, action]
    assert max(depth.values()) == 3 and len(depth) > 1 + 2 + 4
    for node, number in into.items():
        assert tree.visits[node].sum() == (number - 1 if depth[node] < 3 else 0)


def test_a_rollout_takes_so_many_steps_at_random():
    """After one step in the tree, at an average reward of 1/2, up to the end of the chain."""
    for length, expected in ((0, 0.5), (4, 2.5), (50, 5.0)):
        one = jax.vmap(lambda key, n=length: search(chain(10), jnp.int32(0), key, 1, 1.0, n))
        total = jax.jit(one)(jax.random.split(jax.random.key(0), 4_000)).total[:, 0].sum(-1)
        assert abs(np.mean(total) - expected) < 5 * np.std(total) / np.sqrt(4_000) + 1e-6


def test_where_an_action_may_lead_to_several_states_its_value_is_their_mean():
    """Action 0 pays 1 or -1 and then as much again, action 1 0.2 and nothing more."""

    def step(state, action, key):
        outcome = jnp.where(jax.random.bernoulli(key, 0.7), 1.0, -1.0)
        reward = jnp.where(state != 0, state, jnp.where(action == 0, outcome, 0.2))
        goes_on = (state == 0) & (action == 0)
        return Outcome(reward, reward, reward, jnp.where(goes_on, 1.0, 0.0), ~goes_on)

    noisy = two_actions(step, max_steps=2)
    tree = searched(noisy, jnp.float32(0), 2_000, uct_c=2.0)
    q = tree.total[0] / tree.visits[0]
    np.testing.assert_allclose(q, [2 * 0.4, 0.2], atol=0.12)  # 1.83 / √1900 is a standard error


@every_end
def test_an_end_of_either_kind_ends_a_simulation(terminated, truncated, bootstraps):
    """The environment has then been reset; the value of the last observation counts unless the
    MDP ended."""

    def step(state, action, key):
        flag = lambda x: jnp.array([x])
        return state, Transition(
            state.obs, action, jnp.array([2.0]), state.obs, flag(terminated), flag(truncated)
        )

    env = Env(None, step, 1, (), None, 3, (), None, None, 10)
    state = EnvState(jnp.int32(0), jnp.float32(0), None)
    outcome = simulator_of_env(env, 0.9).step(state, jnp.int32(1), jax.random.key(0))
    assert jax.tree.map(jnp.shape, outcome.state) == jax.tree.map(jnp.shape, state)
    assert outcome.reward == 2 and outcome.done == (terminated or truncated)
    assert outcome.discount == pytest.approx(0 if terminated else 0.9)


# Against mctx, on the same tree.


def paper_rule(u, legal, visits, q):
    """Kocsis & Szepesvári 2006, section 2.3, over the legal actions only: the u-th of those that
    are untried, or else the one with the largest Q + 1.5 √(ln Σ n / n)."""
    untried = legal & (visits == 0)
    nth_untried = jnp.searchsorted(jnp.cumsum(untried), u * jnp.sum(untried), side="right")
    num_visits = jnp.sum(jnp.where(legal, visits, 0))
    bounds = jnp.where(legal, q + 1.5 * jnp.sqrt(jnp.log(num_visits) / visits), -jnp.inf)
    return jnp.where(jnp.any(untried), nth_untried, jnp.argmax(bounds)).astype(jnp.int32)


def test_a_tree_is_that_of_mctx_with_the_rule_of_the_paper_and_the_same_values():
    """Tic-tac-toe, where each move also pays a number that depends on the board, so that no two
    bounds are equal; 8 boards, 200 simulations. mctx goes on below ends, where nothing counts."""
    import mctx

    game, weights = make_game("TicTacToe-game"), np.sqrt(np.arange(2, 11))
    num_simulations, num_roots = 200, 8

    def step(state, action, key):
        outcome = simulator_of_game(game).step(state, action, key)
        extra = jnp.sin(outcome.obs @ weights)
        return outcome._replace(state=outcome.obs, reward=outcome.reward + extra)

    simulator = simulator_of_game(game)._replace(step=step)

    def select(key, tree, node, depth):
        simulation = jnp.sum(tree.children_visits[0])
        own_key = jax.random.fold_in(jax.random.wrap_key_data(tree.extra_data), simulation)
        for _ in range(2):  # as `search` and `descend` split it
            own_key = jax.random.split(own_key)[0]
        visits = tree.children_visits[node]
        legal = game.legal(tree.embeddings[node])
        return paper_rule(jax.random.uniform(own_key), legal, visits, tree.qvalues(node))

    def expand(params, key, action, state):
        outcome = jax.vmap(step, (0, 0, None))(state, action, None)
        zeros = jnp.zeros(len(state))
        logits = jnp.zeros((len(state), 9))
        output = mctx.RecurrentFnOutput(
            reward=outcome.reward, discount=outcome.discount, prior_logits=logits, value=zeros
        )
        return output, outcome.state

    with jax.enable_x64(True):
        roots = jnp.zeros((num_roots, 9), jnp.int8)
        for i in range(num_roots):
            for move in range(i % 4):
                roots = roots.at[i].set(game.step(roots[i], (2 * i + 3 * move) % 9)[0])
        own = jax.random.split(jax.random.key(5), num_roots)
        ours = jax.jit(
            jax.vmap(lambda state, key: search(simulator, state, key, num_simulations, 1.5, 0))
        )(roots, own)
        root = mctx.RootFnOutput(
            prior_logits=jnp.zeros((num_roots, 9)), value=jnp.zeros(num_roots), embedding=roots
        )
        theirs = jax.jit(
            lambda key: mctx.search(
                None,
                key,
                root=root,
                recurrent_fn=expand,
                root_action_selection_fn=lambda key, tree, node: select(key, tree, node, 0),
                interior_action_selection_fn=select,
                num_simulations=num_simulations,
                extra_data=jax.random.key_data(own),
            )
        )(jax.random.key(0))
    visits = np.asarray(ours.visits)
    live = visits.sum(-1) > 0  # nodes from which a simulation went on
    assert live.sum() > 400
    np.testing.assert_array_equal(visits[live], theirs.children_visits[live])
    inside = live[..., None] & (visits > 0)
    np.testing.assert_array_equal(ours.child[inside], theirs.children_index[inside])
    q = theirs.children_rewards + theirs.children_discounts * theirs.children_values
    np.testing.assert_allclose((ours.total / visits)[inside], q[inside], atol=1e-12)


# Against perfect play.


@pytest.mark.slow
def test_values_are_those_of_minimax_on_500_positions_of_tic_tac_toe():
    """The return of the most visited action, rounded; the sample is of all 4,520 that go on."""
    q = tic_tac_toe_values()
    states = np.array(sorted(map(tuple, reachable(make_game("TicTacToe-game")))))
    assert len(states) == 4_520
    states = states[np.random.default_rng(0).choice(len(states), 500, replace=False)]
    simulator = simulator_of_game(make_game("TicTacToe-game"))

    def value(state, key):
        tree = search(simulator, state, key, 4_000, 1.0, 9)
        best = jnp.argmax(tree.visits[0])
        return best, tree.total[0, best] / tree.visits[0, best]

    split = jax.random.split(jax.random.key(0), 500)
    search_all = jax.jit(jax.vmap(value), compiler_options=LONG)
    action, value = search_all(jnp.asarray(states, jnp.int8), split)
    exact = q[tic_tac_toe_code(states)]
    np.testing.assert_array_equal(np.round(value), exact.max(-1))
    np.testing.assert_array_equal(exact[np.arange(500), action], exact.max(-1))


@pytest.mark.slow
def test_with_1000_simulations_a_perfect_player_never_wins():
    """Random play alone hides traps of five moves for longer: one game in a hundred is lost."""
    config = Config(opponent="perfect", num_simulations=1_000, num_envs=100, total_timesteps=1_000)
    algorithm = make(config)

    def update(state, step):
        state, _ = algorithm.update(state, step)
        return state, jnp.where(state.env.episode.done, state.env.episode.total, jnp.nan)

    play = lambda key: jax.lax.scan(update, algorithm.init(key), jnp.arange(10))
    play = jax.jit(play, compiler_options=LONG)
    outcomes = np.asarray(play(jax.random.key(0))[1])  # [T, N]
    outcomes = outcomes[~np.isnan(outcomes)]
    assert len(outcomes) >= 200
    np.testing.assert_array_equal(outcomes, 0)


@pytest.mark.parametrize("opening", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_no_trap_of_the_opening_is_fallen_into(opening):
    """The two first moves after which a reply loses, 200 searches each. Without decisive moves one
    to six in a hundred choose it."""
    game = make_game("TicTacToe-game")
    simulator = simulator_of_game(decisive(game))
    state = jnp.zeros(9, jnp.int8).at[opening].set(-1)

    def reply(key):
        tree = search(simulator, state, key, 1_000, Config().uct_c, 9)
        return jnp.argmax(tree.visits[0])

    replies = jax.jit(jax.vmap(reply))(jax.random.split(jax.random.key(2), 200))
    q = tic_tac_toe_values()[tic_tac_toe_code(np.asarray(state))]
    assert (q[np.asarray(replies)] == 0).all() and (q == -1).sum() >= 4


# Updates.


@pytest.mark.parametrize(
    "opponent, low, high",
    [("random", 0.6, 1.0), pytest.param("itself", -0.5, 0.5, marks=pytest.mark.slow)],
)
def test_it_beats_a_random_player_and_is_an_even_match_for_itself(opponent, low, high):
    """Half of the games are begun by the opponent. Random play against itself scores 0."""
    fields = {"opponent": opponent, "num_simulations": 30, "num_envs": 32}
    algorithm = make(dataclasses.replace(SMALL, **fields))
    progress = trained(algorithm, [0], algorithm.num_updates)
    assert low < progress.mean["episode_return"][0] <= high


def test_cartpole_is_balanced_longer_than_by_chance():
    """A random policy lasts 22 steps, and hardly ever 100."""
    fields = {"env_id": "CartPole-v1", "num_simulations": 30, "rollout_length": 20}
    config = dataclasses.replace(SMALL, **fields, uct_c=10.0, total_timesteps=400)
    progress = trained(make(config), [0], 100)
    assert progress.count["episode_return"][0] == 0  # none of 4 has fallen within 100 steps


def test_the_first_episode_of_every_environment_counts_once():
    """Whatever ends later, and nothing before all of them have ended."""
    fields = {"env_id": "CartPole-v1", "num_simulations": 2, "rollout_length": 2}
    algorithm = make(dataclasses.replace(SMALL, **fields))

    def update(state, step):
        state, metrics = algorithm.update(state, step)
        return state, (state.env.episode, metrics["first_episode_return"])

    play = jax.jit(lambda key: jax.lax.scan(update, algorithm.init(key), jnp.arange(100)))
    episode, got = jax.tree.map(np.asarray, play(jax.random.key(0))[1])  # [T, N]
    ends = episode.done.argmax(0)
    assert episode.done[:50].sum(0).max() > 1 and len(set(ends)) > 1
    assert np.isnan(got[: ends.max()]).all()
    np.testing.assert_allclose(got[ends.max() :], (ends + 1).mean())  # a reward of 1 a step


@pytest.mark.parametrize("env_id", ["TicTacToe-game", "ConnectFour-game", "CartPole-v1"])
def test_the_picture_shows_the_next_searches(env_id):
    """They start from the State, which the updates that follow would also search from."""
    algorithm = make(dataclasses.replace(SMALL, env_id=env_id))
    state = jax.jit(algorithm.init)(jax.random.key(0))
    picture = algorithm.picture(state)
    visits = np.asarray(picture["visits"])
    np.testing.assert_array_equal(visits.sum(-1), SMALL.num_simulations)
    if env_id == "CartPole-v1":
        assert visits.shape == (60, 2) and set(picture) == {"visits"}
        return
    boards = np.asarray(picture["boards"])
    update = jax.jit(algorithm.update)
    for i in range(6):
        np.testing.assert_array_equal(boards[i], board(state.env.obs[0]))
        state, _ = update(state, jnp.int32(algorithm.num_updates + i))
    assert visits.shape == (6, 9 if env_id == "TicTacToe-game" else 7)
    assert [np.count_nonzero(cells) for cells in boards[:2]] == [0, 2]
    legal = boards == 0 if env_id == "TicTacToe-game" else boards[:, :7] == 0
    assert not visits[~legal].any()


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--env-id", "ConnectFour-game", "--opponent", "perfect"], "TicTacToe-game only"),
        (["--env-id", "TicTac-game"], "did you mean TicTacToe-game"),
        (["--env-id", "Pendulum-v1"], "continuous actions"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(flags, words, tmp_path):
    done = run_here("algorithms.mcts", *flags, "--out", tmp_path / "run", check=2)
    assert words in done.stderr and done.stderr.count("\n") == 1
