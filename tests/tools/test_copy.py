"""The copies that common/copy.py writes: they read well, stand alone, and train bit for bit as the
originals do; and the exporter's rules, on small trees of files."""

import ast
import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tomllib

import jax
import numpy as np
import pytest
from helpers import ALGORITHMS, load, trained

from common.tools.copy import ROOT, standalone

SMALL = {
    "total_timesteps": 2_000,
    "learning_starts": 200,
    "batch_size": 16,
    "num_iterations": 10,
    "num_samples": 8,
    "num_elites": 4,
    "horizon": 4,
    "gradient_steps": 20,
}


def python(*args, cwd):
    """Runs Python in a folder, as a user without PYTHONPATH would."""
    env = {name: x for name, x in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(params=ALGORITHMS)
def name(request):
    return request.param


@pytest.fixture
def copied(name, tmp_path):
    """The copy of an algorithm, alone in a folder."""
    path = tmp_path / f"{name}.py"
    path.write_text(standalone(name), encoding="utf-8")
    return path


# --- every algorithm ----------------------------------------------------------------------------


def test_a_copy_passes_ruff(copied):
    rules = ["--no-cache", "--config", ROOT / ".ruff.toml"]
    for command in (["check"], ["format", "--check", "--diff"]):
        result = python("-m", "ruff", *command, *rules, copied, cwd=copied.parent)
        assert result.returncode == 0, result.stdout + result.stderr


def test_a_copy_holds_all_it_uses_and_nothing_else(copied):
    tree = ast.parse(copied.read_text())
    used = {x.id for x in ast.walk(tree) if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Load)}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            assert node.name in used
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            stored = [x for x in ast.walk(node) if isinstance(x, ast.Name)]
            assert {x.id for x in stored if isinstance(x.ctx, ast.Store)} <= used
    assert not {"common", "algorithms"} & packages(tree)


def test_the_header_names_the_packages_that_are_imported(copied):
    text = copied.read_text()
    block = re.fullmatch(r"# /// script\n((?:# .*\n)+)# ///\n\n\"\"\".*", text, re.DOTALL)[1]
    header = tomllib.loads("".join(line[2:] for line in block.splitlines(keepends=True)))
    named = {
        re.match(r"[\w-]+", requirement)[0]: requirement for requirement in header["dependencies"]
    }
    imported = packages(ast.parse(text)) - sys.stdlib_module_names
    assert set(named) == imported | ({"six"} if "gymnax" in imported else set())
    assert named["jax"] == "jax>=0.8,<0.12"
    assert header["requires-python"] == ">=3.11"


def packages(tree):
    """The top-level packages that a syntax tree imports, in functions too."""
    names = [x.name for node in ast.walk(tree) if isinstance(node, ast.Import) for x in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


def test_a_copy_has_the_algorithm_letter_by_letter(name, copied):
    original = (ROOT / "algorithms" / f"{name}.py").read_text()
    imports = [x for x in ast.parse(original).body if isinstance(x, ast.Import | ast.ImportFrom)]
    lines = original[: original.index("if __name__")].splitlines()[imports[-1].end_lineno :]
    assert "\n".join(lines).strip() in copied.read_text()
    assert standalone(name) == copied.read_text()


def test_help_lists_every_flag(name, copied):
    result = python(copied.name, "--help", cwd=copied.parent)
    assert result.returncode == 0, result.stderr
    config = load(name).Config
    for field in [
        *(field.name for field in dataclasses.fields(config)),
        "seed",
        "num_seeds",
        "out",
    ]:
        assert "--" + field.replace("_", "-") in result.stdout


def test_a_refused_setting_is_one_line_and_exit_code_2(copied):
    result = python(copied.name, "--num-seeds", 0, cwd=copied.parent)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "--num-seeds 0: must satisfy num_seeds >= 1\n"


def test_a_copy_alone_trains_bit_for_bit_as_the_original(name, copied):
    """The original on one device, in a single range of updates where the copy takes ten. Where both
    are the same program the copy finds it compiled."""
    module = load(name)
    kinds = {field.name: field.type for field in dataclasses.fields(module.Config)}
    settings = {field: x for field, x in SMALL.items() if kinds.get(field) is int}  # else defaults
    algorithm = module.make(module.Config(**settings))
    params = trained(algorithm, [3, 4], algorithm.num_updates).state.params

    flags = [y for field, x in settings.items() for y in ("--" + field.replace("_", "-"), x)]
    result = python("-I", copied.name, "--seed", 3, "--num-seeds", 2, *flags, cwd=copied.parent)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) <= 11
    assert f"params in {name}.npz" in result.stdout

    leaves, got = jax.tree_util.tree_leaves_with_path(params), np.load(copied.with_suffix(".npz"))
    expected = {"params" + jax.tree_util.keystr(where): np.asarray(x) for where, x in leaves}
    assert got.files == list(expected)
    for leaf, x in expected.items():
        assert got[leaf].shape[0] == 2
        assert got[leaf].dtype == x.dtype
        assert got[leaf].tobytes() == x.tobytes(), leaf


def test_a_copy_says_which_seeds_diverged(tmp_path):
    text = standalone("q_learning")
    text = text.replace("return reward + gamma", "return jnp.inf * reward + gamma")
    (tmp_path / "q_learning.py").write_text(text)
    flags = ["--seed", 3, "--num-seeds", 2, "--total-timesteps", 200, "--num-steps", 20]
    result = python("q_learning.py", *flags, cwd=tmp_path)
    assert result.returncode == 0
    said = "diverged at update 0; its params are those before\n"
    assert result.stderr == f"seed 3 {said}seed 4 {said}"
    params = np.load(tmp_path / "q_learning.npz")
    assert all(np.isfinite(x).all() for x in params.values())


# --- the command ---------------------------------------------------------------------------------


def command(*args):
    return python("-m", "common.copy", *args, cwd=ROOT)


def test_a_copy_remembers_where_the_algorithm_says_so(tmp_path):
    assert "with_history" not in standalone("dqn")
    for folder in ("algorithms", "common"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    original = tmp_path / "algorithms" / "dqn.py"
    original.write_text(original.read_text().replace('"CartPole-v1"', '"CartPole-v1-history2"'))
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "dqn.py").write_text(standalone("dqn", tmp_path))
    flags = ["--total-timesteps", "2000", "--learning-starts", "200", "--batch-size", "16"]
    result = python("dqn.py", *flags, cwd=tmp_path / "alone")
    assert result.returncode == 0, result.stderr
    params = np.load(tmp_path / "alone" / "dqn.npz")
    assert 4 + 2 + 4 in {x.shape[1] for x in params.values()}  # two observations and an action


def test_the_command_writes_to_a_file_and_into_a_folder(tmp_path):
    for destination, path in [("mine.py", "mine.py"), (".", "dqn.py")]:
        result = command("dqn", tmp_path / destination)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.count("\n") == 1
        assert str(tmp_path / path) in result.stdout
        assert (tmp_path / path).read_text(encoding="utf-8") == standalone("dqn")


@pytest.mark.parametrize(
    "algorithm, destination, code, words",
    [
        ("dqm", "new.py", 2, "did you mean dqn?"),
        ("nothing", "new.py", 2, "There are: "),
        ("dqn", "there.py", 2, "there.py exists"),
        ("dqn", "there.py/dqn.py", 5, "Not a directory"),
        ("dqn", "missing/dqn.py", 5, "No such file or directory"),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(tmp_path, algorithm, destination, code, words):
    (tmp_path / "there.py").write_text("mine")
    result = command(algorithm, tmp_path / destination)
    assert (result.returncode, result.stdout) == (code, "")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["there.py"]
    assert (tmp_path / "there.py").read_text() == "mine"


# --- the exporter's rules, on small trees --------------------------------------------------------

TOY = '''"""Toy."""

import math

{imports}
from common.run import main


def make(x):
    return {result}


if __name__ == "__main__":
    main(int, make)
'''
MAIN = '"""Runs."""\n\nimport sys\n\n\ndef main(kind, make):\n    print(make(kind(sys.argv[1])))\n'


def copy_toy(root, imports, result, **modules):
    """The copy of an algorithm that returns `result`, beside those modules of `common`."""
    files = {f"common/{name}.py": text for name, text in modules.items()}
    files |= {
        "algorithms/toy.py": TOY.format(imports=imports, result=result),
        "common/standalone.py": MAIN,
        "requirements.txt": "optax>=0.2  # gradients\nsix\n",
    }
    for path, text in files.items():
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text(text)
    return standalone("toy", root)


def run_toy(text, x, capsys, monkeypatch):
    """What the copy prints."""
    monkeypatch.setattr(sys, "argv", ["toy.py", str(x)])
    exec(compile(text, "toy.py", "exec"), {"__name__": "__main__"})
    return capsys.readouterr().out


def test_names_are_followed_with_their_comments_and_shadows_are_not(tmp_path, capsys, monkeypatch):
    a = '''"""A."""

from collections import OrderedDict as Ordered, defaultdict

from common.b import UP, half

# Not on anything.


def plain(function):
    return function


# Of the order
# of things.
@plain
def twice(x: Ordered, unused=None):
    unused = lambda half: half
    return unused(UP) * helper(x)


def helper(x):
    def never(x):
        return x

    return never(half(x))


def never():
    return defaultdict
'''
    b = '''"""B: constants."""

UP, DOWN = 2, 3  # both
HALF = 0.5


def half(x):
    return HALF * x
'''
    text = copy_toy(tmp_path, "from common.a import twice", "twice(x)", a=a, b=b)
    assert run_toy(text, 8, capsys, monkeypatch) == "8.0\n"
    assert "# Of the order\n# of things.\n@plain\ndef twice(" in text
    assert "# B: constants.\n\n\nUP, DOWN = 2, 3  # both\nHALF = 0.5\n\n\ndef half(x):" in text
    assert "Not on anything" not in text
    assert "def never():" not in text and "defaultdict" not in text and "math" not in text
    assert "import sys\nfrom collections import OrderedDict as Ordered\n\n# B: constants." in text
    assert text.index("def half") < text.index("def twice") < text.index("def make")
    assert text.index("def make") < text.index("# Runs.") < text.index("def main")


def test_imports_inside_functions(tmp_path, capsys, monkeypatch):
    a = '''"""A."""


def f(x):
    """Halves."""
    from common.b import half

    import string

    return half(x), string.digits
'''
    b = '"""B."""\n\n\ndef half(x):\n    return x / 2\n'
    text = copy_toy(tmp_path, "from common.a import f", "f(x)[0]", a=a, b=b)
    assert '    """Halves."""\n    import string\n\n    return' in text
    assert run_toy(text, 8, capsys, monkeypatch) == "4.0\n"


EQUIPPED = '''"""A."""

import optax


def f(x):
    """Halves."""
    # Rarely.
    if str(x).startswith("-"):
        from common.b import half

        return half(x)

    return x
'''


def test_optional_equipment_comes_only_where_the_algorithm_names_it(tmp_path, capsys, monkeypatch):
    b = '"""B."""\n\nTWO = 2\n\n\ndef half(x):\n    return x / TWO\n'
    text = copy_toy(tmp_path, "from common.a import f", "f(x)", a=EQUIPPED, b=b)
    assert '    """Halves."""\n    return x\n' in text and "TWO" not in text
    assert run_toy(text, -8, capsys, monkeypatch) == "-8\n"
    text = copy_toy(tmp_path, "from common.a import f", "f(x), 'x-y'", a=EQUIPPED, b=b)
    assert '    if str(x).startswith("-"):\n        return half(x)\n\n    return x\n' in text
    assert run_toy(text, -8, capsys, monkeypatch) == "(-4.0, 'x-y')\n"
    assert text.count("TWO = 2") == 1


def test_imports_are_merged_in_the_order_of_isort(tmp_path):
    names = [f"a_long_name_to_import_{n}" for n in range(5)]
    lines = [
        "import collections.abc",
        "from collections import OrderedDict, abc as also, deque",
        "import optax.losses as losses",
        "import optax",
        f"from optax import {', '.join(reversed(names))}, Z, LAST, First",
    ]
    used = "collections, OrderedDict, also, deque, losses, optax, Z, LAST, First, " + ", ".join(
        names
    )
    text = copy_toy(tmp_path, "\n".join(lines), f"({used}, math)")
    long = "".join(f"    {name},\n" for name in ["LAST", "First", "Z", *names])
    expected = f"""import collections.abc
import math
import sys
from collections import OrderedDict, deque
from collections import abc as also

import optax
import optax.losses as losses
from optax import (
{long})

"""
    assert expected in text
    assert '#     "optax>=0.2",\n# ]' in text


@pytest.mark.parametrize(
    "imports, result, b, words",
    [
        ("from common.b import g", "f(g(x))", "def _h():\n    pass", "_h is of common.a and of"),
        (
            "from common.b import g",
            "f(g(x))",
            "import optax as _h",
            "_h is of common.a and of optax",
        ),
        ("from common.b import missing", "f(missing)", "", "common.b does not define missing"),
        ("from common.b import g as k", "f(k)", "", "a copy needs `from common.x import name`"),
        ("from common import b", "f(b.g)", "", "a copy needs `from common.x import name`"),
        ("import common.b", "f(common.b.g)", "", "a copy needs `from common.x import name`"),
        ("from common.b import sum", "f(sum(x))", "def sum(x):\n    _h", "sum is of Python itself"),
        ("from common.b import g", "f(g)", "print()", "common.b, line 7: a copy takes imports"),
    ],
)
def test_what_a_copy_cannot_carry_is_refused(tmp_path, imports, result, b, words):
    a = '"""A."""\n\n\ndef _h():\n    return 1\n\n\ndef f(x):\n    return _h()\n'
    b = f'"""B."""\n\n\ndef g(x):\n    return _h(x)\n\n{b}\n'
    with pytest.raises(ValueError, match=re.escape(words)):
        copy_toy(tmp_path, f"from common.a import f\n{imports}", result, a=a, b=b)
