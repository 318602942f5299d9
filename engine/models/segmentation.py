"""Pictures in, label maps out: a transformers segmentation model behind one call."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from ..api.errors import CheckpointError
from . import ade20k


@dataclass(frozen=True)
class Preprocessing:
    """How a segmenter wants its pixels: a size in pixels, then `scale` (of values in [0, 1]), mean and deviation.

    size: fixed (height, width), or None to keep the picture's own. edges: (shortest, longest) edge to scale to in
    place of a fixed size. divisor: both sides are rounded up to a multiple of it.
    """

    size: tuple[int, int] | None = None
    edges: tuple[int, int] | None = None
    divisor: int = 1
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    deviation: tuple[float, ...] = (1.0, 1.0, 1.0)
    mode: str = "bilinear"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read a `preprocessor_config.json` of transformers' image processors."""
        values: dict[str, Any] = {"scale": 255 * (config["rescale_factor"] if config.get("do_rescale", True) else 1)}
        if config.get("do_normalize", True):
            values |= {"mean": tuple(config["image_mean"]), "deviation": tuple(config["image_std"])}
        if config.get("do_resize", True):
            values |= _target_size(config["size"], config.get("max_size"))
            values |= {"divisor": config.get("size_divisor") or 1}
            values |= {"mode": {2: "bilinear", 3: "bicubic"}[config.get("resample", 2)]}
        return cls(**values)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Size at which the segmenter sees a picture of `height` x `width`."""
        if self.size is not None:
            height, width = self.size
        elif self.edges is not None:
            shortest, longest = self.edges
            ratio = min(shortest / min(height, width), longest / max(height, width))
            height, width = round(height * ratio), round(width * ratio)
        return (
            math.ceil(height / self.divisor) * self.divisor,
            math.ceil(width / self.divisor) * self.divisor,
        )

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [0, 1] -> the model's input (B, 3, h, w)."""
        size = self.resized(*pixels.shape[-2:])
        if size != tuple(pixels.shape[-2:]):
            pixels = F.interpolate(pixels, size, mode=self.mode, align_corners=False, antialias=True)
        mean, deviation = (pixels.new_tensor(v).view(-1, 1, 1) for v in (self.mean, self.deviation))
        return (pixels * self.scale - mean) / deviation


def _target_size(size: Any, max_size: int | None) -> dict[str, Any]:
    if isinstance(size, int):
        return {"size": (size, size)} if max_size is None else {"edges": (size, max_size)}
    if "height" in size:
        return {"size": (size["height"], size["width"])}
    return {"edges": (size["shortest_edge"], size.get("longest_edge") or max_size or 10**9)}


class Segmenter:
    """A semantic or universal segmentation model of transformers.

    model: one whose output holds `logits` (SegFormer, UperNet), or query logits (Mask2Former). palette (L, 3) uint8:
    colour of each label in a control image. labels: name of each. background: labels that are no subject's shape.
    """

    def __init__(self, model: PreTrainedModel, preprocessing: Preprocessing) -> None:
        config: Any = model.config
        self.model = model
        self.preprocessing = preprocessing
        self.labels: tuple[str, ...] = tuple(str(config.id2label[i]) for i in range(config.num_labels))
        self.palette = _palette(getattr(config, "palette", None), len(self.labels))
        self.background = _background(self.labels, getattr(config, "background", None))

    @torch.no_grad()
    def __call__(self, pixels: Tensor, scores: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Pixels (B, 3, H, W) in [0, 1] -> labels (B, H, W) int64. `scores` runs the network in the model's place."""
        parameter = next(self.model.parameters())
        inputs = self.preprocessing(pixels.to(parameter.device, torch.float32))
        scored = (scores or self._scores)(inputs.to(parameter.dtype)).float()
        return F.interpolate(scored, pixels.shape[-2:], mode="bilinear", align_corners=False).argmax(1)

    def _scores(self, pixels: Tensor) -> Tensor:
        return label_scores(self.model(pixel_values=pixels))


def label_scores(output: Any) -> Tensor:
    """Score (B, L, h, w) fp32 of each label; a query model's are summed over queries (Cheng et al., CVPR 2022)."""
    if "logits" in output:
        return output.logits.float()
    classes = output.class_queries_logits.float().softmax(-1)[..., :-1]
    masks = output.masks_queries_logits.float().sigmoid()
    return torch.einsum("bql,bqhw->blhw", classes, masks)


def _palette(colours: Any, count: int) -> np.ndarray:
    if colours is None and count == len(ade20k.PALETTE):
        return ade20k.PALETTE
    palette = np.asarray(colours)
    if colours is None or palette.shape != (count, 3) or palette.min() < 0 or palette.max() > 255:
        found = "none" if colours is None else f"one of shape {palette.shape}"
        raise CheckpointError(
            f"the segmenter has {count} labels and needs a 'palette' in its config.json, an RGB colour in 0..255 for "
            f"each label, as its ControlNet was trained on; found {found}"
        )
    return palette.astype(np.uint8)


def _background(labels: tuple[str, ...], names: Any) -> frozenset[int]:
    """Indices of the labels in `names`, else of a label called background, else of ADE20K's surroundings."""
    plain = [label.split(",")[0].strip().lower() for label in labels]
    if names is None:
        names = {"background"} if "background" in plain else ade20k.BACKGROUND
    found = frozenset(i for i, label in enumerate(plain) if label in {str(n).lower() for n in names})
    if not found:
        raise CheckpointError(
            "the segmenter's labels name no background; list the background's labels under 'background' in its "
            f"config.json; its labels are {', '.join(labels[:12])}{', ...' if len(labels) > 12 else ''}"
        )
    return found


def to_pixels(image: Image.Image, height: int, width: int) -> Tensor:
    """RGB picture -> pixels (1, 3, height, width) float32 in [0, 1]."""
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
