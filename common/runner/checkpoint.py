"""Pytrees on disk: one `.npz` file, which exists whole or not at all."""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

FORMAT = 3  # of the files; increased when their meaning changes


class CheckpointError(Exception):
    """Raised when a file cannot be used; the message says why and what to do."""


def save(path: Path, tree: Any, header: dict, previous: Path | None = None) -> None:
    """Write the leaves of `tree` under their path names, `header` (JSON) and a SHA-256 of both.

    The file is written under a temporary name, synced and renamed: a crash at any moment leaves
    the old file or the new one. The old one becomes `previous` if that is given; between the two
    renames it is the only one. OSError if the disk refuses.
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
    """Return the arrays by name, and the header. CheckpointError if a bit of the file is wrong."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        text = arrays.pop("header").tobytes().decode()
        digest = arrays.pop("sha256").tobytes()
        header = json.loads(text)
        version = header["format"]
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a flipped bit in an archive can raise almost anything
        raise CheckpointError(f"{path} is damaged and cannot be read") from error
    require_format(path, version)
    if digest != _digest(arrays, text):
        raise CheckpointError(f"{path} is damaged (its SHA-256 is wrong)")
    return arrays, header


def load_header(path: Path, prefix: str) -> tuple[dict, dict[str, np.ndarray]]:
    """Return the header and the arrays whose names begin with `prefix`, without reading the others
    or checking the SHA-256 of all. CheckpointError if the file cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(file["header"].tobytes())
            arrays = {name: file[name] for name in file.files if name.startswith(prefix)}
            version = header["format"]
    except Exception as error:
        raise CheckpointError(f"{path} is damaged and cannot be read") from error
    require_format(path, version)
    return header, arrays


def load_rows(path: Path, prefix: str, row: int) -> dict[str, np.ndarray]:
    """Return `array[row]` of every array whose name begins with `prefix`, reading nothing else.
    CheckpointError if the file cannot be read."""
    rows = {}
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            for info in archive.infolist():
                if not info.filename.startswith(prefix):
                    continue
                file.seek(info.header_offset + 26)  # the lengths of a name and of extra fields
                lengths = np.frombuffer(file.read(4), "<u2")
                file.seek(info.header_offset + 30 + int(lengths.sum()))
                read = {(1, 0): np.lib.format.read_array_header_1_0}
                read[2, 0] = np.lib.format.read_array_header_2_0
                shape, _, dtype = read[np.lib.format.read_magic(file)](file)
                size = int(np.prod(shape[1:])) * dtype.itemsize
                file.seek(row * size, os.SEEK_CUR)
                x = np.frombuffer(file.read(size), dtype).reshape(shape[1:])
                rows[info.filename.removesuffix(".npy")] = x
    except Exception as error:
        raise CheckpointError(f"{path} is damaged and cannot be read") from error
    return rows


def restore(like: Any, arrays: dict[str, np.ndarray], prefix: str = "") -> Any:
    """Return the tree `like` (of arrays or shapes) with the values saved under its path names.

    CheckpointError if a name, shape or dtype differs: nothing is cast.
    """
    leaves = []
    for name, leaf in _named(like):
        value = arrays.get(prefix + name)
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        expected = jax.eval_shape(jax.random.key_data, leaf) if is_key else leaf
        stored = None if value is None else (value.shape, str(value.dtype))
        wanted = (expected.shape, str(_stored_dtype(expected.dtype)))
        if value is None or stored != wanted:
            raise CheckpointError(
                f"the checkpoint's {prefix + name} is {stored}, this program expects {wanted}: "
                "resume with the versions and the machine settings that wrote it"
            )
        value = value.view(expected.dtype)
        leaves.append(jax.random.wrap_key_data(jnp.asarray(value)) if is_key else value)
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def named_arrays(tree: Any) -> dict[str, np.ndarray]:
    """Return the leaves as NumPy arrays by path name; of keys, their data."""
    return {name: _to_numpy(leaf) for name, leaf in _named(tree)}


def write_atomically(path: Path, write: Callable, previous: Path | None = None) -> None:
    """Call `write(file)` on a new file that then replaces `path`, which becomes `previous` if that
    is given. OSError if the disk refuses; the old file is then unchanged."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # two may write at a time
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


def require_format(path: Path, version: int) -> None:
    """Raise CheckpointError unless a file is of this FORMAT."""
    if version != FORMAT:
        raise CheckpointError(
            f"{path} has format {version}, this version reads {FORMAT}: "
            "use the version that wrote it"
        )


def _named(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yield the path name and the value of each leaf."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def _stored_dtype(dtype: Any) -> np.dtype:
    """Return the dtype in the file: integers of the same size for those that NumPy's format does
    not have, such as bfloat16."""
    dtype = np.dtype(dtype)
    return np.dtype(f"u{dtype.itemsize}") if dtype.kind == "V" else dtype


def _to_numpy(leaf: Any) -> np.ndarray:
    """Return an array, or a key's data, as it is stored."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.ascontiguousarray(leaf)
    return array.reshape(np.shape(leaf)).view(_stored_dtype(array.dtype))


def _digest(arrays: dict[str, np.ndarray], text: str) -> bytes:
    """Return the SHA-256 of the header's text and of all names, shapes, dtypes and bytes."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
    return digest.digest()
