"""Compare finished runs: curves, final returns, and which algorithm is better how surely.

    python -m common.compare runs/a runs/b ... [--out compare.png]

An argument is the folder of a run, or a folder with runs in it. Runs of one algorithm are one
curve; where their settings differ on one environment (those of a sweep do) each is a curve of its
own, named after what differs. `NAME=FOLDER,FOLDER` names a curve. Runs with the same settings and
other seeds are one sample.

Writes a picture, and beside it all its numbers (.csv) and the tables (.md): for each environment
the IQM over seeds along training and of the final return, and over the environments that all have
been run on the normalised return, the probability of improvement and the performance profile, all
with 95 % intervals from a bootstrap that resamples the seeds of each environment (Agarwal et al.
2021, https://arxiv.org/abs/2108.13264). With fewer than 5 seeds there is no interval. A seed that
diverged counts as the worst of the environment. Exit code 2 if the runs cannot be compared.
"""

import csv
import io
import itertools
import json
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.algorithm import flag
from common.runner import plots
from common.runner.blocks import setting_label
from common.runner.checkpoint import write_atomically
from common.runner.cli import Run, fail, tool_parser, warn
from common.runner.console import print_line
from common.runner.statistics import (
    MIN_SEEDS,
    bands,
    bootstrap,
    final_scores,
    finite,
    pooled_iqm,
    summarize,
)

MAX_POINTS = 500  # of a curve
NUM_THRESHOLDS = 101  # of a performance profile
TASK_FIELDS = ("opponent",)  # of Config, that make another task of an environment
UNITS = ("updates", "environment steps")  # of dynamic programming, of all others


class Sample(NamedTuple):
    """Seeds that were trained with the same settings in one run."""

    folder: Path
    name: str  # given on the command line, or ""
    algorithm: str
    env_id: str  # with what else makes the task, as in CartPole-v1+gravity=9.8
    fields: dict[str, str]  # of the algorithm's Config, as text, but those
    policy: str  # that the evaluation played, --eval-policy
    unit: str  # of the steps
    seeds: np.ndarray  # [S]
    steps: np.ndarray  # [L]
    curves: np.ndarray  # [S, L] the metric; NaN: nothing to report
    is_diverged: np.ndarray  # [S]
    scores: dict[str, np.ndarray]  # [S] the final return by how it was measured; NaN: none


class Cell(NamedTuple):
    """One curve on one environment, of all its samples."""

    samples: list[Sample]
    curves: np.ndarray  # [S, P] at the points of the environment
    scores: np.ndarray  # [S] the worst one of the environment where a seed has none
    num_failed: int  # seeds without a score


class Comparison(NamedTuple):
    """What is drawn and written. Dictionaries of cells have keys (env_id, label)."""

    labels: list[str]
    env_ids: list[str]
    shared: list[str]  # the environments that every label has been run on
    measure: str  # of the final return
    metric: str  # of the curves
    points: dict[str, np.ndarray]  # [P] steps, by environment
    cells: dict[tuple[str, str], Cell]
    bounds: dict[str, tuple[float, float]]  # the returns that are 0 and 1, by environment
    given: dict[str, tuple[float, float]]  # those of --normalize
    is_normalised: bool


def main() -> None:
    """Compare what the command line asks for, and print the tables."""
    parser = tool_parser("compare", __doc__)
    parser.add_argument("runs", nargs="+", help="folders; NAME=FOLDER,FOLDER names a curve")
    parser.add_argument("--out", default="compare.png", help="the picture (compare.png)")
    parser.add_argument("--metric", default="episode_return", help="of the curves (episode_return)")
    parser.add_argument(
        "--score",
        choices=("evaluation", "training"),
        help="final return: of the final policies' episodes (default where all runs have them), "
        "or of the last tenth of training",
    )
    parser.add_argument(
        "--normalize",
        nargs="+",
        default=[],
        metavar="ENV=LOW,HIGH",
        help="returns that count as 0 and as 1; by default the worst and the best of all seeds",
    )
    args = parser.parse_args()
    out = Path(args.out)
    try:
        if out.suffix != ".png":
            raise ValueError(f"--out {out}: the picture is a .png")
        given = dict(read_bounds(text) for text in args.normalize)
        samples = [x for text in args.runs for x in read_argument(text, args.metric)]
        comparison = compare(samples, args.metric, args.score, given)
    except ValueError as error:
        fail(2, str(error))
    rows = table_rows(comparison)
    text = markdown(comparison, rows)
    try:
        write_csv(out.with_suffix(".csv"), rows)
        write_text(out.with_suffix(".md"), text)
        draw(out, comparison, rows)
    except OSError as error:
        fail(2, f"cannot write {out}: {error.strerror}; choose another --out")
    wrote = f"wrote {out}, {out.with_suffix('.csv').name}, {out.with_suffix('.md').name}"
    print_line(Run(), text, wrote)


# Reading


def read_bounds(text: str) -> tuple[str, tuple[float, float]]:
    """Return the environment and the two returns of ENV=LOW,HIGH. ValueError if it is not that."""
    env_id, _, values = text.rpartition("=")
    try:
        low, high = (float(x) for x in values.split(","))
    except ValueError:
        low, high = 0.0, 0.0
    if not env_id or not low < high or not np.isfinite((low, high)).all():
        raise ValueError(f"--normalize {text}: write ENV=LOW,HIGH, for example CartPole-v1=0,500")
    return env_id, (low, high)


def read_argument(text: str, metric: str) -> Iterator[Sample]:
    """Yield the samples of one argument: FOLDER, or NAME=FOLDER,FOLDER. ValueError if a folder has
    no finished run."""
    name, _, folders = ("", "", text) if Path(text).exists() else text.rpartition("=")
    for folder in map(Path, folders.split(",") if name else [folders]):
        if (folder / "config.json").exists():
            yield from read_run(folder, name, metric)
            continue
        inside = sorted(x.parent for x in folder.glob("*/config.json"))
        if not inside:
            why = (
                "it has no config.json, nor has a folder in it" if folder.exists() else "no folder"
            )
            raise ValueError(f"{folder}: no run there ({why})")
        for run in inside:
            if (run / "summary.json").exists():
                yield from read_run(run, name, metric)
            else:
                warn(f"warning: {run} is not finished; it is left out")


def read_run(folder: Path, name: str, metric: str) -> Iterator[Sample]:
    """Yield the samples of a run, one for each setting of its sweep. ValueError if it is not
    finished or a file cannot be read."""
    if not (folder / "summary.json").exists():
        raise ValueError(f"{folder} is not finished; train it to the end with --resume {folder}")
    try:
        flags = json.loads((folder / "config.json").read_text())
        algorithm, config, run = flags["algorithm"], flags["config"], flags["run"]
        failures = json.loads((folder / "summary.json").read_text())["diverged_seeds"]
        diverged = [{k: str(x) for k, x in row.items()} for row in failures]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder}: config.json or summary.json cannot be read: {error}") from None
    trained = read_columns(folder, "metrics", "step")
    has_episodes = any((folder / f"evaluation{x}").exists() for x in (".csv", ".parquet"))
    evaluated = read_columns(folder, "evaluation", "episode") if has_episodes else {}
    for setting, rows in trained.items():
        if metric not in rows:
            known = ", ".join(sorted(set(rows) - {"seed", "step", "episodes"}))
            raise ValueError(f"--metric {metric}: {folder} has none of that name, but {known}")
        seeds, steps, tables = as_tables(rows)
        failed = [int(x["seed"]) for x in diverged if dict(setting).items() <= x.items()]
        is_scored = ~np.isin(seeds, failed)
        scores = {"training": final_scores(tables["episode_return"], tables.get("episodes", 1.0))}
        if setting in evaluated:
            seed, returns = (evaluated[setting][x] for x in ("seed", "episode_return"))
            scores["evaluation"] = np.array([returns[seed == k].mean() for k in seeds])
        swept = {k: x for k, x in setting if k in config}
        fields = {k: str(x) for k, x in config.items()} | swept
        base, *given = fields.pop("env_id").split("+")
        task = dict(x.split("=", 1) for x in given if "=" in x)
        task |= {k.removeprefix("env."): x for k, x in setting if k not in config}
        task |= {k: fields.pop(k) for k in TASK_FIELDS if k in fields}
        env_id = "+".join([base, *(f"{k}={x}" for k, x in sorted(task.items()))])
        policy, unit = run.get("eval_policy", "greedy"), UNITS["total_timesteps" in config]
        scores = {kind: np.where(is_scored, x, np.nan) for kind, x in scores.items()}
        what = folder, name, algorithm, env_id, fields, policy, unit
        yield Sample(*what, seeds, steps, tables[metric], ~is_scored, scores)


def as_tables(rows: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Return the seeds [S], the steps [L] and each column [S, L] of rows of metrics; NaN where a
    seed has no such row."""
    seeds, i = np.unique(rows["seed"].astype(int), return_inverse=True)
    steps, j = np.unique(rows["step"], return_inverse=True)
    tables = {name: np.full((len(seeds), len(steps)), np.nan) for name in rows}
    for name, column in rows.items():
        tables[name][i, j] = column
    return seeds, steps, tables


def read_columns(folder: Path, name: str, first: str) -> dict[tuple, dict[str, np.ndarray]]:
    """Return the columns of a table of a run, by setting, ((field, text), ...). Swept fields stand
    between the columns `seed` and `first`. ValueError if the table cannot be read."""
    path = folder / f"{name}.csv"
    try:
        names, texts, numbers = (
            read_csv(path, first)
            if path.exists()
            else read_parquet(path.with_suffix(".parquet"), first)
        )
    except (OSError, ValueError, StopIteration) as error:
        raise ValueError(f"{folder}: {name} cannot be read: {error}") from None
    settings: dict[tuple, list[int]] = {}
    for row, values in enumerate(zip(*texts.values(), strict=True)):
        settings.setdefault(tuple(zip(texts, values, strict=True)), []).append(row)
    if not texts:
        return {(): dict(zip(names, numbers, strict=True))}
    return {x: dict(zip(names, numbers[:, i], strict=True)) for x, i in settings.items()}


def read_csv(path: Path, first: str) -> tuple[list[str], dict[str, list[str]], np.ndarray]:
    """Return the names of the numbers' columns, the swept columns, and the numbers [columns,
    rows]."""
    with open(path, newline="") as file:
        header = next(csv.reader(file))
    swept = header[1 : header.index(first)]
    names = [x for x in header if x not in swept]
    options: dict[str, Any] = {"delimiter": ",", "skiprows": 1, "quotechar": '"', "ndmin": 2}
    numbers = np.loadtxt(path, usecols=[header.index(x) for x in names], **options).T
    columns = [header.index(x) for x in swept]
    texts = np.loadtxt(path, dtype=str, usecols=columns, **options).T.tolist() if swept else []
    return names, dict(zip(swept, texts, strict=True)), numbers


def read_parquet(path: Path, first: str) -> tuple[list[str], dict[str, list[str]], np.ndarray]:
    """Do the same for a table written with --parquet."""
    try:
        from pyarrow import parquet  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("--parquet needs pyarrow: pip install pyarrow") from None
    table = parquet.read_table(path)
    swept = table.column_names[1 : table.column_names.index(first)]
    names = [x for x in table.column_names if x not in swept]
    texts = {x: [str(value) for value in table[x].to_pylist()] for x in swept}
    return names, texts, np.array([table[x].to_numpy() for x in names], float)


# Comparing


def compare(
    samples: list[Sample],
    metric: str,
    score: str | None,
    given: dict[str, tuple[float, float]],
) -> Comparison:
    """Return the comparison of samples. ValueError if they do not compare."""
    grouped = group(samples)
    same_tasks(grouped)
    labels = list(dict.fromkeys(label for _, label in grouped))
    env_ids = list(dict.fromkeys(env_id for env_id, _ in grouped))
    if len(labels) > plots.MAX_SETTINGS:
        raise ValueError(
            f"{len(labels)} curves, and one picture tells {plots.MAX_SETTINGS} apart: name fewer "
            "runs (of a sweep its best setting alone: train it with --retrain-best, then take "
            "<run>/best)"
        )
    measure = measure_of(samples, score)
    for env_id in given:
        if env_id not in env_ids:
            raise ValueError(f"--normalize {env_id}: no run is of it, but of {', '.join(env_ids)}")
    points, cells, bounds = {}, {}, {}
    for env_id in env_ids:
        here = {label: x for (e, label), x in grouped.items() if e == env_id}
        points[env_id] = common_points(x.steps for own in here.values() for x in own)
        scores = {label: joined(x.scores[measure] for x in own) for label, own in here.items()}
        known = finite(joined(scores.values()))
        if not len(known):
            raise ValueError(
                f"no seed has a return of its {measure} on {env_id}: nothing to compare"
            )
        low, high = bounds[env_id] = given.get(env_id, (known.min(), known.max()))
        worst = min(known.min(), low)
        curves = finite(joined(x.curves.ravel() for own in here.values() for x in own))
        lowest = curves.min() if metric.endswith("return") and len(curves) else np.nan
        for label, own in here.items():
            seeds = np.concatenate([resampled(x, points[env_id], lowest) for x in own])
            is_known = np.isfinite(scores[label])
            filled = np.where(is_known, scores[label], worst)
            cells[env_id, label] = Cell(own, seeds, filled, int(np.sum(~is_known)))
    shared = [e for e in env_ids if all((e, label) in cells for label in labels)]
    is_normalised = len(env_ids) > 1 or bool(given)
    return Comparison(
        labels, env_ids, shared, measure, metric, points, cells, bounds, given, is_normalised
    )


def joined(arrays: Iterable[np.ndarray]) -> np.ndarray:
    """Return arrays [n] as one."""
    return np.concatenate(list(arrays))


def group(samples: list[Sample]) -> dict[tuple[str, str], list[Sample]]:
    """Return the samples of each curve, by environment and label. ValueError if two of them are not
    of one sample of seeds."""
    unnamed: dict[tuple[str, str], list[Sample]] = {}
    for x in samples:
        if not x.name:
            unnamed.setdefault((x.algorithm, x.env_id), []).append(x)
    differing = {x.algorithm: set() for x in samples}
    for (algorithm, _), own in unnamed.items():
        differing[algorithm] |= set(differing_fields(own))
    grouped: dict[tuple[str, str], list[Sample]] = {}
    for x in samples:
        if x.name:
            own = [y for y in samples if (y.name, y.folder) == (x.name, x.folder)]
            shown = set(differing_fields([y for y in own if y.env_id == x.env_id]))
        else:
            shown = differing[x.algorithm]
        setting = setting_label({k: value for k, value in x.fields.items() if k in shown})
        label = f"{x.name or x.algorithm} {setting}".strip()
        grouped.setdefault((x.env_id, label), []).append(x)
    for (env_id, label), own in grouped.items():
        for a, b in itertools.combinations(own, 2):
            names = f"{a.folder} and {b.folder}"
            again = f"name them apart, as in A={a.folder} B={b.folder}"
            if a.algorithm != b.algorithm:
                raise ValueError(f"{label}: {names} are of other algorithms on {env_id}; {again}")
            if fields := differing_fields([a, b]):
                what = ", ".join(flag(x) for x in fields)
                raise ValueError(f"{label}: {names} differ on {env_id} in {what}; {again}")
            if twice := sorted(set(a.seeds) & set(b.seeds)):
                raise ValueError(
                    f"{label}: {names} have both seed {twice[0]} of {env_id}, the same training "
                    f"twice; leave one out, or {again}"
                )
    return grouped


def differing_fields(samples: list[Sample]) -> list[str]:
    """Return the fields of Config in which samples differ."""
    names = dict.fromkeys(name for x in samples for name in x.fields)
    return [k for k in names if len({x.fields.get(k) for x in samples}) > 1]


def same_tasks(grouped: dict[tuple[str, str], list[Sample]]) -> None:
    """Raise ValueError unless the curves of an environment can share its axes, and unless all have
    been run on each of its variants, if there are several: else they would be apart unseen."""
    labels: dict[str, dict[str, Sample]] = {}
    for (env_id, label), own in grouped.items():
        labels.setdefault(env_id, {})[label] = own[0]
    for one, two in itertools.combinations(labels, 2):
        if one.partition("+")[0] != two.partition("+")[0] or set(labels[one]) == set(labels[two]):
            continue
        a, b = (next(iter(labels[x].values())).folder for x in (one, two))
        raise ValueError(
            f"{a} and {b} are not one task: {one} and {two}; compare them apart, or train all "
            "algorithms on both"
        )
    for a, b in ((a, b) for x in labels.values() for a, b in itertools.pairwise(x.values())):
        if a.unit != b.unit:
            raise ValueError(
                f"{a.folder} counts {a.unit} and {b.folder} {b.unit}: one axis cannot show both"
            )


def measure_of(samples: list[Sample], score: str | None) -> str:
    """Return how the final return is measured: `score`, or as all samples have been. ValueError if
    one has not been."""
    without = [x.folder for x in samples if "evaluation" not in x.scores]
    if score == "evaluation" and without:
        raise ValueError(f"--score evaluation: {without[0]} has no evaluation of its policies")
    measure = score or ("training" if without else "evaluation")
    for a, b in itertools.pairwise(samples):
        if measure == "evaluation" and a.policy != b.policy:
            raise ValueError(
                f"{a.folder} and {b.folder} were evaluated with different --eval-policy; "
                "compare them with --score training"
            )
    return measure


def common_points(steps: Iterable[np.ndarray]) -> np.ndarray:
    """Return the steps at which all curves of an environment are compared: wherever one of them has
    a point, or MAX_POINTS evenly spaced ones."""
    points = np.unique(np.concatenate(list(steps)))
    return points if len(points) <= MAX_POINTS else np.linspace(points[0], points[-1], MAX_POINTS)


def resampled(sample: Sample, points: np.ndarray, lowest: float) -> np.ndarray:
    """Return the curves [S, P] at other points: linear between theirs, NaN before the first and
    after the last. A seed that diverged is at `lowest` from there to the end of its run."""
    curves = np.full((len(sample.seeds), len(points)), np.nan)
    for curve, values, is_diverged in zip(curves, sample.curves, sample.is_diverged, strict=True):
        known = np.isfinite(values)
        if known.any():
            curve[:] = np.interp(
                points, sample.steps[known], values[known], left=np.nan, right=np.nan
            )
        if is_diverged:
            last = sample.steps[known].max(initial=-np.inf)
            curve[(points > last) & (points <= sample.steps[-1])] = lowest
    return curves


def estimate(samples: Sequence[np.ndarray], statistic: Callable) -> tuple[Any, Any, Any]:
    """Return `statistic` of samples and its interval, which is None where one has too few seeds."""
    value = statistic(*samples, axis=-1)
    if min(map(len, samples)) < MIN_SEEDS:
        return value, None, None
    return value, *bootstrap(samples, statistic)


def improvement(*samples: np.ndarray, axis: int) -> np.ndarray:
    """Return P(X > Y) + P(X = Y) / 2 for one seed of either algorithm, the mean over tasks: the
    first half of the samples [..., S] are X's, one a task, the others Y's.

    It is the Mann-Whitney U over the number of pairs, from the ranks.
    """
    from scipy import stats

    half, chances = len(samples) // 2, []
    for x, y in zip(samples[:half], samples[half:], strict=True):
        num_x, num_y = x.shape[axis], y.shape[axis]
        ranks = stats.rankdata(np.concatenate([x, y], axis), axis=axis)[..., :num_x]
        chances.append((ranks.sum(axis) - num_x * (num_x + 1) / 2) / (num_x * num_y))
    return np.mean(chances, 0)


def profile_at(thresholds: np.ndarray) -> Callable:
    """Return the performance profile as a statistic: the share [T, ...] of scores [..., S] above
    each threshold [T], the mean over tasks."""

    def profile(*samples, axis):
        above = [x > np.expand_dims(thresholds, tuple(range(1, x.ndim + 1))) for x in samples]
        return np.mean([x.mean(axis) for x in above], 0)

    return profile


def scores_of(comparison: Comparison, label: str, env_ids: list[str]) -> list[np.ndarray]:
    """Return the scores [S] of a label in environments, normalised where several are compared."""
    scores = [comparison.cells[env_id, label].scores for env_id in env_ids]
    if not comparison.is_normalised:
        return scores
    return [
        normalised(x, *comparison.bounds[env_id]) for x, env_id in zip(scores, env_ids, strict=True)
    ]


def normalised(scores: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return (scores - low) / (high - low); 1 where all scores are the same."""
    return (scores - low) / (high - low) if high > low else np.ones_like(scores)


# Writing

TABLES = ("curve", "final", "normalised", "improvement", "profile")
COLUMNS = ("table", "env_id", "algorithm", "versus", "x", "value", "low", "high", "seeds")


def table_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Return all numbers, one a row: `curve` (x: steps), `final`, `normalised`, `improvement` (over
    `versus`), `profile` (x: threshold). An empty `env_id` is all shared environments."""
    c, rows = comparison, []

    def add(table, env_id, label, values, seeds, x="", versus=""):
        value, low, high = (None if y is None else float(y) for y in values)
        row = (table, env_id, label, versus, x, value, low, high, seeds)
        rows.append(dict(zip(COLUMNS, row, strict=True)))

    for (env_id, label), cell in c.cells.items():
        for x, *values in zip(c.points[env_id], *bands(cell.curves), strict=True):
            if np.isfinite(values[0]):
                known = [y if np.isfinite(y) else None for y in values]
                add("curve", env_id, label, known, len(cell.scores), x=x)
    for (env_id, label), cell in c.cells.items():
        final = summarize(cell.scores)
        add("final", env_id, label, [final[k] for k in ("iqm", "low", "high")], len(cell.scores))
    if not c.shared:
        return rows
    scores = {label: scores_of(c, label, c.shared) for label in c.labels}
    count = {label: sum(map(len, own)) for label, own in scores.items()}
    if c.is_normalised:
        for label, own in scores.items():
            add("normalised", "", label, estimate(own, pooled_iqm), count[label])
    for a, b in itertools.combinations(c.labels, 2):
        both = count[a] + count[b]
        add("improvement", "", a, estimate(scores[a] + scores[b], improvement), both, versus=b)
    everything = joined(x for own in scores.values() for x in own)
    thresholds = np.linspace(everything.min(), everything.max(), NUM_THRESHOLDS)
    for label, own in scores.items():
        values, low, high = estimate(own, profile_at(thresholds))
        for i, x in enumerate(thresholds):
            some = (values[i], None if low is None else low[i], None if high is None else high[i])
            add("profile", "", label, some, count[label], x=x)
    return rows


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows; floats with 7 digits. OSError if the disk refuses."""
    text = lambda x: f"{x:.7g}" if isinstance(x, float) else x
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([text(row[name]) for name in COLUMNS] for row in rows)
    write_text(path, file.getvalue())


def write_text(path: Path, text: str) -> None:
    """Write a text whole or not at all. OSError if the disk refuses."""
    write_atomically(path, lambda file: file.write(text.encode()))


def markdown(comparison: Comparison, rows: list[dict[str, Any]]) -> str:
    """Return the tables of final returns, of normalised returns and of pairs, as Markdown."""
    c, parts = comparison, []
    final = [row for row in rows if row["table"] == "final"]
    for env_id in c.env_ids:
        lines = []
        for row in final:
            if row["env_id"] == env_id:
                cell = c.cells[env_id, row["algorithm"]]
                ends = f"{cell.scores.min():.4g} | {cell.scores.max():.4g}"
                failed = cell.num_failed or ""
                lines.append(
                    f"{row['algorithm']} | {row['seeds']} | {spread(row)} | {ends} | {failed}"
                )
        head = ("algorithm", "seeds", f"IQM of the {MEASURES[c.measure]} [95 %]", "min", "max")
        parts += [f"**{env_id}**", table(" | ".join([*head, "without score"]), lines)]
    normal = [row for row in rows if row["table"] == "normalised"]
    if normal:
        scales = ", ".join("{} {:.4g} to {:.4g}".format(e, *c.bounds[e]) for e in c.shared)
        parts.append(f"**Normalised return**{part_of(c)} (0 to 1: {scales})")
        lines = [f"{row['algorithm']} | {row['seeds']} | {spread(row)}" for row in normal]
        parts.append(table("algorithm | seeds | IQM [95 %]", lines))
    pairs = [row for row in rows if row["table"] == "improvement"]
    if pairs:
        parts.append(f"**Probability of improvement**{part_of(c)}")
        lines = [f"{row['algorithm']} > {row['versus']} | {spread(row)}" for row in pairs]
        parts.append(table("pair | P [95 %]", lines))
    if not c.shared:
        parts.append("No environment has runs of all algorithms, so none of this is over several.")
    return "\n\n".join(parts) + "\n"


MEASURES = {
    "evaluation": "final policies' return",
    "training": "return over the last tenth of training",
}


def part_of(comparison: Comparison) -> str:
    """Return which environments count where not all of them do, as text."""
    shared, num_all = comparison.shared, len(comparison.env_ids)
    return f", {len(shared)} of {num_all} environments" if len(shared) < num_all else ""


def spread(row: dict[str, Any]) -> str:
    """Return a value and its interval as text."""
    if row["low"] is None:
        return "{value:.4g}".format(**row)
    return "{value:.4g} [{low:.4g}, {high:.4g}]".format(**row)


def table(head: str, lines: list[str]) -> str:
    """Return a Markdown table."""
    rule = " | ".join("---" for _ in head.split(" | "))
    return "\n".join(f"| {line} |" for line in (head, rule, *lines))


# Drawing


def draw(path: Path, comparison: Comparison, rows: list[dict[str, Any]]) -> None:
    """Draw the picture: for each environment its curves and, below, its final returns; at the
    bottom what is over all of them. OSError if the disk refuses."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    c = comparison
    of = {name: [row for row in rows if row["table"] == name] for name in TABLES}
    panels = [partial(draw_final, comparison=c, rows=of["final"], env_id=c.env_ids[0])]
    if c.is_normalised:
        panels = [partial(draw_normalised, comparison=c, rows=of["normalised"])]
    if of["improvement"]:
        panels += [partial(draw_pairs, comparison=c, rows=of["improvement"])]
    panels += [partial(draw_profiles, comparison=c, rows=of["profile"])]
    panels = panels if c.shared else []
    # Rows of the picture: height in inches, and the panels from left to right.
    layout: list[tuple[float, list]] = []
    dots = 0.75 + 0.25 * len(c.labels)
    for first in range(0, len(c.env_ids), 3):
        here = c.env_ids[first : first + 3]
        layout.append((2.6, [partial(draw_curves, comparison=c, env_id=x) for x in here]))
        if c.is_normalised:
            finals = [partial(draw_final, comparison=c, rows=of["final"], env_id=x) for x in here]
            layout.append((dots, finals))
    if panels:
        layout.append((max(2.3, dots, 0.75 + 0.25 * len(of["improvement"])), panels))
    heights = [height for height, _ in layout]
    figure = plots.blank_figure(height=sum(heights) + 0.5)
    grid = figure.add_gridspec(len(layout), 6, height_ratios=heights)
    for i, (_, own) in enumerate(layout):
        width = 6 // (len(own) if i == len(layout) - 1 else min(3, len(c.env_ids)))
        for j, panel in enumerate(own):
            panel(figure.add_subplot(grid[i, j * width : (j + 1) * width]))
    key: list[Line2D | Patch] = [Line2D([], [], color=x) for x in plots.COLORS[: len(c.labels)]]
    style = {"frameon": False, "fontsize": 9, "loc": "outside lower center"}
    names = [
        x if x == y else f"{x}: {y}" for x, y in zip(short_names(c.labels), c.labels, strict=True)
    ]
    columns = max(1, min(5, 100 // (max(map(len, names)) + 6)))
    if any(row["low"] is not None for row in rows):
        key.append(Patch(color="0.5", alpha=0.3, linewidth=0))
        names = [*names, "95 % bootstrap interval"]
    figure.legend(key, names, ncols=columns, **style)
    plots.write_picture(path, figure)


def draw_curves(axes: Any, comparison: Comparison, env_id: str) -> None:
    """Draw the IQM along training on one environment."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    c, points = comparison, comparison.points[env_id]
    own = {label: c.cells[env_id, label] for label in c.labels if (env_id, label) in c.cells}
    most = max(len(cell.curves) for cell in own.values())
    curves = np.full((len(c.labels), most, len(points)), np.nan)
    for label, cell in own.items():
        curves[c.labels.index(label), : len(cell.curves)] = cell.curves
    title = f"{env_id.replace('+', ' ')}: {c.metric.replace('_', ' ')}"
    plots.tidy(axes, textwrap.fill(title, 100 // min(3, len(c.env_ids))))
    steps = np.broadcast_to(points, (len(c.labels), len(points)))
    plots.draw_panel(axes, steps, curves, c.metric.endswith("return"), show_seeds=False)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))  # 50k, 1M
    axes.set_xlim(0, 1.01 * max(points[-1], 1))
    unit = next(iter(own.values())).samples[0].unit
    axes.set_xlabel(f"{unit} per seed")


def draw_final(axes: Any, comparison: Comparison, rows: list[dict], env_id: str) -> None:
    """Draw the final returns on one environment: IQM, interval and single seeds."""
    c = comparison
    own = [row for row in rows if row["env_id"] == env_id]
    scores = [c.cells[env_id, row["algorithm"]].scores for row in own]
    names = short_names(c.labels)
    which = [c.labels.index(row["algorithm"]) for row in own]
    colors = [plots.COLORS[g] for g in which]
    draw_points(axes, own, [names[g] for g in which], colors, scores)
    axes.set_title("Final return", loc="left", fontsize=10)
    axes.set_xlabel(MEASURES[c.measure])


def draw_normalised(axes: Any, comparison: Comparison, rows: list[dict]) -> None:
    """Draw the final returns over all environments, normalised."""
    c = comparison
    scores = [joined(scores_of(c, row["algorithm"], c.shared)) for row in rows]
    draw_points(axes, rows, short_names(c.labels), plots.COLORS[: len(rows)], scores)
    axes.set_title("Normalised return", loc="left", fontsize=10)
    scale = "0 and 1 as given" if c.given else "0: worst seed, 1: best seed"
    axes.set_xlabel(scale + part_of(c))


def draw_points(
    axes: Any, rows: list[dict], names: list[str], colors: list[str], scores: list | None = None
) -> None:
    """Draw one estimate a line, the first on top, with its interval and single scores."""
    plots.tidy(axes, "")
    for y, (row, color) in enumerate(zip(rows, colors, strict=True)):
        if scores is not None:
            faint = {"alpha": np.clip(8 / len(scores[y]), 0.02, 0.4), "markersize": 3}
            axes.plot(scores[y], [y] * len(scores[y]), "o", color="0.2", mew=0, **faint)
        if row["low"] is not None:
            band = {"linewidth": 7, "alpha": 0.35, "solid_capstyle": "butt"}
            axes.plot((row["low"], row["high"]), (y, y), color=color, **band)
        axes.plot(row["value"], y, "o", color=color, markersize=6, mec="white")
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.03)


def draw_pairs(axes: Any, comparison: Comparison, rows: list[dict]) -> None:
    """Draw the probability of improvement of each pair."""
    axes.axvline(0.5, color="0.6", linewidth=0.8)
    names = dict(zip(comparison.labels, short_names(comparison.labels), strict=True))
    pairs = [f"{names[row['algorithm']]} > {names[row['versus']]}" for row in rows]
    draw_points(axes, rows, pairs, ["0.3"] * len(rows))
    axes.set_title("Probability of improvement", loc="left", fontsize=10)
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel("P(X > Y)")


def draw_profiles(axes: Any, comparison: Comparison, rows: list[dict]) -> None:
    """Draw the performance profiles."""
    for g, label in enumerate(comparison.labels):
        own = [row for row in rows if row["algorithm"] == label]
        x, value = [row["x"] for row in own], [row["value"] for row in own]
        if own[0]["low"] is not None:
            low, high = [row["low"] for row in own], [row["high"] for row in own]
            axes.fill_between(x, low, high, color=plots.COLORS[g], alpha=0.15, linewidth=0)
        axes.plot(x, value, color=plots.COLORS[g], linewidth=1.6)
    plots.tidy(axes, "Performance profile")
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel(("normalised return" if comparison.is_normalised else "return") + " τ")
    axes.set_ylabel("share of seeds above τ", size=8, color="0.25")


def short_names(labels: list[str]) -> list[str]:
    """Return names that fit beside a panel: the labels, or the letters that the key explains."""
    return list("ABCDEFGH"[: len(labels)]) if max(map(len, labels)) > 14 else labels


if __name__ == "__main__":
    main()
