"""The engine that a command's options ask for."""

import torch

from ...api.choices import Precision
from ...api.errors import InvalidRequestError
from ...engine import Engine
from ..options import EngineChoice, given


def load_engine(choice: EngineChoice) -> Engine:
    """Return the engine that was asked for, on the device named, else on a GPU if there is one."""
    parts = choice.parts
    model = parts.pop("model", None)
    return Engine.from_pretrained(
        model,
        **parts,
        **given(
            calibration=choice.calibration,
            bank=choice.bank,
            registry=choice.registry,
            max_pixels=choice.limit_pixels,
        ),
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
