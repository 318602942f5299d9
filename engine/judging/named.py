"""Measures that need weights, by the names that users give them: `lpips`, `lpips=FILE`, `clip=FOLDER`."""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .. import judging, models
from ..api.errors import CheckpointError, InvalidRequestError
from ..api.metrics import ALL_METRICS, Direction
from ..api.reading import MAX_TENSORS, open_regular, shown
from ..models.tensor_files import check_tensors
from . import perceptual_wheel
from .extra import ExtraMetric
from .perceptual import Lpips

HELP = "lpips (weights from the extra [lpips]), lpips=FILE (safetensors) and clip=FOLDER (transformers' CLIPModel)"
"""What can be named, in words."""

_REFUSED = {
    "sscd": "SSCD is published as TorchScript, which is code and is not run here",
    "dreamsim": "DreamSim is published as pickles of several backbones with adapters, and pickles are not opened here",
}
_UNREAD = re.compile(r"scaling_layer\.(shift|scale)|lins\.\d\.model\.1\.weight|net\.slice\d\.\d+\.filt")
"""What published files hold besides: values that are the same in each, and the heads once more."""


@dataclass(frozen=True, eq=False)
class NamedMetric:
    """A measure with weights, on the device it was loaded for.

    name: by which rules know it. spec: by which it was asked for. sha256: of its weights.
    """

    name: str
    spec: str
    direction: Direction
    sha256: str
    network: nn.Module

    def __call__(self, finals: Tensor, references: Tensor, /) -> Tensor:
        """Finals and references (B, 3, H, W) in [0, 1] -> scores (B,)."""
        found: Tensor = self.network(finals, references)
        return found


def named_metrics(specs: Iterable[str], device: torch.device | str = "cpu") -> dict[str, ExtraMetric]:
    """Load the measures that `specs` name, by the name that rules know each by.

    Raises InvalidRequestError for what is no such measure or is named twice, CheckpointError for weights that are not
    its own, TwigError where what it needs is not installed.
    """
    found: dict[str, ExtraMetric] = {}
    for spec in specs:
        metric = _load(spec)
        if metric.name in found:
            raise InvalidRequestError(f"the measure {metric.name} is named twice; one of them is enough")
        metric.network.to(device)
        found[metric.name] = metric
    return found


def is_named(spec: str) -> bool:
    """Whether `spec` asks for a measure with weights, served or refused, rather than for one that is built in."""
    return "=" in spec or spec in _OF_PACKAGES or spec in _REFUSED


def rule_names(metrics: Mapping[str, ExtraMetric]) -> dict[str, str]:
    """The name that rules know each of `metrics` by that has a name here, by what asks for it."""
    return {metric.spec: metric.name for metric in metrics.values() if isinstance(metric, NamedMetric)}


def weights_of(metrics: Mapping[str, ExtraMetric]) -> dict[str, str]:
    """SHA-256 of the weights of each measure of `metrics` that has a name here, by what asks for it."""
    return {metric.spec: metric.sha256 for metric in metrics.values() if isinstance(metric, NamedMetric)}


def _load(spec: str) -> NamedMetric:
    name, _, place = spec.partition("=")
    if name in _REFUSED:
        raise InvalidRequestError(f"{_REFUSED[name]}; give it to the engine as a function, in extra_metrics")
    if name in ALL_METRICS:
        raise InvalidRequestError(f"{name} is measured anyway; named are {HELP}")
    known = _WITH_FILE if place else _OF_PACKAGES
    if name not in known:
        raise InvalidRequestError(f"there is no measure {shown(repr(spec), 200)}; there are {HELP}")
    return known[name](spec, Path(place).expanduser())


def _trained(spec: str, _: Path) -> NamedMetric:
    network = Lpips.of(perceptual_wheel.weights(), tolerant=True)
    return NamedMetric("st_lpips", spec, "distance", perceptual_wheel.CONTENT, network)


def _lpips(spec: str, file: Path) -> NamedMetric:
    """LPIPS of a file; that of the shift-tolerant kind is told by the names of its tensors."""
    check_tensors([file])
    tensors = load_file(file)
    tolerant = Lpips.names(tolerant=True)["convolutions.1.weight"] in tensors
    name, wanted = ("st_lpips", "lpips")[not tolerant], set(Lpips.names(tolerant).values())
    if missing := sorted(wanted - tensors.keys()):
        raise CheckpointError(
            f"{shown(file)} lacks {missing[0]} of LPIPS over AlexNet; save the `state_dict()` of the authors' "
            "LPIPS(net='alex'), backbone included, as safetensors"
        )
    if strange := sorted(each for each in tensors.keys() - wanted if not _UNREAD.fullmatch(each)):
        raise CheckpointError(f"{shown(file)} holds {shown(strange[0], 80)}, which is none of LPIPS over AlexNet")
    try:
        network = Lpips.of(tensors, tolerant)
    except RuntimeError as error:
        raise CheckpointError(f"{shown(file)} is not LPIPS over AlexNet: {shown(error, 400)}") from error
    with open_regular(file, MAX_TENSORS) as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return NamedMetric(name, spec, "distance", digest, network)


def _clip(spec: str, folder: Path) -> NamedMetric:
    if not folder.is_dir():
        raise InvalidRequestError(f"there is no folder {shown(folder)} of a CLIPModel")
    return NamedMetric("clip", spec, "similarity", models.layout.digest(folder), judging.clip.ClipLikeness.load(folder))


_Loader = Callable[[str, Path], NamedMetric]
_OF_PACKAGES: Mapping[str, _Loader] = {"lpips": _trained, "st_lpips": _trained}
_WITH_FILE: Mapping[str, _Loader] = {"lpips": _lpips, "st_lpips": _lpips, "clip": _clip}
