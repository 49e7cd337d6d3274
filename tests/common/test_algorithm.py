"""common/algorithm.py: what a Config must satisfy, by the names of its fields and by conditions."""

import dataclasses
import re
from typing import Literal

import jax
import jax.numpy as jnp
import pytest
from helpers import ALGORITHMS, load

from common.algorithm import BOUNDS, MAX_INT, flag, require

ACCEPTED_AND_REFUSED = {
    "0 <= {} <= 1": ([0.0, 0.5, 1.0], [-0.01, 1.01]),
    "0 < {} <= 1": ([0.01, 1.0], [0.0, -0.5, 1.01]),
    "{} >= 1": ([1, 7], [0, -1]),
    "all(size >= 1 for size in {})": ([(), (1,), (3, 64)], [(0,), (64, -1)]),
    "{} > 0": ([1e-9, 2.0], [0.0, -1.0]),
    "{} >= 0": ([0.0, 0, 3], [-1e-9, -1]),
}
NAMES = {  # patterns of BOUNDS, and names that they match, each part of the pattern at least once
    "gamma": ["gamma"],
    "epsilon.*": ["epsilon", "epsilon_start", "epsilon_end"],
    ".*_lambda": ["gae_lambda"],
    ".*_power": ["step_size_power"],
    "tau": ["tau"],
    ".*_fraction": ["exploration_fraction"],
    "num_.*": ["num_envs", "num_steps"],
    ".*_size": ["buffer_size", "batch_size"],
    ".*_steps": ["gradient_steps"],
    ".*_frequency": ["train_frequency"],
    "steps_.*": ["steps_per_update"],
    "total_timesteps": ["total_timesteps"],
    "n_step": ["n_step"],
    "horizon": ["horizon"],
    ".*_sizes": ["hidden_sizes"],
    ".*_rate": ["learning_rate"],
    ".*_std": ["action_std"],
    ".*_norm": ["max_grad_norm"],
    ".*_factor": ["decay_factor"],
    "temperature": ["temperature"],
    ".*_coef": ["ent_coef"],
    ".*_noise": ["exploration_noise"],
    ".*_clip": ["td_clip"],
    ".*_starts": ["learning_starts"],
}
MAY_BE_0 = ["num_episodes", "num_planning_steps", "num_demonstrations", "num_blocks"]
BOUND_OF = {part: bound for names, bound in BOUNDS.items() for part in names.split("|")}
CASES = [(name, bound) for part, bound in BOUND_OF.items() for name in NAMES[part]]


def check(*conditions, **fields):
    """`require` on a Config with those fields."""
    Config = dataclasses.make_dataclass("Config", fields, frozen=True)
    require(Config(**fields), *conditions)


def test_a_field_that_is_none_is_not_checked():
    check("target_epsilon <= 1", gamma=None, target_epsilon=None)
    with pytest.raises(ValueError, match="--gamma 2"):
        check(gamma=2.0)


def test_every_pattern_is_tested():
    assert set(NAMES) == set(BOUND_OF) and set(ACCEPTED_AND_REFUSED) == set(BOUNDS.values())
    for part, names in NAMES.items():
        assert all(re.fullmatch(part, name) for name in names)


@pytest.mark.parametrize("name, bound", CASES)
def test_a_field_is_bounded_by_its_name(name, bound):
    accepted, refused = ACCEPTED_AND_REFUSED[bound]
    for value in accepted:
        check(**{name: value})
    for value in refused:
        with pytest.raises(ValueError) as error:
            check(**{name: value})
        assert str(error.value) == f"{flag(name)} {value}: must satisfy {bound.format(name)}"


@pytest.mark.parametrize("name", ["gammas", "a_tau", "size", "num", "norm_obs", "seed", "delta"])
def test_a_pattern_must_match_the_whole_name(name):
    check(**{name: -5})


def test_an_explicit_condition_replaces_the_bound_of_its_field():
    check("num_steps >= 0", num_steps=0)
    check("buffer_size == -1", buffer_size=-1)
    with pytest.raises(ValueError, match=r"^--num-steps 1: must satisfy num_steps >= 2$"):
        check("num_steps >= 2", num_steps=1)
    with pytest.raises(ValueError, match="--num-envs 0"):  # another field keeps its own
        check("num_steps >= 0", num_steps=0, num_envs=0)


def test_a_condition_of_two_fields_replaces_no_bound():
    check("buffer_size >= learning_starts", buffer_size=5, learning_starts=5)
    with pytest.raises(ValueError) as error:
        check("buffer_size >= learning_starts", buffer_size=5, learning_starts=6)
    message = "--buffer-size 5 --learning-starts 6: must satisfy buffer_size >= learning_starts"
    assert str(error.value) == message
    with pytest.raises(ValueError, match="--buffer-size 0: must satisfy buffer_size >= 1"):
        check("buffer_size >= learning_starts", buffer_size=0, learning_starts=0)


def test_conditions_are_python():
    check("len(hidden_sizes) == 2", "all(x > 1 for x in hidden_sizes)", hidden_sizes=(2, 3))
    check("kind in ('a', 'b')", kind="b")
    with pytest.raises(ValueError, match="--kind c: must satisfy kind in"):
        check("kind in ('a', 'b')", kind="c")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["gamma", "delta"])
def test_floats_are_finite(name, value):
    with pytest.raises(ValueError, match=f"^--{name} {value}: must be a finite number$"):
        check(**{name: value})
    with pytest.raises(ValueError, match="finite"):
        check(**{name: (0.5, value)})


@pytest.mark.parametrize("name", ["num_envs", "seed", "hidden_sizes"])
def test_integers_fit_in_int32(name):
    pack = (lambda x: (8, x)) if name == "hidden_sizes" else lambda x: x
    check(**{name: pack(2**31 - 1)})
    with pytest.raises(ValueError) as error:
        check(**{name: pack(2**31)})
    assert str(error.value) == f"{flag(name)}: must be at most 2,147,483,647"
    with pytest.raises(ValueError, match="must be at most"):
        check(**{name: pack(-(2**31))})
    assert jnp.iinfo(jnp.int32).max == MAX_INT


def test_what_python_counts_may_be_larger():
    check(total_timesteps=10**12, eval_every=10**12)


def test_traced_fields_are_skipped_and_all_others_are_not():
    conditions = ["epsilon_end <= epsilon_start", "learning_rate < 1"]

    def loss(learning_rate, epsilon_start, num_envs=1, gamma=0.9):
        floats = {"learning_rate": learning_rate, "epsilon_start": epsilon_start}
        check(*conditions, **floats, epsilon_end=0.5, num_envs=num_envs, gamma=gamma)
        return learning_rate + epsilon_start

    outside = jnp.array([-1.0, 5.0])  # unknown while they are traced
    jax.jit(jax.vmap(loss))(outside, outside)
    with pytest.raises(ValueError, match="--num-envs 0"):
        jax.vmap(lambda x: loss(x, x, num_envs=0))(outside)
    with pytest.raises(ValueError, match="--gamma 1.5"):
        jax.vmap(lambda x: loss(x, x, gamma=1.5))(outside)
    with pytest.raises(ValueError, match="--epsilon-start 0.1 --epsilon-end 0.5"):
        jax.vmap(lambda x: loss(x, 0.1))(outside)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_config_refuses_numbers_of_things_that_cannot_be(name):
    """Also where the file has a condition of its own; none of a few things makes sense."""
    module = load(name)
    module.Config()
    for field in dataclasses.fields(module.Config):
        if re.fullmatch(r"num_.*|.*_size|total_timesteps", field.name):
            for value in [-1] if field.name in MAY_BE_0 else [-1, 0]:
                with pytest.raises(ValueError, match=f"{flag(field.name)} {value}"):
                    module.Config(**{field.name: value})
        if re.fullmatch("learning_rate|gamma|tau", field.name):
            with pytest.raises(ValueError, match=flag(field.name)):
                module.Config(**{field.name: -0.1})


def test_a_literal_is_one_of_its_choices():
    @dataclasses.dataclass(frozen=True)
    class Config:
        table: Literal["V", "Q"] = "V"

        def __post_init__(self):
            require(self)

    assert Config(table="Q").table == "Q"
    with pytest.raises(ValueError, match="--table W: must be one of V, Q"):
        Config(table="W")
