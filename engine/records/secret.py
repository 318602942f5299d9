"""The secret of an installation: what keeps a digest of a prompt from being checked by whoever guesses the prompt."""

import hmac
import os
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Self

from ..api.errors import RecordError
from ..api.writing import read_own, sweep, write_new

VARIABLE = "TWIG_SECRET"
"""Environment variable that names the secret's file."""

_BYTES = 32


def secret_path() -> Path:
    """Where the installation's secret lies: `TWIG_SECRET`, else in the user's folder of state."""
    if named := os.environ.get(VARIABLE):
        return Path(named)
    try:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    except RuntimeError as error:
        raise RecordError(f"this user has no home to keep a secret in; name a file for it with {VARIABLE}") from error
    return Path(state) / "twig/secret"


@dataclass(frozen=True)
class Secret:
    """256 random bits that stay on this machine."""

    key: bytes = field(repr=False)

    @classmethod
    def load(cls, path: Path | None = None) -> Self:
        """Read the secret at `path`, else the installation's own, and make one where there is none.

        Raises RecordError for a file that others can read, that is somebody else's, or that holds no secret.
        """
        path = path or secret_path()
        try:
            text = _read_or_make(path)
        except OSError as error:
            raise RecordError(
                f"the installation's secret cannot be kept at {path}: {error.strerror}; name a file with {VARIABLE}"
            ) from error
        if not re.fullmatch(rb"[0-9a-f]{64}\n", text):
            raise RecordError(f"{path} holds no secret of Twig; name another file with {VARIABLE}")
        return cls(bytes.fromhex(text.decode()))

    def digest(self, purpose: str, text: str) -> str:
        """HMAC-SHA256 of `text`, in hexadecimal; those of two purposes cannot be told to be of one text."""
        return hmac.digest(self.key, f"{purpose}\0{text}".encode("utf-8", "surrogatepass"), "sha256").hex()

    @cached_property
    def name(self) -> str:
        """What tells this secret from another and gives nothing of it away."""
        return self.digest("name of the secret", "")[:16]


def _read_or_make(path: Path) -> bytes:
    try:
        return read_own(path, 4 * _BYTES)
    except FileNotFoundError:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        sweep(path.parent)
    with suppress(FileExistsError):  # another process was first, and its secret is everybody's
        write_new(path, secrets.token_hex(_BYTES).encode() + b"\n", private=True)
    return read_own(path, 4 * _BYTES)
