"""The copies that common/tools/copy.py writes: they read well, stand alone and train bit for bit as
the originals do; and the copier's rules, on small trees of files."""

import ast
import dataclasses
import functools
import os
import re
import shutil
import subprocess
import sys
import tomllib

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    ALGORITHMS,
    FAMILIES,
    first_act,
    float64,
    keys,
    load,
    random_env,
    small_algorithm,
    small_config,
    to_bits,
    trained,
)

from common.envs import make_env
from common.tools.copy import ROOT, standalone


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


@functools.cache
def copy_of(name):
    return standalone(name)


@pytest.fixture(params=ALGORITHMS)
def name(request):
    return request.param


# --- every algorithm ----------------------------------------------------------------------------


def test_copies_pass_ruff(tmp_path):
    for name in ALGORITHMS:
        (tmp_path / f"{name}.py").write_text(copy_of(name), encoding="utf-8")
    rules = ["--no-cache", "--config", ROOT / ".ruff.toml"]
    for command in (["check"], ["format", "--check", "--diff"]):
        result = python("-m", "ruff", *command, *rules, tmp_path, cwd=tmp_path)
        assert result.returncode == 0, result.stdout + result.stderr


# Short files whose copies have an expert and the episodes that it plays: lines beyond the rule.
LONGER = {"behaviour_cloning": 44, "cql": 16, "iql": 40}


def test_a_copy_is_short(name):
    source = (ROOT / "algorithms" / f"{name}.py").read_text()
    length = len(copy_of(name).splitlines())
    brings_data = 45 if "common.datasets" in source else 0  # an expert and what it plays
    assert length <= 2 * len(source.splitlines()) + 150 + brings_data


def test_two_copies_and_the_median_are_shorter_still():
    assert len(copy_of("dqn").splitlines()) <= 420
    assert len(copy_of("q_learning").splitlines()) <= 350
    # 500 lines when the median file had 194: files that are longer since have longer copies.
    lengths = [len(copy_of(name).splitlines()) for name in ALGORITHMS]
    sources = [(ROOT / "algorithms" / f"{name}.py").read_text() for name in ALGORITHMS]
    ratios = [x / len(y.splitlines()) for x, y in zip(lengths, sources, strict=True)]
    assert np.median(ratios) <= 500 / 194


def test_a_copy_holds_all_it_uses_and_nothing_else(name):
    tree = ast.parse(copy_of(name))
    used = {x.id for x in ast.walk(tree) if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Load)}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            assert node.name in used
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            stored = [x for x in ast.walk(node) if isinstance(x, ast.Name)]
            assert {x.id for x in stored if isinstance(x.ctx, ast.Store)} <= used
    assert not {"common", "algorithms"} & packages(tree)
    assert " copied" not in copy_of(name).replace("Copied from", "")


def test_the_header_names_the_packages_that_are_imported(name):
    text = copy_of(name)
    block = re.fullmatch(r"# /// script\n((?:# .*\n)+)# ///\n\"\"\".*", text, re.DOTALL)[1]
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


def test_a_copy_begins_with_the_algorithm_letter_by_letter(name):
    """But for what checks its flags."""
    original = (ROOT / "algorithms" / f"{name}.py").read_text()
    tree = ast.parse(original)
    imports = [x for x in tree.body if isinstance(x, ast.Import | ast.ImportFrom)]
    checks = [x for x in ast.walk(tree) if getattr(x, "name", "") == "__post_init__"]
    dropped = {n for x in checks for n in range(x.lineno - 1, x.end_lineno + 1)}
    lines = list(enumerate(original[: original.index("if __name__")].splitlines(), start=1))
    kept = [line for n, line in lines[imports[-1].end_lineno :] if n not in dropped]
    body = ast.parse(copy_of(name)).body
    last_import = [x for x in body if isinstance(x, ast.Import | ast.ImportFrom)][-1].end_lineno
    copied = "\n".join(copy_of(name).splitlines()[last_import:])
    assert copied.strip().startswith("\n".join(kept).strip())


def test_the_copier_imports_nothing_and_says_the_same_each_time():
    code = "import sys; from common.tools.copy import standalone; print(standalone('dqn'), end='');"
    result = python("-c", code + "assert not {'jax', 'numpy'} & set(sys.modules)", cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert result.stdout == copy_of("dqn")


def flags_of(name):
    """Small settings of an algorithm, as fields and as flags."""
    defaults, small = vars(load(name).Config()), vars(small_config(load(name)))
    settings = {field: x for field, x in small.items() if x != defaults[field]}
    if name == "reinforce":  # whose updates are long
        settings["total_timesteps"] = 6_000
    words = lambda x: map(str, x) if isinstance(x, tuple) else [str(x)]
    flags = [y for k, x in settings.items() for y in ("--" + k.replace("_", "-"), *words(x))]
    return settings, flags


def run_copy(text, path, *flags, monkeypatch):
    """Runs a copy in this process, in the folder of `path`; JAX is imported already."""
    path.write_text(text, encoding="utf-8")
    monkeypatch.chdir(path.parent)
    monkeypatch.setattr(sys, "argv", [path.name, *map(str, flags)])
    names = {"__name__": path.stem, "__file__": str(path)}
    module = sys.modules[path.stem] = type(sys)(path.stem)  # where tyro looks annotations up
    module.__dict__.update(names)
    try:
        exec(compile(text, path.name, "exec"), module.__dict__)
        module.main(module.Config, module.make)
    finally:
        del sys.modules[path.stem]


def tiers(name):
    """The marks of an algorithm's copy that is trained alone."""
    marks = {"dqn": [pytest.mark.smoke], "q_learning": []}
    return marks.get(name, [pytest.mark.slow])


def train_original(algorithm, seeds):
    """The params of an algorithm of the repository, trained by the program that copies have."""
    state = jax.jit(jax.vmap(algorithm.init))(jax.vmap(jax.random.key)(jnp.array(seeds)))
    update = jax.vmap(algorithm.update, (0, None))

    @jax.jit
    def train(state, steps):
        state, metrics = jax.lax.scan(update, state, steps)
        returns, episodes = metrics["episode_return"], metrics.get("episodes", 1)
        return state, jnp.nansum(returns * episodes) / jnp.sum(episodes * ~jnp.isnan(returns))

    for steps in np.array_split(np.arange(algorithm.num_updates), min(10, algorithm.num_updates)):
        state, _ = train(state, steps)
    return state.params


@pytest.mark.parametrize("name", [pytest.param(x, marks=tiers(x)) for x in ALGORITHMS])
def test_a_copy_trains_alone_and_bit_for_bit_as_the_original(name, tmp_path):
    """In a process and a folder of its own, where nothing of the repository can be imported. Its
    policy takes the same actions."""
    settings, flags = flags_of(name)
    (tmp_path / f"copied_{name}.py").write_text(copy_of(name), encoding="utf-8")
    flags += ["--seed", 3, "--num-seeds", 2]
    result = python(f"copied_{name}.py", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) <= 11
    assert f"params of 2 seeds in copied_{name}.npz" in result.stdout

    original = load(name).make(load(name).Config(**settings))
    params = train_original(original, [3, 4])
    got = np.load(tmp_path / f"copied_{name}.npz")
    leaves = jax.tree_util.tree_leaves_with_path(params)
    expected = {jax.tree_util.keystr(where): np.asarray(x) for where, x in leaves}
    assert got.files == list(expected)
    for leaf, x in expected.items():
        assert got[leaf].shape[0] == 2
        assert got[leaf].dtype == x.dtype
        assert got[leaf].tobytes() == x.tobytes(), leaf
    config = load(name).Config(**settings)
    check_actions(made_of(copy_of(name), config), original, config.env_id, params, [3, 4])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_copy_does_what_the_original_does(name):
    """In the setting of the contract's tests, whose program is compiled already, if a copy has its
    environment. Copies of the other files are compared where they train alone."""
    module = load(name)
    original = small_algorithm(name)
    config = small_config(module)
    with float64():
        if random_env(module) != config.env_id:
            original = module.make(config)
        check_copy(copy_of(name), config, original)


def check_copy(text, config, original):
    """A copy has the bits of the original, which is the Algorithm of that Config, and its policy
    takes the same actions."""
    copied = made_of(text, config)
    numbers = lambda algorithm: (
        algorithm.num_updates,
        algorithm.steps_per_update,
        algorithm.initial_steps,
    )
    assert numbers(copied) == numbers(original)
    num = min(original.num_updates, 20)
    ends = [trained(x, SEEDS, num) for x in (copied, original)]
    params = [end.state.params for end in ends]
    assert to_bits(params[0]) == to_bits(params[1])
    known = ends[0].mean.keys() & ends[1].mean.keys()
    assert {"episode_return", "value"} <= known
    metrics = [to_bits({metric: end.mean[metric] for metric in known}) for end in ends]
    assert metrics[0] == metrics[1]
    check_actions(copied, original, config.env_id, params[0], SEEDS)


def made_of(text, config):
    """The Algorithm of a copy, with the fields of an original's Config."""
    module, defaults = imported(text), vars(type(config)())
    fields = {field: x for field, x in vars(config).items() if x != defaults[field]}
    return module.make(module.Config(**fields))


def check_actions(copied, original, env_id, params, seeds):
    """Two policies take the same first actions with the params of each seed."""
    if original.act is not None:
        obs = jax.vmap(make_env(env_id, 1).reset)(keys(*seeds)).obs[:, 0]
        acts = [
            jax.jit(jax.vmap(first_act(x)))(params, obs, keys(*seeds)) for x in (copied, original)
        ]
        assert to_bits(acts[0]) == to_bits(acts[1])


SEEDS = [3, 4, 3]  # for which the contract's tests compile


def imported(text):
    """The module that a copy is."""
    module = sys.modules["imported_copy"] = type(sys)("imported_copy")
    exec(compile(text, "imported_copy.py", "exec"), module.__dict__)
    return module


@pytest.mark.parametrize(
    "name, old, new",
    [
        ("dqn", "target = reward + gamma", "target = reward + 2 * gamma"),
        ("dqn", '"CartPole-v1"', '"Acrobot-v1"'),
        ("q_learning", "target = reward + gamma", "target = reward + 2 * gamma"),
        ("q_learning", "return jnp.argmax(params[obs])", "return jnp.argmin(params[obs])"),
    ],
)
def test_a_copy_that_differs_is_found(name, old, new):
    config = small_config(load(name))
    assert old in copy_of(name)
    with float64(), pytest.raises(AssertionError):
        check_copy(copy_of(name).replace(old, new, 1), config, small_algorithm(name))


# --- what a copy does ---------------------------------------------------------------------------


@pytest.fixture
def small_copy(tmp_path, monkeypatch):
    """`run(name, *flags)` of the copy of an algorithm."""

    def run(name, *more):
        path, flags = tmp_path / f"small_{name}.py", flags_of(name)[1]
        return run_copy(copy_of(name), path, *flags, *more, monkeypatch=monkeypatch)

    return run


@pytest.fixture
def small_dqn(small_copy):
    return functools.partial(small_copy, "dqn")


def test_help_lists_every_flag(small_dqn, capsys):
    with pytest.raises(SystemExit) as stop:
        small_dqn("--help")
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    fields = [field.name for field in dataclasses.fields(load("dqn").Config)]
    for field in [*fields, "seed", "num_seeds", "out", "load"]:
        assert "--" + field.replace("_", "-") in printed


@pytest.mark.parametrize("name", ["dqn", "ppo_rnn"])
def test_saved_params_are_loaded_again_and_played(small_copy, capsys, name):
    small_copy(name, "--num-seeds", 3, "--out", "saved.npz")
    capsys.readouterr()
    small_copy(name, "--load", "saved.npz")
    line = capsys.readouterr().out
    assert line.startswith("return of each policy: ")
    returns = [float(x) for x in line.removeprefix("return of each policy: ").split()]
    assert len(returns) == 3 and all(8 <= x <= 500 for x in returns)


def test_two_lines_import_a_copy_and_act_with_what_it_saved(tmp_path):
    """As a user would, from a script of one's own beside the copy."""
    (tmp_path / "dqn.py").write_text(copy_of("dqn"), encoding="utf-8")
    flags = "--total-timesteps 600 --learning-starts 200 --num-seeds 2 --batch-size 8"
    trained = python("dqn.py", *flags.split(), "--hidden-sizes", 8, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    script = """
import jax, numpy as np
from dqn import Config, load_params, make

algorithm = make(Config(hidden_sizes=(8,)))
params = load_params(algorithm, "dqn.npz")
one = jax.tree.map(lambda x: x[1], params)
obs = np.array([0.01, -0.02, 0.03, 0.04], np.float32)
w = [np.load("dqn.npz")[name][1] for name in np.load("dqn.npz").files]
q = np.maximum(obs @ w[0] + w[1], 0) @ w[2] + w[3]
print(int(algorithm.act(one, obs, jax.random.key(0))) == int(q.argmax()), len(params))
"""
    (tmp_path / "use.py").write_text(script)
    used = python("use.py", cwd=tmp_path)
    assert used.stdout.startswith("True"), used.stderr


def test_the_header_says_where_an_environment_is_registered_and_it_is_found(small_copy, tmp_path):
    assert "register with gymnax above" in copy_of("dqn")
    assert "register" not in copy_of("q_learning")[:2000]
    own = "gymnax.registration.register('MyEnv-v0', gymnax.environments.classic_control.CartPole)"
    text = copy_of("dqn").replace(
        'if __name__ == "__main__":', f'{own}\n\nif __name__ == "__main__":'
    )
    (tmp_path / "own.py").write_text(text, encoding="utf-8")
    flags = "--env-id MyEnv-v0 --total-timesteps 600 --learning-starts 200 --batch-size 8"
    done = python("own.py", *flags.split(), cwd=tmp_path)
    assert done.returncode == 0 and "params of 1 seeds" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--load", "missing.npz"], "missing.npz"),
        (["--load", "small_dqn.py"], "pickle"),
        (["--env-id", "CartPole-v9"], "CartPole-v9 is not in registered gymnax environments"),
        (["--env-id", "Pendulum-v1"], "no discrete actions"),
        (["--num-seeds", "0"], "--num-seeds"),
        (["--total-timesteps", "10"], "--total-timesteps"),
    ],
)
def test_what_is_refused_is_one_line_and_exit_code_2(small_dqn, capsys, flags, words):
    with pytest.raises(SystemExit) as stop:
        small_dqn(*flags)
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.out == "" and captured.err.count("\n") == 1
    assert words in captured.err


def test_a_copy_brings_along_what_has_no_velocities_and_refuses_its_actions(
    tmp_path, monkeypatch, capsys
):
    """R2D2 needs discrete actions; of a table by id, the copy has what --with names."""
    text = standalone("r2d2", ["Pendulum-v1-positions"])
    entries = [
        x for x in ("CartPole-v1", "Pendulum-v1", "Acrobot-v1") if f'"{x}-positions": [' in text
    ]
    assert entries == ["CartPole-v1", "Pendulum-v1"]
    assert len([x for x in standalone("r2d2", ["positions"]).split() if '-positions":' in x]) == 5
    flags = "--env-id", "Pendulum-v1-positions", *flags_of("r2d2")[1]
    with pytest.raises(SystemExit) as stop:
        run_copy(text, tmp_path / "r2d2.py", *flags, monkeypatch=monkeypatch)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err == "--env-id: Pendulum-v1 has no discrete actions\n"


# --- the command ---------------------------------------------------------------------------------


def command(*args):
    return python("-m", "common.copy", *args, cwd=ROOT)


def test_a_copy_has_the_family_of_its_default_environment(tmp_path):
    assert "with_history" not in copy_of("dqn") and "brax" not in copy_of("dqn")
    assert "frozen_lake" not in copy_of("q_learning") and "taxi" not in copy_of("q_learning")
    assert "gymnax" not in copy_of("q_learning") and "TABULAR" not in copy_of("dqn")


def test_with_brings_environments_along():
    assert "make_brax_env" in standalone("sac", ["brax"])
    assert "def taxi" in standalone("q_learning", ["Taxi-tabular"])
    assert "def frozen_lake" not in standalone("q_learning", ["Taxi-tabular"])
    assert "def frozen_lake" in standalone("q_learning", ["tabular"])
    assert "def conv" in standalone("dqn", ["Breakout-MinAtar"])
    assert "def conv" not in copy_of("dqn")
    assert "gymnax" in standalone("q_learning", ["gymnax"])


def test_the_generator_for_cpus_comes_with_an_option(tmp_path, monkeypatch):
    assert "threefry" not in copy_of("dqn") and "mlir" not in copy_of("dqn")
    assert "NPROC" not in copy_of("dqn")
    text = standalone("dqn", ["fast-cpu"])
    assert "    unroll_threefry()\n" in text and 'os.environ.setdefault("NPROC", "1")\n' in text


@pytest.mark.parametrize(
    "name, option, env_id",
    [
        ("dqn", "Breakout-MinAtar", "Breakout-MinAtar"),
        ("dqn", "CartPole-v1-history2", "CartPole-v1-history2"),
        ("dqn", "tabular", "FrozenLake-tabular"),
        ("q_learning", "gymnax", "FrozenLake-misc"),
        ("q_learning", "BlockingMaze-tabular", "BlockingMaze-tabular"),
        ("dqn", None, "DiscountingChain-bsuite"),  # its limit terminates, in the lean copy too
    ],
)
def test_what_was_brought_along_does_what_the_original_does(name, option, env_id):
    config = small_config(load(name), env_id=env_id, total_timesteps=600)
    check_copy(standalone(name, [option] if option else []), config, load(name).make(config))


def test_the_default_environment_of_a_changed_file_comes_along(tmp_path):
    for folder in ("algorithms", "common"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    original = tmp_path / "algorithms" / "dqn.py"
    original.write_text(original.read_text().replace('"CartPole-v1"', '"CartPole-v1-history2"'))
    text = standalone("dqn", root=tmp_path)
    assert "with_history" in text and "make_gymnax_env" in text and "env.legal" not in text


def test_the_command_writes_to_a_file_and_into_a_folder(tmp_path):
    for destination, path in [("mine.py", "mine.py"), (".", "dqn.py")]:
        result = command("dqn", tmp_path / destination)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.count("\n") == 1
        assert str(tmp_path / path) in result.stdout
        assert (tmp_path / path).read_text(encoding="utf-8") == standalone("dqn")
    result = command("dqn", tmp_path / "fast.py", "--fast-cpu", "--with", "brax", "tabular")
    assert result.returncode == 0, result.stderr
    text = (tmp_path / "fast.py").read_text(encoding="utf-8")
    assert text == standalone("dqn", ["brax", "tabular", "fast-cpu"])


@pytest.mark.parametrize(
    "args, code, words",
    [
        (["dqm", "new.py"], 2, "did you mean dqn?"),
        (["nothing", "new.py"], 2, "There are: "),
        (["dqn", "there.py"], 2, "there.py exists"),
        (["dqn", "there.py/dqn.py"], 5, "Not a directory"),
        (["dqn", "missing/dqn.py"], 5, "No such file or directory"),
        (["dqn", "new.py", "--with", "braxx"], 2, "--with braxx: give an id, or one of"),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(tmp_path, args, code, words):
    (tmp_path / "there.py").write_text("mine")
    result = command(args[0], tmp_path / args[1], *args[2:])
    assert (result.returncode, result.stdout) == (code, "")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["there.py"]
    assert (tmp_path / "there.py").read_text() == "mine"


# --- the copier's rules, on small trees --------------------------------------------------------

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


def copy_toy(root, imports, result, options=(), **modules):
    """The copy of an algorithm that returns `result`, beside those modules of `common`."""
    files = {f"common/{name}.py": text for name, text in modules.items()}
    files |= {
        "algorithms/toy.py": TOY.format(imports=imports, result=result),
        "common/tools/standalone_main.py": MAIN,
        "requirements.txt": "optax>=0.2  # gradients\nsix\n",
    }
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return standalone("toy", options, root)


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
    assert "# === B ===\nUP, DOWN = 2, 3  # both\nHALF = 0.5\n\n\ndef half(x):" in text
    assert "Not on anything" not in text
    assert "def never():" not in text and "defaultdict" not in text and "math" not in text
    assert "import sys\nfrom collections import OrderedDict as Ordered\n\n\ndef make(x):" in text
    assert text.index("def make") < text.index("def half") < text.index("def twice")
    assert text.index("def make") < text.index("def main") < text.index("if __name__")


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
    assert '    """Halves."""\n\n    import string\n\n    return' in text
    assert run_toy(text, 8, capsys, monkeypatch) == "4.0\n"


MARKED = '''"""A."""

import optax

from common.b import half, third


def f(x):
    """Halves.

    And so on.
    """
    x = third(x)  # copied --fast-cpu
    # Rarely.
    if x < 0:  # copied for x-y
        return half(x)
    x = 2 * x  # not copied
    y = half(x)  # copied unless x-y
    return x
'''


def test_marked_statements_come_along_only_where_their_comment_says(tmp_path):
    b = '"""B."""\n\nTWO = 2\n\n\ndef half(x):\n    return x / TWO\n\n\n'
    b += "def third(x):\n    return x / 3\n"
    text = copy_toy(tmp_path, "from common.a import f", "f(x)", a=MARKED, b=b)
    assert '    """Halves."""\n    y = half(x)\n    return x\n' in text
    assert "third" not in text and "optax" not in text and "not copied" not in text
    text = copy_toy(tmp_path, "from common.a import f", "f(x), 'x-y'", a=MARKED, b=b)
    assert "    # Rarely.\n    if x < 0:\n        return half(x)\n    return x\n" in text
    assert text.count("TWO = 2") == 1
    text = copy_toy(tmp_path, "from common.a import f", "f(x)", ["fast-cpu"], a=MARKED, b=b)
    assert '    """Halves."""\n    x = third(x)\n    y = half(x)\n' in text


def test_checks_of_flags_are_left_out(tmp_path):
    a = """
def require(config, *conditions):
    pass


def f(config, limit):
    require(config, "x")
    return config


class Strict:
    def __post_init__(self):
        require(self)


class Other:
    def __post_init__(self):
        require(self)
        self.x = 1
"""
    text = copy_toy(tmp_path, "from common.a import Other, Strict, f", "f(Strict(), Other())", a=a)
    assert "require(" not in text
    assert "class Strict:\n    pass" in text or "class Strict" not in text
    assert "    def __post_init__(self):\n        self.x = 1\n" in text


# --- files of a user ----------------------------------------------------------------------------


def write_user_file(root, text, **others):
    """A repository with `algorithms/mine.py` and other files; the copy of it."""
    for folder in ("algorithms", "common"):
        shutil.copytree(ROOT / folder, root / folder)
    shutil.copy(ROOT / "requirements.txt", root)
    (root / "algorithms" / "mine.py").write_text(text)
    for name, other in others.items():
        (root / f"{name}.py").write_text(other)
    return standalone("mine", root=root)


MINE = """{imports}
from common.run import main


def make(config):
    return dqn_make(config)


if __name__ == "__main__":
    main(Config, make)
"""


def test_what_another_algorithm_defines_comes_along(tmp_path):
    imports = "from algorithms.dqn import Config, td_error"
    text = MINE.replace("return dqn_make(config)", "return td_error(1, 2, 3, 4, config)")
    text = write_user_file(tmp_path, text.format(imports=imports))
    assert "def td_error(" in text and "class Config" in text
    assert text.count("if __name__") == 1
    assert "algorithms" not in text


def test_a_helper_module_of_the_user_comes_along(tmp_path):
    helper = (
        "import math\n\n\ndef dqn_make(config):\n    return math.pi\n\n\nclass Config:\n    x = 1\n"
    )
    text = write_user_file(
        tmp_path, MINE.format(imports="from my_helper import Config, dqn_make"), my_helper=helper
    )
    assert "def dqn_make(config):" in text and "import math\n" in text
    assert "my_helper" not in packages(ast.parse(text))
    assert text.startswith("# /// script\n")


def test_a_name_of_two_meanings_is_refused_in_one_line(tmp_path):
    imports = "from algorithms.dqn import Config, make as dqn_make"
    with pytest.raises(ValueError, match="a copy needs `from folder.file import name`"):
        write_user_file(tmp_path, MINE.format(imports=imports))
    shutil.rmtree(tmp_path / "algorithms")
    shutil.rmtree(tmp_path / "common")
    helper = "from algorithms.dqn import make\n\n\ndef dqn_make(config):\n    return make(config)\n"
    imports = "from algorithms.dqn import Config\nfrom my_helper import dqn_make"
    with pytest.raises(ValueError, match="make is in .*: rename one"):
        write_user_file(tmp_path, MINE.format(imports=imports), my_helper=helper)


@pytest.mark.parametrize(
    "text, words",
    [
        ("import jax\n", "must end in if __name__"),
        ("def make(:\n", "line 1"),
        (
            "from . import dqn\n\nx = 1\n\nif __name__ == '__main__':\n    x\n",
            "a copy needs `from folder",
        ),
        (
            "import common.envs\n\nx = 1\n\nif __name__ == '__main__':\n    x\n",
            "a copy needs `from folder",
        ),
    ],
)
def test_a_user_file_that_cannot_be_copied_is_refused_in_one_line(tmp_path, text, words):
    with pytest.raises(ValueError, match=re.escape(words)) as refusal:
        write_user_file(tmp_path, text)
    assert "\n" not in str(refusal.value)


def test_an_if_that_holds_only_an_import_is_left_out(tmp_path):
    imports = "from typing import TYPE_CHECKING\n\nimport jax\n\nif TYPE_CHECKING:\n"
    imports += "    from common.envs import Env\n\nConfig = dqn_make = jax.jit"
    text = write_user_file(tmp_path, MINE.format(imports=imports))
    ast.parse(text)
    assert "TYPE_CHECKING" not in text and "Config = dqn_make = jax.jit" in text


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
    assert '# dependencies = ["optax>=0.2"]' in text


@pytest.mark.parametrize(
    "imports, result, b, words",
    [
        ("from common.b import g", "f(g(x))", "def _h():\n    pass", "_h is in common.a and in"),
        (
            "from common.b import g",
            "f(g(x))",
            "import optax as _h",
            "_h is in common.a and in optax",
        ),
        ("from common.b import missing", "f(missing)", "", "common.b does not define missing"),
        ("from common.b import g as k", "f(k)", "", "a copy needs `from folder.file import name`"),
        ("from common import b", "f(b.g)", "", "a copy needs `from folder.file import name`"),
        ("import common.b", "f(common.b.g)", "", "a copy needs `from folder.file import name`"),
        ("from common.b import sum", "f(sum(x))", "def sum(x):\n    _h", "sum is in Python"),
        ("from common.b import g", "f(g)", "print()", "common.b, line 7: a copy takes imports"),
    ],
)
def test_what_a_copy_cannot_carry_is_refused(tmp_path, imports, result, b, words):
    a = '"""A."""\n\n\ndef _h():\n    return 1\n\n\ndef f(x):\n    return _h()\n'
    b = f'"""B."""\n\n\ndef g(x):\n    return _h(x)\n\n{b}\n'
    with pytest.raises(ValueError, match=re.escape(words)):
        copy_toy(tmp_path, f"from common.a import f\n{imports}", result, a=a, b=b)
