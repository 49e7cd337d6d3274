"""ppo_rnn.py: one update against its equations worked out step by step, whose episodes end in every
way; which memories and which parts of a rollout its minibatches see; and what it learns."""

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import check_actor_critic_probe, check_always_cut, check_gradient
from probes import ALL_PROBES

from algorithms import ppo, ppo_rnn
from algorithms.ppo_rnn import Config, make
from common.environments.batching import batch_env
from common.envs import make_env

GAMMA, LAMBDA, CLIP = 0.9, 0.8, 0.2
T, N, H = 7, 4, 5


def random_env(env_id, num_envs):
    """Observations and rewards are noise, steps end in every way, and `next_obs` is far from what a
    reset shows."""

    def reset(key):
        return jax.random.normal(key, (3,)), jnp.zeros(())

    def step(key, inner, action):
        keys = jax.random.split(key, 4)
        obs, next_obs = jax.random.normal(keys[0], (2, 3))
        reward = jax.random.normal(keys[1])
        terminated, truncated = jax.random.bernoulli(keys[2], 0.25, (2,))
        return obs, inner, reward, terminated, truncated, next_obs + 2

    return batch_env(reset, step, num_envs, obs_shape=(3,), num_actions=3)


class FirstUpdate(NamedTuple):
    before: Any  # State, with memories that are not 0
    after: Any
    metrics: dict
    transitions: Any  # [T, N, ...]
    batch: Any  # [T, N, ...]
    unrolled: list  # memory [B, H], obs [T, B, ...] and done [T, B] of each minibatch


def first_update(monkeypatch, **fields):
    """Update 0, and what passed through it."""
    seen = {"unrolled": []}
    rollout, recurrent, batch = ppo_rnn.rollout_with_memory, ppo_rnn.recurrent, ppo_rnn.Batch

    def spy_rollout(*args):
        result = rollout(*args)
        jax.debug.callback(lambda x: seen.update(transitions=x), result[1])
        return result

    def spy_batch(**arrays):
        jax.debug.callback(lambda x: seen.update(batch=batch(**x)), arrays)
        return batch(**arrays)

    def spy_recurrent(*args):
        network = recurrent(*args)

        def unroll(params, *inputs):
            jax.debug.callback(lambda *x: seen["unrolled"].append(x), *inputs, ordered=True)
            return network.unroll(params, *inputs)

        return network._replace(unroll=unroll)

    monkeypatch.setattr(ppo_rnn, "make_env", random_env)
    monkeypatch.setattr(ppo_rnn, "rollout_with_memory", spy_rollout)
    monkeypatch.setattr(ppo_rnn, "Batch", spy_batch)
    monkeypatch.setattr(ppo_rnn, "recurrent", spy_recurrent)
    defaults = {
        "total_timesteps": 10 * T * N,
        "num_envs": N,
        "num_steps": T,
        "update_epochs": 1,
        "num_minibatches": 1,
        "gamma": GAMMA,
        "gae_lambda": LAMBDA,
        "clip_coef": CLIP,
        "norm_obs": False,
        "norm_reward": False,
        "max_grad_norm": 1e9,
        "hidden_sizes": (4,),
        "memory_size": H,
        "memory_steps": 3,
    }
    algorithm = make(Config(**defaults | fields))
    before = jax.jit(algorithm.init)(jax.random.key(0))
    memory = jax.random.normal(jax.random.key(1), before.memory.shape)
    actor = jax.tree.map(
        lambda x: x + 0.1 * jnp.sin(jnp.arange(x.size)).reshape(x.shape), before.params.actor
    )  # no bias is 0, and no policy uniform
    before = before._replace(memory=memory, params=before.params._replace(actor=actor))
    after, metrics = jax.jit(algorithm.update)(before, jnp.int32(0))
    jax.effects_barrier()
    seen = jax.tree.map(np.asarray, seen)
    return FirstUpdate(before, after, metrics, **seen)


def gru_step(actor, memory, obs):
    """Memory [N, H] after observations [N, 3]: Cho et al. 2014, equations 5 to 8."""
    w, b, u = actor[1]
    (x_r, x_z, x_new), (u_r, u_z, u_new) = jnp.split(obs @ w + b, 3, -1), jnp.split(u, 3, -1)
    sigmoid = lambda x: 1 / (1 + jnp.exp(-x))
    r, z = sigmoid(x_r + memory @ u_r), sigmoid(x_z + memory @ u_z)
    return z * memory + (1 - z) * jnp.tanh(x_new + (r * memory) @ u_new)


def head(layers, memory):
    """A multi-layer perceptron with tanh."""
    for w, b in layers[:-1]:
        memory = jnp.tanh(memory @ w + b)
    return memory @ layers[-1][0] + layers[-1][1]


def played(actor, memory, obs, done):
    """The memories after each step, before any reset, and that after the last one and its reset."""
    memories = []
    for t in range(len(obs)):
        memories.append(gru_step(actor, memory, obs[t]))
        memory = jnp.where(done[t][:, None], 0.0, memories[t])
    return memories, memory


def test_the_equations_are_those_of_ppo():
    for name in ("td_error", "policy_loss", "value_loss", "approximate_kl", "is_clipped"):
        assert inspect.getsource(getattr(ppo_rnn, name)) == inspect.getsource(getattr(ppo, name))


def test_an_update_follows_its_equations_through_every_kind_of_end(monkeypatch):
    """From memories that are not 0: values and bootstraps, the latter with the memory from before a
    reset; advantages, targets and log-probabilities; the memory that is kept; and the gradient,
    which crosses all steps and no reset."""
    update = first_update(monkeypatch, ent_coef=0.01)
    before, rollout, batch = update.before, update.transitions, update.batch
    done = rollout.terminated | rollout.truncated
    ends = set(zip(rollout.terminated.ravel(), rollout.truncated.ravel(), strict=True))
    assert len(ends) == 4 and not done[:-1].any(0).all()  # and one rollout is not cut at all
    actor, critic = before.params.actor, before.critic_params

    @jax.jit
    def by_hand(actor, critic):
        memories, last = played(actor, before.memory, rollout.obs, done)
        after_next = [gru_step(actor, memories[t], rollout.next_obs[t]) for t in range(T)]
        log_probs = jax.nn.log_softmax(jnp.stack([head(actor[2], h) for h in memories]))
        value, next_value = (
            jnp.stack([head(critic, h)[:, 0] for h in x]) for x in (memories, after_next)
        )
        taken = jnp.take_along_axis(log_probs, rollout.action[..., None], -1)[..., 0]
        return last, value, next_value, log_probs, taken

    last, value, next_value, _, log_prob = map(np.asarray, by_hand(actor, critic))
    advantage = np.zeros((T + 1, N))
    for t in reversed(range(T)):
        error = rollout.reward[t] + GAMMA * ~rollout.terminated[t] * next_value[t] - value[t]
        advantage[t] = error + GAMMA * LAMBDA * ~done[t] * advantage[t + 1]
    advantage = advantage[:T]
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(batch.value, value, **close)
    np.testing.assert_allclose(batch.advantage, advantage, **close)
    np.testing.assert_allclose(batch.target, advantage + value, **close)
    np.testing.assert_allclose(batch.log_prob, log_prob, **close)
    np.testing.assert_allclose(update.after.memory, last, **close)
    assert not update.after.memory[done[-1]].any() and update.after.memory[~done[-1]].all()
    assert abs(update.metrics["approx_kl"]) < 1e-7  # the policy step by step, and unrolled

    @jax.jit
    def loss(params):  # at θ_old nothing is clipped, and the gradient of ρ is that of ln π
        _, new_value, _, log_probs, taken = by_hand(*params)
        normal = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        error = new_value - advantage - value
        entropy = -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)
        return jnp.mean(-taken * normal + 0.5 * 0.5 * error**2 - 0.01 * entropy)

    check_gradient(update.after.opt_state, loss, (actor, critic))


def test_every_minibatch_holds_whole_rollouts_that_begin_with_their_own_memories(monkeypatch):
    """In every epoch, each environment once; the memories are those from before the rollout, though
    the GRU has changed since."""
    update = first_update(monkeypatch, update_epochs=3, num_minibatches=2, learning_rate=0.1)
    rollout, unrolled = update.transitions, update.unrolled
    assert len(unrolled) == 6
    orders = []
    for memory, obs, done in unrolled:
        assert memory.shape == (N // 2, H) and obs.shape == (T, N // 2, 3)
        index = [int(np.flatnonzero((update.before.memory == h).all(-1))[0]) for h in memory]
        np.testing.assert_array_equal(obs, rollout.obs[:, index])
        ends = rollout.terminated | rollout.truncated
        np.testing.assert_array_equal(done, ends[:, index])
        orders += index
    epochs = np.reshape(orders, (3, N))
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(N), (3, 1)))
    assert len(np.unique(epochs, axis=0)) > 1
    assert update.metrics["approx_kl"] > 1e-3


def test_one_environment_is_a_minibatch_but_one_step_is_not():
    algorithm = make(Config(num_envs=1, num_minibatches=1, num_steps=2, total_timesteps=4))
    state, metrics = jax.jit(algorithm.update)(algorithm.init(jax.random.key(0)), 0)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state.params, metrics["value_loss"])))
    with pytest.raises(ValueError, match="num_envs \\* num_steps >= 2 \\* num_minibatches"):
        Config(num_envs=1, num_minibatches=1, num_steps=1)
    Config(num_envs=1, num_minibatches=1, num_steps=1, norm_adv=False)
    with pytest.raises(ValueError, match="num_envs % num_minibatches == 0"):
        Config(num_envs=6, num_minibatches=4)


def test_networks_start_as_the_details_say():
    algorithm = make(Config(env_id="Pendulum-v1-positions", init_std=0.5, hidden_sizes=(64,)))
    state = jax.jit(algorithm.init)(jax.random.key(0))
    _, _, (layers, log_std) = state.params.actor
    for net, last in ((layers, 0.01), (state.critic_params, 1.0)):
        for (w, b), gain in zip(net, (2**0.5, last), strict=True):
            np.testing.assert_allclose(np.linalg.svd(w, compute_uv=False), gain, rtol=1e-4)
            assert not b.any()
    np.testing.assert_allclose(np.exp(log_std), [0.5], rtol=1e-6)
    assert not state.memory.any()


def test_without_memory_the_memory_chain_is_worth_0():
    """Its last observation is the same for both contexts, so whatever is done there wins one and
    loses the other."""
    env = make_env("MemoryChain10-bsuite", 16)
    state = env.reset(jax.random.key(0))
    context = np.asarray(state.obs[:, 2])
    assert set(context) == {-1, 1}
    for action in (0, 1):
        last = state
        for _ in range(11):
            obs = last.obs
            last, transition = env.step(last, jnp.full(16, action), jax.random.key(1))
        assert transition.terminated.all() and len(np.unique(obs, axis=0)) == 1
        np.testing.assert_array_equal(transition.reward, context * (2 * action - 1))


PROBE = {
    "total_timesteps": 30_000,
    "num_steps": 32,
    "learning_rate": 5e-3,
    "clip_vloss": False,
    "norm_obs": False,
    "norm_reward": False,
    "memory_size": 16,
    "memory_steps": 2,
    "hidden_sizes": (),
}


def values_along_the_way(config, state, obs):
    """V of each state when it is first reached from a start, [S], without the file's networks."""
    next_state, _, terminal, starts = ALL_PROBES[config.env_id][0]
    actor, critic = state.params.actor, state.critic_params
    learned = np.full(len(terminal), np.nan)
    for s in starts:
        memory = jnp.zeros(config.memory_size)
        while not terminal[s] and np.isnan(learned[s]):
            memory = gru_step(actor, memory, jax.nn.one_hot(s, len(terminal)))
            learned[s] = head(critic, memory)[0]
            s = next_state[s][0]
    return learned


@pytest.mark.parametrize(
    "name", [pytest.param("Together-probe", marks=pytest.mark.slow), "ResetTrap-probe"]
)
def test_it_learns_the_values_and_best_actions_of_the_probes(name):
    check_actor_critic_probe(ppo_rnn, name, values_along_the_way, **PROBE)


def test_a_time_limit_at_any_step_is_no_end(monkeypatch):
    """Half of all steps are cut, each of reward 1, and the value is still 1 / (1 - γ). (Were every
    step cut, no second step would ever be learned, from whose memory the first one bootstraps.)"""

    def half_cut_env(env_id, num_envs):
        def step(key, inner, action):
            obs, is_cut = jnp.ones(1), jax.random.bernoulli(key)
            return obs, inner, jnp.ones(()), jnp.zeros((), bool), is_cut, obs

        reset = lambda key: (jnp.ones(1), jnp.zeros(()))
        return batch_env(reset, step, num_envs, obs_shape=(1,), num_actions=2)

    monkeypatch.setattr(ppo_rnn, "make_env", half_cut_env)
    check_always_cut(ppo_rnn, **PROBE)
