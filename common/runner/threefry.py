"""Random bits that compile and run faster on a CPU."""

from jax.extend.mlir import ir
from jax.extend.mlir.dialects import func
from jax.extend.mlir.dialects import stablehlo as hlo
from jax.extend.random import threefry2x32_p
from jax.interpreters import mlir

ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
PARITY = 0x1BD11BDA


def threefry2x32(shape, key0, key1, x0, x1):
    """Threefry-2x32 with 20 rounds, on uint32 (Salmon et al. 2011, Parallel random numbers: as easy
    as 1, 2, 3, https://doi.org/10.1145/2063384.2063405), as operations of XLA; two words [*shape]
    of four that are broadcast to it.

    (JAX would take a hundred times as long to trace and lower them, for every draw.)
    """
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


def lower(context, *operands):
    """Calls `threefry2x32` as a function that stays one. XLA of jaxlib 0.11 does not come to an end
    with several draws that it has fused, each the key of the next."""
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
    call = func.CallOp([words, words], ir.FlatSymbolRefAttr.get(name.value), operands)
    stay = ir.DictAttr.get({"inlineable": ir.StringAttr.get("false")})
    call.attributes["mhlo.frontend_attributes"] = stay
    return call.results


def unroll_threefry() -> None:
    """Has JAX compile its generator for CPUs as straight-line code, as it does for other devices.

    Its own choice for CPUs is a loop, in which XLA fuses nothing: every draw is then hundreds of
    small operations, more than the forward pass of a small network. The bits are the same.
    """
    mlir.register_lowering(threefry2x32_p, lower, platform="cpu")
