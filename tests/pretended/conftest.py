"""A pretended CUDA device, there while the tests of a file run."""

import pytest

from pretend import CannotPretendError, installed, load_guard
from twig.engine.batching.arenas import Arenas
from twig.engine.batching.denoising import DenoisingLoop


@pytest.fixture(scope="session")
def guard(shared_folder):
    """What a device needs of its kind; what needs it is skipped where none can be pretended."""
    try:
        load_guard(shared_folder)
    except CannotPretendError as error:
        pytest.skip(str(error))
    return shared_folder


@pytest.fixture(scope="module")
def device(guard):
    """The device."""
    with installed(guard) as found:
        yield found


@pytest.fixture(scope="module")
def divided_arenas(device):
    """Arenas in which no races are looked for: streams write slots of theirs, and operators are given all of them."""
    made, widen = Arenas._made, DenoisingLoop.widen

    def make(self, shape, where):
        loop = made(self, shape, where)
        device.divided(loop.arena.tensors())
        return loop

    def widened(self, **room):
        widen(self, **room)
        device.divided(self.arena.tensors())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Arenas, "_made", make)
        patch.setattr(DenoisingLoop, "widen", widened)
        yield
