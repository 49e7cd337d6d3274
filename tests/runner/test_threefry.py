"""threefry.py: the published answers, the same bits as JAX's own rule without its loop, and JAX's
own rule, with a warning, where its internals are others."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import ROOT
from jax.extend.random import threefry_2x32

from common.runner.threefry import unroll_threefry


@pytest.mark.parametrize(
    "key, counter, expected",
    [  # Random123's kat_vectors, threefry2x32 with 20 rounds
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_known_answers(key, counter, expected):
    unroll_threefry()
    key, counter = np.uint32(key), np.uint32(counter)
    np.testing.assert_array_equal(jax.jit(threefry_2x32)(key, counter), np.uint32(expected))


DRAWS = """
import jax, jax.numpy as jnp
def draws(key):
    keys = jax.random.split(jax.random.fold_in(key, 3), 5)
    numbers = jax.vmap(lambda k: jax.random.uniform(k, (3,)))(keys)
    return jax.random.key_data(keys), numbers, jax.random.bits(key, (7,)), jax.random.bits(key)
seeds = jax.vmap(jax.random.key)(jnp.arange(4))
"""


def test_draws_are_those_of_jax_alone():
    mine = {}
    exec(DRAWS, mine)
    unroll_threefry()
    here = jax.jit(jax.vmap(mine["draws"]))(mine["seeds"])
    code = DRAWS + "for x in jax.jit(jax.vmap(draws))(seeds): print(x.ravel().tolist())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True
    )
    for x, line in zip(here, done.stdout.splitlines(), strict=True):
        np.testing.assert_array_equal(x.ravel(), np.array(eval(line), x.dtype))


def test_no_loop_is_left():
    unroll_threefry()
    key = jax.random.key(0)
    compiled = jax.jit(lambda k: jax.random.normal(k, (10,))).lower(key).compile()
    assert "while" not in compiled.as_text()


def test_xla_fuses_no_two_draws():
    """With jaxlib 0.11 these three were not compiled after ten minutes."""
    unroll_threefry()

    def chain(key):
        keys = jax.random.split(jax.random.fold_in(key, 3), 5)
        return jax.vmap(lambda k: jax.random.uniform(k, (3,)))(keys)

    keys = jax.vmap(jax.random.key)(np.arange(4))
    calls = jax.jit(jax.vmap(chain)).lower(keys).compile().as_text().count(" call(")
    assert calls == 3


def fresh_process(code):
    """Return what code prints on stdout and stderr, in a process without a lowering of ours."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, check=True, cwd=ROOT
    )
    return done.stdout, done.stderr


LOWERED = "print(jax.jit(jax.random.bits).lower(jax.random.key(0)).as_text())"


def test_it_is_on_when_the_runner_starts():
    code = "import jax; from common.runner.program import start_jax; start_jax();"
    output, error = fresh_process(code + LOWERED)
    assert "stablehlo.xor" in output and "stablehlo.while" not in output
    assert error == ""


@pytest.mark.parametrize(
    "change, says",
    [
        ("sys.modules['jax.extend.mlir'] = None", "jax.extend.mlir"),
        ("del jax.interpreters.mlir.register_lowering", "register_lowering"),
        ("del jax.extend.random.threefry2x32_p", "threefry2x32_p"),
        ("threefry.lower = lambda context, *x: context.no_such_field", "no_such_field"),
        ("threefry.lower = lambda context, *x: x[:1]", ""),  # one word of two
        ("threefry.threefry2x32 = lambda shape, *x: [None, None]", ""),  # not MLIR values
    ],
)
def test_if_jax_has_changed_its_own_rule_stays_and_one_line_warns(change, says):
    code = "import sys, jax, jax.extend.random, jax.interpreters.mlir\n"
    code += f"from common.runner import threefry\n{change}\nthreefry.unroll_threefry()\n"
    code += "print(jax.random.bits(jax.random.key(3), (2,)).tolist())\n"
    output, error = fresh_process(code + LOWERED)
    assert error.count("\n") == 1 and len(error) <= 200 and says in error
    assert error.startswith("warning: random numbers will be slower on CPUs")
    bits, _, text = output.partition("\n")
    assert bits == str(jax.random.bits(jax.random.key(3), (2,)).tolist())
    assert "stablehlo.while" in text
