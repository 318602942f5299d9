"""What every record is, and the digests that records are named by."""

import hashlib
import json

from pydantic import BaseModel, ConfigDict

from ..api.portable import Portable


class Record(Portable, BaseModel):
    """Base of what is written as JSON: frozen, unknown keys refused, no text or switch for a number."""

    # Distances to an empty mask are infinite, which JSON has no number for.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, ser_json_inf_nan="strings")


def canonical(value: object) -> str:
    """JSON of `value` with sorted keys and nothing between: equal values have equal texts."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def text_hash(text: str) -> str:
    """SHA-256 of `text` in UTF-8."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
