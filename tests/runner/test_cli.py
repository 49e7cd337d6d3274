"""cli.py and the refusals of `require`: one plain line, exit code 2."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ALGORITHMS, run

from common.algorithm import require
from common.runner.cli import Run, parse, settings


@dataclass(frozen=True)
class Config:
    env_id: str = "CartPole-v1"  # environment
    num_envs: int = 10  # environments
    learning_rate: float = 1e-3  # of Adam
    table: Literal["V", "Q"] = "V"  # what to update
    anneal: bool = False  # whether to
    hidden_sizes: tuple[int, ...] = (120, 84)  # units

    def __post_init__(self):
        require(
            self,
            "num_envs >= 1",
            "0 < learning_rate <= 1",
            "all(size >= 1 for size in hidden_sizes)",
        )


def parsed(*argv):
    return parse(Config, "python -m algorithms.test", "A test.", list(argv))


def test_flags_of_the_config_and_of_the_run_stand_side_by_side():
    config, run = parsed("--num-envs", "3", "--num-seeds", "8", "--hidden_sizes", "4", "5")
    assert config == Config(num_envs=3, hidden_sizes=(4, 5))
    assert run == Run(num_seeds=8)
    assert parsed("--no-anneal", "--quiet")[1].quiet


SWEEP = ("learning_rate=log:1e-4:1e-1", "num_envs=log:2:200", "anneal=true,false")


def test_settings_are_drawn_from_ranges_and_lists():
    drawn = settings(SWEEP, Config(), 400, seed=3)
    assert len(drawn) == 400 == len({tuple(x.items()) for x in drawn})
    rate = np.array([x["learning_rate"] for x in drawn])
    assert rate.min() >= 1e-4 and rate.max() <= 1e-1
    decades = np.histogram(np.log10(rate), [-4, -3, -2, -1])[0]
    np.testing.assert_allclose(decades / 400, 1 / 3, atol=4 * np.sqrt(2 / 9 / 400))
    assert all(float(f"{x:.4g}") == x for x in rate.tolist())
    envs = [x["num_envs"] for x in drawn]
    assert {type(x) for x in envs} == {int} and 2 <= min(envs) < 6 < 60 < max(envs) <= 200
    assert abs(np.mean([x["anneal"] for x in drawn]) - 0.5) < 0.1
    uniform = [x["learning_rate"] for x in settings(("learning_rate=0.1:1",), Config(), 400)]
    assert abs(np.mean(uniform) - 0.55) < 4 * 0.9 / np.sqrt(12 * 400)


def test_draws_depend_on_the_seed_and_not_on_how_many():
    assert settings(SWEEP, Config(), 9, seed=3) == settings(SWEEP, Config(), 20, seed=3)[:9]
    assert settings(SWEEP, Config(), 9, seed=3) != settings(SWEEP, Config(), 9, seed=4)
    few = settings(("anneal=true,false", "num_envs=3:4"), Config(), 4)
    assert len(few) == 4  # all that there are


@pytest.mark.parametrize(
    "sweep, number, says",
    [
        (("learning_rate=1e-4:1e-2",), 0, "say how often with --num-settings"),
        (("learning_rate=log:1e-4:1e-2",), 0, "say how often with --num-settings"),
        (("learning_rate=1e-2:1e-4",), 3, "with low < high"),
        (("learning_rate=log:0:1",), 3, "with 0 < low < high"),
        (("learning_rate=1:2:3",), 3, "write low:high"),
        (("learning_rate=lin:1:2",), 3, "'lin' is not of type float"),
        (("num_envs=1.5:3",), 3, "'1.5' is not of type int"),
        (("learning_rate=0.5:2",), 30, "must satisfy 0 < learning_rate <= 1"),
        (("anneal=true,false",), 3, "the sweep has only 2 different settings"),
        (("table=V:Q",), 3, "is not one of V, Q"),
    ],
)
def test_what_cannot_be_drawn_is_refused(sweep, number, says):
    with pytest.raises(ValueError, match=says):
        settings(sweep, Config(), number)


@pytest.mark.parametrize("text", ["5e3", "5E3", "5000", "5_000", "5.0e3"])
def test_whole_numbers_may_be_written_with_an_exponent(text):
    assert parsed("--num-envs", text)[0].num_envs == 5_000
    assert parsed(f"--num-envs={text}")[0].num_envs == 5_000
    assert parsed("--hidden-sizes", text, "2")[0].hidden_sizes == (5_000, 2)
    assert parsed("--env-id", "1e3")[0].env_id == "1e3"


@pytest.mark.parametrize(
    "argv, says",
    [
        (["--num-envs", "0"], "--num-envs 0: must satisfy num_envs >= 1"),
        (["--num-envs", "x"], "--num-envs"),
        (["--num-envs", "1.5"], "--num-envs"),
        (["--num-envs"], "--num-envs"),
        (["--num-env", "3"], "did you mean --num-envs?"),
        (["--learning-rate", "nan"], "--learning-rate nan: must be a finite number"),
        (["--learning-rate", "inf"], "--learning-rate inf"),
        (["--learning-rate", "-4"], "--learning-rate -4.0"),
        (["--learning-rate", ""], "--learning-rate"),
        (["--hidden-sizes", "8", "0"], "hidden_sizes"),
        (["--table", "W"], "--table"),
        (["--seed", "-1"], "--seed -1"),
        (["--num-seeds", "0"], "--num-seeds 0"),
        (["--checkpoint-every", "nan"], "--checkpoint-every nan"),
        (["--log-points", "0"], "--log-points 0"),
        (["--eval-every", "5", "--eval-episodes", "0"], "--eval-episodes"),
        (["stray"], "stray"),
        (["--quiet=1"], "--quiet takes no value"),
        (["--num-envs", "1" * 20], "--num-envs: must be at most"),
        (["--hidden-sizes", "8", "9" * 30], "--hidden-sizes: must be at most"),
        (["--löss", "1"], "--löss"),
    ],
)
def test_a_bad_flag_is_one_line_and_exit_code_2(argv, says, capsys):
    with pytest.raises(SystemExit) as stop:
        parsed(*argv)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1 and len(captured.err) <= 200
    assert says in captured.err and "Traceback" not in captured.err
    assert "--help lists the flags" in captured.err and "---" not in captured.err


def test_help_lists_every_flag_with_its_meaning(capsys):
    with pytest.raises(SystemExit) as stop:
        parsed("--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for kind in (Config, Run):
        for field in dataclasses.fields(kind):
            name = "import" if field.name == "imports" else field.name.replace("_", "-")
            assert f"--{name}" in text
    assert "of Adam" in text and "A test." in text


def test_a_sweep_is_the_grid_of_its_values():
    grid = settings(("learning_rate=1e-2,0.1", "num-envs=1,2e0"), Config())
    assert grid == [
        {"learning_rate": 0.01, "num_envs": 1},
        {"learning_rate": 0.01, "num_envs": 2},
        {"learning_rate": 0.1, "num_envs": 1},
        {"learning_rate": 0.1, "num_envs": 2},
    ]
    assert settings(("anneal=true,false", "table=V,Q"), Config())[0] == {
        "anneal": True,
        "table": "V",
    }
    assert settings((), Config()) == [{}]


def test_a_float_that_may_be_left_to_a_default_can_be_swept():
    Config = dataclasses.make_dataclass("Config", [("gamma", float | None, None)], frozen=True)
    assert settings(("gamma=0.5,1",), Config()) == [{"gamma": 0.5}, {"gamma": 1.0}]
    with pytest.raises(ValueError, match="'x' is not of type float"):
        settings(("gamma=x",), Config())


@pytest.mark.parametrize(
    "sweep, says",
    [
        ("learning_rat=1", "did you mean learning_rate?"),
        ("nothing_like_it=1", "no such field"),
        ("learning_rate", "field=value"),
        ("learning_rate=", "field=value"),
        ("learning_rate=1e-3,x", "'x' is not of type float"),
        ("num_envs=1.5", "'1.5' is not of type int"),
        ("anneal=maybe", "'maybe'"),
        ("learning_rate=1e-3,-1", "--learning-rate -1.0"),
        ("learning_rate=nan", "finite"),
        ("num_envs=0,1", "num_envs >= 1"),
        ("table=V,W", "'W' is not one of V, Q"),
        ("learning_rate=1e-3,0.001", "twice"),
        ("hidden_sizes=4,5", "can be swept"),
    ],
)
def test_a_bad_sweep_is_refused_with_its_reason(sweep, says):
    with pytest.raises(ValueError, match=says) as refusal:
        settings((sweep,), Config())
    assert "\n" not in str(refusal.value)


def test_a_field_swept_twice_is_refused():
    with pytest.raises(ValueError, match="named twice"):
        settings(("num_envs=1", "num_envs=2"), Config())


def test_vmapped_fields_are_not_tested_and_the_others_are():
    def build(rate, num_envs=10):
        return jnp.asarray(Config(learning_rate=rate, num_envs=num_envs).learning_rate)

    jax.vmap(build)(jnp.array([0.1, 5.0]))
    with pytest.raises(ValueError, match="num_envs >= 1"):
        jax.vmap(lambda rate: build(rate, 0))(jnp.array([0.1]))


@pytest.mark.parametrize(
    "argv, says",
    [
        (["--lr", "1"], "unknown flag --lr; did you mean --learning-rate?"),
        (["--n-envs", "4"], "did you mean --num-envs?"),
        (["--envs", "4"], "did you mean --num-envs?"),
        (["--hidden-sizes", "64,64"], "--hidden-sizes 64,64: write --hidden-sizes 64 64"),
    ],
)
def test_what_people_write_is_answered_with_what_is_meant(argv, says, capsys):
    with pytest.raises(SystemExit) as stop:
        parsed(*argv)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and says in error and error.count("\n") == 1


def test_algorithms_are_listed_and_suggested():
    listed = run("algorithms").stdout.splitlines()
    assert len(listed) == len(ALGORITHMS) and all(len(line.split()) > 3 for line in listed)
    done = run("algorithms.dqnn", check=2)
    assert done.stderr == "there is no algorithm dqnn; did you mean dqn?\n"
    assert "lists what there is" in run("algorithms.zzzz", check=2).stderr
