"""The denoising networks behind two calls: a UNet whose rows differ in everything, a ControlNet for some of them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .. import models
from .adapters import AdapterRows, acting
from .layers import CrossLayer, MassRecord, RowConditions, latent_grids, text_kv
from .premade import guidance_sinusoids, premake, project_timesteps
from .shallow import ShallowInputs, can_be_split, seen_deep, shallow_layers, shallow_part, shallow_share
from .transfers import sent

if TYPE_CHECKING:
    from diffusers import ControlNetModel, UNet2DConditionModel

Residuals = tuple[Tensor, ...]
"""ControlNet's residuals: one for each down block, in order, then the mid block's."""

Added = tuple[Tensor, ...]
"""What SDXL's networks read beside the timestep, nothing elsewhere: pooled text (R, P) and sinusoids of sizes (R, 6 F),
float32."""

NUM_SIZES = 6
"""Numbers that SDXL is told of a picture: height and width of the original, top and left of the crop, height and width
of the target (Podell et al., arXiv 2307.01952, section 2.2)."""

_ADDED_NAMES = ("text_embeds", "time_ids")


class ControlInputs(NamedTuple):
    """What one ControlNet call reads (R rows).

    sample (R, C, h, w); time_proj (R, F) float32: the timestep's sinusoids; text_kv: per cross-attention layer
    (R, T, 2 * inner); added: `Added`; hint (R, width, h, w): embedded label maps; scale (R,) float32: strength;
    tokens (R, 5, T) float32: which tokens are hidden, None where none is.
    """

    sample: Tensor
    time_proj: Tensor
    text_kv: tuple[Tensor, ...]
    added: Added
    hint: Tensor
    scale: Tensor
    tokens: Tensor | None = None


class DenoiserInputs(NamedTuple):
    """What one UNet call reads (R rows, L cross-attention layers).

    sample (R, C, h, w); time_proj (R, F) float32: the timestep's sinusoids; text_kv: per layer (R, T, 2 * inner);
    added: `Added`; mask_pyramid (R, P), tokens (R, 5, T) and scalars (R, L, 3) float32 as in `RowConditions`;
    residuals: None when no row is controlled, else zero in the rows that are not. adapters: None when no row has any.
    """

    sample: Tensor
    time_proj: Tensor
    text_kv: tuple[Tensor, ...]
    added: Added
    mask_pyramid: Tensor
    tokens: Tensor
    scalars: Tensor
    residuals: Residuals | None = None
    record: MassRecord | None = None
    adapters: AdapterRows | None = None


@dataclass(frozen=True)
class EncodedText:
    """What one prompt brings: keys and values per layer (T, 2 * inner), for the UNet and for the ControlNet.

    added: pooled text (P,), and once the picture's sizes are known their sinusoids (6 F,); `Denoiser.sized`. further:
    keys and values for further ControlNets, by name.
    """

    unet: tuple[Tensor, ...]
    controlnet: tuple[Tensor, ...]
    added: Added = ()
    further: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """Tokens of all its chunks."""
        return len(self.unet[0])

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        further = itertools.chain.from_iterable(self.further.values())
        return sum(tensor.nbytes for tensor in (*self.unet, *self.controlnet, *self.added, *further))


def _copied(layers: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Copies in one block of memory: views would keep their batch alive, and many small blocks fragment the heap."""
    flat = torch.cat([layer.flatten() for layer in layers])
    parts = flat.split([layer.numel() for layer in layers])
    return tuple(part.view_as(layer) for part, layer in zip(parts, layers, strict=True))


class Controller:
    """A ControlNet with installed processors. layers: its cross-attention layers."""

    def __init__(self, controlnet: ControlNetModel) -> None:
        self.controlnet = controlnet
        self.layers: tuple[CrossLayer, ...] = models.attention.install(controlnet)
        project_timesteps(controlnet)
        premake(controlnet, "controlnet_cond_embedding")

    @torch.inference_mode()
    def embed_hint(self, hint: Tensor) -> Tensor:
        """Control images (B, 3, H, W) in [0, 1] -> (B, width, h, w)."""
        return self.controlnet.controlnet_cond_embedding.make(hint)

    def time_proj(self, timesteps: Tensor) -> Tensor:
        """Timesteps (R,) -> the sinusoids (R, F) float32 that it reads."""
        return self.controlnet.time_embedding.project(timesteps)

    def __call__(self, inputs: ControlInputs) -> Residuals:
        """Residuals of its rows, times their scale."""
        grids = latent_grids(inputs.sample.shape, len(self.controlnet.config.block_out_channels))
        down, mid = self.controlnet(
            inputs.sample,
            inputs.time_proj[:, 0],
            inputs.text_kv[0],
            inputs.hint,
            timestep_cond=inputs.time_proj.to(inputs.sample.dtype),
            conditioning_scale=inputs.scale.to(inputs.sample.dtype).view(-1, 1, 1, 1),
            cross_attention_kwargs={"conditions": RowConditions(inputs.text_kv, grids, tokens=inputs.tokens)},
            added_cond_kwargs=dict(zip(_ADDED_NAMES, inputs.added, strict=False)),
            return_dict=False,
        )
        return (*down, mid)


class Denoiser:
    """UNet and ControlNet with installed processors.

    Attributes: layers, the UNet's cross-attention layers; control_layers, the ControlNet's; further, further
    ControlNets by name.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        controlnet: ControlNetModel | None,
        further: Mapping[str, ControlNetModel] | None = None,
    ) -> None:
        self.unet = unet
        self.controlnet = controlnet
        self.layers: tuple[CrossLayer, ...] = models.attention.install(unet)
        project_timesteps(unet)
        self._controller = None if controlnet is None else Controller(controlnet)
        self.control_layers = () if self._controller is None else self._controller.layers
        self.further = {name: Controller(network) for name, network in (further or {}).items()}

    def controller(self, name: str | None = None) -> Controller:
        """The ControlNet that follows the moved map, or the further one called `name`."""
        found = self._controller if name is None else self.further[name]
        assert found is not None
        return found

    @property
    def num_levels(self) -> int:
        """Resolutions the UNet works at."""
        return len(self.unet.config.block_out_channels)

    @property
    def added_widths(self) -> tuple[int, ...]:
        """Widths of `Added`."""
        config = self.unet.config
        if config.addition_embed_type is None:
            return ()
        sizes = NUM_SIZES * config.addition_time_embed_dim
        return config.projection_class_embeddings_input_dim - sizes, sizes

    @torch.inference_mode()
    def encode(
        self, text: Tensor, pooled: Sequence[Tensor] = (), adapters: AdapterRows | None = None
    ) -> list[EncodedText]:
        """Text states (B, T, D), and pooled text (B, P) where the networks read it -> what each prompt brings.

        adapters: of the prompts.
        """
        with acting(adapters):
            unet = text_kv(self.unet, self.layers, text)
        control = text_kv(self.controlnet, self.control_layers, text) if self.controlnet is not None else []
        further = {name: text_kv(each.controlnet, each.layers, text) for name, each in self.further.items()}

        def prompt(i: int) -> EncodedText:
            own = _copied([kv[i] for kv in (*unet, *control)])
            others = {name: _copied([kv[i] for kv in every]) for name, every in further.items()}
            return EncodedText(own[: len(unet)], own[len(unet) :], tuple(one[i].clone() for one in pooled), others)

        return [prompt(i) for i in range(len(text))]

    @torch.inference_mode()
    def sized(self, text: EncodedText, sizes: Sequence[int]) -> EncodedText:
        """`text` for a picture of `sizes`, the `NUM_SIZES` numbers; as it is where the networks read none."""
        if not self.added_widths:
            return text
        (numbers,) = sent([torch.tensor(sizes)], self.unet.device)
        return replace(text, added=(*text.added, self.unet.add_time_proj.make(numbers).flatten()))

    @property
    def embeds_guidance(self) -> bool:
        """Whether the UNet is told the guidance, as latent consistency models are, instead of being asked twice."""
        return self.unet.config.time_cond_proj_dim is not None

    def time_proj(self, timesteps: Tensor, guidances: Tensor | None = None) -> Tensor:
        """Timesteps (R,) -> the sinusoids (R, F) float32 that the UNet reads.

        With guidances (R,), scales less 1, a network that is told them has them added: here, so that what follows is
        one network whichever backend runs it.
        """
        projected: Tensor = self.unet.time_embedding.project(timesteps)
        if guidances is None or not self.embeds_guidance:
            return projected
        told = self.unet.time_embedding.embed.cond_proj
        sinusoids = guidance_sinusoids(guidances, told.in_features)
        return projected + told(sinusoids.to(told.weight.dtype)).float()

    def predict(self, inputs: DenoiserInputs) -> Tensor:
        """UNet: predict (R, C, h, w)."""
        grids = latent_grids(inputs.sample.shape, self.num_levels)
        conditions = RowConditions(
            inputs.text_kv, grids, inputs.mask_pyramid, inputs.tokens, inputs.scalars, inputs.record
        )
        with acting(inputs.adapters):
            return self.unet(
                inputs.sample,
                inputs.time_proj[:, 0],  # a timestep for each row, which nothing reads
                inputs.text_kv[0],
                timestep_cond=inputs.time_proj.to(inputs.sample.dtype),
                cross_attention_kwargs={"conditions": conditions},
                added_cond_kwargs=dict(zip(_ADDED_NAMES, inputs.added, strict=False)),
                down_block_additional_residuals=inputs.residuals[:-1] if inputs.residuals else None,
                mid_block_additional_residual=inputs.residuals[-1] if inputs.residuals else None,
                return_dict=False,
            )[0]

    def predict_keeping(self, inputs: DenoiserInputs) -> tuple[Tensor, Tensor]:
        """UNet: predict (R, C, h, w), and what of its deep part enters its last block (R, D, h, w)."""
        with seen_deep(self.unet) as seen:
            predicted = self.predict(inputs)
        (deep,) = seen
        return predicted, deep

    def recall(self, inputs: ShallowInputs) -> Tensor:
        """The UNet's shallow part: predict (R, C, h, w) with what was kept of its deep part."""
        grids = latent_grids(inputs.sample.shape, self.num_levels)
        text = dict(zip(self.shallow_layers, inputs.text_kv, strict=True))
        kv = tuple(text.get(index, inputs.sample) for index in range(len(self.layers)))
        conditions = RowConditions(kv, grids, inputs.mask_pyramid, inputs.tokens, inputs.scalars, deep=inputs.deep)
        with acting(inputs.adapters):
            return self.shallow(
                inputs.sample,
                inputs.time_proj[:, 0],
                inputs.sample,  # in the place of text, which no layer reads
                timestep_cond=inputs.time_proj.to(inputs.sample.dtype),
                cross_attention_kwargs={"conditions": conditions},
                added_cond_kwargs=dict(zip(_ADDED_NAMES, inputs.added, strict=False)),
                down_block_additional_residuals=inputs.residuals,
                mid_block_additional_residual=None if inputs.residuals is None else 0,
                return_dict=False,
            )[0]

    @property
    def splits(self) -> bool:
        """Whether the UNet's deep part can be kept."""
        return can_be_split(self.unet)

    @functools.cached_property
    def shallow_layers(self) -> tuple[int, ...]:
        """Indices of the cross-attention layers in the UNet's shallow part."""
        return shallow_layers(self.unet, self.layers)

    @functools.cached_property
    def shallow_share(self) -> float:
        """What a row costs in the shallow part, of what it costs in full."""
        return shallow_share(self.unet)

    @functools.cached_property
    def shallow(self) -> UNet2DConditionModel:
        """The UNet's shallow part, made when first asked for, of blocks as they run by then."""
        return shallow_part(self.unet)

    def control(self, inputs: ControlInputs, name: str | None = None) -> Residuals:
        """ControlNet, or the further one called `name`: residuals of its rows, times their scale."""
        return self.controller(name)(inputs)

    def residual_shapes(self, shape: tuple[int, int]) -> list[tuple[int, int, int]]:
        """(channels, height, width) of each residual for latents of `shape`."""
        config = self.unet.config
        grids = latent_grids(shape, self.num_levels)
        widths = config.block_out_channels
        layers = config.layers_per_block
        per_block = [layers] * len(widths) if isinstance(layers, int) else list(layers)
        shapes = [(widths[0], *grids[0])]
        for level, width in enumerate(widths):
            shapes += [(width, *grids[level])] * per_block[level]
            if level + 1 < len(widths):
                shapes.append((width, *grids[level + 1]))
        return [*shapes, (widths[-1], *grids[-1])]
