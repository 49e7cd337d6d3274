"""checkpoint.py: exact, whole, and never silently wrong."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.runner import checkpoint
from common.runner.checkpoint import CheckpointError

TREE = {
    "float": jnp.array([1.5, jnp.nan, -0.0, jnp.inf, 1e-45]),
    "half": jnp.array([1.0, 2.5], jnp.bfloat16),
    "bool": jnp.array([True, False]),
    "int": jnp.array(2**31 - 1, jnp.int32),
    "empty": jnp.zeros((0, 3)),
    "key": jax.random.key(5),
    "keys": jax.random.split(jax.random.key(6), (2, 3)),
    "nested": [(jnp.arange(3), None)],
}


def bits(tree):
    return {
        name: (x.dtype, x.shape, x.tobytes()) for name, x in checkpoint.named_arrays(tree).items()
    }


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "checkpoint.npz"
    checkpoint.save(path, TREE, {"update": 7})
    return path


def test_every_bit_comes_back(saved):
    arrays, header = checkpoint.load(saved)
    restored = checkpoint.restore(jax.eval_shape(lambda: TREE), arrays)
    assert bits(restored) == bits(TREE)
    assert jax.tree.structure(restored) == jax.tree.structure(TREE)
    assert restored["half"].dtype == jnp.bfloat16
    assert header["update"] == 7
    draw = lambda key: np.asarray(jax.random.normal(key, 4))
    np.testing.assert_array_equal(draw(restored["key"]), draw(TREE["key"]))


def test_the_same_tree_makes_the_same_bytes(saved, tmp_path):
    checkpoint.save(tmp_path / "again.npz", TREE, {"update": 7})
    assert (tmp_path / "again.npz").read_bytes() == saved.read_bytes()


def test_no_flipped_bit_passes_unnoticed(saved):
    whole, rng = saved.read_bytes(), np.random.default_rng(0)
    original = {name: x.tobytes() for name, x in checkpoint.load(saved)[0].items()}
    caught = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        saved.write_bytes(damaged)
        try:
            arrays, header = checkpoint.load(saved)
        except CheckpointError as error:
            assert str(saved) in str(error)
            caught += 1
        else:  # a bit that means nothing, such as a time stamp of the archive
            assert {name: x.tobytes() for name, x in arrays.items()} == original
            assert header["update"] == 7
    assert caught > 150


def test_no_truncated_file_is_read(saved):
    whole = saved.read_bytes()
    for size in [0, 1, 100, *range(200, len(whole), len(whole) // 30), len(whole) - 1]:
        saved.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint.load(saved)


def test_the_old_file_becomes_the_previous_one(saved, tmp_path):
    previous = tmp_path / "previous.npz"
    old = saved.read_bytes()
    checkpoint.save(saved, TREE, {"update": 8}, previous)
    assert previous.read_bytes() == old
    assert checkpoint.load(saved)[1]["update"] == 8
    checkpoint.save(saved, TREE, {"update": 9}, previous)
    assert [checkpoint.load(path)[1]["update"] for path in (previous, saved)] == [8, 9]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.npz", "previous.npz"]


def test_a_changed_array_in_a_valid_archive_is_caught_by_the_digest(saved):
    with np.load(saved) as file:
        entries = dict(file)
    entries["int"] = np.int32(3)
    np.savez(saved, **entries)
    with pytest.raises(CheckpointError, match="SHA-256"):
        checkpoint.load(saved)


def test_a_file_of_another_format_is_refused(saved):
    with np.load(saved) as file:
        entries = dict(file)
    header = json.loads(entries["header"].tobytes()) | {"format": 99}
    entries["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez(saved, **entries)
    with pytest.raises(CheckpointError, match="format 99"):
        checkpoint.load(saved)


@pytest.mark.parametrize(
    "change",
    [
        {"int": jnp.array(1, jnp.int16)},
        {"float": jnp.zeros(4)},
        {"more": jnp.zeros(1)},
        {"key": jax.random.split(jax.random.key(0))},
    ],
)
def test_nothing_is_cast_or_left_out(saved, change):
    with pytest.raises(CheckpointError, match=next(iter(change))):
        checkpoint.restore(TREE | change, checkpoint.load(saved)[0])


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        checkpoint.load(tmp_path / "none.npz")


def test_a_failed_write_leaves_the_old_file_and_no_other(saved):
    old = saved.read_bytes()

    def fail(file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError):
        checkpoint.write_atomically(saved, fail)
    assert saved.read_bytes() == old
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
