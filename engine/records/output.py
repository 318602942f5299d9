"""The folder that results are written to: pictures, manifests, contact sheets and the audit log."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..api.result import GenerationResult, Verdict
from ..api.writing import write_whole
from .audit import AuditLog
from .explaining import explanation_arrays, explanation_json, explanation_picture
from .manifest import InputRecord, Manifest, ModelRecord, request_hash, text_hash
from .pictures import contact_sheet, png

_SUFFIXES = {Verdict.REVIEW: "-review", Verdict.REFUSED: "-refused"}


@dataclass(frozen=True)
class OutputFolder:
    """Writes each result as it comes, every file whole or not at all.

    model: what the results were made by. source, mask: what the user brought to every request, if anything.
    """

    path: Path
    model: ModelRecord
    log: AuditLog
    source: InputRecord | None = None
    mask: InputRecord | None = None

    def save(self, result: GenerationResult) -> Path:
        """Write the picture, its manifest and its line in the audit log; return the picture's path.

        Where there is no picture, because the run failed, the manifest's path.
        """
        stem = f"{self._stem(result)}-{result.index}"
        manifest_path = picture_path = self.path / f"{stem}.json"
        if result.image is not None:
            picture_path = self.path / f"{stem}{_SUFFIXES.get(result.verdict, '')}.png"
            write_whole(picture_path, png(result.image))
        if result.explanation is not None:
            write_whole(self.path / f"{stem}-explain.png", png(explanation_picture(result)))
            write_whole(self.path / f"{stem}-explain.npz", explanation_arrays(result))
            write_whole(self.path / f"{stem}-explain.json", explanation_json(result), private=True)
        image = None if result.image is None else picture_path.name
        manifest = Manifest.of(result, self.model, image=image, source=self.source, mask=self.mask)
        manifest.save(manifest_path)
        self.log.append(manifest, manifest_path)
        return picture_path

    def save_sheet(self, results: Sequence[GenerationResult]) -> Path:
        """Write the contact sheet of one request's results; return its path."""
        path = self.path / f"{self._stem(results[0])}-sheet.png"
        write_whole(path, png(contact_sheet(results)))
        return path

    def _stem(self, result: GenerationResult) -> str:
        """File name that tells apart what makes pictures differ, and tells nobody the prompt."""
        inputs = [record.sha256 for record in (self.source, self.mask) if record is not None]
        parts = [request_hash(result.request), self.model.sha256, self.model.device, self.model.dtype, *inputs]
        return f"twig-{text_hash(' '.join(parts))[:8]}"
