"""The folder that results are written to: pictures, manifests, contact sheets and the audit log.

A record is written in an order that a kill cannot turn round: the manifest, then its line in the log, then what shows
the picture. What is found unfinished of a run that is made again is finished, and what is there is never replaced.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..api.errors import RecordError, TwigError
from ..api.result import GenerationResult
from ..api.writing import check_folder, sweep, write_new, write_whole
from ..models.segmentation import load_picture
from .audit import AuditLog, Event, file_hash
from .credentials import Signer
from .explaining import explanation_arrays, explanation_json, explanation_picture
from .manifest import InputRecord, Manifest, ModelRecord, pixel_hash
from .naming import SUFFIXES, record_names, run_name, same_record
from .pictures import png
from .sheets import contact_sheet


class _Place(NamedTuple):
    """Where a record lies: its manifest's path, its picture's (the manifest's where there is none), the manifest.

    found: whether it was there already.
    """

    path: Path
    picture: Path
    manifest: Manifest
    found: bool


@dataclass(frozen=True)
class OutputFolder:
    """Writes each result as it comes, every file whole or not at all.

    model: what the results were made by. source, mask: what the user brought to every request, if anything. signer:
    gives the pictures content credentials. repeats: what `save` returned for results whose record was there already.
    """

    path: Path
    model: ModelRecord
    log: AuditLog
    source: InputRecord | None = None
    mask: InputRecord | None = None
    signer: Signer | None = None
    repeats: set[Path] = field(default_factory=set)

    def prepare(self) -> None:
        """Find out whether all of it can be written, before anything is drawn, and sweep what a killed run left.

        Raises RecordError or OSError naming the file that is in the way.
        """
        check_writable(self.path, self.log)
        sweep(self.path)

    def save(self, result: GenerationResult) -> Path:
        """Write the manifest, its line in the audit log, explanations and the picture; return the picture's path.

        Where there is no picture, because the run failed, the manifest's path. A result whose record is there already
        finds it, which the log says in a line of its own; one that ended otherwise gets a name of its own. Raises
        RecordError where its names are taken by what is no record of it.
        """
        place = self._place(result)
        event = Event.MADE
        if place.found and self.log.names(place.path):
            event = Event.REPEATED
            self.repeats.add(place.picture)
        self.log.append(place.manifest, place.path, event)
        self._explain(result, place.path)
        if result.image is not None:
            self._show(png(result.image), place)
        return place.picture

    def sheet_path(self, result: GenerationResult) -> Path:
        """Where the contact sheet of a result's request lies, or will."""
        manifest = Manifest.of(result, self.model, source=self.source, mask=self.mask)
        return self.path / f"{run_name(manifest, self.log.secret)}-sheet.png"

    def save_sheet(self, results: Sequence[GenerationResult]) -> Path:
        """Write one request's contact sheet, for its owner alone, since it shows the prompt; return its path."""
        path = self.sheet_path(results[0])
        write_whole(path, png(contact_sheet(results)), private=True)
        return path

    def _place(self, result: GenerationResult) -> _Place:
        """Save a result's manifest under the first of its names that is free, or find it there."""
        unnamed = Manifest.of(result, self.model, source=self.source, mask=self.mask)
        for name in record_names(unnamed, self.log.secret):
            path = self.path / f"{name}.json"
            image = None if result.image is None else f"{name}{SUFFIXES.get(result.verdict, '')}.png"
            picture = path if image is None else self.path / image
            if image is not None and not _is_free(picture, unnamed):
                continue
            manifest = unnamed.model_copy(update={"image": image})
            with suppress(FileExistsError):
                manifest.save(path)
                return _Place(path, picture, manifest, found=False)
            found = _manifest(path)
            if found is not None and same_record(found, manifest) and found.image == image:
                return _Place(path, picture, found, found=True)
        raise RecordError(f"{path} and {picture.name} are there and are not of this run; move them away")

    def _show(self, data: bytes, place: _Place) -> None:
        """Let the picture appear; one that is there has the same pixels."""
        if self.signer is not None:
            signed = self.signer.sign(data, file_hash(place.path), self.model.sha256)
            write_whole(place.picture, signed)
        else:
            with suppress(FileExistsError):
                write_new(place.picture, data)

    def _explain(self, result: GenerationResult, manifest: Path) -> None:
        """Write what `explain` recorded, for its owner alone: it spells the prompt token by token."""
        if result.explanation is None:
            return
        stem = manifest.with_suffix("")
        for kind, data in (
            ("png", png(explanation_picture(result))),
            ("npz", explanation_arrays(result)),
            ("json", explanation_json(result)),
        ):
            with suppress(FileExistsError):
                write_new(stem.with_name(f"{stem.name}-explain.{kind}"), data, private=True)


def check_writable(folder: Path, log: AuditLog) -> None:
    """Make `folder` and find out whether records can be written into it and into the log.

    Raises RecordError or OSError naming the file that is in the way.
    """
    check_folder(folder)
    log.check()


def manifest_beside(picture: Path) -> Path:
    """Path of the manifest of what `OutputFolder.save` returned."""
    stem = picture.stem
    for suffix in SUFFIXES.values():
        stem = stem.removesuffix(suffix)
    return picture.with_name(f"{stem}.json")


def explanation_beside(picture: Path) -> Path:
    """Path of the explanation of what `OutputFolder.save` returned, the one for people."""
    return picture.with_name(f"{manifest_beside(picture).stem}-explain.png")


def _is_free(picture: Path, wanted: Manifest) -> bool:
    """Whether nothing lies where a picture belongs but the picture itself."""
    if not os.path.lexists(picture):
        return True
    if picture.is_symlink() or not picture.is_file():
        return False
    try:
        return pixel_hash(load_picture(picture)) == wanted.hashes.image
    except TwigError:
        return False


def _manifest(path: Path) -> Manifest | None:
    """The manifest at a path, None for what is none."""
    if path.is_symlink() or not path.is_file():
        return None
    try:
        return Manifest.load(path)
    except TwigError:
        return None
