"""A pretended CUDA device, there while the tests of a file run."""

import pytest

from pretend import CannotPretendError, installed
from twig.engine.batching.arenas import Arenas


@pytest.fixture(scope="module")
def device(shared_folder):
    """The device; what needs it is skipped where it cannot be pretended."""
    try:
        with installed(shared_folder) as found:
            yield found
    except CannotPretendError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def divided_arenas(device):
    """Arenas in which no races are looked for: streams write slots of theirs, and operators are given all of them."""
    made = Arenas._made

    def make(self, shape, where):
        loop = made(self, shape, where)
        device.divided(loop.arena.tensors())
        return loop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Arenas, "_made", make)
        yield
