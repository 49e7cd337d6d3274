"""Pytrees on disk: one `.npz`, written so that it is there whole or not at all."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

FORMAT = 1  # of the files; raised when their meaning changes


class CheckpointError(Exception):
    """The file cannot be used; the message says why and what to do."""


def save(path: Path, tree: Any, header: dict, previous: Path | None = None) -> None:
    """Writes the leaves of `tree` under their path names, `header` (JSON) and a SHA-256 of both.

    The file is written beside `path`, synced and renamed: a crash at any moment leaves the old
    file or the new one. The old one becomes `previous`, if that is given; between the two renames
    it is there alone. OSError if the disk refuses.
    """
    arrays = named_arrays(tree)
    text = json.dumps({"format": FORMAT, **header})
    entries = {
        **arrays,
        "header": np.frombuffer(text.encode(), np.uint8),
        "sha256": np.frombuffer(_digest(arrays, text), np.uint8),
    }
    write_atomically(path, lambda file: np.savez(file, **entries), previous)


def load(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """The arrays by name, and the header. CheckpointError if a bit of the file is wrong."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        text = arrays.pop("header").tobytes().decode()
        digest = arrays.pop("sha256").tobytes()
        header = json.loads(text)
        version = header["format"]
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a flipped bit in an archive can raise nearly anything
        raise CheckpointError(f"{path} is damaged and cannot be read") from error
    if version != FORMAT:
        raise CheckpointError(
            f"{path} has format {version}, this version reads {FORMAT}: "
            "use the version that wrote it"
        )
    if digest != _digest(arrays, text):
        raise CheckpointError(f"{path} is damaged (its SHA-256 is wrong)")
    return arrays, header


def restore(like: Any, arrays: dict[str, np.ndarray], prefix: str = "") -> Any:
    """The tree `like` (arrays or their shapes) with the values saved under its path names.

    CheckpointError if a name, shape or dtype differs: nothing is cast.
    """
    leaves = []
    for name, leaf in _named(like):
        value = arrays.get(prefix + name)
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        expected = jax.eval_shape(jax.random.key_data, leaf) if is_key else leaf
        found = None if value is None else (value.shape, str(value.dtype))
        wanted = (expected.shape, str(_stored_dtype(expected.dtype)))
        if found != wanted:
            raise CheckpointError(
                f"the checkpoint's {prefix + name} is {found}, this program expects {wanted}: "
                "resume with the versions and the machine settings that wrote it"
            )
        leaves.append(jax.random.wrap_key_data(value) if is_key else value.view(expected.dtype))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def named_arrays(tree: Any) -> dict[str, np.ndarray]:
    """The leaves as NumPy arrays by path name; keys as their data."""
    return {name: _to_numpy(leaf) for name, leaf in _named(tree)}


def write_atomically(path: Path, write, previous: Path | None = None) -> None:
    """Calls `write(file)` on a new file that then takes the place of `path`, which becomes
    `previous`."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def _named(tree):
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def _stored_dtype(dtype) -> np.dtype:
    """NumPy's file format knows no bfloat16 and the like; their bits are stored as integers."""
    dtype = np.dtype(dtype)
    return np.dtype(f"u{dtype.itemsize}") if dtype.kind == "V" else dtype


def _to_numpy(leaf) -> np.ndarray:
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.ascontiguousarray(leaf)
    return array.reshape(np.shape(leaf)).view(_stored_dtype(array.dtype))


def _digest(arrays: dict[str, np.ndarray], text: str) -> bytes:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.shape} {array.dtype}".encode())
        digest.update(memoryview(np.ascontiguousarray(array)).cast("B") if array.size else b"")
    return digest.digest()
