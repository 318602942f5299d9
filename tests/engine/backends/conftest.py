"""Engines of the tiny model on any backend, their graphs from the store that the tests of export fill too."""

import pytest

from twig.engine.batching.scheduler import Limits
from twig.engine.engine import Engine
from twig.engine.models import checkpoint


@pytest.fixture(scope="module")
def components(tiny_checkpoint):
    return checkpoint.load(tiny_checkpoint)


@pytest.fixture(scope="module")
def make_engine(components, builder):
    def make(backend="torch", precision="fp32", **options):
        limits = Limits(slots=4, rows=8)
        return Engine(components, limits=limits, backend=backend, precision=precision, artifacts=builder, **options)

    return make
