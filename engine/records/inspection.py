"""A manifest in words, beside the picture it speaks of."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..api.errors import TwigError
from ..api.pixels import load_picture
from ..api.reading import MAX_PICTURE, quoted, read_bytes, shown
from ..api.writing import read_log
from .audit import LOG_NAME, file_hash
from .chain import parsed
from .credentials import Credentials, credentials_of
from .manifest import Manifest, pixel_hash
from .wording import gate_text, scores_in_words, verdict_text, why_text

_LONGEST = 4000


def saved_picture(record: Manifest, folder: Path) -> Image.Image | None:
    """Open the picture that a manifest in `folder` speaks of, None where it is not there."""
    path = folder / Path(record.image or "").name
    return load_picture(path) if record.image and path.exists() else None


def read_mask(path: Path) -> np.ndarray:
    """Open a mask (height, width) bool: true where the picture at `path` is nearer to white than to black."""
    return np.asarray(load_picture(path).convert("L")) > 127


class Beside(NamedTuple):
    """What was found out about something that belongs to a manifest: in words, and whether it speaks against it."""

    text: str
    wrong: bool = False


def in_log(manifest: Path) -> Beside:
    """What the audit log in a manifest's folder says of it. Reads no secret and changes nothing."""
    path = manifest.parent / LOG_NAME
    if not path.exists():
        return Beside("there is none beside the manifest")
    digest, numbers = file_hash(manifest), []
    for text in read_log(path):
        line = parsed(text)
        if line is not None and line.get("manifest") == manifest.name:
            if line.get("manifest_sha256") != digest:
                return Beside(f"line {line['number']} names it as it was: it was ALTERED since", wrong=True)
            numbers.append(str(line["number"]))
    if not numbers:
        return Beside("the one beside the manifest does NOT name it", wrong=True)
    return Beside(f"line {', '.join(numbers)} of {path.name} names it as it is")


def in_picture(manifest: Path, record: Manifest) -> Beside | None:
    """What the content credentials of a manifest's picture say, None for a picture that has none, or is not there."""
    path = manifest.parent / Path(record.image or "").name
    if not record.image or not path.is_file():
        return None
    found = _verified(path)
    if found is None or isinstance(found, Beside):
        return found
    if found.manifest_sha256 != file_hash(manifest):
        return Beside(f"valid, {_signer(found)}, and of ANOTHER manifest", wrong=True)
    return Beside(f"valid, {_vouched(found)}, of this manifest")


def of_picture(path: Path) -> Beside:
    """What a picture without its manifest says of itself by its content credentials. Raises TwigError where unread."""
    found = _verified(path)
    if found is None:
        return Beside("there are none", wrong=True)
    if isinstance(found, Beside):
        return found
    digest = found.manifest_sha256
    named = "of no manifest of Twig's" if digest is None else f"of the manifest whose SHA-256 is {quoted(digest)}"
    return Beside(f"valid, {_vouched(found)}, {named}")


def _verified(path: Path) -> Credentials | Beside | None:
    """The credentials of the picture at `path` where they hold, else what speaks against them; None for none."""
    data = read_bytes(path, MAX_PICTURE)
    try:
        found = credentials_of(data)
    except TwigError as error:
        return Beside(f"there, and NOT verified: {error}", wrong=True)
    if found is None or found.valid:
        return found
    return Beside(f"NOT valid: {', '.join(map(quoted, found.problems))}, {_signer(found)}", wrong=True)


def _signer(found: Credentials) -> str:
    return f"signed by {quoted(found.signer)} of {quoted(found.issuer)}"


def _vouched(found: Credentials) -> str:
    return f"{_signer(found)}{'' if found.trusted else ', whom no list here vouches for'}"


def differs(record: Manifest, saved: Image.Image | None) -> bool:
    """Whether the picture beside a manifest is not the manifest's."""
    return saved is not None and pixel_hash(saved) != record.hashes.image


def lines(record: Manifest) -> Iterator[tuple[str, str]]:
    """What a manifest says, as label and text; each text is one printable line."""
    for label, text in _lines(record):
        yield label, shown(text, _LONGEST)


def _lines(record: Manifest) -> Iterator[tuple[str, str]]:
    request, model = record.request, record.model
    yield "verdict", verdict_text(record)
    if why := why_text(record, brought=record.source is not None):
        yield "why", why
    if record.error:
        yield "error", quoted(record.error)
    yield "prompt", quoted(request.prompt)
    if request.negative_prompt:
        yield "negative", quoted(request.negative_prompt)
    yield (
        "request",
        f"seed {request.seed}, image {record.index + 1} of {request.num_images}, {record.request_sha256[:16]}",
    )
    if record.gate is not None:
        yield "gate", gate_text(record.gate)
    for number, attempt in enumerate(record.attempts, start=1):
        scores = ", ".join(scores_in_words(attempt.scores, record.rule))
        mechanisms = ", ".join(name for name, on in attempt.avoidance.model_dump().items() if on) or "no avoidance"
        yield f"attempt {number}", f"seed {attempt.seed}, {attempt.rows} UNet rows, {mechanisms}: {scores}"
    yield "rule", record.rule
    yield "limits", f"calibration {record.calibration}" if record.calibration else "not calibrated"
    if record.registry is not None:
        nearest = record.attempts[-1].nearest if record.attempts else None
        yield "registry", f"version {record.registry}, nearest work {nearest}"
    yield "model", f"{model.source or 'embedded'}, {model.sha256[:16]}, {model.dtype} on {model.device}"
    yield "machine", f"{record.machine.system} {record.machine.processor}, {record.machine.device}"
    yield "made", f"{record.created:%Y-%m-%d %H:%M:%S} UTC, {', '.join(map(' '.join, record.libraries.items()))}"


def integrity(record: Manifest, saved: Image.Image | None) -> str:
    """Whether the picture beside a manifest is the one it speaks of, in words."""
    if saved is None:
        return f"{record.image}: {'there is none' if record.image is None else 'not beside the manifest'}"
    if differs(record, saved):
        return f"{record.image}: its pixels are NOT those of the manifest"
    return f"{record.image}: its pixels are those of the manifest"
