"""Whose pictures a contact sheet shows, as its file says: who has a picture erased has the sheet erased too."""

import io
from pathlib import Path

from ..api.errors import InvalidRequestError, RecordError
from ..api.pixels import opened
from ..api.reading import shown
from ..api.writing import read_regular

RUNS = "twig:runs"
"""Text chunk of a sheet's PNG: names of runs, a space between each."""

_MOST = 2**28  # bytes of a sheet


def runs_shown(sheet: Path) -> set[str]:
    """Names of the runs whose pictures a contact sheet shows; none where the file is no sheet of ours."""
    try:
        with opened(io.BytesIO(read_regular(sheet, _MOST)), shown(sheet), ("PNG",)) as image:
            return set(str(image.info.get(RUNS, "")).split())
    except (OSError, RecordError, InvalidRequestError):
        return set()
