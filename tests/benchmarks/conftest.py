import pytest
import torch

from twig.benchmarks.clocks import ClockKind
from twig.benchmarks.contenders import Models
from twig.benchmarks.options import Setup
from twig.engine.batching.scheduler import Limits


@pytest.fixture(scope="session")
def setup(tiny_checkpoint):
    """The tiny model, ready to be measured."""
    models = Models.load(tiny_checkpoint, "cpu", torch.float32)
    return Setup(models, Limits(slots=2, rows=4, boundary=2), ClockKind.CPU)
