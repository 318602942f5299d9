"""Who races, by job, and how each is started."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from .environments import (
    HERE,
    ONNX,
    OPENVINO,
    OPENVINO_GENAI,
    OPTIMUM_INTEL,
    OPTIMUM_ONNX,
    Conversion,
    Environment,
    environment_name,
)
from .folders import write_folder
from .ours import PLAIN, TWO_STEP

_THEIRS = Path(__file__).with_name("theirs.py")
_TOLD = (
    "torch", "diffusers", "transformers", "onnxruntime", "openvino", "openvino-genai", "optimum-intel", "optimum-onnx",
)  # fmt: skip
_VERSIONS = """import json, sys
from importlib.metadata import version, PackageNotFoundError
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))"""


@dataclass(frozen=True)
class Contestant:
    """A runtime.

    conversion: the format that it reads, the model's own if None. own: whether `ours.py` starts it.
    """

    runtime: str
    environment: Environment = HERE
    conversion: Conversion | None = None
    own: bool = False

    def command(self, job: str, out: Path, cache: Path) -> list[str]:
        """What starts it; environment and converted model are made where they lack."""
        python = self.environment.python(out / environment_name(self.environment))
        model = write_folder(out / "models" / "plain")
        read = self.conversion.folder(model, out / "models") if self.conversion else model
        chosen = {"runtime": self.runtime, "job": job, "cache": str(cache)}
        if not self.own:
            return [python, str(_THEIRS), json.dumps(chosen | {"folder": str(read)})]
        folder = None if job == TWO_STEP else str(read)
        return [sys.executable, "-m", f"{__package__}.ours", json.dumps(chosen | {"folder": folder})]

    def versions(self, out: Path) -> dict[str, str]:
        """Versions of what it runs on."""
        python = self.environment.python(out / environment_name(self.environment))
        told = subprocess.run([python, "-c", _VERSIONS, *_TOLD], check=True, capture_output=True, text=True).stdout
        found: dict[str, str] = json.loads(told)
        return found


OURS = "twig openvino"
DIFFUSERS, TWO_PIPELINES = "diffusers eager", "diffusers, two pipelines"
CONTESTANTS = {
    PLAIN: {
        DIFFUSERS: Contestant("diffusers"),
        OURS: Contestant("openvino", own=True),
        "twig onnxruntime": Contestant("onnxruntime", own=True),
        "twig torch": Contestant("torch", own=True),
        "openvino-genai": Contestant("openvino-genai", OPENVINO_GENAI, OPENVINO),
        "optimum-intel": Contestant("optimum-intel", OPTIMUM_INTEL, OPENVINO),
        "optimum-onnx": Contestant("optimum-onnx", OPTIMUM_ONNX, ONNX),
        "diffusers torch.compile": Contestant("torch.compile"),
    },
    TWO_STEP: {
        TWO_PIPELINES: Contestant("diffusers", own=True),
        OURS: Contestant("openvino", own=True),
        "twig onnxruntime": Contestant("onnxruntime", own=True),
        "twig torch": Contestant("torch", own=True),
    },
}
"""By job and name; the first of a job is whom pictures are compared with."""

CANNOT = {
    TWO_STEP: {
        "openvino-genai": "has no ControlNet pipeline", "optimum-intel": "has no ControlNet pipeline",
        "optimum-onnx": "has no ControlNet pipeline",
    }
}  # fmt: skip
"""Who cannot do a job at all, and why not."""
