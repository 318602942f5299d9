"""Makes the graphs that come with the package: `python -m twig.export.shipping`.

To be run again after a change of what the embedded model's networks compute, or of how they are exported; until then
they are exported on a user's machine, as any other model's are.
"""

import hashlib
import json
import lzma
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import onnx
import torch
import typer
from onnx import external_data_helper
from torch import Tensor, nn

from ..engine.backends.networks import SERVED, BackendSettings, Networks
from ..engine.backends.protocol import Backend, Precision, Wanted
from ..engine.backends.torch import flat_network
from ..engine.models.checkpoint import load
from ..engine.models.networks import Denoiser
from ..engine.models.tensors import Network
from .build import ArtifactBuilder, graph_key
from .form import ORIGINS
from .shipped import DATA, PACKED, SHIPPED, TOLD, as_held, computing
from .store import ArtifactStore, Key


def ship(flat: nn.Module, key: Key, graph: Path, folder: Path) -> None:
    """Write `graph`, what was exported of `flat` under `key`, into `folder`, its weights left out."""
    sources = {hashlib.sha256(values).digest(): place for place, values in _every(flat.state_dict())}
    data, tensors = bytearray(graph.with_name(graph.name + DATA).read_bytes()), []
    model = onnx.load(str(graph), load_external_data=False)
    for tensor in model.graph.initializer:
        if not external_data_helper.uses_external_data(tensor):
            continue
        info = external_data_helper.ExternalDataInfo(tensor)
        start = info.offset or 0
        end = start + (info.length or 0)
        if (source := sources.get(hashlib.sha256(data[start:end]).digest())) is not None:
            tensors.append([*source, start, end])
            data[start:end] = bytes(end - start)
    folder.mkdir(parents=True, exist_ok=True)
    _forget_where_it_was_made(model)
    _pack(model.SerializeToString(deterministic=True), folder / (graph.name + PACKED))
    _pack(bytes(data), folder / (graph.name + DATA + PACKED))
    (folder / TOLD).write_text(json.dumps({"key": computing(key), "tensors": tensors}) + "\n")
    if graph.with_name(ORIGINS).exists():
        shutil.copyfile(graph.with_name(ORIGINS), folder / ORIGINS)


def _forget_where_it_was_made(model: onnx.ModelProto) -> None:
    """Leave out what the exporter notes of its own source lines and of the machine's folders."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _every(state: Mapping[str, Tensor]) -> Iterator[tuple[tuple[str, bool], bytes]]:
    """Each tensor as a graph may hold it: as it is, or turned over."""
    for name, tensor in state.items():
        yield (name, False), as_held(tensor, turned=False)
        if tensor.ndim == 2:
            yield (name, True), as_held(tensor, turned=True)


def _pack(values: bytes, path: Path) -> None:
    path.write_bytes(lzma.compress(values, preset=9 | lzma.PRESET_EXTREME))


def main(
    out: Annotated[Path, typer.Option(help="Where the files go; where the package looks for them.")] = SHIPPED,
    store: Annotated[Path | None, typer.Option(help="Store whose exports are taken; an empty one.")] = None,
) -> None:
    """Export the embedded model's networks, and keep their graphs without weights."""
    components = load(None)
    denoiser = Denoiser(components.unet, components.controlnet)
    with tempfile.TemporaryDirectory() as empty:
        builder = ArtifactBuilder(ArtifactStore(store or Path(empty)), shipped=None)
        settings = BackendSettings(Backend.OPENVINO, artifacts=builder)
        networks = Networks(
            components, denoiser, settings, buckets=(1,), device=torch.device("cpu"), dtype=torch.float32
        )
        for network in (each for each in (*SERVED, Network.UNET_SHALLOW) if each in networks.specs):
            graph = networks.artifact(Backend.OPENVINO, network).path
            key = graph_key(Wanted(networks.specs[network], "onnx", Precision.FP32), components, builder.attention)
            ship(flat_network(network, components, denoiser), key, graph, out / network.value)
            print(f"{network.value}: {sum(file.stat().st_size for file in (out / network.value).iterdir())} bytes")


if __name__ == "__main__":
    typer.run(main)
