"""Monte Carlo tree search (MCTS) by upper confidence bounds (UCT), with the true simulator.

Kocsis & Szepesvári 2006, Bandit based Monte-Carlo Planning, https://doi.org/10.1007/11871842_29;
Coulom 2006, Efficient Selectivity and Backup Operators in Monte-Carlo Tree Search,
https://doi.org/10.1007/978-3-540-75538-8_7; Teytaud & Teytaud 2010, On the Huge Benefit of Decisive
Moves in Monte-Carlo Tree Search Algorithms, https://hal.inria.fr/inria-00495078

    a = argmax_a Q(s, a) + c √(ln N(s) / n(s, a)),   N(s) = Σ_a n(s, a)     (section 2.3)
    G_t = r_t + γ_t G_{t+1},   Q(s, a) = mean of the G_t that followed (s, a)

A simulation goes down the tree by the first line, an untried action before all others; the first
such action adds a node, and from there it plays at random. In a game of two players r_t is the
reward of the one who moves and γ_t = -1; at the end γ_t = 0. Where a move wins at once no other one
is considered. The action that is played is the one most visited. An update searches from the states
of all environments and makes one step, in a game our move and the opponent's reply;
`episode_return` is then 1 won, 0 drawn, -1 lost.

Departs from the papers: a node stands for the actions that lead to it, and a simulation runs them
again from the root, so that where they may lead to several states Q is their mean (open loop). A
simulation sees the environment's time limit, and ends there or after `rollout_length` random steps:
what lies beyond counts 0. c is not scaled with the depth.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from common.algorithm import Algorithm, require
from common.environments.games import PLAYERS, any_of, board, decisive, make_game, make_match
from common.environments.simulators import (
    Searches,
    Simulator,
    draw_searches,
    no_searches,
    of_env,
    of_game,
    remember,
)
from common.envs import make_env
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "TicTacToe-game"  # or ConnectFour-game, or any one with discrete actions
    total_timesteps: int = 4_000  # steps or own moves, over all environments
    num_envs: int = 16  # environments or games, side by side
    num_simulations: int = 100  # before each step
    exploration: float = 1.4  # c, in the unit of returns
    gamma: float = 1.0  # discount factor, in environments
    rollout_length: int = 50  # random steps after the tree, at most
    opponent: Literal["random", "perfect", "itself"] = "random"  # in games

    def __post_init__(self):
        require(
            self,
            "num_envs >= 1",
            "total_timesteps >= num_envs",
            "num_simulations >= 1",
            "exploration >= 0",
            "0 <= gamma <= 1",
            "rollout_length >= 0",
        )


class Tree(NamedTuple):
    """Nodes in the order in which they were added, the root first; M = simulations + 1."""

    child: jax.Array  # [M, A] the node that an action leads to, 0 if there is none
    visits: jax.Array  # [M, A] n(s, a)
    total: jax.Array  # [M, A] the sum of the returns that followed


class State(NamedTuple):
    key: jax.Array
    params: jax.Array  # Q [N, A] at the last roots: nothing is learned, but this must stay finite
    env: Any  # EnvState or Match
    searches: Searches  # the last of the first environment


def uct(visits, total, exploration) -> jax.Array:
    """Q(s, a) + c √(ln N(s) / n(s, a)), of the actions [A] of one node, all of them tried."""
    return total / visits + exploration * jnp.sqrt(jnp.log(jnp.sum(visits)) / visits)


def choose(u, legal, visits, total, exploration) -> jax.Array:
    """Any legal action that is untried, or, if there is none, the legal one of the largest UCT."""
    untried = legal & (visits == 0)
    bound = jnp.where(legal, uct(jnp.maximum(visits, 1), total, exploration), -jnp.inf)
    best = jnp.argmax(bound).astype(jnp.int32)
    return jnp.where(jnp.any(untried), any_of(u, untried), best)


class Descent(NamedTuple):
    """A simulation on its way down the tree. D bounds the steps it can make there."""

    time: jax.Array
    state: Any
    node: jax.Array  # -1 once it has left the tree
    discount: jax.Array  # 0 once it has ended
    edge: jax.Array  # [D] node * A + action of each step, beyond all of them where there was none
    weight: jax.Array  # [D] γ_t γ_{t+1} ..., of what comes next in G_t
    returns: jax.Array  # [D] G_t


def descend(simulator: Simulator, tree: Tree, state, key, exploration) -> Descent:
    """From the root to the end of the tree. Rewards are added to the returns of all steps before,
    so that nothing needs to go back up."""
    num_nodes, num_actions = tree.visits.shape
    depth = min(num_nodes - 1, simulator.max_steps)
    key_action, key_steps = jax.random.split(key)
    u = jax.random.uniform(key_action)  # only the last step can be an untried action

    def step(at: Descent):
        visits, total = tree.visits[at.node], tree.total[at.node]
        action = choose(u, simulator.legal(at.state), visits, total, exploration)
        key_step = jax.random.fold_in(key_steps, at.time)
        state, reward, discount = simulator.step(at.state, action, key_step)
        child = tree.child[at.node, action]
        now = jnp.arange(depth) == at.time
        weight = jnp.where(now, 1, at.weight)
        return Descent(
            time=at.time + 1,
            state=state,
            node=jnp.where(child > 0, child, -1),
            discount=discount,
            edge=jnp.where(now, at.node * num_actions + action, at.edge),
            weight=weight * discount,
            returns=at.returns + weight * reward,
        )

    zeros = jnp.zeros(depth, tree.total.dtype)
    start = Descent(
        time=jnp.int32(0),
        state=state,
        node=jnp.int32(0),
        discount=jnp.ones((), zeros.dtype),
        edge=jnp.full(depth, tree.visits.size, jnp.int32),
        weight=zeros,
        returns=zeros,
    )
    return jax.lax.while_loop(lambda at: (at.node >= 0) & (at.discount != 0), step, start)


def rollout(simulator: Simulator, state, running, key, length) -> jax.Array:
    """The return G of `length` random steps at most, from a state that may have ended before."""
    length = min(length, simulator.max_steps)
    key_actions, key_steps = jax.random.split(key)
    noise = jax.random.uniform(key_actions, (max(length, 1),))

    def step(carry):
        time, state, weight, total = carry
        action = any_of(noise[time], simulator.legal(state))
        key_step = jax.random.fold_in(key_steps, time)
        state, reward, discount = simulator.step(state, action, key_step)
        return time + 1, state, weight * discount, total + weight * reward

    def unfinished(carry):
        return (carry[0] < length) & (carry[2] != 0)

    weight = jnp.where(running, jnp.ones((), noise.dtype), 0)
    start = jnp.int32(0), state, weight, jnp.zeros_like(weight)
    return jax.lax.while_loop(unfinished, step, start)[3]


def backup(tree: Tree, edge, returns, new_node) -> Tree:
    """n(s, a) ← n(s, a) + 1 and total ← total + G, for all steps in the tree; the last one leads to
    the new node, unless it led to one before."""
    last = edge[jnp.sum(edge < tree.visits.size) - 1]

    def added(x, y):
        return x.ravel().at[edge].add(y, mode="drop").reshape(x.shape)

    child = tree.child.ravel()
    child = child.at[last].set(jnp.where(child[last] > 0, child[last], new_node))
    return Tree(
        child=child.reshape(tree.child.shape),
        visits=added(tree.visits, 1),
        total=added(tree.total, returns),
    )


def search(simulator: Simulator, state, key, num_simulations, exploration, rollout_length) -> Tree:
    """The tree that so many simulations from one state build."""

    def simulation(i, tree):
        key_descent, key_rollout = jax.random.split(jax.random.fold_in(key, i))
        leaf = descend(simulator, tree, state, key_descent, exploration)
        value = rollout(simulator, leaf.state, leaf.discount != 0, key_rollout, rollout_length)
        return backup(tree, leaf.edge, leaf.returns + leaf.weight * value, new_node=i + 1)

    zeros = jnp.zeros((num_simulations + 1, simulator.num_actions))
    empty = Tree(zeros.astype(jnp.int32), visits=zeros, total=zeros)
    return jax.lax.fori_loop(0, num_simulations, simulation, empty)


def make(config: Config) -> Algorithm:
    def plan(state, key):
        return search(
            simulator, state, key, config.num_simulations, config.exploration, config.rollout_length
        )

    def itself(state, key):
        return jnp.argmax(plan(state, key).visits[0])

    game = make_game(config.env_id) if config.env_id.endswith("-game") else None
    if game is None:
        env = make_env(config.env_id, config.num_envs, actions="discrete")
        simulator = of_env(make_env(config.env_id, 1), config.gamma)
        reset, act = env.reset, lambda *args: env.step(*args)[0]
        roots, first_board, shown = (lambda env: env), (lambda env: ()), 60
    else:
        simulator = of_game(decisive(game))
        players = PLAYERS | {"itself": lambda game: itself}
        reset, act = make_match(game, players[config.opponent](game), config.num_envs)
        roots, first_board, shown = (lambda env: env.state), (lambda env: board(env.state[0])), 6

    def init(key):
        key, key_env = jax.random.split(key)
        env_state = reset(key_env)
        return State(
            key=key,
            params=jnp.zeros((config.num_envs, simulator.num_actions)),
            env=env_state,
            searches=no_searches(first_board(env_state), simulator.num_actions, shown),
        )

    def update(state, step):
        key_search, key_env = jax.random.split(jax.random.fold_in(state.key, step))
        tree = jax.vmap(plan)(roots(state.env), jax.random.split(key_search, config.num_envs))
        visits, total = tree.visits[:, 0], tree.total[:, 0]
        env_state = act(state.env, jnp.argmax(visits, axis=-1), key_env)
        searches = remember(state.searches, first_board(state.env), visits[0])
        metrics = {
            "episode_return": jnp.nanmean(env_state.episode_return),
            "value": jnp.mean(jnp.sum(total, axis=-1)) / config.num_simulations,
        }
        return State(state.key, total / jnp.maximum(visits, 1), env_state, searches), metrics

    def picture(state, figure):
        draw_searches(figure, game, state.searches)

    num_updates = config.total_timesteps // config.num_envs
    return Algorithm(init, update, None, num_updates, config.num_envs, picture=picture)


if __name__ == "__main__":
    main(Config, make)
