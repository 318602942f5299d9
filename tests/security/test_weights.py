"""Weight files made by anybody: every tensor is the network's own, of a number type that is served, or is named."""

import json
import os
import resource
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from twig.engine.api.errors import CheckpointError
from twig.engine.models import layout
from twig.engine.models.checkpoint import load
from twig.engine.models.tensor_files import MAX_HEADER

pytestmark = pytest.mark.slow

FILES = {
    "unet": "diffusion_pytorch_model.safetensors", "vae": "diffusion_pytorch_model.safetensors",
    "controlnet": "diffusion_pytorch_model.safetensors", "text_encoder": "model.safetensors",
    "segmenter": "model.safetensors",
}  # fmt: skip
PARTS = pytest.mark.parametrize("part", FILES)


@pytest.fixture
def folder(tiny_checkpoint, tmp_path, monkeypatch):
    """A copy of the tiny checkpoint, and no way to the hub."""
    monkeypatch.setattr(layout, "snapshot_download", None)
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))


def file_of(folder, part):
    return folder / part / FILES[part]


def change(folder, part, make):
    """Let `make` put other tensors into the file of a part."""
    path = file_of(folder, part)
    tensors = {name: tensor.contiguous() for name, tensor in make(load_file(path)).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def a_matrix(tensors):
    return next(name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.ndim > 1)


def refused(folder, message, capsys=None):
    with pytest.raises(CheckpointError, match=message) as error:
        load(folder)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 1000


@PARTS
@pytest.mark.parametrize("name", ["strange.weight", "module.hidden", "\x1b[2Jaccepted\n", "position_ids.trojan", ""])
def test_a_tensor_that_the_network_does_not_read_is_refused_by_name(folder, part, name, capfd):
    change(folder, part, lambda tensors: tensors | {name: torch.zeros(2)})
    refused(folder, f"{part} holds 1 tensors that are none of a")
    told = capfd.readouterr()
    assert "\x1b" not in told.out + told.err, "nor do the libraries print it"
    assert "strange" not in told.out + told.err


@PARTS
def test_a_tensor_that_is_missing_is_named(folder, part):
    change(folder, part, lambda tensors: {name: tensors[name] for name in tensors if name != a_matrix(tensors)})
    refused(folder, f"{part} lacks 1 tensors of a")


@PARTS
def test_a_tensor_of_another_shape_is_refused(folder, part):
    change(folder, part, lambda tensors: tensors | {(name := a_matrix(tensors)): tensors[name][:1]})
    refused(folder, part)


@PARTS
@pytest.mark.parametrize("kind", [torch.int64, torch.int8, torch.bool, torch.float8_e4m3fn, torch.complex64])
def test_weights_of_a_number_type_that_is_not_served_are_refused(folder, part, kind):
    change(folder, part, lambda tensors: tensors | {(name := a_matrix(tensors)): tensors[name].to(kind)})
    refused(folder, f"{part}.*weights are served as F64, F32, F16, BF16")


@PARTS
@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_those_that_are_served_load(folder, part, kind):
    change(folder, part, lambda tensors: {n: t.to(kind) if t.is_floating_point() else t for n, t in tensors.items()})
    load(folder)


def test_a_tensor_under_an_old_name_beside_its_new_one_is_refused(folder):
    change(folder, "text_encoder", lambda tensors: tensors | {f"text_model.{a_matrix(tensors)}": torch.zeros(3)})
    refused(folder, "text_encoder")


def test_a_tensor_in_two_shards_is_refused(folder):
    part, whole = folder / "unet", file_of(folder, "unet")
    tensors = load_file(whole)
    whole.unlink()
    names = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    for name, own in zip(names, (list(tensors)[:9], list(tensors)[8:]), strict=True):
        save_file({key: tensors[key] for key in own}, part / name, metadata={"format": "pt"})
    places = {key: names[number >= 8] for number, key in enumerate(tensors)}
    (part / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    refused(folder, "is in diffusion_pytorch_model-00001-of-00002.* and in .*keep the one that is meant")


def test_places_that_the_libraries_count_anew_may_be_there(folder):
    places = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    change(folder, "text_encoder", lambda tensors: tensors | places)
    load(folder)


# --- headers ---


def header(content, body=b""):
    """A safetensors file of this header, a value or bytes."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text + body


def tensor(start=0, stop=4, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


HEADERS = {
    "nothing": b"",
    "a length alone": struct.pack("<Q", 8),
    "a length of nothing": struct.pack("<Q", 0),
    "a length beyond the file": struct.pack("<Q", 10**6) + b"{}",
    "the greatest length": b"\xff" * 8 + b"{}",
    "a length beyond the limit": struct.pack("<Q", MAX_HEADER + 1) + b" " * 16,
    "no JSON": header(b"rubbish!"),
    "no text": header(b"\xff\xfe\xfd\xfc"),
    "a list": header([]),
    "a number": header(7),
    "deep": header(b"[" * 100_000),
    "deep metadata": header(b'{"__metadata__": ' + b'{"a":' * 1000 + b"1" + b"}" * 1000 + b"}"),
    "twice": header(b'{"a": ' + json.dumps(tensor()).encode() + b', "a": ' + json.dumps(tensor()).encode() + b"}"),
    "overlap": header({"a": tensor(0, 8, (2,)), "b": tensor(4, 12, (2,))}, b"\0" * 12),
    "a hole": header({"a": tensor(0, 4), "b": tensor(8, 12)}, b"\0" * 12),
    "backwards": header({"a": tensor(4, 0)}, b"\0" * 4),
    "beyond the end": header({"a": tensor(0, 2**40, (2**38,))}, b"\0" * 4),
    "more than it says": header({"a": tensor(0, 4, (2**60,))}, b"\0" * 4),
    "sides that multiply beyond a number": header({"a": tensor(0, 4, (2**40, 2**40, 2**40))}, b"\0" * 4),
    "a negative side": header({"a": tensor(0, 4, (-1,))}, b"\0" * 4),
    "a side of many digits": header(
        b'{"a":{"dtype":"F32","shape":[' + b"9" * 400 + b'],"data_offsets":[0,4]}}', b"\0" * 4
    ),
    "a fraction": header({"a": tensor(0, 4, (1.5,))}, b"\0" * 4),
    "no shape": header({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, b"\0" * 4),
    "an unknown type": header({"a": tensor(dtype="F1\x1b[2J")}, b"\0" * 4),
    "a type that is a number": header({"a": tensor(dtype=7)}, b"\0" * 4),
    "a tensor that is none": header({"a": 7}),
    "a tensor that is a list": header({"a": [1]}),
    "more behind": header({"a": tensor()}, b"\0" * 99),
    "half a name": header(b'{"\\ud800": ' + json.dumps(tensor()).encode() + b"}", b"\0" * 4),
    "a cursor in a name": header({"\x1b[2J\n": tensor()}, b"\0" * 4),
    "many": header({f"n{i}": tensor(4 * i, 4 * i + 4) for i in range(100_000)}, b"\0" * 400_000),
}  # fmt: skip


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_a_header_of_anybodys_is_one_line(folder, part, content):
    file_of(folder, part).write_bytes(content)
    refused(folder, part)


def test_a_file_that_claims_a_size_costs_no_memory(folder):
    """A header that would fill the memory is refused by its length, whatever the file's own."""
    path = file_of(folder, "unet")
    path.write_bytes(struct.pack("<Q", 2**34))
    os.truncate(path, 2**34 + 8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(folder, "its header would be of 17179869184 bytes")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18, "in KiB"


@PARTS
def test_a_trap_in_place_of_weights_is_named(folder, part, trap):
    file_of(folder, part).unlink()
    trap(file_of(folder, part))
    refused(folder, part)
