"""Random bits that compile and run faster on a CPU.

The only file that uses internals of JAX, which may change in any release: if they do, JAX's own
rule stays in place and one line warns about it.
"""

import sys
from typing import Any

import jax
import numpy as np

ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
PARITY = 0x1BD11BDA


def threefry2x32(shape: tuple[int, ...], key0: Any, key1: Any, x0: Any, x1: Any) -> tuple:
    """Return two words [*shape] of Threefry-2x32 with 20 rounds, as operations of XLA.

    The key and the counter are two uint32 words each, MLIR values that are broadcast to `shape`
    (Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3,
    https://doi.org/10.1145/2063384.2063405). JAX would take a hundred times as long to trace and
    lower these operations, for every draw.
    """
    from jax.extend.mlir import ir
    from jax.extend.mlir.dialects import stablehlo as hlo

    uint32 = ir.IntegerType.get_unsigned(32)

    def full(number, shape=shape):
        words, number = ir.RankedTensorType.get(shape, uint32), ir.IntegerAttr.get(uint32, number)
        return hlo.constant(ir.DenseElementsAttr.get_splat(words, number))

    def expand(x):
        axes = ir.DenseI64ArrayAttr.get([*range(len(shape) - x.type.rank, len(shape))])
        return hlo.broadcast_in_dim(ir.RankedTensorType.get(shape, uint32), x, axes)

    key2 = hlo.xor(hlo.xor(key0, key1), full(PARITY, key0.type.shape))
    keys = [expand(key) for key in (key0, key1, key2)]
    x0, x1 = hlo.add(expand(x0), keys[0]), hlo.add(expand(x1), keys[1])
    for i in range(5):
        for r in ROTATIONS[i % 2]:
            x0 = hlo.add(x0, x1)
            left, right = hlo.shift_left(x1, full(r)), hlo.shift_right_logical(x1, full(32 - r))
            x1 = hlo.xor(x0, hlo.or_(left, right))
        x0, x1 = hlo.add(x0, keys[(i + 1) % 3]), hlo.add(x1, keys[(i + 2) % 3])
        x1 = hlo.add(x1, full(i + 1))
    return x0, x1


def lower(context: Any, *operands: Any) -> list:
    """Lower a draw to a call of a function `threefry2x32` that XLA does not inline.

    XLA of jaxlib 0.11 does not finish compiling several inlined draws where each is the key of the
    next.
    """
    from jax.extend.mlir import ir
    from jax.extend.mlir.dialects import func

    shape = context.avals_out[0].shape
    words = ir.RankedTensorType.get(shape, ir.IntegerType.get_unsigned(32))
    function = func.FuncOp(
        "threefry2x32",
        ([x.type for x in operands], [words, words]),
        visibility="private",
        ip=ir.InsertionPoint.at_block_begin(context.module_context.module.body),
    )
    name = context.module_context.symbol_table.insert(function)
    with ir.InsertionPoint(function.add_entry_block()):
        func.ReturnOp(threefry2x32(shape, *function.arguments))
    call = func.CallOp([words, words], ir.FlatSymbolRefAttr.get(name.value), list(operands))
    not_inlined = ir.DictAttr.get({"inlineable": ir.StringAttr.get("false")})
    call.attributes["mhlo.frontend_attributes"] = not_inlined
    return list(call.results)


def try_lowering() -> None:
    """Lower one draw by `lower`, in a program of its own; raise what JAX or MLIR raises."""
    from jax.extend.core import Primitive
    from jax.interpreters import mlir

    trial = Primitive("threefry2x32_trial")
    trial.multiple_results = True
    trial.def_abstract_eval(lambda *words: (words[0], words[0]))
    mlir.register_lowering(trial, lower, platform="cpu")
    words = [jax.ShapeDtypeStruct((2,), np.uint32)] * 4
    jax.jit(trial.bind).trace(*words).lower(lowering_platforms=("cpu",))


def unroll_threefry() -> None:
    """Make JAX compile its random number generator for CPUs as straight-line code, as it does for
    other devices.

    JAX's own rule for CPUs is a loop, in which XLA fuses nothing: every draw is then hundreds of
    small operations, more than the forward pass of a small network. The bits are the same. Call
    this after settings that JAX reads when it looks for devices, such as the number of CPU devices.
    """
    try:
        from jax.extend.random import threefry2x32_p
        from jax.interpreters import mlir

        try_lowering()
        mlir.register_lowering(threefry2x32_p, lower, platform="cpu")
    except Exception as error:  # internals that change can raise anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        print(
            f"warning: random numbers will be slower on CPUs: JAX {jax.__version__} has other "
            f"internals ({reason[:80]})",
            file=sys.stderr,
        )
