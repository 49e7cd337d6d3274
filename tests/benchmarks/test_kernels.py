"""What benchmarks/kernels.py reads off an optimized program."""

import pytest

from benchmarks.kernels import bytes_of, contents, every_row

PROGRAM = """
HloModule jit_loop, is_scheduled=true

%fused (param_0: f32[256,4]) -> f32[256,4] {
  %param_0 = f32[256,4]{1,0} parameter(0)
  ROOT %tanh = f32[256,4]{1,0} tanh(%param_0)
}

%rollout (arg: (s32[], f32[256,4])) -> (s32[], f32[256,4]) {
  %arg = (s32[], f32[256,4]{1,0}) parameter(0)
  %x = f32[256,4]{1,0} get-tuple-element(%arg), index=1
  %fusion.1 = f32[256,4]{1,0} fusion(%x), kind=kLoop, calls=%fused
  %gemm = (f32[256,4]{1,0}, s8[64]{0}) custom-call(%fusion.1), custom_call_target="__cublas$gemm"
  ROOT %tuple.1 = (s32[], f32[256,4]{1,0}) tuple(%i, %gemm)
}

%body (state: (s32[], f32[256,4], u32[256,1000,10])) -> (s32[], f32[256,4], u32[256,1000,10]) {
  %state = (s32[], f32[256,4]{1,0}, /*index=2*/u32[256,1000,10]{2,1,0}) parameter(0)
  %inner = (s32[]) while(%t), body=%rollout, backend_config={"known_trip_count":{"n":"16"}}
  %small = f32[256,4]{1,0} copy(%y)
  %ring = u32[256,1000,10]{2,1,0} COPY(%buffer)
  %sorted = u32[256,512]{1,0} sort(%bits), dimensions={1}
  ROOT %out = (s32[], f32[256,4]{1,0}, u32[256,1000,10]{2,1,0}) tuple(%j, %small, %ring)
}

ENTRY %main (p: f32[256,4]) -> f32[256,4] {
  %p = f32[256,4]{1,0} parameter(0)
  %before = f32[256,4]{1,0} fusion(%p), kind=kLoop, calls=%fused
  ROOT %loop = (s32[], f32[256,4]{1,0}) while(%before), condition=%c2, body=%body
}
"""


@pytest.mark.parametrize(
    ("opcode", "kernels", "copies", "conditionals"),
    [("copy", 35, 1, 0), ("transpose", 35, 1, 0), ("bitcast", 34, 0, 0), ("conditional", 35, 0, 1)],
)
def test_one_update_is_counted_with_the_trips_of_its_loops(opcode, kernels, copies, conditionals):
    """16 steps of a fusion and a library call, then the copy, the ring and the sort."""
    found = contents(PROGRAM.replace("COPY", opcode), largest=256 * 1000 * 10 * 4)
    assert found["kernels"] == str(kernels)
    assert (found["replay_copies"], found["conditionals"]) == (copies, conditionals)
    assert (found["sorts"], found["convolutions"]) == (1, 0)


def test_a_loop_without_a_fixed_count_is_marked():
    text = PROGRAM.replace("known_trip_count", "unknown").replace("COPY", "copy")
    assert contents(text, 0)["kernels"] == "5+"


def test_a_convolution_is_found():
    text = PROGRAM.replace("__cublas$gemm", "__cudnn$convForward")
    assert contents(text, 0)["convolutions"] == 1


def test_bytes_of_a_shape():
    assert bytes_of("f32[256,4]{1,0}") == 4096 and bytes_of("pred[7]{0}") == 7
    assert bytes_of("s32[]") == 4 and bytes_of("(u64[3]{0}, f32[9]{0})") == 24


def test_every_algorithm_has_a_row():
    from helpers import ALGORITHMS

    assert set(ALGORITHMS) <= set(every_row())
