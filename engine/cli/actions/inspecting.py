"""What `twig inspect` does: a manifest in words, and its picture again."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from ...api.choices import Compute
from ...api.errors import InvalidRequestError
from ...api.pixels import load_picture
from ...api.reading import quoted, shown
from ...api.request import Control
from ...engine import Engine
from ...records.inspection import (
    Beside,
    differs,
    in_log,
    in_picture,
    integrity,
    lines,
    of_picture,
    read_mask,
    saved_picture,
)
from ...records.manifest import InputRecord, Manifest
from ...records.model_record import ModelRecord
from ...records.wording import why_text
from ...replay import replay
from ..options import EngineChoice, Manner, given
from ..status import DIFFERS, DONE
from .controlling import controls_of
from .engines import load_engine
from .speaking import say, write_json

_PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def inspect(
    manifest: Path,
    choice: EngineChoice,
    *,
    again: bool,
    source: Path | None,
    mask: Path | None,
    controls: Sequence[str],
    manner: Manner,
) -> int:
    """Print the manifest and check picture, log and credentials; `again` replays it and compares. Return the exit code.

    manifest: a picture in its place is asked for its credentials alone. choice, source, mask, controls: what takes the
    place of what the manifest says.
    """
    if manifest.suffix.lower() in _PICTURES:
        return _picture_alone(manifest, manner, again=again)
    record = Manifest.load(manifest)
    saved = saved_picture(record, manifest.parent)
    checks = {"picture": Beside(integrity(record, saved), differs(record, saved)), "audit log": in_log(manifest)}
    if (credentials := in_picture(manifest, record)) is not None:
        checks["credentials"] = credentials
    if not manner.json:
        _tell([*lines(record), *((label, check.text) for label, check in checks.items())])
    if again:
        checks["replay"] = _replayed(record, choice, saved, source, mask, controls_of(controls))
        if not manner.json:
            _tell([("replay", checks["replay"].text)])
    if manner.json:
        write_json(_values(record, checks))
    return DIFFERS if any(check.wrong for check in checks.values()) else DONE


def _picture_alone(picture: Path, manner: Manner, *, again: bool) -> int:
    """Print what a picture says of itself; return the exit code."""
    if again:
        raise InvalidRequestError(f"a replay takes the manifest: name the JSON file beside {shown(picture)}")
    found = of_picture(picture)
    if manner.json:
        write_json({"checks": {"credentials": found._asdict()}})
    else:
        _tell([("credentials", found.text)])
    return DIFFERS if found.wrong else DONE


def _tell(said: Iterable[tuple[str, str]]) -> None:
    for label, text in said:
        say(label, text)


def _values(record: Manifest, checks: Mapping[str, Beside]) -> dict[str, Any]:
    """What a program is told: the manifest, why it ended so, and what each check found."""
    return {
        "why": why_text(record, brought=record.source is not None) or None,
        "checks": {label.replace(" ", "_"): check._asdict() for label, check in checks.items()},
        "manifest": json.loads(record.model_dump_json()),
    }


def _replayed(
    record: Manifest,
    choice: EngineChoice,
    saved: Image.Image | None,
    source: Path | None,
    mask: Path | None,
    controls: Sequence[Control],
) -> Beside:
    """The manifest's picture made again, and what came of it."""
    engine = _engine_of_then(record.model, record.metrics, _with_backends(choice, record.backends))
    photo, avoided = source or _path(record.source), mask or _path(record.mask)
    followed = {name: kept.path for name, kept in record.controls.items()} | {c.name: c.image for c in controls}
    outcome = replay(
        record,
        engine,
        saved,
        source=None if photo is None else load_picture(photo),
        mask=None if avoided is None else read_mask(avoided),
        controls={name: load_picture(place) for name, place in followed.items() if place is not None},
    )
    return Beside(str(outcome), not outcome.identical)


def _engine_of_then(then: ModelRecord, then_metrics: Iterable[str], choice: EngineChoice) -> Engine:
    """The engine that the manifest speaks of, with what was named in its place.

    then_metrics: the further measures of then, in the words that asked for them.

    A replay must not fetch what a manifest, which may come from anyone, names: such a part must lie on this disk.
    """
    recorded = given(model=then.source, segmenter=then.segmenter, vae=then.vae, preview_vae=then.preview_vae)
    missing: dict[str, Any] = {part: source for part, source in recorded.items() if getattr(choice, part) is None}
    for part, source in missing.items():
        _here(source, f"--{part.replace('_', '-')}")
    if choice.controlnet is None:
        first = [_here(source, "--controlnet") for source in given(first=then.controlnet).values()]
        named = [f"{name}={_here(source, '--controlnet')}" for name, source in then.controlnets.items()]
        missing["controlnet"] = [*first, *named] or None
    chosen = replace(
        _with_adapters(choice, then),
        **missing,
        metrics=choice.metrics or tuple(then_metrics),
        embeddings=choice.embeddings
        or tuple(f"{_here(each.path, '--embedding')}:{each.token}" for each in then.embeddings),
        variant=then.variant,
        prediction_type=then.prediction_type,
        device=choice.device or then.device,
        dtype=then.dtype,
    )
    return load_engine(chosen, **given(subfolder=then.subfolder if "model" in missing else None))


def _with_backends(choice: EngineChoice, then: Mapping[str, str]) -> EngineChoice:
    """The choice with what ran the networks then, where nothing else is named."""
    if choice.backend is not None or not then:
        return choice
    named = {network: ran.split() for network, ran in then.items()}
    backends = {network: backend for network, (backend, _) in named.items()}
    _, precision = next(iter(named.values()))
    return replace(choice, backend=backends, precision=choice.precision or Compute(precision))


def _with_adapters(choice: EngineChoice, then: ModelRecord) -> EngineChoice:
    """The choice with the adapters of then, where none are named in their place."""
    lora = choice.lora or tuple(f"{_here(each.path, '--lora')}:{each.weight}" for each in then.lora)
    adapters = choice.adapters or tuple(
        f"{each.name}={each.path}" for each in then.adapters if Path(each.path).exists()
    )
    return replace(choice, lora=lora, adapters=adapters)


def _here(path: str, option: str) -> str:
    if not Path(path).exists():
        raise InvalidRequestError(
            f"the manifest names {quoted(path)}, which is not on this disk; name it with {option}"
        )
    return path


def _path(record: InputRecord | None) -> Path | None:
    return None if record is None else record.path
