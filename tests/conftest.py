"""Settings that must stand before JAX starts; subprocesses inherit them."""

import os
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
if version("jaxlib").startswith("0.10."):  # an option that XLA does not know ends the process
    # Tests compile much and compute little: XLA is to hurry. Rows of the learning suite do without.
    os.environ.setdefault(
        "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    )
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

from common.runner.threefry import unroll_threefry  # noqa: E402

unroll_threefry()  # as the harness does
