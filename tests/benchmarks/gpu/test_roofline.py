import pytest
import torch

from twig.benchmarks.gpu.models import SD15, SMALL
from twig.benchmarks.gpu.roofline import Machine, Operation, Tracer, model_rows


def test_stable_diffusion_is_counted_as_others_count_it():
    trace = Tracer(SD15)(1)
    assert trace.flops(False) == pytest.approx(0.800e12, rel=0.01)
    assert trace.flops(True) - trace.flops(False) == pytest.approx(0.267e12, rel=0.01)
    kinds = {operation.kind for operation in trace.unet}
    assert kinds >= {"convolution", "matrix product", "self-attention", "masked attention", "group norm", "layer norm"}


def test_operations_and_activations_grow_with_rows_and_weights_do_not():
    trace_of = Tracer(SMALL)
    one, two, four = (trace_of(rows) for rows in (1, 2, 4))
    assert four.flops(True) == 4 * one.flops(True)

    def moved(trace):
        return sum(operation.bytes for operation in trace.unet)

    assert moved(four) - moved(two) == 2 * (moved(two) - moved(one))
    weights = 2 * sum(p.numel() for p in trace_of.denoiser.unet.parameters())
    assert moved(one) > weights / 2


def test_an_operator_takes_the_longer_of_computing_and_moving():
    machine = Machine(flops=1e12, bandwidth=1e9, reached=0.5, moved=0.5, attention=0.1, launch=1e-6)
    assert machine.seconds(Operation("a", "convolution", int(1e12), 0)) == pytest.approx(2)
    assert machine.seconds(Operation("a", "self-attention", int(1e12), 0)) == pytest.approx(10)
    assert machine.seconds(Operation("a", "add", 0, int(1e9))) == pytest.approx(2)
    assert machine.seconds(Operation("a", "add", 0, 1)) == 1e-6


def test_rows_of_the_model_say_what_they_assume_and_add_up():
    rows = list(model_rows(SMALL, Machine(), (2,)))
    total, *classes = rows
    assert total["assumed"]["bandwidth"] == Machine().bandwidth
    assert sum(row["ms"] for row in classes) == pytest.approx(total["ms"])
    assert sum(row["calls"] for row in classes) == total["operators"]
    assert torch.get_default_dtype() is torch.float32
