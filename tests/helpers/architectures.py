"""GPUs that kernels are built for without one: in the quick tests the one of the least shared memory, and Hopper's."""

import pytest

from twig.kernels.aot import ARCHITECTURES

_QUICK = (86, 90)


def built_for(architecture: int, *values: object):
    """Parameters of a test that builds for a compute capability."""
    return pytest.param(architecture, *values, marks=() if architecture in _QUICK else pytest.mark.slow)


EVERY = [built_for(architecture) for architecture in ARCHITECTURES]
