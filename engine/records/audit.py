"""The audit log of what was generated."""

import hashlib
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ..api.result import GateDecision, Score, Verdict
from ..api.writing import append_line
from .manifest import Manifest, Record, text_hash


class AuditRecord(Record):
    """One line of the audit log; the prompts only where the log was told to keep them.

    manifest: its path, from the log's folder.
    """

    time: datetime
    manifest: str
    manifest_sha256: str
    verdict: Verdict
    error: str | None
    prompt_sha256: str
    prompt: str | None
    negative_prompt: str | None
    request_sha256: str
    model_sha256: str
    image_sha256: str | None
    seeds: tuple[int, ...]
    scores: dict[str, Score]
    rule: str
    reasons: tuple[str, ...]
    gate: GateDecision | None
    registry: str | None
    nearest: str | None
    calibration: str | None


@dataclass(frozen=True)
class AuditLog:
    """A JSONL file that is only ever appended to and that its owner alone can read.

    prompts: whether lines hold the prompts themselves beside their hash.
    """

    path: Path
    prompts: bool = False

    def append(self, manifest: Manifest, path: Path) -> None:
        """Add the line of the `manifest` saved at `path`. One write a line, so that processes can share a log."""
        request, attempts = manifest.request, manifest.attempts
        record = AuditRecord(
            time=manifest.created,
            manifest=os.path.relpath(path, self.path.parent),
            manifest_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            verdict=manifest.verdict,
            error=manifest.error,
            prompt_sha256=text_hash(request.prompt),
            prompt=request.prompt if self.prompts else None,
            negative_prompt=request.negative_prompt if self.prompts else None,
            request_sha256=manifest.request_sha256,
            model_sha256=manifest.model.sha256,
            image_sha256=manifest.hashes.image,
            seeds=tuple(attempt.seed for attempt in attempts),
            scores=attempts[-1].scores if attempts else {},
            rule=manifest.rule,
            reasons=attempts[-1].reasons if attempts else (),
            gate=manifest.gate,
            registry=manifest.registry,
            nearest=attempts[-1].nearest if attempts else None,
            calibration=manifest.calibration,
        )
        append_line(self.path, record.model_dump_json(exclude_none=True))
