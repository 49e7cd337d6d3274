"""RRT: its steps by hand and in numpy, edges that the environment replays, plans that arrive."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import keys, run_here

from algorithms.rrt import (
    PROBLEMS,
    Config,
    Problem,
    Tree,
    controls_to,
    difference,
    find_problem,
    hold,
    in_goal,
    make,
    nearest,
    nodes_to,
    random_state,
    rho,
)
from common.environments.dynamics import Dynamics, make_dynamics
from common.environments.obstacles import collides, make_room
from common.envs import make_env

PENDULUM, ROBOT = PROBLEMS


def test_angles_differ_the_short_way_round():
    x = jnp.array([[3.0, 7.0, 99.0], [-3.0, -1.0, 99.0], [20.0, 0.0, 99.0]])
    expected = [[6 - 2 * np.pi, 5], [0, -3], [23 - 8 * np.pi, -2]]
    np.testing.assert_allclose(difference(PENDULUM, x, jnp.array([-3.0, 2.0])), expected, atol=1e-5)


def test_distance_by_hand():
    """In units of the ranges, 10 and 4: (3 / 10)² + 0 + 0 + (2 / 4)²; and (1 / 2π)² + (4 / 16)²."""
    far = rho(ROBOT, jnp.array([1.0, 5, 0, 1]), jnp.array([4.0, 5, 0, -1]))
    assert far == pytest.approx(0.09 + 0.25)
    near = rho(PENDULUM, jnp.array([-np.pi + 0.5, 4, 2]), jnp.array([np.pi - 0.5, 0]))
    assert near == pytest.approx((1 / (2 * np.pi)) ** 2 + 0.0625, rel=1e-5)


@pytest.mark.parametrize(
    "x, is_inside",
    [
        ((0.09, -0.49, 9.0), True),
        ((2 * np.pi - 0.09, 0.49, 9.0), True),
        ((0.11, 0.0, 9.0), False),
        ((0.0, 0.51, 9.0), False),
        ((np.pi, 0.0, 9.0), False),
    ],
)
def test_the_goal_region_is_a_box_around_the_goal(x, is_inside):
    assert in_goal(PENDULUM, jnp.array(x)) == is_inside


def test_samples_are_uniform_but_for_the_goal():
    sample = lambda bias: jax.vmap(lambda key: random_state(ROBOT, key, bias))(keys(*range(4_000)))
    x = np.asarray(sample(0.0))
    assert np.all((x >= ROBOT.low) & (x <= ROBOT.high))
    np.testing.assert_allclose(x.mean(0), [5, 5, 0, 0], atol=0.2)
    np.testing.assert_allclose(x.std(0), np.array([10, 10, 4, 4]) / np.sqrt(12), rtol=0.05)
    is_goal = np.all(np.asarray(sample(0.25)) == ROBOT.goal, axis=1)
    assert is_goal.mean() == pytest.approx(0.25, abs=0.03)


def grown(x, time=None, parent=None):
    """A tree with these states; by default each is the child of the one before, one step later."""
    num = len(x)
    time = jnp.arange(num) if time is None else jnp.array(time)
    parent = jnp.maximum(jnp.arange(num) - 1, 0) if parent is None else jnp.array(parent)
    control = 10 * jnp.arange(num, dtype=float)[:, None]
    return Tree(jnp.array(x, float), parent, control, time, jnp.zeros(num))


def test_the_nearest_node_is_a_node_early_enough_outside_the_goal():
    """The nearest of all is in the goal region, the next is no node, the next is too late."""
    x = [[5, 5, 0, 0], [9, 9, 0, 0.4], [8.4, 9, 0, 0], [8, 8, 0, 0], [7, 7, 0, 0]]
    tree = grown(x, time=[0, 8, -1, 9, 8])
    goal = jnp.array(ROBOT.goal)
    assert nearest(ROBOT, tree, goal, latest=8) == 4
    assert nearest(ROBOT, tree, goal, latest=9) == 3
    assert nearest(ROBOT, tree, goal, latest=7) == 0


LINE = Problem("Line-v0", (0,), (10,), (5,), (0.5,), (False,))


def walk(walls=()):
    """x' = x + u with reward x; walls end the episode, and so does the goal."""

    def step(x, u):
        x = x + u
        is_wall = jnp.any(x[0] == jnp.array([-1.0, *walls]))
        return x, x[0], is_wall | in_goal(LINE, x)

    return Dynamics(lambda inner: inner, step)


@pytest.mark.parametrize(
    "start, walls, x, num_steps, total, is_free",
    [
        (1, (), 4, 3, 2 + 3 + 4, True),
        (3, (), 5, 2, 4 + 5, True),  # the edge ends in the goal
        (3, (6,), 5, 2, 4 + 5, True),  # before the wall
        (0, (2,), 3, 3, 1 + 2 + 3, False),
        (0, (3,), 3, 3, 1 + 2 + 3, False),
        (0, (4,), 3, 3, 1 + 2 + 3, True),
    ],
)
def test_an_edge_holds_a_control_until_it_is_in_the_goal(
    start, walls, x, num_steps, total, is_free
):
    edge, states = hold(LINE, walk(walls), jnp.array([float(start)]), jnp.ones(1), 3)
    assert edge.x == x == states[-1] and edge.num_steps == num_steps
    assert edge.total == total and edge.is_free == is_free


def test_the_way_to_a_node_and_its_controls_by_hand():
    """0 -> 1 -> 4 takes steps 0, 1 and 2, 3, 4; 0 -> 2 -> 3 is another branch."""
    tree = grown([[0.0]] * 6, time=[0, 2, 1, 3, 5, -1], parent=[0, 0, 0, 2, 1, 0])
    assert np.flatnonzero(nodes_to(tree, 4)).tolist() == [1, 4]
    assert np.flatnonzero(nodes_to(tree, 3)).tolist() == [2, 3]
    assert not nodes_to(tree, 0).any()
    np.testing.assert_array_equal(controls_to(tree, 4, 7)[:, 0], [10, 10, 40, 40, 40, 0, 0])
    np.testing.assert_array_equal(controls_to(tree, 3, 7)[:, 0], [20, 30, 30, 0, 0, 0, 0])
    assert not controls_to(tree, 0, 7).any()


NUM_NODES, SEEDS = {"Pendulum-v1": 600, "PointRobot-obstacles": 1_200}, 8


@functools.cache
def trees(env_id):
    """The algorithm, and in float64 the last States and all metrics [S, T] of some seeds."""
    with jax.enable_x64(True):
        algorithm = make(Config(env_id, num_nodes=NUM_NODES[env_id]))
        steps = jnp.arange(algorithm.num_updates)
        train = lambda key: jax.lax.scan(algorithm.update, algorithm.init(key), steps)
        states, metrics = jax.jit(jax.vmap(train))(keys(*range(SEEDS)))
        return algorithm, states, jax.tree.map(np.asarray, metrics)


every_problem = pytest.mark.parametrize("env_id", ["Pendulum-v1", "PointRobot-obstacles"])


def inner_of(env_id, start, x):
    """The environment's own states [N] at x [N, n], as they would be at the start of an episode."""
    if env_id == "PointRobot-obstacles":
        return (x, jnp.zeros(len(x), jnp.int32))
    time = jnp.zeros(len(x), start.inner.time.dtype)
    fields = dict(theta=x[:, 0], theta_dot=x[:, 1], last_u=x[:, 2], time=time)
    return start.inner.replace(**fields)


@every_problem
def test_the_environment_replays_every_edge(env_id):
    """From the state of its parent, to the last bits of float64, without an end before the goal."""
    _, states, _ = trees(env_id)
    with jax.enable_x64(True):
        tree, start = jax.tree.map(lambda x: x[0], (states.params, states.start))
        rows = np.flatnonzero(np.asarray(tree.time) > 0)
        parent, length = tree.parent[rows], tree.time[rows] - tree.time[tree.parent[rows]]
        env, dynamics = make_env(env_id, len(rows)), make_dynamics(env_id)
        zeros = jax.tree.map(lambda x: jnp.zeros((len(rows), *x.shape[1:]), x.dtype), start)
        state = zeros._replace(inner=inner_of(env_id, start, tree.x[parent]))
        step, total = jax.jit(env.step), jnp.zeros(len(rows))
        x, problem = tree.x[parent], find_problem(env_id)
        assert length.min() >= 1 and length.max() == 8
        for t in range(8):
            state, transition = step(state, tree.control[rows], jax.random.key(t))
            total += jnp.where(t < length, transition.reward[:,], 0)
            if env_id == "PointRobot-obstacles":  # which is reset where it has arrived
                now = transition.next_obs
                ends = transition.terminated & (t < length)
                np.testing.assert_array_equal(ends, in_goal(problem, now) & (t == length - 1))
                assert not jax.vmap(lambda p: collides(make_room(env_id), p))(x[:, :2]).any()
            else:
                now = jax.vmap(dynamics.numbers)(state.inner)
            x = jnp.where((t < length)[:, None], now, x)
        np.testing.assert_allclose(x, tree.x[rows], rtol=0, atol=1e-9)
        gained = tree.total[rows] - tree.total[parent]
        np.testing.assert_allclose(total, gained, rtol=0, atol=1e-9)


@every_problem
def test_every_node_has_one_edge_from_an_earlier_node(env_id):
    _, states, metrics = trees(env_id)
    tree, problem = jax.tree.map(np.asarray, states.params), find_problem(env_id)
    is_node, rows = tree.time >= 0, np.arange(NUM_NODES[env_id] + 1)
    assert np.all(tree.parent[:, 1:] < rows[1:]) and np.all(tree.time[:, 0] == 0)
    parents_time = np.take_along_axis(tree.time, tree.parent, 1)
    assert np.all((parents_time >= 0)[is_node])
    assert np.all((tree.time - parents_time)[:, 1:] <= 8)
    assert tree.time.max() <= make_env(env_id, 1).max_steps
    np.testing.assert_array_equal(metrics["nodes"][:, -1], is_node.sum(1))
    assert is_node.all() == (env_id == "Pendulum-v1")  # the other has walls
    high = 2 if env_id == "Pendulum-v1" else 1
    assert np.abs(tree.control).max() <= high and np.abs(tree.control).max() > 0.98 * high
    arrived = np.asarray(in_goal(problem, tree.x)) & is_node
    has_child = np.zeros_like(arrived)
    for seed in range(SEEDS):
        has_child[seed, tree.parent[seed][is_node[seed]]] = True
    assert not (arrived & has_child)[:, 1:].any()  # what has arrived goes no further


@every_problem
def test_plans_arrive_when_the_environment_executes_them(env_id):
    """Open loop, from the start, for as many steps as the tree says; its return is the value."""
    algorithm, states, metrics = trees(env_id)
    found = metrics["success"][:, -1] == 1
    assert found.sum() >= (SEEDS if env_id == "Pendulum-v1" else SEEDS // 3)
    np.testing.assert_array_equal(np.isnan(metrics["path_steps"]), metrics["success"] == 0)
    np.testing.assert_array_equal(np.isnan(metrics["episode_return"]), metrics["success"] == 0)
    np.testing.assert_allclose(metrics["value"], metrics["episode_return"], rtol=0, atol=1e-6)
    assert np.all(np.diff(metrics["success"]) >= 0)
    steps = metrics["path_steps"]
    assert not np.any(np.diff(steps) > 0)  # a later plan is used only if it is shorter
    with jax.enable_x64(True):
        env, dynamics = make_env(env_id, 1), make_dynamics(env_id)
        problem, step = find_problem(env_id), jax.jit(env.step)
        for seed in np.flatnonzero(found)[:2]:
            tree, state = jax.tree.map(lambda x, i=seed: x[i], (states.params, states.start))
            is_end = np.asarray(in_goal(problem, tree.x) & (tree.time >= 0))
            end = np.flatnonzero(is_end)[np.argmin(tree.time[is_end])]
            assert steps[seed, -1] == tree.time[end]
            controls, total = controls_to(tree, jnp.int32(end), env.max_steps), 0
            for t in range(int(steps[seed, -1])):
                state, transition = step(state, controls[t][None], jax.random.key(t))
                total += transition.reward[0]
                assert transition.terminated[0] == (total == 1)
            np.testing.assert_allclose(total, metrics["episode_return"][seed, -1], atol=1e-6)
            if env_id == "Pendulum-v1":
                assert in_goal(problem, dynamics.numbers(jax.tree.map(lambda x: x[0], state.inner)))
            else:
                assert total == 1  # paid for arriving only


def test_an_update_extends_as_numpy_does():
    """Two samples of Pendulum from the same random numbers, by loops."""
    config = Config(
        num_nodes=20, nodes_per_update=2, num_controls=4, steps_per_edge=5, goal_bias=0.5
    )
    with jax.enable_x64(True):
        algorithm, problem = make(config), PENDULUM
        state = jax.jit(algorithm.init)(jax.random.key(3))
        update = jax.jit(algorithm.update)
        for step in range(3):
            before, (state, _) = jax.tree.map(np.asarray, state.params), update(state, step)
        after = jax.tree.map(np.asarray, state.params)
        key_tree, _ = jax.random.split(jax.random.fold_in(state.key, 2))
        x, time = before.x.copy(), before.time.copy()
        for i in range(2):
            key_state, key_controls = jax.random.split(jax.random.fold_in(key_tree, i))
            target = np.asarray(random_state(problem, key_state, 0.5))
            controls = np.asarray(jax.random.uniform(key_controls, (4, 1), minval=-2.0, maxval=2.0))
            best, near, row = None, None, 5 + i
            gap = lambda state, target=target: np.hypot(
                np.angle(np.exp(1j * (state[0] - target[0]))) / (2 * np.pi),
                (state[1] - target[1]) / 16,
            )
            near = min(np.flatnonzero(time >= 0), key=lambda k, gap=gap: gap(x[k]))
            ends = []
            for (torque,) in controls:
                angle, speed = x[near][:2]
                for _ in range(5):
                    speed = np.clip(speed + (15 * np.sin(angle) + 3 * torque) * 0.05, -8, 8)
                    angle = angle + speed * 0.05
                ends.append(np.array([angle, speed, torque]))
            best = min(range(4), key=lambda c, ends=ends, gap=gap: gap(ends[c]))
            x[row], time[row] = ends[best], time[near] + 5
            assert after.parent[row] == near and after.time[row] == time[row]
            np.testing.assert_allclose(after.x[row], x[row], atol=1e-9)
            np.testing.assert_allclose(after.control[row], controls[best])
        assert np.all(after.time[7:] == -1) and np.all(after.time[:7] >= 0)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--env-id", "CartPole-v1"], "Pendulum-v1, PointRobot-obstacles"),
        (["--env-id", "Car-obstacles"], "Pendulum-v1, PointRobot-obstacles"),
        (["--num-nodes", "10"], "num_nodes >= nodes_per_update"),
        (["--goal-bias", "1.5"], "0 <= goal_bias <= 1"),
    ],
)
def test_what_it_cannot_plan_is_refused_in_one_line(flags, message):
    done = run_here("algorithms.rrt", *flags, check=2)
    assert message in done.stderr and done.stderr.strip().count("\n") == 0


def test_a_plan_is_made_for_the_parameters_of_the_environment():
    """What the plan predicts is what the environment with them returns; another one differs."""
    returns = {}
    with jax.enable_x64(True):
        for gravity in (1.0, 10.0):
            algorithm = make(Config(f"Pendulum-v1+g={gravity}", num_nodes=600))
            train = lambda key, a=algorithm: jax.lax.scan(a.update, a.init(key), jnp.arange(12))
            metrics = jax.jit(train)(jax.random.key(0))[1]
            value, gained = (np.asarray(metrics[x]) for x in ("value", "episode_return"))
            np.testing.assert_allclose(value, gained, rtol=0, atol=1e-6)
            returns[gravity] = gained[-1]
    assert returns[1.0] > -1_000 and returns[1.0] != returns[10.0]


@every_problem
def test_the_picture_is_the_tree_and_the_plan(env_id):
    algorithm, states, metrics = trees(env_id)
    seed = int(np.argmax(metrics["success"][:, -1]))
    with jax.enable_x64(True):
        state = jax.tree.map(lambda x: x[seed], states)
        picture = jax.tree.map(np.asarray, algorithm.picture(state))
    edges, tree = picture["edges"], jax.tree.map(np.asarray, state.params)
    is_edge = tree.time > 0
    np.testing.assert_array_equal(np.isfinite(edges).all((1, 2)), is_edge)
    turns = (edges[:, -1] - tree.x[:, :2])[is_edge] / (2 * np.pi)
    np.testing.assert_allclose(turns[:, 1], 0, atol=1e-9)
    np.testing.assert_allclose(turns[:, 0], np.round(turns[:, 0]), atol=1e-9)
    assert np.abs(edges[is_edge][:, 0, 0]).max() <= (np.pi if env_id == "Pendulum-v1" else 10)
    (end,) = np.flatnonzero(picture["path"] & in_goal(find_problem(env_id), tree.x))
    low, high = picture["goal"]
    assert np.all((edges[end, -1] >= low) & (edges[end, -1] <= high))
