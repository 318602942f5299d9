"""GPUs that kernels are built for without one: in the quick tests one for each kind of tensor core."""

import pytest

from twig.kernels.aot import ARCHITECTURES

_QUICK = (86, 90, 100)
"""The first of them has the least shared memory."""


def built_for(architecture: int, *values: object):
    """Parameters of a test that builds for a compute capability."""
    return pytest.param(architecture, *values, marks=() if architecture in _QUICK else pytest.mark.slow)


EVERY = [built_for(architecture) for architecture in ARCHITECTURES]
