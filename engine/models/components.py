"""What one model consists of, whatever it was read from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..api.calibration import Calibration
from ..api.settings import Stage
from ..sampling.sampler import Sampler
from .adapters import Chosen
from .bank import Bank
from .lora import Adapter, adaptable
from .segmentation import Segmenter

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny, ControlNetModel, UNet2DConditionModel
    from torch import nn
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    from ..sampling.schedule import NoiseSchedule
    from .parts import Vae
    from .textual_inversion import Embedding


EMBEDDED = Path(__file__).parents[1] / "assets" / "model"
"""Folder of the model that comes with the package."""


@dataclass(frozen=True)
class Components:
    """Everything one model consists of.

    scheduler: the folder's noise schedule, prediction type and timestep spacing, whichever scheduler it named;
    sampler: how that one steps.
    calibration: similarity limits found for this model. bank: shapes gathered for it. hashes: SHA-256 of each part's
    configuration and weights. tokenizer_2, text_encoder_2: the second pair of SDXL, None elsewhere. zero_empty: whether
    zeros stand for an empty negative prompt. upcast_vae: whether the autoencoder overflows in fp16 and stays in fp32
    there. sources: what was named to load it from, as in `Outline`. preview_vae: a small autoencoder whose decoder
    shows drafts and previews, None where `vae` shows them too. controlnets: further ControlNets, by the names that
    requests know them by. embeddings: words that tokenizers and text encoders were taught. fused: adapters that are a
    part of the weights, each with its own weight; adapters: those that requests may name. whole: loads the model
    that this one stands for, whose networks hold no more than what is not compiled; None where all is there.
    """

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: Vae
    scheduler: NoiseSchedule
    controlnet: ControlNetModel | None
    segmenter: Segmenter | None
    calibration: Calibration | None
    name: str
    hashes: dict[str, str]
    tokenizer_2: CLIPTokenizer | None = None
    text_encoder_2: CLIPTextModelWithProjection | None = None
    zero_empty: bool = False
    upcast_vae: bool = False
    sources: Mapping[str, str] = field(default_factory=dict)
    bank: Bank | None = None
    preview_vae: AutoencoderTiny | None = None
    controlnets: Mapping[str, ControlNetModel] = field(default_factory=dict)
    embeddings: tuple[Embedding, ...] = ()
    fused: tuple[tuple[Adapter, float], ...] = ()
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    sampler: Sampler = field(default_factory=Sampler)
    whole: Callable[[], Components] | None = None

    @property
    def vae_scale_factor(self) -> int:
        """Pixels a side for each latent."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels that the model was trained at."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return height * self.vae_scale_factor, width * self.vae_scale_factor

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest prompt, its start and end included."""
        encoders = [encoder.config.max_position_embeddings for encoder in self.text_encoders]
        return min(*encoders, *(tokenizer.model_max_length for tokenizer in self.tokenizers))

    @property
    def tokenizers(self) -> tuple[CLIPTokenizer, ...]:
        """One, or two as in SDXL."""
        return (self.tokenizer,) if self.tokenizer_2 is None else (self.tokenizer, self.tokenizer_2)

    @property
    def text_encoders(self) -> tuple[CLIPTextModel | CLIPTextModelWithProjection, ...]:
        """One for each tokenizer."""
        return (self.text_encoder,) if self.text_encoder_2 is None else (self.text_encoder, self.text_encoder_2)

    def chosen(self, stage: Stage) -> Chosen:
        """Adapters of a stage by number, in the model's order."""
        return tuple((n, stage.lora[name]) for n, name in enumerate(self.adapters) if name in stage.lora)

    @property
    def adaptable(self) -> dict[str, dict[str, nn.Module]]:
        """Layers that an adapter may change, by part and name."""
        return adaptable(self.unet, self.text_encoder, self.text_encoder_2)
