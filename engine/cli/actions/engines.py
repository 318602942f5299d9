"""The engine that a command's options ask for."""

import torch

from ...api.choices import Precision
from ...api.request import Requests
from ...engine import Engine
from ...loading import served_device
from ..options import EngineChoice, given


def load_engine(choice: EngineChoice, requests: Requests = (), **more: str | None) -> Engine:
    """Return the engine that was asked for, on the device named, else on a GPU if there is one.

    requests: checked before weights are read. more: further keywords of `Engine.from_pretrained`.
    """
    return Engine.from_pretrained(
        choice.model,
        **given(
            controlnet=choice.controlnet,
            segmenter=choice.segmenter,
            vae=choice.vae,
            preview_vae=choice.preview_vae,
            embeddings=choice.embeddings or None,
            variant=choice.variant,
            revision=choice.revision,
            prediction_type=choice.prediction_type,
            calibration=choice.calibration,
            bank=choice.bank,
            metrics=choice.metrics or None,
            registry=choice.registry,
            max_pixels=choice.limit_pixels,
            **more,
        ),
        requests=requests,
        device=served_device(choice.device),
        dtype=getattr(torch, choice.dtype or Precision.FLOAT32),
    )
