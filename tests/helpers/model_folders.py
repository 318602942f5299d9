"""What tests change in a model's folder, and what they put in its place."""

import json
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel

WEIGHTS = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "controlnet": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "segmenter": "model.safetensors",
}


def edit(path: Path, **changes: Any) -> None:
    """Change entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def small_unet(**changes):
    options = {
        "sample_size": 16, "block_out_channels": (16, 32, 32), "layers_per_block": 1, "cross_attention_dim": 32,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 2,
        "norm_num_groups": 8,
    }  # fmt: skip
    return UNet2DConditionModel(**options | changes)
