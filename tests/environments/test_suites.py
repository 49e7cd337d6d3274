"""common/environments/suites.py: what it makes of small suites written here, whose numbers are
known; and the suites themselves, where they are installed, against their own steps."""

import sys
from importlib.abc import MetaPathFinder
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.distributions import (
    entropy,
    kl_divergence,
    log_probability,
    make_policy,
    mode,
    sample,
)
from common.environments.suites import SUITES, append_mask, load, mask_of, planes
from common.envs import find_family, make_env, map_actions, rollout, scale_action
from common.exploration import random_policy
from common.networks import make_network
from common.tools.check_env import check

# --- small suites, with the functions and the fields that theirs have ----------------------------


class Timestep(NamedTuple):
    state: Any
    observation: jax.Array
    reward: jax.Array
    discount: jax.Array


class Corridor:
    """XLand-MiniGrid's: four cells in a row; from one of the first three, action 1 goes right."""

    def reset(self, params, key):
        return self.timestep(jax.random.randint(key, (), 0, 3), False)

    def step(self, params, timestep, action):
        x = timestep.state + action
        return self.timestep(x, x == 3)

    def timestep(self, x, is_goal):
        cells = jnp.stack([jnp.arange(4) == x, jnp.full(4, 255)], -1, dtype=jnp.uint8)
        goal = jnp.asarray(is_goal, jnp.float32)
        return Timestep(x, cells[None], goal, 1 - goal)

    def num_actions(self, params):
        return 2


class Count(NamedTuple):
    """PGX's, of a game: who reaches 4 wins; actions 0 and 1 add 1 and 2, action 2 is illegal."""

    total: jax.Array
    current_player: jax.Array
    rewards: jax.Array
    terminated: jax.Array
    legal_action_mask: jax.Array

    @property
    def observation(self):
        return self.total[None]


class CountGame:
    def __init__(self, num_players=2):
        self.num_players = num_players

    def init(self, key):
        player = jax.random.bernoulli(key).astype(jnp.int32)
        legal = jnp.array([True, True, False])
        return Count(jnp.int32(0), player, jnp.zeros(2), jnp.bool_(False), legal)

    def step(self, state, action, key):
        total = state.total + action + 1
        illegal, won = action == 2, total >= 4
        sign = jnp.where(illegal, -1.0, won)
        mine = jnp.where(jnp.arange(2) == state.current_player, sign, -sign)
        return state._replace(
            total=total,
            current_player=1 - state.current_player,
            rewards=mine,
            terminated=illegal | won,
        )


class Board(NamedTuple):
    board: jax.Array
    action_mask: jax.Array
    step_count: jax.Array


class MultiDiscreteArray(SimpleNamespace):
    pass


class Lock:
    """Jumanji's: two dials; (1, 2) opens the lock and ends the episode, and so do four steps."""

    def __init__(self, is_image=False, num_agents=None, choices=(2, 3), mask=(True, False)):
        self.time_limit, self.is_image, self.num_agents = 4, is_image, num_agents
        self.choices, self.mask = np.array(choices), np.array(mask)

    @property
    def observation_spec(self):
        board = SimpleNamespace(minimum=0, maximum=10)
        return SimpleNamespace(board=board, action_mask=SimpleNamespace())

    @property
    def action_spec(self):
        return MultiDiscreteArray(
            num_values=jnp.asarray(self.choices), shape=self.choices.shape, dtype=jnp.int32
        )

    def reset(self, key):
        return self.timestep(jnp.int32(0), jnp.zeros(2, jnp.int32), False)

    def step(self, time, action):
        opened = (action[0] == 1) & (action[1] == 2)
        return self.timestep(time + 1, action, opened | (time + 1 >= self.time_limit))

    def timestep(self, time, dials, last):
        cells = dials[None, :, None] / 10 if self.is_image else dials
        board = Board(cells, jnp.array(self.mask), time)
        reward = jnp.zeros(() if self.num_agents is None else self.num_agents)
        return time, SimpleNamespace(observation=board, reward=reward, last=lambda: last)


@pytest.fixture(autouse=True)
def fresh_cache():
    load.cache_clear()
    yield
    load.cache_clear()


@pytest.fixture
def install(monkeypatch):
    """Puts modules where imports find them: name -> what it holds."""

    def install(**modules):
        for name, content in modules.items():
            module = ModuleType(name.replace("__", "."))
            module.__dict__.update(content)
            monkeypatch.setitem(sys.modules, module.__name__, module)

    return install


@pytest.fixture
def corridor(install):
    """Installs the corridor with a time limit."""

    def corridor(limit):
        make = lambda name: (Corridor(), SimpleNamespace(max_steps=limit))
        names = {"registered_environments": lambda: ("MiniGrid-Corridor", "XLand-R1"), "make": make}
        sizes = {"NUM_TILES": 2, "NUM_COLORS": 3}
        install(xminigrid=names, xminigrid__core={}, xminigrid__core__constants=sizes)
        return "MiniGrid-Corridor-xminigrid"

    return corridor


@pytest.fixture
def jumanji(install):
    def jumanji(**kwargs):
        names = {
            "registered_environments": lambda: {"Lock-v0"},
            "make": lambda name: Lock(**kwargs),
        }
        install(jumanji=names, jumanji__specs={"MultiDiscreteArray": MultiDiscreteArray})
        return "Lock-v0-jumanji"

    return jumanji


def played(env, action, num_steps, seed=0):
    """Steps with one action, or of a policy."""
    policy = action if callable(action) else lambda obs, key: jnp.full(env.num_envs, action)
    roll = lambda key: rollout(env, policy, env.reset(key), key, num_steps)[1]
    return jax.tree.map(np.asarray, jax.jit(roll)(jax.random.key(seed)))


def cell(obs):
    """Where the agent is in the corridor."""
    return obs[..., 0, :, 1].argmax(-1)


# --- what the adaptor makes of them ---------------------------------------------------------------


def test_a_time_limit_truncates_and_the_last_observation_is_that_before_the_reset(corridor):
    steps = played(make_env(corridor(5), 3), 0, 60)
    assert not steps.terminated.any()
    assert (steps.truncated == (np.arange(60) % 5 == 4)[:, None]).all()
    assert (cell(steps.next_obs) == cell(steps.obs)).all()  # nobody moved
    assert set(cell(steps.obs)[::5].ravel()) == {0, 1, 2}  # fresh starts
    assert not steps.reward.any()


def test_a_goal_terminates_and_pays(corridor):
    steps = played(make_env(corridor(5), 3), 1, 60)
    at_goal = cell(steps.next_obs) == 3
    assert at_goal.any() and (steps.terminated == at_goal).all() and (steps.reward == at_goal).all()
    assert not steps.truncated.any() and (cell(steps.obs) < 3).all()
    assert (cell(steps.next_obs) == cell(steps.obs) + 1).all()


def test_both_flags_can_be_true_on_one_step(corridor):
    steps = played(make_env(corridor(1), 3), 1, 30)
    assert steps.truncated.all() and steps.terminated.any() and not steps.terminated.all()
    assert (steps.terminated == (cell(steps.obs) == 2)).all()


def test_episode_n_starts_from_key_n_however_many_starts_are_computed_at_once(corridor):
    """In each step both environments end: 400 episodes, several blocks of starts."""
    env, key = make_env(corridor(1), 2), jax.random.key(3)
    roll = lambda key: rollout(env, lambda obs, key: jnp.zeros(2, int), env.reset(key), key, 200)[1]
    starts = cell(np.asarray(jax.jit(roll)(key).obs)).ravel()
    direct = [jax.random.fold_in(key, n) for n in range(400)]
    direct = jnp.stack([jax.random.key_data(k) for k in direct])
    assert (starts == jax.vmap(lambda k: Corridor().reset(None, k).state)(direct)).all()


def test_symbols_are_planes(corridor):
    env = make_env(corridor(5), 3)
    assert env.obs_shape == (1, 4, 5) and env.num_actions == 2 and env.max_steps == 5
    steps = played(env, 0, 5)
    assert steps.obs.dtype == bool
    assert (steps.obs[..., :2].sum(-1) == 1).all() and not steps.obs[..., 2:].any()  # 255: none
    symbols = jnp.array([[[1, 0], [0, 2]]])
    assert planes(symbols, (2, 3)).astype(int).tolist() == [[[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]]


def test_the_checker_finds_nothing_in_a_suite(corridor):
    assert check(corridor(5)) == ([], [])


def test_a_game_is_seen_and_paid_as_the_learner_does(install):
    install(pgx={"available_envs": lambda: ("count",), "make": lambda name: CountGame()})
    env = make_env("count-pgx", 4)
    steps = played(env, lambda obs, key: jax.random.randint(key, (4,), 0, 2), 300)
    before, after = (x[..., 0].astype(int) for x in (steps.obs, steps.next_obs))
    moved = before + steps.action + 1
    won = moved >= 4
    lost = ~won & (after >= 4)
    assert won.any() and lost.any()
    assert (steps.reward == np.where(won, 1, np.where(lost, -1, 0))).all()
    assert (steps.terminated == won | lost).all() and not steps.truncated.any()
    replies = (after - moved)[~won]
    assert set(replies) == {1, 2} and abs(np.mean(replies == 1) - 0.5) < 0.1  # legal, and uniform
    starts = before[1:][steps.terminated[:-1]]
    assert set(starts) == {0, 1, 2} and abs(np.mean(starts == 0) - 0.5) < 0.1  # who begins


def test_an_illegal_move_loses(install):
    install(pgx={"available_envs": lambda: ("count",), "make": lambda name: CountGame()})
    steps = played(make_env("count-pgx", 4), 2, 10)
    assert steps.terminated.all() and (steps.reward == -1).all()


def test_choices_are_numbered_and_a_limit_is_told_from_an_end(jumanji):
    env = make_env(jumanji(), 2)
    assert env.num_actions == 6 and env.max_steps == 4 and env.obs_shape == (2 + 2,)
    opened, waited = played(env, 5, 9), played(env, 3, 9)
    assert opened.terminated.all() and not opened.truncated.any()
    assert not waited.terminated.any() and waited.truncated[3::4].all()
    assert waited.truncated.sum() == 2 * 2
    dials, mask = waited.next_obs[..., :2], waited.next_obs[..., 2:]
    assert (dials == np.float32([1 / 10, 0])).all() and (mask == [1, 0]).all()  # 3 is (1, 0)


def test_an_image_is_seen_without_the_mask(jumanji):
    env = make_env(jumanji(is_image=True), 2)
    assert env.obs_shape == (1, 2, 1)
    assert (played(env, 4, 3).next_obs.reshape(-1, 2) == np.float32([0.1, 0.1])).all()


# --- masks of legal actions -----------------------------------------------------------------------


@pytest.mark.parametrize("shape, num_actions", [((5,), 3), ((2, 3, 4), 5), ((2, 3, 1), 14)])
def test_a_mask_is_read_from_where_it_was_appended(shape, num_actions):
    """To a vector; to an image, as one plane or as several; beside what was there before."""
    rng = np.random.default_rng(0)
    obs, mask = rng.random((7, *shape)) < 0.5, rng.random((7, num_actions)) < 0.5
    seen = jax.vmap(append_mask)(obs, mask)
    assert seen.dtype == bool and (seen[..., : shape[-1]] == obs).all()
    assert (mask_of(seen.shape[1:], num_actions, seen[None]) == mask[None]).all()
    assert (jax.vmap(append_mask)(obs.astype(float), mask) == seen).all()


CHOICES = np.array([[True, False, True], [False, False, True]])  # of the lock's two dials


@pytest.mark.parametrize("is_image, history", [(False, ""), (True, ""), (False, "-history2")])
def test_policies_take_legal_actions_only(jumanji, is_image, history):
    """However the network's outputs are, and all that is computed from them is finite."""
    env_id = jumanji(is_image=is_image, mask=CHOICES) + history
    env = make_env(env_id, 4)
    legal = np.flatnonzero(CHOICES)
    policy = make_policy(env, make_network(env, (8,), activation=jnp.tanh), 1.0)
    params = jax.tree.map(lambda x: 30 * x, policy.init(jax.random.key(0)))
    steps = played(env, lambda obs, key: sample(key, policy.apply(params, obs)), 50)
    assert set(steps.action.ravel()) <= set(legal)

    def losses(params):
        new, old = (
            policy.apply(params, steps.obs),
            policy.apply(policy.init(jax.random.key(1)), steps.obs),
        )
        parts = log_probability(new, steps.action), entropy(new), kl_divergence(old, new)
        return sum(x.mean() for x in parts), (parts, new)

    gradients, (parts, new) = jax.grad(losses, has_aux=True)(params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((gradients, parts)))
    assert (np.asarray(entropy(new)) <= np.log(len(legal)) + 1e-6).all()
    assert set(np.asarray(mode(new)).ravel()) <= set(legal)


LEARNERS = "ppo a2c trpo acer mpo ppo_rnn r2d2 ngu agent57 dqn double_dqn dueling_dqn n_step_dqn"
LEARNERS += " prioritized_dqn noisy_dqn c51 rainbow online_q impala a3c v_mpo rnd"


@pytest.mark.parametrize("name", LEARNERS.split())
def test_whole_algorithms_take_legal_actions_only(name, install, monkeypatch):
    """At random first, while they learn, and when they are evaluated; and they stay finite."""
    install(pgx={"available_envs": lambda: ("count",), "make": lambda name: CountGame()})
    module, seen = helpers.load(name), []

    def watched_env(*args, **kwargs):
        env = make_env(*args, **kwargs)

        def step(state, action, key):
            is_legal = jnp.take_along_axis(env.legal(state.obs), action[:, None], axis=1)
            jax.debug.callback(lambda x: seen.append(x.all()), is_legal)
            return env.step(state, action, key)

        return env._replace(step=step)

    monkeypatch.setattr(module, "make_env", watched_env)
    fields = {"norm_obs": False} if name == "ppo_rnn" else {}
    algorithm = module.make(helpers.small_config(module, env_id="count-pgx", **fields))
    states = helpers.trained(algorithm, [0, 1], 3).state
    jax.effects_barrier()
    assert len(seen) >= 6 and all(seen)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(states.params))

    env, memory = make_env("count-pgx", 1), ()
    if algorithm.init_memory is not None:
        memory = (algorithm.init_memory(),)
    params = jax.tree.map(lambda x: -50 * x[0], states.params)
    obs = env.reset(jax.random.key(0)).obs[0]
    acted = algorithm.act(params, *memory, obs, jax.random.key(1))
    assert (acted[0] if memory else acted) in (0, 1)


def test_a_mask_is_not_normalized(install):
    install(pgx={"available_envs": lambda: ("count",), "make": lambda name: CountGame()})
    module = helpers.load("ppo")
    with pytest.raises(ValueError, match="--norm-obs would scale the mask") as error:
        module.make(helpers.small_config(module, env_id="count-pgx", norm_obs=True))
    assert "\n" not in str(error.value)


# --- what is refused ------------------------------------------------------------------------------


class Missing(MetaPathFinder):
    """Finds no package, as where none is installed."""

    def find_spec(self, name, path=None, target=None):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.parametrize("suite", SUITES)
def test_a_missing_package_is_named(suite, monkeypatch):
    root = "mujoco_playground" if suite == "playground" else suite
    for name in [x for x in sys.modules if x.partition(".")[0] == root]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing()])
    with pytest.raises(ValueError) as error:
        make_env(f"Any-v0-{suite}", 2)
    assert str(error.value) == f"Any-v0-{suite} needs a package: pip install {suite}"


def test_a_package_that_fails_is_not_called_missing(install, tmp_path, monkeypatch):
    (tmp_path / "pgx.py").write_text("import a_module_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pgx", raising=False)
    with pytest.raises(ValueError, match="import pgx fails with .*a_module_that_nobody_has"):
        make_env("tic_tac_toe-pgx", 2)


def test_what_cannot_be_used_is_refused_in_one_line(corridor, jumanji, install):
    cases = {
        corridor(5).replace("Corridor", "Corridors"): "did you mean 'MiniGrid-Corridor-xminigrid'",
        "XLand-R1-xminigrid": "no goal until it is given rules",
        jumanji(num_agents=3): "rewards each of several agents",
    }
    for env_id, message in cases.items():
        with pytest.raises(ValueError, match=message) as error:
            make_env(env_id, 2)
        assert "\n" not in str(error.value)
    load.cache_clear()
    with pytest.raises(ValueError, match="cannot use: 1e.06 combinations"):
        make_env(jumanji(choices=(100, 100, 100)), 2)
    install(pgx={"available_envs": lambda: ("count",), "make": lambda name: CountGame(3)})
    with pytest.raises(ValueError, match="a game of 3"):
        make_env("count-pgx", 2)


def test_ids_belong_to_the_suite_behind_the_last_hyphen():
    for suite in SUITES:
        with pytest.raises(ValueError) as error:
            find_family(f"A-v1-{suite}s")(f"A-v1-{suite}s", 1)
        assert f"-{suite}" in str(error.value)  # gymnax's, which lists the suites
    with pytest.raises(ValueError, match="Lock"):
        find_family("Lock-v0-jumanji-history2")("Lock-v0-jumanji-history2", 1)


# --- the suites themselves, where they are installed ----------------------------------------------


class Own(NamedTuple):
    """A suite's own functions, of keys as two numbers, for one environment."""

    reset: Any  # key -> state
    step: Any  # key, state, action -> state, reward, whether the episode is over


def own_navix(name):
    env = pytest.importorskip("navix").make(name)

    def step(key, timestep, action):
        timestep = env.step(timestep, action)
        return timestep, timestep.reward, timestep.is_done()

    return Own(env.reset, step)


def own_jumanji(name):
    env = pytest.importorskip("jumanji").make(name)

    def step(key, state, action):
        state, timestep = env.step(state, action)
        return state, timestep.reward, timestep.last()

    return Own(lambda key: env.reset(key)[0], step)


def own_craftax(name):
    module = pytest.importorskip("craftax.craftax_env")
    env = module.make_craftax_env_from_name(name, auto_reset=False)
    return Own(
        lambda key: env.reset(key, env.default_params)[1],
        lambda key, state, action: env.step(key, state, action, env.default_params)[1:4],
    )


def own_pgx(name):
    env = pytest.importorskip("pgx").make(name)

    def step(key, state, action):
        state = env.step(state, action, jax.random.split(key)[0])
        return state, state.rewards[0], state.terminated | state.truncated

    return Own(lambda key: env.init(jax.random.split(key)[0]), step)


def own_xminigrid(name):
    env, params = pytest.importorskip("xminigrid").make(name)

    def step(key, timestep, action):
        timestep = env.step(params, timestep, action)
        return timestep, timestep.reward, timestep.last()

    return Own(lambda key: env.reset(params, key), step)


def own_playground(name):
    package = pytest.importorskip("mujoco_playground")
    env = package.registry.load(name, config_overrides={"impl": "jax"})

    def step(key, state, action):
        state = env.step(state, action)
        return state, state.reward, state.done > 0

    return Own(env.reset, step)


REAL = {
    "Navix-Empty-5x5-v0-navix": (own_navix, 110),
    "Snake-v1-jumanji": (own_jumanji, 60),
    "Game2048-v1-jumanji": (own_jumanji, 60),
    "Craftax-Classic-Symbolic-v1-craftax": (own_craftax, 30),
    "minatar-breakout-pgx": (own_pgx, 60),
    "MiniGrid-Empty-5x5-xminigrid": (own_xminigrid, 110),
    "CartpoleBalance-playground": (own_playground, 10),
}


@pytest.mark.parametrize("env_id", REAL)
def test_an_episode_is_that_of_the_suite_step_by_step(env_id):
    """From the same keys, with the same actions: rewards, and where the episode ends."""
    make_own, num_steps = REAL[env_id]
    own, env, seed = make_own(env_id.rpartition("-")[0]), make_env(env_id, 2), 4
    policy = random_policy(env)
    if env.num_actions is None:
        env = map_actions(env, scale_action)
    steps = played(env, policy, num_steps, seed)

    @jax.jit
    def replay(key, actions):
        def step(state, inputs):
            key, action = inputs
            key = jax.random.key_data(jax.random.split(key, 2)[0])  # of the first of two
            state, reward, over = own.step(key, state, action)
            return state, (jnp.float32(reward), over)

        state = own.reset(jax.random.key_data(jax.random.fold_in(key, 0)))
        keys = jax.random.split(key, (num_steps, 2))[:, 1]
        return jax.lax.scan(step, state, (keys, actions))[1]

    reward, over = map(np.asarray, replay(jax.random.key(seed), steps.action[:, 0]))
    length = int(over.argmax()) + 1 if over.any() else num_steps
    assert over.any() or num_steps < env.max_steps  # the suite's limit is the one that is counted
    np.testing.assert_allclose(steps.reward[:length, 0], reward[:length], rtol=1e-5, atol=1e-6)
    done = steps.terminated | steps.truncated
    assert (done[:length, 0] == over[:length]).all()
    assert (steps.truncated[:length, 0] == (np.arange(1, length + 1) == env.max_steps)).all()


@pytest.mark.parametrize("env_id", REAL)
def test_the_checker_finds_no_problem(env_id):
    REAL[env_id][0](env_id.rpartition("-")[0])  # or skip
    assert check(env_id)[0] == []


@pytest.mark.parametrize("env_id", REAL)
def test_it_is_made_while_it_is_traced(env_id):
    """As in a sweep; and nothing of the first trace is kept for the second."""
    REAL[env_id][0](env_id.rpartition("-")[0])  # or skip
    load.cache_clear()
    shapes = [
        jax.eval_shape(lambda: make_env(env_id, 2).reset(jax.random.key(0)).obs) for _ in range(2)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("env_id", ["Navix-Empty-5x5-v0-navix", "MiniGrid-Empty-5x5-xminigrid"])
def test_a_limit_of_a_suite_truncates_and_does_not_terminate(env_id):
    """Action 0 turns left, for ever."""
    REAL[env_id][0](env_id.rpartition("-")[0])  # or skip
    steps = played(make_env(env_id, 2), 0, 201)
    assert (steps.truncated == (np.arange(1, 202) % 100 == 0)[:, None]).all()
    assert not steps.terminated.any()


@pytest.mark.parametrize("name", ["dqn", "ppo"])
def test_algorithms_train_on_grids(name):
    pytest.importorskip("navix")
    module = helpers.load(name)
    config = helpers.small_config(module, env_id="Navix-Empty-5x5-v0-navix")
    algorithm = module.make(config)
    before, after = (
        jax.tree.leaves(
            jax.tree.map(np.asarray, helpers.trained(algorithm, [0, 1], n).state.params)
        )
        for n in (0, 2)
    )
    assert any((x != y).any() for x, y in zip(before, after, strict=True))
    assert all(np.isfinite(x).all() for x in after)


@pytest.mark.parametrize("name", ["connect_four", "tic_tac_toe", "othello"])
def test_the_mask_of_a_game_is_what_can_be_played(name):
    """Free cells, or columns; in Othello some of the free cells, or to pass."""
    pytest.importorskip("pgx")
    env = make_env(f"{name}-pgx", 16)
    policy = lambda obs, key: jax.random.categorical(key, jnp.where(env.legal(obs), 0, -jnp.inf))
    steps = played(env, policy, 60)
    legal = np.asarray(env.legal(steps.obs))
    free = ~steps.obs[..., :2].any(-1)
    if name == "connect_four":
        assert (legal == free[:, :, 0]).all()
    elif name == "tic_tac_toe":
        assert (legal == free.reshape(*free.shape[:2], -1)).all()
    else:
        assert (legal[..., :64] <= free.reshape(*free.shape[:2], -1)).all()  # and 64 is to pass
        assert (legal.any(-1)).all() and not steps.terminated[:20].any()


@pytest.mark.parametrize("name", ["connect_four", "tic_tac_toe"])
def test_a_game_of_the_suite_is_won_and_lost_by_the_learner(name):
    """One who plays at random against one who does wins about as often as it loses, and sees its
    own pieces, which are as many as the opponent's or one fewer, in the first plane."""
    pytest.importorskip("pgx")
    env = make_env(f"{name}-pgx", 16)

    def policy(obs, key):  # the first cell or column that is free, from a random one
        free = ~obs[..., :2].any(-1)
        free = free[:, 0] if name == "connect_four" else free.reshape(16, -1)
        return jnp.argmax(free * jax.random.uniform(key, free.shape), -1)

    steps = played(env, policy, 300)
    mine, theirs = (steps.obs[..., i].sum((-1, -2)) for i in range(2))
    assert np.isin(theirs - mine, [0, 1]).all()
    results = steps.reward[steps.terminated]
    assert len(results) > 100 and abs(results.mean()) < 0.3 and {-1, 1} <= set(results.tolist())
    assert not steps.reward[~steps.terminated].any()
