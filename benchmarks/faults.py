"""Test what a run survives: `python -m benchmarks.faults [ALGORITHM ...]` (hours; `--quick` a
minute).

Q-learning, DQN, PPO and SAC meet every fault; every other file of algorithms/ three times kill -9.

Each fault hits real runs in processes of their own, which are then resumed until they end. The end
must have the bytes of a run without faults: metrics.csv, evaluation.csv, and all arrays of
policy.npz. After every hit the newest checkpoint must load, and the rows that it holds must be the
first ones of metrics.csv.

    kill -9            at random moments, within half a second of training or during the start
    kill -9 in a save  at each of the points in POINTS: before and after each step of a save
    SIGINT, SIGTERM    at random moments: one line, exit codes 130 and 143
    second SIGINT      exit code 130 and at most one line, as soon as XLA returns to Python
    damaged            bits flipped and files cut short: the previous checkpoint, or exit code 3
    full disk          no file may grow beyond a limit: exit code 5, one line, resumed without it
    folder removed     in the middle of a run: exit code 5, one line
    cannot be written  --out below a file, and in /proc: exit code 5, one line
    twice              two processes with the same flags and other hash seeds: the same bytes
    one core           a process bound to one core, with as many devices: the same bytes
    resume speed       updates per second of training after a kill, and of a run that never stopped
                       (DQN and PPO): the median of their ratios is at least 0.97
    block lost         a file of one block of four damaged: exit code 3 and one line; without that
                       file only its seeds train again
    process killed     kill -9 of one of two connected processes, the leader and the other: both
                       have ended within 30 s, and one process goes on
    share killed       kill -9 of one of two shares: the other one ends with exit code 0, and the
                       same command again finishes the run
                       (the last three: Q-learning and DQN, with one seed a block)
    memory             resident memory after 1,000 chunks as after 100, to one MiB

The table is results/faults.csv. A row that is measured again replaces the old one.
"""

import argparse
import csv
import functools
import importlib
import io
import json
import os
import random
import runpy
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.learning import RESULTS, ROOT, table
from common.runner import checkpoint, loop
from common.runner.program import start_jax

ALGORITHMS = sorted(path.stem for path in (ROOT / "algorithms").glob("[a-z]*.py"))
SMALL = "--num-seeds 4 --block 4 --eval-episodes 2 --log-points 40"
TABLE = "--total-timesteps 200_000 --steps-per-update 20"
ROLLOUT = "--total-timesteps 200_000 --num-envs 4 --num-steps 32 --hidden-sizes 16"
REPLAY = "--learning-starts 200 --buffer-size 1000 --batch-size 16 --hidden-sizes 16"
DISCRETE = f"--total-timesteps 40_000 --num-envs 4 {REPLAY}"
CONTINUOUS = f"--total-timesteps 20_000 --num-envs 2 {REPLAY}"
OFFLINE = (
    "--num-episodes 4 --num-iterations 200 --gradient-steps 50 --batch-size 16 --hidden-sizes 16"
)
FLAGS = {  # some seconds of training each
    "behaviour_cloning": "--num-iterations 400 --gradient-steps 50 --batch-size 16 "
    "--hidden-sizes 16 --num-episodes 2",
    "dagger": "--total-timesteps 40_000 --num-steps 20 --gradient-steps 50 --batch-size 16 "
    "--hidden-sizes 16",
    "q_learning": TABLE,
    "dqn": f"--total-timesteps 60_000 --num-envs 4 {REPLAY}",
    "ppo": "--total-timesteps 400_000 --num-envs 4 --num-steps 32 --hidden-sizes 16",
    "sac": f"--total-timesteps 30_000 --num-envs 2 {REPLAY}",
    "mpo": f"{CONTINUOUS} --num-samples 4",
    "v_mpo": ROLLOUT,
    "a2c": ROLLOUT,
    "natural_policy_gradient": ROLLOUT,
    "trpo": ROLLOUT,
    "acer": "--total-timesteps 100_000 --num-envs 4 --num-steps 16 --learning-starts 200 "
    "--buffer-size 1000 --hidden-sizes 16",
    "apprenticeship_learning": "--env-id GridWorld5x5-tabular --num-iterations 20_000 "
    "--num-sweeps 20",
    "agent57": f"--total-timesteps 20_000 --num-envs 4 --memory-size 16 {REPLAY}",
    "c51": f"--total-timesteps 20_000 --num-envs 4 {REPLAY}",
    "d4pg": CONTINUOUS,
    "ddpg": CONTINUOUS,
    "double_dqn": DISCRETE,
    "double_q_learning": TABLE,
    "dueling_dqn": DISCRETE,
    "dyna_q": "--total-timesteps 100_000 --steps-per-update 20",
    "expected_sarsa": TABLE,
    "fitted_q_iteration": "--total-timesteps 2_000 --num-iterations 200 --gradient-steps 50 "
    "--batch-size 16 --hidden-sizes 16",
    "cql": OFFLINE,
    "iql": OFFLINE,
    "td3_bc": OFFLINE,
    "gail": f"{ROLLOUT} --num-episodes 2 --discriminator-steps 2 --batch-size 32",
    "guided_policy_search": "--env-id DoubleIntegrator-linear --num-iterations 400 --num-starts 2 "
    "--num-samples 4 --gradient-steps 20 --batch-size 16 --hidden-sizes 16",
    "apg": "--total-timesteps 200_000 --num-envs 4 --num-steps 16 --hidden-sizes 16",
    "shac": "--total-timesteps 100_000 --num-envs 4 --num-steps 16 --hidden-sizes 16 "
    "--critic-hidden-sizes 16",
    "differentiable_mpc": "--num-iterations 2_000 --gradient-steps 5 --batch-size 8",
    "ilqr": "--num-iterations 100 --num-starts 2 --num-samples 16",
    "lqr": "--num-riccati-steps 100_000",
    "maximum_entropy_irl": "--env-id GridWorld5x5-tabular --num-iterations 20_000 --num-sweeps 20",
    "alphazero": "--total-timesteps 4_000 --num-envs 4 --num-steps 10 --num-simulations 8 "
    "--gradient-steps 2 --batch-size 16 --hidden-sizes 16 --num-matches 2",
    "mcts": "--total-timesteps 2_000 --num-envs 4 --num-simulations 20",
    "monte_carlo": TABLE,
    "mpc": "--total-timesteps 1_000 --num-envs 2 --horizon 5 --num-samples 20",
    "n_step_dqn": DISCRETE,
    "ngu": f"--total-timesteps 20_000 --num-envs 4 --memory-size 16 --gradient-steps 2 {REPLAY}",
    "noisy_dqn": DISCRETE,
    "online_q": "--total-timesteps 40_000 --num-envs 4 --hidden-sizes 16",
    "pets": "--total-timesteps 2_000 --steps-per-fit 20 --num-networks 2 --batch-size 16 "
    "--hidden-sizes 16 --gradient-steps 20 --horizon 4 --num-samples 10 --num-elites 4 "
    "--num-cem-rounds 2",
    "mbpo": "--total-timesteps 3_000 --steps-per-fit 20 --learning-starts 200 --buffer-size 1000 "
    "--batch-size 16 --hidden-sizes 16 --num-networks 2 --num-elites 1 --gradient-steps 20 "
    "--num-rollouts 5 --model-buffer-size 1000 --updates-per-step 2",
    "world_models": "--total-timesteps 640 --hidden-sizes 16 --gradient-steps 20 --batch-size 16 "
    "--memory-size 16 --num-samples 8 --num-dreams 4 --num-generations 2_000",
    "option_critic": TABLE,
    "policy_iteration": "--num-iterations 20_000",
    "ppo_rnn": f"{ROLLOUT} --memory-size 16",
    "a3c": "--total-timesteps 200_000 --num-workers 4 --num-steps 32 --hidden-sizes 16",
    "impala": ROLLOUT,
    "prioritized_dqn": DISCRETE,
    "q_actor_critic": ROLLOUT,
    "qt_opt": f"{CONTINUOUS} --num-samples 16",
    "r2d2": f"--total-timesteps 20_000 --num-envs 4 --memory-size 16 --gradient-steps 2 {REPLAY}",
    "rainbow": f"--total-timesteps 20_000 --num-envs 4 {REPLAY}",
    "reinforce": "--total-timesteps 100_000 --num-envs 2 --num-steps 20 --hidden-sizes 16",
    "rnd": ROLLOUT,
    "sarsa": TABLE,
    "td3": CONTINUOUS,
    "td_lambda": TABLE,
    "value_iteration": "--num-sweeps 200_000",
    "a_star": "--num-expansions 20_000",
    "rrt": "--num-nodes 20_000 --nodes-per-update 10",
}
LONGER = {"dqn": "--total-timesteps 300_000", "ppo": "--total-timesteps 600_000"}  # runs to time
WHOLE = ["q_learning", "dqn", "ppo", "sac"]  # these meet every fault
FAULTS = ["kill -9", "kill -9 in a save", "SIGINT", "SIGTERM", "second SIGINT", "damaged"]
FAULTS += ["full disk", "folder removed", "cannot be written", "twice", "one core"]
FAULTS += ["resume speed", "memory", "block lost", "process killed", "share killed"]
BLOCKS = ["block lost", "process killed", "share killed"]
QUICK = ["kill -9", "kill -9 in a save", "SIGTERM", "damaged", "full disk"]
POINTS = [
    *("before open", "after open"),
    *("write 1", "write 12", "before .checkpoint.npz.tmp fsync", "after .checkpoint.npz.tmp fsync"),
    *("before previous.npz replace", "after previous.npz replace"),
    *("before checkpoint.npz replace", "after checkpoint.npz replace"),
    *("before folder fsync", "after folder fsync"),
]
BLOCK = "blocks/000000"  # where the files of a running run are
COLUMNS = ["fault", "algorithm", "attempts", "passed", "detail"]


class Fault(NamedTuple):
    """One row of the table."""

    fault: str
    algorithm: str
    attempts: int
    passed: int
    detail: str


class Run(NamedTuple):
    """A run without faults, and what its copies with faults need."""

    name: str  # the algorithm's
    flags: list[str]
    whole: Path  # the folder of the run without faults
    work: Path  # where the folders of the others are made
    rng: random.Random


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults")
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("algorithms", nargs="*", metavar="ALGORITHM", help="by default all")
    text = "of each random fault: 25, or 3; with less than 3, few points of a save"
    parser.add_argument("--attempts", type=int, help=text)
    text = "only this one; may be repeated"
    parser.add_argument("--fault", action="append", choices=FAULTS, help=text)
    parser.add_argument("--quick", action="store_true", help="Q-learning, few attempts")
    parser.add_argument("--out", type=Path, default=RESULTS / "faults.csv", help="the table")
    arguments = parser.parse_args()
    every = [*WHOLE, *(name for name in ALGORITHMS if name not in WHOLE)]
    unknown = set(arguments.algorithms) - set(every)
    if unknown or (arguments.attempts or 1) < 1:
        parser.error(f"ALGORITHM is one of {', '.join(every)}, and --attempts at least 1")
    start_jax()
    names = arguments.algorithms or (["q_learning"] if arguments.quick else every)
    chosen = arguments.fault or (QUICK if arguments.quick else FAULTS)
    rows = {(row.fault, row.algorithm): row for row in lines(arguments.out)}
    done = []
    with tempfile.TemporaryDirectory() as work:
        for name in names:
            attempts = arguments.attempts or (25 if name in WHOLE else 3)
            attempts = min(attempts, 2) if arguments.quick else attempts
            for row in faults(name, Path(work), attempts, chosen):
                print(f"{row.fault}, {name}: {row.passed} of {row.attempts}", flush=True)
                done.append(row)
                rows[row.fault, name] = row
                order = [rows[fault, x] for x in every for fault in FAULTS if (fault, x) in rows]
                write(arguments.out, order)
    print(table([COLUMNS, *done]))
    sys.exit(any(row.passed < row.attempts for row in done))


def lines(path: Path) -> list[Fault]:
    """Read the rows of a table; none if there is no file."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return [
            Fault(**row | {"attempts": int(row["attempts"]), "passed": int(row["passed"])})
            for row in csv.DictReader(file)
        ]


def write(path: Path, rows: list[Fault]) -> None:
    """Write a table."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS, *rows])


def due(name: str) -> list[str]:
    """Return the faults that an algorithm meets."""
    if name not in WHOLE:
        return ["kill -9"]
    only = {"resume speed": LONGER} | dict.fromkeys(BLOCKS, ["q_learning", "dqn"])
    return [fault for fault in FAULTS if name in only.get(fault, WHOLE)]


def faults(name: str, work: Path, attempts: int, chosen: list[str]):
    """Yield a row for each fault that is due and chosen."""
    due_and_chosen = [fault for fault in due(name) if fault in chosen]
    if not due_and_chosen:
        return
    flags = [*SMALL.split(), *FLAGS[name].split(), "--checkpoint-every", "0.05", "--quiet"]
    run = Run(name, flags, work / f"{name}-whole", work, random.Random(name))
    done = finish(start(run, *flags, "--out", str(run.whole)))
    assert done.code == 0, done.error
    for fault in due_and_chosen:
        yield strike(run, fault, attempts)


def strike(run: Run, fault: str, attempts: int) -> Fault:
    """Hit a run by a fault so many times, if it is a random one; return the table's row."""
    match fault:
        case "kill -9":
            return struck(run, fault, [at_random] * attempts, -signal.SIGKILL)
        case "kill -9 in a save":
            points = POINTS[:: 1 if attempts > 2 else 5]
            inside = [functools.partial(in_a_save, point=point) for point in points]
            return struck(run, fault, inside, -signal.SIGKILL)
        case "SIGINT" | "SIGTERM":
            number = signal.Signals[fault]
            hit = functools.partial(at_random, number=number)
            return struck(run, fault, [hit] * attempts, 128 + number)
        case "second SIGINT":
            return interrupted_again(run, attempts)
        case "resume speed":
            return resume_speed(run, min(attempts, 7))
    return ONCE[fault](run)


class Ended(NamedTuple):
    """Exit of a process."""

    code: int  # the exit code; negative: a signal's number
    error: str  # its stderr
    lines: int = 1  # expected on stderr if it was stopped


def start(run: Run, *arguments: str, through="", limit=0, **env) -> subprocess.Popen:
    """Start a process of the algorithm.

    `through` is a call of a function of this module to run it by; `limit` is a size in KiB beyond
    which no file may grow, 0 for none; `env` are environment variables.
    """
    command = [sys.executable, "-m", f"algorithms.{run.name}", *arguments]
    if through:
        code = f"from benchmarks import faults; faults.{through}"
        command = [sys.executable, "-c", code, *arguments]
    if limit:
        command = ["bash", "-c", f"ulimit -f {limit}; exec {shlex.join(command)}"]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | env,
    )


def dying(run: Run, point: str, nth: int) -> str:
    """Return the call by which `start` makes a run that is killed at that point of its nth save."""
    return f"die({run.name!r}, {point!r}, {nth})"


def finish(process: subprocess.Popen, timeout: float = 300) -> Ended:
    """Wait until a process ends; kill it after `timeout` seconds."""
    try:
        error = process.communicate(timeout=timeout)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        return Ended(-1, "it hangs")
    return Ended(process.returncode, error)


def struck(run: Run, fault: str, hits: list, code: int) -> Fault:
    """Hit runs by each of `hits(run, folder, flags) -> Ended`, which must end them with `code`, and
    resume them until they end by themselves."""
    number, passed, problems = 0, 0, set()
    folder, flags = None, None
    for hit in hits:
        for _ in range(5):  # a run that ends before the hit is followed by another
            if folder is None:
                number += 1
                folder = run.work / f"{run.name}-{fault.replace(' ', '-')}-{number}"
                flags = [*run.flags, "--out", str(folder)]
            ended = hit(run, folder, flags)
            flags = ["--resume", str(folder), "--quiet", "--checkpoint-every", "0.05"]
            if not (folder / "config.json").exists():
                flags = [*run.flags, "--out", str(folder)]
            problem = wrong(run, folder, ended, code)
            if (folder / "summary.json").exists():
                problem = problem or differs(run, folder)
                folder = None
            if ended.code == code or problem:
                break
        if problem:
            problems.add(problem)
            folder = None
        passed += not problem
    if folder is not None:
        ended = finish(start(run, *flags))
        problem = ended.error if ended.code else differs(run, folder)
        if problem:
            problems.add(problem)
            passed -= 1
    detail = "; ".join(" ".join(x.split()) for x in problems) or f"{number} runs"
    return Fault(fault, run.name, len(hits), passed, detail)


def at_random(run: Run, folder: Path, flags: list[str], number=signal.SIGKILL) -> Ended:
    """Send the signal while a run starts, or within half a second after it has saved."""
    before = stamp(folder)
    process = start(run, *flags)
    if number == signal.SIGKILL and run.rng.random() < 0.2:
        time.sleep(3 * run.rng.random())
    else:
        wait_for(process, lambda: stamp(folder) != before)
        time.sleep(0.5 * run.rng.random())
    process.send_signal(number)
    return finish(process)


def in_a_save(run: Run, folder: Path, flags: list[str], point: str) -> Ended:
    """Kill a run at that point of its second, third or fourth save."""
    return finish(start(run, *flags, through=dying(run, point, run.rng.randint(2, 4))))


def interrupted_again(run: Run, attempts: int) -> Fault:
    """Send SIGINT twice, so many times."""
    times, silent = [], []

    def hit(run, folder, flags):
        """Send both while a run compiles, or within half a second after it has saved. Python takes
        signals of the same instant for one: the second waits until the first was handled."""
        before = stamp(folder)
        process = start(run, *flags)
        early = before and run.rng.random() < 0.5
        ready = functools.partial(catches, process, signal.SIGTERM)  # only the runner catches it
        wait_for(process, ready if early else lambda: stamp(folder) != before)
        time.sleep(0.5 * run.rng.random())
        process.send_signal(signal.SIGINT)
        time.sleep(0.05 + 0.2 * run.rng.random())
        process.send_signal(signal.SIGINT)
        clock = time.monotonic()
        ended = finish(process)
        times.append(time.monotonic() - clock)
        # Python exits, after the line, without handlers: the second signal then kills it, which a
        # shell calls 130 as well.
        code = 130 if ended.code == -signal.SIGINT else ended.code
        silent.append(code == 130 and not ended.error)
        return Ended(code, ended.error, lines=min(ended.error.count("\n"), 1))

    row = struck(run, "second SIGINT", [hit] * attempts, 130)
    times_text = f"{sum(silent)} without a line, {max(times):.2f} s at most"
    return row._replace(detail=f"{row.detail}: {times_text}")


def catches(process: subprocess.Popen, number: int) -> bool:
    """Return whether a process has a handler for that signal."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return bool(int(status.partition("SigCgt:")[2].split()[0], 16) >> (number - 1) & 1)


def wait_for(process: subprocess.Popen, condition, seconds: float = 120) -> None:
    """Wait until the condition holds, the process has ended, or the seconds are over."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline and not condition():
        time.sleep(0.005)


def stamp(folder: Path) -> int:
    """Return when a run last saved, in nanoseconds; 0 if it never did."""
    try:
        return (folder / BLOCK / "checkpoint.npz").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def wrong(run: Run, folder: Path, ended: Ended, code: int) -> str:
    """Return what is wrong with a run that was hit; "" if nothing is or it had ended before."""
    if ended.code not in (0, code):
        return f"exit code {ended.code}: {ended.error[-300:]}"
    if code > 0 and ended.code and ended.error.count("\n") != ended.lines:
        return f"not one line: {ended.error[-300:]}"
    path = folder / BLOCK / "checkpoint.npz"
    path = path if path.exists() else path.with_name("previous.npz")
    if not path.exists():
        return ""
    try:
        arrays, header = checkpoint.load(path)
    except checkpoint.CheckpointError as error:
        return str(error)
    with open(run.whole / "metrics.csv", newline="") as file:
        _, _, *names = next(rows := csv.reader(file))
        whole = [row[2:] for row in rows]
    table = np.stack([arrays[f"history/{name}"] for name in names], -1) if whole else []
    own = [[f"{x:.7g}" for x in row] for row in np.reshape(table, (-1, len(names)))]
    is_prefix = own == whole[: len(own)] and len(table) == len(header["at"]["rows"])
    return "" if is_prefix else "rows are wrong"


def differs(run: Run, folder: Path) -> str:
    """Return in what a run that has ended differs from the one without faults; "" if in nothing."""
    names = lambda path: {x.name for x in path.iterdir() if not x.name.startswith(".")}
    if names(folder) != names(run.whole):
        return f"other files: {sorted(x.name for x in folder.iterdir())}"
    for name in ("metrics.csv", "evaluation.csv"):
        if (folder / name).read_bytes() != (run.whole / name).read_bytes():
            return f"{name} differs"
    mine, other = (comparable(checkpoint.load(x / "policy.npz"))[0] for x in (folder, run.whole))
    if mine.keys() != other.keys():
        return "policy.npz has other arrays"
    differing = [name for name, x in mine.items() if x != other[name]]
    return f"{differing[0]} in policy.npz differs" if differing else ""


def die(name: str, point: str, nth: int) -> None:
    """Run an algorithm that is killed at that point of its nth save of a checkpoint."""
    saves, fsync, replace, plain_open = 0, os.fsync, os.replace, open

    def reached(event):
        nonlocal saves
        saves += event == "before open"
        if event == point and saves >= nth:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(what, function, *arguments):
        reached(f"before {what}")
        result = function(*arguments)
        reached(f"after {what}")
        return result

    def named_fsync(number):
        name = os.path.basename(os.readlink(f"/proc/self/fd/{number}"))
        name = name.replace(f".{os.getpid()}.", ".")
        around(f"{name if '.' in name else 'folder'} fsync", fsync, number)

    def named_replace(source, target):
        around(f"{os.path.basename(target)} replace", replace, source, target)

    class File(io.BufferedWriter):
        writes = 0

        def write(self, data):
            self.writes += 1
            number = super().write(data)
            if point == f"write {self.writes}":
                self.flush()
                reached(point)
            return number

    def named_open(path, mode):
        if os.path.basename(path) != f".checkpoint.npz.{os.getpid()}.tmp":
            return plain_open(path, mode)
        return around("open", lambda: File(io.FileIO(path, "w")))

    os.fsync, os.replace, checkpoint.open = named_fsync, named_replace, named_open
    loop.SAVE_SHARE = float("inf")  # short runs, too, come to their nth save
    run_here(name)


def run_here(name: str) -> None:
    """Run the algorithm's command line in this process."""
    sys.argv[0] = name
    runpy.run_module(f"algorithms.{name}", run_name="__main__", alter_sys=True)


def stopped(run: Run, what: str) -> Path:
    """Return the folder of a run that was killed in its fifth save."""
    folder = run.work / f"{run.name}-{what}"
    flags = [*run.flags, "--out", str(folder)]
    ended = finish(start(run, *flags, through=dying(run, "before open", 5)))
    assert ended.code == -signal.SIGKILL, ended
    return folder


def damaged(run: Run, flips: int = 300, cuts: int = 30) -> Fault:
    """Compare what the runner loads when it resumes from damaged files with what was saved."""
    from common.runner import run_folder
    from common.runner.blocks import Job, plan
    from common.runner.cli import Run as Flags

    folder = stopped(run, "damaged")
    module = importlib.import_module(f"algorithms.{run.name}")
    config, flags = run_folder.read_flags(folder, run.name, module.Config(), Flags(), set())
    job = Job(run.name, module.make, config, flags, [{}], folder)
    (block,) = plan(job)
    path, previous = (folder / BLOCK / name for name in ("checkpoint.npz", "previous.npz"))
    newest, before = (comparable(checkpoint.load(x)) for x in (path, previous))
    whole, kept, passed = path.read_bytes(), previous.read_bytes(), 0
    files = [flipped(whole, run.rng.randrange(8 * len(whole))) for _ in range(flips)]
    files += [whole[: len(whole) * i // cuts] for i in range(cuts)]
    counts = {"harmless": 0, "the previous one": 0, "refused": 0}
    for number, data in enumerate(files):
        path.write_bytes(data)
        previous.unlink(missing_ok=True)
        if number % 2:
            previous.write_bytes(kept)
        warning = io.StringIO()
        stderr, sys.stderr = sys.stderr, warning
        try:
            loaded = comparable(run_folder.load_block(job, block, path.name, previous.name))
        except checkpoint.CheckpointError:
            counts["refused"] += 1
            passed += not number % 2
            continue
        finally:
            sys.stderr = stderr
        warned = warning.getvalue().count("\n") == 1
        counts["the previous one" if warned else "harmless"] += 1
        passed += loaded == (before if warned else newest)
    detail = f"{len(whole)} bytes: " + ", ".join(f"{x} {name}" for name, x in counts.items())
    return Fault("damaged", run.name, len(files), passed, detail)


def flipped(data: bytes, bit: int) -> bytes:
    """Return the data with that bit flipped."""
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


def comparable(loaded):
    """Return the arrays, as bytes, and the header of a checkpoint."""
    arrays, header = loaded
    return {name: (x.dtype, x.shape, x.tobytes()) for name, x in arrays.items()}, header


def full_disk(run: Run) -> Fault:
    """Limit the size of files, as a full disk does: from the start, and after some saves."""
    problems = set()
    for number, resumed in enumerate((False, True)):
        folder = run.work / f"{run.name}-disk-{number}"
        flags = [*run.flags, "--out", str(folder)]
        if resumed:
            folder = stopped(run, f"disk-{number}")
            flags = ["--resume", str(folder), "--quiet"]
        kept = run.work / f"{run.name}-disk-1"  # of a run that was stopped, whichever comes first
        kept = kept if kept.exists() else stopped(run, "disk-size")
        size = (kept / BLOCK / "checkpoint.npz").stat().st_size // 2
        ended = finish(start(run, *flags, limit=size // 1024, JAX_ENABLE_COMPILATION_CACHE="0"))
        problem = wrong(run, folder, ended, 5) or ("" if ended.code == 5 else "not noticed")
        if not problem:
            ended = finish(start(run, "--resume", str(folder), "--quiet"))
            problem = ended.error if ended.code else differs(run, folder)
        problems |= {problem} - {""}
    return Fault("full disk", run.name, 2, 2 - len(problems), "; ".join(problems))


def removed(run: Run) -> Fault:
    """Rename the folder of a run while it trains."""
    folder = run.work / f"{run.name}-removed"
    process = start(run, *run.flags, "--out", str(folder))
    wait_for(process, lambda: stamp(folder))
    os.rename(folder, run.work / f"{run.name}-elsewhere")
    ended = finish(process)
    passed = ended.code == 5 and ended.error.count("\n") == 1 and not folder.exists()
    shutil.rmtree(run.work / f"{run.name}-elsewhere")
    return Fault("folder removed", run.name, 1, int(passed), "")


def unwritable(run: Run) -> Fault:
    """Start runs with an --out that cannot be made."""
    (run.work / "file").write_text("")
    lines = set()
    for folder in (run.work / "file" / "run", Path("/proc/run")):
        ended = finish(start(run, *run.flags, "--out", str(folder)))
        if ended.code == 5 and ended.error.count("\n") == 1:
            lines.add(ended.error)
    return Fault("cannot be written", run.name, 2, len(lines), "")


def twice(run: Run) -> Fault:
    """Compare a second run with the one without faults."""
    folder = run.work / f"{run.name}-twice"
    ended = finish(start(run, *run.flags, "--out", str(folder), PYTHONHASHSEED="7"))
    problem = ended.error if ended.code else differs(run, folder)
    return Fault("twice", run.name, 1, int(not problem), problem)


def one_core(run: Run) -> Fault:
    """Compare a run bound to one core with the one on all cores."""
    folder = run.work / f"{run.name}-one-core"
    flags = [*run.flags, "--out", str(folder)]
    through = f"on_one_core({run.name!r})"
    ended = finish(start(run, *flags, through=through))
    problem = ended.error if ended.code else differs(run, folder)
    detail = problem or f"{len(os.sched_getaffinity(0))} cores before"
    return Fault("one core", run.name, 1, int(not problem), detail)


def on_one_core(name: str) -> None:
    """Run the algorithm's command line in this process, bound to one core before XLA starts."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    run_here(name)


def resume_speed(run: Run, pairs: int, least: float = 0.97) -> Fault:
    """Time pairs of runs, each kind first in turn, because the machine's speed drifts."""
    longer = run._replace(flags=[*run.flags, *LONGER[run.name].split()])
    killed = stopped(longer, "speed")
    at = checkpoint.load(killed / BLOCK / "checkpoint.npz")[1]["at"]
    ratios = []
    for pair in range(pairs):
        speeds = {}
        for kind in ("whole", "resumed")[:: -1 if pair % 2 else 1]:
            folder = run.work / f"{run.name}-speed-{kind}-{pair}"
            if kind == "resumed":
                shutil.copytree(killed, folder)
                flags, start_at = ["--resume", str(folder), "--quiet"], at
            else:
                flags = [*longer.flags, "--checkpoint-every", "60", "--out", str(folder)]
                start_at = {"update": 0, "seconds": 0}
            ended = finish(start(run, *flags))
            if ended.code:
                return Fault("resume speed", run.name, 1, 0, ended.error)
            done = json.loads((folder / "summary.json").read_text())
            updates = done["updates"] - start_at["update"]
            speeds[kind] = updates / (done["run_seconds"] - start_at["seconds"])
        ratios.append(speeds["resumed"] / speeds["whole"])
    median = statistics.median(ratios)
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    detail = f"median {median:.3f} of {pairs} pairs, {spread}; resumed at {at['update']:,} updates"
    return Fault("resume speed", run.name, 1, int(median >= least), detail)


def memory(run: Run, most: float = 1.0) -> Fault:
    """Measure the MiB that a run grows by: the median over chunks 1,001 to 1,100, or a few more,
    minus that over chunks 101 to 200; it saves whenever it can."""
    flags = [*run.flags, "--log-points", "1100", "--out", str(run.work / f"{run.name}-memory")]
    ended = finish(start(run, *flags, through=f"weigh({run.name!r})"))
    sizes = [int(x) / 2**20 for x in ended.error.split() if x.isdigit()]
    if ended.code or len(sizes) < 1100:
        return Fault("memory", run.name, 1, 0, ended.error[-300:])
    early, late = (statistics.median(sizes[i : i + 100]) for i in (100, 1000))
    detail = f"{early:.1f} MiB, then {late:.1f} MiB"
    return Fault("memory", run.name, 1, int(late - early <= most), detail)


def weigh(name: str) -> None:
    """Run an algorithm that prints on stderr, after every row of metrics, how many bytes of memory
    it holds. A row takes at least one chunk."""
    metrics_row = loop.metrics_row

    def weighed(run_state):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        print(pages * os.sysconf("SC_PAGESIZE"), file=sys.stderr)
        return metrics_row(run_state)

    loop.metrics_row = weighed
    run_here(name)


def in_blocks(run: Run) -> Run:
    """Return the run with one seed a block, which ends with other bits, and its run without
    faults."""
    blocks = run._replace(flags=[*run.flags, "--block", "1"], whole=run.work / f"{run.name}-blocks")
    if not blocks.whole.exists():
        ended = finish(start(blocks, *blocks.flags, "--out", str(blocks.whole)))
        assert ended.code == 0, ended.error
    return blocks


def saved_blocks(folder: Path) -> int:
    """Return how many blocks of a run have a file."""
    return len({path.parent for path in folder.glob("blocks/*/*.npz")})


def block_lost(run: Run) -> Fault:
    """Damage a file of one block of a run that was killed: a checkpoint, and a trained block."""
    run, problems = in_blocks(run), []
    for name in ("checkpoint.npz", "trained.npz"):
        folder = run.work / f"{run.name}-lost-{name}"
        process = start(run, *run.flags, "--out", str(folder))
        wait_for(process, lambda folder=folder, name=name: any(folder.glob(f"blocks/*/{name}")))
        process.kill()
        finish(process)
        lost, *_ = folder.glob(f"blocks/*/{name}")
        lost.with_name("previous.npz").unlink(missing_ok=True)
        data = lost.read_bytes()
        lost.write_bytes(flipped(data, 4 * len(data)))
        others = {x: x.read_bytes() for x in folder.glob("blocks/*/trained.npz") if x != lost}
        ended = finish(start(run, "--resume", str(folder), "--quiet"))
        problem = "" if ended.code == 3 and ended.error.count("\n") == 1 else ended.error or "?"
        if any(path.read_bytes() != data for path, data in others.items()):
            problem = problem or "another block was changed"
        lost.unlink()
        ended = finish(start(run, "--resume", str(folder), "--quiet"))
        problems.append(problem or (ended.error if ended.code else differs(run, folder)))
    return Fault("block lost", run.name, 2, problems.count(""), "; ".join(filter(None, problems)))


def process_killed(run: Run, most: float = 30) -> Fault:
    """Kill one of two processes that JAX's runtime connects."""
    run, problems, times = in_blocks(run), [], []
    for victim in (0, 1):
        folder = run.work / f"{run.name}-process-{victim}"
        with socket.socket() as any_socket:
            any_socket.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{any_socket.getsockname()[1]}"
        flags = [*run.flags, "--out", str(folder), "--distributed"]
        both = [start(run, *flags, f"{address}/2/{i}") for i in (0, 1)]
        wait_for(both[victim], lambda folder=folder: saved_blocks(folder) > 1)
        both[victim].kill()
        clock = time.monotonic()
        ended = [finish(process) for process in both]
        times.append(time.monotonic() - clock)
        problem = "" if ended[1 - victim].code and times[-1] < most else "the other went on"
        ended = finish(start(run, "--resume", str(folder), "--distributed", "", "--quiet"))
        problems.append(problem or (ended.error if ended.code else differs(run, folder)))
    detail = "; ".join([*filter(None, problems), f"ended after {max(times):.1f} s at most"])
    return Fault("process killed", run.name, 2, problems.count(""), detail)


def share_killed(run: Run) -> Fault:
    """Kill one of two shares, and start it again when the other one has ended."""
    run, problems = in_blocks(run), []
    for victim in (0, 1):
        folder = run.work / f"{run.name}-share-{victim}"
        flags = [*run.flags, "--out", str(folder), "--share"]
        both = [start(run, *flags, f"{i}/2") for i in (0, 1)]
        wait_for(both[victim], lambda folder=folder: saved_blocks(folder) > 1)
        both[victim].kill()
        ended = [finish(process) for process in both]
        problem = ended[1 - victim].error
        if (folder / "summary.json").exists():
            problem = problem or "it ended without the killed share"
        again = finish(start(run, *flags, f"{victim}/2"))
        problems.append(problem or (again.error if again.code else differs(run, folder)))
    return Fault("share killed", run.name, 2, problems.count(""), "; ".join(filter(None, problems)))


ONCE = {  # faults that need no attempts at random moments
    "damaged": damaged,
    "full disk": full_disk,
    "folder removed": removed,
    "cannot be written": unwritable,
    "twice": twice,
    "one core": one_core,
    "memory": memory,
    "block lost": block_lost,
    "process killed": process_killed,
    "share killed": share_killed,
}


if __name__ == "__main__":
    main()
