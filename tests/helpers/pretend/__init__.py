"""A CUDA device for machines without one: CPU tensors that say they are on `cuda:0`, held to a device's rules.

Every operator runs on the CPU. What a device would refuse (tensors of two devices in one operator) is refused, and
what it would be slow at is counted, under the name of the stage that ran it: launches, copies to and from the device,
and waits for it. Memory is pageable unless it was pinned, and streams know what they waited for: what one reads while
another may still write it is an error, and so is pinned memory that changes before its copy is done. A graph is
captured operator by operator, refuses what a real capture refuses, and replays at the addresses that it was captured
with.

    with installed(folder) as device:
        engine = Engine.from_pretrained(device="cuda")
        with device.counted("step") as counts: ...

What it cannot show: how fast anything is, what a kernel of Triton computes, and rounding of a device's own.
"""

from .device import Counts, Device
from .install import CannotPretendError, installed, load_guard
from .rules import CaptureError, DeviceMixError, Kind, RaceError
from .tensors import OnDevice

__all__ = [
    "CannotPretendError",
    "CaptureError",
    "Counts",
    "Device",
    "DeviceMixError",
    "Kind",
    "OnDevice",
    "RaceError",
    "installed",
    "load_guard",
]
