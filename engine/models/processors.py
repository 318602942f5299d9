"""The image processors of transformers whose settings are read, and how they reckon sizes."""

from collections.abc import Mapping
from typing import Any

from transformers import (
    BeitImageProcessorPil,
    DPTImageProcessorPil,
    Mask2FormerImageProcessorPil,
    MaskFormerImageProcessorPil,
    OneFormerImageProcessorPil,
    SegformerImageProcessorPil,
)
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import get_image_size_for_max_height_width

__all__ = ["PROCESSORS", "get_image_size_for_max_height_width", "get_size_with_aspect_ratio"]

PROCESSORS: Mapping[str, Any] = {
    "SegformerImageProcessor": SegformerImageProcessorPil,
    "Mask2FormerImageProcessor": Mask2FormerImageProcessorPil,
    "MaskFormerImageProcessor": MaskFormerImageProcessorPil,
    "OneFormerImageProcessor": OneFormerImageProcessorPil,
    "BeitImageProcessor": BeitImageProcessorPil,
    "DPTImageProcessor": DPTImageProcessorPil,
}
