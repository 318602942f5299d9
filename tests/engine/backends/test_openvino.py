"""OpenVINO's core and the programs it keeps."""

import ctypes
import gc
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("openvino", reason="openvino is not installed")

from compiling import finish
from twig.engine.api.request import GenerationRequest
from twig.engine.api.settings import Stage
from twig.engine.backends import openvino
from twig.engine.backends.openvino import OpenVinoNetwork
from twig.engine.backends.protocol import Backend, Precision
from twig.engine.batching.scheduler import Limits
from twig.engine.engine import Engine
from twig.engine.models.tensors import Network, Sizes


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
    latents = torch.randn(1, 4, 16, 16)
    (expected,) = decoder()([latents])
    (program,) = tmp_path.rglob("*.blob")
    program.with_name(f"{program.name}.sha256").unlink()
    program.chmod(0o600)
    program.write_bytes(b"half a program")
    (compiled,) = decoder()([latents])
    assert torch.equal(compiled, expected)


def test_what_lies_where_it_lay_is_read_anew_and_what_lies_elsewhere_too(decoder):
    decode = decoder()
    buffer = torch.randn(4, 4, 16, 16).contiguous(memory_format=torch.channels_last)
    before = buffer.clone()
    (first,) = decode([buffer])
    buffer.copy_(torch.randn(4, 4, 16, 16))
    (moved_on,) = decode([buffer])
    (elsewhere,) = decode([before])
    assert torch.equal(elsewhere, first)
    assert not torch.equal(moved_on, first)
    (planar,) = decode([before.contiguous()])
    assert torch.equal(planar, first)
    (again,) = decode([before])
    assert torch.equal(again, first)


def test_outputs_that_nobody_wants_are_left_out(decoder):
    assert decoder()([torch.randn(1, 4, 16, 16)], 0) == ()


def test_results_stay_when_the_program_runs_again(decoder):
    decode, latents = decoder(), torch.randn(2, 1, 4, 16, 16)
    (first,) = decode([latents[0]])
    kept = first.clone()
    decode([latents[1]])
    assert torch.equal(first, kept)


def test_rows_that_a_program_has_too_many_of_change_nothing(decoder):
    decode, latents = decoder(), torch.randn(4, 4, 16, 16)
    (all_four,) = decode([latents])
    (three,) = decode([latents[:3]])
    assert three.shape[0] == 3
    assert torch.equal(three, all_four[:3])


def test_programs_are_counted_with_the_sizes_that_came(decoder, tmp_path):
    decode = decoder()
    assert decode.programs.nbytes == 0
    for rows in (1, 4):
        decode([torch.randn(rows, 4, 16, 16)])
    assert decode.programs.nbytes == sum(program.stat().st_size for program in tmp_path.rglob("*.blob"))


def test_rows_in_the_programs_of_other_counts_are_those_of_their_own(decoder):
    decode, latents = decoder(), torch.randn(4, 4, 16, 16)
    (together,) = decode([latents])
    few = decoder()
    few([latents[:1]])
    few.programs.budget = few.programs.nbytes
    (apart,) = few([latents])
    assert len(few.programs.held) == 1
    torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-4)


def test_a_network_of_much_work_a_row_is_run_row_by_row_in_one_program(decoder, monkeypatch):
    latents = torch.randn(3, 4, 16, 16)
    (together,) = decoder()([latents])
    heavy = decoder()
    monkeypatch.setattr(openvino, "_HEAVY", heavy._weight * 1024)
    (apart,) = heavy([latents])
    assert [sizes.rows for _, sizes in heavy.programs.held] == [1]
    torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("side", "counts"), [(16, (1, 4)), (32, (1, 4)), (64, (1,))])
def test_how_much_work_a_row_is_grows_with_the_picture(decoder, monkeypatch, side, counts):
    decode = decoder()
    monkeypatch.setattr(openvino, "_HEAVY", decode._weight * 64**2)
    assert decode.row_counts(Sizes(4, side, side)) == counts


def test_warming_up_makes_one_program_of_what_is_run_row_by_row(components, builder, monkeypatch):
    monkeypatch.setattr(openvino, "_HEAVY", 0)
    compiled, calls = {"unet": "openvino", "controlnet": "openvino"}, []
    run = openvino.OpenVinoNetwork.__call__
    monkeypatch.setattr(openvino.OpenVinoNetwork, "__call__", lambda *args: calls.append(len(args[1][0])) or run(*args))
    with Engine(components, limits=Limits(slots=8, rows=8), backend=compiled, artifacts=builder) as engine:
        engine.warmup()
        assert set(calls) == {2}
        engine.warmup(background=True)
        finish(engine.networks.programs)
        held = engine.stats().programs["held"]
        assert held == {"unet": ["1x16x16"], "controlnet": ["1x16x16"]}


def test_an_engine_serves_what_one_request_needs_before_the_rest_is_compiled(components, builder):
    limits, compiled = Limits(slots=4, rows=4), {"vae_decoder": "openvino"}
    with Engine(components, limits=limits, backend=compiled, artifacts=builder) as engine:
        engine.warmup(background=True)
        assert engine.stats().programs["held"]["vae_decoder"][0] == "1x16x16"
        stage = Stage(steps=1)
        (result,) = engine.generate(GenerationRequest(prompt="a star", draft=stage, final=stage))
        assert result.image is not None
        finish(engine.networks.programs)
        report = engine.stats().programs
        assert report["held"] == {"vae_decoder": ["1x16x16", "2x16x16", "4x16x16"]}
        assert (report["coming"], report["failed"]) == ([], {})
