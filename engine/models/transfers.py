"""Values between host and device, many in one copy: each copy that is waited for empties the device's queue.

On a CPU, where host and device are one, nothing is copied.
"""

import functools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Numbers = float | tuple["Numbers", ...]


def sent(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors on `device`: those of the host go there in one copy, from pinned memory, that nobody waits for.

    What was sent together are views of one block: clone what is to outlive the rest.
    """
    places = [i for i, tensor in enumerate(tensors) if tensor.device.type == "cpu"]
    if device.type != "cuda" or not places:
        return [tensor.to(device) for tensor in tensors]
    there = list(tensors)
    parts = _ordered([tensors[i] for i in places])
    host = torch.empty(sum(part.nbytes for part in parts.values()), dtype=torch.uint8, pin_memory=True)
    torch.cat([_bytes(part) for part in parts.values()], out=host)
    block = host.to(device, non_blocking=True)
    for number, view in _views(block, parts).items():
        there[places[number]] = view
    return there


def fetched(tables: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The same tables on the host, in one copy from the device, which is waited for.

    What was fetched together are views of one block: copy what is to outlive the rest.
    """
    names = [(number, name) for number, table in enumerate(tables) for name in table]
    found: list[dict[str, Tensor]] = [dict(table) for table in tables]
    away = [(number, name) for number, name in names if tables[number][name].device.type != "cpu"]
    if not away:
        return found
    parts = _ordered([tables[number][name] for number, name in away])
    block = torch.cat([_bytes(part) for part in parts.values()])
    host = block.to("cpu", non_blocking=True)
    torch.cuda.current_stream(block.device).synchronize()
    for place, view in _views(host, parts).items():
        number, name = away[place]
        found[number][name] = view
    return found


def constant(numbers: Numbers, like: Tensor) -> Tensor:
    """Numbers, nested as the tensor is to be, in the dtype and on the device of `like`: copied there once, and kept."""
    return _constant(numbers, like.dtype, like.device)


@functools.lru_cache(maxsize=256)
def _constant(numbers: Numbers, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(numbers, dtype=dtype, device=device)


def _ordered(tensors: Sequence[Tensor]) -> dict[int, Tensor]:
    """Tensors by their places, the widest dtypes first: so packed, each lies where its dtype may."""
    return dict(sorted(enumerate(tensors), key=lambda pair: -pair[1].element_size()))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _views(block: Tensor, parts: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """What lies in a block (bytes,) that `parts` were packed into, by their places."""
    found, begin = {}, 0
    for place, part in parts.items():
        size = math.prod(part.shape) * part.element_size()
        found[place] = block[begin : begin + size].view(part.dtype).view(part.shape)
        begin += size
    return found
