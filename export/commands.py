"""What `twig export` and `twig artifacts` do: build what backends run, say how true it is, look after the store."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..engine.api.errors import BackendError
from ..engine.api.reading import shown
from ..engine.api.request import GenerationRequest
from ..engine.backends.networks import SERVED, BackendSettings, Networks
from ..engine.backends.protocol import Backend
from ..engine.backends.torch import TorchNetwork, flat_network
from ..engine.batching.scheduler import Limits
from ..engine.engine import Engine
from ..engine.models.checkpoint import load
from ..engine.models.components import Components
from ..engine.models.networks import Denoiser
from ..engine.models.tensors import Network
from .build import ArtifactBuilder
from .form import AttentionForm
from .graph import MAX_ROWS
from .parity import Parity, compare, example_calls, image_ssim
from .store import ArtifactStore, Entry

OK, FAULTY = 0, 1
"""Exit codes: all is well; an artifact is not what its manifest says."""

PARITY_PROMPT = "a red star and a blue house on a green field"


BACKENDS = {"onnx": Backend.ONNXRUNTIME, "openvino": Backend.OPENVINO, "tensorrt": Backend.TENSORRT}
"""Who runs what is exported to."""


def export_model(
    to: str,
    parts: Mapping[str, str | None],
    precision: str,
    buckets: str,
    root: Path | None,
    attention: AttentionForm,
    *,
    compared: bool,
    chunks: int = 1,
    cached_steps: bool = False,
) -> int:
    """Build every network that the runtime calls, and print parity, sizes and times.

    chunks: of the longest prompt; an engine finds what is built by its own `max_prompt_chunks`. cached_steps: also
    what runs where a step takes the UNet's deep part over.
    """
    backend, rows = BACKENDS[to], _buckets(buckets)
    if backend is Backend.OPENVINO and attention is not AttentionForm.INLINE:
        raise BackendError(f"OpenVINO reads no function bodies: attention must be inline for it, not {attention.value}")
    builder = ArtifactBuilder(ArtifactStore(root), attention=attention)
    components = load(parts["model"], controlnet=parts["controlnet"], segmenter=parts["segmenter"])
    denoiser = Denoiser(components.unet, components.controlnet)
    settings = BackendSettings(backend, precision, builder)
    networks = Networks(
        components,
        denoiser,
        settings,
        buckets=rows,
        device=torch.device("cpu"),
        dtype=torch.float32,
        max_chunks=chunks,
    )
    runs_here = backend is not Backend.TENSORRT
    before = len(builder.store.ledger())
    asked = (*SERVED, Network.UNET_SHALLOW) if cached_steps else SERVED
    for network in (n for n in asked if n in networks.specs):
        with _progress(f"{network.value} to {to}"):
            networks.artifact(backend, network)
            report = _compared(networks, network, rows) if compared and runs_here else []
        for parity in report:
            print(_parity_line(network, parity))
    for row in builder.store.ledger()[before:]:
        print(f"{row.key['network']:14}{row.size / 2**20:9.1f} MiB {row.seconds:8.1f} s  {row.key['format']}")
    if compared and runs_here:
        print(f"{'final images':14}SSIM to PyTorch {_image_ssim(components, settings, rows, chunks):.4f}")
    return OK


def list_artifacts(root: Path | None) -> int:
    """Print what is built, least recently used first."""
    for entry in ArtifactStore(root).entries():
        print(_entry_line(entry))
    return OK


def verify(root: Path | None) -> int:
    """Print what is wrong with any artifact."""
    store = ArtifactStore(root)
    faults = store.verify()
    for digest, fault in faults.items():
        print(shown(f"{digest}  {fault}", 1000))
    print(f"{len(store.entries())} artifacts, {len(faults)} faulty")
    return FAULTY if faults else OK


def prune(max_bytes: int, root: Path | None) -> int:
    """Remove artifacts until at most `max_bytes` are left, and print what went."""
    gone = ArtifactStore(root).prune(max_bytes)
    for entry in gone:
        print(_entry_line(entry))
    print(f"{len(gone)} removed, {sum(entry.size for entry in gone) / 2**20:.1f} MiB")
    return OK


def _compared(networks: Networks, network: Network, rows: Sequence[int]) -> list[Parity]:
    """Errors of `network` at each bucket, which leaves it compiled."""
    spec, components = networks.specs[network], networks.components
    reference = TorchNetwork(flat_network(network, components, networks.denoiser))
    calls = example_calls(spec, [networks.usual_sizes(network, count) for count in rows], reference)
    with torch.inference_mode():
        return compare(spec, reference, lambda inputs: networks(network, inputs), calls)


def _image_ssim(components: Components, settings: BackendSettings, rows: Sequence[int], chunks: int) -> float:
    """SSIM between the finals of a two-step job on PyTorch and on the backend."""
    request = GenerationRequest(prompt=PARITY_PROMPT, num_images=2)
    pictures = []
    for backend in ("torch", settings.backend):
        engine = Engine(
            components, backend=backend, precision=settings.precision, artifacts=settings.artifacts,
            limits=Limits(rows=max(rows)), max_prompt_chunks=chunks,
        )  # fmt: skip
        results = engine.generate(request)
        failed = [result.error for result in results if result.image is None]
        if failed:
            raise BackendError(f"no final image on {backend}: {failed[0]}")
        pictures.append([result.image for result in results if result.image is not None])
    return image_ssim(*pictures)


def _buckets(text: str) -> tuple[int, ...]:
    try:
        rows = sorted({int(part) for part in text.split(",")})
    except ValueError as error:
        raise BackendError(f"buckets are row counts, as in 1,2,4,8; got {text!r}") from error
    if rows[0] < 1 or rows[-1] > MAX_ROWS:
        raise BackendError(f"buckets must lie between 1 and {MAX_ROWS} rows; got {text!r}")
    return tuple(rows)


def _parity_line(network: Network, parity: Parity) -> str:
    errors = f"max {parity.max_error:.2e}  rms {parity.rms_error:.2e}  of {parity.scale:.2e}"
    return f"{network.value:14}{parity.output:14}{errors}"


def _entry_line(entry: Entry) -> str:
    used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
    key = entry.key
    what = f"{key.get('network', '?'):14}{key.get('format', '?'):10}{key.get('precision', '?'):6}"
    return f"{entry.digest}  {shown(what)}{entry.size / 2**20:9.1f} MiB  used {used}"


@contextmanager
def _progress(text: str) -> Iterator[None]:
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        progress.add_task(text, total=None)
        yield
