"""A diffusers folder, or a hub id, to the networks in it, checked to fit together."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, SchedulerMixin, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ..api.calibration import Calibration
from ..sampling.sampler import Sampler
from . import layout, memory, parts
from .bank import Bank
from .fitting import check_fit
from .layout import Source
from .outline import EMBEDDED, PIPELINES, Outline, outlined
from .parts import Vae
from .segmentation import Segmenter

__all__ = ["EMBEDDED", "PIPELINES", "Components", "filled", "load", "sketched"]


@dataclass(frozen=True)
class Components:
    """Everything one model consists of.

    scheduler: the folder's noise schedule, prediction type and timestep spacing, whichever scheduler it named;
    sampler: how that one steps.
    calibration: similarity limits found for this model. bank: shapes gathered for it. hashes: SHA-256 of each part's
    configuration and weights. tokenizer_2, text_encoder_2: the second pair of SDXL, None elsewhere. zero_empty: whether
    zeros stand for an empty negative prompt. upcast_vae: whether the autoencoder overflows in fp16 and stays in fp32
    there. sources: what was named to load it from, as in `Outline`.
    """

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    vae: Vae
    scheduler: DDIMScheduler
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
    sampler: Sampler = field(default_factory=Sampler)

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


def load(
    source: Source | None = None,
    *,
    controlnet: Source | None = None,
    segmenter: Source | None = None,
    vae: Source | Vae | None = None,
    scheduler: SchedulerMixin | None = None,
    variant: str | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Components:
    """Load a Stable Diffusion 1.x, 2.x or XL folder, or a hub id `owner/name`; the embedded model if `source` is None.

    controlnet, segmenter, vae: folders or hub ids that take the place of the folder's own parts; vae may be an
    autoencoder in memory. scheduler: one whose configuration takes the place of the folder's. variant: of weights
    ("fp16") that is taken where a part has it. revision: of the hub id. subfolder: of the folder, in which the model
    lies. Only safetensors are read, and none before it is known that the parts fit together. Raises CheckpointError for
    what cannot be loaded or does not.
    """
    outline = outlined(
        source,
        controlnet=controlnet,
        segmenter=segmenter,
        vae=vae,
        scheduler=scheduler,
        variant=variant,
        revision=revision,
        subfolder=subfolder,
    )
    return filled(sketched(outline), outline, dtype, device)


def sketched(outline: Outline) -> Components:
    """All that is known of a model before its weights are read: its networks have shapes and hold nothing.

    Neither are there hashes. What was given in memory is there already, as its twin. Raises CheckpointError for parts
    that do not fit together.
    """
    folders, given, xl = outline.folders, outline.given, outline.xl
    forced = {} if xl else {"steps_offset": 1}

    def make(cls: type, name: str) -> Any:
        return memory.twin(given[name], name) if name in given else layout.sketched_module(cls, folders[name])

    def tokenizer(name: str) -> CLIPTokenizer:
        return memory.tokenizer(given[name], name) if name in given else parts.tokenizer(folders[name])

    if "scheduler" in given:
        scheduler, sampler = memory.schedule(given["scheduler"], forced), memory.sampler(given["scheduler"], xl)
    else:
        scheduler, sampler = parts.scheduler(folders["scheduler"], forced), parts.sampler(folders["scheduler"], xl)
    components = Components(
        tokenizer=tokenizer("tokenizer"),
        tokenizer_2=tokenizer("tokenizer_2") if xl else None,
        scheduler=scheduler,
        sampler=sampler,
        calibration=Calibration.load(outline.calibration) if outline.calibration is not None else None,
        bank=Bank.load(outline.bank) if outline.bank is not None else None,
        name=outline.sources.get("source", "embedded"),
        hashes={},
        zero_empty=outline.zero_empty,
        sources=outline.sources,
        **_networks(outline, make),
    )
    components = replace(components, upcast_vae=xl and bool(components.vae.config.get("force_upcast", True)))
    check_fit(components)
    return components


def filled(sketch: Components, outline: Outline, dtype: torch.dtype, device: torch.device | str) -> Components:
    """The model of a sketch with its weights, in `dtype` on `device`, and the hashes of what was loaded."""
    folders, given, variant = outline.folders, outline.given, outline.variant

    def make(cls: type, name: str) -> Any:
        kept = torch.float32 if name == "vae" and sketch.upcast_vae and dtype is torch.float16 else dtype
        if name in given:
            return memory.placed(getattr(sketch, name), device, kept)
        return layout.load_module(cls, folders[name], kept, device, variant)

    hashes = {name: layout.digest(part, variant) for name, part in folders.items()}
    hashes |= {name: memory.digest(part) for name, part in given.items()}
    return replace(sketch, hashes=hashes, **_networks(outline, make))


def _networks(outline: Outline, make: Callable[[type, str], Any]) -> dict[str, Any]:
    """Each network of a model, made by `make` of its class and its part's name."""
    folders, there = outline.folders, {*outline.folders, *outline.given}
    made: dict[str, Any] = {
        "text_encoder": make(CLIPTextModel, "text_encoder"),
        "text_encoder_2": make(CLIPTextModelWithProjection, "text_encoder_2") if outline.xl else None,
        "unet": make(UNet2DConditionModel, "unet"),
        "vae": make(parts.vae_class(folders["vae"]) if "vae" in folders else AutoencoderKL, "vae"),
        "controlnet": parts.controlnet(make(ControlNetModel, "controlnet")) if "controlnet" in there else None,
        "segmenter": parts.segmenter(folders["segmenter"], make) if "segmenter" in folders else None,
    }
    return made
