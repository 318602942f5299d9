"""What is built ahead of time: one kernel at one shape, as its launcher would have it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

TRITON_NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


class KernelCase(NamedTuple):
    """One kernel at one shape. `arguments` are signature types; `constants` are compile-time values.

    unaligned: pointers to what may begin anywhere; all others are multiples of 16 bytes. since: the first compute
    capability that has its instructions.
    """

    name: str
    shape: str
    function: Any
    arguments: dict[str, str]
    constants: dict[str, Any]
    options: dict[str, Any]
    unaligned: tuple[str, ...] = ()
    since: int = 80


def complete(function: Any, arguments: dict[str, str], constants: dict[str, Any]) -> dict[str, str]:
    """Every argument's type in order: what is neither named nor constant is a 32-bit integer."""
    return {name: "constexpr" if name in constants else arguments.get(name, "i32") for name in function.arg_names}
