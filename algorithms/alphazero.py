"""AlphaZero: self-play with a tree search that a network guides, and that teaches the network.

Differs from mcts.py in that a network, learned from the searches, replaces the random rollouts, and
in that a search prefers what the network does.

Silver et al. 2018, A general reinforcement learning algorithm that masters chess, shogi, and Go
through self-play, https://doi.org/10.1126/science.aar6404; Danihelka et al. 2022, Policy
improvement by planning with Gumbel, https://openreview.net/forum?id=bERaNdoegnO

    L(θ) = (z - v_θ(s))² - Σ_a π'(a) log p_θ(a | s) + c |θ|²
    z_t = r_t + γ_t z_{t+1}

for the policy p and the value v of a network with two heads, in view of the player to move. In a
game z is the outcome, γ_t = -1 while it goes on and 0 at its end. π' is the improved policy of a
search. With `--search gumbel` (Danihelka), for Gumbel noise g, for σ(q) = (50 + max_a n(a)) q times
value_scale, and for q̄, which is Q, or v_mix for actions without a visit:

    π' = softmax(log p + σ(q̄))
    at the root: the m actions with the largest g + log p + σ(q̄) share the simulations, and halve
    below it: argmax_a π'(a) - n(a) / (1 + Σ_b n(b))
    the move: the most visited action with the largest g + log p + σ(q̄)

With `--search puct` (Silver), for p mixed with a quarter of Dirichlet noise at the root,

    everywhere: argmax_a Q(a) + c p(a) √(Σ_b n(b)) / (1 + n(a))
    π' = n / Σ_b n(b), from which the move is drawn

The matches that `episode_return` reports are played without noise; so does `act` in a game: it
searches from the board. In an environment it takes the action with the largest p.

Departs from the papers: a game of self-play starts with up to `random_moves` random moves, which
are not learned from, for positions that good play does not reach; games go on from update to
update, and z of an unfinished one ends with v; c is constant; with `--search puct` the move is
drawn until the end of the game; Adam with decoupled weight decay, no batch normalisation, small
networks; one network plays at all times, as in AlphaZero, and all its games in step; in an
environment, of which the search has the simulator, a random step is drawn when its node is added.

Metrics: `value`, mean Q of the roots in self-play, in view of the player to move; `value_loss`,
mean (z - v)²; `policy_loss`, mean cross-entropy of p relative to π' (nats).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from common.algorithm import Algorithm, require
from common.buffers import uniform_buffer
from common.environments.games import PLAYERS, any_of, board, make_game, match_env
from common.environments.simulators import Simulator, simulator_of_env, simulator_of_game
from common.envs import episode_metrics, make_env, rollout
from common.networks import Network, dense, make_network, mlp
from common.returns import gae
from common.run import main

ILLEGAL = -1e9  # log p of an illegal action


@dataclass(frozen=True)
class Config:
    env_id: str = "TicTacToe-game"  # or ConnectFour-game, or any environment, discrete actions
    total_timesteps: int = 200_000  # moves of self-play, or steps, over all environments
    num_envs: int = 16  # games or environments in parallel
    num_steps: int = 32  # moves of each in an update
    search: Literal["gumbel", "puct"] = "gumbel"  # how simulations are spent
    num_simulations: int = 32  # before each move
    random_moves: int = 6  # at most, before a game of self-play
    num_considered: int = 16  # actions that the root of a Gumbel search tries, m
    value_scale: float = 0.1  # of Q in a Gumbel search, in 1 / units of the return
    puct_c: float = 1.25  # exploration of a PUCT search, c, in units of the return
    dirichlet_alpha: float = 1.0  # of the noise at the root of a PUCT search; about 10 / A
    gamma: float = 0.99  # discount factor, in environments
    learning_rate: float = 1e-3  # of Adam
    weight_decay: float = 1e-4  # decoupled, per unit of the learning rate
    buffer_size: int = 20_000  # latest positions to learn from
    batch_size: int = 256  # positions of a gradient step
    gradient_steps: int = 16  # in an update
    num_blocks: int = 0  # residual blocks that see the board first; 0: cells go to the layers
    num_channels: int = 64  # of each block
    hidden_sizes: tuple[int, ...] = (128, 128)  # units of the hidden layers after the blocks
    opponent: Literal["random", "perfect"] = "random"  # in matches; perfect: tic-tac-toe
    num_matches: int = 16  # in parallel, beside the self-play

    def __post_init__(self):
        require(
            self,
            "total_timesteps >= 2 * num_envs * num_steps",
            "num_considered >= 2",
            "value_scale > 0",
            "puct_c > 0",
            "dirichlet_alpha > 0",
            "weight_decay >= 0",
            "num_blocks >= 0",
            "random_moves >= 0",
        )


class Node(NamedTuple):
    """What a search knows of one node."""

    logits: jax.Array  # [A] log p but for a constant
    value: jax.Array  # v
    visits: jax.Array  # [A] n
    total: jax.Array  # [A] sum of the returns that followed


class Tree(NamedTuple):
    """Nodes in the order in which they were added, the root first; M = num_simulations + 1."""

    node: Node  # [M, ...]
    state: Any  # [M, ...] of the simulator
    reward: jax.Array  # [M] of the step into it
    discount: jax.Array  # [M] of the step into it
    ended: jax.Array  # [M] bool: that step ended the episode
    child: jax.Array  # [M, A] the node that an action leads to, 0 if there is none


class Rule(NamedTuple):
    """How a search chooses actions."""

    root: Callable  # Node, number of the simulation -> action
    inner: Callable  # Node -> action, below the root
    decide: Callable  # Node, after all simulations -> action to take, π' [A]


class Positions(NamedTuple):
    """What is learned from, [T, N, ...]."""

    obs: jax.Array
    legal: jax.Array  # bool [A]
    policy: jax.Array  # [A] π'
    outcome: jax.Array  # z


class State(NamedTuple):
    key: jax.Array
    params: Any
    opt_state: optax.OptState
    buffer: Positions
    simulated: Any  # [N, ...] states of the simulator
    matches: Any  # EnvState of the matches, () in environments


def halving(num_considered: int, num_simulations: int) -> list[int]:
    """How many visits the action has that each simulation of sequential halving tries next, [n].

    Each phase spends a share 1 / log2 m of the simulations on the actions that are left, in equal
    parts, and keeps the better half of them, but at least two.
    """
    num_phases = max(1, math.ceil(math.log2(num_considered)))
    num_left, visits, tried = num_considered, 0, []
    while len(tried) < num_simulations:
        for _ in range(max(1, num_simulations // (num_phases * num_left))):
            tried += [visits] * num_left
            visits += 1
        num_left = max(2, num_left // 2) if num_considered > 1 else 1
    return tried[:num_simulations]


def completed_q(node: Node) -> jax.Array:
    """q̄ [A]: Q where there are visits, elsewhere v_mix = (v + Σ n Σ p Q / Σ p) / (1 + Σ n), whose
    sums over p are over the visited actions (eq. 33 of Danihelka et al.)."""
    is_visited = node.visits > 0
    q = node.total / jnp.maximum(node.visits, 1)
    prior = jnp.where(is_visited, jax.nn.softmax(node.logits), 0)
    prior /= jnp.maximum(jnp.sum(prior), jnp.finfo(q.dtype).tiny)
    num_visits = jnp.sum(node.visits)
    mixed = (node.value + num_visits * jnp.sum(prior * q)) / (1 + num_visits)
    return jnp.where(is_visited, q, mixed)


def improved_logits(node: Node, value_scale) -> jax.Array:
    """log p + σ(q̄), [A]."""
    return node.logits + (50 + jnp.max(node.visits)) * value_scale * completed_q(node)


def gumbel_rule(noise, tried, value_scale) -> Rule:
    """Search with Gumbel noise g [A]; `tried` [A + 1, n] has a row of `halving` for each number of
    legal actions."""

    def root(node, i):
        num_legal = jnp.sum(node.logits > ILLEGAL / 2)
        is_next = node.visits == tried[num_legal, i]
        score = noise + improved_logits(node, value_scale)
        return jnp.argmax(jnp.where(is_next, score, -jnp.inf))

    def inner(node):
        policy = jax.nn.softmax(improved_logits(node, value_scale))
        return jnp.argmax(policy - node.visits / (1 + jnp.sum(node.visits)))

    def decide(node):
        logits = improved_logits(node, value_scale)
        is_most_visited = node.visits == jnp.max(node.visits)
        action = jnp.argmax(jnp.where(is_most_visited, noise + logits, -jnp.inf))
        return action, jax.nn.softmax(logits)

    return Rule(root, inner, decide)


def puct(prior, visits, total, puct_c) -> jax.Array:
    """Q + c p √(Σ n) / (1 + n), [A], with Q = 0 for actions without a visit."""
    bonus = puct_c * prior * jnp.sqrt(jnp.sum(visits)) / (1 + visits)
    return total / jnp.maximum(visits, 1) + bonus


def puct_rule(noise, dirichlet, fraction, puct_c) -> Rule:
    """Search with a fraction of Dirichlet noise [A] at the root; the action is drawn with Gumbel
    noise [A]."""

    def choose(node, prior):
        score = puct(prior, node.visits, node.total, puct_c)
        return jnp.argmax(jnp.where(node.logits > ILLEGAL / 2, score, -jnp.inf))

    def root(node, i):
        own = jnp.where(node.logits > ILLEGAL / 2, dirichlet, 0)
        own /= jnp.sum(own)
        return choose(node, (1 - fraction) * jax.nn.softmax(node.logits) + fraction * own)

    def inner(node):
        return choose(node, jax.nn.softmax(node.logits))

    def decide(node):
        return jnp.argmax(jnp.log(node.visits) + noise), node.visits / jnp.sum(node.visits)

    return Rule(root, inner, decide)


class Trajectory(NamedTuple):
    """Steps of a simulation from the root, D = num_simulations at most."""

    length: jax.Array
    edge: jax.Array  # [D] node * A + action of each step, M * A for steps not taken
    weight: jax.Array  # [D] γ_t γ_{t+1} ..., the weight of the next reward in G_t
    returns: jax.Array  # [D] G_t so far


def extend(path: Trajectory, edge, reward, discount) -> Trajectory:
    """The path with one more step; its reward is added to the returns of all earlier ones."""
    is_new = jnp.arange(len(path.edge)) == path.length
    weight = jnp.where(is_new, 1, path.weight)
    return Trajectory(
        path.length + 1,
        jnp.where(is_new, edge, path.edge),
        weight * discount,
        path.returns + weight * reward,
    )


def simulate(simulator: Simulator, evaluate: Callable, rule: Rule, tree: Tree, key, i) -> Tree:
    """The i-th simulation: select actions until one leaves the tree, add its node, back up."""
    num_nodes, num_actions = tree.child.shape
    node_at = lambda index: jax.tree.map(lambda x: x[index], tree.node)

    def is_inside(carry):
        node, action, _ = carry
        child = tree.child[node, action]
        return (child > 0) & ~tree.ended[child]

    def descend(carry):
        node, action, path = carry
        child = tree.child[node, action]
        edge = node * num_actions + action
        path = extend(path, edge, tree.reward[child], tree.discount[child])
        return child, rule.inner(node_at(child)).astype(jnp.int32), path

    zeros = jnp.zeros(num_nodes - 1, tree.reward.dtype)
    edges = jnp.full(num_nodes - 1, num_nodes * num_actions, jnp.int32)
    path = Trajectory(jnp.int32(0), edges, zeros, zeros)
    start = jnp.int32(0), rule.root(node_at(0), i).astype(jnp.int32), path
    node, action, path = jax.lax.while_loop(is_inside, descend, start)

    parent = jax.tree.map(lambda x: x[node], tree.state)
    outcome = simulator.step(parent, action, key)
    logits, value = evaluate(outcome.obs, simulator.legal(outcome.state))
    edge = node * num_actions + action
    path = extend(path, edge, outcome.reward, outcome.discount)
    returns = path.returns + path.weight * value

    def add(x, values):
        return x.ravel().at[path.edge].add(values, mode="drop").reshape(x.shape)

    new = i + 1  # an action that ends the episode has its node already: it keeps that
    child = jnp.where(tree.child[node, action] > 0, tree.child[node, action], new)
    return Tree(
        node=Node(
            logits=tree.node.logits.at[new].set(logits),
            value=tree.node.value.at[new].set(value),
            visits=add(tree.node.visits, 1),
            total=add(tree.node.total, returns),
        ),
        state=jax.tree.map(lambda x, y: x.at[new].set(y), tree.state, outcome.state),
        reward=tree.reward.at[new].set(outcome.reward),
        discount=tree.discount.at[new].set(outcome.discount),
        ended=tree.ended.at[new].set(outcome.done),
        child=tree.child.at[node, action].set(child),
    )


def search(simulator: Simulator, evaluate: Callable, rule: Rule, state, key, num_simulations):
    """The root's Node after so many simulations from one state.

    `evaluate(obs, legal [A]) -> logits [A], v`.
    """

    def pad(x):
        return jnp.zeros((num_simulations + 1, *jnp.shape(x)), jnp.result_type(x)).at[0].set(x)

    logits, value = evaluate(simulator.observe(state), simulator.legal(state))
    zeros = jnp.zeros_like(logits)
    tree = Tree(
        node=jax.tree.map(pad, Node(logits, value, zeros, zeros)),
        state=jax.tree.map(pad, state),
        reward=pad(zeros[0]),
        discount=pad(zeros[0]),
        ended=pad(False),
        child=pad(zeros.astype(jnp.int32)),
    )
    tree = jax.lax.fori_loop(
        0,
        num_simulations,
        lambda i, tree: simulate(simulator, evaluate, rule, tree, jax.random.fold_in(key, i), i),
        tree,
    )
    return jax.tree.map(lambda x: x[0], tree.node)


def board_network(shape, num_blocks, num_channels, hidden_sizes, num_outputs) -> Network:
    """Blocks x + W₂ relu(W₁ relu(x)) of 3 x 3 convolutions over boards [..., rows * columns], then
    a multi-layer perceptron. A convolution is nine shifted copies times a matrix."""
    height, width = shape
    sizes = [2, *[num_channels] * (2 * num_blocks + 1)] if num_blocks else [2]
    tail = mlp([height * width * sizes[-1], *hidden_sizes, num_outputs])

    def convolve(layer, x):
        w, b = layer
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [(1, 1), (1, 1), (0, 0)])
        shifts = [(i, j) for i in range(3) for j in range(3)]
        patches = [x[..., i : height + i, j : width + j, :] for i, j in shifts]
        return jnp.concatenate(patches, axis=-1) @ w + b

    def init(key):
        key_tail, *keys = jax.random.split(key, len(sizes))
        pairs = zip(keys, sizes[:-1], sizes[1:], strict=True)
        return [dense(k, 9 * m, n) for k, m, n in pairs], tail.init(key_tail)

    def apply(params, cells):
        layers, last = params
        cells = cells.reshape(*cells.shape[:-1], height, width, 1)
        x = jnp.concatenate([cells == 1, cells == -1], axis=-1).astype(last[0][0].dtype)
        if layers:
            x = convolve(layers[0], x)
        for one, two in zip(layers[1::2], layers[2::2], strict=True):
            x += convolve(two, jax.nn.relu(convolve(one, jax.nn.relu(x))))
        return tail.apply(last, jax.nn.relu(x).reshape(*x.shape[:-3], -1))

    return Network(init, apply)


def make(config: Config) -> Algorithm:
    is_game = config.env_id.endswith("-game")
    if is_game:
        game = make_game(config.env_id)
        simulator = simulator_of_game(game)
        opponent = PLAYERS[config.opponent](game)
        env = match_env(game, opponent, config.num_matches)
        discount, squash = -1.0, jnp.tanh
        num_outputs = game.num_actions + 1
        network = board_network(
            game.shape, config.num_blocks, config.num_channels, config.hidden_sizes, num_outputs
        )
    else:
        env = make_env(config.env_id, 1, actions="discrete")
        simulator = simulator_of_env(env, config.gamma)
        discount, squash = config.gamma, lambda value: value
        network = make_network(env, config.hidden_sizes, simulator.num_actions + 1)
    num_actions, num_simulations = simulator.num_actions, config.num_simulations
    num_tried = [
        min(max(num_legal, 1), config.num_considered) for num_legal in range(num_actions + 1)
    ]
    tried = jnp.array([halving(number, num_simulations) for number in num_tried])
    optimizer = optax.adamw(config.learning_rate, weight_decay=config.weight_decay)
    block_size = config.num_envs * config.num_steps
    buffer = uniform_buffer(config.buffer_size, block_size, config.batch_size)
    num_updates = config.total_timesteps // block_size - 1

    def evaluate(params, obs, legal):
        """Return log p, but for a constant, and v."""
        y = network.apply(params, obs)
        return jnp.where(legal, y[..., :-1], ILLEGAL), squash(y[..., -1])

    def think(params, state, key, noise=1.0):
        """Search from one state; return the root's Node, the action and π'."""
        key_gumbel, key_dirichlet, key_search = jax.random.split(key, 3)
        gumbel = noise * jax.random.gumbel(key_gumbel, (num_actions,))
        if config.search == "gumbel":
            rule = gumbel_rule(gumbel, tried, config.value_scale)
        else:
            alpha = jnp.full(num_actions, config.dirichlet_alpha)
            dirichlet = jax.random.dirichlet(key_dirichlet, alpha)
            rule = puct_rule(gumbel, dirichlet, noise / 4, config.puct_c)
        guide = partial(evaluate, params)
        node = search(simulator, guide, rule, state, key_search, num_simulations)
        return node, *rule.decide(node)

    def opening(key):
        """Return the state after some random moves; where they end a game, another one begins."""
        key_number, key_moves, key_reset = jax.random.split(key, 3)
        number = jax.random.randint(key_number, (), 0, config.random_moves + 1)

        def move(i, state):
            key_action, key_step = jax.random.split(jax.random.fold_in(key_moves, i))
            action = any_of(jax.random.uniform(key_action), simulator.legal(state))
            after = simulator.step(state, action, key_step).state
            return jax.tree.map(lambda x, y: jnp.where(i < number, y, x), state, after)

        return jax.lax.fori_loop(0, config.random_moves, move, simulator.reset(key_reset))

    def self_play(params, states, key):
        """Take `num_steps` steps, each with a search.

        Returns the next states, the Positions [T, N, ...], the mean Q of the roots and, in
        environments, the Episodes [T, N].
        """

        def step(states, t):
            key_search, key_step, key_opening = jax.random.split(jax.random.fold_in(key, t), 3)
            keys = jax.random.split(key_search, config.num_envs)
            node, action, policy = jax.vmap(think, (None, 0, 0))(params, states, keys)
            keys = jax.random.split(key_step, config.num_envs)
            outcome = jax.vmap(simulator.step)(states, action, keys)
            _, next_value = evaluate(params, outcome.obs, True)
            error = outcome.reward + outcome.discount * next_value - node.value
            obs, legal = jax.vmap(simulator.observe)(states), jax.vmap(simulator.legal)(states)
            position = Positions(obs, legal, policy, node.value)
            q = jnp.sum(node.total, axis=-1) / num_simulations
            if not is_game:
                episode = outcome.state.episode
                return outcome.state, (position, error, outcome.done, q, episode)
            openings = jax.vmap(opening)(jax.random.split(key_opening, config.num_envs))
            states = jnp.where(outcome.done[:, None], openings, outcome.state)
            return states, (position, error, outcome.done, q, ())

        states, (positions, errors, done, q, episode) = jax.lax.scan(
            step, states, jnp.arange(config.num_steps)
        )
        correction = jax.vmap(gae, (1, 1, None, None), 1)(errors, done, discount, 1.0)
        positions = positions._replace(outcome=positions.outcome + correction)
        return states, positions, q.mean(), episode

    def turn(positions, key):
        """Return the Positions of a game, each in one of its symmetries."""
        boards, actions = (jnp.asarray(x) for x in game.symmetries)
        kind = jax.random.randint(key, (config.batch_size,), 0, len(boards))
        take = lambda x, index: jnp.take_along_axis(x, index[kind], axis=-1)
        return positions._replace(
            obs=take(positions.obs, boards),
            legal=take(positions.legal, actions),
            policy=take(positions.policy, actions),
        )

    def loss(params, positions):
        logits, value = evaluate(params, positions.obs, positions.legal)
        value_loss = jnp.mean(jnp.square(positions.outcome - value))
        policy_loss = jnp.mean(optax.softmax_cross_entropy(logits, positions.policy))
        return value_loss + policy_loss, {"value_loss": value_loss, "policy_loss": policy_loss}

    def init(key):
        key, key_params, key_reset, key_play, key_matches = jax.random.split(key, 5)
        params = network.init(key_params)
        start = opening if is_game else simulator.reset
        states = jax.vmap(start)(jax.random.split(key_reset, config.num_envs))
        states, positions, _, _ = self_play(params, states, key_play)
        matches = env.reset(key_matches) if is_game else ()
        opt_state = optimizer.init(params)
        return State(key, params, opt_state, buffer.init(positions), states, matches)

    def update(state, step):
        key = jax.random.fold_in(state.key, step)
        key_play, key_learn, key_matches = jax.random.split(key, 3)
        states, positions, value, episode = self_play(state.params, state.simulated, key_play)
        positions_so_far = buffer.add(state.buffer, positions, step + 1)

        def learn(carry, i):
            params, opt_state = carry
            key_sample, key_turn = jax.random.split(jax.random.fold_in(key_learn, i))
            batch = buffer.sample(positions_so_far, key_sample, step + 2)
            batch = turn(batch, key_turn) if is_game else batch
            grads, metrics = jax.grad(loss, has_aux=True)(params, batch)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), metrics

        carry = state.params, state.opt_state
        (params, opt_state), losses = jax.lax.scan(learn, carry, jnp.arange(config.gradient_steps))
        matches = state.matches
        if is_game:
            policy = lambda obs, key: jax.vmap(act, (None, 0, 0))(
                params, obs, jax.random.split(key, config.num_matches)
            )
            num_moves = game.max_steps // 2  # of the agent in a long game
            matches, _, metrics = rollout(env, policy, matches, key_matches, num_moves)
        else:
            metrics = episode_metrics(episode)
        metrics |= {"value": value, **jax.tree.map(jnp.mean, losses)}
        return State(state.key, params, opt_state, positions_so_far, states, matches), metrics

    def act(params, obs, key):
        if not is_game:
            return jnp.argmax(evaluate(params, obs, True)[0])
        _, action, _ = think(params, obs, key, noise=0.0)
        return action

    def picture(state):
        """Return the visits at the roots of searches without noise, and in a game, which the
        network plays against itself, the boards."""
        start = jax.tree.map(lambda x: x[0], state.simulated)
        start = game.init() if is_game else start

        def step(simulated, t):
            key_search, key_step = jax.random.split(jax.random.fold_in(state.key, num_updates + t))
            node, action, _ = think(state.params, simulated, key_search, noise=0.0)
            shown = {"visits": node.visits}
            if is_game:
                shown["boards"] = board(simulated)
            return simulator.step(simulated, action, key_step).state, shown

        return jax.lax.scan(step, start, jnp.arange(6 if is_game else 60))[1]

    return Algorithm(init, update, act, num_updates, block_size, block_size, picture)


if __name__ == "__main__":
    main(Config, make)
