"""console.py: what a run prints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small_config

from algorithms import dqn
from common.runner import console
from common.runner.blocks import Job, plan
from common.runner.cli import Run, settings
from common.runner.console import (
    display,
    free_bytes,
    memory_warning,
    metric_prefix,
    program_bytes,
    spread_text,
    summary_lines,
    title,
)
from common.runner.program import init_run


def job(**run):
    run = Run(**run)
    config = small_config(dqn)
    return Job("dqn", dqn.make, config, run, settings(run.sweep, config), None)


def test_the_title_says_what_is_trained_and_how_large_it_is():
    one = job(num_seeds=3, sweep=("gamma=0.9,0.99",))
    text = title(one, plan(one._replace(run=Run(num_seeds=3, block=3))), 2)
    assert text.startswith("dqn · CartPole-v1 · 2 settings x 3 seeds · 1,200 steps each · cpu x2")
    state = jax.jit(dqn.make(one.config).init)(jax.random.key(0))
    leaves = [x for x in jax.tree.leaves(state) if hasattr(x, "nbytes")]
    assert text.endswith(f"{6 * sum(x.nbytes for x in leaves) / 1024:,.0f} KiB")
    assert "· 6 blocks ·" in title(one, plan(one._replace(run=Run(num_seeds=3, block=1))), 2)


def test_too_many_seeds_are_warned_of_with_a_number_that_fits():
    each, rows = 2**20, 16
    assert memory_warning(each, rows, 16 * each) == ""
    line = memory_warning(each, rows, 10 * each)
    needed, free = 16 * each / 2**30, 10 * each / 2**30
    assert line.startswith(f"warning: needs about {needed:.3g} GiB, of which {free:.3g} are")
    assert line.endswith("--seeds-at-once 8 may fit")
    assert memory_warning(each, rows, each // 2).endswith("not even one seed fits")


def test_a_program_needs_its_arguments_and_what_it_holds_on_the_way():
    def squares(x):
        wide = jnp.outer(x, x) @ jnp.outer(x, x)
        return wide @ x

    x = jnp.ones(500)
    sizes = program_bytes(jax.jit(squares).lower(x).compile())
    assert 4 * 500 + 4 * 500**2 <= sizes <= 4 * 500 + 4 * 4 * 500**2
    assert program_bytes(squares) == 0


def test_the_memory_that_is_free_is_known():
    class Card:
        platform = "gpu"

        def memory_stats(self):
            return {"bytes_limit": 100, "bytes_in_use": 30}

    assert free_bytes([Card(), Card()]) == 140
    assert 2**26 < free_bytes(jax.local_devices()) < 2**45


def test_progress_lines_count_the_work_of_all_blocks(capsys, monkeypatch):
    one = job(num_seeds=2, block=1)
    first, second = blocks = plan(one)
    algorithm = dqn.make(one.config)
    keys = jax.vmap(jax.random.key)(jnp.arange(1))
    run_state = jax.jit(lambda keys: init_run(algorithm.init, algorithm.update, keys))(keys)
    run_state.mean["episode_return"] = jnp.array([431.0])
    run_state.count["episode_return"] = jnp.array([2])
    run_state = jax.device_get(run_state._replace(state=None))
    clock = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    with display(one, blocks) as show:
        show("compiling")
        clock[0] = 10.0
        show("")
        clock[0] = 11.0
        show("", first, algorithm.num_updates // 2, run_state)
        clock[0] = 11.5
        show("", first, algorithm.num_updates, run_state)  # within the same second: left out
        clock[0] = 14.0
        show("", second, algorithm.num_updates, run_state)
        show("evaluating")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "compiling ...",
        " 25 %  500 steps  500 steps/s  0:00:01  return 431",
        "100 %  2 k steps  500 steps/s  0:00:04  return 431",
        "evaluating ...",
    ]


@pytest.mark.parametrize(
    "x, text",
    [
        (0, "0 "),
        (999, "999 "),
        (1_000, "1 k "),
        (118_400, "118 k "),
        (1.6e6, "1.6 M "),
        (3e9, "3 G "),
    ],
)
def test_numbers_have_a_metric_prefix(x, text):
    assert metric_prefix(x) == text


def test_the_last_lines_rank_and_name_who_diverged(tmp_path):
    one = job(num_seeds=4, sweep=("gamma=0.9,0.99",))._replace(folder=tmp_path)
    row = {"iqm": 472.0, "low": 455.0, "high": 490.0, "min": 201.0, "max": 500.0}
    ranking = [{"rank": 1, "setting": "gamma=0.99", "diverged": 1, **row}]
    ranking += [{"rank": 2, "setting": "gamma=0.9", "diverged": 4, **dict.fromkeys(row)}]
    ranking = [x | {"best_probability": None} for x in ranking]  # too few seeds
    bad = [{"seed": s, "update": 17, "gamma": 0.9} for s in range(4)]
    summary = {"training": row, "evaluation": row, "fresh_evaluation": row, "retrained": None}
    summary |= {"diverged_seeds": bad, "best": {"gamma": 0.99}, "steps": 500, "episodes": 0}
    summary |= {"unfinished_episodes": 3}
    text = "\n".join(summary_lines(one, summary, ranking))
    assert "1  gamma=0.99  IQM 472 [455, 490]   min 201   max 500   1 diverged\n" in text
    assert "2  gamma=0.9   diverged\n" in text and "%: share of" not in text
    for x, share in zip(ranking, (0.875, 0.125), strict=True):
        x["best_probability"] = share
    sure = "\n".join(summary_lines(one, summary, ranking))
    assert "1   88%  gamma=0.99  IQM" in sure and "2   12%  gamma=0.9   diverged\n" in sure
    assert "%: share of resamples of the seeds in which it leads" in sure
    assert "on fresh episodes, 100 episodes: IQM 472" in text
    assert "no episode ended within 500 steps" in text
    assert "3 episodes of the evaluation had not ended after 100,000 steps" in text
    assert "4/8 seeds diverged: seed 0 at update 17" in text
    assert spread_text(row) in text and str(tmp_path) in text
    assert not np.any([word in text for word in ("None", "nan")])
