"""Which instruction sets a processor has, out of what Linux says of it."""

import pytest

from twig.engine.backends.processor import read_processor

EPYC = "processor : 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu sse2 avx avx2 fma\n"
XEON = (
    "model name : Xeon\nflags : avx2 avx512f avx512_vnni avx_vnni amx_tile amx_bf16 avx512_bf16\nmodel name : other\n"
)


@pytest.mark.parametrize(
    ("info", "told"),
    [
        (EPYC, "AMD EPYC (AVX2)"),
        (XEON, "Xeon (AVX2, AVX512, VNNI, AMX, BF16)"),
        ("Features : fp asimd bf16\n", "a processor (NEON, BF16)"),
        ("", "a processor (no vector instructions that are known of)"),
    ],
)
def test_instruction_sets_are_read(info, told):
    assert str(read_processor(info)) == told
