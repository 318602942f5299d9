"""Configurations of the published models, which a single file does not hold: what its shapes leave open, as facts.

Widths, depths and channels are read off the shapes, so that what was trained narrower or shallower is read as what it
is; numbers of heads, activations and noise schedules are those of Stable Diffusion 1.x, 2.x and XL.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler, SchedulerMixin

Shapes = Mapping[str, torch.Size]
"""Shape of each tensor, by the name that diffusers or transformers has for it."""

_HEAD = 64
_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
_VAE_SCALE, _XL_VAE_SCALE = 0.18215, 0.13025


def unet(shapes: Shapes, side: int) -> dict[str, Any]:
    """Configuration of a UNet. side: of the latents that it was trained on."""
    config = _denoiser(shapes)
    attends = [kind.startswith("Cross") for kind in config["down_block_types"]]
    return config | {
        "sample_size": side,
        "out_channels": shapes["conv_out.weight"][0],
        "up_block_types": ["CrossAttnUpBlock2D" if there else "UpBlock2D" for there in reversed(attends)],
        # In half precision Stable Diffusion 2.1's attention overflows where its scores are not in fp32.
        "upcast_attention": config["use_linear_projection"] and not config.get("addition_embed_type"),
    }


def controlnet(shapes: Shapes) -> dict[str, Any]:
    """Configuration of a ControlNet that reads red, green, blue."""
    hint = "controlnet_cond_embedding"
    widened = range(1, _count(shapes, rf"{hint}\.blocks\.(\d+)\."), 2)
    first = shapes[f"{hint}.conv_in.weight"]
    return _denoiser(shapes) | {
        "conditioning_channels": first[1],
        "conditioning_embedding_out_channels": [first[0], *(shapes[f"{hint}.blocks.{i}.weight"][0] for i in widened)],
    }


def _denoiser(shapes: Shapes) -> dict[str, Any]:
    """What UNets and ControlNets have alike."""
    levels = range(_count(shapes, r"down_blocks\.(\d+)\."))
    there = [_count(shapes, rf"down_blocks\.{i}\.attentions\.0\.transformer_blocks\.(\d+)\.") for i in levels]
    middle = "mid_block.attentions.0"
    # Where a level has none the number stands for nothing, but for the last, whose number is the middle's too.
    depths = [depth or 1 for depth in there[:-1]] + [
        _count(shapes, r"mid_block\.attentions\.0\.transformer_blocks\.(\d+)\.")
    ]
    channels = [shapes[f"down_blocks.{i}.resnets.0.conv1.weight"][0] for i in levels]
    linear = len(shapes[f"{middle}.proj_in.weight"]) == 2
    config = {
        "in_channels": shapes["conv_in.weight"][1],
        "block_out_channels": channels,
        "layers_per_block": _count(shapes, r"down_blocks\.0\.resnets\.(\d+)\."),
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in there],
        "cross_attention_dim": shapes[f"{middle}.transformer_blocks.0.attn2.to_k.weight"][1],
        "transformer_layers_per_block": depths if max(depths) > 1 else 1,
        "use_linear_projection": linear,
        "attention_head_dim": [max(width // _HEAD, 1) for width in channels] if linear else 8,
    }  # fmt: skip
    return config | _added(shapes)


def _added(shapes: Shapes) -> dict[str, Any]:
    """What SDXL's networks read beside the text: its pooled states, and six numbers of sizes."""
    if "add_embedding.linear_1.weight" not in shapes:
        return {}
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": shapes["add_embedding.linear_1.weight"][1],
    }


def autoencoder(shapes: Shapes, xl: bool) -> dict[str, Any]:
    """Configuration of an autoencoder. xl: whether it is of SDXL, whose latents are scaled otherwise."""
    if "decoder.layers.0.weight" in shapes or "decoder.layers.1.weight" in shapes:
        return {}
    levels = range(_count(shapes, r"encoder\.down_blocks\.(\d+)\."))
    return {
        "down_block_types": ["DownEncoderBlock2D" for _ in levels],
        "up_block_types": ["UpDecoderBlock2D" for _ in levels],
        "block_out_channels": [shapes[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"][0] for i in levels],
        "layers_per_block": _count(shapes, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "sample_size": 1024 if xl else 512,
        "scaling_factor": _XL_VAE_SCALE if xl else _VAE_SCALE,
        "force_upcast": xl,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
    }


def text(shapes: Shapes, openai: bool) -> dict[str, Any]:
    """Configuration of a text encoder of CLIP. openai: whether it is OpenAI's, whose activation is another."""
    named = {name.removeprefix("text_model."): shape for name, shape in shapes.items()}
    vocabulary, width = named["embeddings.token_embedding.weight"]
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": named["encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": _count(named, r"encoder\.layers\.(\d+)\."),
        "num_attention_heads": max(width // _HEAD, 1),
        "max_position_embeddings": named["embeddings.position_embedding.weight"][0],
        "projection_dim": named.get("text_projection.weight", (width,))[0],
        "hidden_act": "quick_gelu" if openai else "gelu",
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1 if openai else 0,
    }


def scheduler(name: str, prediction: str, zero_snr: bool) -> SchedulerMixin:
    """The noise schedule of a family's folders. zero_snr: whether the last step is of noise alone."""
    given = _NOISE | {"prediction_type": prediction}
    if zero_snr:
        return DDIMScheduler(
            **given, clip_sample=False, set_alpha_to_one=False, rescale_betas_zero_snr=True, timestep_spacing="trailing"
        )
    if name == "SDXL":
        return EulerDiscreteScheduler(**given, timestep_spacing="leading")
    if name == "Stable Diffusion 2.x":
        return DDIMScheduler(**given, clip_sample=False, set_alpha_to_one=False)
    return PNDMScheduler(**given, set_alpha_to_one=False, skip_prk_steps=True)


def _count(names: Mapping[str, Any], pattern: str) -> int:
    """How many numbers stand where `pattern` has a group."""
    found = re.compile(pattern)
    return len({match[1] for name in names if (match := found.match(name))})
