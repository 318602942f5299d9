"""API keys: random, kept as digests in a file of the operator's own, each with what its holder may do."""

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from hmac import compare_digest
from pathlib import Path

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..api.choices import Role
from ..api.errors import InvalidRequestError, RecordError
from ..api.reading import first_problem, shown
from ..api.writing import check_file, read_own, write_whole

PREFIX = "twig"
_MOST = 16 * 2**20


class Key(BaseModel):
    """A key as it is kept; the key itself is shown once, when it is made.

    digest: SHA-256 of the whole key, which is 256 random bits and so needs no salt. priority: the highest that its
    requests may have. rows_per_minute, concurrent: UNet rows and requests at a time, None for no limit of its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    name: str
    digest: str
    created: datetime
    roles: tuple[Role, ...] = (Role.GENERATE,)
    priority: int = Field(default=0, ge=-100, le=100)
    rows_per_minute: int | None = Field(default=None, ge=1)
    concurrent: int | None = Field(default=None, ge=1)
    revoked: datetime | None = None


class _File(BaseModel):
    """The file as JSON."""

    model_config = ConfigDict(extra="forbid")

    keys: tuple[Key, ...] = ()


LOCAL = Key(
    id="0" * 12, name="local", digest="", created=datetime.fromtimestamp(0, UTC), roles=tuple(Role), priority=100
)
"""Who calls a server without keys, which listens to its own machine alone."""


class Keys:
    """The keys in the file at `path`, which its owner alone can read; a change of the file is seen at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int, int] | None = None
        self._held: dict[str, Key] = {}

    def find(self, text: str) -> Key | None:
        """Whose key `text` is; None for one that there is not, or that was revoked. Raises RecordError, OSError."""
        self._refresh()
        key = self._held.get(_id_of(text))
        if key is None or not compare_digest(key.digest, _digest(text)) or key.revoked is not None:
            return None
        return key

    def all(self) -> tuple[Key, ...]:
        """Every key, revoked ones too, in the order in which they were made."""
        return _read(self.path)

    def add(
        self,
        name: str,
        *,
        roles: tuple[Role, ...] = (Role.GENERATE,),
        priority: int = 0,
        rows_per_minute: int | None = None,
        concurrent: int | None = None,
    ) -> str:
        """Make a key and return it: it is kept nowhere. Raises InvalidRequestError for values that it cannot have."""
        id = secrets.token_hex(6)
        text = f"{PREFIX}_{id}_{secrets.token_urlsafe(32)}"
        try:
            key = Key(
                id=id,
                name=name,
                digest=_digest(text),
                created=datetime.now(UTC),
                roles=roles,
                priority=priority,
                rows_per_minute=rows_per_minute,
                concurrent=concurrent,
            )
        except ValidationError as error:
            raise InvalidRequestError(f"no key can be made: {first_problem(error)}") from error
        with self._changing():
            self._write((*self.all(), key) if self.path.exists() else (key,))
        return text

    def revoke(self, id: str) -> None:
        """Let a key open nothing any more. Raises InvalidRequestError for an id that there is not."""
        with self._changing():
            keys = self.all()
            if id not in {key.id for key in keys}:
                raise InvalidRequestError(f"there is no key with the id {shown(repr(id))} in {self.path}")
            now = datetime.now(UTC)
            gone = [key.model_copy(update={"revoked": key.revoked or now}) if key.id == id else key for key in keys]
            self._write(tuple(gone))

    def _refresh(self) -> None:
        found = os.stat(self.path)
        seen = found.st_mtime_ns, found.st_size, found.st_ino
        if seen != self._seen:
            self._held = {key.id: key for key in self.all()}
            self._seen = seen

    def _write(self, keys: tuple[Key, ...]) -> None:
        write_whole(self.path, _File(keys=keys).model_dump_json(indent=1).encode() + b"\n", private=True)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Let one process at a time change the file."""
        check_file(self.path)
        with FileLock(self.path.with_name(f".{self.path.name}.lock"), mode=0o600):
            yield


def _read(path: Path) -> tuple[Key, ...]:
    try:
        return _File.model_validate(json.loads(read_own(path, _MOST))).keys
    except FileNotFoundError as error:
        raise RecordError(f"there is no file of keys at {path}; `twig keys add` makes one") from error
    except ValidationError as error:
        raise RecordError(f"{path} is no file of keys: {first_problem(error)}") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path} is no file of keys: {shown(error)}") from error


def _id_of(text: str) -> str:
    parts = text.split("_", 2)
    return parts[1] if len(parts) == 3 and parts[0] == PREFIX else ""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
