"""Monte Carlo tree search (MCTS) with upper confidence bounds (UCT) and the true simulator.

Kocsis & Szepesvári 2006, Bandit based Monte-Carlo Planning, https://doi.org/10.1007/11871842_29;
Coulom 2006, Efficient Selectivity and Backup Operators in Monte-Carlo Tree Search,
https://doi.org/10.1007/978-3-540-75538-8_7; Teytaud & Teytaud 2010, On the Huge Benefit of Decisive
Moves in Monte-Carlo Tree Search Algorithms, https://hal.inria.fr/inria-00495078

    a = argmax_a Q(s, a) + c √(ln N(s) / n(s, a)),   N(s) = Σ_a n(s, a)     (section 2.3)
    G_t = r_t + γ_t G_{t+1},   Q(s, a) = mean of the G_t that followed (s, a)

A simulation selects actions in the tree by the first equation, untried actions before all others;
an untried action adds a node, from which a random rollout estimates the return. In a two-player
game r_t is the reward of the player to move and γ_t = -1; at the end of an episode γ_t = 0. Where a
move wins immediately, only winning moves are considered. The action that is played is the most
visited one at the root. An update searches from the states of all environments and takes one step,
in a game the agent's move and the opponent's reply; the return is then 1 for a win, 0 for a draw,
-1 for a loss.

Departs from the papers: a node stands for a sequence of actions, which each simulation replays from
the root, so in a random environment Q averages over the states it may lead to (open loop); a
simulation ends, with value 0, at the environment's time limit or after `rollout_length` random
steps; c does not depend on the depth.

Metrics: `value`, mean return of all simulations from the roots; `first_episode_return`, mean over
the first episode of each environment, NaN until all of these have ended: a short run ends more of
the short episodes than of the long ones.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from common.algorithm import Algorithm, require
from common.environments.games import PLAYERS, any_of, board, decisive, make_game, match_env
from common.environments.simulators import Simulator, simulator_of_env, simulator_of_game
from common.envs import EnvState, episode_metrics, make_env
from common.run import main


@dataclass(frozen=True)
class Config:
    env_id: str = "TicTacToe-game"  # or ConnectFour-game, or any environment, discrete actions
    total_timesteps: int = 4_000  # steps or own moves, over all environments
    num_envs: int = 16  # environments or games in parallel
    num_simulations: int = 100  # before each step
    uct_c: float = 1.4  # c, in units of the return
    gamma: float = 1.0  # discount factor, in environments
    rollout_length: int = 50  # random steps after the tree, at most
    opponent: Literal["random", "perfect", "itself"] = "random"  # in games

    def __post_init__(self):
        require(self, "total_timesteps >= num_envs", "uct_c >= 0", "rollout_length >= 0")


class Tree(NamedTuple):
    """Nodes in the order in which they were added, the root first; M = num_simulations + 1."""

    child: jax.Array  # [M, A] the node that an action leads to, 0 if there is none
    visits: jax.Array  # [M, A] n(s, a)
    total: jax.Array  # [M, A] the sum of the returns that followed


class State(NamedTuple):
    key: jax.Array
    params: jax.Array  # Q [N, A] at the last roots; nothing is learned
    env: EnvState
    first_return: jax.Array  # [N] of the first episodes, NaN before they end


def uct(visits, total, uct_c) -> jax.Array:
    """Q(s, a) + c √(ln N(s) / n(s, a)), for the actions [A] of one node; NaN where n(s, a) = 0."""
    return total / visits + uct_c * jnp.sqrt(jnp.log(jnp.sum(visits)) / visits)


def choose(u, legal, visits, total, uct_c) -> jax.Array:
    """A random untried legal action, or, if there is none, the legal one with the largest UCT.

    u: uniform in [0, 1); legal: bool [A]; visits and total: [A].
    """
    untried = legal & (visits == 0)
    bound = jnp.where(legal, uct(visits, total, uct_c), -jnp.inf)
    best = jnp.argmax(bound).astype(jnp.int32)
    return jnp.where(jnp.any(untried), any_of(u, untried), best)


class SimulationState(NamedTuple):
    """A simulation inside the tree, of at most D steps."""

    time: jax.Array
    state: Any  # of the simulator
    node: jax.Array  # -1 outside the tree
    discount: jax.Array  # 0 once the episode has ended
    path: jax.Array  # [D] node * A + action of each step, M * A for steps not yet taken
    discount_so_far: jax.Array  # [D] γ_t γ_{t+1} ..., the weight of the next reward in G_t
    returns: jax.Array  # [D] G_t so far


def descend(simulator: Simulator, tree: Tree, state, key, uct_c) -> SimulationState:
    """Select actions from the root until one leaves the tree or ends the episode.

    Each reward is added to the returns of all earlier steps, so no backward pass is needed.
    """
    num_nodes, num_actions = tree.visits.shape
    depth = min(num_nodes - 1, simulator.max_steps)
    key_action, key_steps = jax.random.split(key)
    u = jax.random.uniform(key_action)  # one suffices: only the last step can be an untried action

    def step(simulation: SimulationState):
        node, time = simulation.node, simulation.time
        legal = simulator.legal(simulation.state)
        action = choose(u, legal, tree.visits[node], tree.total[node], uct_c)
        key_step = jax.random.fold_in(key_steps, time)
        outcome = simulator.step(simulation.state, action, key_step)
        discount = jnp.where(outcome.done, 0, outcome.discount)
        child = tree.child[node, action]
        is_current = jnp.arange(depth) == time
        discount_so_far = jnp.where(is_current, 1, simulation.discount_so_far)
        return SimulationState(
            time=time + 1,
            state=outcome.state,
            node=jnp.where(child > 0, child, -1),
            discount=discount,
            path=jnp.where(is_current, node * num_actions + action, simulation.path),
            discount_so_far=discount_so_far * discount,
            returns=simulation.returns + discount_so_far * outcome.reward,
        )

    def unfinished(simulation: SimulationState):
        return (simulation.node >= 0) & (simulation.discount != 0)

    zeros = jnp.zeros(depth, tree.total.dtype)
    start = SimulationState(
        time=jnp.int32(0),
        state=state,
        node=jnp.int32(0),
        discount=jnp.ones((), zeros.dtype),
        path=jnp.full(depth, tree.visits.size, jnp.int32),
        discount_so_far=zeros,
        returns=zeros,
    )
    return jax.lax.while_loop(unfinished, step, start)


def rollout(simulator: Simulator, state, discount, key, length) -> jax.Array:
    """G of at most `length` random steps, []; 0 if `discount` is 0, where the episode has ended."""
    length = min(length, simulator.max_steps)
    key_actions, key_steps = jax.random.split(key)
    noise = jax.random.uniform(key_actions, (max(length, 1),))

    def step(carry):
        time, state, discount_so_far, total = carry
        action = any_of(noise[time], simulator.legal(state))
        key_step = jax.random.fold_in(key_steps, time)
        outcome = simulator.step(state, action, key_step)
        discount = jnp.where(outcome.done, 0, outcome.discount)
        total += discount_so_far * outcome.reward
        return time + 1, outcome.state, discount_so_far * discount, total

    def unfinished(carry):
        time, _, discount_so_far, _ = carry
        return (time < length) & (discount_so_far != 0)

    discount_so_far = jnp.where(discount != 0, jnp.ones((), noise.dtype), 0)
    start = jnp.int32(0), state, discount_so_far, jnp.zeros_like(discount_so_far)
    *_, total = jax.lax.while_loop(unfinished, step, start)
    return total


def backup(tree: Tree, path, returns, new_node) -> Tree:
    """n(s, a) ← n(s, a) + 1 and total ← total + G along the path [D], with returns [D].

    The last action of the path leads to `new_node`, unless it has led to a node before.
    """
    last = path[jnp.sum(path < tree.visits.size) - 1]

    def add(x, values):
        return x.ravel().at[path].add(values, mode="drop").reshape(x.shape)

    child = tree.child.ravel()
    child = child.at[last].set(jnp.where(child[last] > 0, child[last], new_node))
    return Tree(
        child=child.reshape(tree.child.shape),
        visits=add(tree.visits, 1),
        total=add(tree.total, returns),
    )


def search(simulator: Simulator, state, key, num_simulations, uct_c, rollout_length) -> Tree:
    """Build the tree of `num_simulations` simulations from one state."""

    def simulate(i, tree):
        key_descent, key_rollout = jax.random.split(jax.random.fold_in(key, i))
        leaf = descend(simulator, tree, state, key_descent, uct_c)
        value = rollout(simulator, leaf.state, leaf.discount, key_rollout, rollout_length)
        returns = leaf.returns + leaf.discount_so_far * value
        return backup(tree, leaf.path, returns, new_node=i + 1)

    zeros = jnp.zeros((num_simulations + 1, simulator.num_actions))
    empty = Tree(zeros.astype(jnp.int32), visits=zeros, total=zeros)
    return jax.lax.fori_loop(0, num_simulations, simulate, empty)


def make(config: Config) -> Algorithm:
    def plan(state, key):
        return search(
            simulator, state, key, config.num_simulations, config.uct_c, config.rollout_length
        )

    def itself(state, key):
        return jnp.argmax(plan(state, key).visits[0])

    is_game = config.env_id.endswith("-game")
    if is_game:
        game = make_game(config.env_id)
        simulator = simulator_of_game(decisive(game))
        players = PLAYERS | {"itself": lambda game: itself}
        env = match_env(game, players[config.opponent](game), config.num_envs)
    else:
        env = make_env(config.env_id, config.num_envs, actions="discrete")
        simulator = simulator_of_env(make_env(config.env_id, 1), config.gamma)

    def init(key):
        key, key_env = jax.random.split(key)
        params = jnp.zeros((config.num_envs, simulator.num_actions))
        return State(key, params, env.reset(key_env), jnp.full_like(params[:, 0], jnp.nan))

    def search_and_step(state, step):
        """Search from the states of all environments, and take the most visited actions.

        Returns the next EnvState, and the visits and totals [N, A] at the roots.
        """
        key_search, key_env = jax.random.split(jax.random.fold_in(state.key, step))
        roots = state.env.obs if is_game else state.env
        tree = jax.vmap(plan)(roots, jax.random.split(key_search, config.num_envs))
        visits, total = tree.visits[:, 0], tree.total[:, 0]
        env_state, _ = env.step(state.env, jnp.argmax(visits, axis=-1), key_env)
        return env_state, visits, total

    def update(state, step):
        env_state, visits, total = search_and_step(state, step)
        episode = env_state.episode
        is_first = episode.done & jnp.isnan(state.first_return)
        first_return = jnp.where(is_first, episode.total, state.first_return)
        metrics = {
            **episode_metrics(episode),
            "first_episode_return": jnp.mean(first_return),
            "value": jnp.mean(jnp.sum(total, axis=-1)) / config.num_simulations,
        }
        params = total / jnp.maximum(visits, 1)
        return State(state.key, params, env_state, first_return), metrics

    num_updates = config.total_timesteps // config.num_envs

    def picture(state):
        """Return the visits at the roots of the next searches of the first environment, and in a
        game the boards they start from."""

        def search_next(state, step):
            env_state, visits, _ = search_and_step(state, step)
            shown = {"visits": visits[0]}
            if is_game:
                shown["boards"] = board(state.env.obs[0])
            return state._replace(env=env_state), shown

        steps = num_updates + jnp.arange(6 if is_game else 60)
        return jax.lax.scan(search_next, state, steps)[1]

    return Algorithm(init, update, None, num_updates, config.num_envs, picture=picture)


if __name__ == "__main__":
    main(Config, make)
