"""What `twig bank show` does: a bank's shapes as a sheet."""

import io
from pathlib import Path

from ...api.writing import check_file, write_whole
from ...models.bank import FILE, Bank
from ...models.checkpoint import EMBEDDED
from ...records.bank_sheet import bank_sheet
from ..options import Manner
from ..status import DONE
from .speaking import write_json


def show_bank(bank: Path | None, out: Path, manner: Manner) -> int:
    """Draw the bank in a file, or a model's folder, the package's own if None, into `out`; return the exit code."""
    place = bank or EMBEDDED
    check_file(out)
    found = Bank.load(place / FILE if place.is_dir() else place)
    buffer = io.BytesIO()
    bank_sheet(found).save(buffer, "PNG")
    write_whole(out, buffer.getvalue())
    counts = {name: len(shelf) for name, shelf in found.by_label.items()}
    if manner.json:
        write_json({"written": str(out), "version": found.version, "shapes": counts, "from": found.description})
        return DONE
    for name, count in counts.items():
        print(f"{name:24}{count}")
    print(f"{'version':24}{found.version}, from {found.description}")
    print(f"{'written':24}{out}")
    return DONE
