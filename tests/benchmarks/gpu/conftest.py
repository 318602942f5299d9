"""What the tests of the GPU's benchmark run on where there is no GPU."""

import pytest
import torch

from twig.benchmarks.gpu.bench import Bench


@pytest.fixture(scope="session")
def bench():
    """A CPU, and tiny networks."""
    return Bench(torch.device("cpu"), torch.float32, quick=True)
