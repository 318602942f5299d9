"""The engine that a command's options ask for."""

from collections.abc import Sequence

import torch

from ...api.choices import Precision
from ...api.errors import InvalidRequestError
from ...api.reading import shown
from ...api.request import Requests
from ...engine import Engine
from ...loading import served_device
from ..options import EngineChoice, given


def _named(adapters: Sequence[str]) -> dict[str, str]:
    """Files by name, of NAME=FILE each. Raises InvalidRequestError."""
    found: dict[str, str] = {}
    for one in adapters:
        name, equals, file = one.partition("=")
        if not equals or not file or name in found:
            raise InvalidRequestError(f"--adapter {shown(one, 200)}: write NAME=FILE, with a name of its own for each")
        found[name] = file
    return found


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
            lora=choice.lora or None,
            adapters=_named(choice.adapters) or None,
            variant=choice.variant,
            revision=choice.revision,
            prediction_type=choice.prediction_type,
            calibration=choice.calibration,
            bank=choice.bank,
            metrics=choice.metrics or None,
            registry=choice.registry,
            backend=choice.backend,
            precision=choice.precision,
            max_pixels=choice.limit_pixels,
            **more,
        ),
        requests=requests,
        device=served_device(choice.device),
        dtype=getattr(torch, choice.dtype or Precision.FLOAT32),
    )
