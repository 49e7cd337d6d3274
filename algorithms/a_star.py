"""A* search; Dijkstra's algorithm and breadth-first search are special cases.

Hart, Nilsson & Raphael 1968, A Formal Basis for the Heuristic Determination of Minimum Cost Paths,
https://doi.org/10.1109/TSSC.1968.300136; Pohl 1970, Heuristic search viewed as path finding in a
graph, https://doi.org/10.1016/0004-3702(70)90007-X

    f(s) = g(s) + w h(s)
    g(s') = min over s, a of g(s) + c(s, a),  s' the successor of s          (so far)
    h(s) ≤ c(s, a) + h(s')  for every move                                  (consistent)

g is the cost of the cheapest known path from the start to s, and h(s), at most that of the cheapest
path from s to a goal, guides the search. One `update` expands one state: the open one with the
smallest f; among equals a goal first (1968), then the largest g, then the lowest number. A
successor to which it finds a cheaper path is opened, or opened again. When a goal is to be expanded
the path is found, and nothing changes any more. With w = 1 it is a cheapest one (A*), with w > 1
its cost is at most w times that (Pohl), w = 0 is Dijkstra's algorithm (1959,
https://doi.org/10.1007/BF01386390), and with `--cost steps` besides breadth-first search.

A goal is a terminal state that is entered with the highest reward. `--heuristic manhattan` is the
number of rows and columns to the nearest goal, times the least cost of one of them over all moves:
the largest multiple that is consistent. Moves must be deterministic. A seed searches from one start
state; `act` is a whole search from the state that it observes, every time. RandomMaze-tabular is a
maze for each seed; no environment plays that one, so there is no final evaluation.

Departs from the papers: the moves of an MDP are looked up in arrays, which hold all states from the
beginning; `num_expansions` limits the search.

Metrics: `episode_return`, undiscounted return of the path, NaN before it is found; `value`, minus
the smallest f of an open state (cost): with w = 1 no path costs less; `path_length`, moves of the
path, NaN before it is found; `expanded`, expansions so far; `frontier`, open states.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from common.algorithm import Algorithm, require
from common.environments.mdp import MDP
from common.environments.tabular import TABULAR, make_mdp
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "RandomMaze-tabular"  # any <name>-tabular with deterministic moves and a goal
    num_expansions: int = 400  # of one state each, at most
    cost: Literal["steps", "reward"] = "steps"  # of a move: 1, or minus its reward
    heuristic: Literal["manhattan", "zero"] = "manhattan"  # h; the first needs a grid world
    weight: float = 1.0  # w of the heuristic

    def __post_init__(self):
        require(self, "weight >= 0")


class Moves(NamedTuple):
    """An MDP without chance but for the start."""

    successor: jax.Array  # [S, A]
    reward: jax.Array  # [S, A]
    terminal: jax.Array  # [S] bool
    start: jax.Array  # [S] start distribution


class Graph(NamedTuple):
    """What a search knows. Terminal states lead to themselves, at no cost."""

    successor: jax.Array  # [S, A]
    cost: jax.Array  # [S, A] c(s, a)
    reward: jax.Array  # [S, A]
    goal: jax.Array  # [S] bool
    h: jax.Array  # [S] w h(s)


class Search(NamedTuple):
    g: jax.Array  # [S] cost of the cheapest known path, infinite if there is none
    parent: jax.Array  # [S] the state before, on that path
    action: jax.Array  # [S] the action taken there
    open: jax.Array  # [S] bool: the frontier
    order: jax.Array  # [S] number of the last expansion of each state, 0 if there is none


class State(NamedTuple):
    params: Graph
    search: Search
    start: jax.Array


def moves_of(mdp: MDP) -> Moves:
    """Look up what every action of a deterministic MDP leads to."""
    mdp = jax.tree.map(jnp.asarray, mdp)
    successor = jnp.argmax(mdp.P, axis=-1)
    reward = jnp.take_along_axis(mdp.R, successor[..., None], axis=-1)[..., 0]
    return Moves(successor, reward, mdp.terminal, mdp.start)


def goals(moves: Moves) -> jax.Array:
    """The terminal states that are entered with the highest reward, bool [S]."""
    reward = jnp.where(moves.terminal[:, None], -jnp.inf, moves.reward)  # these stay
    entering = jnp.full(moves.terminal.shape, -jnp.inf).at[moves.successor].max(reward)
    entering = jnp.where(moves.terminal, entering, -jnp.inf)
    return (entering == jnp.max(entering)) & (entering > -jnp.inf)


def manhattan(goal, width) -> jax.Array:
    """|row - row of the nearest goal| + |column - ...|, for goal bool [S] on a grid; [S]."""
    row, column = jnp.divmod(jnp.arange(len(goal)), width)
    distance = jnp.abs(row[:, None] - row) + jnp.abs(column[:, None] - column)
    return jnp.min(jnp.where(goal, distance, jnp.inf), axis=1)


def scale(distance, successor, cost) -> jax.Array:
    """The largest k with k d(s) ≤ c(s, a) + k d(s') for every move; d: distance [S]."""
    approach = distance[:, None] - distance[successor]
    return jnp.min(jnp.where(approach > 0, cost / approach, jnp.inf))


def begin(start, num_states) -> Search:
    """Only the start is open, with g = 0."""
    is_start = jnp.arange(num_states) == start
    g = jnp.full(num_states, jnp.inf, float).at[start].set(0)
    zeros = jnp.zeros(num_states, jnp.int32)
    return Search(g, zeros, zeros, is_start, zeros)


def select(search: Search, graph: Graph) -> jax.Array:
    """The open state with the smallest f = g + w h; among equals a goal, then the largest g."""
    f = jnp.where(search.open, search.g + graph.h, jnp.inf)
    preference = jnp.where(graph.goal, jnp.inf, search.g)
    preference = jnp.where(search.open & (f == jnp.min(f)), preference, -jnp.inf)
    return jnp.argmax(preference).astype(jnp.int32)


def is_found(search: Search, graph: Graph) -> jax.Array:
    """Whether the next state to be expanded is a goal: the search is over."""
    node = select(search, graph)
    return search.open[node] & graph.goal[node]


def is_unfinished(search: Search, graph: Graph) -> jax.Array:
    """Whether there is a next state to be expanded, and it is no goal."""
    node = select(search, graph)
    return search.open[node] & ~graph.goal[node]


def expand(search: Search, graph: Graph) -> Search:
    """Close the state selected; g(s') ← min(g(s'), g(s) + c(s, a)), and open s' where it falls."""
    states = jnp.arange(len(search.g))
    node = select(search, graph)
    leads_to = graph.successor[node][:, None] == states  # [A, S]
    new_g = jnp.where(leads_to, (search.g[node] + graph.cost[node])[:, None], jnp.inf)
    is_node = is_unfinished(search, graph) & (states == node)
    improves = is_unfinished(search, graph) & (jnp.min(new_g, axis=0) < search.g)
    return Search(
        g=jnp.where(improves, jnp.min(new_g, axis=0), search.g),
        parent=jnp.where(improves, node, search.parent),
        action=jnp.where(improves, jnp.argmin(new_g, axis=0), search.action).astype(jnp.int32),
        open=search.open & ~is_node | improves,
        order=jnp.where(is_node, jnp.max(search.order) + 1, search.order),
    )


def path(search: Search, graph: Graph, start) -> jax.Array:
    """The states from the start to the goal that was found, bool [S]; if none was, the start."""
    end = jnp.where(is_found(search, graph), select(search, graph), start)

    def back(carry):
        state, on_path = carry
        parent = search.parent[state]
        return parent, on_path.at[parent].set(True)

    carry = end, jnp.arange(len(search.g)) == end
    _, on_path = jax.lax.while_loop(lambda carry: carry[0] != start, back, carry)
    return on_path


def check(config: Config, mdp: MDP) -> None:
    """Raise ValueError unless all moves are deterministic, there is a goal, and costs are >= 0."""
    is_live, name = ~mdp.terminal, config.env_id
    if jnp.any(jnp.max(mdp.P, axis=-1) < 1):
        raise ValueError(
            f"{name} has moves with several outcomes; this algorithm needs deterministic ones"
        )
    if not jnp.any(mdp.P[is_live][..., mdp.terminal]):
        raise ValueError(f"{name} has no goal: no state ends an episode; choose another --env-id")
    if config.cost == "reward" and jnp.any((mdp.P * mdp.R)[is_live] > 0):
        raise ValueError(f"{name} has rewards above 0, costs below 0; choose --cost steps")
    if config.heuristic == "manhattan" and TABULAR[name].grid is None:
        raise ValueError(f"{name} is no grid world; choose --heuristic zero")


def make(config: Config) -> Algorithm:
    with jax.ensure_compile_time_eval():  # a random MDP, too: that of the default key
        mdp = jax.tree.map(jnp.asarray, make_mdp(config.env_id))
        check(config, mdp)
        fixed_moves = moves_of(mdp)
    entry = TABULAR[config.env_id]

    def make_graph(moves: Moves) -> Graph:
        goal = goals(moves)
        steps = jnp.where(moves.terminal[:, None], 0, jnp.ones_like(moves.reward))
        cost = steps if config.cost == "steps" else -moves.reward
        h = jnp.zeros(len(goal))
        if config.heuristic == "manhattan":
            distance = manhattan(goal, len(entry.grid.layout[0]))
            h = scale(distance, moves.successor, cost) * distance
        return Graph(moves.successor, cost, moves.reward, goal, config.weight * h)

    def init(key):
        key_mdp, key_start = jax.random.split(key)
        moves = fixed_moves
        if entry.random:
            moves = moves_of(make_mdp(config.env_id, key_mdp))
        start = jax.random.choice(key_start, len(moves.start), p=moves.start)
        start = start.astype(jnp.int32)
        return State(make_graph(moves), begin(start, len(moves.start)), start)

    def update(state, step):
        graph, search, start = state.params, expand(state.search, state.params), state.start
        on_path = path(search, graph, start) & (jnp.arange(len(search.g)) != start)
        rewards = graph.reward[search.parent, search.action]
        found = is_found(search, graph)
        metrics = {
            "episode_return": jnp.where(found, jnp.sum(rewards, where=on_path), jnp.nan),
            "value": -jnp.min(search.g + graph.h, where=search.open, initial=jnp.inf),
            "path_length": jnp.where(found, jnp.sum(on_path), jnp.nan),
            "expanded": jnp.max(search.order).astype(float),
            "frontier": jnp.sum(search.open).astype(float),
        }
        return State(graph, search, start), metrics

    def act(params, obs, key):
        unfinished = lambda search: is_unfinished(search, params)
        search = begin(obs, len(params.goal))
        search = jax.lax.while_loop(unfinished, lambda search: expand(search, params), search)
        is_next = path(search, params, obs) & (search.parent == obs)
        return search.action[jnp.argmax(is_next & (jnp.arange(len(search.g)) != obs))]

    def picture(state):
        """Return when each state was expanded, the frontier, and the path if it has been found."""
        graph, search = state.params, state.search
        stays = jnp.all(graph.successor == jnp.arange(len(search.g))[:, None], axis=1)
        return {
            "order": search.order,
            "frontier": search.open,
            "wall": stays & ~graph.goal,
            "goal": graph.goal,
            "path": path(search, graph, state.start),
            "parent": search.parent,
        }

    policy = None if entry.random else act
    shown = picture if entry.grid else None
    return Algorithm(init, update, policy, config.num_expansions, 1, picture=shown)


if __name__ == "__main__":
    main(Config, make)
