"""How near an update is to the machine's limits: the counts, against programs of known work."""

import jax
import jax.numpy as jnp
import pytest

from algorithms import q_learning
from benchmarks import limits, updates
from benchmarks.limits import Rates, Work, work_of


def count(function, *arguments):
    return work_of(jax.make_jaxpr(function)(*arguments))


def test_products_count_multiplications_and_additions():
    a, b = jnp.ones((3, 4)), jnp.ones((4, 5))
    assert count(lambda a, b: a @ b, a, b) == Work(products=2 * 3 * 4 * 5)
    batched = count(jax.vmap(lambda a: a @ b), jnp.ones((7, 3, 4)))
    assert batched == Work(products=7 * 2 * 3 * 4 * 5)


def test_loops_count_as_often_as_they_run_and_inner_functions_once():
    a = jnp.ones((2, 2))

    def looped(a):
        return jax.lax.scan(lambda x, _: (jax.jit(lambda y: y @ y)(x), None), a, None, 6)[0]

    assert count(looped, a) == Work(products=6 * 16)
    assert count(lambda a: looped(looped(a)), a) == Work(products=12 * 16)


def test_the_dearer_branch_counts():
    a = jnp.ones((2, 2))
    work = count(lambda a: jax.lax.cond(a[0, 0] > 0, lambda: a @ a @ a, lambda: a), a)
    assert work.products == 2 * 16


def test_random_words_are_counted():
    key = jax.random.key(0)
    assert count(lambda key: jax.random.bits(key, (5,)), key) == Work(random_words=5)
    assert count(lambda key: jax.random.uniform(key, (3, 2)), key).random_words == 6


def test_operations_on_single_numbers_are_counted():
    x = jnp.ones((3, 4))
    assert count(lambda x: x * x + 1, x) == Work(cheap=2 * 12)
    assert count(lambda x: jnp.exp(x) / x, x) == Work(dear=2 * 12)
    assert count(lambda x: jnp.sum(x, axis=0), x) == Work(cheap=12)  # of what goes in
    looped = lambda x: jax.lax.fori_loop(0, 5, lambda _, x: jnp.tanh(x), x)
    assert count(looped, x).dear == 5 * 12


def test_replay_memory_is_no_traffic_of_an_update():
    from helpers import small_config

    from algorithms import dqn

    state = jax.eval_shape(dqn.make(small_config(dqn)).init, jax.random.key(0))
    whole = limits.bytes_without_replay(tuple(state))
    ring = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.buffer))
    assert limits.bytes_without_replay(state) == whole - ring > 0


def test_a_line_has_the_largest_floor_and_the_ratio_to_it():
    run = updates.compiled("q_learning", 2, "")
    run.microseconds = [3.0, 100.0, 5.0]
    line = limits.line_of(run, Rates(1e9, 1e-6, 1e9, 1e9, 1e9), load=0.5)
    made = q_learning.make(q_learning.Config())
    update = 5.0 * made.steps_per_update * 2
    assert line["largest"] == "random" and float(line["update_us"]) == pytest.approx(update, 0.01)
    assert float(line["ratio"]) == pytest.approx(update / float(line["random_us"]), 0.02)
    assert float(line["environment_us"]) > 0 and float(line["memory_us"]) > 0


def test_the_steps_of_an_update_alone_take_less_than_the_update():
    """A call of a program takes longer than the 4 steps of an update of DQN: it must not count."""
    run = updates.compiled("dqn", 1, "")
    updates.play(run, 0.2)
    line = limits.line_of(run, Rates(1e9, 1e9, 1e9, 1e9, 1e9), load=0.5)
    assert 0 < float(line["environment_us"]) < float(line["update_us"])


def test_the_page_has_a_row_for_each_algorithm_and_a_column_for_each_number_of_seeds():
    line = {
        "update_us": "5",
        "ratio": "2",
        "largest": "memory",
        "compile_s": "1.0",
        "warm_compile_s": "0.4",
    }
    lines = [{"algorithm": "dqn", "seeds": "1"} | line, {"algorithm": "a2c", "seeds": "8"} | line]
    lines += [{"algorithm": "dqn", "seeds": "8"} | line | {"ratio": "3", "largest": "products"}]
    head, a2c, dqn = limits.by_algorithm(lines)
    assert head == [
        *("algorithm", "us, 1", "us, 8", "ratio, 1", "ratio, 8", "largest floor", "compile_s"),
        "warm_compile_s",
    ]
    assert a2c == ["a2c", "", "5", "", "2", "memory", "1.0", "0.4"]
    assert dqn == ["dqn", "5", "5", "2", "3", "products", "1.0", "0.4"]
