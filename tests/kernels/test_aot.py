"""Every kernel built for GPUs that are not here: it compiles, spills nothing and fits the shared memory."""

import pytest

pytest.importorskip("triton", reason="triton is not installed")

import architectures
from twig.kernels import aot

TENSOR_CORE = {80: "HMMA", 86: "HMMA", 89: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"}


@pytest.mark.parametrize("architecture", architectures.EVERY)
def test_kernels_build_for(architecture):
    rows = [aot.compile_case(case, architecture) for case in aot.kernel_cases(False) if case.since <= architecture]
    assert {row.kernel for row in rows} >= {
        "masked_attention",
        "denoise_step",
        "gather_rows",
        "group_moments",
        "group_norm",
    }
    assert {row.kernel for row in rows} >= {"geglu", "add_layer_norm", "add_bias", "low_rank_rows"}
    for row in rows:
        assert row.spill_bytes == 0, row
        assert row.lost_carries == 0, row
        assert row.shared_bytes <= aot.SHARED_MEMORY_LIMIT[architecture] * 1024, row
        if row.kernel == "masked_attention":
            # Masses of the widest heads are summed in tiles of 32 pixels, which no warp group multiplies.
            small = row.shape.startswith("d=160 T=231")
            assert ("HMMA" if small else TENSOR_CORE[architecture]) in row.tensor_instructions, row


def test_the_step_is_built_without_contraction():
    """Bit for bit the reference: the PTX may hold no fused multiply-add of fp32."""
    case = next(case for case in aot.elementwise_cases() if case.name == "denoise_step")
    ptx = aot.build(case, 90).asm["ptx"]
    assert "sqrt.rn.f32" in ptx
    assert "fma.rn.f32" not in ptx
    assert "mul.f32" not in ptx


def test_a_high_word_that_is_the_low_word_again_is_found():
    low = "        /*5750*/                   UIADD3 UR8, UP0, UR16, 0x20, URZ ;"
    high = "        /*5760*/                   UIADD3.X UR9, UR16, -0x3ffffff0, URZ, UP0, !UPT ;"
    cleared = "        /*5758*/                   UMOV UR16, URZ ;"
    assert aot.lost_carries("\n".join([low, high])) == 1
    assert aot.lost_carries("\n".join([low, cleared, high])) == 0
    assert aot.lost_carries("\n".join([low, high.replace("UR16", "UR17")])) == 0
