"""Random bits that compile and run faster on a CPU."""

import jax.numpy as jnp
from jax.extend.random import threefry2x32_p
from jax.interpreters import mlir

ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
PARITY = 0x1BD11BDA


def threefry2x32(key0, key1, x0, x1):
    """Threefry-2x32 with 20 rounds, on uint32 (Salmon et al. 2011, Parallel random numbers: as easy
    as 1, 2, 3, https://doi.org/10.1145/2063384.2063405)."""
    keys = key0, key1, key0 ^ key1 ^ jnp.uint32(PARITY)
    x0, x1 = x0 + keys[0], x1 + keys[1]
    for i in range(5):
        for r in ROTATIONS[i % 2]:
            x0 = x0 + x1
            x1 = x0 ^ (x1 << r | x1 >> 32 - r)
        x0, x1 = x0 + keys[(i + 1) % 3], x1 + keys[(i + 2) % 3] + jnp.uint32(i + 1)
    return x0, x1


def unroll_threefry() -> None:
    """Has JAX compile its generator for CPUs as straight-line code, as it does for other devices.

    Its own choice for CPUs is a loop, in which XLA fuses nothing: every draw is then hundreds of
    small operations, more than the forward pass of a small network. The bits are the same.
    """
    rule = mlir.lower_fun(threefry2x32, multiple_results=True)
    mlir.register_lowering(threefry2x32_p, rule, platform="cpu")
