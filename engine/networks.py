"""The denoising networks behind two calls: a UNet whose rows differ in everything, a ControlNet for some of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor, nn

from .attention import CrossLayer, MassRecord, RowConditions, install, latent_grids, text_kv

Residuals = tuple[Tensor, ...]
"""ControlNet's residuals: one for each down block, in order, then the mid block's."""


class ControlInputs(NamedTuple):
    """What one ControlNet call reads (R rows).

    sample (R, C, h, w); time_proj (R, F) float32: the timestep's sinusoids; text_kv: per cross-attention layer
    (R, T, 2 * inner); hint (R, width, h, w): embedded label maps; scale (R,) float32: strength.
    """

    sample: Tensor
    time_proj: Tensor
    text_kv: tuple[Tensor, ...]
    hint: Tensor
    scale: Tensor


class DenoiserInputs(NamedTuple):
    """What one UNet call reads (R rows, L cross-attention layers).

    sample (R, C, h, w); time_proj (R, F) float32: the timestep's sinusoids; text_kv: per layer (R, T, 2 * inner);
    mask_pyramid (R, P), tokens (R, 5, T) and scalars (R, L, 3) float32 as in `RowConditions`; residuals: None when no
    row is controlled, else zero in the rows that are not.
    """

    sample: Tensor
    time_proj: Tensor
    text_kv: tuple[Tensor, ...]
    mask_pyramid: Tensor
    tokens: Tensor
    scalars: Tensor
    residuals: Residuals | None = None
    record: MassRecord | None = None


@dataclass(frozen=True)
class EncodedText:
    """Keys and values of one prompt: per layer (T, 2 * inner), for the UNet and for the ControlNet."""

    unet: tuple[Tensor, ...]
    controlnet: tuple[Tensor, ...]


class EmbeddedHint(nn.Module):
    """Takes the place of a ControlNet's hint embedding: hints are embedded once a request and pass unchanged."""

    def __init__(self, embed: nn.Module) -> None:
        super().__init__()
        self.embed = embed

    def forward(self, hint: Tensor) -> Tensor:
        """Return the embedded hint."""
        return hint


class ProjectedTimestep(nn.Module):
    """Takes the place of a network's time embedding: the timestep's sinusoids come made, as its condition.

    A network that computes in bf16 throughout would round the timestep itself, and tell few integers above 256 apart;
    sinusoids lie within [-1, 1] and lose no more than anything else does. width: sinusoids of a timestep.
    """

    def __init__(self, project: nn.Module, embed: TimestepEmbedding) -> None:
        super().__init__()
        self.project = project
        self.embed = embed
        self.width: int = embed.linear_1.in_features

    def forward(self, _: Tensor, time_proj: Tensor) -> Tensor:
        """(R, F) -> (R, D)."""
        return self.embed(time_proj)


def _copied(layers: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Copies in one block of memory: views would keep their batch alive, and many small blocks fragment the heap."""
    flat = torch.cat([layer.flatten() for layer in layers])
    parts = flat.split([layer.numel() for layer in layers])
    return tuple(part.view_as(layer) for part, layer in zip(parts, layers, strict=True))


class Denoiser:
    """UNet and ControlNet with installed processors.

    Attributes: layers, the UNet's cross-attention layers; control_layers, the ControlNet's.
    """

    def __init__(self, unet: UNet2DConditionModel, controlnet: ControlNetModel | None) -> None:
        self.unet = unet
        self.controlnet = controlnet
        self.layers: tuple[CrossLayer, ...] = install(unet)
        _project_timesteps(unet)
        self.control_layers: tuple[CrossLayer, ...] = ()
        if controlnet is not None:
            self.control_layers = install(controlnet)
            _project_timesteps(controlnet)
            if not isinstance(controlnet.controlnet_cond_embedding, EmbeddedHint):
                controlnet.controlnet_cond_embedding = EmbeddedHint(controlnet.controlnet_cond_embedding)

    @property
    def num_levels(self) -> int:
        """Resolutions the UNet works at."""
        return len(self.unet.config.block_out_channels)

    @torch.inference_mode()
    def encode(self, text: Tensor) -> list[EncodedText]:
        """Text states (B, T, D) -> keys and values of each prompt."""
        unet = text_kv(self.unet, self.layers, text)
        control = text_kv(self.controlnet, self.control_layers, text) if self.controlnet is not None else []

        def prompt(i: int) -> EncodedText:
            own = _copied([kv[i] for kv in (*unet, *control)])
            return EncodedText(own[: len(unet)], own[len(unet) :])

        return [prompt(i) for i in range(len(text))]

    @torch.inference_mode()
    def embed_hint(self, hint: Tensor) -> Tensor:
        """Control images (B, 3, H, W) in [0, 1] -> (B, width, h, w)."""
        assert self.controlnet is not None
        return self.controlnet.controlnet_cond_embedding.embed(hint)

    def time_proj(self, timesteps: Tensor) -> Tensor:
        """Timesteps (R,) -> the sinusoids (R, F) float32 that the UNet reads."""
        return self.unet.time_embedding.project(timesteps)

    def control_time_proj(self, timesteps: Tensor) -> Tensor:
        """Timesteps (R,) -> the sinusoids (R, F) float32 that the ControlNet reads."""
        assert self.controlnet is not None
        return self.controlnet.time_embedding.project(timesteps)

    def predict(self, inputs: DenoiserInputs) -> Tensor:
        """UNet: predict (R, C, h, w)."""
        grids = latent_grids(inputs.sample.shape, self.num_levels)
        conditions = RowConditions(
            inputs.text_kv, grids, inputs.mask_pyramid, inputs.tokens, inputs.scalars, inputs.record
        )
        return self.unet(
            inputs.sample,
            inputs.time_proj[:, 0],  # a timestep for each row, which nothing reads
            inputs.text_kv[0],
            timestep_cond=inputs.time_proj.to(inputs.sample.dtype),
            cross_attention_kwargs={"conditions": conditions},
            down_block_additional_residuals=inputs.residuals[:-1] if inputs.residuals else None,
            mid_block_additional_residual=inputs.residuals[-1] if inputs.residuals else None,
            return_dict=False,
        )[0]

    def control(self, inputs: ControlInputs) -> Residuals:
        """ControlNet: residuals of its rows, times their scale."""
        assert self.controlnet is not None
        grids = latent_grids(inputs.sample.shape, self.num_levels)
        down, mid = self.controlnet(
            inputs.sample,
            inputs.time_proj[:, 0],
            inputs.text_kv[0],
            inputs.hint,
            timestep_cond=inputs.time_proj.to(inputs.sample.dtype),
            conditioning_scale=inputs.scale.to(inputs.sample.dtype).view(-1, 1, 1, 1),
            cross_attention_kwargs={"conditions": RowConditions(inputs.text_kv, grids)},
            return_dict=False,
        )
        return (*down, mid)

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


def _project_timesteps(network: UNet2DConditionModel | ControlNetModel) -> None:
    """Let `network` take its timesteps projected."""
    if not isinstance(network.time_embedding, ProjectedTimestep):
        network.time_embedding = ProjectedTimestep(network.time_proj, network.time_embedding)
        network.time_proj = nn.Identity()
