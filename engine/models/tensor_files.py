"""What safetensors files say that they hold, looked at before a library opens them, and held against a network after.

A header is JSON that anybody wrote: its size, depth, names and number types are checked here, whether its offsets fit
the file by safetensors itself.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn

from ..api.errors import CheckpointError, ForeignFileError
from ..api.reading import MAX_TENSORS, open_regular, parse_json, shown

MAX_HEADER = 2**24
"""Longest header that is read, in bytes; SDXL's UNet has one of 2**18."""

_LENGTH = 8  # of the number, little-endian, that a file begins with
_REALS = ("F64", "F32", "F16", "BF16")
_COUNTED = re.compile(r"(^|\.)(num_batches_tracked|position_ids|relative_position_index)$")
"""Tensors of whole numbers, which change nothing: a counter of training, and places that the libraries count anew."""

_UNREAD: dict[str, re.Pattern[str]] = {
    "CLIPTextModel": re.compile(r"text_projection\.weight|logit_scale"),
    "CLIPTextModelWithProjection": re.compile(r"logit_scale"),
    "OneFormerForUniversalSegmentation": re.compile(r"(model\.)?(text_mapper|prompt_ctx)\..*|criterion\..*"),
}
"""What files hold besides, by class: whole CLIP models, on which a text's states do not depend; parts of training."""


@dataclass(frozen=True)
class Entry:
    """A tensor as a header has it. kind: number type, as safetensors names it. start, end: its bytes in the file."""

    name: str
    kind: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself: its tensors by name, and texts that whoever wrote it added."""

    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]


def check_tensors(files: Sequence[Path]) -> None:
    """Raise CheckpointError unless every tensor in `files` is of a number type that is served and in one file alone."""
    places: dict[str, Path] = {}
    for file in files:
        for name, entry in read_header(file).tensors.items():
            kind = entry.kind
            if name in places:
                raise CheckpointError(
                    f"{shown(name, 80)} is in {shown(places[name].name, 80)} and in {shown(file.name, 80)} of "
                    f"{shown(file.parent)}; keep the one that is meant"
                )
            if kind not in _REALS and not _COUNTED.search(name):
                raise CheckpointError(
                    f"{shown(file)} holds {shown(name, 80)} as {shown(kind, 80)}; weights are served as "
                    f"{', '.join(_REALS)}"
                )
            places[name] = file


def check_names(part: Path, files: Sequence[Path], module: nn.Module, info: dict[str, Any]) -> None:
    """Raise CheckpointError unless `files` hold the tensors of `module`, each once, and nothing that it does not read.

    info: the library's own account of its loading, names in `missing_keys` and `unexpected_keys`.
    """
    name = type(module).__name__
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise CheckpointError(f"{shown(part)} lacks {len(missing)} tensors of a {name}, among them {missing[0]}")
    harmless, unread = _UNREAD.get(name), _real(info["unexpected_keys"])
    if strange := sorted(key for key in unread if harmless is None or not harmless.fullmatch(key)):
        raise CheckpointError(
            f"{shown(part)} holds {len(strange)} tensors that are none of a {name}'s, among them "
            f"{shown(strange[0], 80)}; what is not read is not served"
        )
    held, own = (
        _real(names) for names in ([key for file in files for key in read_header(file).tensors], module.state_dict())
    )
    if len(held) - len(unread) > len(own):
        raise CheckpointError(
            f"{shown(part)} holds {len(held)} tensors where a {name} has {len(own)}: some stand there under two names"
        )


def _real(names: Iterable[str]) -> list[str]:
    """Names of tensors that are no counts."""
    return [name for name in names if not _COUNTED.search(name)]


def read_header(file: Path) -> Header:
    """The header of a safetensors file. Raises CheckpointError for what is none."""
    with open_regular(file, MAX_TENSORS) as stream:
        length = int.from_bytes(stream.read(_LENGTH), "little")
        if not 0 < length <= MAX_HEADER:
            raise _corrupt(file, f"its header would be of {length} bytes; at most {MAX_HEADER} are read")
        text = stream.read(length).decode("utf-8", "replace")
    try:
        header = parse_json(text, file)
        with safe_open(file, framework="pt"):  # looks at shapes and offsets
            tensors = {
                name: Entry(
                    name,
                    str(value["dtype"]),
                    tuple(value["shape"]),
                    *(first + _LENGTH + length for first in value["data_offsets"]),
                )
                for name, value in header.items()
                if name != "__metadata__"
            }
        return Header(tensors, {str(key): str(value) for key, value in (header.get("__metadata__") or {}).items()})
    except ForeignFileError as error:
        raise _corrupt(file, str(error).removeprefix(f"{shown(file)}: ")) from error
    except (SafetensorError, OSError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise _corrupt(file, shown(error)) from error


def _corrupt(file: Path, problem: str) -> CheckpointError:
    return CheckpointError(f"{shown(file)} is corrupt or cut short: {problem}")
