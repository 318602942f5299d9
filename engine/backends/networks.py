"""The networks of a checkpoint as the runtime calls them, each on the backend chosen for it."""

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.metadata import entry_points
from typing import Any

import torch
from torch import Tensor

from ..api.errors import BackendError, InvalidRequestError
from ..models.adapters import AdapterRows, acting
from ..models.components import Components
from ..models.controls import PART
from ..models.kept import whole
from ..models.networks import ControlInputs, Denoiser, DenoiserInputs, Residuals
from ..models.shallow import ShallowInputs, num_skips
from ..models.tensors import Network, Sizes, flatten, network_specs, zero_residuals
from ..sampling.buckets import bucket_of, most_useful_first
from .measuring import machine, remember, remembered, seconds_of
from .options import TorchOptions
from .processor import processor
from .programs import BySize, Programs
from .protocol import Artifact, ArtifactSource, Backend, Precision, Runnable, Wanted
from .torch import FlatSkippingEncoder, TorchNetwork, flat_network

BackendChoice = str | Mapping[str, str]

COMPILED = {Backend.ONNXRUNTIME: "onnx", Backend.OPENVINO: "onnx", Backend.TENSORRT: "tensorrt"}
"""Backends that run artifacts, and the format they read."""

SERVED = (
    Network.UNET,
    Network.CONTROLNET,
    Network.VAE_DECODER,
    Network.PREVIEW_DECODER,
    Network.TEXT_ENCODER,
    Network.TEXT_ENCODER_2,
    Network.SEGMENTER,
)
"""Networks that the runtime calls; a UNet's shallow part runs where the UNet does, unless it is named too."""

_OF_PICTURES = (Network.VAE_DECODER, Network.PREVIEW_DECODER, Network.SEGMENTER)
"""Networks that are called with as many rows as there are pictures."""

_DENOISING = (Network.UNET, Network.UNET_SHALLOW, Network.CONTROLNET)

USUAL_CHUNKS = 3
"""Chunks of a prompt that are taken unless an engine is told otherwise, and PyTorch denoises."""


@dataclass(frozen=True)
class BackendSettings:
    """What the user chose. backend: one for all networks, or by network, `torch` where not named.

    precision: what compiled networks compute in. artifacts: where their artifacts come from; None finds the
    package's own builder. torch: how PyTorch runs what it runs.
    """

    backend: BackendChoice = "torch"
    precision: str = "fp32"
    artifacts: ArtifactSource | None = None
    torch: TorchOptions = field(default_factory=TorchOptions)


@dataclass(frozen=True)
class Chosen:
    """Which backend runs a network, why, and seconds a call by candidate where they were measured."""

    backend: str
    reason: str
    seconds: Mapping[str, float]


class Networks:
    """Runs networks by name. A backend is made ready when its network is first called.

    max_chunks: of a prompt, `usual_chunks` unless given. program_budget: bytes of `Programs`.

    Raises BackendError for a backend or network that does not exist or cannot run here.
    """

    def __init__(
        self,
        components: Components,
        denoiser: Denoiser,
        settings: BackendSettings,
        *,
        buckets: Sequence[int],
        device: torch.device,
        dtype: torch.dtype,
        max_chunks: int | None = None,
        program_budget: int | None = None,
    ) -> None:
        self.components, self.denoiser, self.settings = components, denoiser, settings
        self.buckets, self.device, self.dtype = tuple(buckets), device, dtype
        self.precision = _named(Precision, settings.precision, "precision")
        self.wanted = self._choices(settings.backend)
        self.max_chunks = usual_chunks(settings.backend) if max_chunks is None else max_chunks
        if self.max_chunks < 1:
            raise InvalidRequestError(f"max_prompt_chunks {self.max_chunks}: a prompt takes at least 1")
        self.specs = network_specs(components, denoiser, self.max_chunks)
        self.chosen: dict[Network, Chosen] = {}
        self._ready: dict[Network, Runnable] = {}
        self._uneven: dict[Network, Runnable] = {}
        self.programs = Programs[Any](program_budget)
        self._source = settings.artifacts
        self._zeros: dict[Sizes, Residuals] = {}
        options = settings.torch.on(device)
        options.check(device)
        self._check_adapters()
        self.options, self.memory_format = options, options.memory_format
        if self.wanted[Network.UNET] is Backend.OPENVINO:
            self.memory_format = torch.channels_last  # as its programs read pictures
        if components.whole is None:
            _ = self._in_torch  # its weights are put into their order before anything is captured

    @cached_property
    def _in_torch(self) -> tuple[Components, Denoiser]:
        """The networks as PyTorch runs them; loaded now where they were left out."""
        components, denoiser = whole(self.components, self.denoiser)
        served, vae, preview = self.options.denoiser(denoiser), components.vae, components.preview_vae
        shown = None if preview is None else self.options.autoencoder(preview)
        return replace(components, vae=self.options.autoencoder(vae), preview_vae=shown), served

    @property
    def num_tokens(self) -> int:
        """Tokens of the shortest call of UNet and ControlNet: one chunk, or all where one of them is compiled."""
        length = self.components.max_tokens
        return length if _denoises_in_torch(self.wanted) else length * self.max_chunks

    @property
    def compiled(self) -> dict[str, str]:
        """What ran the networks that were called so far and that PyTorch did not run, and what it computed in."""
        return {
            network.value: f"{chosen.backend} {self.precision.value}"
            for network, chosen in self.chosen.items()
            if chosen.backend != Backend.TORCH
        }

    @property
    def all_torch(self) -> bool:
        """Whether PyTorch runs everything, as CUDA graphs of the whole step need it."""
        return set(self.wanted.values()) == {Backend.TORCH}

    def __call__(self, network: Network, inputs: Sequence[Tensor], wanted: int | None = None) -> tuple[Tensor, ...]:
        """Run `network`; tensors in the table's order, the first `wanted` outputs or all, in the engine's dtype.

        A graph halves and doubles by whole factors, so PyTorch takes the sizes that are no multiple of its step.
        """
        if self._fits(network, inputs[0]):
            if network not in self._ready:
                self._ready[network] = self._make(network, inputs)
            runnable = self._ready[network]
        else:
            if network not in self._uneven:
                self._uneven[network] = self._runnable(Backend.TORCH, network, self.programs)
            runnable = self._uneven[network]
        return tuple(output.to(self.dtype) for output in runnable(inputs, wanted))

    def text_states(
        self, network: Network, ids: Tensor, skip: int | None, adapters: AdapterRows | None = None
    ) -> tuple[Tensor, ...]:
        """A text encoder, in calls of at most the largest bucket; PyTorch takes those that skip its last layers.

        adapters: of the rows of `ids`.
        """
        most = self.buckets[-1]
        calls = ids.split(most)
        outputs = []
        for call, rows in zip(calls, [None] * len(calls) if adapters is None else adapters.split(most), strict=True):
            with acting(rows):
                outputs.append(self._text_states(network, call, skip))
            if len(calls) > 1:  # a runtime may write its next call's into the same memory
                outputs[-1] = tuple(each.clone() for each in outputs[-1])
        return tuple(torch.cat(each) for each in zip(*outputs, strict=True)) if len(outputs) > 1 else outputs[0]

    def _text_states(self, network: Network, ids: Tensor, skip: int | None) -> tuple[Tensor, ...]:
        if skip is None:
            return self(network, [ids])
        encoder = self._in_torch[0].text_encoders[network is Network.TEXT_ENCODER_2]
        flat = FlatSkippingEncoder(encoder, skip, single=self.components.text_encoder_2 is None)
        return tuple(each.to(self.dtype) for each in flat(ids))

    def _fits(self, network: Network, first: Tensor) -> bool:
        """Whether a graph takes pictures or latents of this size; anything else fits."""
        return first.ndim != 4 or not any(side % self.specs[network].step for side in first.shape[2:])

    def predict(self, inputs: DenoiserInputs) -> Tensor:
        """UNet; PyTorch takes the calls that record attention."""
        if self.wanted[Network.UNET] is Backend.TORCH or inputs.record is not None:
            return self._in_torch[1].predict(inputs)
        return self._unet(inputs, 1)[0]

    def predict_keeping(self, inputs: DenoiserInputs) -> tuple[Tensor, Tensor]:
        """UNet, and what of its deep part a shallow step takes over; PyTorch takes the calls that record attention."""
        if self.wanted[Network.UNET] is Backend.TORCH or inputs.record is not None:
            return self._in_torch[1].predict_keeping(inputs)
        predicted, deep = self._unet(inputs)
        return predicted, deep

    def _unet(self, inputs: DenoiserInputs, wanted: int | None = None) -> tuple[Tensor, ...]:
        if inputs.residuals is None and self.denoiser.controlnet is not None:
            inputs = inputs._replace(residuals=self._no_residuals(inputs.sample))
        return self(Network.UNET, flatten(inputs), wanted)

    def recall(self, inputs: ShallowInputs) -> Tensor:
        """The UNet's shallow part."""
        if self.wanted[Network.UNET_SHALLOW] is Backend.TORCH:
            return self._in_torch[1].recall(inputs)
        if inputs.residuals is None and self.denoiser.controlnet is not None:
            inputs = inputs._replace(residuals=self._no_residuals(inputs.sample)[: num_skips(self.denoiser.unet)])
        return self(Network.UNET_SHALLOW, flatten(inputs))[0]

    def _no_residuals(self, sample: Tensor) -> Residuals:
        """Residuals for rows (R, C, h, w) of which none is controlled."""
        sizes = Sizes(len(sample), *sample.shape[2:])
        if sizes not in self._zeros:
            zeros = zero_residuals(self.denoiser, sizes, self.dtype, self.device)
            order = self.memory_format if self.device.type == "cpu" else torch.contiguous_format
            self._zeros[sizes] = tuple(each.contiguous(memory_format=order) for each in zeros)
        return self._zeros[sizes]

    def control(self, inputs: ControlInputs, name: str | None = None) -> Residuals:
        """ControlNet, or the further one called `name`, which PyTorch runs whatever runs the others."""
        if name is not None or self.wanted[Network.CONTROLNET] is Backend.TORCH:
            return self._in_torch[1].control(inputs, name)
        return self(Network.CONTROLNET, flatten(inputs))

    @property
    def nbytes(self) -> int:
        """Bytes of the programs that were compiled for sizes of calls, as their files have them."""
        return self.programs.nbytes

    @property
    def has_programs(self) -> bool:
        """Whether networks may run in programs that are compiled for sizes of calls, and PyTorch compiles none."""
        by_size = {Backend.OPENVINO, Backend.AUTO} & set(self.wanted.values())
        return bool(by_size) and self.device.type == "cpu" and self.options.compile is None

    def compile_rest(self, first: int, pictures: int) -> None:
        """Compile what is not there yet for the sizes of pictures that came, in the background.

        first: rows of the UNet that are there. pictures: most of them that are decoded or segmented at once.
        """
        sizes = {(network, found.height, found.width) for network, found in self.programs.held}
        most = bucket_of(min(pictures, self.buckets[-1]), self.buckets)
        self.programs.prepare(
            runnable.due(Sizes(rows, height, width))
            for rows in most_useful_first(self.buckets, first)
            for network, runnable in self._ready.items()
            for name, height, width in sorted(sizes)
            if name == network.value and isinstance(runnable, BySize)
            if rows in runnable.row_counts(Sizes(rows, height, width))
            if rows <= most or network not in _OF_PICTURES
        )

    def by_row(self, shape: tuple[int, int]) -> bool:
        """Whether denoising calls for latents of a shape (height, width) are run row by row, as far as any have run."""
        ready = [self._ready[network] for network in _DENOISING if network in self._ready]
        return bool(ready) and all(
            isinstance(each, BySize) and each.row_counts(Sizes(1, *shape)) == (1,) for each in ready
        )

    def forget(self, shape: tuple[int, int]) -> None:
        """Drop what is kept for latents of a shape (height, width) that is no longer served."""
        self._zeros = {sizes: zeros for sizes, zeros in self._zeros.items() if (sizes.height, sizes.width) != shape}

    def _choices(self, choice: BackendChoice) -> dict[Network, Backend]:
        if isinstance(choice, str):
            choice = dict.fromkeys(SERVED, choice)
        named = {_named(Network, name, "network"): _named(Backend, b, "backend") for name, b in choice.items()}
        for backend in set(named.values()) - {Backend.AUTO, Backend.TORCH}:
            if not _installed(backend):
                raise BackendError(f"backend {backend.value} needs the package {backend.value}, which is not installed")
        wanted = dict.fromkeys(SERVED, Backend.TORCH) | named
        wanted.setdefault(Network.UNET_SHALLOW, wanted[Network.UNET])
        return wanted

    def _check_adapters(self) -> None:
        """Adapters of requests must be able to act on the networks that they change.

        Raises BackendError: a compiled network has its weights in it, and they are another row's too.
        """
        changed = {part for adapter in self.components.adapters.values() for part in adapter.parts}
        compiled = sorted(n.value for n in SERVED if self.wanted[n] is not Backend.TORCH and part_of(n) in changed)
        if compiled:
            everywhere = ", ".join(f"{name!r}: 'torch'" for name in compiled)
            raise BackendError(
                f"adapters=... change {', '.join(compiled)} row by row, which a compiled network cannot: let PyTorch "
                f"run them, backend={{{everywhere}}}, or make one adapter a part of the weights with lora=..."
            )
        if changed and self.settings.torch.compile is not None:
            raise BackendError(
                "compile takes a network's layers for granted, and adapters=... change them row by row: leave one of "
                "them out, or make an adapter a part of the weights with lora=..."
            )

    def _make(self, network: Network, inputs: Sequence[Tensor]) -> Runnable:
        backend, reason, seconds = self.wanted[network], "asked for", dict[str, float]()
        if backend is Backend.AUTO:
            backend, reason, seconds = self._fastest(network, inputs)
        self.chosen[network] = Chosen(backend.value, reason, seconds)
        return self._runnable(backend, network, self.programs)

    def _runnable(self, backend: Backend, network: Network, programs: Programs[Any]) -> Runnable:
        if backend is Backend.TORCH:
            return TorchNetwork(flat_network(network, *self._in_torch))
        return self._load(backend, self.artifact(backend, network), network, programs)

    def artifact(self, backend: Backend, network: Network) -> Artifact:
        """Return what `backend` reads to run `network`, built where it is missing."""
        spec = self.specs[network]
        # OpenVINO computes in the precision it is told, from a graph of any.
        written = Precision.FP32 if backend is Backend.OPENVINO else self.precision_of(network)
        wanted = Wanted(spec, COMPILED[backend], written, self._profile(network) if backend is Backend.TENSORRT else ())
        return self._artifacts()(wanted, self.components, self.denoiser)

    def precision_of(self, network: Network) -> Precision:
        """What `network` computes in where it is compiled: an autoencoder that overflows in fp16 takes fp32."""
        overflows = self.components.upcast_vae and part_of(network) == "vae" and self.precision is Precision.FP16
        return Precision.FP32 if overflows else self.precision

    def _load(self, backend: Backend, artifact: Artifact, network: Network, programs: Programs[Any]) -> Runnable:
        spec, precision = self.specs[network], self.precision_of(network)
        module: Any = importlib.import_module(f".{backend.value}", __package__)
        match backend:
            case Backend.ONNXRUNTIME:
                return module.OnnxRuntimeNetwork(artifact, spec, precision, self.device)
            case Backend.OPENVINO:
                return module.OpenVinoNetwork(artifact, spec, precision, self.buckets, programs)
            case _:
                return module.TensorRtNetwork(artifact, spec, precision, self.device)

    def check_size(self, height: int, width: int) -> None:
        """Raise InvalidRequestError for pictures (pixels) of a size that a backend was not built for.

        TensorRT's plans are for the model's own size; other backends take any, with PyTorch's help.
        """
        if (height, width) == self.components.size:
            return
        fixed = {Backend.TENSORRT}
        if self.device.type == "cuda" and _installed(Backend.TENSORRT):
            fixed.add(Backend.AUTO)
        if named := [network.value for network, backend in self.wanted.items() if backend in fixed]:
            usual_height, usual_width = self.components.size
            raise InvalidRequestError(
                f"{width} x {height} pixels are not what TensorRT's plans for {', '.join(named)} are built for: "
                f"{usual_width} x {usual_height}; ask for that, or for torch, onnxruntime or openvino, which take any"
            )

    def usual_sizes(self, network: Network, rows: int) -> Sizes:
        """Sizes of a call for `rows` pictures of the model's own size."""
        height, width = self.components.size
        match network:
            case Network.TEXT_ENCODER | Network.TEXT_ENCODER_2:
                return Sizes(rows)
            case Network.VAE_ENCODER:
                return Sizes(rows, height, width)
            case Network.SEGMENTER:
                assert self.components.segmenter is not None
                return Sizes(rows, *self.components.segmenter.preprocessing.resized(height, width))
        factor = self.components.vae_scale_factor
        return Sizes(rows, height // factor, width // factor)

    def _profile(self, network: Network) -> tuple[Sizes, ...]:
        rows = 1, self.buckets[len(self.buckets) // 2], self.buckets[-1]
        return tuple(self.usual_sizes(network, count) for count in rows)

    def _artifacts(self) -> ArtifactSource:
        if self._source is None:
            self._source = installed_source()
        return self._source

    # --- auto ---

    def _fastest(self, network: Network, inputs: Sequence[Tensor]) -> tuple[Backend, str, dict[str, float]]:
        """Measure the candidates on a call that is to be made, or remember what was measured on this machine."""
        memory = self._artifacts().memory
        known = remembered(memory)
        key = " ".join([network, self._weights(network), self.precision_of(network), *machine(self.device)])
        if key in known:
            seconds = known[key]
            reason = f"fastest when measured before on {self._machine()}"
        else:
            candidates = self._candidates()
            seconds = {b.value: seconds_of(self._runnable(b, network, Programs()), inputs) for b in candidates}
            remember(memory, {**known, key: seconds})
            reason = f"fastest of {len(seconds)} at {len(inputs[0])} rows on {self._machine()}"
        return Backend(min(seconds, key=lambda name: seconds[name])), reason, seconds

    def _machine(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else str(processor())

    def _candidates(self) -> list[Backend]:
        """What is installed and runs this precision on this device."""
        compiled = [Backend.TENSORRT] if self.device.type == "cuda" else [Backend.OPENVINO]
        if self.precision is not Precision.BF16:
            compiled.append(Backend.ONNXRUNTIME)
        return [Backend.TORCH, *(backend for backend in compiled if _installed(backend))]

    def _weights(self, network: Network) -> str:
        return self.components.hashes[part_of(network)]

    def report(self) -> dict[str, dict[str, Any]]:
        """What runs each network that was called so far, and why."""
        further = Chosen(Backend.TORCH.value, "further ControlNets are run by PyTorch", {})
        told = {network.value: asdict(chosen) for network, chosen in self.chosen.items()}
        return told | {PART + name: asdict(further) for name in self.denoiser.further}


def usual_chunks(backend: BackendChoice) -> int:
    """Most chunks of a prompt unless told: compiled networks read as many tokens in every call, and so but one."""
    chosen = dict.fromkeys(SERVED, backend) if isinstance(backend, str) else backend
    return USUAL_CHUNKS if _denoises_in_torch(chosen) else 1


def _denoises_in_torch(chosen: Mapping[Any, str]) -> bool:
    return all(chosen.get(network, Backend.TORCH) == Backend.TORCH for network in (Network.UNET, Network.CONTROLNET))


def compiles_all(backend: BackendChoice) -> bool:
    """Whether PyTorch runs no network, as far as is known before any is called."""
    chosen = dict.fromkeys(SERVED, backend) if isinstance(backend, str) else backend
    return all(chosen.get(network, Backend.TORCH) != Backend.TORCH for network in SERVED)


def check_precision(backend: BackendChoice, precision: str) -> None:
    """Raise BackendError where a backend that was named does not compute in `precision` here, known before any runs."""
    named = {backend} if isinstance(backend, str) else set(backend.values())
    wanted = _named(Precision, precision, "precision")
    if Backend.OPENVINO in named and wanted is not Precision.FP32 and _installed(Backend.OPENVINO):
        module: Any = importlib.import_module(f".{Backend.OPENVINO.value}", __package__)
        module.check_precision(wanted)


def part_of(network: Network) -> str:
    """Folder of a checkpoint that holds the network."""
    match network:
        case Network.VAE_DECODER | Network.VAE_ENCODER:
            return "vae"
        case Network.PREVIEW_DECODER:
            return "preview_vae"
        case Network.UNET_SHALLOW:
            return "unet"
    return network.value


def installed_source() -> ArtifactSource:
    """The builder that an installed package offers under the entry point group `twig.artifacts`."""
    for entry in entry_points(group="twig.artifacts"):
        try:
            make: Callable[[], ArtifactSource] = entry.load()
        except ModuleNotFoundError as error:
            raise BackendError(f"building artifacts needs {error.name}; pip install 'twig-engine[export]'") from error
        return make()
    raise BackendError("no artifact builder is installed; pip install 'twig-engine[export]', or pass artifacts=...")


def _installed(backend: Backend) -> bool:
    return importlib.util.find_spec(backend.value) is not None


def _named(kind: Any, name: str, what: str) -> Any:
    try:
        return kind(name)
    except ValueError as error:
        raise BackendError(f"there is no {what} {name!r}; known: {', '.join(kind)}") from error
