"""What a request has not spent yet of the rows that it was estimated at, told by its events."""

from dataclasses import replace

from ..api.event import Event, State
from ..api.result import Verdict
from ..door import Admission as Admitted
from ..estimates import draft_run, final_run

_BEFORE = (State.QUEUED, State.ENCODED, State.DRAFTING)
_UNDRAWN = (State.FAILED, State.CANCELLED, State.EXPIRED)


class Spending:
    """Follows one request from its door on, in the engine's thread. rows: what it is estimated at."""

    def __init__(self, admitted: Admitted, rows: int) -> None:
        request, embedded = admitted.request, admitted.embedded
        self._draft = draft_run(request, embedded) if request.source is None else None
        self._final = final_run(request, request.avoidance, embedded)
        self._finals = [self._final.rows_left] * request.num_images
        self._shared = rows - sum(self._finals)
        self._estimated, self._forgiven = rows, False
        self._witnesses = self._shared - (0 if self._draft is None else self._draft.rows_left)

    @property
    def unspent(self) -> int:
        """Rows of the estimate that were not drawn. What a shut gate spares counts as drawn."""
        return self._estimated if self._forgiven else self._shared + sum(self._finals)

    def hear(self, event: Event) -> None:
        """Take in an event of the request."""
        if event.result is not None and event.result.verdict is Verdict.CANCELLED:
            self.keep()
        elif event.state is State.DRAFTING and self._draft is not None:
            left = replace(self._draft, step=event.step).rows_left + self._witnesses
            self._shared = min(self._shared, left)
        elif event.state in (State.SEGMENTING, State.WITNESSING):
            self._shared = min(self._shared, self._witnesses)
        elif event.state not in _BEFORE + _UNDRAWN:
            self._shared = 0
            self._finals[event.index] = min(self._finals[event.index], self._left_of_final(event))

    def forgive(self) -> None:
        """Count none of it as spent: the server could not keep what it drew, and nobody got anything."""
        self._forgiven = True

    def keep(self) -> None:
        """Count all of it as spent: the server itself stopped it, and whoever draws it in its stead takes nothing."""
        self._shared = 0
        self._finals = [0] * len(self._finals)

    def _left_of_final(self, event: Event) -> int:
        if event.state in (State.SEGMENTED, State.PLACING):
            return self._final.rows_left
        if event.state is State.FINALISING and event.attempt == 0:
            probes = 0 if event.step else self._final.probes
            return replace(self._final, step=event.step, probes=probes).rows_left
        return 0
