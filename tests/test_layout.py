"""Who imports whom: read from the source by ast, so that nothing is run."""

import ast
import functools
import sys
from graphlib import CycleError, TopologicalSorter

import pytest
from helpers import ALGORITHMS, ROOT

CORE = [
    *("algorithm", "envs", "networks", "distributions", "buffers", "prioritized", "normalization"),
    *("natural_gradient", "returns", "exploration", "memory", "datasets", "run"),
]
# Algorithms that need more of an environment than the Env: the arrays of an MDP or of a linear
# system, a game, dynamics with derivatives, or an expert.
INSIDE_ENVIRONMENTS = {
    "a_star": {"mdp", "tabular"},
    "behaviour_cloning": {"experts"},
    "cql": {"experts"},
    "dagger": {"experts"},
    "gail": {"experts"},
    "guided_policy_search": {"dynamics", "linear"},
    "alphazero": {"games", "simulators"},
    "apprenticeship_learning": {"mdp", "tabular"},
    "apg": {"differentiable"},
    "shac": {"differentiable"},
    "differentiable_mpc": {"linear"},
    "ilqr": {"dynamics", "linear"},
    "iql": {"experts"},
    "lqr": {"linear"},
    "maximum_entropy_irl": {"mdp", "tabular"},
    "mbpo": {"terminations"},
    "mcts": {"games", "simulators"},
    "monte_carlo": {"mdp", "tabular"},
    "policy_iteration": {"mdp", "tabular"},
    "rrt": {"dynamics"},
    "td3_bc": {"experts"},
    "td_lambda": {"mdp", "tabular"},
    "value_iteration": {"mdp", "tabular"},
}
FOLDERS = ["algorithms", "common"]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
}
MODULES = {name.removesuffix(".__init__"): path for name, path in FILES.items()}


def imported_names(tree, inside_functions):
    """The modules that import statements name; of `from a import b` both a and a.b."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif inside_functions or not isinstance(node, ast.FunctionDef | ast.Lambda):
            yield from imported_names(node, inside_functions)


@functools.cache
def imports(module, inside_functions=True):
    """The modules that a module imports, each with the packages that it is in; of names that are
    not in the repository the first part."""
    tree = ast.parse(MODULES[module].read_text())
    found = set()
    for name in imported_names(tree, inside_functions):
        parts = name.split(".")
        if parts[0] not in FOLDERS:
            found.add(parts[0])
            continue
        names = {".".join(parts[: i + 1]) for i in range(len(parts))}
        assert max(names & set(MODULES), key=len) in (name, name.rpartition(".")[0]), name
        found |= names & set(MODULES)
    return found - {module}


def test_the_walk_sees_every_kind_of_import():
    tree = ast.parse(
        "import a.b\nfrom c import d\nif e:\n    import f\ntry:\n    import g\nfinally:\n    pass\n"
        "class H:\n    import i\n    def j(self):\n        from k.l import m\n"
    )
    outside = {"a.b", "c", "c.d", "f", "g", "i"}
    assert set(imported_names(tree, inside_functions=False)) == outside
    assert set(imported_names(tree, inside_functions=True)) == outside | {"k.l", "k.l.m"}


def test_the_top_of_common_is_ten_files():
    found = {path.stem for path in (ROOT / "common").glob("*.py")}
    assert found == {"__init__", *CORE}
    folders = {path.name for path in (ROOT / "common").iterdir() if path.is_dir()}
    assert folders - {"__pycache__"} == {"environments", "runner", "tools"}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_imports_jax_optax_and_the_ten_files(name):
    allowed = {"jax", "optax", "common", *(f"common.{file}" for file in CORE)}
    inside = INSIDE_ENVIRONMENTS.get(name, set())
    allowed |= {f"common.environments.{file}" for file in inside}
    allowed |= {"common.environments"} if inside else set()
    assert imports(f"algorithms.{name}") - set(sys.stdlib_module_names) <= allowed


def test_what_algorithms_may_import_beyond_the_ten_files_is_needed():
    for name, inside in INSIDE_ENVIRONMENTS.items():
        found = {x for x in imports(f"algorithms.{name}") if x.startswith("common.environments.")}
        assert found == {f"common.environments.{file}" for file in inside}, name


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("common")])
def test_rooms_keep_to_their_doors(module):
    """Only run.py opens the runner to algorithms; environments know neither runner nor tools; the
    runner does not know tools; nothing in common names an algorithm."""
    closed = ["algorithms"]
    if not module.startswith("common.tools"):
        closed.append("common.tools")
        if not module.startswith("common.runner") and module != "common.run":
            closed += ["common.runner", "common.run"]
    if module.removeprefix("common.") in CORE:
        closed.append("common.environments")
    for name in imports(module):
        assert not any(name == x or name.startswith(f"{x}.") for x in closed), name


@pytest.mark.parametrize("inside_functions", [False, True])
def test_no_imports_go_round_in_a_circle(inside_functions):
    """Nor with those inside functions; only the names of families in common/envs.py, which are
    strings, lead back."""
    graph = {module: imports(module, inside_functions) & set(MODULES) for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def reading_cost(module, apart_from=("common.run",)):
    """The lines of a module and of each file of the repository that it imports, transitively and at
    module level, apart from some and what only they import."""
    cost, waiting = {}, [module]
    while waiting:
        name = waiting.pop()
        if name not in cost and name in MODULES and name not in apart_from:
            cost[name] = len(MODULES[name].read_text().splitlines())
            waiting += imports(name, inside_functions=False)
    return cost


def test_dqn_and_all_that_it_imports_are_read_in_one_sitting():
    cost = reading_cost("algorithms.dqn")
    files = ", ".join(f"{name} {lines}" for name, lines in cost.items())
    assert sum(cost.values()) <= 600, f"{sum(cost.values())} lines: {files}"


def test_tests_of_an_algorithm_run_on_one_worker():
    from conftest import group_of

    same = [
        "test_dqn.py::test_x",
        "test_contract.py::test_x[dqn]",
        "tools/test_copy.py::test_x[dqn-1]",
    ]
    assert {group_of(f"tests/{nodeid}") for nodeid in same} == {"dqn"}
    assert group_of("tests/test_contract.py::test_x[double_dqn]") == "double_dqn"
    assert group_of("tests/common/test_envs.py::test_x[CartPole-v1]") == "tests/common/test_envs.py"
