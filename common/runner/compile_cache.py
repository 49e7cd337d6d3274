"""JAX's persistent cache of compiled programs: its folder, and one entry for all devices."""

import inspect
import os
from pathlib import Path

import jax


def use_compile_cache() -> None:
    """Let JAX keep compiled programs on disk, unless it already does, and load what was compiled
    for one device onto another of the same kind.

    JAX does the latter on GPUs. On a CPU its key for an entry names the device; this takes it out,
    where the function that makes the key still has a switch for that. Without it each device
    compiles for itself.
    """
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "manyseeds"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    try:
        from jax._src import cache_key

        add_options = cache_key._hash_serialized_compile_options
        if "strip_device_assignment" not in inspect.signature(add_options).parameters:
            return
    except (ImportError, AttributeError):
        return

    def add_options_without_device(digest, options, strip_device_assignment=False):
        return add_options(digest, options, strip_device_assignment=True)

    cache_key._hash_serialized_compile_options = add_options_without_device
