"""compare.py: curves, final returns and statistics over runs, against numbers worked by hand."""

import csv
import json
import types
from pathlib import Path

import numpy as np
import pytest
from helpers import run_here

from common.runner import results
from common.runner.statistics import interval, iqm, pooled_iqm
from common.tools import compare
from common.tools.compare import estimate, improvement, normalised, profile_at

# Scores of two algorithms, seeds x tasks, and thresholds of their profiles.
X = np.array([[0.1, 0.9], [0.4, 0.5], [0.4, 0.7], [0.8, 0.2], [0.6, 0.6], [0.95, 0.3]])
Y = np.array([[0.2, 0.4], [0.4, 0.45], [0.3, 0.7], [0.55, 0.1], [0.7, 0.35], [0.1, 0.6]])
Y = np.concatenate([Y, [[0.35, 0.25]]])
THRESHOLDS = np.array([0, 0.1, 0.25, 0.4, 0.55, 0.7, 0.9, 1])
FAST = "--env-id FrozenLake-tabular --total-timesteps 500 --eval-episodes 2 --quiet"
EVERY_SEED = [1.0, 2.0, 3.0, 4.0, 5.0]


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    """Runs are named as a user names them, in less than a line."""
    monkeypatch.chdir(tmp_path)


def write_run(
    folder,
    algorithm="dqn",
    env_id="CartPole-v1",
    finals=(EVERY_SEED,),
    *,
    seed=0,
    num_rows=4,
    every=10,
    sweep=(),
    diverged=(),
    evaluated=True,
    config=None,
    run=None,
):
    """A finished run: training returns climb in a line to the final one [settings][seeds]; `sweep`
    holds the swept fields of each setting."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    swept = list(sweep[0]) if sweep else []
    metrics = [["seed", *swept, "step", "episode_return", "loss", "episodes"]]
    episodes = [["seed", *swept, "episode", "episode_return", "episode_length"]]
    for g, row in enumerate(finals):
        fields = [sweep[g][name] for name in swept]
        for i in range(num_rows):
            for s, final in enumerate(row):
                x = final * (i + 1) / num_rows
                lost = (seed + s, g) in diverged and i > 0
                values = ["nan", "nan", 0] if lost else [x, 7, 2]
                metrics.append([seed + s, *fields, every * (i + 1), *values])
        for s, final in enumerate(row):
            final = float("nan") if (seed + s, g) in diverged else final
            episodes += [[seed + s, *fields, k, final + d, 9] for k, d in enumerate((-0.5, 0.5))]
    config = {"env_id": env_id, "total_timesteps": 40, "learning_rate": 0.1} | (config or {})
    flags = {"algorithm": algorithm, "config": config, "run": {"seed": seed} | (run or {})}
    (folder / "config.json").write_text(json.dumps(flags))
    failed = [{"seed": s, **(sweep[g] if sweep else {}), "update": 3} for s, g in diverged]
    (folder / "summary.json").write_text(json.dumps({"diverged_seeds": failed}))
    for name, rows in {"metrics": metrics, "evaluation": episodes}.items():
        if name == "metrics" or evaluated:
            with open(folder / f"{name}.csv", "w", newline="") as file:
                csv.writer(file).writerows(rows)
    return folder


def compared(*arguments, has_picture=False):
    """The rows of compare.csv, grouped by table, and what was printed."""
    with pytest.MonkeyPatch.context() as patch:
        if not has_picture:
            patch.setattr(compare, "draw", lambda *_: None)
        done = run_here("common.compare", *arguments)
    assert not has_picture or Path("compare.png").stat().st_size > 10_000
    assert Path("compare.md").read_text() in done.stdout
    tables = types.SimpleNamespace(**{name: [] for name in compare.TABLES}, text=done.stdout)
    with open("compare.csv", newline="") as file:
        for row in csv.DictReader(file):
            for name in ("x", "value", "low", "high"):
                row[name] = float(row[name]) if row[name] else None
            getattr(tables, row.pop("table")).append(row)
    return tables


def refused(*arguments):
    """The one line with which a comparison is refused; nothing is written."""
    done = run_here("common.compare", *arguments, "--out", "refused.png", check=2)
    assert done.stderr.count("\n") == 1 and done.stdout == ""
    assert not list(Path().glob("refused*"))
    return done.stderr


def values(rows, *names):
    return [tuple(row[name] for name in names) for row in rows]


# Statistics


def test_improvement_counts_pairs_and_halves_of_ties():
    one = improvement(np.array([1.0, 3, 2]), np.array([2.0, 2]), axis=-1)
    assert one == (0 + 0 + 1 + 1 + 0.5 + 0.5) / 6
    two = improvement(
        np.array([1.0, 3]), np.array([5.0]), np.array([2.0, 2]), np.array([5.0, 4]), axis=-1
    )
    assert two == ((0 + 0 + 1 + 1) / 4 + (0.5 + 1) / 2) / 2  # the mean over two tasks
    assert improvement(X[:, 0], X[:, 0], axis=-1) == 0.5


def test_a_profile_is_the_share_of_scores_above_each_threshold_over_tasks():
    profile = profile_at(np.array([0.0, 1.0, 2.5]))
    x, y = np.array([0.0, 1.0, 2.0, 3.0]), np.array([2.0, 3.0])
    np.testing.assert_array_equal(profile(x, axis=-1), [3 / 4, 2 / 4, 1 / 4])
    expected = [(3 / 4 + 1) / 2, (2 / 4 + 1) / 2, (1 / 4 + 1 / 2) / 2]
    np.testing.assert_array_equal(profile(x, y, axis=-1), expected)
    twice = profile(np.stack([x, x]), np.stack([y, y]), axis=-1)  # resamples have an axis before
    np.testing.assert_array_equal(twice, np.stack([expected, expected], -1))


def test_intervals_resample_seeds_within_their_task():
    """A plain loop over resamples agrees; one that mixes tasks would be far wider."""
    low_task, high_task = np.arange(8.0), 100 + np.arange(6.0)
    rng = np.random.default_rng(1)
    draws = [
        pooled_iqm(rng.choice(low_task, 8), rng.choice(high_task, 6), axis=-1) for _ in range(4000)
    ]
    value, low, high = estimate((low_task, high_task), pooled_iqm)
    assert value == iqm(np.concatenate([low_task, high_task]))
    assert (low, high) == pytest.approx(np.quantile(draws, (0.025, 0.975)), abs=1.5)
    assert estimate((low_task,), pooled_iqm)[1:] == interval(low_task)


def test_too_few_seeds_in_a_task_have_no_interval():
    assert estimate((np.arange(8.0), np.arange(4.0)), pooled_iqm)[1:] == (None, None)
    assert estimate((np.arange(8.0), np.arange(5.0)), pooled_iqm)[1] is not None


def test_normalised_scores_may_leave_the_range_but_not_divide_by_zero():
    np.testing.assert_array_equal(normalised(np.array([0.0, 5, 10]), 5, 7), [-2.5, 0, 2.5])
    np.testing.assert_array_equal(normalised(np.array([3.0, 3.0]), 3, 3), [1, 1])


def test_definitions_are_those_of_rliable_whose_numbers_are_these():
    """Of rliable 1.2.0, with 20,000 resamples for intervals."""
    x, y = list(X.T), list(Y.T)
    assert pooled_iqm(*x, axis=-1) == pytest.approx(0.5333333333333333, abs=1e-15)
    assert pooled_iqm(*y, axis=-1) == pytest.approx(0.38125000000000003, abs=1e-15)
    assert improvement(*x, *y, axis=-1) == pytest.approx(0.6726190476190477, abs=1e-15)
    assert improvement(*y, *x, axis=-1) == pytest.approx(0.3273809523809524, abs=1e-15)
    of_x = [1, 0.9166666666666666, 0.8333333333333334, 0.5833333333333334, 0.5, 0.25]
    of_y = [1, 0.8571428571428571, 0.7142857142857143, 0.35714285714285715, 0.21428571428571427]
    profile = profile_at(THRESHOLDS)
    np.testing.assert_allclose(profile(*x, axis=-1), [*of_x, 0.08333333333333333, 0], rtol=1e-14)
    np.testing.assert_allclose(profile(*y, axis=-1), [*of_y, 0, 0, 0], rtol=1e-14)
    assert estimate(x, pooled_iqm)[1:] == pytest.approx((0.35, 0.73333333), abs=0.02)
    assert estimate(y, pooled_iqm)[1:] == pytest.approx((0.26875, 0.50625), abs=0.02)
    assert estimate(x + y, improvement)[1:] == pytest.approx((0.44627976, 0.88095238), abs=0.02)
    _, low, high = estimate(x, profile)
    low_of_x = [1, 0.75, 0.58333333, 0.33333333, 0.25, 0, 0, 0]
    np.testing.assert_allclose(low, low_of_x, atol=1e-8)
    np.testing.assert_allclose(high, [1, 1, 1, 0.83333333, 0.75, 0.5, 0.25, 0], atol=1e-8)


@pytest.mark.filterwarnings("ignore")  # of its dependencies
def test_rliable_agrees_where_it_is_installed():
    library = pytest.importorskip("rliable.library", exc_type=(ImportError, TypeError))
    from rliable import metrics  # pyright: ignore[reportMissingImports]

    generator = np.random.default_rng(5)
    x, y = generator.normal(0.6, 0.3, (9, 4)), generator.normal(0.4, 0.2, (7, 4)).round(1)
    assert pooled_iqm(*x.T, axis=-1) == pytest.approx(metrics.aggregate_iqm(x), abs=1e-14)
    chance = metrics.probability_of_improvement(x, y)
    assert improvement(*x.T, *y.T, axis=-1) == pytest.approx(chance, abs=1e-14)
    np.random.seed(0)  # noqa: NPY002  rliable draws from it
    thresholds = np.linspace(0, 1, 11)
    profiles, bands = library.create_performance_profile({"y": y}, thresholds)
    value, low, high = estimate(list(y.T), profile_at(thresholds))
    np.testing.assert_allclose(value, profiles["y"], rtol=1e-13)
    np.testing.assert_allclose((low, high), bands["y"], atol=0.05)
    each = lambda function: lambda *scores: np.array([function(*scores)])
    _, bands = library.get_interval_estimates({"x": x}, each(metrics.aggregate_iqm), reps=4000)
    assert estimate(list(x.T), pooled_iqm)[1:] == pytest.approx(bands["x"].ravel(), abs=0.02)
    both = {"x > y": [x, y]}
    chances = each(metrics.probability_of_improvement)
    _, bands = library.get_interval_estimates(both, chances, reps=2000)
    samples = [*x.T, *y.T]
    assert estimate(samples, improvement)[1:] == pytest.approx(bands["x > y"].ravel(), abs=0.02)


# Runs of one environment


def test_two_algorithms_on_one_environment():
    a = write_run("a", "dqn", finals=[[1, 2, 3, 4, 5]])
    b = write_run("b", "ppo", finals=[[3, 4, 5, 6, 7, 8]], num_rows=2, every=30)
    tables = compared(a, b, has_picture=True)
    final = values(tables.final, "algorithm", "value", "low", "high", "seeds")
    assert final[0] == ("dqn", 3, *(round(x, 6) for x in interval([1, 2, 3, 4, 5])), "5")
    assert final[1][:2] == ("ppo", 5.5) and final[1][4] == "6"
    assert tables.normalised == []  # one environment needs no scale
    wins = sum((x > y) + 0.5 * (x == y) for x in range(1, 6) for y in range(3, 9))
    (pair,) = tables.improvement
    assert (pair["algorithm"], pair["versus"]) == ("dqn", "ppo")
    assert pair["value"] == pytest.approx(wins / 30) and pair["low"] < wins / 30 < pair["high"]
    dqn = [row for row in tables.profile if row["algorithm"] == "dqn"]
    assert (dqn[0]["x"], dqn[0]["value"]) == (1, 0.8) and (dqn[-1]["x"], dqn[-1]["value"]) == (8, 0)
    assert (
        "| dqn | 5 | 3 [{:.4g}, {:.4g}] | 1 | 5 |  |".format(*interval(EVERY_SEED)) in tables.text
    )
    assert f"| dqn > ppo | {pair['value']:.4g} [" in tables.text


def test_curves_share_steps_and_end_where_their_runs_end():
    a = write_run("a", "dqn", num_rows=4, every=10)  # to 40, by 10
    b = write_run("b", "ppo", num_rows=2, every=15)  # to 30, by 15
    curve = compared(a, b).curve
    of = {
        x: values((r for r in curve if r["algorithm"] == x), "x", "value") for x in ("dqn", "ppo")
    }
    # IQM of 1 to 5 is 3; dqn's IQM is 3 x / 40, ppo's 3 x / 30.
    assert of["dqn"] == [(x, pytest.approx(3 * x / 40)) for x in (10, 15, 20, 30, 40)]
    assert of["ppo"] == [(x, pytest.approx(3 * x / 30)) for x in (15, 20, 30)]


def test_runs_with_other_seeds_are_one_sample():
    a = write_run("runs/a", finals=[[1, 2, 3]])
    write_run("runs/b", finals=[[4, 5, 6, 7]], seed=3)
    (row,) = compared("runs").final
    assert row["seeds"] == "7" and row["value"] == 4 and row["low"] is not None
    (row,) = compared(a).final
    assert row["seeds"] == "3" and row["value"] == 2 and row["low"] is row["high"] is None
    again = refused("runs", a)
    assert "have both seed 0 of CartPole-v1" in again and "A=" in again


def test_settings_that_differ_name_the_curves():
    slow = write_run("slow", config={"learning_rate": 0.01, "gamma": 0.9})
    fast = write_run("fast", config={"learning_rate": 0.1, "gamma": 0.9})
    other = write_run("other", "ppo", config={"learning_rate": 5})
    names = ["dqn learning_rate=0.01", "dqn learning_rate=0.1", "ppo"]
    tables = compared(slow, fast, other)
    assert [row["algorithm"] for row in tables.final] == names
    tables = compared(f"careful={slow}", f"bold={fast}")
    assert [row["algorithm"] for row in tables.final] == ["careful", "bold"]
    assert "differ on CartPole-v1 in --learning-rate" in refused(f"x={slow},{fast}")
    assert "are of other algorithms" in refused(f"x={slow},{other}")


def test_each_setting_of_a_sweep_is_a_curve():
    sweep = [{"learning_rate": 0.1, "act": "a,b"}, {"learning_rate": 0.2, "act": "a,b"}]
    config = {"act": "c"}
    run = write_run(
        "a",
        finals=[EVERY_SEED, [9, 9, 9, 9, 9]],
        sweep=sweep,
        config=config,
        diverged={(4, 1)},
    )
    tables = compared(run, has_picture=True)
    expected = [("dqn learning_rate=0.1", 3), ("dqn learning_rate=0.2", 9)]
    assert values(tables.final, "algorithm", "value") == expected
    assert "| dqn learning_rate=0.2 | 5 | 9 [" in tables.text and "| 1 | 9 | 1 |" in tables.text
    named = compared(f"mine={run}").final
    assert [row["algorithm"] for row in named] == [x.replace("dqn", "mine") for x, _ in expected]
    many = [{"learning_rate": x} for x in range(9)]
    run = write_run("many", finals=[EVERY_SEED] * 9, sweep=many)
    assert "9 curves" in refused(run)


def test_a_sweep_over_environments_is_several_tasks():
    sweep = [{"env_id": "CartPole-v1"}, {"env_id": "Acrobot-v1"}]
    run = write_run("a", finals=[EVERY_SEED] * 2, sweep=sweep)
    tables = compared(run)
    names = values(tables.final, "env_id", "algorithm")
    assert names == [("CartPole-v1", "dqn"), ("Acrobot-v1", "dqn")]


def test_a_seed_that_diverged_is_the_worst():
    a = write_run("a", "dqn", finals=[[5, 6, 7, 8, 9, 6, 7, 8]], diverged={(4, 0)})
    b = write_run("b", "ppo", finals=[[3, 6, 7, 8, 9, 6, 7, 8]])
    tables = compared(a, b)
    scores = [5, 6, 7, 8, 3, 6, 7, 8]  # the 9 was lost, and the worst of both runs is 3
    assert tables.final[0]["value"] == iqm(scores) and tables.final[0]["seeds"] == "8"
    last = [row for row in tables.curve if row["algorithm"] == "dqn" and row["x"] == 40]
    lowest = 3 / 4  # of all curves: its first point
    assert last[0]["value"] == pytest.approx(iqm([5, 6, 7, 8, lowest, 6, 7, 8]))
    assert "| 3 | 8 | 1 |" in tables.text


def test_training_scores_where_a_run_was_not_evaluated():
    a = write_run("a", finals=[[10, 20, 30, 40]], num_rows=20, evaluated=False)
    b = write_run("b", "ppo", finals=[[10, 20, 30, 40]], num_rows=20)
    tables = compared(a, b)  # the last tenth is 2 rows of 20: 95 and 100 %
    assert values(tables.final, "value") == [(25 * 0.975,)] * 2
    assert "return over the last tenth of training" in tables.text
    assert values(compared(b).final, "value") == [(25,)]
    assert values(compared(b, "--score", "training").final, "value") == [(25 * 0.975,)]
    assert f"{a} has no evaluation" in refused(b, a, "--score", "evaluation")


# Several environments


def test_scores_of_several_environments_are_normalised():
    for name, on_cart, on_swing in (("dqn", 0, -300), ("ppo", 5, -100)):
        finals = [[on_cart + x for x in (1, 2, 3, 4, 5)]]
        write_run(f"runs/{name}-cart", name, finals=finals)
        finals = [[on_swing + 10 * x for x in range(6)]]
        write_run(f"runs/{name}-swing", name, "Acrobot-v1", finals=finals)
    tables = compared("runs", has_picture=True)
    cart, swing = np.arange(5) / 9, np.arange(0, 60, 10) / 250  # of 1 to 10, and of -300 to -50
    scores = {
        "dqn": np.concatenate([cart, swing]),
        "ppo": np.concatenate([cart + 5 / 9, swing + 200 / 250]),
    }
    for row in tables.normalised:
        assert row["value"] == pytest.approx(iqm(scores[row["algorithm"]]), abs=1e-6)
        assert row["low"] < row["value"] < row["high"] and row["env_id"] == ""
    assert values(tables.improvement, "value", "low", "high") == [(0, 0, 0)]
    assert "CartPole-v1 1 to 10, Acrobot-v1 -300 to -50" in tables.text
    given = ("--normalize", "CartPole-v1=0,20", "Acrobot-v1=-500,0")
    tables = compared("runs", *given)
    dqn = np.concatenate([np.arange(1, 6) / 20, (200 + np.arange(0, 60, 10)) / 500])
    assert tables.normalised[0]["value"] == pytest.approx(iqm(dqn), abs=1e-6)


def test_only_environments_of_all_algorithms_are_averaged():
    a = write_run("a", "dqn")
    b = write_run("b", "dqn", "Acrobot-v1")
    c = write_run("c", "ppo")
    tables = compared(a, b, c)
    assert [row["seeds"] for row in tables.normalised] == ["5", "5"]
    assert "1 of 2 environments" in tables.text
    d = write_run("d", "sac", "Acrobot-v1")
    tables = compared(a, d, has_picture=True)
    assert not (tables.normalised or tables.improvement or tables.profile)
    assert "No environment has runs of all algorithms" in tables.text


# Refusals


@pytest.mark.parametrize(
    "first, second",
    [
        ({"env_id": "CartPole-v1+gravity=9"}, {}),
        ({"env_id": "CartPole-v1+gravity=9"}, {"env_id": "CartPole-v1+gravity=8"}),
        ({"opponent": "random"}, {"opponent": "perfect"}),
    ],
)
def test_other_parameters_of_an_environment_are_another_task(first, second):
    a = write_run("a", config=first)
    b = write_run("b", "ppo", config=second)
    assert "a and b are not one task: CartPole-v1+" in refused(a, b)
    compared(a)


def test_variants_that_all_algorithms_were_run_on_are_environments():
    for name in ("dqn", "ppo"):
        write_run(f"{name}-9", name, "CartPole-v1+gravity=9+max_steps_in_episode=50")
        sweep = [{"env.gravity": 8}, {"env.gravity": 9}]
        env_id = "CartPole-v1+gravity=1+max_steps_in_episode=50"  # the swept one counts
        write_run(f"{name}-swept", name, env_id, [EVERY_SEED] * 2, sweep=sweep, seed=5)
    tables = compared("dqn-9", "ppo-9", "dqn-swept", "ppo-swept")
    names = [f"CartPole-v1+gravity={x}+max_steps_in_episode=50" for x in (9, 8)]
    expected = [(names[0], x, "10") for x in ("dqn", "ppo")]
    expected += [(names[1], x, "5") for x in ("dqn", "ppo")]
    assert values(tables.final, "env_id", "algorithm", "seeds") == expected
    assert "not one task" in refused("dqn-9", "ppo-swept")


def test_what_cannot_be_compared_is_refused_in_one_line():
    a = write_run("a")
    assert "no run there (no folder)" in refused(a, "nothing")
    Path("empty").mkdir()
    assert "no run there (it has no config.json" in refused("empty")
    assert "--metric lost: " in refused(a, "--metric", "lost")
    assert "write ENV=LOW,HIGH" in refused(a, "--normalize", "CartPole-v1=5,5")
    assert "no run is of it" in refused(a, "--normalize", "Pong=0,1")
    b = write_run("b", "ppo", run={"eval_policy": "sample"})
    assert "with different --eval-policy" in refused(a, b)
    compared(a, b, "--score", "training")
    c = write_run("c", "value_iteration")
    flags = json.loads((c / "config.json").read_text())
    del flags["config"]["total_timesteps"]
    (c / "config.json").write_text(json.dumps(flags))
    assert "one axis cannot show both" in refused(a, c)
    d = write_run("d", finals=[[1, 2]], diverged={(0, 0), (1, 0)})
    assert "no seed has a return of its evaluation" in refused(d)
    Path(a, "metrics.csv").write_text("seed,step\n1,x\n")
    assert f"{a}: metrics cannot be read" in refused(a)
    done = run_here("common.compare", b, "--out", "no/x.png", check=2)
    assert "cannot write" in done.stderr and done.stderr.count("\n") == 1


def test_an_unfinished_run_is_refused_or_left_out_of_a_folder():
    write_run("runs/a")
    b = write_run("runs/b", "ppo")
    (b / "summary.json").unlink()
    assert f"--resume {b}" in refused(b)
    out = "compare.png"
    done = run_here("common.compare", "runs", "--out", out)
    assert "is not finished; it is left out" in done.stderr and "ppo" not in done.stdout


# Runs as they are


@pytest.fixture
def _without_pictures(monkeypatch):
    monkeypatch.setattr(results, "draw_training", lambda *_: None)
    monkeypatch.setattr(results, "draw_best", lambda *_: None)


@pytest.mark.usefixtures("_without_pictures")
def test_real_runs_compare():
    flags = FAST.split()
    seeds = ["--num-seeds", "6"]
    run_here("algorithms.sarsa", *flags, *seeds, "--out", "sarsa")
    swept = ["--sweep", "learning_rate=0.1,0.5"]
    run_here("algorithms.q_learning", *flags, *seeds, *swept, "--out", "q")
    tables = compared("sarsa", "q")
    summaries = [json.loads(Path(x, "summary.json").read_text()) for x in ("sarsa", "q")]
    of = {row["algorithm"]: row for row in tables.final}
    assert set(of) == {"sarsa", "q_learning learning_rate=0.1", "q_learning learning_rate=0.5"}
    expected = [("sarsa", summaries[0]["evaluation"])]
    expected += [(f"q_learning {row['setting']}", row) for row in summaries[1]["sweep"]]
    for label, row in expected:
        found = [of[label][name] for name in ("value", "low", "high")]
        assert found == pytest.approx([row["iqm"], row["low"], row["high"]], rel=1e-6)


@pytest.mark.usefixtures("_without_pictures")
def test_tables_in_parquet_are_read_as_those_in_csv():
    pytest.importorskip("pyarrow")
    flags = FAST.split()
    flags += ["--num-seeds", "3", "--sweep", "learning_rate=0.1,0.5"]
    for name, more in (("text", []), ("binary", ["--parquet"])):
        run_here("algorithms.q_learning", *flags, *more, "--out", name)
    tables = [compared(name) for name in ("text", "binary")]
    for name in compare.TABLES:
        for a, b in zip(*(getattr(x, name) for x in tables), strict=True):
            assert a == b | {k: pytest.approx(b[k], rel=1e-6) for k in ("x", "value") if b[k]}
