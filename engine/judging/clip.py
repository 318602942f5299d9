"""CLIP's likeness of two pictures: the cosine of what its picture encoder says of each (Radford et al., ICML 2021)."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from ..api.errors import CheckpointError
from ..api.reading import read_json, shown
from ..models import layout
from ..models.tensor_files import check_tensors

_SERVED = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size",
    "hidden_act", "layer_norm_eps",
)  # fmt: skip
"""What of a picture encoder's configuration changes what it computes."""

_ENCODER = ("vision_model.", "visual_projection.")
_USUAL = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


class ClipLikeness(nn.Module):
    """Cosine in [-1, 1] of the embeddings of two pictures, scaled and cropped about their middles as CLIP wants them.

    mean, deviation: of each colour, of values in [0, 1].
    """

    def __init__(
        self, encoder: CLIPVisionModelWithProjection, mean: tuple[float, ...], deviation: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.encoder, self.size = encoder, int(encoder.config.image_size)
        self.mean, self.deviation = mean, deviation

    @classmethod
    def load(cls, folder: Path) -> "ClipLikeness":
        """Read the picture encoder of a folder of transformers' CLIPModel. Raises CheckpointError."""
        config = _config(folder)
        encoder = layout.empty_module(CLIPVisionModelWithProjection, config, folder)
        _, files = layout.weights(folder)
        check_tensors(files)
        held = {name: tensor.float() for file in files for name, tensor in load_file(file).items()}
        wanted = {name: held[name] for name in encoder.state_dict() if name in held}
        if missing := sorted(encoder.state_dict().keys() - wanted.keys()):
            raise CheckpointError(
                f"{shown(folder)} lacks {len(missing)} tensors of a CLIPModel, {missing[0]} the first"
            )
        try:
            encoder.load_state_dict(wanted, assign=True)
        except RuntimeError as error:
            raise CheckpointError(f"{shown(folder)} has other tensors than its configuration says: {error}") from error
        encoder.vision_model.embeddings.position_ids = torch.arange(
            encoder.vision_model.embeddings.num_positions
        ).expand((1, -1))
        return cls(encoder.eval().requires_grad_(False), *_normalising(folder, int(encoder.config.image_size)))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1], twice -> cosines (B,), 1 for the same."""
        one, other = self._embedded(torch.cat([first, second])).chunk(2)
        return F.cosine_similarity(one, other)

    def _embedded(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[-2:]
        short = min(height, width)
        size = (int(height * self.size / short), int(width * self.size / short))
        scaled = F.interpolate(pixels.float(), size, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = (size[0] - self.size) // 2, (size[1] - self.size) // 2
        seen = scaled[..., top : top + self.size, left : left + self.size]
        mean, deviation = (seen.new_tensor(each)[:, None, None] for each in (self.mean, self.deviation))
        embeds: Tensor = self.encoder(pixel_values=(seen - mean) / deviation).image_embeds
        return embeds


def _config(folder: Path) -> dict[str, Any]:
    """What a CLIPModel's folder says of its picture encoder."""
    config = read_json(folder / "config.json")
    vision = config.get("vision_config") if isinstance(config, dict) else None
    if not isinstance(vision, dict) or config.get("model_type") != "clip":
        raise CheckpointError(
            f"{shown(folder)} holds no CLIPModel of transformers; its config.json has no vision_config"
        )
    made = CLIPVisionConfig(projection_dim=config.get("projection_dim", 512)).to_dict()
    return made | {name: vision[name] for name in _SERVED if name in vision}


def _normalising(folder: Path, size: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of colours that the folder's processor takes off; CLIP's own where it says nothing."""
    path = folder / "preprocessor_config.json"
    said = read_json(path) if path.exists() else {}
    crop = said.get("crop_size", size)
    if (crop if isinstance(crop, int) else crop.get("height")) != size:
        raise CheckpointError(
            f"{shown(path)} crops to {shown(crop)}, and the picture encoder takes {size} pixels a side"
        )
    mean, deviation = (
        tuple(said.get(name, usual)) for name, usual in zip(("image_mean", "image_std"), _USUAL, strict=True)
    )
    return mean, deviation
