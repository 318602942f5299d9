"""Linear layers and 1x1 convolutions in eight bits: e4m3, a scale for each weight's channel and for each token.

A device of compute capability 8.9 and later multiplies them as they are; elsewhere the same rounded numbers are
multiplied in float32, which is slow and tells what the rounding costs.
"""

from typing import TypeGuard

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor, nn

from ...kernels import fp8_rows
from ..models.adapters import adapted
from .fused_tokens import PackedAttention

STEP = 16
"""The tensor cores take channels by multiples of this."""

CAPABILITY = (8, 9)
"""The first compute capability with products in e4m3."""


class Fp8Linear(nn.Module):
    """A linear layer or 1x1 convolution on tokens, (..., C) -> (..., C'), in eight bits.

    weight (C', C) float8_e4m3fn; scale (C', 1) float32, by channel; bias (C',) or None. What adapters change of it
    they change in full precision.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        weight, scale = fp8_rows(layer.weight.detach().flatten(1).contiguous())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.bias = layer.bias
        self.lora = getattr(layer, "lora", None)

    def forward(self, x: Tensor) -> Tensor:
        """Quantise, multiply, and scale back into x's dtype."""
        rows, scales = fp8_rows(x.flatten(0, -2).contiguous())
        product = self._device_product if rows.is_cuda else self._emulated_product
        return adapted(self, x, product(rows, scales).to(x.dtype).unflatten(0, x.shape[:-1]))

    def _device_product(self, rows: Tensor, scales: Tensor) -> Tensor:
        """PyTorch's product with scales by row takes and gives bfloat16."""
        bias = None if self.bias is None else self.bias.to(torch.bfloat16)
        return torch._scaled_mm(
            rows, self.weight.t(), scale_a=scales, scale_b=self.scale.t(), bias=bias, out_dtype=torch.bfloat16
        )

    def _emulated_product(self, rows: Tensor, scales: Tensor) -> Tensor:
        product = rows.float() @ self.weight.float().t() * scales * self.scale.t()
        return product if self.bias is None else product + self.bias.float()


def quantise(network: nn.Module) -> None:
    """Put the large products of a fused network's blocks into eight bits, in place.

    Projections, feed-forward layers, queries, and shortcuts; not the timestep's layers, which are small, nor the text's
    keys and values, which are computed once a request.
    """
    for module in list(network.modules()):
        if isinstance(module, BasicTransformerBlock):
            _quantise_block(module)
        elif isinstance(module, Transformer2DModel):
            _replace(module, "proj_in", "proj_out")
        elif isinstance(module, ResnetBlock2D):
            _replace(module, "conv_shortcut")


def _quantise_block(block: BasicTransformerBlock) -> None:
    processor = block.attn1.processor
    if isinstance(processor, PackedAttention) and _takes(processor.project):
        processor.project = Fp8Linear(processor.project)
    _replace(block.attn2, "to_q")
    for attn in (block.attn1, block.attn2):
        _replace(attn.to_out, "0")
    _replace(block.ff.net[0], "proj")
    _replace(block.ff.net, "2")


def _replace(parent: nn.Module, *names: str) -> None:
    for name in names:
        layer = getattr(parent, name)
        if _takes(layer):
            setattr(parent, name, Fp8Linear(layer))


def _takes(layer: nn.Module | None) -> TypeGuard[nn.Linear | nn.Conv2d]:
    """Whether it is a product that tensor cores take."""
    if type(layer) is nn.Conv2d:
        return layer.kernel_size == (1, 1) and not (layer.in_channels % STEP or layer.out_channels % STEP)
    return type(layer) is nn.Linear and not (layer.in_features % STEP or layer.out_features % STEP)
