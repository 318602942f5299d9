"""Where compiled artifacts live: keyed by all that makes them valid, written whole or not at all, verified on use."""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from ..engine.api.errors import BackendError, ForeignFileError
from ..engine.api.reading import MAX_TENSORS, open_regular, read_model, read_text
from ..engine.api.writing import append_line

MANIFEST = "artifact.json"
LEDGER = "ledger.jsonl"
_MAX_LEDGER = 2**28
DEFAULT_MAX_BYTES = 20 * 2**30

Build = Callable[[Path], None]
"""Writes an artifact's files into an empty folder."""


class ArtifactError(BackendError):
    """An artifact that is not what its manifest says."""


def default_root() -> Path:
    """`$TWIG_ARTIFACTS`, else a folder in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("TWIG_ARTIFACTS") or cache / "twig" / "artifacts")


@dataclass(frozen=True)
class Key:
    """What an artifact depends on: change any value and it is another artifact."""

    values: Mapping[str, str]

    @property
    def digest(self) -> str:
        """Name of the artifact's folder."""
        text = json.dumps(dict(self.values), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Entry:
    """An artifact on disk. seconds: to build; size: bytes, derived caches included; used: time of last use."""

    digest: str
    key: dict[str, str]
    built: float
    seconds: float
    size: int
    used: float


@dataclass(frozen=True)
class LedgerRow:
    """One build: when, how long, how large, and why."""

    digest: str
    key: dict[str, str]
    time: float
    seconds: float
    size: int
    reason: str


_LEDGER_ROW = TypeAdapter(LedgerRow)


class _File(BaseModel):
    """One file of an artifact: SHA-256 in hex and bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    sha256: str
    size: int


class _Manifest(BaseModel):
    """What an artifact's folder holds, and what it was built from."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    key: dict[str, str]
    files: dict[str, _File]
    built: float
    seconds: float


class ArtifactStore:
    """Artifacts under one folder, shared by any number of processes. The least recently used go when it is full."""

    def __init__(self, root: Path | None = None, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.root = (root or default_root()).expanduser()
        self.max_bytes = max_bytes

    def folder(self, key: Key, build: Build) -> Path:
        """Folder of the artifact of `key`, verified; built by `build` where it is missing or damaged.

        Processes that ask for the same key at once build it once.
        """
        final = self.root / key.digest
        (self.root / "locks").mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / "locks" / f"{key.digest}.lock"):
            reason = self._fault(final, key)
            if reason is not None:
                self._clear(key.digest)
                self._build(final, key, build, reason)
            os.utime(final / MANIFEST)
        if reason is not None:  # all that lies here need not be looked through where nothing was added
            self.prune(keep=key.digest)
        return final

    def like(self, key: Key, but: str) -> list[Path]:
        """Folders of artifacts that differ from that of `key` in the value `but` alone, the last used first."""
        wanted = {**key.values, but: ""}
        found = [entry for entry in self.entries() if {**entry.key, but: ""} == wanted and entry.digest != key.digest]
        return [
            self.root / entry.digest for entry in reversed(found) if self._fault(self.root / entry.digest, None) is None
        ]

    def cache(self, folder: Path) -> Path:
        """Where a backend may keep what it derives from the artifact in `folder`; goes when the artifact goes."""
        cache = folder.with_name(f"{folder.name}.cache")
        cache.mkdir(exist_ok=True)
        return cache

    def entries(self) -> list[Entry]:
        """Every artifact, least recently used first."""
        found = [self._entry(path) for path in self._folders()]
        return sorted(found, key=lambda entry: entry.used)

    def verify(self) -> dict[str, str]:
        """What is wrong, by digest; empty if every artifact is what its manifest says."""
        faults = {path.name: self._fault(path, None) for path in self._folders()}
        return {digest: fault for digest, fault in faults.items() if fault is not None}

    def remove(self, digest: str) -> None:
        """Remove an artifact and what was derived from it."""
        with FileLock(self.root / "locks" / f"{digest}.lock"):
            self._clear(digest)

    def prune(self, max_bytes: int | None = None, keep: str = "") -> list[Entry]:
        """Remove the least recently used until at most `max_bytes` are left; `keep` stays. Return what went."""
        limit = self.max_bytes if max_bytes is None else max_bytes
        entries = self.entries()
        total = sum(entry.size for entry in entries)
        gone = []
        for entry in entries:
            if total <= limit:
                break
            if entry.digest != keep:
                self.remove(entry.digest)
                total -= entry.size
                gone.append(entry)
        return gone

    def ledger(self) -> list[LedgerRow]:
        """Every build, oldest first; a line that is none, as a killed process leaves it, is left out."""
        path = self.root / LEDGER
        lines = read_text(path, _MAX_LEDGER).splitlines() if path.exists() else []
        return [row for line in lines if (row := _row(line)) is not None]

    def _build(self, final: Path, key: Key, build: Build, reason: str) -> None:
        partial = Path(tempfile.mkdtemp(prefix=f"{key.digest}.partial-", dir=self.root))
        began = time.time()
        try:
            build(partial)
            files = {path.name: _described(path) for path in sorted(partial.iterdir())}
            seconds = time.time() - began
            manifest = _Manifest(key=dict(key.values), files=files, built=began, seconds=seconds)
            (partial / MANIFEST).write_text(manifest.model_dump_json(indent=1))
            _sync(partial)
            partial.rename(final)
        except BaseException:
            shutil.rmtree(partial)
            raise
        self._record(LedgerRow(key.digest, dict(key.values), began, seconds, _size(final), reason))

    def _record(self, row: LedgerRow) -> None:
        with FileLock(self.root / "locks" / "ledger.lock"):
            append_line(self.root / LEDGER, json.dumps(asdict(row)))

    def _fault(self, folder: Path, key: Key | None) -> str | None:
        """Say why the artifact cannot be used, or None."""
        if not folder.is_dir():
            return "not built yet"
        try:
            check(folder, key)
        except ArtifactError as error:
            return str(error)
        return None

    def _clear(self, digest: str) -> None:
        """Remove an artifact, its cache, and what killed builds of it left; its lock must be held."""
        for path in self.root.glob(f"{digest}*"):
            shutil.rmtree(path)

    def _folders(self) -> Iterator[Path]:
        if self.root.is_dir():
            yield from (path for path in self.root.iterdir() if path.is_dir() and len(path.name) == 32)

    def _entry(self, folder: Path) -> Entry:
        try:
            manifest = read_model(folder / MANIFEST, _Manifest)
            key, built, seconds = manifest.key, manifest.built, manifest.seconds
        except ForeignFileError:
            key, built, seconds = {}, 0.0, 0.0
        used = (folder / MANIFEST).stat().st_mtime if (folder / MANIFEST).exists() else 0.0
        size = _size(folder) + _size(folder.with_name(f"{folder.name}.cache"))
        return Entry(folder.name, key, built, seconds, size, used)


def check(folder: Path, key: Key | None = None) -> None:
    """Raise ArtifactError unless `folder` holds exactly the files of its manifest, and is the artifact of `key`."""
    try:
        manifest = read_model(folder / MANIFEST, _Manifest)
    except ForeignFileError as error:
        raise ArtifactError(f"{folder.name} has no readable manifest: {error}") from error
    files, values = manifest.files, manifest.key
    if Key(values).digest != folder.name or (key is not None and dict(key.values) != values):
        raise ArtifactError(f"{folder.name} is foreign: its manifest is that of another artifact")
    if found := {path.name for path in folder.iterdir()} ^ {*files, MANIFEST}:
        raise ArtifactError(f"{folder.name} misses or has too many files: {', '.join(sorted(found))}")
    for name, described in files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise ArtifactError(f"{folder.name}/{name} is no plain file")
        if path.stat().st_size != described.size:
            raise ArtifactError(f"{folder.name}/{name} has {path.stat().st_size} bytes, {described.size} were written")
        if _described(path) != described:
            raise ArtifactError(f"{folder.name}/{name} is damaged: its checksum differs")


def _described(path: Path) -> _File:
    with open_regular(path, MAX_TENSORS) as file:
        return _File(sha256=hashlib.file_digest(file, "sha256").hexdigest(), size=path.stat().st_size)


def _row(line: str) -> LedgerRow | None:
    try:
        return _LEDGER_ROW.validate_json(line, strict=True)
    except ValidationError:
        return None


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _sync(folder: Path) -> None:
    """Bring files and folder to disk before the rename that makes them valid."""
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
