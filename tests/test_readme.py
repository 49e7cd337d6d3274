"""README.md: its commands and examples run, and the flags and modules that it names exist."""

import importlib.util
import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from helpers import ROOT, load, run, small_config

from common.runner.results import load_agent

TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"(?m)^```(\w*)\n(.*?)^```$", TEXT, re.DOTALL)
COMMANDS = [
    command.strip()
    for language, block in BLOCKS
    if language == ""
    for line in block.splitlines()
    for command in line.split("&&")
]
EXAMPLES = [block for language, block in BLOCKS if language == "python"]
TRAINING = [command for command in COMMANDS if command.startswith("python -m algorithms.")]
COPIES = [command for command in COMMANDS if command.startswith("python -m common.copy ")]
TOOLS = [command for command in COMMANDS if re.search("runs/a", command)]  # of trained runs
BY_CI = {  # which .ci/run runs, in a fresh environment, as its own words or the README's
    "python3 -m venv .venv": "-m venv",
    ". .venv/bin/activate": "bin/activate",
    "pip install -r requirements.txt": "install -q --disable-pip-version-check -r requirements.txt",
    "python -m pytest": "tier quick python -m pytest\n",
}
SMALL = "--total-timesteps 2000 --num-seeds 2 --eval-episodes 1 --quiet"


def test_every_command_is_run_by_a_test_or_by_ci():
    script = (ROOT / ".ci" / "run").read_text()
    assert len(TRAINING) >= 3 and len(COPIES) == 1 and EXAMPLES
    for command in set(COMMANDS) - {*TRAINING, *COPIES, *TOOLS}:
        assert BY_CI[command] in script, command


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("readme")


def trained(command, folder):
    """The run folder of a training command, made short."""
    words = shlex.split(command)[2:]
    out = folder / words[0]
    if not out.exists():
        short = [*SMALL.split(), *(["--num-simulations", "4"] if "mcts" in command else [])]
        run(*words, *short, "--out", out)
    return out


@pytest.mark.parametrize("command", dict.fromkeys(TRAINING))
def test_a_command_trains(command, folder):
    out = trained(command, folder)
    named = re.search(r"The run folder has (.*?): the parameters", TEXT, re.DOTALL)[1]
    files = set(re.findall(r"`(\w+\.\w+)`", named))
    files -= {"evaluation.csv"} if "mcts" in command else set()  # the run itself evaluates
    assert files and files <= {path.name for path in out.iterdir()}
    if "FourRooms" in command:
        assert (out / "policy.png").exists()
    if "mcts" in command:
        assert (out / "picture.png").exists()


@pytest.mark.parametrize("command", COPIES)
def test_a_command_copies_with_and_without_what_is_optional(command, tmp_path):
    plain = re.sub(r" \[[^]]*\]", "", command)
    lengths = []
    for words in (plain, re.sub(r"[][]", "", command)):
        _, _, module, name, path, *flags = shlex.split(words)
        assert (ROOT / path).parent.is_dir()
        copy = tmp_path / f"{len(flags)}.py"
        run(module, name, copy, *flags)
        lengths.append(len(copy.read_text().splitlines()))
    assert lengths[0] < lengths[1]


@pytest.mark.parametrize("command", TOOLS)
def test_a_command_looks_at_trained_runs(command, folder, tmp_path):
    """`runs/a` and `runs/b` are what commands of README trained; nobody types a move."""
    a = trained(next(x for x in TRAINING if "dqn" in x), folder)
    b = trained(next(x for x in TRAINING if "q_learning" in x), folder)
    words = shlex.split(command.partition("#")[0])[2:]
    paths = {"runs/a": a, "runs/b": b}
    words = [
        str(paths.get(x, tmp_path / x if "." in x[1:] and "common" not in x else x)) for x in words
    ]
    if "common.play" in words:
        assert "only games can be played" in run(*words, check=2).stderr
        return
    run(*words)
    assert Path(words[words.index("--out") + 1]).exists()


def test_the_examples_run(folder):
    """The first trains, the second loads what a command of README trained."""
    algorithm = load("dqn").make(small_config(load("dqn")))
    names = {"algorithm": algorithm, "jax": jax, "jnp": jnp}
    exec(EXAMPLES[0].replace("arange(32)", "arange(2)"), names)
    assert set(names["metrics"]) >= {"episode_return", "value"}
    assert names["metrics"]["value"].shape == (2, algorithm.num_updates)

    (command,) = {x for x in TRAINING if "dqn" in x}
    example = EXAMPLES[1].replace("runs/...", str(trained(command, folder)))
    names = {"obs": jnp.zeros(4)}
    exec(example, names)
    assert names["load_agent"] is load_agent and int(names["action"]) in (0, 1)
    assert len(EXAMPLES) == 2


def test_every_flag_in_the_text_exists():
    helps = [
        run("algorithms.dqn", "--help").stdout,
        run("algorithms.mcts", "--help").stdout,
        run("algorithms.behaviour_cloning", "--help").stdout,
        *(
            run(f"common.{x}", "--help").stdout
            for x in ("copy", "compare", "render", "play", "record")
        ),
        (ROOT / "tests" / "conftest.py").read_text(),
        (ROOT / "common" / "tools" / "standalone_main.py").read_text().replace("load:", "--load"),
    ]
    for flag in set(re.findall(r"(?<![\w-])--[a-z][\w-]+", TEXT)):
        assert any(re.search(rf"{flag}\b", text) for text in helps), flag


def test_every_module_in_the_text_exists():
    for module in set(re.findall(r"python -m (\w+(?:\.\w+)*)", TEXT)):
        assert importlib.util.find_spec(module), module


def test_it_is_short():
    assert len(TEXT.splitlines()) <= 170
    assert len((ROOT / "benchmarks" / "README.md").read_text().splitlines()) <= 120
