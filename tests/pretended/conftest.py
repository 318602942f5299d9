"""A pretended CUDA device, there while the tests of a file run."""

import pytest

from pretend import CannotPretendError, installed


@pytest.fixture(scope="module")
def device(shared_folder):
    """The device; what needs it is skipped where it cannot be pretended."""
    try:
        with installed(shared_folder) as found:
            yield found
    except CannotPretendError as error:
        pytest.skip(str(error))
