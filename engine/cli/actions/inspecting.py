"""What `twig inspect` does: a manifest in words, and its picture again."""

from dataclasses import replace
from pathlib import Path

from ...api.errors import InvalidRequestError
from ...api.pixels import load_picture
from ...engine import Engine
from ...records.inspection import differs, in_log, in_picture, lines, read_mask, saved_picture
from ...records.manifest import InputRecord, Manifest, ModelRecord
from ...replay import replay
from ..options import EngineChoice, given
from ..status import DIFFERS, DONE
from .engines import load_engine


def inspect(manifest: Path, choice: EngineChoice, *, again: bool, source: Path | None, mask: Path | None) -> int:
    """Print the manifest and check picture, log and credentials; `again` replays it and compares. Return the exit code.

    choice, source, mask: what takes the place of what the manifest says.
    """
    record = Manifest.load(manifest)
    saved = saved_picture(record, manifest.parent)
    for label, text in lines(record, saved):
        print(f"{label:14}{text}")
    wrong = differs(record, saved)
    for label, beside in (("audit log", in_log(manifest)), ("credentials", in_picture(manifest, record))):
        if beside is not None:
            print(f"{label:14}{beside.text}")
            wrong |= beside.wrong
    if not again:
        return DIFFERS if wrong else DONE
    engine = _engine_of_then(record.model, choice)
    photo, avoided = source or _path(record.source), mask or _path(record.mask)
    outcome = replay(
        record,
        engine,
        saved,
        source=None if photo is None else load_picture(photo),
        mask=None if avoided is None else read_mask(avoided),
    )
    print(f"{'replay':14}{outcome}")
    return DONE if outcome.identical and not wrong else DIFFERS


def _engine_of_then(then: ModelRecord, choice: EngineChoice) -> Engine:
    """The engine that the manifest speaks of, with what was named in its place.

    A replay must not fetch what a manifest, which may come from anyone, names: such a part must lie on this disk.
    """
    named = choice.parts
    recorded = given(model=then.source, controlnet=then.controlnet, segmenter=then.segmenter)
    for part, source in recorded.items():
        if part not in named and not Path(source).exists():
            raise InvalidRequestError(
                f"the manifest names {source!r}, which is not on this disk; name it with --{part}"
            )
    return load_engine(replace(choice, **(recorded | named), device=choice.device or then.device, dtype=then.dtype))


def _path(record: InputRecord | None) -> Path | None:
    return None if record is None else record.path
