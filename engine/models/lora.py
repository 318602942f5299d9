"""LoRA adapters: a safetensors file to factors of a model's layers, every tensor of it accounted for.

Hu et al., arXiv 2106.09685: a layer's weight W becomes W + weight * alpha / rank * up @ down. What a file says beside
its tensors is read too: alpha by layer, and PEFT's settings, in the file's metadata or in `adapter_config.json`.
"""

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..api.errors import CheckpointError
from ..api.reading import MAX_TENSORS, open_regular, parse_json, read_object, shown
from .lora_keys import UNSERVED, Layers, Place, Places
from .tensor_files import check_tensors

Fused = str | Path | Sequence[str | Path]
"""Files of adapters to be fused, one or several, FILE or FILE:WEIGHT."""

MAX_WEIGHT = 100.0
"""The largest weight of an adapter, either way."""

_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}
_METADATA = "lora_adapter_metadata"
_SETTINGS = frozenset({"use_dora", "lora_bias", "fan_in_fan_out"})
_NAME = re.compile(r"\w[\w.-]{0,63}")
_PLAIN = re.compile(r"[\w.]+")


@dataclass(frozen=True)
class Factor:
    """What an adapter changes of one layer. down (r, size, size, K): of a linear layer size is 1; up (M, r) float32.

    The scale alpha / r is in `up` already.
    """

    down: Tensor
    up: Tensor

    @property
    def rank(self) -> int:
        """Rank of the change."""
        return len(self.down)

    def change(self, layer: nn.Module) -> Tensor:
        """The change of the layer's weight, in its shape, float32."""
        product = self.up @ self.down.float().flatten(1)
        weight: Any = layer.weight
        if isinstance(layer, nn.Linear):
            return product
        return product.unflatten(1, self.down.shape[1:]).permute(0, 3, 1, 2).reshape(weight.shape)


@dataclass(frozen=True)
class Adapter:
    """An adapter that fits a model. path: its file; sha256: of the file; factors: by part and layer."""

    path: Path
    sha256: str
    factors: Mapping[tuple[str, str], Factor]

    @property
    def parts(self) -> frozenset[str]:
        """Parts that it changes."""
        return frozenset(part for part, _ in self.factors)


def adaptable(
    unet: nn.Module, text_encoder: nn.Module, text_encoder_2: nn.Module | None
) -> dict[str, dict[str, nn.Module]]:
    """Layers that an adapter may change, by part and name."""
    parts = {"unet": unet, "text_encoder": text_encoder, "text_encoder_2": text_encoder_2}
    return {
        part: {name: each for name, each in module.named_modules() if isinstance(each, nn.Linear | nn.Conv2d)}
        for part, module in parts.items()
        if module is not None
    }


def read_adapter(path: Path, layers: Layers, layers_per_block: int) -> Adapter:
    """Read the file at `path` for a model of `layers`, whose weights need not be there.

    layers_per_block: of its UNet. Raises CheckpointError for a file that is none, holds a tensor that is not read, or
    is for another model.
    """
    _check_file(path)
    check_tensors([path])
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        metadata = dict(file.metadata() or {})
    _check_kinds(path, tensors)
    found = _placed(path, tensors, layers, layers_per_block)
    settings = _settings(path, metadata)
    factors = {
        (part, layer): _factor(path, layers[part][layer], f"{part}.{layer}", kinds, settings.get(part, {}), layer)
        for (part, layer), kinds in found.items()
    }
    with open_regular(path, MAX_TENSORS) as stream:
        return Adapter(path.resolve(), hashlib.file_digest(stream, "sha256").hexdigest(), factors)


def _check_file(path: Path) -> None:
    if path.is_dir() or path.suffix != ".safetensors":
        raise CheckpointError(f"{shown(path)} is no safetensors file; name the file of an adapter")
    if not path.exists():
        raise CheckpointError(f"there is no file {shown(path)}; name the file of an adapter")


def _check_kinds(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for kind, pattern in UNSERVED.items():
        if key := next(filter(pattern.search, sorted(tensors)), None):
            raise CheckpointError(
                f"{shown(path)} holds {kind} ({shown(key, 120)}), which is not served; LoRA of linear layers and "
                "convolutions is"
            )
    if not tensors:
        raise CheckpointError(f"{shown(path)} holds no tensors")


def _placed(
    path: Path, tensors: Mapping[str, Tensor], layers: Layers, layers_per_block: int
) -> dict[tuple[str, str], dict[str, Tensor]]:
    """Tensors by part and layer, and by kind; all of them, each in a place of its own."""
    places, found = Places(layers, layers_per_block), defaultdict[tuple[str, str], dict[str, Tensor]](dict)
    named: dict[Place, str] = {}
    for key in sorted(tensors):
        place = places.of(key)
        if place is None:
            raise CheckpointError(_homeless(path, key, tensors, layers))
        if place in named:
            twice = f"{shown(named[place], 120)} and {shown(key, 120)}"
            raise CheckpointError(f"{shown(path)} holds one tensor under two names: {twice}")
        named[place] = key
        found[place.part, place.layer][place.kind] = tensors[key]
    return dict(found)


def _homeless(path: Path, key: str, tensors: Mapping[str, Tensor], layers: Layers) -> str:
    other = _other_model(path, tensors, layers)
    return other or f"{shown(path)} holds {shown(key, 120)}, which is none of a LoRA's tensors of this model's layers"


def _other_model(path: Path, tensors: Mapping[str, Tensor], layers: Layers) -> str | None:
    """What the file is for, where the width of the text that its keys read tells that it is another model."""
    own = next((_width(each) for name, each in layers["unet"].items() if name.endswith("attn2.to_k")), 0)
    widths = [
        tensor.shape[1]
        for key, tensor in tensors.items()
        if "attn2" in key and "to_k" in key and re.search(r"(lora_A|down)(\.\w+)?\.weight$", key) and tensor.ndim > 1
    ]
    if not widths or widths[0] == own:
        return None
    theirs = _WIDTHS.get(widths[0], f"a text of width {widths[0]}")
    ours = _WIDTHS.get(own, f"one of width {own}")
    return f"{shown(path)} is an adapter of another model: of {theirs}, and this model is {ours}"


def _width(layer: nn.Module) -> int:
    assert isinstance(layer, nn.Linear)
    return layer.in_features


def _factor(
    path: Path, layer: nn.Module, name: str, kinds: Mapping[str, Tensor], settings: Mapping[str, Any], own: str
) -> Factor:
    for kind in ("down", "up"):
        if kind not in kinds:
            raise CheckpointError(f"{shown(path)} lacks the {kind} factor of {name}")
    down, up = _four(kinds["down"]), _four(kinds["up"])
    if "mid" in kinds:
        down = torch.einsum("rshw,skxy->rkhw", _four(kinds["mid"]).float(), down.float())
    weight: Any = layer.weight
    shape, rank = tuple(_four(weight).shape), len(down)
    if down.shape[1:] != shape[1:] or tuple(up.shape) != (shape[0], rank, 1, 1) or not rank:
        raise CheckpointError(
            f"{shown(path)} holds for {name} factors of shapes {tuple(kinds['down'].shape)} and "
            f"{tuple(kinds['up'].shape)}, which do not fit a weight of {tuple(weight.shape)}: it is an adapter of "
            "another model"
        )
    scale = _scale(path, name, rank, kinds.get("alpha"), settings, own)
    return Factor(down.permute(0, 2, 3, 1).contiguous(), up[:, :, 0, 0].float() * scale)


def _four(tensor: Tensor) -> Tensor:
    """A matrix as a convolution of one pixel."""
    return tensor[:, :, None, None] if tensor.ndim == 2 else tensor


def _scale(path: Path, name: str, rank: int, alpha: Tensor | None, settings: Mapping[str, Any], own: str) -> float:
    """Alpha over rank, or over its root where PEFT was told so; 1 where the file says nothing."""
    if alpha is None:
        given = _by_pattern(path, settings.get("alpha_pattern"), own, settings.get("lora_alpha", rank))
    elif alpha.numel() != 1:
        raise CheckpointError(f"{shown(path)} holds an alpha of {alpha.numel()} numbers for {name}; one is right")
    else:
        given = float(alpha)
    if isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given):
        raise CheckpointError(f"{shown(path)} says an alpha of {shown(repr(given), 80)} for {name}; a number is right")
    return given / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _by_pattern(path: Path, patterns: Any, own: str, usual: Any) -> Any:
    """What PEFT's `alpha_pattern` says of a layer: names, or how they end."""
    for pattern, value in (patterns or {}).items():
        name = str(pattern).removeprefix("^").removesuffix("$").replace("\\.", ".")
        if not _PLAIN.fullmatch(name):
            raise CheckpointError(f"{shown(path)} gives alpha by the pattern {shown(pattern, 80)}; names are served")
        if own == name or own.endswith(f".{name}"):
            return value
    return usual


def _settings(path: Path, metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """PEFT's settings by part, out of what diffusers writes into a file or PEFT beside it."""
    parts: dict[str, dict[str, Any]] = defaultdict(dict)
    if _METADATA in metadata:
        told = parse_json(metadata[_METADATA], path)
        for key, value in (told if isinstance(told, dict) else {}).items():
            part, _, name = str(key).partition(".")
            parts[part][name] = value
    beside = path.with_name("adapter_config.json")
    if path.name == "adapter_model.safetensors" and beside.exists():
        config = read_object(beside)
        parts = dict.fromkeys(("unet", "text_encoder", "text_encoder_2"), config)
    for settings in parts.values():
        _check_settings(path, settings)
    return dict(parts)


def _check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    if settings.get("peft_type", "LORA") != "LORA":
        raise CheckpointError(f"{shown(path)} is a {shown(settings['peft_type'], 80)} of PEFT; LORA is served")
    if told := sorted(name for name in _SETTINGS if settings.get(name)):
        raise CheckpointError(f"{shown(path)} was trained with {told[0]}, which is not served")
    if not isinstance(settings.get("alpha_pattern") or {}, Mapping):
        raise CheckpointError(f"{shown(path)} says an alpha_pattern that is none")


def named_files(given: Fused) -> tuple[tuple[Path, float], ...]:
    """Each file with its weight. Raises CheckpointError for a weight that is none."""
    several = [given] if isinstance(given, str | Path) else given
    return tuple(_parsed(one) for one in several)


def named_adapters(given: Mapping[str, str | Path]) -> dict[str, Path]:
    """Each file by its adapter's name. Raises CheckpointError for a name that is none."""
    for name in given:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise CheckpointError(
                f"{shown(repr(name), 80)} is no name of an adapter; letters, digits, dots and dashes are"
            )
    return {name: Path(path).expanduser() for name, path in given.items()}


def _parsed(given: str | Path) -> tuple[Path, float]:
    """A file and its weight out of FILE or FILE:WEIGHT."""
    text = str(given)
    head, colon, tail = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text).expanduser(), 1.0
    try:
        weight = float(tail)
    except ValueError:
        return Path(text).expanduser(), 1.0
    if not abs(weight) <= MAX_WEIGHT:
        raise CheckpointError(f"{shown(text)}: an adapter's weight is from {-MAX_WEIGHT:g} to {MAX_WEIGHT:g}")
    return Path(head).expanduser(), weight
