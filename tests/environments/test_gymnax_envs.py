"""common/environments/gymnax_envs.py: what algorithms see of environments that users register, and
what they cannot use; users' own modules."""

import sys

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from gymnax.environments import environment, spaces
from helpers import load, run, small_config, trained

from common.environments.gymnax_envs import TIMED, load_module, make_cached
from common.envs import bound_action, make_env, map_actions, rollout, scale_action
from common.exploration import random_policy
from common.networks import make_network


@struct.dataclass
class State(environment.EnvState):
    x: jax.Array


@struct.dataclass
class Params(environment.EnvParams):
    max_steps_in_episode: int = 10


class Seen(environment.Environment[State, Params]):
    """Four whole numbers from 0 to 9; the reward is the mean of the action."""

    def __init__(self, see=lambda x: x.astype(float), obs_space=None, action_space=None):
        self.see = see
        self.obs_space = obs_space or spaces.Box(0.0, 9.0, (4,))
        self.actions = action_space or spaces.Discrete(2)

    @property
    def default_params(self):
        return Params()

    def reset_env(self, key, params):
        state = State(time=jnp.int32(0), x=jax.random.randint(key, (4,), 0, 10))
        return self.see(state.x), state

    def step_env(self, key, state, action, params):
        assert action.shape == self.actions.shape
        obs, start = self.reset_env(key, params)
        state = start.replace(time=state.time + 1)
        return obs, state, jnp.mean(action, dtype=float), jnp.bool_(False), {}

    def action_space(self, params):
        return self.actions

    def observation_space(self, params):
        return self.obs_space


@pytest.fixture
def register():
    """Registers a Seen under a new id, and returns that."""

    def register(**kwargs):
        env_id = f"Seen{len(gymnax.registered_envs)}-seen"
        gymnax.register(env_id, lambda: Seen(**kwargs))
        return env_id

    return register


def played(env, num_steps=30):
    """Random steps; actions are within the bounds."""
    policy = random_policy(env)
    roll = lambda key: rollout(env, policy, env.reset(key), key, num_steps)[1]
    return jax.tree.map(np.asarray, jax.jit(roll)(jax.random.key(0)))


BIG = np.iinfo(np.int32)


@pytest.mark.parametrize(
    "low, high, dtype, expected",
    [
        (0, 9, jnp.int32, np.arange(10) / 9),
        (0, 255, jnp.uint8, np.arange(10) / 255),
        (-1, 9, jnp.int32, (np.arange(10) + 1) / 10),
        (np.zeros(4, int), np.full(4, 18), jnp.int32, np.arange(10) / 18),
        (0, 0, jnp.int32, np.arange(10)),
        (0, np.inf, jnp.int32, np.arange(10)),
        (-np.inf, np.inf, jnp.int32, np.arange(10)),
        (np.inf, np.inf, jnp.int32, np.arange(10)),
        (BIG.min, BIG.max, jnp.int32, np.arange(10)),
        (0, 2**32 - 1, jnp.uint32, np.arange(10)),
        (np.zeros(4, int), np.array([9, 9, 0, 9]), jnp.int32, np.arange(10)),
    ],
)
def test_integers_are_scaled_by_bounds_that_allow_it(register, low, high, dtype, expected):
    """Each of 10 numbers is still another one, by hand."""
    space = spaces.Box(low, high, (4,), dtype)
    env = make_env(register(see=lambda x: x.astype(dtype), obs_space=space), 8)
    steps = played(env)
    assert steps.obs.dtype == steps.next_obs.dtype == np.float32
    np.testing.assert_allclose(np.unique(steps.obs), np.unique(expected), rtol=1e-6)


@pytest.mark.parametrize("shape", [(), (1,), (2, 2), (2, 1, 3)])
def test_actions_have_one_axis_whatever_their_space(register, shape):
    low = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    env = make_env(register(action_space=spaces.Box(low, low + 2, shape)), 3, "continuous")
    assert env.action_shape == (low.size,)
    np.testing.assert_array_equal(env.action_low, low.ravel())
    steps = played(map_actions(env, scale_action))
    assert steps.action.shape == (30, 3, low.size)
    mean = np.mean(
        low + steps.action.reshape(30, 3, *shape) + 1, axis=tuple(range(2, 2 + low.ndim))
    )
    np.testing.assert_allclose(steps.reward, mean, rtol=1e-5)


@pytest.mark.parametrize("name", ["sac", "td3", "qt_opt", "mpc", "ppo"])
@pytest.mark.parametrize("shape", [(), (2, 2)])
def test_algorithms_take_actions_of_every_shape(register, name, shape):
    env_id = register(action_space=spaces.Box(-1.0, 1.0, shape))
    algorithm = load(name).make(small_config(load(name), env_id=env_id))
    jax.eval_shape(algorithm.update, jax.eval_shape(algorithm.init, jax.random.key(0)), 0)


@pytest.mark.parametrize(
    "low, high",
    [(-np.inf, np.inf), (0, np.inf), (1, 1), (np.zeros(2), np.arange(2)), (-3e38, 3e38)],
)
def test_squashed_policies_need_bounds_and_others_do_not(register, low, high):
    env_id = register(action_space=spaces.Box(low, high, (2,)))
    with pytest.raises(ValueError, match="needs finite bounds of actions, low < high"):
        make_env(env_id, 3, actions="continuous")
    env = map_actions(make_env(env_id, 3), bound_action)
    assert np.isfinite(played(env).reward).all()


def test_a_squashed_policy_refuses_in_one_line_and_a_gaussian_one_trains(register, tmp_path):
    (tmp_path / "endless.py").write_text(
        "import gymnax\nfrom gymnax.environments import spaces\n"
        "from test_gymnax_envs import Seen\n"
        'space = spaces.Box(-float("inf"), float("inf"), (1,))\n'
        'gymnax.register("Endless-v0", lambda: Seen(action_space=space))\n'
    )
    folders = [str(tmp_path), *filter(None, sys.path)]
    arguments = ["--import", "endless", "--env-id", "Endless-v0", "--out", tmp_path / "run"]
    env = {"PYTHONPATH": ":".join(folders)}
    done = run("algorithms.td3", *arguments, check=2, env=env)
    assert "Endless-v0: this algorithm needs finite bounds" in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "run").exists()
    ppo = load("ppo")
    space = spaces.Box(-np.inf, np.inf, (1,))
    algorithm = ppo.make(small_config(ppo, env_id=register(action_space=space)))
    params = trained(algorithm, [0], algorithm.num_updates).state.params
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))


@pytest.mark.parametrize("shape", [(2, 2, 1), (1, 1, 4), (1, 4, 1), (2, 2, 2), (3, 3, 1)])
def test_a_network_sees_images_of_every_size(register, shape):
    """Filters of 3x3 have no place in the smaller ones, which go into an MLP."""
    see = lambda x: jnp.resize(x.astype(float), shape)
    env_id = register(see=see, obs_space=spaces.Box(0.0, 9.0, shape))
    env = make_env(env_id, 8)
    network = make_network(env, (32,), 1)
    outputs = network.apply(network.init(jax.random.key(0)), played(env).obs)
    assert np.isfinite(outputs).all() and len(np.unique(outputs)) > 5


@pytest.mark.parametrize("bound", [np.zeros(3), np.zeros((2, 4))])
def test_bounds_of_another_shape_are_refused(register, bound):
    space = spaces.Box(bound, bound + 9, (4,))
    with pytest.raises(ValueError, match="the observation space fails with ValueError"):
        make_env(register(obs_space=space), 1)


@pytest.mark.parametrize("env_id", sorted(TIMED))
def test_where_observations_tell_the_time_the_limit_ends_the_task(env_id):
    """DiscountingChain pays at most 1.1 an episode; PPO's values grew to 20 and beyond, because
    each bootstrapped from an observation that no rollout begins with."""
    env = make_env(env_id, 2)
    policy = random_policy(env)
    key_reset, key = jax.random.split(jax.random.key(0))
    play = jax.jit(lambda state: rollout(env, policy, state, key, env.max_steps)[1])
    steps = play(env.reset(key_reset))
    assert steps.truncated.any()
    assert (steps.terminated >= steps.truncated).all()


def test_an_environment_that_raises_is_named_with_its_own_error(register):
    def see(x):
        raise KeyError("tile", "no\nsuch")

    with pytest.raises(ValueError, match=r"Seen\d+-seen: reset fails with KeyError") as error:
        make_env(register(see=see), 1)
    assert "\n" not in str(error.value)
    assert isinstance(error.value.__cause__.__cause__, KeyError)  # for the traceback


def test_it_is_looked_at_once_and_never_compiled(register, caplog):
    """Two calls are one instance, for which JAX compiles once."""
    calls = []

    def see(x):
        calls.append(x)
        return x.astype(float)

    def compiled():
        return [x for x in caplog.messages if "Finished XLA compilation" in x]

    make_env(register(), 2)  # JAX compiles its own random keys
    env_id = register(see=see)
    with jax.log_compiles():
        make_env(env_id, 2)
        assert calls and not compiled()
        num_calls = len(calls)
        env = make_env(env_id, 3)
        assert len(calls) == num_calls
        jax.jit(env.reset)(jax.random.key(0))
        assert compiled()  # the log says it
    assert make_cached(env_id, jnp.float32) is make_cached(env_id, jnp.float32)


def test_arrays_in_spaces_do_not_leak_from_a_trace():
    """`make` is called inside `vmap` over a hyperparameter."""
    space = lambda: spaces.Box(jnp.zeros(4) - 1, jnp.ones(4) * 9, (4,), jnp.int32)
    gymnax.register("Leak-seen", lambda: Seen(see=lambda x: x, obs_space=space()))
    jax.eval_shape(lambda x: x + make_env("Leak-seen", 2).num_envs, 1.0)
    assert played(make_env("Leak-seen", 2)).obs.max() <= 1


def test_a_file_is_loaded_once_whatever_the_folder(tmp_path, monkeypatch):
    file = tmp_path / "file_of_a_user.py"
    file.write_text("import gymnax\ngymnax.register('User-v0', dict)\n")
    monkeypatch.chdir(tmp_path)
    load_module(str(file))
    load_module("file_of_a_user.py")
    assert "User-v0" in gymnax.registered_envs
    assert sys.modules["file_of_a_user"].__file__ == str(file)
    load_module("file_of_a_user")  # by its name it is the same module


@pytest.mark.parametrize(
    "text, says",
    [
        ("no_such", "--import no_such: no such module; give its name"),
        ("no_such.part", "--import no_such.part: no such module; give its name"),
        ("json.no_such", "--import json.no_such: no such module; give its name"),
        ("needs.py", "--import needs.py fails with ModuleNotFoundError: No module named 'absent'"),
        ("needs", "--import needs fails with ModuleNotFoundError: No module named 'absent'"),
        ("wrong.py", "--import wrong.py fails with SyntaxError"),
        ("json.py", "there is another module named json; rename the file"),
        ("sub/none.py", "--import sub/none.py: there is no such file"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(text, says, tmp_path, monkeypatch):
    (tmp_path / "needs.py").write_text("import absent\n")
    (tmp_path / "wrong.py").write_text("def f(:\n")
    (tmp_path / "json.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError) as error:
        load_module(text)
    assert says in str(error.value) and "\n" not in str(error.value)
    assert "needs" not in sys.modules and "wrong" not in sys.modules


@pytest.mark.parametrize("size", [4, 12])
def test_deep_sea_has_the_size_of_its_id_and_hides_which_action_goes_right(size):
    """The one good episode takes the right action in every row: 1 for the treasure, minus .01 in
    all. Which action that is differs from cell to cell: none that is always taken arrives."""
    env = make_env(f"DeepSea{size}-bsuite", 3)
    step = jax.jit(env.step)
    assert env.obs_shape == (size, size) and env.max_steps == size
    raw, _ = gymnax.make("DeepSea-bsuite", size=size)
    state = env.reset(jax.random.key(0))
    rewards = np.zeros(3)
    for row in range(size):
        right = int(raw.action_mapping[row, row])
        state, transition = step(state, jnp.array([right, 0, 1]), jax.random.key(row))
        rewards += transition.reward
        assert bool(transition.terminated.all()) == (row == size - 1)
    assert rewards[0] == pytest.approx(0.99) and (rewards[1:] <= 0).all()
    assert 0 < np.mean(raw.action_mapping) < 1


@pytest.mark.parametrize(
    "env_id, steps", [("MemoryChain10-bsuite", 11), ("MemoryChain3000-bsuite", 3_001)]
)
def test_memory_chain_rewards_the_context_once_at_its_end(env_id, steps):
    env = make_env(env_id, 8)
    roll = lambda key: rollout(env, lambda obs, key: jnp.arange(8) % 2, env.reset(key), key, steps)
    _, t, metrics = jax.jit(roll)(jax.random.key(0))
    terminated = np.asarray(t.terminated)
    assert terminated[-1].all() and not terminated[:-1].any() and not t.truncated[:-1].any()
    context = np.asarray(t.obs[0, :, 2])
    np.testing.assert_array_equal(t.reward[-1], np.where((context > 0) == np.arange(8) % 2, 1, -1))
    assert not t.reward[:-1].any() and set(context) == {-1, 1}


def test_umbrella_chain_has_the_length_of_its_id():
    env = make_env("UmbrellaChain150-bsuite", 2)
    roll = lambda key: rollout(env, random_policy(env), env.reset(key), key, 150)
    terminated = np.asarray(jax.jit(roll)(jax.random.key(0))[1].terminated)
    assert terminated[-1].all() and not terminated[:-1].any()


@pytest.mark.parametrize("env_id", ["Catch10-bsuite", "DeepSea0-bsuite", "DeepSea-10-bsuite"])
def test_only_some_ids_have_a_size(env_id):
    with pytest.raises(ValueError, match="no environment"):
        make_env(env_id, 1)
