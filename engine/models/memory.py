"""Parts that are handed over in memory: checked as those of a folder are, hashed by what they hold, never changed.

A network is taken as a twin: modules of our own, which may be rebuilt, over the same tensors.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    ControlNetModel,
    DDIMScheduler,
    SchedulerMixin,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, PreTrainedModel

from ..api.errors import CheckpointError
from ..api.reading import shown
from ..sampling.sampler import Sampler, sampler_of
from . import configs, layout, parts

Network = TypeVar("Network", bound=nn.Module)

_SERVED: Mapping[str, tuple[type, ...]] = {
    "unet": (UNet2DConditionModel,),
    "controlnet": (ControlNetModel,),
    "vae": (AutoencoderKL, AutoencoderTiny),
    "preview_vae": (AutoencoderTiny,),
    "text_encoder": (CLIPTextModel,),
    "text_encoder_2": (CLIPTextModelWithProjection,),
}
_FREE_U = ("s1", "s2", "b1", "b2")
_PROCESSORS = frozenset({"AttnProcessor", "AttnProcessor2_0", "SlicedAttnProcessor", "XFormersAttnProcessor"})
"""Processors of diffusers that compute plain attention, each in its way."""


def twin(network: Network, name: str) -> Network:
    """A frozen network of the same class, configuration and tensors, which none of its modules share with `network`.

    Raises CheckpointError for what its configuration does not say or is not served: adapters, other attention.
    """
    part = f"the {name} in memory"
    if type(network) not in _SERVED[name]:
        served = " and ".join(cls.__name__ for cls in _SERVED[name])
        raise CheckpointError(f"{part} is of {shown(type(network).__name__)}; served in its place: {served}")
    config = _config(network)
    configs.check_module(type(network), part, {**config, "_class_name": type(network).__name__})
    _check_plain(network, part)
    copy = layout.empty_module(type(network), config, part)
    try:
        copy.load_state_dict(network.state_dict(), assign=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"{part} has other tensors than its configuration says; fuse adapters and unload them first: {shown(error)}"
        ) from error
    for path, module in network.named_modules():
        copy.get_submodule(path)._buffers.update(module._buffers)  # those that no state holds
    return copy.eval().requires_grad_(False)


def placed(twin: nn.Module, device: torch.device | str, dtype: torch.dtype) -> nn.Module:
    """Bring a twin onto a device and into a number type; what is there already stays shared.

    The libraries' own `to` remarks on modules that a network keeps in float32, where it has none.
    """
    return nn.Module.to(twin, device, dtype)


def tokenizer(given: Any, name: str) -> CLIPTokenizer:
    """A tokenizer, if it is CLIP's and pads at the end."""
    part = f"the {name} in memory"
    if not isinstance(given, CLIPTokenizer):
        raise CheckpointError(f"{part} is of {shown(type(given).__name__)}; served in its place: CLIPTokenizer")
    sides = {"padding_side": given.padding_side, "truncation_side": given.truncation_side}
    configs.check_tokenizer(part, sides | {"model_max_length": given.model_max_length})
    return given


def digest(part: Any) -> str:
    """SHA-256, in hex, over what a part holds.

    Of a network its configuration, and names, types, shapes and values of its tensors; of a scheduler its
    configuration; of a tokenizer all that it makes tokens by.
    """
    if isinstance(part, CLIPTokenizer):
        return hashlib.sha256(part.backend_tokenizer.to_str().encode()).hexdigest()
    total = hashlib.sha256(json.dumps(_config(part), sort_keys=True).encode())
    for name, tensor in sorted(part.state_dict().items()) if isinstance(part, nn.Module) else ():
        total.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()


def schedule(scheduler: SchedulerMixin, forced: dict[str, Any]) -> DDIMScheduler:
    """The noise schedule of a scheduler's configuration, checked as a folder's is."""
    if not isinstance(scheduler, SchedulerMixin):
        raise CheckpointError(f"scheduler must be a scheduler of diffusers, got {shown(repr(scheduler), 80)}")
    return parts.schedule("the scheduler in memory", _config(scheduler), forced)


def sampler(scheduler: SchedulerMixin, xl: bool) -> Sampler:
    """What a scheduler that has been checked says of how it steps."""
    return sampler_of(_config(scheduler), xl)


def _config(part: Any) -> dict[str, Any]:
    """A part's configuration as it would be written to a file."""
    text = part.config.to_json_string() if isinstance(part, PreTrainedModel) else part.to_json_string()
    config: dict[str, Any] = json.loads(text)
    return {name: value for name, value in config.items() if name not in ("_use_default_values", "_name_or_path")}


def _check_plain(network: nn.Module, part: str) -> None:
    """Refuse what was switched on in memory and stands in no configuration."""
    if any(parameter.is_meta for parameter in network.parameters()):
        raise CheckpointError(f"{part} was offloaded and has no weights; load the pipeline without offloading")
    processors = getattr(network, "attn_processors", {})
    if other := {type(each).__name__ for each in processors.values()} - _PROCESSORS:
        raise CheckpointError(
            f"{part} has attention processors that are not served, {', '.join(sorted(other))}; those served are "
            f"{', '.join(sorted(_PROCESSORS))}: pipe.unet.set_default_attn_processor()"
        )
    if any(getattr(block, name, None) is not None for block in getattr(network, "up_blocks", ()) for name in _FREE_U):
        raise CheckpointError(f"{part} runs FreeU, which is not served; pipe.disable_freeu() first")
