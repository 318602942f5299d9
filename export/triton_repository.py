"""A model repository for NVIDIA Triton Inference Server: the operator's file, and a model that reads it."""

import re
import site
from pathlib import Path

import yaml

from ..engine.api.errors import InvalidRequestError
from ..engine.api.writing import check_folder, write_whole
from ..engine.serve.config import ServeConfig
from ..engine.serve.triton import CONFIG, EVENT, REQUEST

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

_PBTXT = f"""name: "{{name}}"
backend: "python"
max_batch_size: 0
model_transaction_policy {{{{ decoupled: true }}}}
input [{{{{ name: "{REQUEST}" data_type: TYPE_STRING dims: [ 1 ] }}}}]
output [{{{{ name: "{EVENT}" data_type: TYPE_STRING dims: [ 1 ] }}}}]
instance_group [{{{{ kind: {{kind}} count: 1 }}}}]
"""

_MODEL = '''"""Twig in Triton Inference Server; written by `twig export --to triton-repository`."""

import site
import sys

# Where Twig and what it needs were installed when this was written; what Triton's own Python has comes after it.
for folder in {folders!r}:
    site.addsitedir(folder)
sys.path.sort(key=set(site.getsitepackages()).__contains__)

import triton_python_backend_utils as utils  # noqa: E402 - Triton brings it

from twig.engine.serve.triton import TwigModel  # noqa: E402


class TritonPythonModel(TwigModel):
    """The model under the name that Triton looks for."""

    def __init__(self):
        super().__init__(utils)
'''


def write_repository(out: Path, config: Path | None) -> Path:
    """Write a repository of one model into the folder `out`; return the model's own folder.

    config: the operator's file, whose model's name is Triton's too; its paths become absolute. Raises
    InvalidRequestError for a name that Triton cannot have, and what reading the file raises.
    """
    served = ServeConfig() if config is None else ServeConfig.load(config.absolute())
    name, on_cpu = served.model.name, (served.model.device or "").startswith("cpu")
    if not _NAME.fullmatch(name):
        raise InvalidRequestError(f"model.name: {name!r} is no name of a model in Triton: letters, digits, _ . -")
    folder = out / name
    check_folder(folder / "1")
    values = served.model_dump(mode="json", exclude={"listen"})
    write_whole(folder / "config.pbtxt", _PBTXT.format(name=name, kind="KIND_CPU" if on_cpu else "KIND_AUTO").encode())
    write_whole(folder / "1" / "model.py", _MODEL.format(folders=_folders()).encode())
    write_whole(folder / "1" / CONFIG, yaml.safe_dump(values, sort_keys=False).encode())
    return folder


def _folders() -> list[str]:
    """Where packages are imported from here: this one's parent, unless it is installed, and the environment's."""
    root = Path(__file__).resolve().parents[1]
    return [*([str(root.parent)] if root.name == "twig" else []), *site.getsitepackages()]
