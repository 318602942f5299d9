"""`twig export` and `twig artifacts`."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..engine.api.choices import Compute
from ..engine.api.errors import BackendError
from .form import AttentionForm


class Target(StrEnum):
    """What can be exported to."""

    ONNX = "onnx"
    OPENVINO = "openvino"
    TENSORRT = "tensorrt"
    TRITON_REPOSITORY = "triton-repository"


ModelOption = Annotated[str | None, typer.Option(help="Folder in diffusers' layout or hub id; the embedded model.")]
StoreOption = Annotated[Path | None, typer.Option("--store", help="Artifact store; the user's own.")]

export_app = typer.Typer(add_completion=False, invoke_without_command=True)
artifacts_app = typer.Typer(add_completion=False, no_args_is_help=True, help="List, verify and prune built artifacts.")


@export_app.callback()
def export(
    to: Annotated[Target, typer.Option(help="What to build.")] = Target.ONNX,
    model: ModelOption = None,
    controlnet: Annotated[str | None, typer.Option(help="Folder or hub id of a ControlNet for label maps.")] = None,
    segmenter: Annotated[str | None, typer.Option(help="Folder or hub id of a segmentation model.")] = None,
    precision: Annotated[Compute, typer.Option(help="What networks compute in.")] = Compute.FP32,
    buckets: Annotated[str, typer.Option(help="Row counts to build and check at.")] = "1,2,4,8",
    chunks: Annotated[
        int,
        typer.Option(min=1, max=8, help="Chunks of the longest prompt, for an engine with as many max_prompt_chunks."),
    ] = 1,
    cached_steps: Annotated[
        bool, typer.Option("--cached-steps", help="Also what steps run that take the UNet's deep part over.")
    ] = False,
    attention: Annotated[
        AttentionForm,
        typer.Option(
            help="How graphs hold masked attention: as plain operators; as one node with a body; or so that TensorRT "
            "runs our kernel in the node's place."
        ),
    ] = AttentionForm.INLINE,
    store: StoreOption = None,
    check: Annotated[bool, typer.Option(help="Compare networks and final images with PyTorch.")] = True,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Of a triton-repository: the operator's file, as of `serve`.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Of a triton-repository: its folder.")] = Path("triton"),
) -> int:
    """Build a model's networks for a backend, and report how far each is from PyTorch.

    To triton-repository: write a model repository of Triton Inference Server, as the operator's file says.
    """
    if to is Target.TRITON_REPOSITORY:
        print(_repositories().write_repository(out, config))
        return 0
    parts = {"model": model, "controlnet": controlnet, "segmenter": segmenter}
    return _commands().export_model(
        to.value, parts, precision.value, buckets, store, attention,
        compared=check, chunks=chunks, cached_steps=cached_steps,
    )  # fmt: skip


@artifacts_app.command("list")
def list_artifacts(store: StoreOption = None) -> int:
    """List what is built, least recently used first."""
    return _commands().list_artifacts(store)


@artifacts_app.command()
def verify(store: StoreOption = None) -> int:
    """Check every artifact's files against the checksums they were written with."""
    return _commands().verify(store)


@artifacts_app.command()
def prune(
    max_mib: Annotated[int, typer.Option(help="MiB to keep; the least recently used go first.")] = 0,
    store: StoreOption = None,
) -> int:
    """Remove artifacts until the store is small enough."""
    return _commands().prune(max_mib * 2**20, store)


def _commands() -> Any:
    with _extra("export"):
        return importlib.import_module(".commands", __package__)


def _repositories() -> Any:
    with _extra("serve"):
        return importlib.import_module(".triton_repository", __package__)


@contextmanager
def _extra(name: str) -> Iterator[None]:
    """Name the extra that a library is missing of."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise BackendError(f"this needs {error.name}; pip install 'twig-engine[{name}]'") from error
