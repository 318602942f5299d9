"""Pictures in, label maps out: a transformers segmentation model behind one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import models
from ..api.errors import CheckpointError
from ..api.reading import shown
from . import ade20k
from .preprocessing import Preprocessing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TASK = "the task is semantic"

__all__ = ["Preprocessing", "Segmenter", "label_scores"]


class Segmenter:
    """A semantic or universal segmentation model of transformers.

    model: one whose output holds `logits` (SegFormer, UperNet, BEiT, DPT), or query logits (Mask2Former, OneFormer).
    palette (L, 3) uint8: colour of each label in a control image. labels: name of each. background: labels that are no
    subject's shape.
    """

    def __init__(self, model: PreTrainedModel, preprocessing: Preprocessing) -> None:
        config: Any = model.config
        self.model = _with_task(model)
        self.preprocessing = preprocessing
        self.labels: tuple[str, ...] = _labels(config)
        self.palette = _palette(getattr(config, "palette", None), len(self.labels))
        self.background = _background(self.labels, getattr(config, "background", None))

    @property
    def names(self) -> tuple[str, ...]:
        """The first name of each label, in small letters."""
        return plain_names(self.labels)

    @property
    def objects(self) -> tuple[str, ...]:
        """Names of the labels that are a subject's shape."""
        return tuple(name for i, name in enumerate(self.labels) if i not in self.background)

    def seen(self, pixels: Tensor) -> dict[str, float]:
        """Objects in a picture (1, 3, H, W) in [0, 1] by name, with the share of the frame of each, largest first."""
        found = torch.bincount(self(pixels).flatten(), minlength=len(self.labels)) / pixels[0, 0].numel()
        ranked = sorted(enumerate(found.tolist()), key=lambda pair: -pair[1])
        return {self.labels[i]: share for i, share in ranked if share and i not in self.background}

    @torch.no_grad()
    def __call__(self, pixels: Tensor, scores: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Pixels (B, 3, H, W) in [0, 1] -> labels (B, H, W) int64. `scores` runs the network in the model's place."""
        parameter = next(self.model.parameters())
        inputs = self.preprocessing(pixels.to(parameter.device, torch.float32))
        scored = (scores or self._scores)(inputs.to(parameter.dtype)).float()
        return F.interpolate(scored, pixels.shape[-2:], mode="bilinear", align_corners=False).argmax(1)

    def _scores(self, pixels: Tensor) -> Tensor:
        return label_scores(self.model, pixels)


def _with_task(model: PreTrainedModel) -> PreTrainedModel:
    """OneFormer is told by words what to do, which are the same for every picture; other models are told nothing."""
    if model.config.model_type == "oneformer":
        length = model.config.task_seq_len
        words = models.clip_tokenizer.clip_tokenizer()(
            _TASK, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        tokens = words.input_ids * words.attention_mask
        model.register_buffer("task_inputs", tokens.to(next(model.parameters()).device), persistent=False)
    return model


def label_scores(model: Any, pixels: Tensor) -> Tensor:
    """Score (B, L, h, w) fp32 of each label for normalised pixels (B, 3, H, W).

    A query model's are summed over queries (Cheng et al., CVPR 2022).
    """
    task = getattr(model, "task_inputs", None)
    told = {} if task is None else {"task_inputs": task.expand(len(pixels), -1)}
    output = model(pixel_values=pixels, **told)
    if "logits" in output:
        return output.logits.float()
    classes = output.class_queries_logits.float().softmax(-1)[..., :-1]
    masks = output.masks_queries_logits.float().sigmoid()
    return torch.einsum("bql,bqhw->blhw", classes, masks)


def plain_names(labels: Iterable[str]) -> tuple[str, ...]:
    """The first name of each of `labels`, of which "a, b" has two, in small letters."""
    return tuple(label.split(",")[0].strip().lower() for label in labels)


def _labels(config: Any) -> tuple[str, ...]:
    """Names of a model's outputs, in their order."""
    names = config.id2label
    if not isinstance(names, dict) or sorted(map(str, names)) != sorted(map(str, range(len(names)))) or not names:
        raise CheckpointError(
            "the segmenter's config.json must name its labels in 'id2label' from 0 on without a gap, as its outputs "
            f"are counted; found {shown(', '.join(map(str, names)) if isinstance(names, dict) else repr(names))}"
        )
    by_number = {int(number): str(name) for number, name in names.items()}
    return tuple(by_number[number] for number in range(len(by_number)))


def _palette(colours: Any, count: int) -> np.ndarray:
    if colours is None and count == len(ade20k.PALETTE):
        return ade20k.PALETTE
    if not isinstance(colours, list | tuple) or len(colours) != count or not all(map(_is_colour, colours)):
        raise CheckpointError(
            f"the segmenter has {count} labels and needs a 'palette' in its config.json, an RGB colour in 0..255 for "
            f"each label, as its ControlNet was trained on; found {_described(colours)}"
        )
    return np.array(colours, np.uint8)


def _is_colour(value: Any) -> bool:
    """Whether `value` is three whole numbers of a byte's range."""
    return (
        isinstance(value, list | tuple)
        and len(value) == 3
        and all(isinstance(part, int) and not isinstance(part, bool) and 0 <= part <= 255 for part in value)
    )


def _described(colours: Any) -> str:
    if not isinstance(colours, list | tuple):
        return "none" if colours is None else f"{shown(repr(colours), 80)}"
    wrong = next((colour for colour in colours if not _is_colour(colour)), None)
    return f"{len(colours)} colours" if wrong is None else f"the colour {shown(repr(wrong), 80)}"


def _background(labels: tuple[str, ...], names: Any) -> frozenset[int]:
    """Indices of the labels in `names`, else of a label called background, else of ADE20K's surroundings."""
    plain = plain_names(labels)
    if names is not None and not isinstance(names, list | tuple | set | frozenset):
        raise CheckpointError(
            f"'background' in the segmenter's config.json must be a list of labels, got {shown(repr(names), 80)}"
        )
    if names is None:
        names = {"background"} if "background" in plain else ade20k.BACKGROUND
    found = frozenset(i for i, label in enumerate(plain) if label in {str(n).lower() for n in names})
    if not found:
        raise CheckpointError(
            "the segmenter's labels name no background; list the background's labels under 'background' in its "
            f"config.json; its labels are {shown(', '.join(labels[:12]))}{', ...' if len(labels) > 12 else ''}"
        )
    return found
