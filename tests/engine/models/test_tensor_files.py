import struct

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from twig.engine.api.errors import CheckpointError
from twig.engine.models.tensor_files import MAX_HEADER, check_names, check_tensors

NOTHING = {"missing_keys": [], "unexpected_keys": []}


@pytest.fixture
def part(tmp_path):
    """Folder of a file that holds the tensors of a layer."""
    save_file(dict(nn.Linear(2, 3).state_dict()), tmp_path / "model.safetensors")
    return tmp_path


def names(part, **info):
    check_names(part, sorted(part.glob("*.safetensors")), nn.Linear(2, 3), NOTHING | info)


def test_what_is_missing_or_strange_is_named(part):
    names(part)
    with pytest.raises(CheckpointError, match="lacks 1 tensors of a Linear, among them bias"):
        names(part, missing_keys=["bias"])
    with pytest.raises(CheckpointError, match=r"holds 2 tensors that are none of a Linear's, among them a\\x1b"):
        names(part, unexpected_keys=["b", "a\x1b"])


def test_one_tensor_under_two_names_is_found_and_counters_are_none(part):
    save_file({"norm.num_batches_tracked": torch.zeros((), dtype=torch.int64)}, part / "a.safetensors")
    names(part)
    save_file({"old.weight": torch.zeros(1)}, part / "b.safetensors")
    with pytest.raises(CheckpointError, match="holds 3 tensors where a Linear has 2"):
        names(part)


def test_number_types_and_places_are_checked(part):
    files = sorted(part.glob("*"))
    check_tensors(files)
    with pytest.raises(CheckpointError, match="keep the one that is meant"):
        check_tensors([*files, *files])
    save_file({"weight": torch.zeros(1, dtype=torch.int8)}, part / "model.safetensors")
    with pytest.raises(CheckpointError, match="holds weight as I8; weights are served as F64, F32, F16, BF16"):
        check_tensors(files)


@pytest.mark.parametrize("length", [0, 8, MAX_HEADER + 1, 2**64 - 1])
def test_a_header_of_no_or_too_great_length_is_refused(tmp_path, length):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length))
    with pytest.raises(CheckpointError, match="is corrupt or cut short"):
        check_tensors([path])
