"""The folder that every contender reads: the embedded model with an autoencoder that all of them serve.

Two peers serve AutoencoderKL alone, and the embedded model's AutoencoderTiny has no group norms and another
activation: nothing of an AutoencoderKL computes the same. So plain pictures are decoded, for all contenders alike, by
an AutoencoderKL of random weights that costs about as much. They show nothing, and differ wherever latents do.
"""

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from ...engine.models.checkpoint import EMBEDDED

_PARTS = ("tokenizer", "text_encoder", "unet", "scheduler")
_CONTRAST = 0.5  # standard deviation of pixels in [-1, 1]


def write_folder(folder: Path) -> Path:
    """Write the model to `folder`, unless it is there, and return that."""
    if not (folder / "model_index.json").exists():
        for part in _PARTS:
            shutil.copytree(EMBEDDED / part, folder / part, dirs_exist_ok=True)
        random_autoencoder().half().save_pretrained(folder / "vae")
        index = json.loads((EMBEDDED / "model_index.json").read_text())
        index |= {"_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderKL"]}
        index.pop("controlnet")
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    return folder


def random_autoencoder() -> AutoencoderKL:
    """An AutoencoderKL of 48 channels; decoding takes 1,163 MFLOP, the embedded model's own 1,084."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = AutoencoderKL(
            block_out_channels=(48, 48, 48),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            norm_num_groups=16,
            sample_size=64,
            scaling_factor=1.0,
        )
        latents = torch.randn(4, 4, 16, 16)
    last = made.decoder.conv_out
    with torch.no_grad():
        pixels = made.decode(latents).sample
        last.bias -= pixels.mean((0, 2, 3))
        for tensor in (last.weight, last.bias):
            tensor *= _CONTRAST / pixels.std()
    return made
