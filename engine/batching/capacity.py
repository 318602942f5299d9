"""How much an engine takes on where nobody says it, by the memory of its device."""

import torch

from .scheduler import Limits

_GIB = 2**30
_LARGE, _MIDDLING = 40 * _GIB, 16 * _GIB
_SHARE = 4
"""Of a GPU's memory one part in so many may be taken by what picture sizes keep there; weights, graphs and what runs
between steps have the rest."""


def usual_limits(device: torch.device | str) -> Limits:
    """Limits for a device: 64 rows on a GPU of 40 GiB, 32 on one of 16 GiB, else those that `Limits` has.

    As many jobs as rows: guided steps take two, so that a batch is full when half of the slots are. A CPU takes as much
    longer as there are more rows, so that there a higher priority gets a call to itself.
    """
    memory = _memory(device)
    if memory is None:
        return Limits(company=0)
    if memory < _MIDDLING:
        return Limits()
    rows = 64 if memory >= _LARGE else 32
    return Limits(slots=rows, rows=rows)


def usual_budget(device: torch.device | str) -> int:
    """Bytes for what picture sizes keep on a device: a quarter of a GPU's memory, else 2 GiB."""
    memory = _memory(device)
    return 2 * _GIB if memory is None else memory // _SHARE


def _memory(device: torch.device | str) -> int | None:
    """Bytes that a GPU has; None of what is none."""
    return torch.cuda.mem_get_info(device)[1] if torch.device(device).type == "cuda" else None
