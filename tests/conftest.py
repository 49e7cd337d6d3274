"""Settings that must stand before JAX starts (processes that tests start inherit them); the two
tiers; one worker for the tests of an algorithm; and what tests cost."""

import contextlib
import gc
import os
import threading
import time
from importlib.metadata import version
from pathlib import Path

import pytest

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
# Tests compile much and compute little: XLA is to hurry, and not to cut a program into parts for
# threads that have no core. An option that XLA does not know ends the process.
FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
XLA_FLAGS = {"0.10": FLAGS + " --xla_cpu_use_fusion_emitters=false", "0.11": FLAGS}
os.environ.setdefault("XLA_FLAGS", XLA_FLAGS.get(version("jaxlib").rpartition(".")[0], ""))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

from common.runner.threefry import unroll_threefry  # noqa: E402

unroll_threefry()  # as the harness does


def reuse_contexts(times=10):
    """Lower several programs of a thread with one MLIR context, as JAX 0.11 does by itself: making
    it takes a fifth of the time of a small program, and more than half of the memory."""
    from jax._src.interpreters import mlir
    from jax.extend.mlir import ir

    make, last = mlir.make_ir_context, threading.local()

    def made():
        if ir.Context.current is not None:  # in the middle of lowering another program
            return make()
        last.uses = getattr(last, "uses", 0) % times + 1
        if last.uses == 1:
            last.context = make()
        return last.context

    mlir.make_ir_context = made


if version("jax").startswith("0.10."):
    with contextlib.suppress(ImportError, AttributeError):  # internals, without which tests do
        reuse_contexts()

ALGORITHMS = {path.stem for path in (Path(__file__).parent.parent / "algorithms").glob("*.py")}


def pytest_addoption(parser):
    parser.addoption("--everything", action="store_true", help="run the tests marked slow, too")
    parser.addoption("--until", type=float, help="leave out what has not begun by `date +%%s`")


# --- which tests run, and where -------------------------------------------------------------------


def pytest_collection_modifyitems(config, items):
    """Leave out what is slow, unless it is asked for, and order the tests by what they share."""
    if not config.getoption("everything"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("slow")]
    groups = {}
    for item in items:
        groups.setdefault(group_of(item.nodeid), []).append(item)
    items[:] = [item for group in groups.values() for item in group]


def pytest_collection_finish():
    """Exclude what is imported from garbage collection, which slows tracing."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


def group_of(nodeid):
    """Name what a test shares its programs with: the algorithm that it tests, or else its file."""
    path, _, name = nodeid.partition("::")
    file = Path(path).stem.removeprefix("test_")
    parameters = name.partition("[")[2].rstrip("]").split("-")
    return next((x for x in (file, *parameters) if x in ALGORITHMS), path)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A group is run by one worker. (With pytest 9.2 xdist 3.8 does not see its own groups.)"""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group_of(nodeid)

    return Groups(config, log)


# --- what tests cost ------------------------------------------------------------------------------

DEAREST = float(os.environ.get("CPU_SHARE_PER_TEST", "1"))  # a share, so no machine is too slow
COSTS = {}  # CPU seconds of each test that has ended, with the fixtures that it was first to use
NO_TIME = "no time left"
LEFT_OUT = []  # tests that had not begun by the time that --until gives


def cpu_seconds():
    """Those of this process and of its children that have ended."""
    return sum(os.times()[:4])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    item.begun = cpu_seconds()
    return (yield)


@pytest.hookimpl(tryfirst=True)  # before its fixtures are made
def pytest_runtest_setup(item):
    if time.time() > (item.config.getoption("--until") or float("inf")):
        pytest.skip(NO_TIME)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "teardown":
        report.user_properties.append(("cpu_seconds", cpu_seconds() - item.begun))
    return report


def pytest_runtest_logreport(report):
    properties = dict(report.user_properties)
    if "cpu_seconds" in properties:
        COSTS[report.nodeid] = properties["cpu_seconds"]
    if report.skipped and NO_TIME in str(report.longrepr):
        LEFT_OUT.append(report.nodeid)


def too_dear():
    """Tests above the share, of a whole tier: of a few tests each has a large one."""
    budget = DEAREST * sum(COSTS.values())
    return [name for name, cost in COSTS.items() if cost > budget and len(COSTS) >= 100]


def pytest_sessionfinish(session):
    if too_dear() and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    if LEFT_OUT:
        terminalreporter.write_line(f"{len(LEFT_OUT)} tests left out: {NO_TIME}", red=True)
    for name in too_dear():
        cost = f"{COSTS[name]:.1f} of {sum(COSTS.values()):.0f} CPU seconds"
        terminalreporter.write_line(f"{name}: {cost}. Mark it slow?", red=True)
    if len(COSTS) < 20:
        return
    groups = {}
    for name, cost in COSTS.items():
        group = group_of(name)
        groups[group] = groups.get(group, 0) + cost
    tables = {
        f"{sum(COSTS.values()):,.0f} CPU seconds in {len(COSTS)} tests": (COSTS, 20),
        f"the dearest of {len(groups)} groups, each of an algorithm or of a file": (groups, 10),
    }
    for title, (costs, num) in tables.items():
        terminalreporter.section(title)
        for name, cost in sorted(costs.items(), key=lambda item: -item[1])[:num]:
            terminalreporter.write_line(f"{cost:6.1f}  {name}")
    if path := os.environ.get("COSTS"):  # of every test
        lines = [f"{cost:.2f},{group_of(name)},{name}\n" for name, cost in COSTS.items()]
        Path(path).write_text("".join(lines))
