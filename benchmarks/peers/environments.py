"""An environment for each peer, for their pins disagree, and the formats that two of them convert the model to."""

import json
import resource
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_TORCH = ("torch==2.13.0", "--no-deps", "--index-url", "https://download.pytorch.org/whl/cpu")
_TAIL = 2000


@dataclass(frozen=True)
class Environment:
    """Packages of PyPI in a folder of their own; none: those of this process.

    cpu_torch: whether PyTorch is built for the CPU alone, which torchvision from PyPI does not go with.
    """

    packages: tuple[str, ...] = ()
    cpu_torch: bool = False

    def python(self, folder: Path) -> str:
        """Interpreter of the environment in `folder`, made unless it is whole. Raises RuntimeError where pip fails."""
        if not self.packages:
            return sys.executable
        python, whole = folder / "bin" / "python", folder / "installed.json"
        if not whole.exists() or json.loads(whole.read_text()) != list(self.packages):
            venv.create(folder, with_pip=True, clear=True)
            pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-compile"]
            if self.cpu_torch:
                run([*pip, *_TORCH])
            run([*pip, *self.packages])
            whole.write_text(json.dumps(self.packages))
        return str(python)


HERE = Environment()
OPTIMUM_INTEL = Environment(("optimum-intel==2.2.0", "diffusers==0.39.0", "openvino==2026.4.1"))
OPTIMUM_ONNX = Environment(
    (
        "optimum-onnx==0.1.0", "transformers==4.57.3", "diffusers==0.36.0", "onnxruntime==1.32.0",
        "huggingface-hub<1",
    ),
    cpu_torch=True,
)  # fmt: skip
OPENVINO_GENAI = Environment(("openvino-genai==2026.4.1.0", "numpy"))


@dataclass(frozen=True)
class Conversion:
    """A format that a peer's own command writes. words: of `optimum-cli export`."""

    name: str
    environment: Environment
    words: tuple[str, ...]

    def folder(self, model: Path, out: Path) -> Path:
        """The model in this format, converted unless it is there; what that took of the processor lies beside it."""
        made, spent = out / self.name, out / f"{self.name}.json"
        if not spent.exists():
            command = Path(self.environment.python(out.parent / environment_name(self.environment))).with_name(
                "optimum-cli"
            )
            before = _children()
            run([str(command), "export", *self.words, "--model", str(model), "--task", "text-to-image", str(made)])
            spent.write_text(json.dumps({"cpu_seconds": _children() - before}))
        return made

    def seconds(self, out: Path) -> float:
        """Processor seconds that it took."""
        return float(json.loads((out / f"{self.name}.json").read_text())["cpu_seconds"])


OPENVINO = Conversion("openvino", OPTIMUM_INTEL, ("openvino", "--weight-format", "fp32"))
ONNX = Conversion("onnx", OPTIMUM_ONNX, ("onnx",))


def environment_name(environment: Environment) -> str:
    """Folder of an environment: what it is for."""
    return f"venv-{environment.packages[0].split('=')[0]}" if environment.packages else "."


def run(command: Sequence[str]) -> None:
    """Run a command of another program. Raises RuntimeError with the end of what it said where it fails."""
    ended = subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command[:6])} ended with {ended.returncode}: {ended.stderr.strip()[-_TAIL:]}")


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
