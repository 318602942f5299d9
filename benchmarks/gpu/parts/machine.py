"""The machine: what it is, how fast it copies and multiplies. Every share in other parts is a share of these."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from ...printing import Row
from ..bench import Bench, named

CEILING = "matmul"
"""Measure of the rows that say how fast the device multiplies."""


def measure(bench: Bench) -> Iterator[Row]:
    """Rows of the device, of a large copy and of large matrix products in each number type."""
    if bench.cuda:
        yield {"measure": "device", **_device(bench)}
    yield {"measure": "copy", **copy(bench)}
    for name, call, flops in products(bench):
        try:
            seconds = bench.timed(call, bench.pick(30, 2))["p50"]
        except RuntimeError as error:  # a number type that this device does not multiply
            yield {"measure": CEILING, "precision": name, "skipped": str(error).splitlines()[0]}
            continue
        yield {
            "measure": CEILING,
            "precision": name,
            "flops": flops,
            "seconds": seconds,
            "tflops": flops / seconds / 1e12,
        }


def _device(bench: Bench) -> Row:
    properties = torch.cuda.get_device_properties(bench.device)
    return {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory": properties.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def copy(bench: Bench) -> Row:
    """Bytes a second of a large copy on the device, reads and writes counted."""
    source = torch.ones(bench.pick(1 << 30, 1 << 24), dtype=torch.int8, device=bench.device)
    target = torch.empty_like(source)
    seconds = bench.timed(lambda: target.copy_(source), bench.pick(20, 2))["p50"]
    return {"bytes": 2 * source.numel(), "seconds": seconds, "bytes_per_second": 2 * source.numel() / seconds}


def products(bench: Bench) -> Iterator[tuple[str, Callable[[], object], int]]:
    """Name of a number type, a large matrix product in it, and its operations."""
    for size in (8192, 4096) if not bench.quick else (128,):
        flops = 2 * size**3
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            a, b = (torch.randn(size, size, device=bench.device).to(dtype) for _ in range(2))
            yield named(dtype), partial(torch.matmul, a, b), flops
        yield "tf32", partial(_tf32, a, b), flops
        yield "float8_e4m3fn", _fp8(size, bench.device), flops


def _tf32(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        return a @ b
    finally:
        torch.set_float32_matmul_precision(before)


def _fp8(size: int, device: torch.device) -> Callable[[], object]:
    def multiply() -> torch.Tensor:
        return torch._scaled_mm(a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)

    a, b = (torch.randn(size, size, device=device).to(torch.float8_e4m3fn) for _ in range(2))
    b, one = b.t(), torch.ones((), device=device)
    return multiply
