"""A manifest in words, beside the picture it speaks of."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ..models.pictures import load_picture
from .manifest import Manifest, pixel_hash
from .pictures import gate_text, score_text


def saved_picture(record: Manifest, folder: Path) -> Image.Image | None:
    """Open the picture that a manifest in `folder` speaks of, None where it is not there."""
    path = folder / Path(record.image or "").name
    return load_picture(path) if record.image and path.exists() else None


def read_mask(path: Path) -> np.ndarray:
    """Open a mask (height, width) bool: true where the picture at `path` is nearer to white than to black."""
    return np.asarray(load_picture(path).convert("L")) > 127


def lines(record: Manifest, saved: Image.Image | None) -> Iterator[tuple[str, str]]:
    """What a manifest says, as label and text; prompts quoted, so that no control character reaches the terminal."""
    request, model = record.request, record.model
    yield "verdict", f"{record.verdict} in attempt {len(record.attempts)}" if record.attempts else record.verdict
    if record.error:
        yield "error", json.dumps(record.error, ensure_ascii=False)
    yield "picture", f"{record.image}: {_integrity(record, saved)}"
    yield "prompt", json.dumps(request.prompt, ensure_ascii=False)
    if request.negative_prompt:
        yield "negative", json.dumps(request.negative_prompt, ensure_ascii=False)
    yield (
        "request",
        f"seed {request.seed}, image {record.index + 1} of {request.num_images}, {record.request_sha256[:16]}",
    )
    if record.gate is not None:
        yield "gate", gate_text(record.gate)
    for number, attempt in enumerate(record.attempts, start=1):
        scores = ", ".join(score_text(name, score) for name, score in attempt.scores.items())
        mechanisms = ", ".join(name for name, on in attempt.avoidance.model_dump().items() if on) or "no avoidance"
        yield f"attempt {number}", f"seed {attempt.seed}, {attempt.rows} UNet rows, {mechanisms}: {scores}"
    for reason in record.attempts[-1].reasons if record.attempts else ():
        yield "crossed", reason
    yield "rule", record.rule
    yield "limits", f"calibration {record.calibration}" if record.calibration else "not calibrated"
    if record.registry is not None:
        nearest = record.attempts[-1].nearest if record.attempts else None
        yield "registry", f"version {record.registry}, nearest work {nearest}"
    yield "model", f"{model.source or 'embedded'}, {model.sha256[:16]}, {model.dtype} on {model.device}"
    yield "machine", f"{record.machine.system} {record.machine.processor}, {record.machine.device}"
    yield "made", f"{record.created:%Y-%m-%d %H:%M:%S} UTC, {', '.join(map(' '.join, record.libraries.items()))}"


def _integrity(record: Manifest, saved: Image.Image | None) -> str:
    if saved is None:
        return "there is none" if record.image is None else "not beside the manifest"
    same = pixel_hash(saved) == record.hashes.image
    return "its pixels are those of the manifest" if same else "its pixels are NOT those of the manifest"
