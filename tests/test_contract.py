"""The contract of DESIGN section 3, for every file in algorithms/ (found by listing the folder)."""

import ast
import dataclasses
import functools
import json
import re
import subprocess
import sys
from typing import Any, NamedTuple

import chex
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
    ALGORITHMS,
    FAMILIES,
    ROOT,
    first_act,
    float64,
    keys,
    load,
    run_here,
    small_algorithm,
    small_config,
    trained,
)

from benchmarks.pages import all_explained
from common.envs import make_env, rollout
from common.exploration import random_policy
from common.memory import reset_memory
from common.runner import checkpoint
from common.runner.evaluation import evaluate

every_algorithm = pytest.mark.parametrize("name", ALGORITHMS)
every_algorithm_smoke_for_some = pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=[pytest.mark.smoke] if x in FAMILIES else []) for x in ALGORITHMS],
)


# Tests of an algorithm run one after the other and share what follows.


SEEDS = [3, 4, 3]  # what is trained, in one program


@functools.lru_cache(maxsize=2)
def made(name):
    module = load(name)
    return module.make(small_config(module))


class Traced(NamedTuple):
    init: jax.extend.core.Jaxpr
    update: jax.extend.core.Jaxpr
    before: Any  # shapes of a State
    after: Any  # of the next one
    metrics: dict[str, Any]


def trace(init, update, key):
    jaxpr = functools.partial(jax.make_jaxpr, return_shape=True)
    of_init, before = jaxpr(init)(key)
    of_update, after = jaxpr(update)(before, jnp.int32(0))
    return Traced(of_init.jaxpr, of_update.jaxpr, before, *after)


@functools.lru_cache(maxsize=2)
def traced(name):
    return trace(made(name).init, made(name).update, jax.random.key(0))


@functools.lru_cache(maxsize=2)
def traced_for_seeds(name):
    update = jax.vmap(made(name).update, (0, None))
    return trace(jax.vmap(made(name).init), update, keys(0, 1, 2))


def equations(jaxpr, name: str):
    """Those of a primitive in a jaxpr and in all that it calls."""
    kinds = jax.extend.core.Jaxpr, jax.extend.core.ClosedJaxpr
    for equation in jaxpr.eqns:
        if equation.primitive.name == name:
            yield equation
        for value in equation.params.values():
            for inner in jax.tree.leaves(value, is_leaf=lambda x: isinstance(x, kinds)):
                if isinstance(inner, kinds):
                    yield from equations(getattr(inner, "jaxpr", inner), name)


@every_algorithm
def test_file_has_the_sections_of_the_design_in_order(name):
    source = (ROOT / "algorithms" / f"{name}.py").read_text()
    tree = ast.parse(source)
    names = [getattr(node, "name", "") for node in tree.body]
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert re.search(r"https?://", ast.get_docstring(tree)), "the paper's link"
    assert "Departs from" in ast.get_docstring(tree)
    assert names.index("Config") < names.index("State") < names.index("make")
    assert len(functions) > 1, "equations as module-level functions"
    assert source.rstrip().endswith("main(Config, make)")
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name != "make":
            assert ast.get_docstring(node) or len(node.body) == 1, f"{node.name}: its equation"


@every_algorithm
def test_equations_take_at_most_six_values(name):
    """And are called with each of them in its place: no starred tuples, no NamedTuple taken apart
    by position."""
    tree = ast.parse((ROOT / "algorithms" / f"{name}.py").read_text())
    equations = [x for x in tree.body if isinstance(x, ast.FunctionDef) and x.name != "make"]
    for function in equations:
        arguments = [x.arg for x in [*function.args.args, *function.args.kwonlyargs]]
        assert len(arguments) <= 6, function.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Starred):
            assert not isinstance(node.value, ast.Tuple), ast.unparse(node)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
            names = [getattr(x, "id", "") for x in node.targets[0].elts]
            assert not {"obs", "reward", "terminated"} <= set(names), ast.unparse(node)


def test_the_error_of_temporal_differences_is_one_equation():
    """To the letter, in every file that learns Q by it; what is new is what `next_value` is."""
    sources = {}
    for name in ALGORITHMS:
        source = (ROOT / "algorithms" / f"{name}.py").read_text()
        for node in ast.parse(source).body:
            if getattr(node, "name", "") == "td_error" and node.args.args[0].arg == "q_value":
                sources[name] = ast.get_source_segment(source, node)
    assert {"dqn", "double_dqn", "n_step_dqn", "ddpg", "td3", "sac", "qt_opt", "sarsa"} <= set(
        sources
    )
    assert len(set(sources.values())) == 1


@every_algorithm
def test_every_config_field_is_one_line_with_a_meaning(name):
    source = (ROOT / "algorithms" / f"{name}.py").read_text()
    config = load(name).Config
    assert config.__dataclass_params__.frozen
    for field in dataclasses.fields(config):
        assert re.search(rf"^    {field.name}: .+ = .+  # \S+", source, re.M), field.name


@every_algorithm
def test_file_has_a_test_file_and_a_place_in_the_index(name):
    assert (ROOT / "tests" / f"test_{name}.py").exists()
    assert f"[`{name}.py`]({name}.py)" in (ROOT / "algorithms" / "README.md").read_text()


@pytest.mark.smoke
@every_algorithm
def test_update_is_a_scan_body(name):
    before, after = traced(name).before, traced(name).after
    assert jax.tree.structure(before) == jax.tree.structure(after)
    described = lambda tree: [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(tree)]
    assert described(before) == described(after)
    assert not any(weak for _, _, weak in described(before))


@pytest.mark.smoke
@every_algorithm
def test_metrics_are_a_flat_dict_of_scalars_with_the_return_and_the_value(name):
    """And, if several episodes may end in one update, their number; that of the steps that the
    means are over, if it varies."""
    assert {"episode_return", "value"} <= set(traced(name).metrics)
    for metric, x in traced(name).metrics.items():
        assert x.shape == (), metric
        assert jnp.issubdtype(x.dtype, jnp.integer if metric in NUMBERS else jnp.floating)


@every_algorithm
def test_the_docstring_explains_each_metric_and_no_other(name):
    """Its last paragraph does; those of episodes stand in common/envs.py."""
    docstring = ast.get_docstring(ast.parse((ROOT / "algorithms" / f"{name}.py").read_text()))
    assert docstring.split("\n\n")[-1].startswith("Metrics: `")
    assert set(all_explained(docstring)) == set(traced(name).metrics)


@pytest.mark.smoke
@every_algorithm
def test_no_key_is_used_twice(name):
    module = load(name)
    algorithm = module.make(small_config(module))  # what was traced before is not looked at again
    with jax.debug_key_reuse(True):
        params = trace(algorithm.init, algorithm.update, jax.random.key(0)).before.params
        if algorithm.act is not None:
            env = make_env(small_config(module).env_id, 2)
            play = lambda params, key: evaluate(
                env, algorithm.act, params, key, algorithm.init_memory
            )
            jax.make_jaxpr(play)(params, jax.random.key(1))


@every_algorithm
def test_state_keeps_a_key_of_its_own(name):
    """split(key, n)[i] equals fold_in(key, i): a State that kept the key it split in `init` would
    give its first updates the keys that made its networks."""
    if "key" in traced(name).before._fields:
        key = jax.random.key(7)
        kept = jax.jit(lambda key: made(name).init(key).key)(key)
        assert not np.array_equal(jax.random.key_data(kept), jax.random.key_data(key))


@pytest.mark.smoke
@every_algorithm
def test_conditions_stay_conditions_under_vmap(name):
    """A cond on a batched value becomes a select that runs both branches for every seed."""
    jaxprs = traced(name).update, traced_for_seeds(name).update
    alone, together = (len(list(equations(x, "cond"))) for x in jaxprs)
    assert alone == together


NUMBERS = {"episodes", "counted"}  # what means are over
LAPACK = ["cholesky", "eig", "eigh", "geqrf", "householder_product", "lu", "qr", "schur", "svd"]


@every_algorithm
def test_no_lapack_call_has_a_seed_axis(name):
    """On a CPU such a call waits on XLA's threads for work that only they can do: some at once, and
    the program hangs."""
    calls = [
        equation
        for jaxpr in (traced_for_seeds(name).init, traced_for_seeds(name).update)
        for primitive in LAPACK
        for equation in equations(jaxpr, primitive)
    ]
    assert [x for x in calls if x.invars[0].aval.ndim > 2] == []


@pytest.mark.smoke
@every_algorithm
def test_every_float_of_the_config_can_be_vmapped(name):
    module = load(name)
    config = small_config(module)
    floats = {
        field.name: jnp.array([getattr(config, field.name) or 0.0] * 2)
        for field in dataclasses.fields(config)
        if field.type in (float, float | None)
    }
    assert floats

    def train(values, key):
        algorithm = module.make(dataclasses.replace(config, **values))
        return algorithm.update(algorithm.init(key), jnp.int32(0))

    jax.eval_shape(jax.vmap(train), floats, keys(0, 1))


@every_algorithm_smoke_for_some
def test_same_key_same_result_and_two_seeds_differ_everywhere(name):
    algorithm = small_algorithm(name)
    with float64():
        run_state = trained(algorithm, SEEDS, 5)
        again = trained(algorithm, SEEDS, 5)
    chex.assert_trees_all_equal(to_numpy(run_state), to_numpy(again))
    for path, leaf in jax.tree_util.tree_leaves_with_path(to_numpy(run_state.state.params)):
        if not jax.tree_util.keystr(path).endswith(".count"):  # of observations: all saw as many
            assert not np.array_equal(leaf[0], leaf[1])
        np.testing.assert_array_equal(leaf[0], leaf[2])


WITH_MEMORY = [
    name for name in ALGORITHMS if "init_memory" in (ROOT / "algorithms" / f"{name}.py").read_text()
]
every_policy_with_memory = pytest.mark.parametrize("name", WITH_MEMORY)


def observed(env_id, num_steps, num_envs=3):
    """Observations [T, N, ...] of a rollout, and where its episodes ended [T, N]."""
    env = make_env(env_id, num_envs)
    roll = lambda key: rollout(env, random_policy(env), env.reset(key), key, num_steps)[1]
    transitions = jax.jit(roll)(jax.random.key(3))
    return transitions.obs, transitions.terminated | transitions.truncated


def id_with_ends(name):
    """The environment of a file's small Config; of those with numbered states one with few, where
    episodes of random actions are short."""
    env_id = small_config(load(name)).env_id
    return "FrozenLake-tabular" if env_id.endswith("-tabular") else env_id


def many(memory, num):
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (num, *x.shape)), memory)


@every_policy_with_memory
def test_steps_with_resets_are_single_steps_of_episodes(name):
    """In float64, bit for bit: a scan that resets the memory, and a loop in which every episode
    starts with `init_memory()`."""
    with jax.enable_x64(True):
        algorithm = load(name).make(small_config(load(name)))
        params = jax.jit(algorithm.init)(jax.random.key(0)).params
        act = jax.vmap(algorithm.act, (None, 0, 0, None))
        obs, done = observed(id_with_ends(name), 60)
        assert done.any() and not done.all(0).any()  # they end at different times

        def step(memory, inputs):
            obs, done = inputs
            action, memory = act(params, memory, obs, jax.random.key(1))
            return reset_memory(memory, done, algorithm.init_memory()), action

        scan = jax.jit(lambda memory: jax.lax.scan(step, memory, (obs, done))[1])
        actions = scan(many(algorithm.init_memory(), 3))
        memories = [algorithm.init_memory() for _ in range(3)]
        act = jax.jit(act)
        for t in range(60):
            together = jax.tree.map(lambda *x: jnp.stack(x), *memories)
            action, together = act(params, together, obs[t], jax.random.key(1))
            np.testing.assert_array_equal(action, actions[t])
            for n in range(3):
                memories[n] = jax.tree.map(lambda x, n=n: x[n], together)
                if done[t, n]:
                    memories[n] = algorithm.init_memory()


@every_policy_with_memory
def test_after_a_reset_nothing_depends_on_what_was_before(name):
    """Other observations before the end of an episode change the memory until then, not after."""
    algorithm = made(name)
    params = jax.jit(algorithm.init)(jax.random.key(0)).params
    obs, done = observed(id_with_ends(name), 60, num_envs=1)
    end = int(np.flatnonzero(done[:, 0])[0])

    @jax.jit
    def memories(obs):
        def step(memory, inputs):
            obs, done = inputs
            _, after = algorithm.act(params, memory, obs, jax.random.key(1))
            return reset_memory(after, done, algorithm.init_memory()), after

        return jax.lax.scan(step, algorithm.init_memory(), (obs[:, 0], done[:, 0]))[1]

    is_float = jnp.issubdtype(obs.dtype, jnp.floating)
    changed = obs.at[: end + 1].add(1) if is_float else obs.at[: end + 1].set(obs[0])
    before, after = memories(obs), memories(changed)
    for x, y in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(x[end + 1 :], y[end + 1 :])
    leaves = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    assert any((x[: end + 1] != y[: end + 1]).any() for x, y in leaves)


@every_algorithm
def test_a_policy_acts_within_the_bounds(name):
    """However large its params: the reward of this environment counts what is beyond them."""
    module = load(name)
    try:
        algorithm = module.make(small_config(module, env_id="MountainCarContinuous-v0"))
    except ValueError:
        pytest.skip("it has no continuous actions")
    if algorithm.act is None:
        pytest.skip("it plans with the simulator")
    params = jax.jit(lambda key: algorithm.init(key).params)(jax.random.key(0))
    large = jax.tree.map(lambda x: 1e4 * x, params)
    act = jax.jit(jax.vmap(first_act(algorithm), (None, 0, None)))
    obs = jnp.array([[-0.5, 0.0], [-1.0, 0.05], [0.3, -0.05]])
    action = act(large, obs, jax.random.key(1))
    assert (jnp.abs(action) <= 1).all()


@every_algorithm
def test_a_seed_has_the_same_bits_in_every_batch(name):
    """At another place, beside other seeds."""
    algorithm = small_algorithm(name)
    num = min(algorithm.num_updates, 10)
    with float64():
        batch, other = (to_numpy(trained(algorithm, x, num)) for x in (SEEDS, [4, 5, 6]))
    for many, others in zip(jax.tree.leaves(batch), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(many[1], others[0])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(x, marks=pytest.mark.smoke if x in FAMILIES else pytest.mark.slow)
        for x in ALGORITHMS
    ],
)
def test_a_seed_alone_is_the_seed_inside_the_batch(name):
    """In float64, so that the batch size cannot change what matters: parameters to 1e-9, and the
    actions taken (all integers of the State) exactly."""
    algorithm = small_algorithm(name)
    with float64():
        if name in ("ilqr", "guided_policy_search"):  # a swing-up is chaotic: it blows up last bits
            module = load(name)
            algorithm = module.make(small_config(module, env_id="DoubleIntegrator-linear"))
        num = min(algorithm.num_updates, 10)
        batch, alone = (to_numpy(trained(algorithm, x, num)) for x in (SEEDS, SEEDS[1:2]))
    for many, one in zip(jax.tree.leaves(batch), jax.tree.leaves(alone), strict=True):
        if np.issubdtype(many.dtype, np.floating):
            assert many.dtype == np.float64
            np.testing.assert_allclose(many[1], one[0], rtol=0, atol=1e-9)
        else:
            np.testing.assert_array_equal(many[1], one[0])


@every_algorithm_smoke_for_some
def test_n_updates_a_checkpoint_and_n_more_are_2n_updates(name, tmp_path):
    algorithm = small_algorithm(name)
    num = min(algorithm.num_updates, 20)
    with float64():
        straight = trained(algorithm, SEEDS, num)
        half = trained(algorithm, SEEDS, num // 2)
        checkpoint.save(tmp_path / "c.npz", half, {"update": num // 2})
        arrays, header = checkpoint.load(tmp_path / "c.npz")
        restored = checkpoint.restore(jax.eval_shape(lambda x: x, half), arrays)
        resumed = trained(algorithm, SEEDS, num, header["update"], restored)
    chex.assert_trees_all_equal(to_numpy(straight), to_numpy(resumed))


@pytest.mark.smoke
@pytest.mark.parametrize("name", ["n_step_dqn", "rainbow"])
def test_an_array_without_elements_trains_on_two_devices(name, tmp_path):
    """With --n-step 1 nothing waits for later rewards; JAX 0.11 ended in a segmentation fault."""
    small = "--n-step 1 --total-timesteps 400 --learning-starts 200 --hidden-sizes 8 --quiet"
    flags = ["--num-seeds", 2, "--eval-episodes", 1, "--out", tmp_path / "run", *small.split()]
    run_here(f"algorithms.{name}", *flags)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["diverged_seeds"] == []


HELP = """
import contextlib, io, json, os, runpy, sys

for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        runpy.run_module(f"algorithms.{name}", run_name="__main__")
    seconds = sum(os.times()[:2])
    print(json.dumps([seconds, printed.getvalue(), list(sys.modules)]))
"""


@pytest.mark.smoke
def test_help_comes_within_seconds_and_without_environments():
    """In one process, which has for the first file to import JAX, too."""
    done = subprocess.run(
        [sys.executable, "-c", HELP, *ALGORITHMS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    before = 0.0
    for name, line in zip(ALGORITHMS, done.stdout.splitlines(), strict=True):
        seconds, printed, modules = json.loads(line)
        assert seconds - before < 10, name  # the first takes about one
        before = seconds
        for words in (f"python -m algorithms.{name} ", "--num-seeds", "--seeds-at-once"):
            assert words in printed, name
        for slow in ("gymnax", "brax", "scipy.stats", "matplotlib", "rich.progress"):
            assert slow not in modules, name


@every_algorithm
@pytest.mark.parametrize("bad", ["nan", "inf", "-1", "-1e-9", "x", ""])
def test_no_field_takes_nonsense(name, bad):
    """Each number of the Config refuses what cannot be: a ValueError with one line."""
    module = load(name)
    for field in dataclasses.fields(module.Config):
        kind = float if field.type == float | None else field.type
        if kind not in (int, float) or field.name == "v_min" and bad.startswith("-"):
            continue  # a least return may well be negative
        try:
            value = kind(bad)
        except ValueError:
            continue  # tyro refuses it
        others = {"v_min": 0.0} if field.name == "v_max" else {}
        with pytest.raises(ValueError, match=field.name.replace("_", "-")):
            dataclasses.replace(small_config(module), **{field.name: value}, **others)


def to_numpy(tree):
    is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x), tree)


@every_algorithm
def test_no_metric_has_the_name_of_a_field(name):
    """In metrics.csv of a sweep over that field there would be two columns of one name."""
    fields = {field.name for field in dataclasses.fields(load(name).Config)}
    assert not set(traced(name).metrics) & fields
