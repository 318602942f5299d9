"""A diffusers folder, or a hub id, to the networks in it, checked to fit together."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ..api.calibration import Calibration
from ..api.errors import CheckpointError
from ..api.reading import shown
from . import configs, layout, parts
from .bank import FILE as BANK_FILE
from .bank import Bank
from .layout import Source
from .networks import NUM_SIZES
from .parts import Vae
from .segmentation import Segmenter

EMBEDDED = Path(__file__).parents[1] / "assets" / "model"
"""Folder of the model that comes with the package."""

_XL_PIPELINES = ("StableDiffusionXLPipeline", "StableDiffusionXLControlNetPipeline", "StableDiffusionXLImg2ImgPipeline")

PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionImg2ImgPipeline",
    *_XL_PIPELINES,
)
"""Pipelines of diffusers whose folders are read."""

_REQUIRED = ("tokenizer", "text_encoder", "unet", "vae", "scheduler")
_XL_REQUIRED = (*_REQUIRED, "tokenizer_2", "text_encoder_2")
_OPTIONAL = ("controlnet", "segmenter")
_INDEX_KEYS = frozenset({
    "_class_name", "_diffusers_version", "_name_or_path", "safety_checker", "feature_extractor", "image_encoder",
    "requires_safety_checker", "force_zeros_for_empty_prompt", "add_watermarker", "requires_aesthetics_score",
})  # fmt: skip
"""What else an index says: parts that check or describe pictures, and settings."""
_FILES = ("*.json", "*.txt", "*.safetensors")
_MODEL_FILES = (
    "model_index.json",
    "calibration.json",
    BANK_FILE,
    *(f"{p}/{f}" for p in _XL_REQUIRED + _OPTIONAL for f in _FILES),
)


_READING_ADDED = (
    "addition_embed_type",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
    "flip_sin_to_cos",
    "freq_shift",
)


@dataclass(frozen=True)
class Components:
    """Everything one model consists of.

    scheduler: the folder's noise schedule, prediction type and timestep spacing, whichever scheduler it named.
    calibration: similarity limits found for this model. bank: shapes gathered for it. hashes: SHA-256 of each part's
    configuration and weights. tokenizer_2, text_encoder_2: the second pair of SDXL, None elsewhere. zero_empty: whether
    zeros stand for an empty negative prompt. upcast_vae: whether the autoencoder overflows in fp16 and stays in fp32
    there. sources: what was named to load it from, of source, controlnet and segmenter; a folder by its full path.
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
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Components:
    """Load a Stable Diffusion 1.x, 2.x or XL folder, or a hub id `owner/name`; the embedded model if `source` is None.

    `controlnet` and `segmenter` name folders or hub ids that take the place of the folder's own parts. Only
    safetensors are read. Raises CheckpointError for what cannot be loaded or does not fit together.
    """
    folder = layout.locate(EMBEDDED if source is None else source, _MODEL_FILES)
    index = layout.read_json(folder / "model_index.json")
    folders = _folders(folder, index, {"controlnet": controlnet, "segmenter": segmenter})
    calibration, bank = folder / "calibration.json", folder / BANK_FILE
    xl = "text_encoder_2" in folders
    upcast_vae = xl and layout.read_json(folders["vae"] / "config.json").get("force_upcast", True)
    vae_dtype = torch.float32 if upcast_vae and dtype is torch.float16 else dtype

    def network(cls: Any, name: str, dtype: torch.dtype = dtype) -> Any:
        return layout.load_module(cls, folders[name], dtype, device) if name in folders else None

    components = Components(
        tokenizer=parts.tokenizer(folders["tokenizer"]),
        text_encoder=network(CLIPTextModel, "text_encoder"),
        unet=network(UNet2DConditionModel, "unet"),
        vae=network(parts.vae_class(folders["vae"]), "vae", vae_dtype),
        scheduler=parts.scheduler(folders["scheduler"], {} if xl else {"steps_offset": 1}),
        controlnet=parts.controlnet(folders["controlnet"], dtype, device) if "controlnet" in folders else None,
        segmenter=parts.segmenter(folders["segmenter"], dtype, device) if "segmenter" in folders else None,
        calibration=Calibration.load(calibration) if os.path.lexists(calibration) else None,
        name="embedded" if source is None else str(source),
        hashes={name: layout.digest(part) for name, part in folders.items()},
        tokenizer_2=parts.tokenizer(folders["tokenizer_2"]) if xl else None,
        text_encoder_2=network(CLIPTextModelWithProjection, "text_encoder_2"),
        zero_empty=xl and index.get("force_zeros_for_empty_prompt", True),
        upcast_vae=upcast_vae,
        sources=_named(source=source, controlnet=controlnet, segmenter=segmenter),
        bank=Bank.load(bank) if os.path.lexists(bank) else None,
    )
    _check_size(components)
    _check_text(components)
    _check_added(components)
    _check_latents(components)
    if components.controlnet is not None:
        _check_controlnet(components)
    return components


def _named(**sources: Source | None) -> dict[str, str]:
    """What was named, a folder by its full path, so that a replay finds it from anywhere."""
    named = {part: source for part, source in sources.items() if source is not None}
    return {part: str(Path(name).resolve()) if Path(name).exists() else str(name) for part, name in named.items()}


def _folders(folder: Path, index: dict[str, Any], replaced: dict[str, Source | None]) -> dict[str, Path]:
    """Folder of each part, by name, once the checkpoint's layout is known to be one that is served."""
    pipeline = index.get("_class_name")
    if pipeline not in PIPELINES:
        raise CheckpointError(f"{folder} holds a {pipeline}; the layouts served are those of {', '.join(PIPELINES)}")
    if index.get("requires_aesthetics_score"):
        raise CheckpointError(f"{folder} asks for an aesthetics score, as SDXL's refiner does; give the base model")
    _check_index(folder, index)
    required = _XL_REQUIRED if pipeline in _XL_PIPELINES else _REQUIRED
    missing = [name for name in required if not (folder / name).is_dir()]
    if missing:
        raise CheckpointError(f"{folder} lacks {', '.join(missing)}; a {pipeline} needs {', '.join(required)}")
    folders = {name: folder / name for name in required}
    for name in _OPTIONAL:
        source = replaced[name]
        if source is not None:
            folders[name] = layout.locate(source, _FILES)
        elif (folder / name).is_dir():
            folders[name] = folder / name
            _check_single(folder, name)
    for name, part in folders.items():
        layout.check_files(part)
        if name not in ("tokenizer", "tokenizer_2", "scheduler"):
            layout.weights(part)  # a part that cannot be read is found before any other is loaded
    return folders


def _check_index(folder: Path, index: dict[str, Any]) -> None:
    """Every part that the index names must be one that is read, or one that a picture does not depend on."""
    configs.check_code(folder, index)
    for name, value in index.items():
        library = value[0] if isinstance(value, list) and value else None
        if name in _XL_REQUIRED + _OPTIONAL:
            if library is not None and library not in ("diffusers", "transformers"):
                raise CheckpointError(
                    f"{folder} takes its {name} from {shown(repr(value), 80)}, code that is not run here"
                )
        elif name not in _INDEX_KEYS and value not in (None, [None, None]):
            raise CheckpointError(
                f"{folder} names a part {shown(name, 80)}, {shown(repr(value), 80)}, which is not served; the parts "
                f"served are {', '.join(_XL_REQUIRED + _OPTIONAL)}"
            )
    if isinstance(control := index.get("controlnet"), list) and "MultiControlNetModel" in control:
        raise CheckpointError(f"{folder} holds several ControlNets; give one, with controlnet=...")


def _check_single(folder: Path, name: str) -> None:
    """Raise CheckpointError for `name_1` and so on beside the part `name`, which diffusers would run together."""
    if more := sorted(path.name for path in folder.glob(f"{name}_[0-9]*")):
        raise CheckpointError(
            f"{folder} holds {name} and {shown(', '.join(more), 80)}; one is served, name it with {name}=..."
        )


def _require(fits: bool, what: str, found: Any, wanted: Any) -> None:
    if not fits:
        raise CheckpointError(f"{what} is {found}, but must be {wanted}")


def _check_size(components: Components) -> None:
    size = components.unet.config.sample_size
    sides = [size, size] if isinstance(size, int) else size
    fits = (
        isinstance(sides, list | tuple)
        and len(sides) == 2
        and all(isinstance(side, int) and not isinstance(side, bool) and 0 < side <= 1024 for side in sides)
    )
    _require(fits, "the UNet's sample_size", size, "a number of latents from 1 to 1024, or two")


def _check_text(components: Components) -> None:
    unet, texts = components.unet.config, [encoder.config for encoder in components.text_encoders]
    width = sum(text.hidden_size for text in texts)
    _require(
        unet.cross_attention_dim == width,
        "the UNet's cross_attention_dim", unet.cross_attention_dim, f"the width of the text, {width}",
    )  # fmt: skip
    for tokenizer, text in zip(components.tokenizers, texts, strict=True):
        wanted = f"at most the text encoder's {text.vocab_size}"
        _require(len(tokenizer) <= text.vocab_size, "the tokenizer's size", len(tokenizer), wanted)
    for name in ("class_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim"):
        _require(unet[name] is None, f"the UNet's {name}", unet[name], "None, as in Stable Diffusion")


def _check_added(components: Components) -> None:
    """The UNet must read what the text encoders give beside states: nothing, or in SDXL pooled text, with sizes."""
    unet, second = components.unet.config, components.text_encoder_2
    if second is None:
        wanted = "None where there is one text encoder, as in Stable Diffusion 1.x and 2.x"
        _require(unet.addition_embed_type is None, "the UNet's addition_embed_type", unet.addition_embed_type, wanted)
        return
    wanted = "text_time where there are two text encoders, as in SDXL"
    _require(
        unet.addition_embed_type == "text_time", "the UNet's addition_embed_type", unet.addition_embed_type, wanted
    )
    read, pooled = unet.projection_class_embeddings_input_dim, second.config.projection_dim
    _require(
        read == pooled + NUM_SIZES * unet.addition_time_embed_dim,
        "the UNet's projection_class_embeddings_input_dim", read,
        f"that of pooled text ({pooled}) and {NUM_SIZES} numbers of sizes (each {unet.addition_time_embed_dim}), "
        "as in SDXL's base model",
    )  # fmt: skip
    vocabularies = [tokenizer.get_vocab() for tokenizer in components.tokenizers]
    _require(vocabularies[0] == vocabularies[1], "tokenizer_2's vocabulary", "another", "the tokenizer's")


def _check_latents(components: Components) -> None:
    unet, vae = components.unet.config, components.vae.config
    for name in ("in_channels", "out_channels"):
        _require(vae[name] == 3, f"the autoencoder's {name}", vae[name], "3, for red, green and blue")
        wanted = f"{vae.latent_channels}, the autoencoder's latent channels"
        _require(unet[name] == vae.latent_channels, f"the UNet's {name}", unet[name], wanted)
    for name in ("latents_mean", "latents_std"):
        _require(
            vae.get(name) is None, f"the autoencoder's {name}", vae.get(name), "None, one scaling for all channels"
        )


def _residual_channels(unet: UNet2DConditionModel) -> list[int]:
    """Channels of each residual that a ControlNet adds to the UNet's skip connections."""
    channels = [unet.conv_in.out_channels]
    for block in unet.down_blocks:
        channels += [layer.out_channels for layer in (*block.resnets, *(block.downsamplers or ()))]
    return channels


def _check_controlnet(components: Components) -> None:
    assert components.controlnet is not None
    unet, control = components.unet.config, components.controlnet.config
    _require(
        control.conditioning_channels == 3, "the ControlNet's conditioning_channels", control.conditioning_channels,
        "3, for a label map's red, green and blue",
    )  # fmt: skip
    for name in ("in_channels", "cross_attention_dim", "block_out_channels", *_READING_ADDED):
        wanted, found = (tuple(v) if isinstance(v, list) else v for v in (unet[name], control[name]))
        _require(found == wanted, f"the ControlNet's {name}", found, f"the UNet's {wanted}")
    residuals = [convolution.out_channels for convolution in components.controlnet.controlnet_down_blocks]
    wanted = _residual_channels(components.unet)
    _require(residuals == wanted, "the channel count of the ControlNet's residuals", residuals, f"the UNet's {wanted}")
    shrinks, factor = 2 ** (len(control.conditioning_embedding_out_channels) - 1), components.vae_scale_factor
    _require(shrinks == factor, "the ControlNet's hint pixels per latent", shrinks, f"the autoencoder's {factor}")
    _require(not control.global_pool_conditions, "the ControlNet's global_pool_conditions", True, "False")
