"""What a record is called: a digest of everything that decides the picture, so that no two pictures share a name."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..api.request import PICTURES, GenerationRequest
from ..api.result import Verdict
from .record import canonical
from .secret import Secret

if TYPE_CHECKING:
    from .manifest import Manifest

SUFFIXES = {Verdict.REVIEW: "-review", Verdict.REFUSED: "-refused"}
"""What follows a picture's name that was not accepted."""

_DIGITS = 32  # of a digest: 128 bits

_DECIDING = {"request", "model", "machine", "libraries", "rule", "calibration", "registry"}
_OUTCOME = {"verdict", "error", "hashes", "gate", "attempts", "draft_rows", "rows"}
_MODEL = {"hashes", "device", "dtype"}


def run_name(manifest: "Manifest", secret: Secret) -> str:
    """Name of what was asked for, which its images share: `twig-` and 32 hexadecimal digits.

    They are an HMAC, keyed by the installation's secret, of the request, the model's parts, device and number type, the
    machine and its libraries, rule, calibration and registry by what they hold, and the pixels the user brought: nobody
    who sees a file's name can check what he guesses of the prompt.
    """
    values = manifest.model_dump(mode="json", include=_DECIDING)
    values["model"] = manifest.model.model_dump(mode="json", include=_MODEL)
    return f"twig-{secret.digest('run', canonical([values, *manifest.brought]))[:_DIGITS]}"


def call_name(manifest: "Manifest", requests: Sequence[GenerationRequest], secret: Secret) -> str:
    """Name of what one call asked for: that of its request, or where it has several one for all of them.

    manifest: of one of its pictures. It is keyed as `run_name` is.
    """
    if len(requests) == 1:
        return run_name(manifest, secret)
    values = manifest.model_dump(mode="json", include=_DECIDING - {"request"})
    values["model"] = manifest.model.model_dump(mode="json", include=_MODEL)
    asked = [request.model_dump(mode="json", exclude=PICTURES) for request in requests]
    return f"twig-{secret.digest('call', canonical([values, asked, *manifest.brought]))[:_DIGITS]}"


def record_names(manifest: "Manifest", secret: Secret) -> Iterator[str]:
    """Names that this record may bear: the first that is free or already its own.

    A run that ended otherwise under the same name, as where another batch rounded otherwise or a time ran out, is told
    apart by a digest of how it ended.
    """
    name = f"{run_name(manifest, secret)}-{manifest.index}"
    yield name
    yield f"{name}-{secret.digest('outcome', outcome(manifest))[:_DIGITS]}"


def outcome(manifest: "Manifest") -> str:
    """How a run ended, in a text that is equal where everything is: verdict, scores, pixels, attempts, gate, error."""
    return canonical(manifest.model_dump(mode="json", include=_OUTCOME))


def same_record(first: "Manifest", second: "Manifest") -> bool:
    """Whether two manifests speak of one picture, made at different times."""
    told = [m.model_dump(mode="json", include=_DECIDING | _OUTCOME | {"index"}) for m in (first, second)]
    for values, manifest in zip(told, (first, second), strict=True):
        values["model"] = manifest.model.model_dump(mode="json", include=_MODEL)
    return first.brought == second.brought and canonical(told[0]) == canonical(told[1])
