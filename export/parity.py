"""How far an exported network is from PyTorch's, output by output."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from skimage.metrics import structural_similarity
from torch import Tensor

from ..engine.backends.torch import TorchNetwork
from ..engine.models.tensors import NetworkSpec, Sizes
from .graph import example_inputs

Runs = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""Runs a network on tensors in the table's order."""


@dataclass(frozen=True)
class Parity:
    """Error of one output. max_error, rms_error: absolute; scale: root mean square of the reference."""

    output: str
    max_error: float
    rms_error: float
    scale: float


def compare(spec: NetworkSpec, reference: Runs, candidate: Runs, calls: Sequence[Sequence[Tensor]]) -> list[Parity]:
    """Run both on each of `calls`; the worst of each output over them."""
    worst: dict[str, Parity] = {}
    for inputs in calls:
        pairs = zip(spec.outputs, reference(inputs), candidate(inputs), strict=True)
        for tensor, wanted, found in pairs:
            error = (found.double() - wanted.double()).abs()
            parity = Parity(tensor.name, float(error.max()), _rms(error), _rms(wanted.double()))
            if tensor.name not in worst or parity.max_error > worst[tensor.name].max_error:
                worst[tensor.name] = parity
    return list(worst.values())


def example_calls(spec: NetworkSpec, sizes: Sequence[Sizes], reference: TorchNetwork) -> list[tuple[Tensor, ...]]:
    """Calls of plausible values in the reference's own dtype, one for each of `sizes`."""
    dtype = next(reference.flat.parameters()).dtype
    return [example_inputs(spec, size, dtype, seed=i) for i, size in enumerate(sizes)]


def image_ssim(references: Sequence[Image.Image], candidates: Sequence[Image.Image]) -> float:
    """Mean SSIM of pairs of pictures (Wang et al., 2004)."""
    pairs = zip(references, candidates, strict=True)
    return float(np.mean([structural_similarity(np.asarray(a), np.asarray(b), channel_axis=2) for a, b in pairs]))


def _rms(values: Tensor) -> float:
    return float(values.pow(2).mean().sqrt())
