"""Self-attention at each level by each of PyTorch's backends, in the layout that the networks hand it over in."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ....kernels.testing import ATTENTION_SHAPES
from ...printing import Row
from ..bench import Bench, named

BACKENDS = (
    SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH
)  # fmt: skip


def measure(bench: Bench) -> Iterator[Row]:
    """A row for each level of Stable Diffusion 1.5, backend and number of rows; the fastest of each is marked."""
    levels = [shape for shape in ATTENTION_SHAPES if shape.model == "sd15-512"]
    for shape in levels[-1:] if bench.quick else levels:
        for rows in (2,) if bench.quick else (2, 32):
            found = [_row(bench, backend, rows, shape.side**2, shape.heads, shape.head_dim) for backend in BACKENDS]
            timed = [row for row in found if "ms" in row]
            fastest = min(timed, key=lambda row: float(str(row["ms"])))
            yield from ({**row, "fastest": row is fastest} for row in found)


@torch.inference_mode()
def _row(bench: Bench, backend: SDPBackend, rows: int, pixels: int, heads: int, head_dim: int) -> Row:
    row: Row = {
        "measure": "sdpa", "backend": backend.name.lower(), "rows": rows, "pixels": pixels, "head_dim": head_dim,
        "precision": named(bench.dtype),
    }  # fmt: skip
    if backend is SDPBackend.MATH and rows * pixels > 2**14:
        return {**row, "skipped": "it writes every score"}
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, rows, pixels, heads * head_dim, generator=generator).to(bench.device, bench.dtype)
    q, k, v = (one.unflatten(-1, (heads, head_dim)).transpose(1, 2) for one in features)
    try:
        with sdpa_kernel([backend]):
            seconds = bench.timed(lambda: F.scaled_dot_product_attention(q, k, v), bench.pick(20, 2))["p50"]
            out = F.scaled_dot_product_attention(q[:1], k[:1], v[:1])
    except RuntimeError as error:
        return {**row, "skipped": str(error).splitlines()[0]}
    exact = (q[:1].float() @ k[:1].float().transpose(-1, -2) * head_dim**-0.5).softmax(-1) @ v[:1].float()
    flops = 4 * rows * heads * pixels**2 * head_dim
    return {**row, "ms": 1e3 * seconds, "tflops": flops / seconds / 1e12, "error": float((out - exact).abs().max())}
