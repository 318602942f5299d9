"""An engine's parts from what users name: folders and hub ids, files of limits and of works, options by keyword."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import models
from .api.calibration import Calibration
from .api.errors import InvalidRequestError, TwigWarning
from .api.request import Requests, as_requests
from .backends.networks import usual_chunks
from .batching.capacity import usual_limits
from .door import MAX_PIXELS, MAX_STEPS, Door
from .judging.extra import ExtraMetric
from .judging.judge import Judge
from .judging.named import named_metrics
from .judging.registry import Registry
from .keeping import NotKeptError, keep_model, keeper_of, names_of
from .models.bank import Bank
from .models.components import Components
from .models.kept import is_current
from .models.kept import read as read_kept

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from .models.controls import Chosen
    from .models.layout import Source
    from .models.outline import Outline

Limited = Calibration | Path | str | None
"""Limits in the place of a model's own, or their file."""

Shaped = Bank | Path | str | None
"""A bank of shapes in the place of a model's own, or its file."""


def opened(
    source: Source | None,
    named: Mapping[str, Any],
    dtype: torch.dtype,
    device: torch.device | str,
    calibration: Limited = None,
    bank: Shaped = None,
    requests: Requests = (),
    options: Mapping[str, Any] | None = None,
) -> Components:
    """Load a model, with limits and shapes in the place of its own where they are given.

    named: as of `outline.outlined`. requests: checked, as an engine with `options` would, before weights are read. A
    model whose networks all run compiled is kept beside them when it is first read, and then read from there. Raises
    CheckpointError, and InvalidRequestError for a request that cannot be served.
    """
    settings, read = options or {}, list[Components]()

    def outline() -> Outline:
        return models.outline.outlined(source, **named)

    def keep(folder: Path) -> None:
        found = outline()
        read.append(loaded(found, dtype, device, calibration, bank, requests, settings))
        keep_model(read[0], found, folder)

    keeper, names = keeper_of(settings), names_of(source, named, dtype)
    if keeper is None or names is None:
        return loaded(outline(), dtype, device, calibration, bank, requests, settings)
    try:
        folder = keeper.kept(names, keep, is_current)
    except NotKeptError:
        return read[0]
    if read:
        return read[0]
    found = read_kept(folder, dtype, device, lambda: _plain(outline(), dtype, device))
    return _checked(_with_own(found, calibration, bank), device, requests, settings)


def _plain(outline: Outline, dtype: torch.dtype, device: torch.device | str) -> Components:
    return models.checkpoint.filled(models.checkpoint.sketched(outline), outline, dtype, device)


def loaded(
    outline: Outline,
    dtype: torch.dtype,
    device: torch.device | str,
    calibration: Limited = None,
    bank: Shaped = None,
    requests: Requests = (),
    options: Mapping[str, Any] | None = None,
) -> Components:
    """Load a model, with limits and shapes in the place of its own where they are given.

    requests: checked, as an engine with `options` would, before weights are read. Raises CheckpointError, and
    InvalidRequestError for a request that cannot be served.
    """
    sketch = _with_own(models.checkpoint.sketched(outline), calibration, bank)
    return models.checkpoint.filled(_checked(sketch, device, requests, options or {}), outline, dtype, device)


def _with_own(components: Components, calibration: Limited, bank: Shaped) -> Components:
    """A model with a user's own limits and shapes in the place of its own, where they are given."""
    if calibration is not None:
        found = calibration if isinstance(calibration, Calibration) else Calibration.load(calibration)
        components = replace(components, calibration=found)
    if bank is not None:
        components = replace(components, bank=bank if isinstance(bank, Bank) else Bank.load(bank))
    return components


def _checked(
    components: Components, device: torch.device | str, requests: Requests, options: Mapping[str, Any]
) -> Components:
    """The model, which every request must fit. Raises InvalidRequestError."""
    door = _door(components, device, options)
    for request in as_requests(requests):
        door.check(request)
    return components


def _door(sketch: Components, device: torch.device | str, options: Mapping[str, Any]) -> Door:
    """The door of an engine that is not there yet."""
    limits = options.get("limits") or usual_limits(device)
    registry, metrics = options.get("registry"), options.get("extra_metrics") or {}
    return Door(
        sketch,
        options.get("max_steps", MAX_STEPS),
        options.get("max_pixels", MAX_PIXELS),
        limits.rows,
        Judge(sketch, metrics, registry, decode=_nothing, segment=_nothing),
        lambda height, width: None,
        options.get("max_prompt_chunks") or usual_chunks(options.get("backend", "torch")),
    )


def _nothing(pixels: torch.Tensor) -> torch.Tensor:
    raise AssertionError("a door looks at no pictures")


def of_pipeline(
    pipeline: DiffusionPipeline,
    controlnet: Chosen | None = None,
    segmenter: Source | None = None,
    calibration: Limited = None,
    bank: Shaped = None,
    preview_vae: Source | None = None,
) -> Components:
    """A pipeline's parts in its own number type, on its own device. Raises CheckpointError."""
    outline = models.outline.outlined_pipeline(
        pipeline, controlnet=controlnet, segmenter=segmenter, preview_vae=preview_vae
    )
    weight = next(outline.given["unet"].parameters())
    return loaded(outline, weight.dtype, weight.device, calibration, bank)


def registered(registry: Registry | Path | str | None) -> Registry | None:
    """The works themselves, or those of a file. Raises CheckpointError."""
    return registry if isinstance(registry, Registry | None) else Registry.load(registry)


def measures(
    specs: Sequence[str], own: Mapping[str, ExtraMetric] | None, device: torch.device | str
) -> dict[str, ExtraMetric]:
    """A user's own measures, and those that `specs` name, whose weights are loaded; `judging.named`.

    Raises InvalidRequestError where one has the name of another, and what `named_metrics` raises.
    """
    named, own = named_metrics(specs, device), own or {}
    if twice := sorted(named.keys() & own.keys()):
        raise InvalidRequestError(f"metric {twice[0]!r} is named in metrics and given in extra_metrics; keep one")
    return {**own, **named}


def served_device(name: str | None) -> str:
    """The device named, if it is here; raises InvalidRequestError naming those that are."""
    gpus = torch.cuda.device_count()
    served = ["cpu", *["cuda"][:gpus], *(f"cuda:{number}" for number in range(gpus))]
    if name is not None and name not in served:
        raise InvalidRequestError(f"there is no device {name!r} here; there is {', '.join(served)}")
    return name or ("cuda" if gpus else "cpu")


def check_options(engine: type, options: Mapping[str, Any], method: Callable[..., Any]) -> None:
    """Raise TypeError for an option that a class of engines does not take, with the one that may be meant.

    method: the one that was called, whose own keywords may be meant too.
    """
    constructors = [vars(base)["__init__"] for base in engine.__mro__[:-1] if "__init__" in vars(base)]
    known = {name for make in constructors for name in _keywords(make)}
    meant = sorted(known | set(_keywords(method)))
    for name in options:
        if name not in known:
            close = get_close_matches(name, meant, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(meant)}"
            raise TypeError(f"{name!r} is no option of an engine; {hint}")


def _keywords(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [each.name for each in parameters if each.kind is each.KEYWORD_ONLY]


def warn_of_slow_dtype(dtype: torch.dtype, device: torch.device | str) -> None:
    """Warn where a processor without instructions for `dtype` is to compute in it."""
    if torch.device(device).type != "cpu" or dtype is torch.float32 or _computes(dtype):
        return
    warnings.warn(
        f"this processor has no instructions for {dtype}, which makes it several times slower than torch.float32",
        TwigWarning,
        stacklevel=3,
    )


def _computes(dtype: torch.dtype) -> bool:
    """Whether the processor computes in `dtype` itself, as oneDNN, which PyTorch uses on it, tells."""
    ops = torch.ops.mkldnn
    if dtype is torch.bfloat16:
        return bool(ops._is_mkldnn_bf16_supported())
    return dtype is torch.float16 and bool(ops._is_mkldnn_fp16_supported())
