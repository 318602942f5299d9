"""A diffusers folder, or a hub id, to the networks in it, checked to fit together."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, SchedulerMixin, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ..api.calibration import Calibration
from . import controls, layout, memory, parts
from .adapters import fuse, fused_hashes, keep, kept_name
from .bank import Bank
from .components import EMBEDDED, Components
from .fitting import check_fit
from .layout import Source
from .lora import Fused, read_adapter
from .model_index import PIPELINES
from .outline import Outline, outlined
from .parts import Vae
from .textual_inversion import (
    Inversions,
    extend_encoder,
    extended_hashes,
    extended_tokenizer,
    read_embeddings,
    room_for_words,
)

__all__ = ["EMBEDDED", "PIPELINES", "Components", "filled", "load", "sketched"]


def load(
    source: Source | None = None,
    *,
    controlnet: controls.Chosen | None = None,
    segmenter: Source | None = None,
    vae: Source | Vae | None = None,
    preview_vae: Source | AutoencoderTiny | None = None,
    scheduler: SchedulerMixin | None = None,
    embeddings: Inversions = (),
    lora: Fused = (),
    adapters: Mapping[str, Source] | None = None,
    variant: str | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    prediction_type: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Components:
    """Load a Stable Diffusion 1.x, 2.x or XL out of a folder, a single file or a hub id `owner/name`.

    source: None for the embedded model. controlnet, segmenter, vae: folders or hub ids that take the place of the
    model's own parts; controlnet and vae may be single files, vae an autoencoder in memory, controlnet several, further
    ones as NAME=PATH. preview_vae: an AutoencoderTiny, as TAESD is, that shows drafts and previews. scheduler: one
    whose configuration takes the place of the model's. embeddings: files of textual inversions, FILE or FILE:TOKEN.
    lora: files of adapters to be fused, FILE or FILE:WEIGHT; adapters: files of those that requests may name. variant:
    of weights ("fp16") that is taken where a part has it; "ema" of a single file that holds averages too. revision: of
    the hub id. subfolder: of the folder, in which the model lies. prediction_type: what the UNet predicts, in the place
    of what the model's files say. Only safetensors are read, and none before it is known that the parts fit together.
    Raises CheckpointError for what cannot be loaded or does not.
    """
    outline = outlined(
        source,
        controlnet=controlnet,
        segmenter=segmenter,
        vae=vae,
        preview_vae=preview_vae,
        scheduler=scheduler,
        embeddings=embeddings,
        lora=lora,
        adapters=adapters,
        variant=variant,
        revision=revision,
        subfolder=subfolder,
        prediction_type=prediction_type,
    )
    return filled(sketched(outline), outline, dtype, device)


def sketched(outline: Outline) -> Components:
    """All that is known of a model before its weights are read: its networks have shapes and hold nothing.

    Neither are there hashes. What was given in memory is there already, as its twin. Raises CheckpointError for parts
    that do not fit together.
    """
    folders, given, files, xl = outline.folders, outline.given, outline.files, outline.xl
    forced: dict[str, Any] = {} if xl else {"steps_offset": 1}
    forced |= {} if outline.prediction is None else {"prediction_type": outline.prediction}

    def make(cls: type, name: str) -> Any:
        if name in files:
            return files[name].sketched()
        if name in given:
            return memory.twin(given[name], controls.kind_of(name))
        return layout.sketched_module(cls, folders[name])

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
    return _with_adapters(_with_words(components, outline), outline)


def _with_words(components: Components, outline: Outline) -> Components:
    """A sketch whose tokenizers know the words of the embeddings that were named."""
    if not outline.embeddings:
        return components
    widths, most = [each.config.hidden_size for each in components.text_encoders], room_for_words(components.max_tokens)
    embeddings = read_embeddings(outline.embeddings, components.tokenizer, widths, most)
    first, *second = [extended_tokenizer(each, embeddings) for each in components.tokenizers]
    return replace(components, tokenizer=first, tokenizer_2=second[0] if second else None, embeddings=embeddings)


def _with_adapters(components: Components, outline: Outline) -> Components:
    """A sketch with the adapters that were named, which must fit it."""
    layers, counted = components.adaptable, components.unet.config.layers_per_block
    per_block = counted if isinstance(counted, int) else max(counted)
    return replace(
        components,
        fused=tuple((read_adapter(path, layers, per_block), weight) for path, weight in outline.fused),
        adapters={name: read_adapter(path, layers, per_block) for name, path in outline.adapters.items()},
    )


def filled(sketch: Components, outline: Outline, dtype: torch.dtype, device: torch.device | str) -> Components:
    """The model of a sketch with its weights, in `dtype` on `device`, and the hashes of what was loaded.

    Its networks are given them, and so it is a sketch no more.
    """
    folders, given, files, variant = outline.folders, outline.given, outline.files, outline.variant

    def make(cls: type, name: str) -> Any:
        kept = torch.float32 if name == "vae" and sketch.upcast_vae and dtype is torch.float16 else dtype
        if name in given:
            return memory.placed(_part(sketch, name), device, kept)
        if name in files:
            return files[name].loaded(kept, device)
        return layout.load_module(cls, _part(sketch, name), folders[name], kept, device, variant)

    hashes = {name: layout.digest(part, variant) for name, part in folders.items()}
    hashes |= {name: memory.digest(part) for name, part in given.items()}
    hashes |= {name: part.digest() for name, part in files.items()}
    hashes = fused_hashes(extended_hashes(hashes, sketch.embeddings), sketch.fused)
    hashes |= {kept_name(name): adapter.sha256 for name, adapter in sketch.adapters.items()}
    made = replace(sketch, hashes=hashes, **_networks(outline, make))
    for number, (tokenizer, encoder) in enumerate(zip(made.tokenizers, made.text_encoders, strict=True)):
        extend_encoder(encoder, tokenizer, made.embeddings, number)
    fuse(made.adaptable, sketch.fused)
    keep(made.adaptable, [*sketch.adapters.values()])
    return made


def _part(components: Components, name: str) -> Any:
    """A network by the name of its part."""
    further = name.startswith(controls.PART)
    return components.controlnets[name.removeprefix(controls.PART)] if further else getattr(components, name)


def _networks(outline: Outline, make: Callable[[type, str], Any]) -> dict[str, Any]:
    """Each network of a model, made by `make` of its class and its part's name."""
    folders, there = outline.folders, {*outline.folders, *outline.given, *outline.files}
    made: dict[str, Any] = {
        "text_encoder": make(CLIPTextModel, "text_encoder"),
        "text_encoder_2": make(CLIPTextModelWithProjection, "text_encoder_2") if outline.xl else None,
        "unet": make(UNet2DConditionModel, "unet"),
        "vae": make(parts.vae_class(folders["vae"]) if "vae" in folders else AutoencoderKL, "vae"),
        "preview_vae": make(AutoencoderTiny, "preview_vae") if "preview_vae" in there else None,
        "controlnet": parts.controlnet(make(ControlNetModel, "controlnet")) if "controlnet" in there else None,
        "segmenter": parts.segmenter(folders["segmenter"], make) if "segmenter" in folders else None,
        "controlnets": {
            name.removeprefix(controls.PART): parts.controlnet(make(ControlNetModel, name))
            for name in (*outline.folders, *outline.given, *outline.files)
            if name.startswith(controls.PART)
        },
    }
    return made
