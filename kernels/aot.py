"""Compile every kernel for GPUs that are not here, and read what the binaries cost.

`kernel_cases()` lists the production shapes, `compile_case` builds one for a compute capability and returns its
registers, spilled bytes, shared memory, size and tensor-core instructions, taken from the cubin itself.
"""

from __future__ import annotations

import math
import re
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ._triton import triton
from .aot_case import TRITON_NAMES, KernelCase, complete
from .aot_layers import layer_cases
from .denoise_step import BLOCK, WARPS, StepColumns, denoise_step_kernel
from .gather_rows import gather_rows_kernel
from .masked_attention_contiguous import contiguous_attention_kernel, contiguous_attention_long_kernel
from .masked_attention_long import masked_attention_long_kernel
from .masked_attention_tile import masked_attention_kernel
from .ptx import renamed, with_declared_parameters
from .tiles import attention_constants, attention_options, attention_tile

ARCHITECTURES = (80, 86, 89, 90, 100, 120)
SHARED_MEMORY_LIMIT = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""Shared memory that one block may ask for, in KiB (CUDA programming guide, compute capabilities)."""

_LOW_SUM = re.compile(r"UIADD3 UR\d+, (?P<carry>UP\d), (?P<word>UR\d+), [^,]+, URZ ;")
_HIGH_SUM = re.compile(r"UIADD3\.X UR\d+, (?P<word>UR\d+), [^,]+, URZ, (?P<carry>UP\d), !UPT ;")
_UNIFORM_WRITE = re.compile(r"\*/\s+(?:@!?U?P\d+ )?[\w.]+ (UR\d+),")
_TENSOR_INSTRUCTION = re.compile(r"\b(HGMMA|QGMMA|IGMMA|UTC[A-Z]*MMA|HMMA|QMMA|DMMA)\b")


class Launchable(NamedTuple):
    """A kernel for a host that knows nothing of Triton: PTX, and how many threads and bytes a block takes.

    The host passes one argument for each of the case's arguments that is not a constant, in their order.
    """

    name: str
    ptx: str
    threads: int
    shared_bytes: int


class Footprint(NamedTuple):
    """What one binary costs."""

    kernel: str
    shape: str
    architecture: int
    warps: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    cubin_bytes: int
    tensor_instructions: str
    lost_carries: int


def attention_case(head_dim: int, length: int, dtype: torch.dtype, with_mass: bool) -> KernelCase:
    """Masked attention as the launcher would build it."""
    tile = attention_tile(head_dim, length, dtype, with_mass)
    element = f"*{TRITON_NAMES[dtype]}"
    pointers = dict.fromkeys(("q", "k", "v", "out"), element)
    pointers |= dict.fromkeys(("mask", "tokens", "scalars", "mass"), "*fp32")
    constants = attention_constants(head_dim, length, tile) | {
        "PRECISION": "ieee" if dtype == torch.float32 else "tf32", "UPCAST": False,
        "WITH_MASS": with_mass, "mask_column": 1, "tokens_token": 1, "scalars_column": 1,
    }  # fmt: skip
    shape = f"d={head_dim} T={length} {TRITON_NAMES[dtype]}{' mass' if with_mass else ''}"
    function = masked_attention_long_kernel if tile.looped else masked_attention_kernel
    arguments = complete(function, pointers | {"scale": "fp32"}, constants)
    options = attention_options(head_dim, tile)
    return KernelCase("masked_attention", shape, function, arguments, constants, options)


def contiguous_attention_case(heads: int, head_dim: int, length: int, dtype: torch.dtype) -> KernelCase:
    """Masked attention on contiguous tensors, for hosts that pass pointers and integers alone."""
    tile = attention_tile(head_dim, length, dtype)
    pointers = dict.fromkeys(("q", "k", "v", "out"), f"*{TRITON_NAMES[dtype]}")
    pointers |= dict.fromkeys(("mask", "tokens", "scalars"), "*fp32")
    constants = attention_constants(head_dim, length, tile) | {
        "PRECISION": "ieee" if dtype == torch.float32 else "tf32", "UPCAST": False,
        "HEADS": heads, "SCALE": math.log2(math.e) / math.sqrt(head_dim),
    }  # fmt: skip
    shape = f"heads={heads} d={head_dim} T={length} {TRITON_NAMES[dtype]}"
    function = contiguous_attention_long_kernel if tile.looped else contiguous_attention_kernel
    options = attention_options(head_dim, tile)
    if dtype == torch.float32 and tile.looped:
        options["maxnreg"] = 255  # else ptxas would rather spill a word than have one block fewer resident
    # A host may hand out a slice of a larger tensor; these three are read value by value, so alignment gains nothing.
    unaligned = ("mask", "tokens", "scalars")
    arguments = complete(function, pointers, constants)
    return KernelCase("contiguous_attention", shape, function, arguments, constants, options, unaligned)


def kernel_cases(thorough: bool = True) -> Iterator[KernelCase]:
    """Production shapes; not `thorough`: the shapes that press hardest on registers and shared memory."""
    if thorough:
        shapes = product((torch.float16, torch.bfloat16), (40, 64, 80, 128, 160, 256), (77, 154, 231), (False, True))
        for dtype, head_dim, length, with_mass in shapes:
            yield attention_case(head_dim, length, dtype, with_mass)
        for head_dim, length in product((40, 64, 160, 256), (77, 154)):
            yield attention_case(head_dim, length, torch.float32, False)
    else:
        for head_dim, length in ((40, 77), (160, 77), (160, 231)):
            yield attention_case(head_dim, length, torch.float16, True)
    yield from elementwise_cases()
    yield from layer_cases(thorough)


def elementwise_cases() -> Iterator[KernelCase]:
    """The step and the gather, reading and writing half precision."""
    fp32 = ("latents", "history", "weights", "coefficients", "masks", "carried", "rescales")
    pointers = dict.fromkeys(fp32, "*fp32") | dict.fromkeys(("slots", "rows", "steps", "seeds", "pairs"), "*i64")
    constants = {
        "ROWS": 4, "COLUMNS": len(StepColumns), "SOLVER_STREAM": 0, "MASK_STREAM": 1, "BLOCK": BLOCK, "eps_pixel": 1,
    }  # fmt: skip
    arguments = pointers | {"eps": "*fp16"}
    options = {"num_warps": WARPS, "enable_fp_fusion": False}
    function = denoise_step_kernel
    yield KernelCase(
        "denoise_step", "fp16 planar", function, complete(function, arguments, constants), constants, options
    )
    constants = {"COLUMNS": len(StepColumns), "BLOCK": BLOCK, "out_pixel": 1}
    arguments = pointers | {"out": "*fp16"}
    function = gather_rows_kernel
    options = {"num_warps": WARPS}
    yield KernelCase(
        "gather_rows", "fp16 planar", function, complete(function, arguments, constants), constants, options
    )


def build(case: KernelCase, architecture: int) -> Any:
    """Compile `case` for a compute capability; the result holds every stage, from Triton's IR to the cubin."""
    divisible = [["tt.divisibility", 16]]
    attributes = {
        (index,): divisible
        for index, (name, kind) in enumerate(case.arguments.items())
        if (kind.startswith("*") and name not in case.unaligned)
        or (kind == "i32" and (name.endswith(("_batch", "_row", "_channel")) or name in ("size", "pixels", "chunk")))
    }
    source = triton.compiler.ASTSource(case.function, case.arguments, case.constants, attributes)
    target = triton.backends.compiler.GPUTarget("cuda", architecture, 32)
    return triton.compile(source, target=target, options=case.options)


def launchable(case: KernelCase, architecture: int) -> Launchable:
    """Compile `case` for a compute capability, for hosts other than Triton's launcher.

    Raises ValueError for a kernel that needs scratch memory, which such a host does not give.
    """
    with triton.knobs.compilation.scope():
        # Line numbers would carry this machine's paths into whatever the PTX ends up in.
        triton.knobs.compilation.disable_line_info = True
        binary = build(case, architecture)
    declared = sum(kind != "constexpr" for kind in case.arguments.values())
    ptx = with_declared_parameters(binary.asm["ptx"], binary.metadata.name, declared)
    # One plan or module may hold the kernel at several shapes.
    name = "_".join(("twig", case.name, *re.findall(r"\w+", case.shape)))
    return Launchable(
        name, renamed(ptx, binary.metadata.name, name), 32 * binary.metadata.num_warps, binary.metadata.shared
    )


def compile_case(case: KernelCase, architecture: int) -> Footprint:
    """Build `case` for a compute capability and read the cubin."""
    binary = build(case, architecture)
    usage, instructions, lost = inspect_cubin(binary.asm["cubin"])
    return Footprint(
        case.name, case.shape, architecture, case.options["num_warps"], usage["REG"],
        usage["STACK"] + usage["LOCAL"], binary.metadata.shared, len(binary.asm["cubin"]), instructions, lost,
    )  # fmt: skip


def inspect_cubin(cubin: bytes) -> tuple[dict[str, int], str, int]:
    """Resource usage by cuobjdump, the tensor-core instructions of the SASS as 'HMMA x 24', and `lost_carries`."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, sass = (
            subprocess.run([tool, flag, file.name], capture_output=True, text=True, check=True).stdout
            for flag in ("--dump-resource-usage", "--dump-sass")
        )
    numbers = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    found = _TENSOR_INSTRUCTION.findall(sass)
    return numbers, " ".join(f"{name} x {found.count(name)}" for name in sorted(set(found))), lost_carries(sass)


def lost_carries(sass: str) -> int:
    """How many 64-bit sums of uniform registers take the low word of a number for its high word too.

    ptxas 12.8, which comes with Triton 3.6, writes such sums into descriptors of shared memory: on an H100 the matrix
    units then read other rows, or outside of it. A kernel whose binary has one is wrong, though its source is right.
    """
    found = 0
    low_words: dict[str, str] = {}
    for line in sass.splitlines():
        if high := _HIGH_SUM.search(line):
            found += low_words.get(high["carry"]) == high["word"]
        if low := _LOW_SUM.search(line):
            low_words[low["carry"]] = low["word"]
        elif written := _UNIFORM_WRITE.search(line):
            low_words = {carry: word for carry, word in low_words.items() if word != written[1]}
    return found
