"""Where requests and answers of jobs are kept: one protocol, with a folder here and S3-compatible storage in `s3`."""

import re
from collections.abc import Collection
from importlib import import_module
from pathlib import Path
from typing import Protocol

from ...api.errors import RecordError
from ...api.writing import check_folder, read_own, sweep, write_new

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,127}")
_MOST = 2**30


class Artefacts(Protocol):
    """Keeps bytes under names, each written once. Names are ours: digits, small letters, full stops and hyphens."""

    def check(self) -> None:
        """Raise RecordError or OSError unless something can be kept."""

    def put(self, name: str, data: bytes) -> bool:
        """Keep `data`, on the disk when this returns; False where there is something of that name, which stays."""

    def get(self, name: str) -> bytes | None:
        """What is kept, None where nothing is."""

    def delete(self, names: Collection[str]) -> None:
        """Forget what is kept under these names, where something is."""


class FolderArtefacts:
    """A folder of files that their owner alone can read, for they hold prompts and pictures."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def check(self) -> None:
        """See `Artefacts`."""
        check_folder(self.folder)
        sweep(self.folder)

    def put(self, name: str, data: bytes) -> bool:
        """See `Artefacts`."""
        try:
            write_new(self._path(name), data, private=True)
        except FileExistsError:
            return False
        return True

    def get(self, name: str) -> bytes | None:
        """See `Artefacts`."""
        path = self._path(name)
        return read_own(path, _MOST) if path.exists() else None

    def delete(self, names: Collection[str]) -> None:
        """See `Artefacts`."""
        for name in names:
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        assert _NAME.fullmatch(name), name
        return self.folder / name


def open_artefacts(place: str, endpoint: str | None = None) -> Artefacts:
    """The folder at a path, or `s3://bucket/prefix` at an endpoint. Raises RecordError without the extra `s3`."""
    if not place.startswith("s3://"):
        return FolderArtefacts(Path(place))
    try:
        s3 = import_module(".s3", __package__)
    except ImportError as error:
        raise RecordError("keeping artefacts in S3 needs boto3: pip install 'twig-engine[s3]'") from error
    artefacts: Artefacts = s3.S3Artefacts(place, endpoint)
    return artefacts
