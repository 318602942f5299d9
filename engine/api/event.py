"""What an engine tells of a request while it runs."""

from dataclasses import dataclass
from enum import StrEnum

from .json_fields import Mask, Pixels
from .portable import Value
from .result import GenerationResult


class State(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    ENCODED = "encoded"
    DRAFTING = "drafting"
    SEGMENTING = "segmenting"
    WITNESSING = "witnessing"
    SEGMENTED = "segmented"
    PLACING = "placing"
    FINALISING = "finalising"
    JUDGING = "judging"
    ACCEPTED = "accepted"
    REVIEW = "review"
    REFUSED = "refused"
    NOT_JUDGED = "not judged"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


@dataclass(frozen=True, eq=False)
class Event(Value):
    """Something happened to image `index` of the request with `id`: where it stands, and how far its run is.

    picture: the predicted picture, at steps for which the request wants a preview; at SEGMENTED the draft (None where a
    source took its place), with the mask (H, W) bool. result: set by the last event of an image.
    """

    id: int
    index: int
    state: State
    step: int = 0
    steps: int = 0
    attempt: int = 0
    picture: Pixels | None = None
    mask: Mask | None = None
    result: GenerationResult | None = None

    @property
    def passing(self) -> bool:
        """Whether a later event of the same run says more: a step, with its preview if any."""
        return self.step > 0 and self.result is None
