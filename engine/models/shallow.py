"""What of a UNet runs where its deep part is taken over from a step before (Ma et al., DeepCache, CVPR 2024).

The deep part is all below the first resolution: what it makes of a row enters the last block as one feature, which
changes little from step to step. The shallow part, the first block and the last, is diffusers' own network with the
blocks between left out, on the same weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from .adapters import AdapterRows
from .layers import CrossLayer

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

_ONCE = ("attn2.to_k.weight", "attn2.to_v.weight")
"""Products with the text, made once a request."""
_FIRST, _LAST = ("DownBlock2D", "CrossAttnDownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")


class ShallowInputs(NamedTuple):
    """What one call of the shallow part reads (R rows).

    deep (R, D, h, w): what entered the last block when the rows were computed in full; residuals: those that were added
    to its skip connections then, None when no row is controlled. text_kv: of the shallow layers alone. The rest as of
    `DenoiserInputs`.
    """

    sample: Tensor
    time_proj: Tensor
    text_kv: tuple[Tensor, ...]
    added: tuple[Tensor, ...]
    mask_pyramid: Tensor
    tokens: Tensor
    scalars: Tensor
    deep: Tensor
    residuals: tuple[Tensor, ...] | None = None
    adapters: AdapterRows | None = None


class Taken(nn.Module):
    """Stands for the deep part: its feature comes as it was kept."""

    has_cross_attention = True

    def forward(self, *_: Any, cross_attention_kwargs: dict[str, Any], **__: Any) -> Tensor:
        """Return the feature of `RowConditions`."""
        deep: Tensor = cross_attention_kwargs["conditions"].deep
        return deep


def can_be_split(unet: UNet2DConditionModel) -> bool:
    """Whether the first block's outputs and one feature are all that the last block reads, as in Stable Diffusion."""
    config = unet.config
    if len(config.down_block_types) < 2 or config.mid_block_type is None:
        return False
    return config.down_block_types[0] in _FIRST and config.up_block_types[-1] in _LAST


def num_skips(unet: UNet2DConditionModel) -> int:
    """Skip connections that the last block reads, so residuals of a ControlNet that the shallow part adds."""
    layers = unet.config.layers_per_block
    return (layers if isinstance(layers, int) else int(layers[0])) + 1


def deep_channels(unet: UNet2DConditionModel) -> int:
    """Channels of the feature that enters the last block, at the latent's own resolution."""
    return int(unet.config.block_out_channels[1])


def shallow_layers(unet: UNet2DConditionModel, layers: Sequence[CrossLayer]) -> tuple[int, ...]:
    """Indices of the cross-attention layers of the shallow part."""
    places = "down_blocks.0.", f"up_blocks.{len(unet.config.up_block_types) - 1}."
    return tuple(index for index, layer in enumerate(layers) if layer.name.startswith(places))


def shallow_part(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The shallow part of `unet`: the same modules, of a network that holds no others."""
    first = _with_own_modules(unet.down_blocks[0])
    first.downsamplers = None
    part = _with_own_modules(unet)
    part.down_blocks, part.mid_block = nn.ModuleList([first]), Taken()
    part.up_blocks, part.num_upsamplers = nn.ModuleList([unet.up_blocks[-1]]), 0
    return part


def shallow_share(unet: UNet2DConditionModel) -> float:
    """What a row costs in the shallow part, of what it costs in full: by its products with weights.

    Left out are those with the text's keys and values and with the timestep, which pixels do not multiply.
    """
    levels, whole, shallow = len(unet.down_blocks), 0.0, 0.0
    for name, weight in unet.named_parameters():
        if weight.ndim < 2 or "time" in name or name.startswith("add_embedding") or name.endswith(_ONCE):
            continue
        block, _, rest = name.partition(".")
        index = int(rest.partition(".")[0]) if block in ("down_blocks", "up_blocks") else 0
        level = {"down_blocks": index, "up_blocks": levels - 1 - index, "mid_block": levels - 1}.get(block, 0)
        level += ("downsamplers" in name) - ("upsamplers" in name)
        products = weight.numel() * 4.0**-level
        whole += products
        shallow += products * (level == 0 and "upsamplers" not in name)
    return shallow / whole


@contextmanager
def seen_deep(unet: UNet2DConditionModel) -> Iterator[list[Tensor]]:
    """Within, each call of `unet` adds the feature that enters its last block."""
    seen: list[Tensor] = []

    def look(_: nn.Module, __: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.append(named["hidden_states"])

    handle = unet.up_blocks[-1].register_forward_pre_hook(look, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def _with_own_modules(module: nn.Module) -> Any:
    """A copy that may hold other modules; those that it holds are the same."""
    made = copy.copy(module)
    made._modules = dict(module._modules)
    return made
