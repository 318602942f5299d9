"""Content credentials: a C2PA manifest inside a picture, by which anybody can verify where it came from.

It says that a trained model made the picture (IPTC `trainedAlgorithmicMedia`), which engine and model that was, and the
digest of the picture's manifest, so that the two belong together. It does not hold the prompt. C2PA 2.2, section 18.
"""

import io
import json
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Self

from PIL import Image

from ..._version import __version__
from ..api.errors import InvalidRequestError, RecordError
from ..api.reading import MEBIBYTE, read_bytes
from .manifest import DIGITAL_SOURCE_TYPE

LABEL = "twig.record"
"""Names the assertion that ties a picture to its manifest."""

_ALGORITHMS = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512", "ed25519": "ED25519", "rsa": "PS256"}
_OFFLINE = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
_MOST = MEBIBYTE  # bytes of a certificate with its chain, or of a key
_KINDS = {"png": (b"\x89PNG", b"caBX"), "jpeg": (b"\xff\xd8", b"jumb"), "webp": (b"RIFF", b"C2PA")}
"""Formats by name: how a file begins, and what marks the credentials in it."""


@dataclass(frozen=True)
class Signer:
    """Signs with a certificate (PEM, the chain after it) and its private key (PEM, not encrypted)."""

    certificate: bytes
    key: bytes = field(repr=False)
    algorithm: str

    @classmethod
    def load(cls, certificate: Path, key: Path) -> Self:
        """Read both and sign a trial picture, so that what cannot sign is found before anything is drawn.

        Raises RecordError without the extra `sign`, InvalidRequestError for files that cannot sign.
        """
        _c2pa()
        chain, private = (_read(path) for path in (certificate, key))
        signer = cls(chain, private, _algorithm(key, private))
        trial = io.BytesIO()
        Image.new("RGB", (1, 1)).save(trial, "PNG")
        try:
            signer.sign(trial.getvalue(), "0" * 64, "0" * 64)
        except RecordError as error:
            raise InvalidRequestError(f"{certificate} and {key} cannot sign a picture: {error}") from error
        return signer

    def sign(self, picture: bytes, manifest_sha256: str, model_sha256: str) -> bytes:
        """Return a PNG, JPEG or WebP with credentials in it; its pixels and its XMP packet stay as they are."""
        c2pa = _c2pa()
        algorithm = getattr(c2pa.C2paSigningAlg, self.algorithm)
        info = c2pa.C2paSignerInfo(alg=algorithm, sign_cert=self.certificate, private_key=self.key, ta_url=None)
        signed = io.BytesIO()
        try:
            with (
                c2pa.Signer.from_info(info) as signer,
                c2pa.Builder(json.dumps(_claim(manifest_sha256, model_sha256))) as builder,
            ):
                builder.sign(signer, f"image/{_kind_of(picture)}", io.BytesIO(picture), signed)
        except c2pa.C2paError as error:
            raise RecordError(str(error)) from error
        return signed.getvalue()


@dataclass(frozen=True)
class Credentials:
    """What a picture's credentials say, and whether they hold.

    valid: the signature is good and the picture is the one that was signed. trusted: the signer is on a list of those
    that are trusted here, too. problems: codes of C2PA where it is not valid. signer, issuer: as the certificate says.
    manifest_sha256, model_sha256: of the record the picture belongs to, None where they name none of Twig's.
    """

    valid: bool
    trusted: bool
    problems: tuple[str, ...]
    signer: str
    issuer: str
    manifest_sha256: str | None
    model_sha256: str | None


def credentials_of(picture: bytes) -> Credentials | None:
    """Read and verify what a PNG, JPEG or WebP says of itself, None where it says nothing, or is another file.

    Raises RecordError for credentials that cannot be read, among them any, without the extra `sign`.
    """
    kind = _kind_of(picture)
    if kind is None or _KINDS[kind][1] not in picture:
        return None
    c2pa = _c2pa()
    try:
        with (
            c2pa.Settings.from_dict(_OFFLINE) as settings,
            c2pa.Context(settings) as context,
            c2pa.Reader(f"image/{kind}", io.BytesIO(picture), context=context) as reader,
        ):
            found = json.loads(reader.json())
    except c2pa.C2paError as error:
        if "ManifestNotFound" in type(error).__name__ or "ManifestNotFound" in str(error):
            return None
        raise RecordError(f"its content credentials cannot be read: {error}") from error
    return _read_off(found)


def _kind_of(picture: bytes) -> str | None:
    """The format of a picture's file, None for one of none of them."""
    return next((kind for kind, (start, _) in _KINDS.items() if picture.startswith(start)), None)


def _read_off(found: dict[str, Any]) -> Credentials:
    active = found["manifests"][found["active_manifest"]]
    signature = active.get("signature_info") or {}
    records = [
        a["data"] for a in active.get("assertions", ()) if a.get("label") == LABEL and isinstance(a["data"], dict)
    ]
    record = records[0] if records else {}
    state = found.get("validation_state")
    untrusted = "signingCredential.untrusted"  # says who signed, not that anything is wrong
    codes = [str(status.get("code")) for status in found.get("validation_status") or ()]
    return Credentials(
        valid=state in ("Valid", "Trusted"),
        trusted=state == "Trusted",
        problems=tuple(code for code in codes if code != untrusted),
        signer=str(signature.get("common_name", "somebody")),
        issuer=str(signature.get("issuer", "somebody")),
        manifest_sha256=record.get("manifest_sha256"),
        model_sha256=record.get("model_sha256"),
    )


def _claim(manifest_sha256: str, model_sha256: str) -> dict[str, Any]:
    agent = {"name": "Twig", "version": __version__}
    made = {"action": "c2pa.created", "digitalSourceType": DIGITAL_SOURCE_TYPE, "softwareAgent": agent}
    record = {"engine": f"Twig {__version__}", "model_sha256": model_sha256, "manifest_sha256": manifest_sha256}
    return {
        "claim_generator_info": [agent],
        "title": "Picture made by Twig",
        "assertions": [
            {"label": "c2pa.actions", "data": {"actions": [made]}},
            {"label": LABEL, "data": record},
        ],
    }


def _algorithm(path: Path, pem: bytes) -> str:
    """C2PA's name of the algorithm that a private key signs with."""
    try:
        key: Any = import_module("cryptography.hazmat.primitives.serialization").load_pem_private_key(pem, None)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"{path} is no private key in PEM that needs no password: {error}") from error
    kind = type(key).__name__.lower()
    name = (
        key.curve.name
        if hasattr(key, "curve")
        else "rsa"
        if "rsa" in kind
        else "ed25519"
        if "ed25519" in kind
        else kind
    )
    if name not in _ALGORITHMS:
        raise InvalidRequestError(f"{path} is a key of {name}; C2PA takes {', '.join(_ALGORITHMS)}")
    return _ALGORITHMS[name]


def _read(path: Path) -> bytes:
    """A certificate or key, which systems like to keep behind links."""
    return read_bytes(path, _MOST)


def _c2pa() -> ModuleType:
    try:
        return import_module("c2pa")
    except ImportError as error:
        raise RecordError("content credentials need c2pa-python: install twig-engine[sign]") from error
