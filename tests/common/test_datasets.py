"""datasets.py: episodes that a policy plays, mixtures with random actions, and files."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import keys, run_here

from algorithms import apprenticeship_learning, maximum_entropy_irl
from common.datasets import (
    discounted_visits,
    first_episodes,
    noisy_policy,
    play_dataset,
    read_dataset,
    unscale_action,
)
from common.environments.experts import make_expert
from common.environments.mdp import sparse
from common.environments.tabular import make_mdp
from common.envs import Transition, make_env, map_actions, scale_action
from common.runner import checkpoint


def numbered(terminated, truncated):
    """A rollout whose observation and action are the number of the step, 10 t + n."""
    terminated, truncated = jnp.array(terminated, bool), jnp.array(truncated, bool)
    number = 10 * jnp.arange(len(terminated))[:, None] + jnp.arange(terminated.shape[1])
    reward = number.astype(float)
    return Transition(number, number, reward, number + 10, terminated, truncated)


def test_first_episodes_end_with_the_step_that_ended_them():
    """Three environments: one terminates, one is cut off, one has an end of each kind later."""
    terminated = [[0, 0, 0], [1, 0, 0], [0, 0, 0], [1, 0, 1]]
    truncated = [[0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1]]
    data = first_episodes(numbered(terminated, truncated))
    rows = [0, 10, 1, 11, 21, 2, 12, 22, 32]
    assert int(data.size) == len(rows)
    np.testing.assert_array_equal(data.transitions.obs[: len(rows)], rows)
    np.testing.assert_array_equal(data.transitions.terminated[: len(rows)].nonzero()[0], [1, 8])
    np.testing.assert_array_equal(data.transitions.truncated[: len(rows)].nonzero()[0], [4, 8])
    assert len(data.transitions.obs) == 12


def test_visits_are_discounted_from_the_start_of_each_episode():
    """s0 s1 s0 and an end in s2; s1 s1, cut in s0."""
    steps = Transition(
        obs=jnp.array([0, 1, 0, 1, 1]),
        action=jnp.zeros(5, int),
        reward=jnp.array([1.0, 2.0, 4.0, 8.0, 16.0]),
        next_obs=jnp.array([1, 0, 2, 1, 0]),
        terminated=jnp.array([0, 0, 1, 0, 0], bool),
        truncated=jnp.array([0, 0, 0, 0, 1], bool),
    )
    visits, value = discounted_visits(steps, 4, 0.5)
    np.testing.assert_allclose(visits, np.array([1.25, 0.5 + 1.5, 0.125, 0]) / 2, rtol=1e-6)
    np.testing.assert_allclose(value, (1 + 1 + 1 + 8 + 8) / 2, rtol=1e-6)


@pytest.mark.parametrize("module", [apprenticeship_learning, maximum_entropy_irl])
def test_the_expert_of_inverse_reinforcement_learning_may_be_a_file(module, tmp_path):
    """400 episodes that an optimal policy plays, whose visits and value are known."""
    name, gamma, path = "FrozenLake-tabular", 0.9, tmp_path / "x.npz"
    env = make_env(name, 400)
    played = play_dataset(env, make_expert(name, env)).init(jax.random.key(0))
    fields = {k: x[: played.size] for k, x in played.transitions._asdict().items()}
    checkpoint.save(path, fields, {"env_id": name})

    mdp = sparse(make_mdp(name))
    policy = apprenticeship_learning.optimal_policy(mdp, mdp.R, gamma, 1_000)
    visits = apprenticeship_learning.state_visits(mdp, policy, gamma, 1_000)
    algorithm = module.make(module.Config(env_id=name, dataset=str(path), gamma=gamma))
    state = algorithm.init(jax.random.key(0))
    np.testing.assert_allclose(state.expert_visits, visits, atol=0.15)
    np.testing.assert_allclose(state.expert_value, jnp.sum(visits[:, None] * policy * mdp.R), 0.2)

    with pytest.raises(ValueError, match="Macrocells-tabular is another MDP in each seed"):
        module.make(module.Config(dataset=str(path)))
    with pytest.raises(ValueError, match="num_episodes"):
        module.Config(env_id=name, dataset=str(path), num_episodes=3)
    checkpoint.save(path, fields | {"next_obs": fields["next_obs"].at[5].set(99)}, {"env_id": name})
    with pytest.raises(ValueError, match="states up to 99, not 15"):
        module.make(module.Config(env_id=name, dataset=str(path)))


def test_episodes_that_end_early_are_drawn_and_nothing_else():
    """CartPole falls within some steps of one action: of 3 x 500 rows few are valid, and each of
    them is drawn as often as the others."""
    env = make_env("CartPole-v1", 3)
    dataset = play_dataset(env, lambda obs, key: jnp.zeros(len(obs), int))
    state = jax.jit(dataset.init)(jax.random.key(0))
    data = dataset.data(state)
    size = int(data.size)
    assert 24 <= size <= 33
    assert int(data.transitions.terminated[:size].sum()) == 3
    drawn = dataset.sample(state, jax.random.key(1), 20_000).obs[:, 0]
    values, counts = np.unique(drawn, return_counts=True)
    assert set(values) <= set(np.asarray(data.transitions.obs[:size, 0]))
    assert counts.min() > 0.7 * 20_000 / size


def test_noise_is_as_frequent_as_it_says_and_drawn_for_each_environment():
    env = map_actions(make_env("Pendulum-v1", 4), scale_action)
    epsilon = jnp.array([0.0, 0.3, 0.3, 1.0])
    noisy = noisy_policy(env, lambda obs, key: jnp.full((4, 1), 7.0), epsilon)
    actions = jax.vmap(noisy, (None, 0))(jnp.zeros((4, 3)), keys(*range(2_000)))[..., 0]
    is_random = np.asarray(actions != 7)
    np.testing.assert_allclose(is_random.mean(0), epsilon, atol=0.03)
    assert is_random[:, 1:3].all(1).mean() == pytest.approx(0.3**2, abs=0.03)
    assert np.abs(actions[is_random]).max() <= 1
    np.testing.assert_allclose(actions[:, 3].std(), 3**-0.5, rtol=0.05)


def test_unscaling_undoes_scaling():
    env = make_env("Pendulum-v1", 2)
    action = jnp.array([[-1.0], [0.3]])
    np.testing.assert_allclose(unscale_action(env, scale_action(env, action)), action, rtol=1e-6)
    np.testing.assert_allclose(unscale_action(env, jnp.array([[2.0], [0.0]])), [[1], [0]])
    discrete = make_env("CartPole-v1", 2)
    np.testing.assert_array_equal(unscale_action(discrete, jnp.array([1, 0])), [1, 0])


PENDULUM = {
    "obs": np.arange(12, dtype=np.float32).reshape(4, 3),
    "action": np.array([[-2.0], [0.0], [1.0], [2.0]], np.float32),
    "reward": np.array([1.0, 2.0, 3.0, 4.0], np.float32),
    "next_obs": np.arange(12, dtype=np.float32).reshape(4, 3) + 3,
    "terminated": np.array([False, False, False, True]),
    "truncated": np.array([False, True, False, False]),
    "episode": np.array([0, 0, 1, 1]),
}


@pytest.fixture
def pendulum():
    return map_actions(make_env("Pendulum-v1", 2), scale_action)


def write(path, env_id="Pendulum-v1", **arrays):
    checkpoint.save(path, {**PENDULUM, **arrays}, {"env_id": env_id})
    return str(path)


def test_a_file_is_read_as_it_was_written_with_actions_of_the_unit_box(tmp_path, pendulum):
    dataset = read_dataset(write(tmp_path / "x.npz"), "Pendulum-v1", pendulum)
    state = dataset.init(jax.random.key(0))
    assert jax.tree.leaves(state) == []  # all seeds share the file
    data = dataset.data(state)
    assert data.size == 4
    for name in ("obs", "reward", "next_obs", "terminated", "truncated"):
        np.testing.assert_array_equal(getattr(data.transitions, name), PENDULUM[name])
    np.testing.assert_array_equal(data.transitions.action, [[-1], [0], [0.5], [1]])
    drawn = dataset.sample(state, jax.random.key(0), 100)
    np.testing.assert_array_equal(drawn.next_obs, drawn.obs + 3)
    assert len(np.unique(drawn.reward)) == 4


EMPTY = {name: x[:0] for name, x in PENDULUM.items()}
BAD_FILES = {
    "of another environment": ({"env_id": "CartPole-v1"}, "is of CartPole-v1"),
    "without a step": (EMPTY, "holds no transitions"),
    "with other observations": ({"obs": np.zeros((4, 2), np.float32)}, "each obs has shape [2]"),
    "with other actions": ({"action": np.zeros((4, 2), np.float32)}, "each action has shape [2]"),
    "with discrete actions": ({"action": np.zeros((4, 1), int)}, "actions of another kind"),
}


@pytest.mark.parametrize("fault", list(BAD_FILES))
def test_a_file_that_does_not_fit_is_refused_in_one_line(tmp_path, pendulum, fault):
    change, message = BAD_FILES[fault]
    path = write(tmp_path / "x.npz", **change)
    with pytest.raises(ValueError, match=r"--dataset .*x\.npz") as error:
        read_dataset(path, "Pendulum-v1", pendulum)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_damaged_file_is_refused_wherever_the_damage_is(tmp_path, pendulum):
    """One flipped bit, at 60 places; a cut file; no file; no archive."""
    path = tmp_path / "x.npz"
    write(path)
    whole = path.read_bytes()
    reference = read_dataset(str(path), "Pendulum-v1", pendulum).data(())
    refused = 0
    for place in np.linspace(0, len(whole) - 1, 60).astype(int):
        damaged = bytearray(whole)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        try:  # some bits of an archive mean nothing
            same = read_dataset(str(path), "Pendulum-v1", pendulum).data(())
            jax.tree.map(np.testing.assert_array_equal, same, reference)
        except ValueError as error:
            refused += "--dataset" in str(error)
    assert refused > 40
    for content in (whole[: len(whole) // 2], b"", b"no archive"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="x.npz is damaged and cannot be read"):
            read_dataset(str(path), "Pendulum-v1", pendulum)
    with pytest.raises(ValueError, match="none.npz does not exist"):
        read_dataset(str(tmp_path / "none.npz"), "Pendulum-v1", pendulum)


def test_bad_data_end_a_command_with_code_2(tmp_path):
    path = write(tmp_path / "x.npz")
    done = run_here("algorithms.behaviour_cloning", "--dataset", path, check=2)
    assert done.stderr.count("\n") == 1 and "is of Pendulum-v1: choose that" in done.stderr
    done = run_here("algorithms.behaviour_cloning", "--env-id", "Acrobot-v1", check=2)
    assert done.stderr.count("\n") == 1 and "needs --expert or --dataset" in done.stderr


MAKE_MINARI_DATASET = """
import gymnasium, minari

env = minari.DataCollector(gymnasium.make("Pendulum-v1"))
for seed in range(2):
    env.action_space.seed(seed)
    env.reset(seed=seed)
    while not env.step(env.action_space.sample())[3]:
        pass
env.create_dataset("pendulum/random-v0", eval_env="Pendulum-v1", algorithm_name="random")
"""


def test_a_minari_dataset_is_read(tmp_path, pendulum, monkeypatch):
    """One made by random actions in gymnasium's pendulum, whose limit truncates."""
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    make = [sys.executable, "-W", "ignore", "-c", MAKE_MINARI_DATASET]
    subprocess.run(make, check=True, timeout=120, capture_output=True)
    data = read_dataset("pendulum/random-v0", "Pendulum-v1", pendulum).data(())
    steps = data.transitions
    assert data.size == 400 and np.abs(steps.action).max() <= 1
    np.testing.assert_array_equal(np.flatnonzero(steps.truncated), [199, 399])
    np.testing.assert_array_equal(steps.obs[1:200], steps.next_obs[:199])
    np.testing.assert_allclose(jnp.hypot(steps.obs[:, 0], steps.obs[:, 1]), 1, rtol=1e-5)
    with pytest.raises(ValueError, match="neither a file nor a Minari dataset on this machine"):
        read_dataset("pendulum/none-v0", "Pendulum-v1", pendulum)
