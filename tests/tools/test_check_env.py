"""common/tools/check_env.py: all environments pass; what is broken is told why, in one line."""

import sys

import gymnax
import jax
import jax.numpy as jnp
import pytest
from brax_probe import CountdownEnv
from flax import struct
from gymnax.environments import environment, spaces
from helpers import run, run_here

from common.environments import brax_envs
from common.environments.linear import LINEAR
from common.environments.tabular import TABULAR
from common.envs import make_env
from common.tools import check_env

OFFLINE = [name for name in gymnax.registered_envs if "MNIST" not in name and "probe" not in name]
SLOW = ["Asterix-MinAtar", "Freeway-MinAtar", "Seaquest-MinAtar", "SpaceInvaders-MinAtar"]
SLOW += ["Pong-misc"]  # to compile; their types are checked, and tests/common/test_envs.py plays


@pytest.mark.parametrize("env_id", OFFLINE)
def test_every_offline_environment_passes(env_id, monkeypatch):
    if env_id in SLOW:
        monkeypatch.setattr(check_env, "check_episodes", lambda *arguments: [])
    problems, notes = check_env.check(env_id)
    assert problems == []
    assert all("\n" not in line for line in notes)
    assert not any("tell the time" in line for line in notes)  # gymnax_envs.TIMED has them all


@struct.dataclass
class State(environment.EnvState):
    x: jax.Array


@struct.dataclass
class Params(environment.EnvParams):
    max_steps_in_episode: int = 20


class Walk(environment.Environment[State, Params]):
    """A walk between -2 and 2 by steps of about 1; nothing is wrong with it."""

    @property
    def default_params(self):
        return Params()

    def reset_env(self, key, params):
        state = State(time=jnp.int32(0), x=jax.random.uniform(key, minval=-1, maxval=1))
        return self.observation(state), state

    def step_env(self, key, state, action, params):
        x = state.x + (2 * action - 1) * jax.random.uniform(key)
        state = State(time=state.time + 1, x=x)
        return self.observation(state), state, -jnp.abs(x), jnp.abs(x) > 2, {}

    def observation(self, state):
        return jnp.stack([state.x, jnp.float32(1)])

    def action_space(self, params):
        return spaces.Discrete(2)

    def observation_space(self, params):
        return spaces.Box(-jnp.inf, jnp.inf, (2,), jnp.float32)


class Dictionary(Walk):
    def observation(self, state):
        return {"x": state.x}


class WrongShape(Walk):
    def observation_space(self, params):
        return spaces.Box(-1, 1, (3,), jnp.float32)


class FloatForANumber(Walk):
    def observation(self, state):
        return state.x

    def observation_space(self, params):
        return spaces.Discrete(5)


class NumberTooLarge(FloatForANumber):
    def observation(self, state):
        return jnp.round(state.x + 4).astype(int)


class NoActionSpace(Walk):
    action_space = environment.Environment.action_space


class Parts(Walk):
    def observation_space(self, params):
        return spaces.Tuple([spaces.Discrete(2), super().observation_space(params)])


class NothingToSee(Walk):
    def observation(self, state):
        return jnp.zeros(0)


class NamedActions(Walk):
    def action_space(self, params):
        return spaces.Dict({"move": spaces.Discrete(2)})


class WholeActions(Walk):
    def action_space(self, params):
        return spaces.Box(0, 3, (2,), jnp.int32)


class NothingToDo(Walk):
    def action_space(self, params):
        return spaces.Box(-1, 1, (0,), jnp.float32)


class BoundsCrossed(Walk):
    def action_space(self, params):
        return spaces.Box(1, -1, (1,), jnp.float32)


class NoTime(Walk):
    @property
    def default_params(self):
        return Params(max_steps_in_episode=0)


class TypeChanges(Walk):
    def reset_env(self, key, params):
        obs, state = super().reset_env(key, params)
        return obs, state.replace(x=jnp.int32(0))


class FlagIsANumber(Walk):
    def step_env(self, *arguments):
        obs, state, reward, terminated, info = super().step_env(*arguments)
        return obs, state, reward, terminated.astype(float), info


class FlagIsAVector(Walk):
    def step_env(self, *arguments):
        obs, state, reward, terminated, info = super().step_env(*arguments)
        return obs, state, reward, terminated[None], info


class RewardIsAVector(Walk):
    def step_env(self, *arguments):
        obs, state, reward, terminated, info = super().step_env(*arguments)
        return obs, state, reward[None], terminated, info


class PythonIf(Walk):
    def step_env(self, key, state, action, params):
        if state.x > 1:
            action = 0
        return super().step_env(key, state, action, params)


class NanAfterReset(Walk):
    def reset_env(self, key, params):
        _, state = super().reset_env(key, params)
        state = state.replace(x=jnp.log(state.x))
        return self.observation(state), state


class InfiniteReward(Walk):
    def step_env(self, *arguments):
        obs, state, reward, terminated, info = super().step_env(*arguments)
        return obs, state, reward / (1 - terminated), terminated, info


class TimeStandsStill(Walk):
    def step_env(self, key, state, action, params):
        obs, after, reward, terminated, info = super().step_env(key, state, action, params)
        return obs, after.replace(time=state.time), reward, terminated & False, info


class KeyUsedTwice(Walk):
    def step_env(self, key, state, action, params):
        step = super().step_env(key, state, action, params)
        return *step[:2], step[2] + jax.random.normal(key), *step[3:]


class FiveValues(Walk):
    def step(self, key, state, action, params=None):
        obs, state, reward, terminated, truncated, info = super().step(key, state, action, params)
        return obs, state, reward, terminated | truncated, info


class NoFinalObservation(Walk):
    def step(self, key, state, action, params=None):
        *step, info = super().step(key, state, action, params)
        return *step, {"terminated": info["terminated"]}


class FinalObservationAfterReset(Walk):
    def step(self, key, state, action, params=None):
        obs, *step, info = super().step(key, state, action, params)
        return obs, *step, info | {"final_observation": obs}


class Raises(Walk):
    def __init__(self):
        raise OSError("no such file")


class RaisesInReset(Walk):
    def reset_env(self, key, params):
        raise RuntimeError("no\n  map")


class TooLarge(Walk):
    def observation(self, state):
        return jnp.stack([state.x, jnp.float32(1)]) * 1.1e38


class TooClose(Walk):
    """A difference that is lost beside a large number."""

    def observation(self, state):
        return jnp.stack([state.x * 1e-30, jnp.float32(1)])


BROKEN = {
    Dictionary: "the observation is a dict: it must be one array; "
    "join its parts with jnp.concatenate",
    WrongShape: "observations have shape (2,), their space (3,)",
    FloatForANumber: "the observation is float32[]: a Discrete space needs one integer",
    NumberTooLarge: "a state's number is not below the 5 of the Discrete space",
    NoActionSpace: "action_space(params) is not implemented",
    Parts: "the observation space is a Tuple: it must be Discrete or one Box",
    NothingToSee: "the observation has shape (0,): it must hold at least one number",
    NamedActions: "the action space is a Dict: it must be Discrete or one Box",
    WholeActions: "the action space is a Box of int32: use Discrete, "
    "or a Box of floats that step_env rounds",
    NothingToDo: "actions have shape (0,): there is nothing to choose",
    BoundsCrossed: "the action space has a low above its high, or NaN",
    NoTime: "max_steps_in_episode is 0: it must be a whole number above 0 and below 2^31",
    TypeChanges: "the state's x is int32[] after reset and float32[] after step",
    FlagIsANumber: "terminated is float32: it must be bool",
    FlagIsAVector: "terminated has shape (1,): it must be one number, shape ()",
    RewardIsAVector: "reward has shape (1,): it must be one number, shape ()",
    PythonIf: "step_env cannot be compiled: Python's if, and, or of a traced value; use jnp.where",
    NanAfterReset: "the observation after reset is NaN or infinite",
    InfiniteReward: "a reward is NaN or infinite",
    TimeStandsStill: "an episode goes on beyond max_steps_in_episode = 20: "
    "step_env must return state.time + 1",
    KeyUsedTwice: "step uses a random key twice; split it first",
    FiveValues: "step returns 5 values, not six: "
    "observation, state, reward, terminated, truncated, info",
    NoFinalObservation: 'info has no "final_observation", the observation before the reset',
    FinalObservationAfterReset: 'info["final_observation"] is the observation after the reset, '
    "not before",
    Raises: "gymnax.make fails with OSError: no such file",
    RaisesInReset: "reset fails with RuntimeError: no map",
    TooLarge: "observations are so large that a network's output is not finite",
    TooClose: "observations differ, but not to a network: scale them to about [-1, 1]",
}


@pytest.fixture
def register(monkeypatch):
    """Registers a class for the time of a test."""
    registered = gymnax.registration
    before = list(gymnax.registered_envs)
    yield lambda kind: gymnax.register(f"{kind.__name__}-check", kind)
    for name in set(gymnax.registered_envs) - set(before):
        remove(registered, name)


def remove(registered, name):
    """From the names and the registry, whatever they are called."""
    for container in vars(registered).values():
        if isinstance(container, dict):
            container.pop(name, None)
        elif isinstance(container, list) and name in container:
            container.remove(name)


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_a_broken_environment_is_told_why(kind, register):
    register(kind)
    problems, _ = check_env.check(f"{kind.__name__}-check")
    assert BROKEN[kind] in problems and not any("\n" in line for line in problems)
    related = {NanAfterReset: 3, Dictionary: 1}  # NaN after reset is in later observations too
    assert len(problems) <= related.get(kind, 2)


PLAYED_ONLY = [WrongShape, NumberTooLarge, NanAfterReset, InfiniteReward, TimeStandsStill]
PLAYED_ONLY += [KeyUsedTwice, FinalObservationAfterReset, TooLarge, TooClose]


@pytest.mark.parametrize(
    "kind", [kind for kind in BROKEN if kind not in PLAYED_ONLY], ids=lambda kind: kind.__name__
)
def test_what_cannot_work_is_refused_by_make_env(kind, register):
    register(kind)
    with pytest.raises(ValueError) as error:
        make_env(f"{kind.__name__}-check", 1)
    assert str(error.value) == f"{kind.__name__}-check: {BROKEN[kind]}"


def test_a_sound_one_has_neither_problems_nor_notes(register):
    register(Walk)
    assert check_env.check("Walk-check") == ([], [])
    assert check_env.describe("Walk-check") == (
        "2 actions, observations of shape (2,), episodes of at most 20 steps"
    )


class CutOffElsewhere(Walk):
    def is_truncated(self, state, params):
        return super().is_truncated(state, params) | (state.x > 1)


class RewardIsABool(Walk):
    def step_env(self, *arguments):
        obs, state, reward, terminated, info = super().step_env(*arguments)
        return obs, state, terminated, terminated, info


class Pushed(Walk):
    """Two forces and two wheels, as a matrix."""

    def step_env(self, key, state, action, params):
        assert action.shape == (2, 2)
        return super().step_env(key, state, action.mean(), params)

    def action_space(self, params):
        return spaces.Box(-jnp.ones((2, 2)), jnp.ones((2, 2)), (2, 2), jnp.float32)


class ShowsTime(Walk):
    def observation(self, state):
        return jnp.stack([state.x, state.time / 20])


class TerminatedAtLimit(Walk):
    def step_env(self, *arguments):
        obs, state, reward, terminated, info = super().step_env(*arguments)
        return obs, state, reward, terminated | (state.time >= 20), info


class TimedTask(ShowsTime, TerminatedAtLimit):
    """The time limit is a state of the task, which may then end there."""


@pytest.mark.parametrize("kind", [CutOffElsewhere, RewardIsABool, Pushed, TimedTask])
def test_what_is_unusual_is_no_problem(kind, register):
    register(kind)
    assert check_env.check(f"{kind.__name__}-check") == ([], [])


class SameObservation(Walk):
    """Shows one number, always the same, as some bandits do."""

    def observation(self, state):
        return jnp.ones(2)


class EndlessActions(Walk):
    def step_env(self, key, state, action, params):
        return super().step_env(key, state, action[0] > 0, params)

    def action_space(self, params):
        return spaces.Box(-jnp.inf, jnp.inf, (1,), jnp.float32)


class FarAway(Walk):
    def observation(self, state):
        return jnp.stack([state.x + 4e5, jnp.float32(1)])


class NoLimit(Walk):
    default_params = None


NOTES = {
    SameObservation: "all observations are the same",
    EndlessActions: "actions without finite bounds low < high: some algorithms refuse them",
    FarAway: "observations are as large as 4e+05: scale them to about [-1, 1]",
    TerminatedAtLimit: "every episode of 20 steps, the limit, is terminated: "
    "is that the time limit? Then it must not be in `terminated`",
    ShowsTime: "observations tell the time, but the limit only truncates: "
    "no value of the last one is ever learned. Let the limit terminate",
    NoLimit: "params have no max_steps_in_episode: evaluation stops after 10,000 steps",
}


@pytest.mark.parametrize("kind", NOTES, ids=lambda kind: kind.__name__)
def test_what_may_be_meant_is_noted(kind, register):
    register(kind)
    assert check_env.check(f"{kind.__name__}-check") == ([], [NOTES[kind]])


BRAX = ["Fast-brax", "InvertedPendulum-brax", "Reacher-brax"]  # the others take longer to trace
HISTORY = ["CartPole-v1-history2", "Pendulum-v1-history3"]
PLAYED = {*LINEAR, "CliffWalking-tabular", "Fast-brax", *HISTORY}  # and these to compile


@pytest.mark.parametrize("env_id", [*LINEAR, *TABULAR, *BRAX, *HISTORY])
def test_what_is_not_gymnax_passes_too(env_id, monkeypatch):
    """Shapes, types and keys of all, and the numbers of some."""
    if env_id not in PLAYED:
        monkeypatch.setattr(check_env, "check_episodes", lambda *arguments: [])
    assert check_env.check(env_id) == ([], [])


# Episodes of 20 to 40 steps, cut off after 35.


class NanAfterResetBrax(CountdownEnv):
    def reset(self, key):
        state = super().reset(key)
        return state._replace(obs=jnp.log(-state.obs))


class NanRewardBrax(CountdownEnv):
    def step(self, state, action):
        state = super().step(state, action)
        return state._replace(reward=jnp.sqrt(jnp.float32(24.5) - state.obs[1]))


class KeyTwiceBrax(CountdownEnv):
    def reset(self, key):
        state = super().reset(key)
        return state._replace(obs=state.obs + jax.random.normal(key))


class RaisesBrax(CountdownEnv):
    def step(self, state, action):
        raise KeyError("link")


@pytest.mark.parametrize(
    "kind, problem",
    [
        (CountdownEnv, None),
        (NanAfterResetBrax, "the observation after reset is NaN or infinite"),
        (NanRewardBrax, "a reward is NaN or infinite"),
        (KeyTwiceBrax, "reset uses a random key twice; split it first"),
        (RaisesBrax, "step fails with KeyError: 'link'"),
    ],
)
def test_a_broken_environment_of_brax_is_told_why(kind, problem, monkeypatch):
    monkeypatch.setattr(brax_envs, "load", lambda env_id: (kind(), 35))
    problems, notes = check_env.check(f"{kind.__name__}-brax")
    assert problem in problems if problem else problems == []
    assert all("tell the time" in line for line in notes)  # as those of CountdownEnv do


def changed(env, change):
    """The environment with another Transition, from that and the EnvState after it."""

    def step(state, action, key):
        state, transition = env.step(state, action, key)
        return state, transition._replace(**change(state, transition))

    return env._replace(step=step)


@pytest.mark.parametrize(
    "change, problem",
    [
        (lambda state, x: {"next_obs": state.obs}, "next_obs is the observation after the reset"),
        (lambda state, x: {"next_obs": x.obs}, "next_obs is not what is seen next"),
        (lambda state, x: {"truncated": x.truncated & False}, "goes on beyond the limit of 128"),
        (lambda state, x: {"truncated": x.next_obs[:, 0] > 0.2}, "is cut off before the limit"),
        (lambda state, x: {"terminated": x.terminated.astype(int)}, "terminated is int32"),
    ],
)
def test_a_broken_batch_is_told_why(change, problem, monkeypatch):
    env = check_env.make_env("Fast-brax", check_env.NUM_ENVS)
    monkeypatch.setattr(check_env, "make_env", lambda *arguments: changed(env, change))
    problems, _ = check_env.check("Fast-brax")
    assert any(problem in line for line in problems)


@pytest.mark.parametrize("env_id, actions", [("TicTacToe-game", 9), ("ConnectFour-game", 7)])
def test_a_game_is_an_environment(env_id, actions):
    problems, _ = check_env.check(env_id)
    assert problems == []
    assert check_env.describe(env_id).startswith(f"{actions} actions")


@pytest.mark.parametrize(
    "env_id, words",
    [
        ("Swimmer-brax", "choose another"),
        ("Hoper-brax", "did you mean Hopper-brax?"),
        ("Hopper-brax-mujoco", "spring, generalized"),
        ("CartPol-v1-history2", "did you mean CartPole-v1?"),
        ("Breakout-MinAtar-history2", "not images"),
        ("TicTacTo-game", "did you mean TicTacToe-game?"),
        ("Doubleintegrator-linear", "did you mean 'DoubleIntegrator-linear'?"),
        ("CliffWalkin-tabular", "did you mean 'CliffWalking-tabular'?"),
    ],
)
def test_what_there_is_not_is_said_in_one_line(env_id, words):
    with pytest.raises(ValueError, match=words.replace("?", r"\?")) as error:
        check_env.check(env_id)
    assert "\n" not in str(error.value)


NEIGHBOUR = """
from gymnax.environments.classic_control.mountain_car import MountainCar

class FlagIsANumber(MountainCar):
    def step_env(self, *arguments):
        obs, state, reward, terminated, info = super().step_env(*arguments)
        return obs, state, reward, terminated.astype(float), info
"""
MINE = """
import gymnax
from neighbour import FlagIsANumber

gymnax.register("Mine-v0", FlagIsANumber)
"""


@pytest.fixture
def folder(tmp_path, register, monkeypatch):
    """The folder of a module with an environment. What is loaded from it is forgotten."""
    (tmp_path / "neighbour.py").write_text(NEIGHBOUR)
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "wrong.py").write_text("raise RuntimeError('not\\ntoday')")
    monkeypatch.setattr(sys, "path", sys.path.copy())
    yield tmp_path
    forget()


def forget():
    for name in ("neighbour", "mine"):
        sys.modules.pop(name, None)
    remove(gymnax.registration, "Mine-v0")


def test_the_command_line_in_each_of_its_forms(folder):
    """The first two in processes of their own: a module that PYTHONPATH finds, and a file, which
    finds its neighbour by itself."""
    done = run("common.check_env", "mine:Mine-v0", check=1, env={"PYTHONPATH": str(folder)})
    assert done.stderr == ""
    assert done.stdout.splitlines()[0] == "problem: terminated is float32: it must be bool"
    mine = str(folder / "mine.py")
    forms = [f"{mine}:Mine-v0"], ["Mine-v0", "--import", mine], [f"--import={mine}", "Mine-v0"]
    for arguments, call in zip(forms, (run, run_here, run_here), strict=True):
        again = call("common.check_env", *arguments, check=1)
        forget()
        assert (again.stderr, again.stdout) == ("", done.stdout)


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["no_such_module:X-v0"], "--import no_such_module: no such module; give its name"),
        (["your.py:X-v0"], "your.py: there is no such file"),
        (["wrong.py:X-v0"], "wrong.py fails with RuntimeError: not today"),
        (["X-v0", "--import"], "expected one argument; see --help"),
        ([], "required: environment; see --help"),
        (["CartPol-v1"], "did you mean CartPole-v1?"),
        (["Swimmer-brax"], "choose another"),
    ],
)
def test_the_command_line_says_in_one_line_what_it_cannot_check(
    arguments, says, folder, monkeypatch
):
    monkeypatch.chdir(folder)
    done = run_here("common.check_env", *arguments, check=2)
    assert done.stderr.count("\n") == 1 and says in done.stderr


def test_the_command_line_says_what_works():
    done = run_here("common.check_env", "Fast-brax")
    assert done.stderr == "" and done.stdout == (
        "Fast-brax works: continuous actions of shape (1,), observations of shape (2,), "
        "episodes of at most 128 steps\n"
    )
