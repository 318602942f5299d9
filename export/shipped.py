"""Graphs that come with the package: of the embedded model's networks, whose weights lie in its own files already.

To trace a network takes PyTorch half a minute, and what it makes of the embedded model is known: `shipping` keeps each
graph compressed, with zeros in the place of every tensor that the network has, and a list of where they come from.
"""

import lzma
import shutil
from pathlib import Path

from torch import Tensor, nn

from ..engine.api.reading import MAX_JSON, read_object
from .form import ORIGINS
from .store import Key

SHIPPED = Path(__file__).with_name("assets")
"""Where they lie, a folder for each network."""

TOLD = "shipped.json"
"""Beside a graph: what it computes, and its tensors as (name, whether it is turned over, first byte, end)."""

DATA, PACKED = ".data", ".xz"
_WRITTEN_BY = ("twig", "torch", "diffusers", "transformers", "onnx", "onnxscript")
"""Parts of a graph's key that say who wrote it, and nothing of what it computes."""


def restored(flat: nn.Module, key: Key, folder: Path, graph: Path) -> bool:
    """Write to `graph` what came in `folder` for `key`, with the weights of `flat`; False, and nothing, without it."""
    path = folder / TOLD
    told = read_object(path, MAX_JSON) if path.is_file() else {}
    if told.get("key") != computing(key):
        return False
    state, name = flat.state_dict(), graph.name
    data = bytearray(lzma.decompress((folder / (name + DATA + PACKED)).read_bytes()))
    for source, turned, start, end in told["tensors"]:
        data[start:end] = as_held(state[source], turned=turned)
    graph.write_bytes(lzma.decompress((folder / (name + PACKED)).read_bytes()))
    graph.with_name(name + DATA).write_bytes(data)
    if (folder / ORIGINS).exists():
        shutil.copyfile(folder / ORIGINS, graph.with_name(ORIGINS))
    return True


def computing(key: Key) -> dict[str, str]:
    """What of a graph's key says what it computes."""
    return {name: value for name, value in key.values.items() if name not in _WRITTEN_BY}


def as_held(tensor: Tensor, *, turned: bool) -> bytes:
    """A network's tensor as its graph holds it."""
    values = tensor.t() if turned else tensor
    return values.detach().cpu().contiguous().numpy().tobytes()
