"""How a segmenter wants its pixels, as the image processor of transformers that its folder names reads its settings."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch.nn.functional as F
from torch import Tensor

from .. import models
from ..api.reading import shown
from .transfers import constant

_MASK_FORMERS = frozenset({"Mask2FormerImageProcessor", "MaskFormerImageProcessor"})
_SERVED = frozenset(
    {"do_resize", "size", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"}
)
_MASK_FORMERS_ALONE = frozenset({"size_divisor", "size_divisibility", "max_size", "_max_size"})
_DPT_ALONE = frozenset({"ensure_multiple_of"})
_DESCRIPTIVE = frozenset({
    "image_processor_type", "feature_extractor_type", "processor_class", "_processor_class", "_valid_processor_keys",
    # of label maps, none of which is given to it
    "do_reduce_labels", "reduce_labels", "ignore_index", "num_labels", "num_text", "class_info_file", "repo_path",
    "metadata",
    "crop_size",  # of a crop that is never made
})  # fmt: skip
_IDLE: Mapping[str, tuple[Any, ...]] = {
    "do_center_crop": (None, False), "do_pad": (None, False, True), "pad_size": (None,),
    "do_convert_rgb": (None, False, True), "default_to_square": (None, False, True), "device": (None,),
    "data_format": (None, "channels_first"), "input_data_format": (None,), "return_tensors": (None,),
    "disable_grouping": (None, False, True), "image_seq_length": (None,),
    "keep_aspect_ratio": (None, False),  # of DPT, which reads nothing but squares
}  # fmt: skip
"""Settings that are not served, and their values that change nothing of a batch of pictures of one size."""

_MODES = {2: "bilinear", 3: "bicubic"}
_LARGEST = 8192


@dataclass(frozen=True)
class Preprocessing:
    """How a segmenter wants its pixels: a size in pixels, then `scale` (of values in [0, 1]), mean and deviation.

    size: fixed (height, width). edges: (shortest, longest) edge to scale to, the longest without bound where None.
    bounds: largest (height, width) to scale to. Without any of them a picture keeps its size. divisor: both sides are
    rounded up to a multiple of it.
    """

    size: tuple[int, int] | None = None
    edges: tuple[int, int | None] | None = None
    bounds: tuple[int, int] | None = None
    divisor: int = 1
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    deviation: tuple[float, ...] = (1.0, 1.0, 1.0)
    mode: str = "bilinear"

    @classmethod
    def from_config(cls, config: Mapping[str, Any], usual: str = "") -> Self:
        """Read a `preprocessor_config.json`: what it leaves out is as the library's class has it.

        usual: name of the processor where the file names none. Raises ValueError for a setting that is not served.
        """
        name = _named(config, usual)
        known = _SERVED | (_MASK_FORMERS_ALONE if name in _MASK_FORMERS else frozenset())
        known |= _DPT_ALONE if name == "DPTImageProcessor" else frozenset()
        for key, value in config.items():
            if key not in known | _DESCRIPTIVE and value not in _IDLE.get(key, ()):
                raise ValueError(f"{shown(key)} {shown(repr(value), 80)}, which is not served; leave it out")
        processor = models.processors.PROCESSORS[name].from_dict({k: v for k, v in config.items() if k in known})
        values: dict[str, Any] = {"scale": 255 * (_scale(processor.rescale_factor) if processor.do_rescale else 1)}
        if processor.do_normalize:
            mean, deviation = _colours("image_mean", processor.image_mean), _colours("image_std", processor.image_std)
            if min(deviation) <= 0:
                raise ValueError(f"image_std {deviation}, which must be positive")
            values |= {"mean": mean, "deviation": deviation}
        if processor.do_resize:
            values |= _target(processor.size) | {"mode": _mode(processor.resample)}
            values |= {"divisor": _side("size_divisor", getattr(processor, "size_divisor", None) or 1)}
        if processor.do_resize and name == "DPTImageProcessor":
            if "size" not in values:
                raise ValueError(f"size {shown(dict(processor.size))}, which must name height and width")
            step = _side("ensure_multiple_of", processor.ensure_multiple_of)
            values["size"] = tuple(round(side / step) * step for side in values["size"])
        return cls(**values)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Size at which the segmenter sees a picture of `height` x `width`."""
        if self.size is not None:
            height, width = self.size
        elif self.edges is not None:
            height, width = models.processors.get_size_with_aspect_ratio((height, width), *self.edges)
        elif self.bounds is not None:
            height, width = models.processors.get_image_size_for_max_height_width((height, width), *self.bounds)
        return (
            max(1, math.ceil(height / self.divisor)) * self.divisor,
            max(1, math.ceil(width / self.divisor)) * self.divisor,
        )

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [0, 1] -> the model's input (B, 3, h, w)."""
        size = self.resized(*pixels.shape[-2:])
        if size != tuple(pixels.shape[-2:]):
            pixels = F.interpolate(pixels, size, mode=self.mode, align_corners=False, antialias=True).clamp(0, 1)
        mean, deviation = (constant(v, pixels).view(-1, 1, 1) for v in (self.mean, self.deviation))
        return (pixels * self.scale - mean) / deviation


def _named(config: Mapping[str, Any], usual: str) -> str:
    """Name of the library's class, without what tells its implementations or its former names apart."""
    named = config.get("image_processor_type") or config.get("feature_extractor_type") or usual
    if not named:
        named = "Mask2FormerImageProcessor" if _MASK_FORMERS_ALONE & config.keys() else "SegformerImageProcessor"
    plain = str(named).removesuffix("Pil").removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
    if plain not in models.processors.PROCESSORS:
        raise ValueError(
            f"image_processor_type {shown(repr(named), 80)}; those served are {', '.join(models.processors.PROCESSORS)}"
        )
    return plain


def _target(size: Any) -> dict[str, Any]:
    """Fields of `Preprocessing` for the library's `size`, in the order in which it looks at them."""
    given = {name: _side(f"size.{name}", value) for name, value in dict(size).items() if value is not None}
    if "shortest_edge" in given:
        return {"edges": (given["shortest_edge"], given.get("longest_edge"))}
    if {"max_height", "max_width"} <= given.keys():
        return {"bounds": (given["max_height"], given["max_width"])}
    if {"height", "width"} <= given.keys():
        return {"size": (given["height"], given["width"])}
    raise ValueError(f"size {shown(dict(size))}, which must name height and width, or shortest_edge")


def _side(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _LARGEST:
        raise ValueError(f"{name} {shown(repr(value), 80)}, which must be a whole number from 1 to {_LARGEST}")
    return value


def _mode(resample: Any) -> str:
    if isinstance(resample, bool) or resample not in _MODES:
        raise ValueError(f"resample {shown(repr(resample), 80)}, which must be 2 (bilinear) or 3 (bicubic)")
    return _MODES[resample]


def _scale(factor: Any) -> float:
    if not _is_finite(factor) or factor <= 0:
        raise ValueError(f"rescale_factor {shown(repr(factor), 80)}, which must be a positive number")
    return float(factor)


def _colours(name: str, value: Any) -> tuple[float, ...]:
    """One number for each of red, green and blue, or one for all."""
    numbers = list(value) if isinstance(value, list | tuple) else [value] * 3
    if len(numbers) != 3 or not all(_is_finite(number) for number in numbers):
        raise ValueError(f"{name} {shown(repr(value), 80)}, which must be three numbers, or one")
    return tuple(float(number) for number in numbers)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
