"""What a backend is to the runtime, and where it gets its compiled artifacts from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor

from ..api.choices import Backend as Backend
from ..api.choices import Compute as Precision
from ..models.components import Components
from ..models.networks import Denoiser
from ..models.tensors import NetworkSpec, Sizes


class Runnable(Protocol):
    """A network ready to run."""

    def __call__(self, inputs: Sequence[Tensor], wanted: int | None = None) -> tuple[Tensor, ...]:
        """Run on `inputs`, in the table's order and dtypes; outputs in the table's order, the first `wanted` or all.

        They may be overwritten by the next call: what is kept longer is copied.
        """
        ...


@dataclass(frozen=True)
class Wanted:
    """An artifact a backend asks for. sizes: smallest, usual and largest call, for artifacts that depend on them."""

    spec: NetworkSpec
    format: str
    precision: Precision
    sizes: tuple[Sizes, ...] = ()


@dataclass(frozen=True)
class Artifact:
    """A file a backend reads, and a folder where it may keep what it derives from that file."""

    path: Path
    cache: Path


class ArtifactSource(Protocol):
    """Gives artifacts, building what is not there."""

    @property
    def memory(self) -> Path:
        """File to remember measured choices in."""
        ...

    def __call__(self, wanted: Wanted, components: Components, denoiser: Denoiser) -> Artifact:
        """Return the artifact, valid and verified."""
        ...


@runtime_checkable
class KeepsModels(Protocol):
    """A source of artifacts that keeps what was read of models beside them."""

    def kept(self, named: Mapping[str, str], keep: Callable[[Path], None], is_current: Callable[[Path], bool]) -> Path:
        """Folder of what `keep` wrote for what was `named`, written anew where it is not current."""
        ...
