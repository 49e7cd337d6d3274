"""q_actor_critic.py: its equations by hand, its gradients against the exact ones, and what it
learns."""

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import check_actor_critic_probe, check_mean, keys, pairs
from probes import Probe

from algorithms import q_actor_critic
from algorithms.q_actor_critic import Config, make, policy_loss, td_error, value_loss
from common.envs import make_env, rollout
from common.networks import make_q_network

# From 0, eight steps to an end that comes with the time limit; from 9, one step; 11 never ends.
ENDS = {
    "next_state": [[s + 1] * 2 for s in range(8)] + [[8] * 2, [10] * 2, [10] * 2, [11] * 2],
    "reward": [[s, -s] for s in range(12)],
    "terminal": [s in (8, 10) for s in range(12)],
    "starts": [0, 9, 11],
}
# Every episode has two steps; both actions matter.
FORK = {
    "next_state": [[1, 2], [3, 3], [3, 3], [3, 3]],
    "reward": [[1.0, -1.0], [0.5, 3.0], [-2.0, 4.0], [0.0, 0.0]],
    "terminal": [False, False, False, True],
    "starts": [0],
}
gymnax.register("Ends-probe", lambda: Probe(**ENDS))
gymnax.register("EvenFork-probe", lambda: Probe(**FORK))
PLAIN = {"norm_adv": False, "ent_coef": 0.0, "max_grad_norm": 1e9}


def gradients(algorithm, state):
    """Of the loss, for the actor and for the critic, in the first update: ten times the first
    moments of Adam."""
    states = jax.jit(algorithm.update)(state, jnp.int32(0))[0].opt_state.inner_states
    moments = optax.tree_utils.tree_get(states["actor"], "mu")[0]
    of_critic = optax.tree_utils.tree_get(states["critic"], "mu")[1]
    return jax.tree.map(lambda x: 10 * x, (moments, of_critic))


@pytest.mark.parametrize("terminated", [False, True])
def test_td_error_by_hand(terminated):
    error = td_error(1.0, 3.0, 8.0, jnp.array(terminated), 0.5)
    np.testing.assert_allclose(error, 3 + 0.5 * 8 * (not terminated) - 1)


def test_gradient_is_semi_gradient():
    arguments = jnp.array([1.0, 3.0, 8.0])  # Q(s, a), r, Q(s', a')
    gradient = jax.grad(lambda x: td_error(x[0], x[1], x[2], False, 0.5))(arguments)
    np.testing.assert_array_equal(gradient, [-1, 0, 0])


def test_losses_by_hand():
    assert policy_loss(-1.5, 2.0) == 3.0
    assert jax.grad(policy_loss)(-1.5, 2.0) == -2.0
    assert value_loss(1.0, 4.0) == 4.5
    assert jax.grad(value_loss)(1.0, 4.0) == -3.0


def test_the_critic_follows_the_semi_gradient_of_sarsa_whatever_ends_an_episode():
    """Q = x_s + y_a + z, and a policy that is certain: the gradient is the mean of
    -δ (e_s, e_a, 1), with δ from tables, without what comes after a reset."""
    with jax.enable_x64(True):
        config = Config(
            env_id="Ends-probe", num_envs=9, num_steps=16, gamma=0.5, hidden_sizes=(), **PLAIN
        )
        algorithm = make(config)
        generator = np.random.default_rng(0)
        best = generator.integers(2, size=12)
        state = jax.jit(algorithm.init)(jax.random.key(0))
        x, y, z = generator.normal(size=12), generator.normal(size=2), 0.3
        actor = [(jnp.asarray(100.0 * np.eye(2)[best]), jnp.zeros(2))]
        critic = [(jnp.asarray(np.append(x, y)[:, None]), jnp.array([z]))]
        state = state._replace(params=state.params._replace(actor=actor), critic_params=critic)
        _, ((weights, bias),) = gradients(algorithm, state)

        env = make_env("Ends-probe", 9)
        play = lambda obs, key: jnp.asarray(best)[obs]
        key = jax.random.split(jax.random.fold_in(state.key, 0))[0]  # so that resets are the same
        _, steps, _ = rollout(env, play, state.env, key, 16)
        steps = jax.tree.map(np.asarray, steps)
    expected, kinds = np.zeros(15), set()
    for n in range(9):
        s, time = int(steps.obs[0, n]), 0
        for t in range(16):
            assert s == steps.obs[t, n]
            after, reward, time = ENDS["next_state"][s][0], ENDS["reward"][s][best[s]], time + 1
            terminated, truncated = ENDS["terminal"][after], time == 8
            value, next_value = x[s] + y[best[s]] + z, x[after] + y[best[after]] + z
            error = reward + 0.5 * (not terminated) * next_value - value
            expected -= error * np.concatenate([np.eye(12)[s], np.eye(2)[best[s]], [1.0]])
            kinds.add((terminated, truncated))
            s = after
            if terminated or truncated:
                s, time = int(steps.obs[min(t + 1, 15), n]), 0
    assert len(kinds) == 4
    np.testing.assert_allclose(np.append(weights, bias), expected / (9 * 16), rtol=1e-9)


def policy(actor):
    """π [S, A] of a network with one hidden layer, for one-hot states."""
    (w1, b1), (w2, b2) = actor
    return jax.nn.softmax(jnp.tanh(w1 + b1) @ w2 + b2)


def q_values(actor):
    """Q [S, A] of FORK at γ = 1."""
    reward = jnp.asarray(FORK["reward"])
    return reward.at[0].add(jnp.sum(policy(actor) * reward, axis=1)[jnp.array([1, 2])])


def objective(actor):
    return policy(actor)[0] @ q_values(actor)[0]


def table(q):
    """A critic with one hidden unit for each state and action: relu(1(s) + 1(a) - 1)."""
    S, A = q.shape
    states, actions = np.repeat(np.eye(S), A, axis=1), np.tile(np.eye(A), S)
    first = jnp.asarray(np.vstack([states, actions])), -jnp.ones(S * A)
    return [first, (jnp.asarray(q).reshape(-1, 1), jnp.zeros(1))]


def policy_gradients(config, actor, critic, num_seeds):
    """The actor's gradient ascent direction in as many first updates, [S, ...]."""
    algorithm = make(config)

    def one(key):
        state = jax.jit(algorithm.init)(key)
        state = state._replace(params=state.params._replace(actor=actor), critic_params=critic)
        return jax.tree.map(jnp.negative, gradients(algorithm, state)[0])

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(keys(*range(num_seeds))))


def test_policy_gradient_has_the_mean_of_the_exact_one_when_q_is_exact():
    """Over the two steps of an episode: ∇J / 2; of 20,000 updates."""
    with jax.enable_x64(True):
        generator = np.random.default_rng(1)
        draw = lambda *shape: jnp.asarray(generator.normal(size=shape))
        actor = [(draw(4, 8), draw(8)), (draw(8, 2), draw(2))]
        fields = {"env_id": "EvenFork-probe", "num_envs": 1, "num_steps": 2, "gamma": 1.0}
        config = Config(**fields, hidden_sizes=(8,), **PLAIN)
        samples = policy_gradients(config, actor, table(q_values(actor)), 20_000)
        check_mean(samples, jax.tree.map(lambda x: np.asarray(x) / 2, jax.grad(objective)(actor)))


def test_continuous_actions_follow_the_slope_of_q():
    """Q = 3 a for any state: ∂E[Q]/∂m = 3 and ∂E[Q]/∂ln σ = 0, over two states in turn."""
    with jax.enable_x64(True):
        actor = [(jnp.array([[0.2], [0.9], [0.0]]), jnp.zeros(1))], jnp.log(jnp.array([0.5]))
        critic = [(jnp.array([[0.0], [0.0], [0.0], [3.0]]), jnp.zeros(1))]
        fields = {"env_id": "Slope-probe", "num_envs": 1, "num_steps": 2, "gamma": 1.0}
        config = Config(**fields, hidden_sizes=(), **PLAIN)
        samples = policy_gradients(config, actor, critic, 20_000)
        check_mean(samples, ([(np.array([[1.5], [1.5], [0.0]]), np.array([3.0]))], np.zeros(1)))


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_actor_and_critic_have_learning_rates_of_their_own(env_id):
    """Adam's first step moves each weight by the learning rate."""
    algorithm = make(Config(env_id=env_id, learning_rate=1e-3, critic_learning_rate=1e-2))
    before = jax.jit(algorithm.init)(jax.random.key(0))
    after, _ = jax.jit(algorithm.update)(before, jnp.int32(0))
    moved = lambda x, y: max(float(jnp.abs(a - b).max()) for a, b in pairs(x, y))
    np.testing.assert_allclose(moved(before.params, after.params), 1e-3, rtol=0.05)
    np.testing.assert_allclose(moved(before.critic_params, after.critic_params), 1e-2, rtol=0.05)


def values_of(config, state, obs):
    """Q(s, a) of the action that the policy prefers."""
    actions = jax.vmap(make(config).act, (None, 0, None))(state.params, obs, jax.random.key(0))
    q = make_q_network(make_env(config.env_id, 1), config.hidden_sizes)
    return q.apply(state.critic_params, obs, actions)


@pytest.mark.parametrize("name", ["Together-probe", "ResetTrap-probe"])
def test_it_learns_the_values_and_best_actions_of_the_probes(name):
    fields = {"total_timesteps": 100_000, "num_steps": 16, "max_grad_norm": 100.0}
    fields |= {"learning_rate": 5e-3, "critic_learning_rate": 1e-2, "hidden_sizes": (32,)}
    check_actor_critic_probe(q_actor_critic, name, values_of, **fields)
