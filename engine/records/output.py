"""The folder that results are written to: pictures, manifests, contact sheets and the audit log.

A record is written in an order that a kill cannot turn round: the manifest, then its line in the log, then what shows
the picture. What is found unfinished of a run that is made again is finished, and what is there is never replaced.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self

from ..api.errors import TwigError
from ..api.pixels import load_picture
from ..api.request import GenerationRequest
from ..api.result import GenerationResult
from ..api.writing import check_folder, held, sweep, write_new, write_whole
from .audit import LOG_NAME, AuditLog, Event, file_hash
from .credentials import Signer
from .explaining import explanation_arrays, explanation_json, explanation_picture
from .manifest import InputRecord, Manifest, Modelled, pixel_hash
from .model_record import ModelRecord
from .naming import SUFFIXES, call_name, run_name
from .pictures import png, sheet_png
from .placing import Place, place
from .sheets import contact_sheet


@dataclass(frozen=True)
class OutputFolder:
    """Writes each result as it comes, every file whole or not at all.

    model: what the results were made by. source, mask: records of what the user brought to every request, where more is
    known of it than the requests say. signer: gives the pictures content credentials. repeats: what `save` returned
    for results whose record was there already.
    """

    path: Path
    model: ModelRecord
    log: AuditLog
    source: InputRecord | None = None
    mask: InputRecord | None = None
    signer: Signer | None = None
    repeats: set[Path] = field(default_factory=set)

    @classmethod
    def of(cls, engine: Modelled, path: Path | str, log: AuditLog | None = None, signer: Signer | None = None) -> Self:
        """The folder at `path` for what `engine` makes, with the log that lies in it unless another is given."""
        folder = Path(path)
        return cls(folder, ModelRecord.of(engine.components), log or AuditLog(folder / LOG_NAME), signer=signer)

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
        unnamed = Manifest.of(result, self.model, source=self.source, mask=self.mask)
        may_take = None if result.image is None else partial(_may_take, unnamed)
        with held(self.path):
            found = place(unnamed, self.path, self.log.secret, may_take)
            if self.log.tell(found) is Event.REPEATED:
                self.repeats.add(found.picture)
            self._explain(result, found.path)
            if result.image is not None:
                self._show(png(result.image), found)
        return found.picture

    def sheet_path(self, requests: Sequence[GenerationRequest], result: GenerationResult) -> Path:
        """Where the contact sheet of a call's requests lies, or will. result: any of theirs."""
        manifest = Manifest.of(result, self.model, source=self.source, mask=self.mask)
        return self.path / f"{call_name(manifest, requests, self.log.secret)}-sheet.png"

    def save_sheet(
        self, results: Sequence[GenerationResult], requests: Sequence[GenerationRequest] | None = None
    ) -> Path:
        """Write the contact sheet of a call, for its owner alone, since it shows prompts; return its path.

        requests: all of the call, where not all of them have results.
        """
        called = requests or list(dict.fromkeys(result.request for result in results))
        path = self.sheet_path(called, results[0])
        runs = dict.fromkeys(
            run_name(Manifest.of(result, self.model, source=self.source, mask=self.mask), self.log.secret)
            for result in results
        )
        write_whole(path, sheet_png(contact_sheet(results), runs), private=True)
        return path

    def _show(self, data: bytes, found: Place) -> None:
        """Let the picture appear; one that is there has the same pixels."""
        if self.signer is not None:
            signed = self.signer.sign(data, file_hash(found.path), self.model.sha256)
            write_whole(found.picture, signed)
        else:
            with suppress(FileExistsError):
                write_new(found.picture, data)

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


def _may_take(wanted: Manifest, picture: Path) -> bool:
    """Whether nothing lies where a picture belongs but the picture itself."""
    if not os.path.lexists(picture):
        return True
    if picture.is_symlink() or not picture.is_file():
        return False
    try:
        return pixel_hash(load_picture(picture)) == wanted.hashes.image
    except TwigError:
        return False
