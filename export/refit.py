"""Other weights into a graph that is there already: where nothing else differs, it need not be traced again.

What an exporter makes of a network follows from its configuration and from its tensors' names and shapes. Which tensor
of the network each of the graph's came from is found when it is exported, by name or else by value, and kept beside it;
where that is not certain for every one of them, nothing is kept, and other weights are exported anew.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, external_data_helper
from torch import Tensor, nn

from ..engine.api.reading import MAX_JSON, read_object
from .form import ORIGINS

_DTYPES: Mapping[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
}
_LEAST = 8
"""Numbers of the smallest tensor that may hold weights under a name of the exporter's: a layer has as many channels.
Smaller ones are constants, such as the factors of a resize."""


def keep_origins(flat: nn.Module, config: str, graph: Path) -> None:
    """Keep, beside `graph`, where its tensors come from in `flat`, which has the configuration `config`, if certain."""
    origins = _origins(flat.state_dict(), graph)
    if origins is not None:
        text = json.dumps({"network": structure(flat, config), "origins": origins})
        graph.with_name(ORIGINS).write_text(text)


def structure(flat: nn.Module, config: str) -> str:
    """Digest of all that a network's graph follows from: its configuration, its tensors' names and shapes."""
    tensors = [(name, list(tensor.shape)) for name, tensor in flat.state_dict().items()]
    return hashlib.sha256(json.dumps([config, tensors]).encode()).hexdigest()


def is_same_but_weights(one: Path, other: Path) -> bool:
    """Whether two graphs, by the files of origins beside them, are known to differ in their weights alone."""
    digests = [read_object(path, MAX_JSON).get("network") if path.is_file() else None for path in (one, other)]
    return digests[0] is not None and digests[0] == digests[1]


def refitted(flat: nn.Module, config: str, old: Path, new: Path) -> bool:
    """Write the graph at `old` to `new` with the weights of `flat`; False, and nothing, where they may not fit."""
    path = old.with_name(ORIGINS)
    kept = read_object(path, MAX_JSON) if path.is_file() else {}
    if kept.get("network") != structure(flat, config):
        return False
    model, state = onnx.load(str(old), load_external_data=False), flat.state_dict()
    for data in {info.location for info in map(_place, _external(model))}:
        shutil.copyfile(old.with_name(data), new.with_name(data))
    shutil.copyfile(path, new.with_name(ORIGINS))
    origins = kept["origins"]
    for tensor in (each for each in model.graph.initializer if each.name in origins):
        name, turned = origins[tensor.name]
        _write(tensor, state[name].t() if turned else state[name], new)
    onnx.save_model(model, str(new))
    return True


def _origins(state: Mapping[str, Tensor], graph: Path) -> dict[str, tuple[str, bool]] | None:
    """By tensor of the graph that of the network, and whether it is turned over; None where one is not certain."""
    model = onnx.load(str(graph), load_external_data=False)
    found: dict[str, tuple[str, bool]] = {}
    known: dict[int, dict[str, set[tuple[str, bool]]]] = {}
    for tensor in _weights(model, state):
        kind = tensor.data_type
        if kind not in known:
            known[kind] = _by_value(state, _DTYPES[kind])
        data = _read(tensor, graph)
        candidates = known[kind].get(hashlib.sha256(data).hexdigest(), set())
        if (tensor.name, False) in candidates:
            candidates = {(tensor.name, False)}
        elif _uniform(data, _DTYPES[kind]):
            if candidates:
                return None
            continue  # a constant: the ones and zeros of a norm that is computed by another
        if len(candidates) != 1:
            return None
        found[tensor.name] = next(iter(candidates))
    return found


def _uniform(data: bytes, dtype: torch.dtype) -> bool:
    return data == data[: dtype.itemsize] * (len(data) // dtype.itemsize)


def _by_value(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, set[tuple[str, bool]]]:
    """Tensors of a network as a graph in `dtype` may hold them, by a digest of their values."""
    found: dict[str, set[tuple[str, bool]]] = {}
    for name, tensor in state.items():
        ways = {False: tensor} | ({True: tensor.t()} if tensor.ndim == 2 else {})
        for turned, each in ways.items():
            found.setdefault(hashlib.sha256(_bytes(each, dtype)).hexdigest(), set()).add((name, turned))
    return found


def _weights(model: onnx.ModelProto, state: Mapping[str, Tensor]) -> Iterator[TensorProto]:
    """The graph's tensors that may hold weights."""
    for tensor in model.graph.initializer:
        large = torch.Size(tensor.dims).numel() >= _LEAST
        if tensor.data_type in _DTYPES and (large or tensor.name in state):
            yield tensor


def _external(model: onnx.ModelProto) -> Iterator[TensorProto]:
    return (each for each in model.graph.initializer if external_data_helper.uses_external_data(each))


def _place(tensor: TensorProto) -> Any:
    return external_data_helper.ExternalDataInfo(tensor)


def _bytes(tensor: Tensor, dtype: torch.dtype) -> bytes:
    flat = tensor.detach().cpu().to(dtype).contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes()


def _read(tensor: TensorProto, graph: Path) -> bytes:
    """A tensor's bytes, where they lie."""
    if not external_data_helper.uses_external_data(tensor):
        return onnx.numpy_helper.to_array(tensor).tobytes()
    info = _place(tensor)
    with graph.with_name(info.location).open("rb") as stream:
        stream.seek(info.offset or 0)
        return stream.read(info.length)


def _write(tensor: TensorProto, value: Tensor, graph: Path) -> None:
    """Put a tensor's values where they lie: into the file beside the graph, or into the graph."""
    data = _bytes(value, _DTYPES[tensor.data_type])
    if not external_data_helper.uses_external_data(tensor):
        tensor.ClearField("float_data")
        tensor.raw_data = data
        return
    info = _place(tensor)
    with graph.with_name(info.location).open("r+b") as stream:
        stream.seek(info.offset or 0)
        stream.write(data)
