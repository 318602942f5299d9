"""The engine that a command's options ask for."""

import torch

from ...api.choices import Precision
from ...api.errors import InvalidRequestError
from ...api.request import Requests
from ...engine import Engine
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
            variant=choice.variant,
            revision=choice.revision,
            calibration=choice.calibration,
            registry=choice.registry,
            max_pixels=choice.limit_pixels,
            **more,
        ),
        requests=requests,
        device=served_device(choice.device),
        dtype=getattr(torch, choice.dtype or Precision.FLOAT32),
    )


def served_device(name: str | None) -> str:
    """The device named, if it is here; raises InvalidRequestError naming those that are."""
    gpus = torch.cuda.device_count()
    served = ["cpu", *["cuda"][:gpus], *(f"cuda:{number}" for number in range(gpus))]
    if name is not None and name not in served:
        raise InvalidRequestError(f"there is no device {name!r} here; there is {', '.join(served)}")
    return name or ("cuda" if gpus else "cpu")
