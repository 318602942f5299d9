"""A network of diffusers out of a folder's safetensors, in shards or in one: mapped, or read a tensor at a time."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from ..api.errors import CheckpointError
from ..api.reading import shown
from .ldm import present_name
from .tensor_files import Entry, check_names, read_header
from .tensor_reading import read_tensors


def fill(
    module: nn.Module, part: Path, files: Sequence[Path], dtype: torch.dtype, device: torch.device | str
) -> nn.Module:
    """Give `module`, which is on the device "meta", the weights of `files` in `part`, frozen, in `dtype` on `device`.

    What is in `dtype` already is mapped where the device is the processor; all else is read and cast a tensor at a
    time, so that loading takes no more than the weights and one tensor besides. Names and shapes are compared before
    any is read. Raises CheckpointError for tensors that are missing, strange, there twice or of another shape.
    """
    own = module.state_dict()
    held = {file: _named_now(read_header(file).tensors) for file in files}
    found = {name: entry for entries in held.values() for name, entry in entries.items()}
    told = {"missing_keys": own.keys() - found.keys(), "unexpected_keys": found.keys() - own.keys()}
    check_names(part, files, module, told)
    for name, tensor in own.items():
        if found[name].shape != tuple(tensor.shape):
            raise CheckpointError(
                f"{shown(part)} cannot be loaded as a {type(module).__name__}: {shown(found[name].name, 80)} is there "
                f"in the shape {found[name].shape}, and the configuration says {tuple(tensor.shape)}"
            )
    for file, entries in held.items():
        read = {name: entry for name, entry in entries.items() if name in own}
        module.load_state_dict(read_tensors(file, read, dtype, device), strict=False, assign=True)
    return module.eval().requires_grad_(False)


def _named_now(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    return {present_name(name): entry for name, entry in entries.items()}
