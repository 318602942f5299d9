"""The models that are measured: Stable Diffusion 1.5's networks with random weights, made on the device.

What a network costs depends on its architecture alone. The segmenter does its whole work and then sees the same scene
in every picture, so that everybody moves the same objects, as many as a photo has.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, SegformerConfig, SegformerForSemanticSegmentation

from ...engine.models import ade20k, memory, parts
from ...engine.models.checkpoint import EMBEDDED, Components, load
from ...engine.models.preprocessing import Preprocessing
from ...engine.models.segmentation import Segmenter
from ..contenders import Models
from .bench import Bench


@dataclass(frozen=True)
class Architecture:
    """Sizes of a model's networks: options of the library's classes, where they differ from Stable Diffusion 1.5's."""

    unet: dict[str, Any]
    controlnet: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]
    segmenter: dict[str, Any]


SD15 = Architecture(
    unet={"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    controlnet={"cross_attention_dim": 768, "attention_head_dim": 8},
    vae={
        "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512,
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    },
    text={"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    segmenter={},
)  # fmt: skip
"""UNet of 859.5 million parameters, ControlNet of 361 million, autoencoder, CLIP ViT-L, SegFormer-B0."""

_SMALL = {
    "block_out_channels": (32, 64, 64, 64), "layers_per_block": 1, "cross_attention_dim": 32, "attention_head_dim": 4,
}  # fmt: skip
SMALL = Architecture(
    unet={"sample_size": 16, **_SMALL},
    controlnet=_SMALL,
    vae={
        "block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 128,
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    },
    text={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
    segmenter={
        "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 16, 16], "num_attention_heads": [1, 2, 2, 2],
        "decoder_hidden_size": 16,
    },
)  # fmt: skip
"""The same architecture in a size that a CPU draws with in seconds, at 128 x 128 pixels."""

_SCHEDULE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False,
    "set_alpha_to_one": False, "steps_offset": 1,
}  # fmt: skip
_SEEN = 512
"""Side in pixels at which SegFormer sees a picture."""


class PaintedSegformer(SegformerForSemanticSegmentation):
    """SegFormer whose scores favour a scene of three objects on a background, whatever the picture shows."""

    def __init__(self, config: SegformerConfig) -> None:
        super().__init__(config)
        self.painting = nn.Buffer(torch.zeros(()), persistent=False)

    def paint(self, side: int) -> None:
        """Favour the scene on a square grid of scores."""
        weight = self.decode_head.classifier.weight
        favoured = nn.functional.one_hot(_scene(side), self.config.num_labels).permute(2, 0, 1)
        self.painting = nn.Buffer(100 * favoured.to(weight), persistent=False)

    def forward(self, pixel_values: Tensor, **options: Any) -> Any:
        """Scores (B, L, h, w) of pixels (B, 3, 4 h, 4 w)."""
        output = super().forward(pixel_values=pixel_values, **options)
        output.logits = output.logits + self.painting
        return output


def _scene(side: int) -> Tensor:
    """Labels (side, side) of a disc, a box and a bar on background."""
    y, x = torch.meshgrid(*[(torch.arange(side) + 0.5) / side] * 2, indexing="ij")
    labels = torch.zeros(side, side, dtype=torch.int64)
    names = len(ade20k.BACKGROUND)
    labels[(y > 0.5) & (x > 0.6) & (y < 0.85) & (x < 0.9)] = names
    labels[(y - 0.4) ** 2 + (x - 0.3) ** 2 < 0.03] = names + 1
    labels[(y > 0.1) & (y < 0.2) & (x > 0.55) & (x < 0.95)] = names + 2
    return labels


@contextmanager
def _made_on(device: torch.device, dtype: torch.dtype, seed: int) -> Iterator[None]:
    """Let modules be made on the device, in a number type, from a seed."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        torch.manual_seed(seed)
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def architecture(bench: Bench) -> Architecture:
    """What is measured: Stable Diffusion 1.5, or its small twin."""
    return SMALL if bench.quick else SD15


def networks(
    sizes: Architecture, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> tuple[UNet2DConditionModel, ControlNetModel]:
    """UNet and ControlNet with random weights; the ControlNet's zero convolutions are none, for they would do nothing.

    On the meta device they have shapes alone.
    """
    with _made_on(device, dtype, seed):
        unet, controlnet = UNet2DConditionModel(**sizes.unet), ControlNetModel(**sizes.controlnet)
        ends = [*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block]
        for convolution in (*ends, controlnet.controlnet_cond_embedding.conv_out):
            nn.init.normal_(convolution.weight, std=0.02)
    return unet.eval().requires_grad_(False), controlnet.eval().requires_grad_(False)


def random_components(bench: Bench, seed: int = 0, dtype: torch.dtype | None = None) -> Components:
    """A whole model with random weights on the bench's device; texts are read with the embedded model's tokenizer."""
    sizes, dtype = architecture(bench), dtype or bench.dtype
    tokenizer = parts.tokenizer(EMBEDDED / "tokenizer")
    unet, controlnet = networks(sizes, bench.device, dtype, seed)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        **sizes.text,
    )  # fmt: skip
    with _made_on(bench.device, dtype, seed + 1):
        others = AutoencoderKL(**sizes.vae), CLIPTextModel(text), PaintedSegformer(_labelled(sizes.segmenter))
    vae, text_encoder, segmenter = (nn.Module.to(network, dtype).eval().requires_grad_(False) for network in others)
    segmenter.paint(_SEEN // 4)
    return Components(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        unet=unet,
        vae=vae,
        scheduler=DDIMScheduler(**_SCHEDULE),
        controlnet=controlnet,
        segmenter=Segmenter(segmenter, Preprocessing(size=(_SEEN, _SEEN))),
        calibration=None,
        name="sd15-random" if sizes is SD15 else "small-random",
        hashes=_hashes(sizes, seed),
    )


def _labelled(options: dict[str, Any]) -> SegformerConfig:
    """SegFormer's configuration with names for as many labels as ADE20K has, the background's first."""
    surroundings = sorted(ade20k.BACKGROUND)
    names = [*surroundings, *(f"object {i}" for i in range(len(ade20k.PALETTE) - len(surroundings)))]
    return SegformerConfig(id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)}, **options)


def _hashes(sizes: Architecture, seed: int) -> dict[str, str]:
    """What tells these weights from others, by part: no digest of gigabytes, but of what they are made from."""
    made = hashlib.sha256(f"{sizes} {seed} {torch.__version__}".encode()).hexdigest()
    return dict.fromkeys(("text_encoder", "unet", "vae", "controlnet", "segmenter", "tokenizer", "scheduler"), made)


def random_models(bench: Bench) -> Models:
    """A random model twice over the same tensors: as diffusers made it, and to be served."""
    served = random_components(bench)
    assert served.controlnet is not None
    plain = replace(
        served, unet=memory.twin(served.unet, "unet"), controlnet=memory.twin(served.controlnet, "controlnet")
    )
    return Models(plain, served, str(bench.device), bench.dtype)


def embedded(device: torch.device | str) -> Components:
    """The model in the package, in fp32."""
    return load(dtype=torch.float32, device=device)
