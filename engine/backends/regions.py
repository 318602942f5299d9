"""Regional compilation: the repeated blocks of a UNet and ControlNet, compiled once a kind and not once a block.

A network's blocks come in few kinds, so compiling the kinds costs a fraction of compiling the network. What would tell
blocks of one kind apart (which layer's keys and values, which part of the mask pyramid) is narrowed before a compiled
forward sees it, and rows are a dynamic size: one forward serves every row bucket.
"""

from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from ..models.attention import CrossAttention

Forward = Callable[..., Tensor]
Kind = tuple[object, ...]

_CONVOLVED_APART = 16
"""On one CPU thread PyTorch runs convolutions of as many rows differently, and compiles them so."""


class Regions:
    """Compiled forwards by kind of block and of input. `mode` as in `torch.compile`."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.forwards: dict[Kind, Forward] = {}

    def install(self, network: nn.Module) -> None:
        """Let the blocks of `network` run compiled; its cross-attention must be installed already."""
        for block in list(network.modules()):
            if isinstance(block, BasicTransformerBlock):
                block.forward = self._transformer(block)
            elif isinstance(block, ResnetBlock2D):
                block.forward = self._resnet(block)

    def _transformer(self, block: BasicTransformerBlock) -> Forward:
        kind, eager = _kind(block), block.forward
        layer: CrossAttention = block.attn2.processor
        block.attn2.processor = CrossAttention(index=0, level=0)

        def forward(hidden_states: Tensor, **arguments: Any) -> Tensor:
            own = layer.narrowed(arguments["cross_attention_kwargs"]["conditions"])
            arguments |= {"cross_attention_kwargs": {"conditions": own}, "encoder_hidden_states": own.text_kv[0]}
            if own.record is not None:
                return eager(hidden_states, **arguments)
            by_row = own.text_kv[0], own.mask_pyramid, own.tokens, own.scalars
            read = own.text_kv[0].shape[1], own.tokens is None, own.scalars is None
            run = self._compiled(block, (*kind, *read, *_layout(hidden_states)), (hidden_states, *by_row))
            return run(block, hidden_states, **arguments)

        return forward

    def _resnet(self, block: ResnetBlock2D) -> Forward:
        kind = _kind(block)

        def forward(hidden_states: Tensor, temb: Tensor) -> Tensor:
            apart = hidden_states.is_cpu and len(hidden_states) >= _CONVOLVED_APART
            run = self._compiled(block, (*kind, apart, *_layout(hidden_states)), (hidden_states, temb))
            return run(block, hidden_states, temb)

        return forward

    def _compiled(self, block: nn.Module, kind: Kind, by_row: tuple[Tensor | None, ...]) -> Forward:
        if kind not in self.forwards:
            self.forwards[kind] = torch.compile(_own_code(type(block).forward, len(self.forwards)), mode=self.mode)
            for tensor in by_row:
                if tensor is not None and len(tensor) > 1:
                    torch._dynamo.mark_dynamic(tensor, 0)
        return self.forwards[kind]


def _kind(block: nn.Module) -> Kind:
    """What a compiled forward takes for granted of a block: its type, sizes and settings."""
    sizes = tuple((name, tuple(tensor.shape)) for name, tensor in block.state_dict().items())
    # Their types count too: to the compiler 1 is not 1.0.
    settings = repr({k: v for k, v in vars(block).items() if isinstance(v, int | float | str | None)})
    return type(block), sizes, settings


def _layout(tensor: Tensor) -> Kind:
    """What it takes for granted of an input: its size but for the rows, of which only one or several, and its order."""
    single = len(tensor) == 1
    return single, tensor.shape[1:], tensor.stride() if single else tensor.stride()[1:]


def _own_code(forward: Forward, number: int) -> Forward:
    """Wrap `forward` in a function with a code object of its own: by that the compiler keeps and counts its results."""

    def run(block: nn.Module, *inputs: Any, **named: Any) -> Tensor:
        return forward(block, *inputs, **named)

    code: CodeType = run.__code__.replace(co_name=f"region_{number}")
    return FunctionType(code, run.__globals__, code.co_name, None, run.__closure__)
