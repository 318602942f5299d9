"""Single safetensors files as people share them: a whole model, a ControlNet or an autoencoder in one.

What a file holds is told from the names and shapes in its header, before weights are read; what is not served is
refused by its name.
"""

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from ..api.errors import CheckpointError, TwigWarning
from ..api.reading import shown
from . import ldm, published
from .clip_tokenizer import clip_tokenizer
from .file_parts import FilePart
from .fitting import INPUTS
from .tensor_files import Entry, Header, read_header
from .tensor_reading import KINDS

SD1, SD2, XL = "Stable Diffusion 1.x", "Stable Diffusion 2.x", "SDXL"
AVERAGED = "ema"
"""The variant of weights that takes the average over training, where a file holds it beside the weights."""

_MODEL, _CONTROLNET, _AUTOENCODER = "a model", "a ControlNet", "an autoencoder"
_HOLDS = (
    ("a model in eight bits with scales of their own", r"^scaled_fp8$|\.(scale_weight|weight_scale|SCB)$"),
    ("a model in four bits (bitsandbytes)", r"\.quant_state\.|\.quant_map$"),
    ("CosXL", r"^edm_vpred\."),
    ("a ControlNet-LLLite", r"^lllite_"),
    ("a control-LoRA", r"^lora_controlnet$"),
    ("a union ControlNet", r"^(control_add_embedding|task_embedding)\b"),
    ("a T2I-Adapter", r"^(adapter\.)?body\.\d"),
    ("an IP-Adapter", r"^(ip_adapter|image_proj)\."),
    ("a LoRA", r"lora_(up|down|A|B)\b|^lora_|\.hada_w|\.lokr_w"),
    ("a textual inversion", r"^(emb_params|string_to_param|clip_[lg])$"),
    ("Stable Diffusion 3", r"joint_blocks\.\d"),
    ("a Flux model", r"double_blocks\.\d+\.img_"),
    ("a model with motion modules", r"motion_modules?\."),
    ("SDXL's refiner", r"^conditioner\.embedders\.0\.model\."),
    ("Playground v2.5", r"^edm_mean$"),
    (_CONTROLNET, r"^control_model\.|^input_hint_block\.|^controlnet_cond_embedding\."),
    (_MODEL, r"^model\.diffusion_model\.input_blocks\.0\."),
    (_AUTOENCODER, r"^(first_stage_model\.)?(decoder\.(up|mid|up_blocks)\.|decoder\.layers\.\d)"),
    ("a segmenter", r"^(decode_head|model\.pixel_level_module)\."),
    ("a UNet without the rest of its model", r"^down_blocks\.\d+\.resnets\.|^input_blocks\.0\."),
    ("a text encoder", r"^text_model\."),
)
"""What files hold, and a name of a tensor that no other has; the first that is there says it."""
_ADVICE = {
    _MODEL: "name it as the model",
    _CONTROLNET: "give it with controlnet=...",
    _AUTOENCODER: "give it with vae=...",
    "a LoRA": "give it with lora=...",
    "a textual inversion": "give it with embeddings=...",
    "a segmenter": "give its folder with segmenter=...",
}
_TEXTS = (ldm.CLIP, ldm.OPEN_CLIP, ldm.XL_CLIP, ldm.XL_OPEN_CLIP)
_IDLE = re.compile(
    r"(betas|alphas_cumprod(_prev)?|(sqrt|log)_\w+|posterior_\w+|lvlb_weights|logvar|scale_factor|global_step"
    r"|v_pred|ztsnr|denoiser\.\w+|model_ema\..*|first_stage_model\.(loss|model_ema)\..*|loss\..*|logit_scale"
    r"|(cond_stage_model|conditioner\.embedders\.\d)\..*\b(position_ids|logit_scale|attn_mask)"
    r"|cond_stage_model\.(transformer\.(text_model\.)?text_projection\.weight|model\.text_projection)"
    r"|cond_stage_model\.model\.transformer\.resblocks\.23\..*)"
)
"""Tensors that no picture depends on: buffers of noise schedules, losses of training, a layer that is never run."""
_SIDES = {SD1: 64, SD2: 96, XL: 128}
_BASE_SIDE = 64


@dataclass(frozen=True)
class Found:
    """A model in a single file. files: its networks, by part. given: its tokenizers and schedule. xl: as in SDXL."""

    files: Mapping[str, FilePart]
    given: Mapping[str, Any]
    xl: bool


def named(source: object) -> Path | None:
    """The file that `source` names, if it is one of safetensors."""
    path = Path(source).expanduser() if isinstance(source, str | Path) else None
    return path if path is not None and path.suffix == ".safetensors" and path.is_file() else None


def model(file: Path, variant: str | None = None, prediction: str | None = None, own_vae: bool = True) -> Found:
    """The model in `file`. Raises CheckpointError for what is none or is not served.

    variant: AVERAGED takes the averaged weights. prediction: type that the user names. own_vae: whether the file's
    autoencoder is wanted.
    """
    header = _header(file, _MODEL)
    _check_inputs(file, header)
    names = {name for name in header.tensors if not _IDLE.fullmatch(name)}
    family = _family(file, names)
    texts = tuple(prefix for prefix in _TEXTS if any(name.startswith(prefix) for name in names))
    if strange := sorted(name for name in names if not name.startswith((ldm.UNET, ldm.VAE, *texts))):
        raise CheckpointError(
            f"{shown(file)} holds {len(strange)} tensors that are none of {family}'s, among them "
            f"{shown(strange[0], 120)}; what is not read is not served"
        )
    if own_vae and not any(name.startswith(ldm.VAE) for name in names):
        raise CheckpointError(f"{shown(file)} holds no autoencoder; name one with vae=...")
    predicted = prediction or _prediction(file, family, header)
    side = _side(family, predicted, header)
    unet_names = {name for name in names if name.startswith(ldm.UNET)}
    entries = _checked(file, header, names) | _averages(file, header, unet_names, variant)

    def part(cls: Any, prefix: str, rename: Any, configure: Any) -> FilePart:
        own = {name: entry for name, entry in entries.items() if name.startswith(prefix)}
        return FilePart(file, cls, own, rename, configure)

    xl = family is XL
    files = {
        "unet": part(UNet2DConditionModel, ldm.UNET, ldm.unet, partial(published.unet, side=side)),
        "text_encoder": _text(part, texts[0], CLIPTextModel),
    }
    if own_vae:
        files["vae"] = part(AutoencoderKL, ldm.VAE, ldm.autoencoder, partial(published.autoencoder, xl=xl))
    if xl:
        files["text_encoder_2"] = _text(part, ldm.XL_OPEN_CLIP, CLIPTextModelWithProjection)
    schedule = published.scheduler(family, predicted, "ztsnr" in header.tensors)
    tokenizers = {"tokenizer": clip_tokenizer("!") if family is SD2 else clip_tokenizer()}
    tokenizers |= {"tokenizer_2": clip_tokenizer("!")} if xl else {}
    return Found(files, {**tokenizers, "scheduler": schedule}, xl)


def controlnet(file: Path) -> FilePart:
    """The ControlNet in `file`. Raises CheckpointError for what is none."""
    header = _header(file, _CONTROLNET)
    names = {name for name in header.tensors if not _IDLE.fullmatch(name)}
    if whole := {name for name in names if name.startswith(ldm.CONTROL)}:
        # A model that lies beside its ControlNet, as training left it, is not read.
        names = whole | {name for name in names if not name.startswith((ldm.UNET, ldm.VAE, *_TEXTS))}
    return FilePart(file, ControlNetModel, _checked(file, header, names), ldm.controlnet, published.controlnet)


def autoencoder(file: Path, xl: bool) -> FilePart:
    """The autoencoder in `file`, in the file of a whole model too. xl: whether it is for SDXL, by whose scale it is."""
    header = _header(file, _AUTOENCODER, (_MODEL,))
    names = {name for name in header.tensors if not _IDLE.fullmatch(name)}
    names = {name for name in names if name.startswith(ldm.VAE)} or names
    tiny = any(name.removeprefix(ldm.VAE).startswith("decoder.layers.") for name in names)
    configure = partial(published.autoencoder, xl=xl)
    cls = AutoencoderTiny if tiny else AutoencoderKL
    return FilePart(file, cls, _checked(file, header, names), ldm.autoencoder, configure)


def _header(file: Path, wanted: str, also: tuple[str, ...] = ()) -> Header:
    """The header of a file that holds what is `wanted`; of anything else it is said what it is."""
    header = read_header(file)
    held = next((what for what, name in _HOLDS if any(re.search(name, key) for key in header.tensors)), None)
    if held is None:
        first = ", ".join(sorted(header.tensors)[:3])
        raise CheckpointError(
            f"{shown(file)} holds nothing that is known here; its tensors are {shown(first, 120)}; served in one file "
            "are Stable Diffusion 1.x, 2.x and XL, their ControlNets and autoencoders"
        )
    if held not in (wanted, *also):
        advice = f", not {wanted}; {_ADVICE[held]}" if held in _ADVICE else ", which is not served"
        raise CheckpointError(f"{shown(file)} holds {held}{advice}")
    return header


def _check_inputs(file: Path, header: Header) -> None:
    """Refuse a UNet that reads more than latents, by what its channels say that it is."""
    first = header.tensors.get(f"{ldm.UNET}input_blocks.0.0.weight")
    channels = first.shape[1] if first is not None and len(first.shape) == 4 else 4
    if channels != 4:
        held = INPUTS.get(channels, "no Stable Diffusion that is known here")
        raise CheckpointError(
            f"{shown(file)} holds {held}, which is not served: its UNet reads {channels} channels, and those of "
            "latents are 4"
        )


def _family(file: Path, names: set[str]) -> str:
    """Which Stable Diffusion a model is, told by its text encoders."""
    for prefix, family in ((ldm.XL_OPEN_CLIP, XL), (ldm.OPEN_CLIP, SD2), (ldm.CLIP, SD1)):
        if any(name.startswith(prefix) for name in names):
            return family
    raise CheckpointError(
        f"{shown(file)} holds a UNet and no text encoder of Stable Diffusion 1.x, 2.x or XL; give a file of the whole "
        "model, or its folder"
    )


def _checked(file: Path, header: Header, names: set[str]) -> dict[str, Entry]:
    """Entries of `names`, if their number types are served."""
    entries = {name: entry for name, entry in header.tensors.items() if name in names}
    for name, entry in entries.items():
        if entry.kind not in KINDS:
            raise CheckpointError(
                f"{shown(file)} holds {shown(name, 80)} as {shown(entry.kind, 80)}; weights are served as "
                f"{', '.join(KINDS)}"
            )
    return entries


def _averages(file: Path, header: Header, names: set[str], variant: str | None) -> dict[str, Entry]:
    """Entries of the averaged weights under the names of those that they are of, where they are wanted."""
    there = any(ldm.averaged(name) in header.tensors for name in names)
    if variant is None:
        if there:
            warnings.warn(
                f"{shown(file)} holds the average of its weights over training (EMA) beside the weights, which are "
                f"taken; variant={AVERAGED!r} takes the average",
                TwigWarning,
                stacklevel=5,
            )
        return {}
    if variant != AVERAGED or not there:
        raise CheckpointError(f"{shown(file)} has no weights of the variant={variant!r}; leave it out")
    if missing := sorted(name for name in names if ldm.averaged(name) not in header.tensors):
        raise CheckpointError(f"{shown(file)} holds averages of its weights, and none of {shown(missing[0], 120)}")
    averages = {name: header.tensors[ldm.averaged(name)] for name in names}
    return _checked(file, Header(averages, {}), names)


def _prediction(file: Path, family: str, header: Header) -> str:
    """What the UNet predicts: what the file says of itself, else what is usual of its family."""
    said = header.metadata.get("modelspec.prediction_type", header.metadata.get("modelspec.predict_key", "")).lower()
    architecture = header.metadata.get("modelspec.architecture", "").lower()
    if said in ("v", "v_prediction", "v-prediction") or "v_pred" in header.tensors or "768-v" in architecture:
        return "v_prediction"
    if said in ("epsilon", "eps") or "v2-512" in architecture or family is not SD2:
        return "epsilon"
    warnings.warn(
        f"{shown(file)} does not say what its UNet predicts; v_prediction is taken, as of Stable Diffusion 2 at "
        "768x768; if it is of a base model at 512x512, say prediction_type='epsilon'",
        TwigWarning,
        stacklevel=5,
    )
    return "v_prediction"


def _side(family: str, prediction: str, header: Header) -> int:
    """Latents a side that a model was trained on."""
    pixels = re.match(r"(\d{2,4})(x\1)?$", header.metadata.get("modelspec.resolution", ""))
    if pixels and 64 <= int(pixels[1]) <= 8192:
        return int(pixels[1]) // 8
    return _BASE_SIDE if family is SD2 and prediction == "epsilon" else _SIDES[family]


def _text(part: Callable[..., FilePart], prefix: str, cls: Any) -> FilePart:
    openai = prefix in (ldm.CLIP, ldm.XL_CLIP)
    rename = ldm.clip if openai else ldm.open_clip
    return part(cls, prefix, rename, partial(published.text, openai=openai))
