"""A network out of a single file: what it is told from names and shapes alone, its weights when they are asked for."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..api.errors import CheckpointError
from ..api.reading import shown
from . import configs, layout, tensor_reading
from .ldm import CHANGED, Tensors
from .published import Shapes
from .tensor_files import Entry


@dataclass(frozen=True)
class FilePart:
    """A network that `entries` of a single file hold.

    cls: of diffusers or transformers. rename: the file's tensors to those of `cls`. configure: its configuration, of
    the shapes that come of it.
    """

    file: Path
    cls: Any
    entries: Mapping[str, Entry]
    rename: Callable[[Tensors], dict[str, Tensor]]
    configure: Callable[[Shapes], dict[str, Any]]

    @cached_property
    def config(self) -> dict[str, Any]:
        """The network's configuration. Raises CheckpointError for one that is not served."""
        try:
            config = self.configure({name: tensor.shape for name, tensor in self._outlines.items()})
        except (KeyError, IndexError, ValueError) as error:
            raise CheckpointError(
                f"{shown(self.file)} lacks tensors of a {self.cls.__name__}, among them {shown(error.args[0], 120)}"
            ) from error
        configs.check_module(self.cls, self.file, {**config, "_class_name": self.cls.__name__})
        return config

    def sketched(self) -> nn.Module:
        """The network on the device "meta". Raises CheckpointError unless the file holds its tensors, and no others."""
        module = layout.empty_module(self.cls, self.config, self.file)
        self._check(module)
        return module

    def loaded(self, dtype: torch.dtype, device: torch.device | str) -> nn.Module:
        """The network with its weights, frozen, in `dtype` on `device`."""
        module = layout.empty_module(self.cls, self.config, self.file)
        tensors = self.rename(tensor_reading.read_tensors(self.file, self.entries, dtype, device))
        module.load_state_dict(_named_as_in(module, tensors), assign=True)
        for path, inner in module.named_modules():
            for name, buffer in inner.named_buffers(recurse=False):
                if buffer.is_meta:  # what no file holds: the numbers of CLIP's places
                    assert name == "position_ids", path
                    inner.register_buffer(name, torch.arange(buffer.shape[-1], device=device)[None], persistent=False)
        return module.eval().requires_grad_(False)

    def digest(self) -> str:
        """SHA-256, in hex, over the configuration and the tensors of this network, as they are in the file."""
        return tensor_reading.digest(self.file, self.entries, json.dumps(self.config, sort_keys=True))

    @cached_property
    def _outlines(self) -> dict[str, Tensor]:
        """The network's tensors without values."""
        try:
            return self.rename(self._empty)
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{shown(self.file)} does not hold the tensors of a {self.cls.__name__}: {shown(error, 120)}"
            ) from error

    @cached_property
    def _empty(self) -> dict[str, Tensor]:
        return {name: torch.empty(entry.shape, device="meta") for name, entry in self.entries.items()}

    def _check(self, module: nn.Module) -> None:
        name, own = self.cls.__name__, module.state_dict()
        found = _named_as_in(module, self._outlines)
        if missing := sorted(own.keys() - found.keys()):
            raise CheckpointError(
                f"{shown(self.file)} lacks {len(missing)} tensors of a {name}, among them {missing[0]}"
            )
        origins = {id(tensor): key for key, tensor in self._empty.items()}
        used = {id(tensor) for key, tensor in found.items() if key in own}
        unread = [key for place, key in origins.items() if place not in used and not CHANGED.search(key)]
        if strange := sorted(unread) or sorted(found.keys() - own.keys()):
            raise CheckpointError(
                f"{shown(self.file)} holds {len(strange)} tensors that are none of a {name}'s, among them "
                f"{shown(strange[0], 120)}; what is not read is not served"
            )
        for key, tensor in own.items():
            if tensor.shape != found[key].shape:
                origin = origins.get(id(found[key]), key)
                raise CheckpointError(
                    f"{shown(self.file)} holds {shown(origin, 120)} in the shape {tuple(found[key].shape)}, where a "
                    f"{name} of its kind has {tuple(tensor.shape)}"
                )


def _named_as_in(module: nn.Module, tensors: Tensors) -> dict[str, Tensor]:
    """Tensors of a text encoder by the names that this release of transformers has for them."""
    wrapped = any(name.startswith("text_model.") for name in module.state_dict())
    if wrapped or not any(name.startswith("text_model.") for name in tensors):
        return dict(tensors)
    return {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
