"""How many rows a step is given, from what steps cost and how many rows come."""

import itertools

import pytest

from twig.engine.batching.pacing import Pace

COUNTS = (1, 2, 4, 6, 8, 12, 16)
KIND = ((16, 16), False)


class Device:
    """A clock and a pace, and steps that take what is said."""

    def __init__(self, base=0.0, each=0.0, control=0.0, kind=KIND):
        self.now = 0.0
        self.pace = Pace(COUNTS, lambda: self.now)
        self.costs = base, each, control
        self.kind = kind

    def step(self, rows, controlled=0, idle=0.0, seconds=None):
        base, each, control = self.costs
        padded = next(count for count in COUNTS if count >= rows)
        seconds = base + each * padded + control * controlled if seconds is None else seconds
        self.now += seconds + idle
        self.pace.stepped(self.kind, rows, padded, controlled, seconds)

    def steps(self, sizes, times=10, **said):
        for rows in itertools.chain.from_iterable([sizes] * times):
            self.step(rows, **said)

    def rows(self, waiting, least=2):
        return self.pace.rows(self.kind, waiting, least)


def test_as_many_as_fit_while_nothing_is_known():
    device = Device(base=1.0)
    assert device.rows(2) == device.rows(40) == 16
    device.steps([2, 4], times=5)
    assert device.rows(2) == 16


def test_rows_that_cost_nothing_are_all_taken_and_rows_that_cost_all_come_one_after_the_other():
    free, costly = Device(base=0.02), Device(each=0.02)
    for device in (free, costly):
        device.steps([2, 4, 8, 16], idle=10.0)
    assert free.rows(16) == 16
    assert free.rows(7) >= 7
    assert costly.rows(16) == 2
    assert costly.rows(16, least=1) == 1


def test_the_longer_the_queue_the_more_rows():
    device = Device(base=0.01, each=0.005)
    device.steps([2, 4, 8, 16], idle=10.0)
    rows = [device.rows(waiting) for waiting in (2, 8, 32, 128, 512)]
    assert rows == sorted(rows)
    assert (rows[0], rows[-1]) == (2, 16)


def test_the_more_comes_the_more_rows():
    """Where what comes would fill the time in small steps, they grow until it does not."""
    rows = []
    for idle in (10.0, 0.05, 0.0):
        device = Device(base=0.01, each=0.01)
        device.steps([2, 4, 8, 16], times=30, idle=idle)
        rows.append(device.rows(8))
    assert rows == sorted(rows)
    assert rows[0] < rows[-1] == 16


def test_steps_of_other_kinds_leave_less_time():
    rows = []
    for seconds in (0.0, 0.05):
        device = Device(base=0.01, each=0.01)
        for size in (2, 4, 8, 16) * 30:
            device.step(size, idle=0.1 - seconds)
            device.now += seconds
            device.pace.stepped("another", 2, 2, 0, seconds)
        rows.append(device.rows(8))
    assert rows[0] < rows[1]


def test_controlled_rows_count_with_their_share():
    """The same rows of the UNet, with ControlNets that cost ten times as much: fewer share a step."""
    cheap, dear = Device(base=0.02, each=0.002), Device(base=0.02, each=0.002, control=0.05)
    for device in (cheap, dear):
        for rows in (2, 4, 8, 16) * 10:
            device.step(rows, controlled=rows, idle=10.0)
    assert dear.rows(16) < cheap.rows(16)


def test_steps_that_compile_teach_nothing():
    device, other = Device(base=0.01, each=0.005), Device(base=0.01, each=0.005)
    for size in (2, 4, 8, 16):
        device.step(size, idle=10.0, seconds=9.0)
        other.step(size, idle=10.0)
    device.steps([2, 4, 8, 16], idle=10.0)
    other.steps([2, 4, 8, 16], idle=10.0)
    waiting = (2, 8, 32, 128, 512)
    assert [device.rows(n) for n in waiting] == [other.rows(n) for n in waiting]
    device.step(16, seconds=9.0)
    device.steps([2, 4, 8, 16], times=2, idle=10.0)
    assert [device.rows(n) for n in waiting] == [other.rows(n) for n in waiting]


def test_a_device_that_becomes_another_is_learned_anew():
    device = Device(each=0.02)
    device.steps([2, 4, 8, 16], times=40, idle=10.0)
    assert device.rows(16) == 2
    device.costs = 0.5, 0.0, 0.0
    device.steps([2, 4, 8, 16], times=600, idle=10.0)
    assert device.rows(16) == 16


def test_sizes_that_did_not_run_are_tried():
    """A device of which only single pictures are known takes on a crowd at once, and learns what that costs."""
    device = Device(each=0.02)
    device.steps([2], times=100, idle=10.0)
    assert device.rows(16) == 16
    device.steps([16], times=3, idle=10.0)
    assert device.rows(16) < 16


def test_kinds_of_steps_are_told_apart():
    device = Device(each=0.02)
    device.steps([2, 4, 8, 16], idle=10.0)
    device.kind = ((32, 32), False)
    assert device.rows(16) == 16


@pytest.mark.parametrize("least", COUNTS)
def test_never_fewer_than_the_first_job_has(least):
    device = Device(each=0.02)
    device.steps([2, 4, 8, 16], idle=10.0)
    assert device.rows(1, least=least) >= least
