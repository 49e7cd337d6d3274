"""What a run survives: `python -m benchmarks.faults [ALGORITHM ...]` (hours; `--quick` a minute).

Each fault strikes real runs in processes of their own, which are then resumed until they end; the
end must have the bytes of a run that nothing happened to: metrics.csv, evaluation.csv, and all
arrays of checkpoint.npz and policy.npz. After every blow the newest checkpoint must load, and
metrics.csv must begin with the rows that it counts on.

    kill -9            at random moments, half a second of training apart or while it starts
    kill -9 in a save  at each of the points in POINTS: before and after what a save does in turn
    SIGINT, SIGTERM    at random moments: one line, exit codes 130 and 143
    damaged            bits flipped and files cut short: the checkpoint before, or exit code 3
    full disk          no file may grow beyond a limit: exit code 5, one line, resumed without it
    folder removed     in the middle of a run: exit code 5, one line
    cannot be written  --out below a file, and in /proc: exit code 5, one line
    twice              two processes, same flags, other hash seeds: the same bytes

The table is results/faults.csv.
"""

import argparse
import csv
import functools
import importlib
import io
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.learning import RESULTS, ROOT, table
from common import checkpoint
from common.run import start_jax

SMALL = "--num-seeds 4 --eval-episodes 2 --log-points 40"
FLAGS = {  # some seconds of training each
    "q_learning": "--total-timesteps 200_000 --num-steps 20",
    "dqn": "--total-timesteps 60_000 --learning-starts 200 --buffer-size 1000 --batch-size 16 "
    "--hidden-sizes 16 --num-envs 4",
    "ppo": "--total-timesteps 400_000 --num-envs 4 --num-steps 32 --hidden-sizes 16",
    "sac": "--total-timesteps 30_000 --learning-starts 200 --buffer-size 1000 --batch-size 16 "
    "--hidden-sizes 16 --num-envs 2",
}
POINTS = [
    *("before metrics.csv fsync", "after metrics.csv fsync", "before open", "after open"),
    *("write 1", "write 12", "before .checkpoint.npz.tmp fsync", "after .checkpoint.npz.tmp fsync"),
    *("before previous.npz replace", "after previous.npz replace"),
    *("before checkpoint.npz replace", "after checkpoint.npz replace"),
    *("before folder fsync", "after folder fsync"),
]
COLUMNS = ["fault", "algorithm", "attempts", "passed", "detail"]


class Fault(NamedTuple):
    """One row of the table."""

    fault: str
    algorithm: str
    attempts: int
    passed: int
    detail: str


class Run(NamedTuple):
    """What is done to, and compared with: a run that nothing happened to."""

    name: str
    flags: list[str]
    whole: Path
    work: Path  # for the folders of the others
    rng: random.Random


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults")
    parser.description, parser.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    parser.add_argument("algorithms", nargs="*", metavar="ALGORITHM", help=", ".join(FLAGS))
    parser.add_argument("--attempts", type=int, default=25, help="of what strikes at random")
    parser.add_argument("--quick", action="store_true", help="Q-learning, few attempts")
    parser.add_argument("--out", type=Path, default=RESULTS / "faults.csv", help="the table")
    arguments = parser.parse_args()
    unknown = set(arguments.algorithms) - set(FLAGS)
    if unknown or arguments.attempts < 1:
        parser.error(f"ALGORITHM is one of {', '.join(FLAGS)}, and --attempts at least 1")
    start_jax()
    names = arguments.algorithms or (["q_learning"] if arguments.quick else list(FLAGS))
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for name in names:
            for row in faults(name, Path(work), arguments.attempts, arguments.quick):
                print(f"{row.fault}, {name}: {row.passed} of {row.attempts}", flush=True)
                rows.append(row)
                write(arguments.out, rows)
    print(table([COLUMNS, *rows]))
    sys.exit(any(row.passed < row.attempts for row in rows))


def write(path: Path, rows: list[Fault]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS, *rows])


def faults(name: str, work: Path, attempts: int, quick: bool):
    """A row for each fault."""
    flags = [*SMALL.split(), *FLAGS[name].split(), "--checkpoint-every", "0.05", "--quiet"]
    run = Run(name, flags, work / f"{name}-whole", work, random.Random(name))
    done = finish(start(run, *flags, "--out", str(run.whole)))
    assert done.code == 0, done.error
    if quick:
        yield struck(run, "kill -9", [at_random] * 2, -signal.SIGKILL)
        points = POINTS[::5]
    else:
        yield struck(run, "kill -9", [at_random] * attempts, -signal.SIGKILL)
        points = POINTS
    inside = [functools.partial(in_a_save, point=point) for point in points]
    yield struck(run, "kill -9 in a save", inside, -signal.SIGKILL)
    for number in (signal.SIGTERM,) if quick else (signal.SIGINT, signal.SIGTERM):
        blow = functools.partial(at_random, number=number)
        yield struck(run, number.name, [blow] * (1 if quick else attempts), 128 + number)
    yield damaged(run)
    yield full_disk(run)
    if not quick:
        yield removed(run)
        yield unwritable(run)
        yield twice(run)


class Ended(NamedTuple):
    code: int
    error: str


def start(run: Run, *arguments: str, point="", nth=0, limit=0, **env) -> subprocess.Popen:
    """A process of the algorithm; with a point, it dies there in its nth save; with a limit, in
    KiB, no file may grow beyond that."""
    command = [sys.executable, "-m", f"algorithms.{run.name}", *arguments]
    if point:
        dying = f"from benchmarks.faults import die; die({run.name!r}, {point!r}, {nth})"
        command = [sys.executable, "-c", dying, *arguments]
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


def finish(process: subprocess.Popen, timeout: float = 300) -> Ended:
    try:
        error = process.communicate(timeout=timeout)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        return Ended(-1, "it hangs")
    return Ended(process.returncode, error)


def struck(run: Run, fault: str, blows: list, code: int) -> Fault:
    """Runs that each blow ends with `code`, resumed until they have ended by themselves."""
    number, passed, problems = 0, 0, set()
    folder, flags = None, None
    for blow in blows:
        for _ in range(5):  # a run that ends before the blow is followed by another
            if folder is None:
                number += 1
                folder = run.work / f"{run.name}-{fault.replace(' ', '-')}-{number}"
                flags = [*run.flags, "--out", str(folder)]
            ended = blow(run, folder, flags)
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
    return Fault(fault, run.name, len(blows), passed, "; ".join(problems) or f"{number} runs")


def at_random(run: Run, folder: Path, flags: list[str], number=signal.SIGKILL) -> Ended:
    """The signal while it starts, or within half a second after it has saved."""
    before = stamp(folder)
    process = start(run, *flags)
    if number == signal.SIGKILL and run.rng.random() < 0.2:
        time.sleep(3 * run.rng.random())
    else:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline and stamp(folder) == before:
            time.sleep(0.005)
        time.sleep(0.5 * run.rng.random())
    process.send_signal(number)
    return finish(process)


def in_a_save(run: Run, folder: Path, flags: list[str], point: str) -> Ended:
    return finish(start(run, *flags, point=point, nth=run.rng.randint(2, 4)))


def stamp(folder: Path) -> int:
    try:
        return (folder / "checkpoint.npz").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def wrong(run: Run, folder: Path, ended: Ended, code: int) -> str:
    """What is wrong with a run that was struck; nothing if it had ended before."""
    if ended.code not in (0, code):
        return f"exit code {ended.code}: {ended.error[-300:]}"
    if code > 0 and ended.code and ended.error.count("\n") != 1:
        return f"not one line: {ended.error[-300:]}"
    path = folder / "checkpoint.npz"
    path = path if path.exists() else folder / "previous.npz"
    if not path.exists():
        return ""
    try:
        at = checkpoint.load(path)[1]["at"]
    except checkpoint.CheckpointError as error:
        return str(error)
    rows = (folder / "metrics.csv").read_bytes()[: at["metrics_bytes"]]
    whole = (run.whole / "metrics.csv").read_bytes()
    return "" if len(rows) == at["metrics_bytes"] and whole.startswith(rows) else "rows are wrong"


def differs(run: Run, folder: Path) -> str:
    """In what a run that has ended differs from the whole one."""
    if {x.name for x in folder.iterdir()} != {x.name for x in run.whole.iterdir()}:
        return f"other files: {sorted(x.name for x in folder.iterdir())}"
    for name in ("metrics.csv", "evaluation.csv"):
        if (folder / name).read_bytes() != (run.whole / name).read_bytes():
            return f"{name} differs"
    for name in ("checkpoint.npz", "policy.npz"):
        mine, other = (checkpoint.load(x / name)[0] for x in (folder, run.whole))
        if mine.keys() != other.keys():
            return f"{name} has other arrays"
        for key, x in mine.items():
            if (x.dtype, x.shape, x.tobytes()) != (
                other[key].dtype,
                other[key].shape,
                other[key].tobytes(),
            ):
                return f"{key} in {name} differs"
    return ""


def die(name: str, point: str, nth: int) -> None:
    """Runs an algorithm that is killed at that point of its nth save of a checkpoint."""
    import runpy

    saves, fsync, replace, plain_open = 0, os.fsync, os.replace, open

    def reached(event):
        nonlocal saves
        saves += event == "before open"
        # The rows come before the file of the same save.
        if event == point and saves + (event.endswith("metrics.csv fsync")) >= nth:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(what, function, *arguments):
        reached(f"before {what}")
        result = function(*arguments)
        reached(f"after {what}")
        return result

    def named_fsync(number):
        name = os.path.basename(os.readlink(f"/proc/self/fd/{number}"))
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
        if os.path.basename(path) != ".checkpoint.npz.tmp":
            return plain_open(path, mode)
        return around("open", lambda: File(io.FileIO(path, "w")))

    os.fsync, os.replace, checkpoint.open = named_fsync, named_replace, named_open
    sys.argv[0] = name
    runpy.run_module(f"algorithms.{name}", run_name="__main__", alter_sys=True)


def stopped(run: Run, what: str) -> Path:
    """The folder of a run that was killed in its fifth save."""
    folder = run.work / f"{run.name}-{what}"
    flags = [*run.flags, "--out", str(folder)]
    ended = finish(start(run, *flags, point="before open", nth=5))
    assert ended.code == -signal.SIGKILL, ended
    return folder


def damaged(run: Run, flips: int = 300, cuts: int = 30) -> Fault:
    """In process: what the harness loads when it resumes, against what was saved."""
    from common import folder as folders
    from common.flags import Run as Flags
    from common.plan import Job

    folder = stopped(run, "damaged")
    module = importlib.import_module(f"algorithms.{run.name}")
    given = Flags(resume=str(folder))
    config, given = folders.resumed(run.name, module.Config, module.Config(), given)
    job = Job(run.name, module.make, config, given, [{}], folder)
    path, previous = folder / "checkpoint.npz", folder / "previous.npz"
    newest, before = (comparable(checkpoint.load(x)) for x in (path, previous))
    whole, kept, passed = path.read_bytes(), previous.read_bytes(), 0
    files = [flipped(whole, run.rng.randrange(8 * len(whole))) for _ in range(flips)]
    files += [whole[: len(whole) * i // cuts] for i in range(cuts)]
    counts = {"harmless": 0, "the one before": 0, "refused": 0}
    for number, data in enumerate(files):
        path.write_bytes(data)
        previous.unlink(missing_ok=True)
        if number % 2:
            previous.write_bytes(kept)
        warning = io.StringIO()
        stderr, sys.stderr = sys.stderr, warning
        try:
            found = comparable(folders.latest_checkpoint(job))
        except checkpoint.CheckpointError:
            counts["refused"] += 1
            passed += not number % 2
            continue
        finally:
            sys.stderr = stderr
        warned = warning.getvalue().count("\n") == 1
        counts["the one before" if warned else "harmless"] += 1
        passed += found == (before if warned else newest)
    detail = f"{len(whole)} bytes: " + ", ".join(f"{x} {name}" for name, x in counts.items())
    return Fault("damaged", run.name, len(files), passed, detail)


def flipped(data: bytes, bit: int) -> bytes:
    return data[: bit // 8] + bytes([data[bit // 8] ^ 1 << bit % 8]) + data[bit // 8 + 1 :]


def comparable(found):
    arrays, header = found
    return {name: (x.dtype, x.shape, x.tobytes()) for name, x in arrays.items()}, header


def full_disk(run: Run) -> Fault:
    """A limit on the size of files stands for the disk: at first, and after some checkpoints."""
    problems = set()
    for number, resumed in enumerate((False, True)):
        folder = run.work / f"{run.name}-disk-{number}"
        flags = [*run.flags, "--out", str(folder)]
        if resumed:
            folder = stopped(run, f"disk-{number}")
            flags = ["--resume", str(folder), "--quiet"]
        size = (run.whole / "checkpoint.npz").stat().st_size // 2
        ended = finish(start(run, *flags, limit=size // 1024, JAX_ENABLE_COMPILATION_CACHE="0"))
        problem = wrong(run, folder, ended, 5) or ("" if ended.code == 5 else "not noticed")
        if not problem:
            ended = finish(start(run, "--resume", str(folder), "--quiet"))
            problem = ended.error if ended.code else differs(run, folder)
        problems |= {problem} - {""}
    return Fault("full disk", run.name, 2, 2 - len(problems), "; ".join(problems))


def removed(run: Run) -> Fault:
    folder = run.work / f"{run.name}-removed"
    process = start(run, *run.flags, "--out", str(folder))
    while process.poll() is None and not stamp(folder):
        time.sleep(0.005)
    os.rename(folder, run.work / f"{run.name}-elsewhere")
    ended = finish(process)
    passed = ended.code == 5 and ended.error.count("\n") == 1 and not folder.exists()
    shutil.rmtree(run.work / f"{run.name}-elsewhere")
    return Fault("folder removed", run.name, 1, int(passed), "")


def unwritable(run: Run) -> Fault:
    (run.work / "file").write_text("")
    lines = set()
    for folder in (run.work / "file" / "run", Path("/proc/run")):
        ended = finish(start(run, *run.flags, "--out", str(folder)))
        if ended.code == 5 and ended.error.count("\n") == 1:
            lines.add(ended.error)
    return Fault("cannot be written", run.name, 2, len(lines), "")


def twice(run: Run) -> Fault:
    folder = run.work / f"{run.name}-twice"
    ended = finish(start(run, *run.flags, "--out", str(folder), PYTHONHASHSEED="7"))
    problem = ended.error if ended.code else differs(run, folder)
    return Fault("twice", run.name, 1, int(not problem), problem)


if __name__ == "__main__":
    main()
