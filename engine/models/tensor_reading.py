"""Tensors out of a safetensors file whose header was looked at: read one by one, cast, and hashed as they lie there."""

import hashlib
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ..api.reading import MAX_TENSORS, open_regular
from .tensor_files import Entry

KINDS: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""Number types that weights of a single file may be stored in."""

_PIECE = 2**24


def read_tensors(
    file: Path, entries: Mapping[str, Entry], dtype: torch.dtype, device: torch.device | str
) -> dict[str, Tensor]:
    """The tensors of `entries` in `dtype` on `device`.

    What is on the processor and in `dtype` already is mapped: its pages are the file's own, which other engines and
    processes share. All else is read and cast a tensor at a time, so that no more than one is there twice.
    """
    mapped = {
        name for name, entry in entries.items() if KINDS[entry.kind] is dtype and torch.device(device).type == "cpu"
    }
    with safe_open(file, framework="pt") as there:
        found = {name: there.get_tensor(entries[name].name) for name in mapped}
    with open_regular(file, MAX_TENSORS) as stream:
        for name in entries.keys() - mapped:
            found[name] = _read(stream, entries[name]).to(device, dtype)
    return found


def _read(stream: BufferedReader, entry: Entry) -> Tensor:
    stream.seek(entry.start)
    content = bytearray(stream.read(entry.end - entry.start))
    values = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
    return values.view(KINDS[entry.kind]).reshape(entry.shape)


def digest(file: Path, entries: Mapping[str, Entry], said: str) -> str:
    """SHA-256, in hex, over `said`, and names, types, shapes and values of the tensors of `entries`."""
    total = hashlib.sha256(said.encode())
    with open_regular(file, MAX_TENSORS) as stream:
        for name, entry in sorted(entries.items()):
            total.update(f"{name}\0{entry.kind}\0{entry.shape}\n".encode())
            for piece in _pieces(stream, entry):
                total.update(piece)
    return total.hexdigest()


def _pieces(stream: BufferedReader, entry: Entry) -> Iterator[bytes]:
    stream.seek(entry.start)
    for place in range(entry.start, entry.end, _PIECE):
        yield stream.read(min(_PIECE, entry.end - place))
