"""OpenVINO's core and the programs it keeps."""

import ctypes
import gc
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("openvino", reason="openvino is not installed")

from twig.engine.backends.openvino import OpenVinoNetwork
from twig.engine.backends.protocol import Backend, Precision
from twig.engine.models.tensors import Network


class SignalStack(ctypes.Structure):
    """`stack_t` of Linux."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def signal_stack_is_mapped():
    """Whether a signal that comes now finds memory to be handled on."""
    stack = SignalStack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    ranges = (line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines())
    address = stack.address or 0
    return address == 0 or any(int(low, 16) <= address < int(high, 16) for low, high in ranges)


@pytest.fixture
def decoder(make_engine, tmp_path):
    """Return a function that makes the decoder on OpenVINO, its programs kept in `tmp_path`."""
    networks = make_engine("openvino").networks
    artifact = replace(networks.artifact(Backend.OPENVINO, Network.VAE_DECODER), cache=tmp_path)
    spec = networks.specs[Network.VAE_DECODER]
    return lambda: OpenVinoNetwork(artifact, spec, Precision.FP32, (1, 4))


@pytest.mark.skipif(sys.platform != "linux", reason="signal stacks as Linux has them")
def test_signals_are_handled_after_openvino_networks_went_oldest_first(decoder):
    networks = [decoder() for _ in range(3)]
    while networks:
        del networks[0]
        gc.collect()
        assert signal_stack_is_mapped()


def test_a_damaged_program_is_compiled_again(decoder, tmp_path):
    latents = torch.randn(1, 4, 16, 16)
    (expected,) = decoder()([latents])
    (program,) = tmp_path.rglob("*.blob")
    whole = program.read_bytes()
    (again,) = decoder()([latents])
    assert torch.equal(again, expected)
    program.chmod(0o600)
    program.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    (compiled,) = decoder()([latents])
    assert torch.equal(compiled, expected)
    assert any(program.read_bytes()[len(whole) // 2 :])


def test_a_program_without_its_checksum_is_not_trusted(decoder, tmp_path):
    decoder()
    foreign = tmp_path / "fp32" / "123.blob"
    foreign.write_bytes(b"half a program")
    decoder()
    assert not foreign.exists()
