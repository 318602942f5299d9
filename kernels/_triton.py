"""Triton where there is one, and something for it to do.

Triton is a build for Linux with a CUDA device in mind; on any other machine this package still imports and its
operators run their PyTorch references. Kernels take `jit`, `triton` and `tl` from here, once, at import. Beside a
PyTorch that is built for the processor alone no kernel can be launched, and Triton, which takes 70 MiB, is left out
unless it is to interpret them (TRITON_INTERPRET=1) or to compile them for another machine (TWIG_TRITON=1).
"""

from __future__ import annotations

import os
from typing import Any

import torch

_ASKED_FOR = "1" in (os.environ.get("TRITON_INTERPRET"), os.environ.get("TWIG_TRITON"))

try:
    if not (_ASKED_FOR or torch.backends.cuda.is_built()):
        raise ImportError("nothing here could run a kernel")
    import triton
    import triton.language as tl
except ImportError:  # the one door of an optional dependency
    triton = None
    tl = None

AVAILABLE = triton is not None
INTERPRETED = AVAILABLE and bool(triton.knobs.runtime.interpret)


def jit(function: Any) -> Any:
    """`triton.jit`, or the bare function where Triton is missing (it is then never called)."""
    return triton.jit(function) if AVAILABLE else function


def require_launchable(operator: str, *tensors: torch.Tensor) -> None:
    """Refuse a launch that cannot work: no Triton, tensors off the device, or on several devices."""
    if not AVAILABLE:
        raise RuntimeError(
            f"{operator}: triton is not installed, or PyTorch is built for no GPU; use the PyTorch reference"
        )
    devices = {tensor.device for tensor in tensors}
    if len(devices) != 1:
        raise ValueError(f"{operator}: all tensors must be on one device, got {sorted(map(str, devices))}")
    device = devices.pop()
    if device.type != "cuda" and not INTERPRETED:
        raise ValueError(f"{operator}: the Triton kernel needs CUDA tensors, got tensors on {device}")
