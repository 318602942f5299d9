"""Models at their published sizes with random weights, written tensor by tensor: they are never in memory."""

import json
from collections.abc import Mapping
from pathlib import Path

import narrow_models
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from torch import Tensor, nn
from transformers import PreTrainedModel, SegformerConfig, SegformerForSemanticSegmentation

_KINDS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}
_NOISE = torch.randn(2**20, generator=torch.Generator().manual_seed(0))


def outlines(family: str) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    """The pipeline of a family whose networks have shapes and hold nothing."""
    with torch.device("meta"):
        return narrow_models.build(family, full=True)


def write_configs(pipe: StableDiffusionPipeline | StableDiffusionXLPipeline, folder: Path) -> None:
    """All of a pipeline's folder but its weights."""
    pipe.save_config(folder)
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module):
            write_config(part, folder / name)
        elif part is not None:
            part.save_pretrained(folder / name)


def write_config(network: nn.Module, folder: Path) -> None:
    """A network's configuration."""
    if isinstance(network, PreTrainedModel):
        network.config.architectures = [type(network).__name__]
        network.config.save_pretrained(folder)
    else:
        network.save_config(folder)


def write_folder(family: str, folder: Path, dtype: torch.dtype) -> Path:
    """A family's folder, its weights in `dtype`."""
    pipe = outlines(family)
    write_configs(pipe, folder)
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module):
            write_weights(part, folder / name, dtype)
    return folder


def write_weights(network: nn.Module, folder: Path, dtype: torch.dtype) -> None:
    """Random weights of a network under its library's name for them."""
    stem = "model" if isinstance(network, PreTrainedModel) else "diffusion_pytorch_model"
    write(network.state_dict(), folder / f"{stem}.safetensors", dtype)


def write_controlnet(family: str, folder: Path, dtype: torch.dtype) -> Path:
    """A family's ControlNet."""
    with torch.device("meta"):
        controlnet = narrow_models.build_controlnet(narrow_models.build_unet(family, full=True))
    write_config(controlnet, folder)
    write_weights(controlnet, folder, dtype)
    return folder


def write_segmenter(folder: Path, dtype: torch.dtype) -> Path:
    """SegFormer-B5 with the 150 labels of ADE20K, its preprocessor as older releases of transformers wrote it."""
    names = dict(enumerate(["wall", "building", "sky", "floor", "tree", "ceiling", "road"]))
    names |= {number: f"thing {number}" for number in range(7, 150)}
    config = SegformerConfig(
        id2label=names, label2id={name: number for number, name in names.items()}, depths=[3, 6, 40, 3],
        hidden_sizes=[64, 128, 320, 512], decoder_hidden_size=768,
    )  # fmt: skip
    with torch.device("meta"):
        segmenter = SegformerForSemanticSegmentation(config)
    write_config(segmenter, folder)
    write_weights(segmenter, folder, dtype)
    scale = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 2, "size": 512}
    steps = {"do_normalize": True, "do_resize": True, "reduce_labels": True}
    said = {"feature_extractor_type": "SegformerFeatureExtractor", **steps, **scale}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return folder


def write(outlined: Mapping[str, Tensor], file: Path, dtype: torch.dtype) -> Path:
    """A safetensors file of tensors that have shapes alone: scales are one, shifts zero, matrices noise."""
    kinds = {name: dtype if tensor.is_floating_point() else torch.int64 for name, tensor in outlined.items()}
    header, place = {}, 0
    for name, tensor in outlined.items():
        end = place + tensor.numel() * kinds[name].itemsize
        header[name] = {"dtype": _KINDS[kinds[name]], "shape": list(tensor.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 64 + 56)  # so that what follows is aligned
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in outlined.items():
            for piece in _values(name, tensor, kinds[name]):
                stream.write(piece)
    return file


def _values(name: str, tensor: Tensor, dtype: torch.dtype):
    if tensor.ndim < 2 or not tensor.is_floating_point():
        value = tensor.is_floating_point() and name.endswith(("weight", "running_var"))
        yield _bytes(torch.full((tensor.numel(),), float(value)), dtype)
        return
    scaled = _bytes(_NOISE * 0.7 / tensor[0].numel() ** 0.5, dtype)
    left = tensor.numel() * dtype.itemsize
    for _ in range(left // len(scaled)):
        yield scaled
    yield scaled[: left % len(scaled)]


def _bytes(values: Tensor, dtype: torch.dtype) -> bytes:
    return values.to(dtype).view(torch.uint8).numpy().tobytes()
