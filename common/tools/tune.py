"""Tune an algorithm with Optuna: each round trains a whole batch of settings in one program.

    python -m common.tune ppo [--rounds 4] --sweep learning_rate=log:1e-4:1e-2 gamma=0.9:0.999
        --num-settings 16 --num-seeds 4 [--retrain-best 16] [--out FOLDER] [FLAGS OF THE ALGORITHM]

A round asks Optuna's TPE sampler (Bergstra et al. 2011) for `--num-settings` settings and tells it
the IQM over seeds of each, -inf where more than a quarter of the seeds diverged. Its run is
<out>/round-<i>; trials.csv lists all settings, and <out>/best is the best one on fresh seeds. The
same command goes on after an interruption. Needs `pip install optuna`. Exit codes are those of the
algorithm.
"""

import csv
import dataclasses
import importlib
import json
import math
from pathlib import Path
from typing import Any

from common.runner import loop, run_folder, sharing
from common.runner.blocks import setting_label
from common.runner.cli import Range, Run, configured, fail, parse, search_space, tool_parser, warn
from common.runner.console import print_line
from common.runner.start import explain, prepare


def main() -> None:
    """Run the command."""
    parser = tool_parser("tune", __doc__)
    parser.allow_abbrev = False
    parser.add_argument("name", help="the algorithm, for example ppo")
    parser.add_argument("--rounds", type=int, default=4, help="batches of settings (4)")
    args, flags = parser.parse_known_args()
    folder = None
    try:
        module = importlib.import_module(f"algorithms.{args.name}")
        config, run = parse(module.Config, "python -m common.tune", "", flags)
        space = search_space(run.sweep, config, run.num_settings)
        if args.rounds < 1 or not run.num_settings or not space:
            raise ValueError("tune needs --rounds above 0, --sweep and --num-settings")
        if run.resume or any(name.startswith("env.") for name in space):
            raise ValueError("tune takes no --resume and no --sweep env.; --out goes on")
        folder = Path(run.out or run_folder.new_path(f"tune-{args.name}", config.env_id))
        tune(module, config, run, space, args.rounds, folder)
    except ModuleNotFoundError as error:
        missing = error.name == "optuna"
        fail(2, "tune needs optuna: pip install optuna" if missing else f"{error}; see --help")
    except (Exception, KeyboardInterrupt, loop.Stopped) as error:
        code, message = explain(error, folder)
        message = message.replace("--resume", "the same command and --out")
        if isinstance(error, loop.Stopped):  # devices may still compute
            warn(message)
            sharing.leave(code)
        fail(code, message)


def tune(module: Any, config: Any, run: Run, space: dict, rounds: int, folder: Path) -> None:
    """Train `rounds` batches of settings, then the best one again on `--retrain-best` seeds."""
    optuna = importlib.import_module("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    num, name = run.num_settings, module.__name__.rpartition(".")[2]
    sampler = optuna.samplers.TPESampler(
        seed=run.seed, n_startup_trials=num, constant_liar=True, multivariate=True
    )
    study = optuna.create_study(sampler=sampler, direction="maximize")
    distributions = {field: distribution(optuna, choices) for field, choices in space.items()}
    rows = []
    for number in range(rounds):
        trials = [study.ask(distributions) for _ in range(num)]
        grid = [{k: rounded(space[k], x) for k, x in trial.params.items()} for trial in trials]
        flags = dataclasses.replace(run, out=str(folder / f"round-{number}"), retrain_best=0)
        try:
            job = prepare(name, module.make, config, flags, set(), grid)
        except ValueError as error:  # a setting that the algorithm refuses
            fail(2, explain(error, None)[1])
        loop.run(job)
        ranking = json.loads((job.folder / "summary.json").read_text())["sweep"]
        ranking = {row["setting"]: row for row in ranking}
        for trial, setting in zip(trials, job.grid, strict=True):
            row = ranking[setting_label(setting)]
            iqm = row["iqm"] if 4 * row["diverged"] <= run.num_seeds else -math.inf
            study.tell(trial, iqm)
            rows.append({"round": number, "iqm": iqm, **setting})
        with open(folder / "trials.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        best = max(rows, key=lambda row: row["iqm"])
        setting = {field: best[field] for field in space}
        print_line(run, f"best of {len(rows)}: {best['iqm']:.4g} with {setting_label(setting)}")
    if run.retrain_best:
        seeds = {"seed": run.seed + run.num_seeds, "num_seeds": run.retrain_best}
        none = {"sweep": (), "num_settings": 0, "retrain_best": 0, "block": 0}
        flags = dataclasses.replace(run, **none, **seeds, out=str(folder / "best"))
        loop.run(prepare(name, module.make, configured(config, setting), flags, set()))


def distribution(optuna: Any, choices: list | Range) -> Any:
    """Return Optuna's word for what a field is chosen from."""
    if not isinstance(choices, Range):
        return optuna.distributions.CategoricalDistribution(choices)
    kinds = {int: "IntDistribution", float: "FloatDistribution"}
    return getattr(optuna.distributions, kinds[choices.kind])(
        choices.low, choices.high, log=choices.is_log
    )


def rounded(choices: list | Range, x: Any) -> Any:
    """Return a number of a range as a sweep would draw it, so that it can be typed again."""
    return choices.rounded(x) if isinstance(choices, Range) else x


if __name__ == "__main__":
    main()
