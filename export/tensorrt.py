"""ONNX graphs to TensorRT plans, ahead of time: no GPU is needed where the module is `tensorrt_rtx`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine.api.errors import BackendError
from ..engine.api.reading import read_bytes
from ..engine.api.writing import write_whole
from ..engine.backends.tensorrt_api import TensorRt, TrtConfig
from ..engine.models.tensors import NetworkSpec, Sizes

_MAX_CACHE = 2**28  # bytes of a timing cache


@dataclass(frozen=True)
class Profile:
    """Smallest, usual and largest call that a context of the plan serves."""

    smallest: Sizes
    usual: Sizes
    largest: Sizes


@dataclass(frozen=True)
class PlanOptions:
    """How a plan is built.

    compute_capabilities: as 86 or 120, GPUs to build for ahead of time, which only `tensorrt_rtx` does; the GPU here
    if empty. refittable: weights can be replaced. stripped: and are not in the plan at all. version_compatible,
    hardware_compatible: run on later versions and on all GPUs from Ampere on, at some cost in speed.
    """

    compute_capabilities: tuple[int, ...] = ()
    refittable: bool = False
    stripped: bool = False
    version_compatible: bool = False
    hardware_compatible: bool = False


def build_plan(
    trt: TensorRt,
    graph: Path,
    spec: NetworkSpec,
    profiles: Sequence[Profile],
    options: PlanOptions,
    timing_cache: Path | None = None,
) -> bytes:
    """Build a plan for `spec` from the ONNX file `graph`, whose number types are the plan's.

    timing_cache: read if it is there, and written. It belongs to one GPU and TensorRT version. Raises BackendError with
    what TensorRT said if it cannot parse the graph or build the plan, ForeignFileError for a cache that is no file.
    """
    known = b"" if timing_cache is None or not os.path.lexists(timing_cache) else read_bytes(timing_cache, _MAX_CACHE)
    logger = _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise BackendError(f"TensorRT cannot parse {graph}: {errors}")
    config = builder.create_builder_config()
    for profile in profiles:
        config.add_optimization_profile(_optimization_profile(builder.create_optimization_profile(), spec, profile))
    _configure(trt, config, options)
    if timing_cache is not None:
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:  # it does not raise
        raise BackendError(
            f"TensorRT cannot build {spec.network.value}: {'; '.join(logger.messages) or 'no reason given'}"
        )
    if timing_cache is not None:
        write_whole(timing_cache, bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def refit(trt: TensorRt, plan: bytes, graph: Path) -> bytes:
    """Put the weights of `graph` into a stripped or refittable plan; needs the GPU it was built for."""
    logger = _logger(trt)
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        raise BackendError(f"TensorRT cannot read the plan to refit: {'; '.join(logger.messages) or 'no reason given'}")
    module: Any = trt
    refitter = module.Refitter(engine, logger)
    if not module.OnnxParserRefitter(refitter, logger).refit_from_file(str(graph)) or not refitter.refit_cuda_engine():
        raise BackendError(f"the weights of {graph} do not fit the plan: {'; '.join(logger.messages)}")
    return bytes(engine.serialize())


def _optimization_profile(profile: Any, spec: NetworkSpec, wanted: Profile) -> Any:
    for tensor in spec.inputs:
        shapes = (sizes.of(tensor, spec) for sizes in (wanted.smallest, wanted.usual, wanted.largest))
        profile.set_shape(tensor.name, *shapes)
    return profile


def _configure(trt: TensorRt, config: TrtConfig, options: PlanOptions) -> None:
    if options.compute_capabilities:
        if not hasattr(trt, "ComputeCapability"):
            raise BackendError(
                f"{trt.__name__} {trt.__version__} builds for the GPU here alone; leave compute_capabilities empty, or "
                "build with tensorrt_rtx"
            )
        config.num_compute_capabilities = len(options.compute_capabilities)
        for index, capability in enumerate(options.compute_capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability}"), index)
    flags = {"REFIT": options.refittable or options.stripped, "STRIP_PLAN": options.stripped}
    flags["VERSION_COMPATIBLE"] = options.version_compatible
    for name, wanted in flags.items():
        if wanted:
            config.set_flag(getattr(trt.BuilderFlag, name))
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS


def _logger(trt: TensorRt) -> Any:
    """A logger that keeps errors, for TensorRT says why a build failed nowhere else."""

    class Logger(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.messages: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.Logger.ERROR, trt.Logger.INTERNAL_ERROR):
                self.messages.append(message)

    return Logger()
