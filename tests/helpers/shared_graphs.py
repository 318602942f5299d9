"""Exported graphs that all workers of a run share."""

from dataclasses import replace
from pathlib import Path

from twig.engine.backends.protocol import Artifact, Wanted
from twig.engine.models.checkpoint import Components
from twig.engine.models.networks import Denoiser
from twig.export.build import ArtifactBuilder
from twig.export.store import ArtifactStore


class SharedGraphs(ArtifactBuilder):
    """Graphs from `store`; what a runtime compiles of them stays in the folder `programs`, which is one worker's."""

    def __init__(self, store: ArtifactStore, programs: Path) -> None:
        super().__init__(store)
        self._programs = programs

    def graph(self, wanted: Wanted, components: Components, denoiser: Denoiser) -> Artifact:
        """ONNX graph of a network."""
        return replace(super().graph(wanted, components, denoiser), cache=self._programs)
