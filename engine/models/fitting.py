"""Whether the parts of a checkpoint fit together, told from their configurations and shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from ..api.errors import CheckpointError
from .networks import NUM_SIZES

if TYPE_CHECKING:
    from diffusers import ControlNetModel, UNet2DConditionModel

    from .components import Components

_READING_ADDED = (
    "addition_embed_type",
    "addition_time_embed_dim",
    "projection_class_embeddings_input_dim",
    "flip_sin_to_cos",
    "freq_shift",
)

_KINDS: Mapping[Any, str] = {768: " (Stable Diffusion 1.x)", 1024: " (Stable Diffusion 2.x)", 2048: " (SDXL)"}
"""Models whose text is as wide as that."""
INPUTS = {
    9: "an inpainting model",
    8: "a model that edits pictures (InstructPix2Pix)",
    7: "an upscaler",
    5: "a model that reads depth",
}
"""Models by the channels that their UNets read, where latents have four."""
_ANOTHER = "name one that was trained for this model with controlnet=..."


def check_fit(components: Components) -> None:
    """Raise CheckpointError naming the two values that disagree; weights need not be there."""
    _check_size(components)
    _check_text(components)
    _check_added(components)
    _check_latents(components)
    if components.preview_vae is not None:
        _check_preview(components)
    if components.controlnet is not None:
        _check_controlnet(components, components.controlnet, "the ControlNet")
    elif components.controlnets:
        raise CheckpointError(
            f"the ControlNet {next(iter(components.controlnets))} is a further one, and there is none that follows the "
            "moved map; name that first, without a name"
        )
    for name, further in components.controlnets.items():
        _check_controlnet(components, further, f"the ControlNet {name}")


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
    for name in ("class_embed_type", "encoder_hid_dim_type"):
        _require(unet[name] is None, f"the UNet's {name}", unet[name], "None, as in Stable Diffusion")
    told = unet.time_cond_proj_dim
    fits = told is None or (isinstance(told, int) and not isinstance(told, bool) and told >= 4 and told % 2 == 0)
    _require(fits, "the UNet's time_cond_proj_dim", told, "None, or the even width of a latent consistency model's")


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
        held = f" ({INPUTS[unet[name]]}, which is not served)" if unet[name] in INPUTS else ""
        _require(unet[name] == vae.latent_channels, f"the UNet's {name}", f"{unet[name]}{held}", wanted)
    for name in ("latents_mean", "latents_std"):
        _require(
            vae.get(name) is None, f"the autoencoder's {name}", vae.get(name), "None, one scaling for all channels"
        )


def _check_preview(components: Components) -> None:
    """A decoder of drafts and previews must read the same latents as the autoencoder, and draw pictures of its size."""
    assert components.preview_vae is not None
    found = type(components.preview_vae).__name__
    _require(found == "AutoencoderTiny", "the preview autoencoder", found, "an AutoencoderTiny, as TAESD is")
    preview, factor = components.preview_vae.config, components.vae_scale_factor
    latents = components.vae.config.latent_channels
    _require(
        preview.latent_channels == latents,
        "the preview autoencoder's latent_channels", preview.latent_channels, f"the autoencoder's {latents}",
    )  # fmt: skip
    _require(preview.out_channels == 3, "the preview autoencoder's out_channels", preview.out_channels, "3")
    shrinks = 2 ** (len(preview.decoder_block_out_channels) - 1)
    _require(shrinks == factor, "the preview autoencoder's pixels per latent", shrinks, f"the autoencoder's {factor}")


def _residual_channels(unet: UNet2DConditionModel) -> list[int]:
    """Channels of each residual that a ControlNet adds to the UNet's skip connections."""
    channels = [unet.conv_in.out_channels]
    for block in unet.down_blocks:
        channels += [layer.out_channels for layer in (*block.resnets, *(block.downsamplers or ()))]
    return channels


def _told(name: str, value: Any) -> str:
    """A value of a configuration, a text's width with the model that has it."""
    return f"{value}{_KINDS.get(value, '') if name == 'cross_attention_dim' else ''}"


def _check_controlnet(components: Components, controlnet: ControlNetModel, what: str) -> None:
    unet, control = components.unet.config, controlnet.config
    _require(
        control.conditioning_channels == 3, f"{what}'s conditioning_channels", control.conditioning_channels,
        "3, for a picture's red, green and blue",
    )  # fmt: skip
    for name in ("in_channels", "cross_attention_dim", "block_out_channels", *_READING_ADDED):
        wanted, found = (tuple(v) if isinstance(v, list) else v for v in (unet[name], control[name]))
        told = f"the UNet's {_told(name, wanted)}; {_ANOTHER}"
        _require(found == wanted, f"{what}'s {name}", _told(name, found), told)
    residuals = [convolution.out_channels for convolution in controlnet.controlnet_down_blocks]
    wanted = _residual_channels(components.unet)
    _require(
        residuals == wanted,
        f"the channel count of {what}'s residuals",
        residuals,
        f"the UNet's {wanted}; {_ANOTHER}",
    )
    shrinks, factor = 2 ** (len(control.conditioning_embedding_out_channels) - 1), components.vae_scale_factor
    _require(shrinks == factor, f"{what}'s hint pixels per latent", shrinks, f"the autoencoder's {factor}")
    _require(not control.global_pool_conditions, f"{what}'s global_pool_conditions", True, "False")


def check_dtypes(components: Components, dtype: torch.dtype) -> None:
    """Raise CheckpointError unless every network of `components` computes in the engine's `dtype`.

    The autoencoder may stay in float32, where it overflows in float16.
    """
    networks = {
        "unet": components.unet, "controlnet": components.controlnet, "vae": components.vae,
        "preview_vae": components.preview_vae,
        "segmenter": components.segmenter.model if components.segmenter is not None else None,
        "text_encoder": components.text_encoder, "text_encoder_2": components.text_encoder_2,
        **components.controlnets,
    }  # fmt: skip
    for name, network in networks.items():
        if network is None:
            continue
        wanted = {dtype, torch.float32} if name == "vae" and components.upcast_vae else {dtype}
        if strange := {parameter.dtype for parameter in network.parameters() if parameter.is_floating_point()} - wanted:
            raise CheckpointError(
                f"the {name} is in {strange.pop()}, the engine computes in {dtype}; load the model with dtype={dtype}"
            )
