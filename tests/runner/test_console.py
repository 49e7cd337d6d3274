"""console.py: what a run prints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small_config

from algorithms import dqn
from common.runner.cli import Run, settings
from common.runner.console import display, metric_prefix, spread_text, summary_lines, title
from common.runner.groups import Job, plan
from common.runner.program import init_run


def job(**run):
    run = Run(**run)
    config = small_config(dqn)
    return Job("dqn", dqn.make, config, run, settings(run.sweep, config), None)


def test_the_title_says_what_is_trained_and_how_large_it_is():
    one = job(num_seeds=3, sweep=("gamma=0.9,0.99",))
    text = title(one, plan(one))
    assert text.startswith("dqn · CartPole-v1 · 2 settings x 3 seeds · 1,200 steps each · cpu x2")
    state = jax.jit(dqn.make(one.config).init)(jax.random.key(0))
    leaves = [x for x in jax.tree.leaves(state) if hasattr(x, "nbytes")]
    assert text.endswith(f"{6 * sum(x.nbytes for x in leaves) / 1024:,.0f} KiB")
    assert "in 3 groups" in title(one, plan(job(num_seeds=3, seeds_at_once=1)))


def test_progress_lines_count_the_work_of_all_groups(capsys):
    one = job(num_seeds=2, seeds_at_once=1)
    groups = plan(one)
    algorithm = dqn.make(one.config)
    keys = jax.vmap(jax.random.key)(jnp.arange(1))
    run_state = jax.jit(lambda keys: init_run(algorithm.init, algorithm.update, keys))(keys)
    run_state.mean["episode_return"] = jnp.array([431.0])
    run_state.count["episode_return"] = jnp.array([2])
    with display(one, groups) as show:
        show(0, algorithm.num_updates // 2, 1.0, run_state)
        show(0, algorithm.num_updates, 2.0, run_state)  # within the same second: left out
        show(1, algorithm.num_updates, 4.0, run_state)
    first, last = capsys.readouterr().out.splitlines()
    assert first == " 25 %  500 steps  500 steps/s  0:00:01  return 431"
    assert last == "100 %  2 k steps  500 steps/s  0:00:04  return 431"


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
    bad = [{"seed": s, "update": 17, "gamma": 0.9} for s in range(4)]
    summary = {"training": row, "evaluation": row, "diverged_seeds": bad}
    text = "\n".join(summary_lines(one, summary, ranking))
    assert "1  gamma=0.99  IQM 472 [455, 490]   min 201   max 500   1 diverged\n" in text
    assert "2  gamma=0.9   diverged\n" in text
    assert "4/8 seeds diverged: seed 0 at update 17" in text
    assert spread_text(row) in text and str(tmp_path) in text
    assert not np.any([word in text for word in ("None", "nan")])
