"""The audit log: what was generated, by what and with which outcome, in a chain that shows what is done to it."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from pydantic import ValidationError

from ..api.errors import InvalidRequestError, RecordError
from ..api.reading import MAX_JSON, quoted, shown
from ..api.result import Accountant, GateDecision, GenerationResult, Scores, Verdict
from ..api.writing import held, read_regular
from .chain import Head, erasable_is_true, is_erased, written
from .placing import Place, place
from .record import Record
from .secret import Secret
from .sheet_runs import runs_shown
from .stores import AuditStore, Query, head_path, open_store
from .verification import FORGOTTEN, Finding, Verification, verify

if TYPE_CHECKING:
    from .manifest import Manifest


LOG_NAME = "audit.jsonl"
"""File of the log in a folder of records."""


class Event(StrEnum):
    """What a line tells: a record was made, one that was there was made again, or lines were erased."""

    MADE = "made"
    REPEATED = "repeated"
    FORGOTTEN = FORGOTTEN


class AuditRecord(Record):
    """One line of the audit log, without its chain.

    manifest: its path, from the log's folder. prompt_hmac, request_hmac: keyed by the installation's secret. prompt,
    negative_prompt: only where the log was told to keep them. forgotten, reason: lines that were erased and why. What
    `chain.ERASABLE` names, and what a line of another event has not, is None.
    """

    number: int | None = None
    time: datetime
    event: Event
    verdict: Verdict | None = None
    model_sha256: str | None = None
    scores: Scores | None = None
    rule: str | None = None
    reasons: tuple[str, ...] | None = None
    gate: GateDecision | None = None
    registry: str | None = None
    nearest: str | None = None
    calibration: str | None = None
    forgotten: tuple[int, ...] | None = None
    reason: str | None = None
    manifest: str | None = None
    manifest_sha256: str | None = None
    image_sha256: str | None = None
    error: str | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    prompt_hmac: str | None = None
    request_hmac: str | None = None
    seeds: tuple[int, ...] | None = None


class Forgotten(NamedTuple):
    """What was erased: numbers of lines, files that were removed, and the line that says so (0 for nothing to do)."""

    numbers: tuple[int, ...]
    files: tuple[Path, ...]
    line: int


class AuditLog:
    """An audit log at `place`, a path of JSON lines or a database's URL, which its owner alone can read.

    prompts: whether lines hold the prompts themselves beside their keyed hash. secret: keys the hashes and seals the
    head; the installation's own unless given. root: folder that manifests' paths are told from, that of the log's file
    unless given.
    """

    def __init__(
        self, place: Path | str, prompts: bool = False, secret: Secret | None = None, root: Path | None = None
    ) -> None:
        self.prompts, self.secret = prompts, secret or Secret.load()
        self.store: AuditStore = open_store(place, self.secret)
        in_database = "://" in str(place)
        self.path: Path | str = self.store.place if in_database else Path(place)
        self.root = root or (Path() if in_database else Path(place).parent)

    def __str__(self) -> str:
        """Where it lies, and its head."""
        return str(self.path) if isinstance(self.path, str) else f"{self.path}, its head in {head_path(self.path)}"

    def check(self) -> None:
        """Raise RecordError or OSError unless a line can be written; to be called before anything is drawn."""
        self.store.check()

    @overload
    def append(self, record: "Manifest", at: Path, event: Event = Event.MADE) -> Path: ...

    @overload
    def append(self, record: GenerationResult, at: "Accountant[Manifest]") -> Path: ...

    def append(
        self,
        record: "Manifest | GenerationResult",
        at: "Path | Accountant[Manifest]",
        event: Event = Event.MADE,
    ) -> Path:
        """Add the line of a record, on the disk when this returns, and return its manifest's path.

        record: a manifest, saved `at` a path; or a result, made by the engine `at`, whose manifest is written into the
        log's folder first, or found there. Processes can share a log. Raises RecordError where the manifest's place is
        taken.
        """
        if isinstance(record, GenerationResult):
            assert not isinstance(at, Path)
            manifest = at.manifest(record)
            with held(self.root):
                found = place(manifest, self.root, self.secret)
                self.tell(found)
            return found.path
        assert isinstance(at, Path)
        self._append(record, at, event)
        return at

    def tell(self, found: Place) -> Event:
        """Add the line of a record that lies at its place; return what it tells: made, or repeated where it has one."""
        event = Event.REPEATED if found.found and self.names(found.path) else Event.MADE
        self.append(found.manifest, found.path, event)
        return event

    def _append(self, manifest: "Manifest", path: Path, event: Event) -> None:
        request, attempts = manifest.request, manifest.attempts
        record = AuditRecord(
            time=datetime.now(UTC),
            event=event,
            verdict=manifest.verdict,
            model_sha256=manifest.model.sha256,
            scores=attempts[-1].scores if attempts else {},
            rule=manifest.rule,
            reasons=attempts[-1].reasons if attempts else (),
            gate=manifest.gate,
            registry=manifest.registry,
            nearest=attempts[-1].nearest if attempts else None,
            calibration=manifest.calibration,
            manifest=os.path.relpath(path, self.root),
            manifest_sha256=file_hash(path),
            image_sha256=manifest.hashes.image,
            error=manifest.error,
            prompt=request.prompt if self.prompts else None,
            negative_prompt=request.negative_prompt if self.prompts else None,
            prompt_hmac=self.prompt_hmac(request.prompt),
            request_hmac=self.secret.digest("request", manifest.request_sha256),
            seeds=tuple(attempt.seed for attempt in attempts),
        )
        self.store.append(_body(record))

    def prompt_hmac(self, prompt: str) -> str:
        """The keyed hash by which a prompt is found again, by whoever has the secret."""
        return self.secret.digest("prompt", prompt)

    def names(self, manifest: Path) -> bool:
        """Whether a line names the manifest at this path as it is."""
        name, lines = os.path.relpath(manifest, self.root), self.store.find(Query(manifest_sha256=file_hash(manifest)))
        try:
            return any(line.get("manifest") == name for line in lines)
        except FileNotFoundError:  # a log without a line
            return False

    def search(self, query: Query) -> Iterator[AuditRecord]:
        """Lines that `query` matches, in order. Raises RecordError for one that was altered beyond reading."""
        for line in self.store.find(query):
            yield _record(line)

    def verify(self, kept: Head | None = None, manifests: bool = True) -> Verification:
        """Say what is wrong with the chain, and with the manifests that its lines name.

        kept: a head that was kept elsewhere. Raises OSError where there is no log.
        """
        found = verify(self.store.texts(), self.store.head(), self.secret, kept)
        if not manifests:
            return found
        return found._replace(findings=tuple(sorted(chain(found.findings, self._manifests()))))

    def forget(self, query: Query, reason: str | None = None) -> Forgotten:
        """Erase what leads back to the requests of the lines that `query` matches, and say so in a line of its own.

        Manifests, pictures and explanations of those records are removed, with the contact sheets that show them. What
        is left of a line is its time, verdict, scores, rule and model. Who is just writing such a record is waited for;
        whoever draws it from then on makes a new one. What a line names that was altered is left where it is.
        """
        if reason is not None and not reason.isprintable():
            raise InvalidRequestError(f"a reason is one line of printable text, got {quoted(shown(reason))}")
        self.check()
        doubted = {finding.line for finding in self.verify(manifests=False).findings}
        with self._alone_with(query) as lines:
            if not lines:
                return Forgotten((), (), 0)
            files = [path for line in lines if line["number"] not in doubted for path in self._files(line)]
            for path in files:
                path.unlink(missing_ok=True)
            numbers = tuple(line["number"] for line in lines)
            told = AuditRecord(time=datetime.now(UTC), event=Event.FORGOTTEN, forgotten=numbers, reason=reason)
            line = self.store.forget(numbers, _body(told))
        return Forgotten(numbers, tuple(dict.fromkeys(files)), line["number"])

    @contextmanager
    def _alone_with(self, query: Query) -> Iterator[list[Mapping[str, Any]]]:
        """Lines that are to be forgotten, while nobody else writes into the folders of their manifests."""
        folders: set[Path] = set()
        while True:
            with ExitStack() as stack:
                for folder in sorted(folders):
                    stack.enter_context(held(folder, alone=True))
                lines = self._forgettable(query)
                manifests = (self.root / line["manifest"] for line in lines if isinstance(line.get("manifest"), str))
                if (found := {path.parent for path in manifests if path.parent.is_dir()}) <= folders:
                    yield lines
                    return
                folders |= found

    def _forgettable(self, query: Query) -> list[Mapping[str, Any]]:
        """Lines that `query` matches and that can be erased, with every other that names one of their manifests."""
        found = [line for line in self.store.find(query) if line.get("event") != FORGOTTEN and not is_erased(line)]
        if not found:
            return []
        names = {line["manifest"] for line in found if "manifest" in line}
        numbers = {line["number"] for line in found}
        return [line for line in self.store.find(Query()) if line["number"] in numbers or line.get("manifest") in names]

    def head(self) -> Head | None:
        """Where the log ends, to be kept elsewhere."""
        return self.store.head()

    def _manifests(self) -> Iterator[Finding]:
        for line in self.store.find(Query()):
            if isinstance(name := line.get("manifest"), str):
                try:
                    same = file_hash(self.root / name) == line.get("manifest_sha256")
                except (OSError, ValueError, RecordError):
                    yield Finding(line["number"], f"names a manifest that is not there: {quoted(shown(name))}")
                    continue
                if not same:
                    yield Finding(line["number"], f"names a manifest that was altered since: {quoted(shown(name))}")

    def _files(self, line: Mapping[str, Any]) -> list[Path]:
        """Everything that was written of a record. Only what bears a record's name, in the folder of its manifest."""
        manifest = self.root / str(line.get("manifest", ""))
        stem = manifest.stem
        if not stem.startswith("twig-") or not erasable_is_true(line):
            return []
        own = (f"{stem}.json", f"{stem}.png", f"{stem}-review.png", f"{stem}-refused.png")
        explained = (f"{stem}-explain.{kind}" for kind in ("png", "npz", "json"))
        run = "-".join(stem.split("-")[:2])
        sheets = [sheet for sheet in manifest.parent.glob("*-sheet.png") if run in runs_shown(sheet)]
        there = [path for name in (*own, *explained) if os.path.lexists(path := manifest.parent / name)]
        return there + sheets


def file_hash(path: Path) -> str:
    """SHA-256 of a manifest's file."""
    return hashlib.sha256(read_regular(path, MAX_JSON)).hexdigest()


def parse_head(text: str) -> Head:
    """Read a head as `twig audit head` prints it. Raises InvalidRequestError for another text."""
    number, _, digest = text.strip().partition(":")
    if not re.fullmatch("[0-9]{1,18}:[0-9a-f]{64}", text.strip()):
        raise InvalidRequestError(
            f"a head is a line's number and its digest, as `twig audit head` prints, got {quoted(shown(text))}"
        )
    return Head(number=int(number), digest=digest, secret="", seal="")


def _body(record: AuditRecord) -> dict[str, Any]:
    """A line's body as JSON can hold it, without what the line has not."""
    values = json.loads(record.model_dump_json(exclude={"number"}))
    return {name: value for name, value in values.items() if value is not None}


def _record(line: Mapping[str, Any]) -> AuditRecord:
    known = {name: value for name, value in line.items() if name in AuditRecord.model_fields}
    try:
        return AuditRecord.model_validate_json(written(known))
    except ValidationError as error:
        raise RecordError(f"line {line['number']} of the audit log cannot be read: it was altered") from error
