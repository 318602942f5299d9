"""JSON on stdout, for programs."""

import json
import math
from typing import Any


def write_json(value: Any) -> None:
    """Write one line of JSON and pass it on at once; infinity and what is no number become null."""
    print(json.dumps(_finite(value), ensure_ascii=False, allow_nan=False), flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
