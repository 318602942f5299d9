"""Models with random weights in the layouts of published ones, narrow or full: diffusers' folders, and single files.

Their kinds of layers and configurations are those of Stable Diffusion 1.5, 2.1 and XL, and their vocabulary is CLIP's;
of the narrow ones only widths and depths are small.
"""

import re
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from twig.engine.models.clip_tokenizer import clip_tokenizer

FAMILIES = ("sd15", "sd21", "sdxl")
_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
_CROSS, _PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
_UNETS = {
    "sd15": {
        "sample_size": 64, "block_out_channels": (32, 32, 64, 64), "down_block_types": (_CROSS,) * 3 + (_PLAIN,),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3, "attention_head_dim": 8,
        "cross_attention_dim": 64,
    },
    "sd21": {
        "sample_size": 96, "block_out_channels": (64, 64, 128, 128), "down_block_types": (_CROSS,) * 3 + (_PLAIN,),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3, "attention_head_dim": (1, 1, 2, 2),
        "cross_attention_dim": 64, "use_linear_projection": True, "upcast_attention": True,
    },
    "sdxl": {
        "sample_size": 128, "block_out_channels": (64, 64, 128), "down_block_types": (_PLAIN, _CROSS, _CROSS),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": (1, 1, 2),
        "cross_attention_dim": 192, "use_linear_projection": True, "transformer_layers_per_block": (1, 2, 3),
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 128 + 6 * 256,
    },
}  # fmt: skip

_FULL_UNETS = {
    "sd15": {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768},
    "sd21": {
        "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20)
    },
    "sdxl": {
        "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10), "projection_class_embeddings_input_dim": 2816,
    },
}  # fmt: skip
_TEXTS = {"sd15": ((64, 2),), "sd21": ((64, 23),), "sdxl": ((64, 2), (128, 3))}
_FULL_TEXTS = {"sd15": ((768, 12),), "sd21": ((1024, 23),), "sdxl": ((768, 12), (1280, 32))}
"""Width and layers of each text encoder."""


def build_unet(family: str, full: bool = False) -> UNet2DConditionModel:
    """The UNet of a family."""
    return UNet2DConditionModel(**_UNETS[family] | (_FULL_UNETS[family] if full else {}))


def build_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """Beside `unet`, with zero convolutions drawn at random."""
    controlnet = ControlNetModel.from_unet(unet)
    for convolution in (*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block):
        nn.init.normal_(convolution.weight, std=0.1)
    return controlnet


def build_vae(xl: bool, full: bool = False) -> AutoencoderKL:
    """Four levels, as of Stable Diffusion, the narrow ones of width 32."""
    scale = {"scaling_factor": 0.13025, "force_upcast": True} if xl else {"scaling_factor": 0.18215}
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512) if full else (32,) * 4, latent_channels=4, layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, **scale,
    )  # fmt: skip


def text_config(openai: bool, width: int, layers: int) -> CLIPTextConfig:
    """Heads of width 64."""
    return CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=width // 64, hidden_act="quick_gelu" if openai else "gelu", projection_dim=width,
        bos_token_id=49406, eos_token_id=49407, pad_token_id=49407,
    )  # fmt: skip


def build(family: str, full: bool = False, seed: int = 0) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    """A whole pipeline of "sd15", "sd21" or "sdxl"."""
    torch.manual_seed(seed)
    parts = {"unet": build_unet(family, full), "vae": build_vae(family == "sdxl", full)}
    first, *second = (_FULL_TEXTS if full else _TEXTS)[family]
    parts["text_encoder"] = CLIPTextModel(text_config(family != "sd21", *first))
    with torch.device("cpu"):  # wherever the networks are made
        parts["scheduler"] = build_schedule(family)
    parts["tokenizer"] = clip_tokenizer("!") if family == "sd21" else clip_tokenizer()
    if family == "sdxl":
        return StableDiffusionXLPipeline(
            text_encoder_2=CLIPTextModelWithProjection(text_config(False, *second[0])),
            tokenizer_2=clip_tokenizer("!"),
            **parts,
        )
    checked = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return StableDiffusionPipeline(**parts, **checked)


def build_schedule(family: str) -> SchedulerMixin:
    """The noise schedule of a family's folders."""
    if family == "sdxl":
        return EulerDiscreteScheduler(**_NOISE, timestep_spacing="leading")
    if family == "sd21":
        return DDIMScheduler(**_NOISE, clip_sample=False, set_alpha_to_one=False, prediction_type="v_prediction")
    return PNDMScheduler(**_NOISE, set_alpha_to_one=False, skip_prk_steps=True)


def single_file(pipe: StableDiffusionPipeline | StableDiffusionXLPipeline) -> dict[str, torch.Tensor]:
    """A pipeline's tensors under the names of latent diffusion, with the buffers that such files hold too."""
    tensors = {f"model.diffusion_model.{name}": t for name, t in unet_tensors(pipe.unet).items()}
    tensors |= {f"first_stage_model.{name}": t for name, t in vae_tensors(pipe.vae).items()}
    second = getattr(pipe, "text_encoder_2", None)
    if second is not None:
        tensors |= clip_tensors(pipe.text_encoder, "conditioner.embedders.0.transformer.")
        tensors |= open_clip_tensors(second, "conditioner.embedders.1.model.")
        return tensors | {"conditioner.embedders.1.model.logit_scale": torch.ones(())}
    tensors |= {"alphas_cumprod": torch.ones(1000), "betas": torch.ones(1000), "model_ema.num_updates": torch.ones(1)}
    if pipe.text_encoder.config.hidden_act == "quick_gelu":
        return tensors | clip_tensors(pipe.text_encoder, "cond_stage_model.transformer.")
    prefix = "cond_stage_model.model."
    texts = open_clip_tensors(pipe.text_encoder, prefix)
    last = {name.replace("resblocks.22.", "resblocks.23."): t.clone() for name, t in texts.items() if "s.22." in name}
    return (
        tensors
        | texts
        | last
        | {
            f"{prefix}text_projection": torch.eye(pipe.text_encoder.config.hidden_size),
            f"{prefix}logit_scale": torch.ones(()),
        }
    )


def save(tensors: dict[str, torch.Tensor], file: Path, dtype: torch.dtype | None = None, **metadata: str) -> Path:
    """Write a file of tensors, whose real numbers are of `dtype`."""
    kept = {n: (t.to(dtype) if dtype and t.is_floating_point() else t).contiguous() for n, t in tensors.items()}
    save_file(kept, file, metadata={"format": "pt", **metadata})
    return file


_RESNET = (
    ("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("time_emb_proj", "emb_layers.1"), ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"), ("conv_shortcut", "skip_connection"),
)  # fmt: skip
_ENDS = (
    ("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"),
    ("add_embedding.linear_1", "label_emb.0.0"), ("add_embedding.linear_2", "label_emb.0.2"),
    ("conv_in", "input_blocks.0.0"), ("conv_norm_out", "out.0"), ("conv_out", "out.2"),
    ("controlnet_mid_block", "middle_block_out.0"),
)  # fmt: skip


def unet_tensors(network: UNet2DConditionModel | ControlNetModel) -> dict[str, torch.Tensor]:
    """A UNet's or a ControlNet's tensors under the names of latent diffusion, without a prefix."""
    attends = [block.startswith("Cross") for block in network.config.get("up_block_types", ())]
    return {_denoiser_name(name, attends): tensor for name, tensor in network.state_dict().items()}


def _denoiser_name(name: str, attends: list[bool]) -> str:
    if match := re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", name):
        side, block, kind, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        place = 1 + block * 3 + layer if side == "down" else block * 3 + layer
        return f"{'input' if side == 'down' else 'output'}_blocks.{place}.{_layer(kind, rest)}"
    if match := re.match(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.*)", name):
        return f"input_blocks.{3 * (int(match[1]) + 1)}.0.op.{match[2]}"
    if match := re.match(r"up_blocks\.(\d+)\.upsamplers\.0\.conv\.(.*)", name):
        return f"output_blocks.{3 * int(match[1]) + 2}.{1 + attends[int(match[1])]}.conv.{match[2]}"
    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        place = 1 if match[1] == "attentions" else 2 * int(match[2])
        return f"middle_block.{place}." + _layer(match[1], match[3]).partition(".")[2]
    if match := re.match(r"controlnet_down_blocks\.(\d+)\.(.*)", name):
        return f"zero_convs.{match[1]}.0.{match[2]}"
    if match := re.match(r"controlnet_cond_embedding\.(conv_in|conv_out|blocks\.(\d))\.(.*)", name):
        place = {"conv_in": 0, "conv_out": 14}.get(match[1], 2 * int(match[2] or 0) + 2)
        return f"input_hint_block.{place}.{match[3]}"
    for new, old in _ENDS:
        if name.startswith(new + "."):
            return name.replace(new, old)
    raise AssertionError(name)


def _layer(kind: str, rest: str) -> str:
    if kind == "attentions":
        return f"1.{rest}"
    for new, old in _RESNET:
        rest = rest.replace(new, old)
    return f"0.{rest}"


def vae_tensors(vae: AutoencoderKL) -> dict[str, torch.Tensor]:
    """An autoencoder's tensors under the names of latent diffusion, without a prefix."""
    levels, tensors = len(vae.config.block_out_channels), {}
    for name, tensor in vae.state_dict().items():
        if ".attentions." in name and name.endswith("weight") and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        for new, old in (
            (r"down_blocks\.(\d)\.resnets\.", r"down.\1.block."),
            (r"down_blocks\.(\d)\.downsamplers\.0\.", r"down.\1.downsample."),
            (r"up_blocks\.(\d)\.", lambda match: f"up.{levels - 1 - int(match[1])}."),
            (r"resnets\.(\d)", r"block.\1"),
            (r"upsamplers\.0\.", "upsample."),
            (r"mid_block\.block\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}"),
            (r"mid_block\.attentions\.0\.", "mid.attn_1."),
            ("group_norm", "norm"),
            (r"to_([qkv])\.", r"\1."),
            (r"to_out\.0", "proj_out"),
            ("conv_norm_out", "norm_out"),
            ("conv_shortcut", "nin_shortcut"),
        ):
            name = re.sub(new, old, name)
        tensors[name] = tensor
    return tensors


def clip_tensors(encoder: CLIPTextModel, prefix: str) -> dict[str, torch.Tensor]:
    """A text encoder of CLIP, with the buffer that older files hold."""
    named = {"text_model." + name.removeprefix("text_model."): t for name, t in encoder.state_dict().items()}
    named["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return {prefix + name: tensor for name, tensor in named.items()}


def open_clip_tensors(encoder: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    """A text encoder under OpenCLIP's names, its projections of queries, keys and values in one."""
    own = {name.removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()}
    tensors = {}
    for name, tensor in own.items():
        if match := re.match(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", name):
            joined = torch.cat([own[name.replace("q_proj", f"{one}_proj")] for one in "qkv"])
            tensors[f"transformer.resblocks.{match[1]}.attn.in_proj_{match[2]}"] = joined
        elif "k_proj" not in name and "v_proj" not in name:
            for new, old in (
                ("encoder.layers.", "transformer.resblocks."), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"),
                ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj"), ("self_attn", "attn"),
                ("final_layer_norm", "ln_final"), ("embeddings.token_embedding", "token_embedding"),
                ("embeddings.position_embedding.weight", "positional_embedding"),
            ):  # fmt: skip
                name = name.replace(new, old)
            if name == "text_projection.weight":
                name, tensor = "text_projection", tensor.T
            tensors[name] = tensor
    return {prefix + name: tensor for name, tensor in tensors.items()}
