"""Artifacts for the engine's backends: found in the store, or exported and built into it."""

import importlib
import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import cast

import torch

from .. import export
from .._version import __version__
from ..engine.api.errors import BackendError
from ..engine.backends.networks import part_of
from ..engine.backends.protocol import Artifact, Wanted
from ..engine.backends.tensorrt_api import TensorRt
from ..engine.backends.torch import flat_network
from ..engine.models.components import Components
from ..engine.models.kept import whole
from ..engine.models.networks import Denoiser
from ..engine.models.tensors import Network, NetworkSpec
from .form import OPSET, ORIGINS, AttentionForm, body_digest
from .plugin import OLDEST_ARCHITECTURE, plugin_for, plugin_module
from .shipped import SHIPPED, restored
from .store import ArtifactStore, Key
from .tensorrt import PlanOptions, Profile, build_plan, refit

GRAPH = "network.onnx"
PLAN = "network.plan"

_DRIVER = Path("/proc/driver/nvidia/version")
_READERS = ("torch", "diffusers", "transformers")
_EXPORTERS = ("torch", "diffusers", "transformers", "onnx", "onnxscript")


class ArtifactBuilder:
    """Gives the engine artifacts from `store`, the user's own if None.

    trt: the module that builds plans, `tensorrt` if None; options: how it builds them; attention: how graphs hold
    masked attention; shipped: folder of the graphs that came with the package, None to export those too.
    """

    def __init__(
        self,
        store: ArtifactStore | None = None,
        *,
        trt: TensorRt | None = None,
        options: PlanOptions | None = None,
        attention: AttentionForm = AttentionForm.INLINE,
        shipped: Path | None = SHIPPED,
    ) -> None:
        self.store = store or ArtifactStore()
        self._trt = trt
        self.options = options or PlanOptions()
        self.attention = attention
        self.shipped = shipped

    @property
    def memory(self) -> Path:
        """Where measured choices are remembered."""
        return self.store.root / "choices.json"

    def __call__(self, wanted: Wanted, components: Components, denoiser: Denoiser) -> Artifact:
        """Return the artifact, built where the store has none that is valid."""
        match wanted.format:
            case "onnx":
                return self.graph(wanted, components, denoiser)
            case "tensorrt":
                return self.plan(wanted, components, denoiser)
        raise BackendError(f"there is no builder for artifacts of format {wanted.format!r}; known: onnx, tensorrt")

    def graph(self, wanted: Wanted, components: Components, denoiser: Denoiser) -> Artifact:
        """ONNX graph of a network: as it came with the package, refitted where one differs in its weights alone, or
        exported."""
        spec = wanted.spec

        def build(folder: Path) -> None:
            there, denoising = whole(components, denoiser)
            flat, config = flat_network(spec.network, there, denoising), _configuration(spec.network, there)
            if self.shipped is not None and restored(flat, key, self.shipped / spec.network.value, folder / GRAPH):
                return
            if any(
                export.refit.refitted(flat, config, old / GRAPH, folder / GRAPH)
                for old in self.store.like(key, "weights")
            ):
                return
            export.graph.export_onnx(flat, spec, folder / GRAPH, wanted.precision, attention=self.attention)
            export.refit.keep_origins(flat, config, folder / GRAPH)

        key = graph_key(wanted, components, self.attention)
        folder = self.store.folder(key, build)
        return Artifact(folder / GRAPH, self.store.cache(folder))

    def kept(self, named: Mapping[str, str], keep: Callable[[Path], None], is_current: Callable[[Path], bool]) -> Path:
        """Folder of what was read of a model, written by `keep` where there is none that is current."""
        key = Key({**named, "format": "model", "twig": __version__, **versions(*_READERS)})
        folder = self.store.folder(key, keep)
        if is_current(folder):
            return folder
        self.store.remove(key.digest)
        return self.store.folder(key, keep)

    def plan(self, wanted: Wanted, components: Components, denoiser: Denoiser) -> Artifact:
        """TensorRT plan of a network, for the three sizes of `wanted` as its profile; refitted, where plans are
        refittable, from one that differs in its weights alone.

        Raises BackendError where attention is to be a plugin and `trt` takes none.
        """
        trt = self._trt or cast(TensorRt, importlib.import_module("tensorrt"))
        plugin = self._plugin(trt)
        graph = self.graph(wanted, components, denoiser)
        timing = self.store.root / f"timing-{trt.__name__}-{trt.__version__}-{_gpu().replace(' ', '-')}"

        def build(folder: Path) -> None:
            with plugin:
                plan = self._refitted(trt, key, graph.path)
                if plan is None:
                    plan = build_plan(trt, graph.path, wanted.spec, [Profile(*wanted.sizes)], self.options, timing)
            (folder / PLAN).write_bytes(plan)
            if graph.path.with_name(ORIGINS).exists():
                shutil.copyfile(graph.path.with_name(ORIGINS), folder / ORIGINS)

        key = plan_key(trt, wanted, components, self.options, self.attention)
        folder = self.store.folder(key, build)
        return Artifact(folder / PLAN, self.store.cache(folder))

    def _refitted(self, trt: TensorRt, key: Key, graph: Path) -> bytes | None:
        """A plan of other weights with those of `graph`; None without one, or without the GPU that it was built for."""
        if not self.options.refittable or _gpu() == "none":
            return None
        for old in self.store.like(key, "weights"):
            if export.refit.is_same_but_weights(old / ORIGINS, graph.with_name(ORIGINS)):
                return refit(trt, (old / PLAN).read_bytes(), graph)
        return None

    def _plugin(self, trt: TensorRt) -> AbstractContextManager[None]:
        if self.attention is not AttentionForm.PLUGIN:
            return nullcontext()
        module = plugin_module(trt)
        return plugin_for(trt, module, OLDEST_ARCHITECTURE if self.options.hardware_compatible else _architecture())


def plan_key(
    trt: TensorRt, wanted: Wanted, components: Components, options: PlanOptions, attention: AttentionForm
) -> Key:
    """All that a plan depends on: its graph, profile and options, TensorRT, Triton, GPU and driver."""
    return Key({
        **graph_key(wanted, components, attention).values,
        **(versions("triton") if attention is AttentionForm.PLUGIN else {}),
        "format": "tensorrt",
        "profile": "; ".join(str(sizes) for sizes in wanted.sizes),
        "options": str(options),
        "tensorrt": f"{trt.__name__} {trt.__version__}",
        "gpu": _gpu(),
        "driver": _driver(),
    })  # fmt: skip


def _configuration(network: Network, components: Components) -> str:
    """What a network's part says of itself but for its weights and where it lies, as JSON."""
    part = getattr(components, part_of(network))
    config = part.model.config if network is Network.SEGMENTER else part.config
    said = json.loads(config.to_json_string(False)) if hasattr(config, "to_json_string") else dict(config)
    return json.dumps({name: said[name] for name in sorted(said) if not name.startswith("_")}, default=str)


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none"
    return f"{torch.cuda.get_device_name()} {torch.cuda.get_device_capability()}"


def _architecture() -> int:
    """Compute capability of the GPU here, as 86."""
    if not torch.cuda.is_available():
        raise BackendError(
            "attention as a plugin is compiled for the GPU here, and there is none; build where there is one, or set "
            "hardware_compatible for all GPUs from Ampere on"
        )
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def _driver() -> str:
    return _DRIVER.read_text().splitlines()[0] if _DRIVER.exists() else "none"


def graph_key(wanted: Wanted, components: Components, attention: AttentionForm) -> Key:
    """All that an exported graph depends on; configuration and weights are one hash."""
    return Key({
        "network": wanted.spec.network.value,
        "signature": _signature(wanted.spec),
        "weights": components.hashes[part_of(wanted.spec.network)],
        "precision": wanted.precision.value,
        "format": "onnx",
        "attention": f"{attention.value} {body_digest()}",
        "opset": str(OPSET),
        "twig": __version__,
        **versions(*_EXPORTERS),
    })  # fmt: skip


def versions(*packages: str) -> dict[str, str]:
    """Version of each installed package."""
    return {package: found for package in packages if (found := _version(package)) is not None}


@cache
def _version(package: str) -> str | None:
    """A package's version, read once: its metadata are a mail's headers, and as slow to read."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _signature(spec: NetworkSpec) -> str:
    return "; ".join(f"{t.name}{list(t.shape)}" for t in (*spec.inputs, *spec.outputs))
