"""Rapidly-exploring random trees (RRT) under the dynamics of an environment.

LaValle 1998, Rapidly-Exploring Random Trees: A New Tool for Path Planning,
https://lavalle.pl/papers/Lav98c.pdf; LaValle & Kuffner 2001, Randomized Kinodynamic Planning,
https://doi.org/10.1177/02783640122067453

    x_rand ~ uniform over the state space, or the goal with probability `goal_bias`
    x_near = argmin over the nodes x of ρ(x, x_rand)
    u = argmin over random controls of ρ(x_new, x_rand), x_new from x_near by holding u for Δt
    add x_new to the tree, with an edge from x_near that holds u

ρ is the Euclidean distance, each component in units of its range, angles the short way round. Each
seed draws a start state and grows a tree from it with the environment's own step. An edge holds its
control for Δt, or until it enters the goal region; edges that collide are not added. Every node in
the goal region ends a plan; that with the fewest steps is executed, open loop, by the environment.

Departs from the papers: the tree goes on growing when it has reached the goal; no second tree grows
backwards from the goal; plans are no longer than the environment's time limit.

Metrics: `episode_return`, return that the environment gives to the plan up to the goal, NaN before
there is one; `value`, return that the tree predicts for it; `success`, 1 if there is a plan, else
0; `path_steps`, its steps, NaN before there is one; `nodes`, states in the tree: a sample for which
all controls collide adds none.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from common.algorithm import Algorithm, require
from common.environments.dynamics import Dynamics, make_dynamics
from common.envs import EnvState, make_env
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "Pendulum-v1"  # or PointRobot-obstacles
    num_nodes: int = 2_000  # samples, each of which adds a node to the tree
    nodes_per_update: int = 50  # samples of an update
    num_controls: int = 3  # random controls tried for each sample
    steps_per_edge: int = 8  # Δt: for which a control is held
    goal_bias: float = 0.05  # probability that the sample is the goal

    def __post_init__(self):
        require(
            self, "num_nodes >= nodes_per_update", "nodes_per_update >= 1", "0 <= goal_bias <= 1"
        )


class Problem(NamedTuple):
    """States to sample and the goal region, in the first D components of a state."""

    env_id: str
    low: tuple[float, ...]  # [D]
    high: tuple[float, ...]  # [D]
    goal: tuple[float, ...]  # [D] the middle of the goal region
    tolerance: tuple[float, ...]  # [D] largest distance from it
    is_angle: tuple[bool, ...]  # [D]


PI = math.pi
PROBLEMS = [
    Problem("Pendulum-v1", (-PI, -8), (PI, 8), (0, 0), (0.1, 0.5), (True, False)),
    Problem(
        "PointRobot-obstacles",
        low=(0, 0, -2, -2),
        high=(10, 10, 2, 2),
        goal=(9, 9, 0, 0),
        tolerance=(0.5, 0.5, 0.5, 0.5),
        is_angle=(False, False, False, False),
    ),
]


class Tree(NamedTuple):
    """Nodes in the order of their samples, the root first; M = num_nodes + 1."""

    x: jax.Array  # [M, n] states
    parent: jax.Array  # [M] the node that the edge to this one leaves
    control: jax.Array  # [M, m] which it holds
    time: jax.Array  # [M] steps from the root, -1 where there is no node
    total: jax.Array  # [M] rewards from the root


class Edge(NamedTuple):
    """Steps that hold one control."""

    x: jax.Array  # [n] the state after them
    num_steps: jax.Array
    total: jax.Array  # rewards
    is_free: jax.Array  # bool: no step ends the episode outside the goal region


class State(NamedTuple):
    key: jax.Array
    params: Tree
    start: EnvState  # [1]


def find_problem(env_id: str) -> Problem:
    """Return the problem of an environment, or raise ValueError."""
    for problem in PROBLEMS:
        if problem.env_id == env_id.partition("+")[0]:  # before --env-params
            return problem
    known = ", ".join(problem.env_id for problem in PROBLEMS)
    raise ValueError(f"{env_id} has no goal region here; choose with --env-id, one of: {known}")


def difference(problem: Problem, x, y) -> jax.Array:
    """x - y [D], of angles the short way round; x may have more components."""
    raw = x[..., : len(problem.low)] - y
    return jnp.where(jnp.array(problem.is_angle), (raw + PI) % (2 * PI) - PI, raw)


def rho(problem: Problem, x, y) -> jax.Array:
    """ρ(x, y)² = Σ_i ((x_i - y_i) / (high_i - low_i))²."""
    size = jnp.array(problem.high) - jnp.array(problem.low)
    return jnp.sum((difference(problem, x, y) / size) ** 2, axis=-1)


def in_goal(problem: Problem, x) -> jax.Array:
    """Whether every component of x - goal is within its tolerance."""
    distance = jnp.abs(difference(problem, x, jnp.array(problem.goal)))
    return jnp.all(distance <= jnp.array(problem.tolerance), axis=-1)


def random_state(problem: Problem, key, goal_bias) -> jax.Array:
    """Uniform between low and high, or the goal with probability `goal_bias`; [D]."""
    key_kind, key_state = jax.random.split(key)
    low, high, goal = (jnp.array(x, float) for x in (problem.low, problem.high, problem.goal))
    x = jax.random.uniform(key_state, low.shape, minval=low, maxval=high)
    return jnp.where(jax.random.bernoulli(key_kind, goal_bias), goal, x)


def nearest(problem: Problem, tree: Tree, target, latest) -> jax.Array:
    """argmin over the nodes x of ρ(x, target), of those no later than `latest` outside the goal."""
    is_usable = (tree.time >= 0) & (tree.time <= latest) & ~in_goal(problem, tree.x)
    distance = jnp.where(is_usable, rho(problem, tree.x, target), jnp.inf)
    return jnp.argmin(distance).astype(jnp.int32)


def hold(problem: Problem, dynamics: Dynamics, x, control, num_steps) -> tuple[Edge, jax.Array]:
    """Hold a control from state x [n] for `num_steps` K, or until the goal region is entered.

    Also returns the states [K, n] along the way.
    """

    def step(edge: Edge, _):
        x, reward, terminated = dynamics.step(edge.x, control)
        is_free = edge.is_free & (~terminated | in_goal(problem, x))
        longer = Edge(x, edge.num_steps + 1, edge.total + reward, is_free)
        has_arrived = in_goal(problem, edge.x)
        edge = jax.tree.map(lambda old, new: jnp.where(has_arrived, old, new), edge, longer)
        return edge, edge.x

    start = Edge(x, jnp.int32(0), jnp.zeros(()), jnp.bool_(True))
    return jax.lax.scan(step, start, length=num_steps)


def nodes_to(tree: Tree, node) -> jax.Array:
    """The nodes on the way from the root to a node, without the root, bool [M]."""

    def back(carry):
        node, on_way = carry
        return tree.parent[node], on_way.at[node].set(True)

    start = node, jnp.zeros(len(tree.time), bool)
    _, on_way = jax.lax.while_loop(lambda carry: carry[0] > 0, back, start)
    return on_way


def controls_to(tree: Tree, node, num_steps) -> jax.Array:
    """The controls [T, m] of the steps from the root to a node; 0 after that."""
    ends = jnp.where(nodes_to(tree, node), tree.time, num_steps + 1)
    is_after = ends > jnp.arange(num_steps)[:, None]  # [T, M]
    edge = jnp.argmin(jnp.where(is_after, ends, num_steps + 1), axis=1)
    is_part = jnp.arange(num_steps) < tree.time[node]
    return jnp.where(is_part[:, None], tree.control[edge], 0)


def make(config: Config) -> Algorithm:
    problem = find_problem(config.env_id)
    env = make_env(config.env_id, 1, actions="continuous")
    dynamics = make_dynamics(config.env_id)
    num_steps = min(config.steps_per_edge, env.max_steps)
    low, high = jnp.asarray(env.action_low, float), jnp.asarray(env.action_high, float)

    def extend(tree: Tree, row, key) -> Tree:
        """Write the node of one sample into a row of the tree."""
        key_state, key_controls = jax.random.split(key)
        target = random_state(problem, key_state, config.goal_bias)
        near = nearest(problem, tree, target, env.max_steps - num_steps)
        shape = config.num_controls, *env.action_shape
        controls = jax.random.uniform(key_controls, shape, minval=low, maxval=high)
        edges, _ = jax.vmap(lambda u: hold(problem, dynamics, tree.x[near], u, num_steps))(controls)
        distance = jnp.where(edges.is_free, rho(problem, edges.x, target), jnp.inf)
        best = jnp.argmin(distance)
        edge = jax.tree.map(lambda x: x[best], edges)
        time = jnp.where(edge.is_free, tree.time[near] + edge.num_steps, -1)
        node = Tree(edge.x, near, controls[best], time, tree.total[near] + edge.total)
        return jax.tree.map(lambda nodes, new: nodes.at[row].set(new), tree, node)

    def best_node(tree: Tree):
        """Return the node in the goal region with the fewest steps, and whether there is one."""
        has_arrived = (tree.time >= 0) & in_goal(problem, tree.x)
        node = jnp.argmin(jnp.where(has_arrived, tree.time, env.max_steps + 1))  # the root if none
        return node.astype(jnp.int32), jnp.any(has_arrived)

    def execute(controls, length, start: EnvState, key):
        """Return what the environment pays for the first `length` of the controls [T, m]."""

        def step(env_state, inputs):
            control, key = inputs
            env_state, transition = env.step(env_state, control[None], key)
            return env_state, transition.reward[0]

        _, rewards = jax.lax.scan(step, start, (controls, jax.random.split(key, len(controls))))
        return jnp.sum(jnp.where(jnp.arange(len(controls)) < length, rewards, 0))

    def init(key):
        key, key_env = jax.random.split(key)
        start = env.reset(key_env)
        num_rows = config.num_nodes + 1
        x = dynamics.numbers(jax.tree.map(lambda x: x[0], start.inner))
        tree = Tree(
            x=jnp.zeros((num_rows, len(x))).at[0].set(x),
            parent=jnp.zeros(num_rows, jnp.int32),
            control=jnp.zeros((num_rows, *env.action_shape)),
            time=jnp.full(num_rows, -1, jnp.int32).at[0].set(0),
            total=jnp.zeros(num_rows),
        )
        return State(key, tree, start)

    def update(state, step):
        key_tree, key_env = jax.random.split(jax.random.fold_in(state.key, step))
        first_row = step * config.nodes_per_update + 1
        tree = jax.lax.fori_loop(
            0,
            config.nodes_per_update,
            lambda i, tree: extend(tree, first_row + i, jax.random.fold_in(key_tree, i)),
            state.params,
        )
        node, found = best_node(tree)
        controls = controls_to(tree, node, env.max_steps)
        total = execute(controls, tree.time[node], state.start, key_env)
        metrics = {
            "episode_return": jnp.where(found, total, jnp.nan),
            "value": jnp.where(found, tree.total[node], jnp.nan),
            "success": found.astype(float),
            "path_steps": jnp.where(found, tree.time[node], jnp.nan),
            "nodes": jnp.sum(tree.time >= 0).astype(float),
        }
        return State(state.key, tree, state.start), metrics

    def picture(state):
        """Return the edges of the tree in the first two components, and which are of the plan."""
        tree = state.params
        node, _ = best_node(tree)

        def edge(x, control, time):
            _, states = hold(problem, dynamics, x, control, num_steps)
            states = jnp.concatenate([x[None], states])
            middle = difference(problem, x, jnp.zeros(len(problem.low))) - x[: len(problem.low)]
            return jnp.where(time > 0, states[:, :2] + middle[:2], jnp.nan)

        return {
            "names": ["x[0]", "x[1]"],
            "edges": jax.vmap(edge)(tree.x[tree.parent], tree.control, tree.time),
            "path": nodes_to(tree, node),
            "goal": jnp.array(problem.goal)[:2]
            + jnp.array([[-1], [1]]) * jnp.array(problem.tolerance)[:2],
        }

    num_updates = config.num_nodes // config.nodes_per_update
    return Algorithm(init, update, None, num_updates, config.nodes_per_update, picture=picture)


if __name__ == "__main__":
    main(Config, make)
