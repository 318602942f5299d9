"""What the pretended device refuses, counts and keeps, as a real one does."""

import pytest
import torch

from pretend import CaptureError, DeviceMixError, Kind, RaceError


@pytest.fixture(autouse=True)
def mode(device):
    with torch.inference_mode():
        yield


def counted(device, work):
    with device.counted() as counts:
        work()
    return {kind: number for kind, number in counts.kinds.items() if kind is not Kind.LAUNCH}


def captured(body):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        body()
    return graph


def on_device(*values):
    return torch.tensor(values, device="cuda")


def test_a_tensor_says_where_it_is_and_its_values_come_back():
    tensor = on_device(1.0, 2.0) * 2
    assert (tensor.device, tensor.is_cuda) == (torch.device("cuda", 0), True)
    assert tensor.cpu().tolist() == tensor.tolist() == [2.0, 4.0]
    with pytest.raises(TypeError, match="can't convert cuda:0"):
        tensor.numpy()


def test_conjugates_are_conjugates():
    values = torch.randn(4, 4, dtype=torch.complex64)
    there = values.cuda()
    torch.testing.assert_close((there * there.conj()).cpu(), values * values.conj())
    torch.testing.assert_close(torch.fft.irfft2(there.conj()).cpu(), torch.fft.irfft2(values.conj()))


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x + torch.ones(2),
        lambda x: torch.cat([x, torch.ones(1)]),
        lambda x: torch.index_select(x, 0, torch.tensor([0])),
        lambda x: torch.ones(2)[on_device(0)],
        lambda x: torch.where(on_device(True, False), x, torch.ones(2)),
    ],
)
def test_an_operator_takes_tensors_of_one_device(work):
    with pytest.raises(DeviceMixError, match="cuda:0 and cpu"):
        work(on_device(1.0, 2.0))


@pytest.mark.parametrize(
    ("work", "costs"),
    [
        (lambda x: x + 1, {}),
        (lambda x: x.mul_(torch.tensor(2.0)), {}),
        (lambda x: x.view(2, 1)[0], {}),
        (lambda x: float(x.sum()), {Kind.SYNC: 1}),
        (lambda x: bool((x > 0).any()), {Kind.SYNC: 1}),
        (lambda x: x.nonzero(), {Kind.SYNC: 1}),
        (lambda x: x[x > 1], {Kind.SYNC: 1}),
        (lambda x: x[torch.tensor([0])], {Kind.BLOCKING_UPLOAD: 1}),
        (lambda x: x.cpu(), {Kind.BLOCKING_DOWNLOAD: 1}),
        (lambda x: x.copy_(torch.ones(2)), {Kind.BLOCKING_UPLOAD: 1}),
        (lambda x: x.copy_(torch.ones(2), non_blocking=True), {Kind.PAGEABLE: 1}),
        (lambda x: x.copy_(torch.ones(2).pin_memory(), non_blocking=True), {Kind.UPLOAD: 1}),
        (lambda x: torch.empty(4, pin_memory=True)[2:].copy_(x, non_blocking=True), {Kind.DOWNLOAD: 1}),
        (lambda x: torch.cuda.current_stream().record_event().synchronize(), {Kind.WAIT: 1}),
    ],
)
def test_copies_and_waits_are_counted(device, work, costs):
    tensor = on_device(1.0, 2.0)
    assert counted(device, lambda: work(tensor)) == costs


def test_where_something_was_waited_for_is_told(device):
    with device.counted() as counts:
        float(on_device(1.0).sum())
    assert any(kind is Kind.SYNC and "test_device.py" in place for kind, place in counts.places)


def test_a_download_is_nonsense_until_the_host_has_waited_for_it():
    arriving = on_device(1.0, 2.0).to("cpu", non_blocking=True)
    done = torch.cuda.current_stream().record_event()
    assert arriving.isnan().all()
    done.synchronize()
    assert arriving.tolist() == [1.0, 2.0]


def test_pinned_memory_stays_as_it_is_until_its_copy_is_done():
    source, target = torch.ones(2, pin_memory=True), on_device(0.0, 0.0)
    target.copy_(source, non_blocking=True)
    torch.cuda.current_stream().record_event().synchronize()
    source.zero_()
    target.copy_(source, non_blocking=True)
    source.numpy()[0] = 5
    with pytest.raises(RaceError, match="before its copy was done"):
        torch.cuda.synchronize()


def test_streams_wait_for_each_other():
    tensor, other = torch.ones(1, device="cuda"), torch.cuda.Stream()
    with torch.cuda.stream(other), pytest.raises(RaceError, match="may still be at"):
        tensor.add_(1)
    other.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(other):
        tensor.add_(1)
        done = other.record_event()
    with pytest.raises(RaceError, match="may still be at"):
        tensor.cpu()
    torch.cuda.current_stream().wait_event(done)
    assert tensor.cpu().tolist() == [2.0]


def test_streams_may_keep_to_parts_of_what_they_share(device):
    tensor, other = torch.ones(2, device="cuda"), torch.cuda.Stream()
    device.divided([tensor])
    with torch.cuda.stream(other):
        tensor[0] = 2
    tensor[1] = 3
    torch.cuda.current_stream().wait_stream(other)
    assert tensor.cpu().tolist() == [2.0, 3.0]


@pytest.mark.parametrize("recorded", [False, True])
def test_memory_is_not_freed_under_another_stream(recorded):
    tensor, other = on_device(1.0), torch.cuda.Stream()
    other.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(other):
        tensor.add_(1)
    if recorded:
        tensor.record_stream(other)
    del tensor
    if recorded:
        on_device(1.0)
    else:
        with pytest.raises(RaceError, match="are freed while"):
            on_device(1.0)


def test_a_graph_reads_and_writes_where_it_was_captured():
    source, target = on_device(1.0, 2.0), on_device(0.0, 0.0)
    graph = captured(lambda: target.copy_((source * 2).view(2, 1).flatten() + 1))
    source.fill_(3)
    target.zero_()
    graph.replay()
    assert target.tolist() == [7.0, 7.0]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (lambda x, kept: float(x.sum()), "sync in a capture"),
        (lambda x, kept: x.copy_(torch.ones(2)), "blocking upload in a capture"),
        (lambda x, kept: x.cpu(), "blocking download in a capture"),
        (lambda x, kept: torch.empty(2, pin_memory=True), "pinned in a capture"),
        (lambda x, kept: kept.append(x * 2), "outlive it, the first of shape"),
    ],
)
def test_a_capture_refuses(body, why):
    tensor, kept = on_device(1.0, 2.0), []
    with pytest.raises(CaptureError, match=why):
        captured(lambda: body(tensor, kept))


def test_memory_is_accounted_for():
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    tensor = torch.zeros(1000, device="cuda")
    assert torch.cuda.memory_allocated() == before + 4000
    del tensor
    assert (torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()) == (before, before + 4000)
