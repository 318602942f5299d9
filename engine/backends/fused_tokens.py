"""Transformer blocks on our operators: additions with the normalisation that reads them, a gated unit in one pass, and
queries, keys and values of self-attention by one product."""

from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from ...kernels import add_layer_norm, geglu
from ..models.adapters import adapted
from ..models.layers import RowConditions
from .attention_choice import attend


def fuse_tokens(module: nn.Module) -> None:
    """Let a transformer block or a gated unit run on our operators, in place; anything else stays as it is."""
    if type(module) is GEGLU:
        module.__class__ = FusedGEGLU
    elif type(module) is BasicTransformerBlock and _plain_block(module):
        module.__class__ = FusedTransformerBlock
        attn = module.attn1
        if isinstance(attn, Attention) and _packable(attn):
            attn.set_processor(PackedAttention(attn))


class FusedTransformerBlock(BasicTransformerBlock):
    """Self-attention, attention to the text and a feed-forward layer, each with a residual addition."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        class_labels: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """(R, N, C) -> (R, N, C)."""
        conditions = cross_attention_kwargs or {}
        attended = self.attn1(self.norm1(hidden_states), attention_mask=attention_mask, **conditions)
        hidden, normed = _added(self.norm2, attended, hidden_states)
        attended = self.attn2(
            normed, encoder_hidden_states=encoder_hidden_states, attention_mask=encoder_attention_mask, **conditions
        )
        hidden, normed = _added(self.norm3, attended, hidden)
        return self.ff(normed) + hidden


class FusedGEGLU(GEGLU):
    """A gated linear unit."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """(R, N, C) -> (R, N, C')."""
        return geglu(self.proj(hidden_states))


class PackedAttention:
    """Self-attention whose three projections are one product.

    Their weights lie beside each other from now on, and are views of it, so that nothing is held twice. project: the
    product, (R, N, C) -> (R, N, 3 C').
    """

    def __init__(self, attn: Attention) -> None:
        layers = attn.to_q, attn.to_k, attn.to_v
        weight = _beside([layer.weight.detach() for layer in layers])
        for layer, part in zip(layers, weight.chunk(3), strict=True):
            layer.weight.data = part
        self.project: nn.Module = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.project.weight = nn.Parameter(weight, requires_grad=False)

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        conditions: RowConditions | None = None,
    ) -> Tensor:
        """(R, N, C) -> (R, N, C)."""
        projected = self.project(hidden_states)
        for layer, part in zip((attn.to_q, attn.to_k, attn.to_v), projected.chunk(3, dim=-1), strict=True):
            adapted(layer, hidden_states, part)
        packed = projected.unflatten(-1, (3, attn.heads, -1))
        query, key, value = (packed[:, :, i].transpose(1, 2) for i in range(3))
        return attn.to_out[0](attend(query, key, value).transpose(1, 2).flatten(2))


def _beside(parts: list[Tensor]) -> Tensor:
    """Matrices of one size under each other in memory, as another engine on the same weights may have left them."""
    first = parts[0]
    places = [(part.untyped_storage().data_ptr(), part.storage_offset()) for part in parts]
    if places == [(places[0][0], i * first.numel()) for i in range(len(parts))]:
        return first.as_strided((len(parts) * len(first), first.shape[1]), first.stride())
    return torch.cat(parts)


def _plain_block(block: BasicTransformerBlock) -> bool:
    """Whether it is the transformer block of Stable Diffusion."""
    return (
        block.norm_type == "layer_norm"
        and block.pos_embed is None
        and block.attn2 is not None
        and not block.only_cross_attention
        and not hasattr(block, "fuser")
        and all(norm.elementwise_affine for norm in (block.norm2, block.norm3))
    )


def _packable(attn: Attention) -> bool:
    """Whether it is self-attention with nothing between projections and product."""
    layers = attn.to_q, attn.to_k, attn.to_v
    return (
        all(type(layer) is nn.Linear and layer.bias is None for layer in layers)
        and len({layer.weight.shape for layer in layers}) == 1
        and attn.norm_q is None
        and attn.norm_k is None
        and attn.group_norm is None
        and not attn.residual_connection
        and attn.rescale_output_factor == 1
    )


def _added(norm: nn.LayerNorm, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    return add_layer_norm(x, residual, norm.weight, norm.bias, norm.eps)
