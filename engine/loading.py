"""An engine's parts from what users name: folders and hub ids, files of limits and of works, options by keyword."""

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from .api.calibration import Calibration
from .judging.registry import Registry
from .models.bank import Bank
from .models.checkpoint import Components, load
from .models.layout import Source


def loaded(
    source: Source | None,
    *,
    controlnet: Source | None,
    segmenter: Source | None,
    calibration: Calibration | Path | str | None,
    bank: Bank | Path | str | None,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Components:
    """Load a model, with limits and shapes in the place of its own where they are given. Raises CheckpointError."""
    components = load(source, controlnet=controlnet, segmenter=segmenter, dtype=dtype, device=device)
    given: dict[str, Any] = {}
    if calibration is not None:
        given["calibration"] = calibration if isinstance(calibration, Calibration) else Calibration.load(calibration)
    if bank is not None:
        given["bank"] = bank if isinstance(bank, Bank) else Bank.load(bank)
    return replace(components, **given)


def registered(registry: Registry | Path | str | None) -> Registry | None:
    """The works themselves, or those of a file. Raises CheckpointError."""
    return registry if isinstance(registry, Registry | None) else Registry.load(registry)


def check_options(engine: type, options: Mapping[str, Any]) -> None:
    """Raise TypeError for an option that a class of engines does not take, with the one that may be meant."""
    constructors = (vars(base)["__init__"] for base in engine.__mro__[:-1] if "__init__" in vars(base))
    parameters = (each for make in constructors for each in inspect.signature(make).parameters.values())
    known = sorted({each.name for each in parameters if each.kind is each.KEYWORD_ONLY})
    for name in options:
        if name not in known:
            close = get_close_matches(name, known, 1)
            meant = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
            raise TypeError(f"{name!r} is no option of an engine; {meant}")


def warn_of_slow_dtype(dtype: torch.dtype, device: torch.device | str) -> None:
    """Warn where a processor without instructions for `dtype` is to compute in it."""
    if torch.device(device).type != "cpu" or dtype is torch.float32 or _computes(dtype):
        return
    warnings.warn(
        f"this processor has no instructions for {dtype}, which makes it several times slower than torch.float32",
        stacklevel=3,
    )


def _computes(dtype: torch.dtype) -> bool:
    """Whether the processor computes in `dtype` itself, as oneDNN, which PyTorch uses on it, tells."""
    ops = torch.ops.mkldnn
    if dtype is torch.bfloat16:
        return bool(ops._is_mkldnn_bf16_supported())
    return dtype is torch.float16 and bool(ops._is_mkldnn_fp16_supported())
