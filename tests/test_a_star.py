"""A*: expansions by hand and as a heap makes them, and paths as long as exact distances say."""

import functools
import heapq

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import keys, run_here, trained

from algorithms.a_star import (
    Config,
    Graph,
    Search,
    begin,
    expand,
    goals,
    is_found,
    is_unfinished,
    make,
    manhattan,
    moves_of,
    path,
    scale,
    select,
)
from common.environments.gridworlds import LAKE_4X4, frozen_lake
from common.environments.mdp import MDP
from common.environments.tabular import TABULAR, Tabular, make_mdp

MAZES = [
    "DynaMaze-tabular",
    "OpenRightMaze-tabular",
    "OpenLeftMaze-tabular",
    "OpenBothMaze-tabular",
    "BlockingMaze-tabular",  # as it is before it changes
    "ShortcutMaze-tabular",
    "CliffWalking-tabular",
    "WindyGridWorld-tabular",
    "GridWorld-tabular",
]
NO_MAPS = [
    "RandomWalk5-tabular",
    "RandomWalk19-tabular",
    "Taxi-tabular",
    "MaximizationBias-tabular",
]


def line(h=(0, 0, 0, 0, 0), goal=(4,)):
    """0 -> 1 for 1 or 3, 0 -> 2 for 4, 1 -> 2 for 2, 2 -> 3 for 1, 3 -> 4 for 5; 4 is the goal."""
    successor = [[1, 1, 2], [2, 2, 2], [3, 3, 3], [4, 4, 4], [4, 4, 4]]
    cost = [[3, 1, 4], [2, 2, 2], [1, 1, 1], [5, 5, 5], [0, 0, 0]]
    cost, is_goal = jnp.array(cost, float), jnp.isin(jnp.arange(5), jnp.array(goal))
    return Graph(jnp.array(successor), cost, -cost, is_goal, jnp.array(h, float))


def test_the_smallest_f_is_selected_then_a_goal_then_the_largest_g_then_the_first():
    zeros = jnp.zeros(5, int)
    search = Search(jnp.array([1.0, 2, 3, 3, 9]), zeros, zeros, jnp.ones(5, bool), zeros)
    graph = line(h=(4, 3, 1, 2, 0))  # f = 5, 5, 4, 5, 9
    chosen = lambda **fields: int(select(search._replace(**fields), graph))
    assert chosen() == 2
    closed = jnp.array([True, True, False, True, True])
    assert chosen(open=closed) == 3  # of 0, 1 and 3 the one with the largest g
    assert int(select(search._replace(open=closed), graph._replace(goal=jnp.arange(5) == 1))) == 1
    same = search._replace(g=jnp.full(5, 2.0))
    assert int(select(same, line())) == 4  # the goal
    assert int(select(same, line(goal=()))) == 0


def run(graph, start, num):
    search = begin(start, len(graph.goal))
    for _ in range(num):
        search = expand(search, graph)
    return search


def test_expansions_by_hand():
    """From 0, 1 costs 1 by its cheaper edge, 2 costs 4, then 3 by way of 1, and so on."""
    graph = line()
    inf = np.inf
    for num, g, is_open in (
        (0, [0, inf, inf, inf, inf], [0]),
        (1, [0, 1, 4, inf, inf], [1, 2]),
        (2, [0, 1, 3, inf, inf], [2]),
        (3, [0, 1, 3, 4, inf], [3]),
        (4, [0, 1, 3, 4, 9], [4]),
        (7, [0, 1, 3, 4, 9], [4]),  # the goal is not expanded
    ):
        search = run(graph, 0, num)
        np.testing.assert_array_equal(search.g, g)
        np.testing.assert_array_equal(np.flatnonzero(search.open), is_open)
    np.testing.assert_array_equal(search.order, [1, 2, 3, 4, 0])
    np.testing.assert_array_equal(search.parent[1:], [0, 1, 2, 3])
    assert search.action[1] == 1
    assert is_found(search, graph) and not is_unfinished(search, graph)
    np.testing.assert_array_equal(path(search, graph, 0), np.ones(5, bool))


def test_a_closed_state_is_opened_again_where_the_heuristic_is_admissible_but_not_consistent():
    """h(1) = 8 is what 1 is from the goal, so 2 and 3 are expanded first, from the dear edge."""
    graph = line(h=(0, 8, 0, 0, 0))
    np.testing.assert_array_equal(run(graph, 0, 3).order, [1, 0, 2, 3, 0])
    search = run(graph, 0, 4)
    np.testing.assert_array_equal(search.order, [1, 4, 2, 3, 0])
    assert search.open[2] and search.g[2] == 3 and search.parent[2] == 1
    search = run(graph, 0, 9)
    np.testing.assert_array_equal(search.order, [1, 4, 5, 6, 0])
    assert search.g[4] == 9


def test_without_a_way_the_search_ends_and_finds_nothing():
    graph = line()._replace(goal=jnp.arange(5) == 0)
    search = run(graph, 1, 9)
    assert not search.open.any() and search.order.max() == 4
    assert not is_found(search, graph) and not is_unfinished(search, graph)
    np.testing.assert_array_equal(np.flatnonzero(path(search, graph, 1)), [1])


def test_goals_are_entered_with_the_highest_reward(monkeypatch):
    """Not the holes of a lake, nor the left end of a walk; both corners of the grid."""
    found = lambda mdp: np.flatnonzero(goals(moves_of(mdp))).tolist()
    assert found(frozen_lake(LAKE_4X4, is_slippery=False)) == [15]
    assert found(make_mdp("RandomWalk19-tabular")) == [20]
    assert found(make_mdp("GridWorld-tabular")) == [0, 15]
    assert found(make_mdp("DynaMaze-tabular")) == [8]  # the walls are terminal, too
    assert len(found(make_mdp("Taxi-tabular"))) == 4


def test_distances_on_the_grid_by_hand():
    goal = jnp.zeros(12, bool).at[jnp.array([0, 11])].set(True)
    expected = [[0, 1, 2, 2], [1, 2, 2, 1], [2, 2, 1, 0]]
    np.testing.assert_array_equal(manhattan(goal, 4).reshape(3, 4), expected)


def test_the_scale_is_the_least_cost_of_a_cell():
    """From d = 3 to 1 for 5 is 2.5 a cell, from 1 to 0 for 4 is 4; a step away costs nothing."""
    distance = jnp.array([3.0, 1.0, 0.0])
    successor = jnp.array([[1, 0], [2, 0], [2, 2]])
    cost = jnp.array([[5.0, 0], [4, 0.1], [0, 0]])
    assert scale(distance, successor, cost) == 2.5


def exact_distances(graph):
    """Cost from each state to the nearest goal, by sweeps over all moves."""
    distance = np.where(graph.goal, 0.0, np.inf)
    for _ in range(len(distance)):
        through = np.min(graph.cost + distance[np.asarray(graph.successor)], axis=1)
        distance = np.where(graph.goal, 0, np.minimum(distance, through))
    return distance


@functools.cache
def graph_of(env_id, **fields):
    fields = {"heuristic": "zero"} | fields if env_id in NO_MAPS else fields
    algorithm = make(Config(env_id, **fields))
    return jax.tree.map(np.asarray, algorithm.init(jax.random.key(0)).params)


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, 0))
def searched(graph, start):
    unfinished = lambda search: is_unfinished(search, graph)
    search = begin(start, len(graph.goal))
    search = jax.lax.while_loop(unfinished, lambda search: expand(search, graph), search)
    return search, path(search, graph, start)


GRAPHS = [(env_id, "steps") for env_id in MAZES]
GRAPHS += [(env_id, "reward") for env_id in ("CliffWalking-tabular", "WindyGridWorld-tabular")]


@pytest.mark.parametrize("env_id, cost", GRAPHS)
def test_the_heuristic_is_consistent_and_no_larger_one_of_its_kind_is(env_id, cost):
    graph = graph_of(env_id, cost=cost)
    h, next_h = graph.h[:, None], graph.h[graph.successor]
    assert np.all(h <= graph.cost + next_h + 1e-6)
    assert np.all(graph.h <= exact_distances(graph) + 1e-6)
    assert not np.all(1.01 * h <= graph.cost + 1.01 * next_h)
    assert np.all(graph.h[graph.goal] == 0) and np.all(graph.h[~graph.goal] > 0)


@pytest.mark.parametrize("env_id, cost", [*GRAPHS, *((env_id, "steps") for env_id in NO_MAPS)])
def test_paths_are_as_long_as_dynamic_programming_says_and_a_star_expands_no_more(env_id, cost):
    """From every start, or every seventh. Dijkstra's algorithm expands all that is nearer than the
    goal, and A* only such states."""
    graph = graph_of(env_id, cost=cost)
    exact, starts = exact_distances(graph), np.flatnonzero(make_mdp(env_id).start)[::7]
    search, on_path = jax.tree.map(np.asarray, searched(graph, starts))
    goal = np.argmin(np.where(graph.goal, search.g + np.where(search.open, 0, np.inf), np.inf), 1)
    rows = np.arange(len(starts))
    np.testing.assert_allclose(search.g[rows, goal], exact[starts], atol=1e-4)
    edges = on_path.copy()
    edges[rows, starts] = False
    parent, action = search.parent, search.action
    paid = np.where(edges, graph.cost[parent, action], 0).sum(1)
    np.testing.assert_allclose(paid, exact[starts], atol=1e-4)
    arrives = graph.successor[parent, action] == np.arange(len(exact))
    assert np.all(arrives[edges]) and np.all(np.take_along_axis(on_path, parent, 1)[edges])

    flat, _ = jax.tree.map(np.asarray, searched(graph._replace(h=0 * graph.h), starts))
    assert np.all((flat.order > 0) | (search.order == 0))
    nearer = flat.g < exact[starts][:, None]
    np.testing.assert_array_equal((flat.order > 0) & np.isfinite(flat.g), nearer)


def heap_search(graph, start):
    """Order of the expansions, and the cost, with a heap and dictionaries: an independent A*."""
    entry = lambda s, g: (g + graph.h[s], not graph.goal[s], -g, s)
    g, heap, closed, order = {start: 0.0}, [entry(start, 0.0)], set(), []
    while heap:
        *_, negative_g, state = heapq.heappop(heap)
        if state in closed or -negative_g > g[state]:
            continue
        if graph.goal[state]:
            return order, g[state]
        closed.add(state)
        order.append(state)
        for successor, cost in zip(graph.successor[state], graph.cost[state], strict=True):
            if g[state] + cost < g.get(successor, np.inf):
                g[successor] = g[state] + cost
                closed.discard(successor)
                heapq.heappush(heap, entry(successor, g[successor]))
    return order, np.inf


WEIGHTS, NUM_SEEDS = (0.0, 1.0, 4.0), 16


@pytest.fixture(scope="module")
def mazes():
    """The States and last metrics of seeds on their own mazes, for each weight."""

    def train(weight, key):
        algorithm = make(Config(weight=weight))
        state, metrics = jax.lax.scan(algorithm.update, algorithm.init(key), jnp.arange(300))
        return state, jax.tree.map(lambda x: x[-1], metrics)

    weights, seeds = jnp.repeat(jnp.array(WEIGHTS), NUM_SEEDS), jnp.tile(jnp.arange(NUM_SEEDS), 3)
    found = jax.jit(jax.vmap(train))(weights, keys(*seeds))
    found = jax.tree.map(lambda x: np.asarray(x).reshape(3, NUM_SEEDS, *x.shape[1:]), found)
    return {w: jax.tree.map(lambda x, i=i: x[i], found) for i, w in enumerate(WEIGHTS)}


@pytest.mark.parametrize("weight", WEIGHTS)
def test_on_mazes_of_their_own_seeds_expand_what_a_heap_expands(mazes, weight):
    states, metrics = mazes[weight]
    for seed in range(NUM_SEEDS):
        graph, search, start = jax.tree.map(lambda x, i=seed: x[i], states)
        order, cost = heap_search(graph, int(start))
        last = {state: number for number, state in enumerate(order, start=1)}
        assert last == {state: search.order[state] for state in np.flatnonzero(search.order)}
        assert metrics["expanded"][seed] == len(order) == search.order.max()
        assert metrics["path_length"][seed] == cost == -metrics["episode_return"][seed]


def test_weights_trade_length_for_expansions(mazes):
    """On mazes that all differ. w = 1 is exact and never expands more than w = 0; w = 4 expands the
    fewest, for paths that are longer, at most 4 times."""
    graphs, exact = mazes[1.0][0].params, []
    for seed in range(NUM_SEEDS):
        graph = jax.tree.map(lambda x, i=seed: x[i], graphs)
        exact.append(exact_distances(graph)[mazes[1.0][0].start[seed]])
    dijkstra, a_star, greedy = (mazes[w][1] for w in WEIGHTS)
    np.testing.assert_array_equal(dijkstra["path_length"], exact)
    np.testing.assert_array_equal(a_star["path_length"], exact)
    assert np.all(greedy["path_length"] <= 4 * np.array(exact))
    assert greedy["path_length"].sum() > np.sum(exact)
    assert np.all(a_star["expanded"] <= dijkstra["expanded"])
    total = [np.sum(metrics["expanded"]) for metrics in (dijkstra, a_star, greedy)]
    assert 0.7 * total[0] > total[1] > total[2]
    assert len(np.unique(graphs.successor, axis=0)) == NUM_SEEDS and np.ptp(exact) > 10


def test_metrics_say_nothing_before_the_path_is_found():
    """On DynaMaze, 14 moves long; the value bounds the cost from below all the way."""
    algorithm = make(Config("DynaMaze-tabular"))
    state, update = jax.jit(algorithm.init)(jax.random.key(0)), jax.jit(algorithm.update)
    for step in range(40):
        state, metrics = update(state, step)
        found = step >= 31
        assert metrics["expanded"] == min(step + 1, 32)
        assert metrics["frontier"] == state.search.open.sum()
        assert (
            np.isnan(metrics["path_length"]) == np.isnan(metrics["episode_return"]) == (not found)
        )
        assert -14 <= metrics["value"] <= -10
    assert metrics["path_length"] == 14 == -metrics["value"] and metrics["episode_return"] == 1


def test_the_policy_arrives_by_a_shortest_path_from_whatever_start():
    """Of Taxi, at -1 a step and 20 for the last."""
    algorithm, mdp = make(Config("Taxi-tabular", heuristic="zero")), make_mdp("Taxi-tabular")
    params = jax.jit(algorithm.init)(jax.random.key(0)).params
    act = jax.jit(jax.vmap(algorithm.act, (None, 0, None)))
    states = np.flatnonzero(mdp.start)[::20]
    exact, total = 21 - exact_distances(graph_of("Taxi-tabular"))[states], np.zeros(len(states))
    for _ in range(20):
        action = np.asarray(act(params, states, jax.random.key(0)))
        next_states = mdp.P[states, action].argmax(-1)
        total += mdp.R[states, action, next_states]
        states = next_states
    np.testing.assert_array_equal(total, exact)
    assert len(np.unique(exact)) > 3


def test_act_knows_the_cheapest_way_where_it_is_not_the_shortest(monkeypatch):
    """0 leads to the goal 2 at a cost of 9, or for 2 + 3 by way of 1."""
    P, R = np.zeros((3, 2, 3)), np.zeros((3, 2, 3))
    P[0, 0, 2] = P[0, 1, 1] = P[1, :, 2] = P[2, :, 2] = 1
    R[0, 0], R[0, 1], R[1] = -9, -2, -3
    mdp = MDP(P, R, np.array([1.0, 0, 0]), np.array([False, False, True]))
    monkeypatch.setitem(TABULAR, "Detour-tabular", Tabular(lambda key: mdp, 10, 1.0))
    for cost, action, length, total in (("steps", 0, 1, -9), ("reward", 1, 2, -5)):
        algorithm = make(Config("Detour-tabular", 3, cost, "zero"))
        run_state = trained(algorithm, [0], 3)
        state = jax.tree.map(lambda x: x[0], run_state.state)
        _, metrics = algorithm.update(state, 3)
        assert metrics["path_length"] == length and metrics["episode_return"] == total
        assert algorithm.act(state.params, 0, jax.random.key(0)) == action


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--env-id", "FrozenLake-tabular"], "several outcomes"),
        (["--env-id", "Garnet-tabular"], "several outcomes"),
        (["--env-id", "GridWorld5x5-tabular"], "no goal"),
        (["--env-id", "SteadyLedge-tabular", "--heuristic", "zero"], "no goal"),
        (["--env-id", "DynaMaze-tabular", "--cost", "reward"], "choose --cost steps"),
        (["--env-id", "Taxi-tabular"], "choose --heuristic zero"),
        (["--env-id", "CartPole-v1"], "did you mean"),
        (["--weight", "-1"], "weight >= 0"),
    ],
)
def test_what_it_cannot_search_is_refused_in_one_line(flags, message):
    done = run_here("algorithms.a_star", *flags, check=2)
    assert message in done.stderr and done.stderr.strip().count("\n") == 0


def test_the_picture_shows_the_search_and_only_mazes_have_one():
    algorithm = make(Config("CliffWalking-tabular"))
    state = jax.tree.map(lambda x: x[0], trained(algorithm, [0], 20).state)
    picture = jax.tree.map(np.asarray, algorithm.picture(state))
    assert np.flatnonzero(picture["path"]).tolist() == [*range(24, 37), 47]
    assert np.flatnonzero(picture["goal"]).tolist() == [47] and not picture["wall"].any()
    assert picture["order"].max() == 13 and picture["frontier"].sum() == 13
    assert make(Config("Taxi-tabular", heuristic="zero")).picture is None
    assert make(Config()).act is None  # no environment has the seed's own maze
