"""Tensors of single files under the names that diffusers and transformers have for them.

Single files name tensors as the code of latent diffusion does. Renaming is diffusers' own work; what it renames is read
off the shapes first. Tensors may be on the device "meta": names and shapes are told before values are read.
"""

import re
from collections.abc import Iterable, Mapping
from types import SimpleNamespace

from diffusers.loaders.single_file_utils import (
    DIFFUSERS_TO_LDM_MAPPING,
    convert_controlnet_checkpoint,
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from torch import Tensor

Tensors = Mapping[str, Tensor]

UNET, VAE, CONTROL = "model.diffusion_model.", "first_stage_model.", "control_model."
CLIP, OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
XL_CLIP, XL_OPEN_CLIP = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
EMA = "model_ema."

CHANGED = re.compile(r"in_proj_(weight|bias)$|text_projection$|attn_1\.(q|k|v|proj_out)\.weight$")
"""Names of tensors that are cut, turned or squeezed in renaming; all others are taken as they are."""

_OLD_ATTENTION = re.compile(r"(\.attentions\.\d+\.)(query|key|value|proj_attn)(?=\.)")
_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_DOWN = re.compile(r"^input_blocks\.(\d+)\.0\.op\.weight$")


def averaged(name: str) -> str:
    """Name of the average over training of a tensor of the UNet."""
    return EMA + "".join(name.split(".")[1:])


def present_name(name: str) -> str:
    """What diffusers calls a tensor today that is under its own names; an autoencoder's attention had others once."""
    return _OLD_ATTENTION.sub(lambda match: match[1] + _ATTENTION[match[2]], name)


def unet(tensors: Tensors) -> dict[str, Tensor]:
    """A UNet's tensors."""
    layers = _layers(name.removeprefix(UNET) for name in tensors)
    added = {"addition_embed_type": "text_time"} if f"{UNET}label_emb.0.0.weight" in tensors else {}
    return _there(convert_ldm_unet_checkpoint(dict(tensors), {"layers_per_block": layers, **added}))


def controlnet(tensors: Tensors) -> dict[str, Tensor]:
    """A ControlNet's tensors, which may have diffusers' names already."""
    own = {name.removeprefix(CONTROL): tensor for name, tensor in tensors.items()}
    if "controlnet_cond_embedding.conv_in.weight" in own:
        return own
    found = convert_controlnet_checkpoint(own, {"layers_per_block": _layers(own)})
    added = DIFFUSERS_TO_LDM_MAPPING["controlnet"]["addition_embed_type"]
    return _there(found | {new: own.get(old) for new, old in added.items()})


def autoencoder(tensors: Tensors) -> dict[str, Tensor]:
    """An autoencoder's tensors, which may have diffusers' names already, the former ones of its attention too."""
    own = {name.removeprefix(VAE): tensor for name, tensor in tensors.items()}
    if any(name.startswith("decoder.up_blocks.") for name in own):
        own = {present_name(name): tensor for name, tensor in own.items()}
    elif any(name.startswith("decoder.up.") for name in own):
        blocks = [None] * len({name.split(".")[2] for name in own if name.startswith("decoder.up.")})
        own = _there(convert_ldm_vae_checkpoint(own, {"down_block_types": blocks, "up_block_types": blocks}))
    return {name: _squeezed(tensor) if ".attentions." in name else tensor for name, tensor in own.items()}


def clip(tensors: Tensors) -> dict[str, Tensor]:
    """A text encoder of OpenAI's CLIP."""
    return dict(convert_ldm_clip_checkpoint(dict(tensors)))


def open_clip(tensors: Tensors) -> dict[str, Tensor]:
    """A text encoder of OpenCLIP, of which Stable Diffusion 2.x reads all but the last layer."""
    prefix = XL_OPEN_CLIP if any(name.startswith(XL_OPEN_CLIP) for name in tensors) else OPEN_CLIP
    width = tensors[f"{prefix}token_embedding.weight"].shape[1]
    # The library cuts a projection of queries, keys and values at the width that it reads off the model.
    own = {name: tensor for name, tensor in tensors.items() if name != f"{OPEN_CLIP}text_projection"}
    return dict(convert_open_clip_checkpoint(SimpleNamespace(config=SimpleNamespace(hidden_size=width)), own, prefix))


def _layers(names: Iterable[str]) -> int:
    """Residual layers of each level: the first block that halves comes after them."""
    found = [int(match[1]) for name in names if (match := _DOWN.match(name))]
    return min(found, default=3) - 1


def _squeezed(tensor: Tensor) -> Tensor:
    """A projection, which latent diffusion has as a convolution of one pixel."""
    return tensor[:, :, 0, 0] if tensor.ndim == 4 else tensor


def _there(tensors: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    """Without the names of what the library looked for and did not find."""
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}
